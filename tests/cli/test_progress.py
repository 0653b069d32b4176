"""Progress is one line on a terminal, plain lines in a pipe, and nothing of it in a result."""

import io
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sani.cli import console
from sani.cli.console import StepReporter
from sani.cli.main import main
from sani.reporting.format import duration
from tests.support.reports import corpus_of, finished_run


def test_times_are_said_as_people_do() -> None:
    assert duration(3) == "3 seconds"
    assert duration(89) == "89 seconds"
    assert duration(600) == "10 minutes"
    assert duration(9000) == "2.5 hours"


def control_characters(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) == "Cc"} - {"\n"}


def test_in_a_pipe_a_line_says_stage_share_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(console, "time", clock)
    report = StepReporter(None)
    for clock.now, stage, done in (
        (100.0, "audit", 0),
        (130.0, "audit", 3),
        (131.0, "audit", 4),  # too soon for another line
        (200.0, "audit", 10),
        (201.0, "repair", 1),
        (260.0, "repair", 2),
    ):
        report(stage, done, 10)
    assert capsys.readouterr().err.splitlines() == [
        "audit: 0 of 10 (0%)",
        "audit: 3 of 10 (30%), 70 seconds left",
        "audit: 10 of 10 (100%)",
        "repair: 2 of 10 (20%), 4 minutes left",
    ]


def test_on_a_terminal_it_is_one_line_for_all_stages() -> None:
    screen = io.StringIO()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    terminal = Console(file=screen, force_terminal=True, width=80)
    with Progress(*columns, TimeRemainingColumn(), console=terminal, transient=True) as progress:
        report = StepReporter(progress)
        for stage in ("audit-before", "repair"):
            for done in range(4):
                report(stage, done, 4)
        (task,) = progress.tasks
        assert (task.description, task.completed, task.total) == ("repair", 3, 4)
        assert task.percentage == 75
    assert control_characters(screen.getvalue())  # the positive control of the next test


def test_piped_output_has_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = finished_run(tmp_path / "run", corpus_of(20, 6))
    for words in (["report", str(folder.path)], ["report", str(folder.path), "--json"], ["env"]):
        main(words)
        printed = capsys.readouterr()
        assert len(printed.out) > 200
        assert not control_characters(printed.out + printed.err)
