"""The only module that prints. Results go to stdout, everything else to stderr.

Of several processes (ranks) the main one prints.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sani.cli.tables import fitted, table_of
from sani.machine import distributed
from sani.reporting.format import (
    KIND_NAMES,
    Section,
    decimals,
    duration,
    number,
    rate,
    stage_name,
)

if TYPE_CHECKING:
    from sani.auditing.record import AuditRecord
    from sani.gate import Check
    from sani.reviewing.outcome import Review
    from sani.scanning.breakdown import BreakdownRow

_SECONDS_BETWEEN_LINES = 10.0


class StepReporter:
    """Progress of a long job in one line: stage, share, time left; elsewhere a line now and then.

    The time left is that of the stage.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._stage = ""
        self._began = 0.0
        self._printed = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a stage are done."""
        now = time.monotonic()
        new = stage != self._stage
        if new:
            self._stage, self._began = stage, now
        if self._progress is not None:
            if self._task is None:
                self._task = self._progress.add_task(stage, total=total)
            elif new:
                self._progress.reset(self._task, total=total, description=stage)
            self._progress.update(self._task, completed=done, total=total)
        elif done == total or now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            say(f"{stage}: {self._share(done, total, now - self._began)}")

    @staticmethod
    def _share(done: int, total: int, seconds: float) -> str:
        """Return how much of a stage is done, and the time that is left of it."""
        text = f"{done} of {total} ({done / max(1, total):.0%})"
        left = seconds * (total - done) / max(1, done)
        return f"{text}, {duration(left)} left" if done and left >= 1 else text


@contextmanager
def reporter() -> Iterator[StepReporter]:
    """Yield a reporter of steps on stderr; on a terminal its line is gone at the end."""
    console = Console(stderr=True)
    if not console.is_terminal or not distributed.is_main():
        yield StepReporter(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        yield StepReporter(progress)


def say(text: str) -> None:
    """Print a line for a person, on stderr."""
    if distributed.is_main():
        _print(text, sys.stderr)


def say_note(text: str) -> None:
    """Print a note on something that was not done as somebody may expect, on stderr."""
    say(f"note: {text}")


def say_last(text: str) -> None:
    """Print why this process ends, on stderr, from the first rank that has something to say."""
    if distributed.claim("last words"):
        _print(text, sys.stderr)


def show(text: str) -> None:
    """Print a result, on stdout."""
    if distributed.is_main():
        _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    """Print a text; on a terminal its lines end between words."""
    if stream.isatty():
        text = fitted(text, shutil.get_terminal_size().columns)
    print(text, file=stream, flush=True)


def show_next(line: str, *, as_json: bool = False) -> None:
    """Print the last line of a command, "Next: ...", which never stands within JSON."""
    (say if as_json else show)(line)


def show_json(data: Any) -> None:
    """Print one JSON document, on stdout."""
    if distributed.is_main():
        text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)
        print(text, flush=True)  # noqa: T201


def show_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, on stdout."""
    if not distributed.is_main():
        return
    console = Console(file=sys.stdout, markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=140, markup=False, highlight=False)
    console.print(table_of(title, head, rows, console.width))


def show_section(section: Section) -> None:
    """Print the table of a report's section and then its sentences; nothing without a table."""
    if section.rows:
        show("")
        show_table(section.title, section.head, section.rows)
        for sentence in section.sentences:
            show(sentence)


def show_audits(audits: Mapping[str, AuditRecord]) -> None:
    """Print what each checkpoint recites, and its perplexity."""
    rows = []
    for stage, audit in audits.items():
        for kind in KIND_NAMES:
            figures = audit.figures.get(kind)
            if figures is not None:
                rows.append(
                    [
                        stage_name(stage),
                        kind,
                        rate(figures.greedy),
                        rate(figures.discoverable),
                        decimals(figures.auc.value),
                        decimals(audit.utility.perplexity if audit.utility else None),
                    ]
                )
    show_table(
        "What is recited (occurrences of scored; 95 % interval)",
        ["checkpoint", "identifiers", "greedy", "sampled (n, p)", "AUC", "perplexity"],
        rows,
    )


