"""Refusals come before the heavy libraries, interrupts say how to go on, pipes get plain text."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sani.cli.main import main

RECIPE = """
version: 2
model: {path: nowhere}
corpus: {path: nowhere.jsonl}
repair: {identifier_loss: {kind: mask}}
gate: {greedy_beyond_control: 0, subjects: null, auc_to_base: null, perplexity_ratio: null}
"""
CORPUS = '{"id": "1", "text": "A note.", "spans": [{"start": 2, "end": 6, "label": "X"}]}\n'
# Whatever loads one of these takes seconds before it answers.
HEAVY = ("torch", "transformers", "scipy", "spacy")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a recipe, a corpus, a full folder and a broken recipe."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "broken.yaml").write_text(RECIPE + "nonsense: 1\n")
    (tmp_path / "notes.jsonl").write_text(CORPUS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run recipe.yaml --out full", "already exists and is not empty; it is no run folder"),
        ("run broken.yaml --out new", "unknown key; known: attack"),
        ("run recipe.yaml --set gate.subjects=7 --out new", "gate.subjects"),
        ("init model --corpus notes.jsonl", "recipe.yaml already exists; choose another file"),
        ("erase model --out full", "already exists and is not empty"),
        ("repair model --corpus notes.jsonl --out full", "already exists and is not empty"),
        ("sample model --out full", "already exists"),
        ("attack model --corpus notes.jsonl --out full", "already exists and is not empty"),
        ("report nowhere", "there is no such folder; give the folder that sani run wrote"),
        ("report full", "is no run folder; give the folder that sani run wrote"),
        ("report full nowhere --compare", "is no run folder"),
    ],
)
def test_a_refusal_loads_no_heavy_library(place: Path, words: str, sentence: str) -> None:
    code = (
        "import sys; from sani.cli.main import main; code = main(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, cwd=place,
        check=False,
    )  # fmt: skip
    assert done.stdout == "[] 1\n"
    assert sentence in done.stderr
    assert "--resume" not in done.stderr


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def leave_a_file(folder: Path) -> Callable[..., None]:
    def work(*arguments: object, **options: object) -> None:
        folder.mkdir()
        (folder / "recipe.resolved.yaml").touch()
        raise KeyboardInterrupt

    return work


def test_an_interrupt_advises_what_is_possible(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the run folder exists there is nothing to resume."""
    out = place / "new"
    words = ["run", str(place / "recipe.yaml"), "--out", str(out)]
    monkeypatch.setattr("sani.pipeline.run.run", interrupt)
    assert main(words) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written: start it again\n"
    monkeypatch.setattr("sani.pipeline.run.run", leave_a_file(out))
    assert main(words) == 130
    assert capsys.readouterr().err == "interrupted; sani run goes on with --resume\n"


def test_an_interrupted_attack_goes_on_only_from_a_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["attack", str(place / "model"), "--corpus", str(place / "notes.jsonl")]
    monkeypatch.setattr("sani.pipeline.attack_models.attack_models", interrupt)
    assert main(words) == 130
    assert capsys.readouterr().err == "interrupted; nothing was left half-written\n"
    out = place / "attacks"
    work = leave_a_file(out)
    monkeypatch.setattr("sani.pipeline.attack_models.attack_models", work)
    assert main([*words, "--out", str(out)]) == 130
    assert capsys.readouterr().err == "interrupted; sani attack goes on with --resume\n"


def test_a_plain_name_may_be_one_on_the_hub(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert main(["audit", "gpt2", "--corpus", "notes.jsonl"]) == 1
    assert "hf download gpt2 --local-dir models/gpt2" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["sign --help", "scan notes.jsonl", "env", "run --help"])
def test_piped_output_is_plain_text(place: Path, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sani", *words.split()], capture_output=True, cwd=place, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode()
    assert [sign for sign in said if not sign.isprintable() and sign != "\n"] == []
    if words.startswith("sign"):
        assert "'sani-llm[sign]'" in " ".join(said.split())


def test_an_existing_folder_is_refused_at_once(place: Path) -> None:
    began = os.times()
    subprocess.run(
        [sys.executable, "-m", "sani", "run", "recipe.yaml", "--out", "full"], cwd=place,
        capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    took = os.times()
    seconds = took.children_user + took.children_system
    seconds -= began.children_user + began.children_system
    assert seconds < 1.5
