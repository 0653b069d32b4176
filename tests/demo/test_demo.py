"""The demo: it trains its models and runs its recipe, to a verdict."""

from pathlib import Path

import pytest

from sani.cli.main import main
from sani.demo import demo
from sani.reporting.stored_report import read_report


@pytest.mark.long
def test_the_demo_runs_to_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few patients and epochs its models recite nothing, so the gate cannot hold."""
    monkeypatch.setattr(demo, "PATIENTS", (6, 4, 4))
    monkeypatch.setattr(demo, "BASE_EPOCHS", 1)
    monkeypatch.setattr(demo, "LEAKY_EPOCHS", 1)
    monkeypatch.setattr(demo, "RECIPE", demo.RECIPE.replace("epochs: 12", "epochs: 1"))
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 3
    report = read_report(tmp_path / "demo" / "run")
    assert {"before", "base", "after"} <= set(report.audits)
    assert not report.gate.holds
    _, _, last = capsys.readouterr().out.partition("What it cost")
    assert last.splitlines()[-1].startswith("Next: ")
    for stage in ("train the base model", "train the leaky model", "repair", "all stages"):
        assert stage in last
