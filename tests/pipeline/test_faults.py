"""Faults, a few of each; `benchmarks/faults.py` and `pytest --broken-inputs 1000` try more."""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sani.cli.main import main
from tests.support import broken_inputs
from tests.support.faults import BAD, SECTIONS, Faults, Job
from tests.support.recipes import recipe_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and signals as on POSIX")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def num_inputs(request: pytest.FixtureRequest) -> int:
    """Number of broken recipes, and of broken corpora."""
    return int(request.config.getoption("--broken-inputs"))


@pytest.mark.long
def test_a_run_survives_what_the_machine_does_to_it(job: Job, tmp_path: Path) -> None:
    tried = Faults(job, tmp_path, chance=random.Random(3))
    assert tried.files_opened > 30
    tried.kill()
    tried.interrupt()
    tried.no_space_for(tried.files_opened // 2)
    tried.no_space_in_turn(max_writes=5)
    tried.small_disk(tried.bytes // 2)
    tried.read_only()
    tried.two_at_once()
    assert tried.counts["kills"] + tried.counts["kills_too_late"] == 1
    assert tried.counts["full_disks"] >= 6
    assert {name: tried.counts[name] for name in BAD} == dict.fromkeys(BAD, 0), tried.notes


@pytest.mark.long
def test_a_run_that_is_not_what_it_was_is_detected(job: Job, tmp_path: Path) -> None:
    """The control: a fault that is not mended, a leak and a half-written file are counted."""
    tried = Faults(job, tmp_path, chance=random.Random(3))
    out = tmp_path / "broken"
    (out / "sanitized").mkdir(parents=True)
    (out / "report.json").write_text("{")
    (out / "report.md").write_text(max(job.secrets))
    tried.judge(out)
    counted = {name for name in BAD if tried.counts[name]}
    assert counted == {"runs_lost", "identifier_leaks", "partial_outputs"}


def test_broken_recipes_are_refused_in_a_sentence(tmp_path: Path, num_inputs: int) -> None:
    recipe = tmp_path / "recipe.yaml"  # refused before anything that it names is read
    recipe.write_text(
        recipe_text(
            SECTIONS, folder=tmp_path, unsanitized=tmp_path / "leaky", base=tmp_path / "base"
        )
    )
    counts: Counter[str] = Counter()
    broken_inputs.break_recipes(recipe, tmp_path, examples=num_inputs, counts=counts)
    assert counts == {"bad_inputs": num_inputs}


def test_broken_corpora_are_refused_in_a_sentence(tmp_path: Path, num_inputs: int) -> None:
    counts: Counter[str] = Counter()
    broken_inputs.break_corpora(tmp_path, examples=num_inputs, counts=counts)
    assert counts == {"bad_inputs": num_inputs}


@pytest.mark.parametrize("text", ["error: x is Wolańska-Mbeki", "Traceback (most recent", "odd"])
def test_what_a_broken_input_must_not_do_is_counted(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(broken_inputs, "main", lambda arguments: print(text) or 1)
    counts: Counter[str] = Counter()
    assert broken_inputs.refused([], counts)
    assert set(counts) - {"bad_inputs"} == {
        {"e": "identifier_leaks", "T": "tracebacks", "o": "unexplained"}[text[0]]
    }


def test_a_full_disk_is_reported_whichever_library_hits_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors: list[Exception] = [
        OSError(28, "No space left on device", "/records/Mbeki.txt"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        ValueError('IoError(Os { code: 28, kind: StorageFull, message: "..." })'),
    ]
    for error in errors:

        def fail(*arguments: object, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr("sani.corpus.readers.read_corpus", fail)
        assert main(["scan", "Mbeki"]) == 1
        assert capsys.readouterr().err == (
            "error: a file could not be written or read (No space left on device); free space or "
            "check the file rights, then go on with --resume\n"
        )


class Stubborn:
    """Its destructor is where Ctrl-C falls, and where Python can raise nothing."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_destructor_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ctrl_c: None
) -> None:
    def work(*arguments: object, **options: object) -> None:
        Stubborn()
        time.sleep(10)

    monkeypatch.setattr("sani.corpus.readers.read_corpus", work)
    hook = sys.unraisablehook
    began = time.monotonic()
    assert main(["scan", str(Path("x"))]) == 130
    assert time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.startswith("interrupted; ")
    assert error.endswith("nothing was left half-written\n")
    assert sys.unraisablehook is hook
