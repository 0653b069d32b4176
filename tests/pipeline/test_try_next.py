"""`sani run --try-next`: the advice of a finished run, as a recipe that says what changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from sani.cli.main import main
from sani.errors import RunError, WriteError
from sani.pipeline.try_next import next_folder, next_run
from sani.recipe import load_recipe
from sani.runfolder import RunFolder
from tests.support.reports import corpus_of, finished_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with fresh layers, whose gate does not hold."""
    finished_run(tmp_path / "first", corpus_of(20, 8))
    near = {"key": "erase", "value": "{interpolate_to_base: 0.9}", "why": "near_base"}
    rewrite_advice(tmp_path / "first", next="settings", settings=[near])
    return tmp_path / "first"


def rewrite_advice(run: Path, **changes: Any) -> None:
    """Change the advice of a finished run's report, as if the run had written it so."""
    report = json.loads((run / "report.json").read_text())
    report["advice"].update(changes)
    text = json.dumps(report)
    RunFolder(run).keep_digest("report", text)
    (run / "report.json").write_text(text)


def test_the_next_recipe_differs_in_what_the_advice_names(run: Path) -> None:
    new = next_run(run)
    assert not new.file.exists()
    new.write()
    assert (new.file, new.out) == (run.with_name("first-2.yaml"), run.with_name("first-2"))
    assert not new.out.exists()
    before, after = load_recipe(run / "recipe.resolved.yaml"), load_recipe(new.file)
    assert after == new.recipe
    assert before.erase is not None
    assert before.erase.last_layers == 2
    assert after.erase is not None
    assert (after.erase.last_layers, after.erase.interpolate_to_base) == (None, 0.9)
    assert after.model_copy(update={"erase": before.erase}) == before
    text = new.file.read_text()
    assert "#   erase={interpolate_to_base: 0.9}\n" in text
    assert "# Why: measured: nine tenths of the way to the base" in text
    assert str(run) not in text.split("version:")[0]


def test_what_is_there_is_never_replaced(run: Path) -> None:
    new = next_run(run)
    new.write()
    with pytest.raises(WriteError, match="already exists"):
        next_run(run)
    new.file.unlink()
    new.out.mkdir()
    (new.out / "something").touch()
    with pytest.raises(RunError, match="already exists and is not empty"):
        next_run(run)


def test_without_a_setting_to_try_it_says_the_next_step(run: Path) -> None:
    rewrite_advice(run, next="more_records", settings=[])
    with pytest.raises(RunError, match=r"no setting to try\. Next: audit more records"):
        next_run(run)
    assert not run.with_name("first-2.yaml").exists()


@pytest.mark.parametrize(
    ("name", "new"),
    [("first", "first-2"), ("first-2", "first-3"), ("run-9", "run-10"), ("2", "2-2")],
)
def test_names_count_up(name: str, new: str) -> None:
    assert next_folder(Path("runs") / name) == Path("runs") / new


@pytest.mark.parametrize("option", ["--resume", "--set=seed=1"])
def test_it_takes_no_other_settings(
    run: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(run), "--try-next", option]) == 2
    assert "leave --resume and --set away" in capsys.readouterr().err


def test_the_command_writes_the_recipe_and_runs_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The invented run has no model folders, so its second run ends where it opens them."""
    recipe = run.with_name("first.yaml")
    assert main(["run", str(recipe), "--out", str(run), "--try-next"]) == 1
    error = capsys.readouterr().err
    assert f"{run}-2.yaml: the recipe of {run}, and what changed" in error
    assert f"model folder {run.parent / 'model'} does not exist" in error
    assert main(["run", str(run.with_name("nowhere")), "--try-next"]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_check_looks_at_the_next_run_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sorted(run.parent.rglob("*"))
    assert main(["run", str(run), "--try-next", "--check", "--json"]) == 1
    said = {item["name"]: item["detail"] for item in json.loads(capsys.readouterr().out)}
    assert said["model.path"].startswith(f"model folder {run.parent / 'model'} does not exist")
    assert said["out"] == f"{run}-2"
    assert sorted(run.parent.rglob("*")) == there