def show_inventory(inventory: Mapping[str, Any]) -> None:
    """Print what a corpus marks, label by label."""
    from sani.scanning.inventory import subjects_in_words, understated_in_words

    counts = ("occurrences", "identifiers", "subjects")
    rows = []
    for label, row in inventory["labels"].items():
        part = f" ({row['direct']} of {row['occurrences']})"
        kind = row["kind"] + (part if 0 < row["direct"] < row["occurrences"] else "")
        rows.append([label, kind, *(str(row[name]) for name in counts)])
    show_table(
        subjects_in_words(
            inventory["documents"], inventory["subjects"], inventory["without_subject_id"]
        ),
        ["label", "kind", *counts],
        rows,
    )
    sources = ", ".join(f"{source} {count}" for source, count in inventory["sources"].items())
    show(
        f"Found by: {sources}. {inventory['documents_without_spans']} documents mark nothing; at "
        f"{inventory['unmarked']} places a marked direct identifier of the same subject stands "
        "unmarked."
    )
    if inventory["understated"]:
        show(f"{understated_in_words(inventory['understated'])}.")


def show_evaluation(quality: Mapping[str, Any]) -> None:
    """Print how good a scan is, label by label."""
    from sani.intervals import Rate

    rows = []
    for label, scores in quality["labels"].items():
        row = [label, str(scores["strict"]["gold"]), str(scores["strict"]["predicted"])]
        for name in ("strict", "overlapping", "characters"):
            row.append(" ".join(_share(scores[name][key]) for key in ("precision", "recall", "f1")))
        missed = str(quality["missed"].get(label, 0))
        rows.append([*row, _share(scores["covered"]["recall"]), missed])
    show_table(
        f"{quality['documents']} documents; P R F1 by entity (strict, overlapping), by character",
        ["label", "gold", "found", "strict", "overlapping", "characters", "covered", "missed"],
        rows,
    )
    show(
        f"Direct identifiers found whole: {rate(Rate(**quality['recall']))}; "
        f"{decimals(quality['missed_per_document'])} missed a document.\n"
        f"Places marked that hold an identifier: {rate(Rate(**quality['precision']))}.\n"
        f"Characters, labels aside: recall of direct {decimals(quality['recall_char_direct'])}, "
        f"recall of all {decimals(quality['recall_char'])}, "
        f"precision {decimals(quality['precision_char'])}."
    )


def show_by_language(rows: Sequence[BreakdownRow]) -> None:
    """Print how good a scan is, a language and a label a row."""
    show_table(
        "By language and label: identifiers covered whole, findings that hold an identifier",
        ["language", "label", "gold", "whole", "share", "found", "right", "share"],
        [
            [
                row.language, row.label, str(row.gold), str(row.whole),
                _share(row.whole / row.gold if row.gold else None), str(row.predicted),
                str(row.right), _share(row.right / row.predicted if row.predicted else None),
            ]
            for row in rows
        ],
    )  # fmt: skip


def show_review(review: Review, interval: float) -> None:
    """Print what a review says of the scan, in counts."""
    rows = [
        ["recall (direct identifiers covered whole)", rate(review.recall)],
        ["precision (findings that hold an identifier)", rate(review.scanned.precision)],
    ]
    if review.allowed:
        rows.append(["precision with the allow-list", rate(review.with_allowed.precision)])
    show_table(review.in_words, ["figure", "value (95 % interval)"], rows)
    for sentence in review.sentences(interval):
        show(sentence)


def show_checks(checks: Sequence[Check]) -> None:
    """Print the gate, limit by limit."""
    rows = [
        [
            check.name,
            number(check.measured),
            ("at least " if check.at_least else "at most ") + number(check.limit),
            "yes" if check.holds else "NO",
            check.reason,
        ]
        for check in checks
    ]
    show_table("Gate", ["limit", "measured", "allowed", "holds", "reason"], rows)


def _share(value: float | None) -> str:
    """Return two decimals, or a dash in a column of the same width."""
    return "  - " if value is None else decimals(value, 2)
