"""Two runs beside each other: what differs in their recipes, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from sani.auditing.compare import Change, compare
from sani.auditing.occurrences import Occurrences
from sani.reporting.format import (
    KIND_NAMES,
    Cells,
    Section,
    estimate,
    number,
    p_value,
    rate,
    stage_name,
)
from sani.reporting.process import leaves, stages
from sani.reporting.schema import Report, Stage
from sani.reporting.stored_report import read_report
from sani.runfolder import RunFolder


def side_by_side(first: Path, second: Path) -> list[Section]:
    """Compare two finished runs.

    Args:
        first: A run folder.
        second: Another one; figures compare where corpus and settings are the same.

    Returns:
        The figures of both; what became of each occurrence, where both audited the same ones;
        settings that differ.

    Raises:
        RunError: If one of them is not finished, or its report is of another version.
    """
    reports = [read_report(folder) for folder in (first, second)]
    names = (f"A: {first.name}", f"B: {second.name}")
    return [
        Section(
            "figures",
            "Two runs",
            (_same_corpus(first, second),),
            ("figure", *names),
            tuple(_figures(*reports)),
        ),
        _occurrences(first, second),
        Section(
            "differ",
            "Settings that differ",
            (),
            ("setting", *names),
            tuple(_different(*(dict(leaves(report.recipe, "")) for report in reports))),
        ),
    ]


def _different(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Cells]:
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name, "-"), second.get(name, "-")
        if one != other:
            yield name.lstrip("."), one, other


def _figures(first: Report, second: Report) -> Iterator[Cells]:
    both = (first, second)
    yield ("gate", *("holds" if report.gate.holds else "DOES NOT HOLD" for report in both))
    yield ("limits not met", *map(_broken, both))
    stages_shown: tuple[Stage, ...] = ("base", "before", "after")
    for stage in stages_shown:
        audits = [report.audits.get(stage) for report in both]
        for kind in KIND_NAMES:
            figures = [audit.figures.get(kind) if audit else None for audit in audits]
            for name, cells in (
                ("greedy", [rate(f.greedy if f else None) for f in figures]),
                ("discoverable", [rate(f.discoverable if f else None) for f in figures]),
                ("auc", [estimate(f.auc if f else None) for f in figures]),
            ):
                if any(cell != "-" for cell in cells):
                    yield (f"{name}, {kind}, {stage_name(stage)}", *cells)
        utilities = [audit.utility if audit else None for audit in audits]
        if any(utilities):
            perplexities = [number(u.perplexity) if u else "-" for u in utilities]
            yield (f"perplexity, {stage_name(stage)}", *perplexities)
            accuracies = [number(u.accuracy) if u else "-" for u in utilities]
            yield (f"accuracy, {stage_name(stage)}", *accuracies)
    yield ("new", *(str(report.changes.new) for report in both))
    yield ("beyond control", *(str(report.changes.beyond_control) for report in both))
    yield ("seconds of all stages", *(f"{_seconds(report):.0f}" for report in both))


def _broken(report: Report) -> str:
    return ", ".join(check.name for check in report.gate.checks if not check.holds) or "none"


def _seconds(report: Report) -> float:
    return sum(stage.seconds for stage in stages(report).values())


def _occurrences(first: Path, second: Path) -> Section:
    """Return the change from one sanitized checkpoint to the other, if both audited the same."""
    same = _corpus(first) is not None and _corpus(first) == _corpus(second)
    change = _change(first, second) if same else None
    if change is None:
        return Section("occurrences", "From A to B, occurrence by occurrence")
    counts = change.counts()
    return Section(
        "occurrences",
        "From A to B, occurrence by occurrence",
        ("Of the sanitized checkpoints; p is that of the paired test.",),
        ("only A gives", "both give", "only B gives", "p"),
        ((*map(str, (counts.cured, counts.kept, counts.new)), p_value(counts.p_value)),),
    )


def _change(first: Path, second: Path) -> Change | None:
    one, other = (
        RunFolder(folder).load_arrays("audit-after", Occurrences) for folder in (first, second)
    )
    try:
        return compare(one, other) if one is not None and other is not None else None
    except ValueError:  # another scan found other occurrences
        return None


def _same_corpus(first: Path, second: Path) -> str:
    one, other = _corpus(first), _corpus(second)
    if one is None or other is None:
        return "Whether both read the same corpus is unknown: private/ is not at hand."
    if one == other:
        return "Both read the same corpus."
    return "THE CORPORA DIFFER: the figures do not compare."


def _corpus(folder: Path) -> str | None:
    """The digest of what a run read; it stays inside this process."""
    try:
        inputs = json.loads((folder / "private" / "inputs.json").read_text(encoding="utf-8"))
        return str(inputs["corpus"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
