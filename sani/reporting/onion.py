"""The sections on change: what each stage cured and brought up, and what the base had seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from sani.auditing.compare import ChangeCounts, OnionStep
from sani.auditing.record import AuditRecord
from sani.counting import counted
from sani.recipe import AuditSettings
from sani.reporting.format import Section, by_kind, estimate, p_value, rate, sampled, stage_name

_Name = TypeVar("_Name", bound=str)


def pretraining(
    audits: Mapping[_Name, AuditRecord],
    changes: Mapping[_Name, ChangeCounts],
    settings: AuditSettings,
) -> Iterator[Section]:
    """Yield the section on documents that only the base may have seen, if there are any."""
    if not audits:
        return
    yield Section(
        "pretraining",
        "What the base may have seen",
        (
            "These documents were never in the corpus: a fine-tuned model may leak what only its "
            "base saw (Borkar 2023).",
            *(
                f"Base against {stage_name(stage)}: {counted(change.new, 'occurrence')} newly "
                f"extractable, {change.cured} no longer (paired test, p "
                f"{p_value(change.p_value)})."
                for stage, change in changes.items()
            ),
        ),
        ("identifiers", "checkpoint", "greedy", sampled(settings), "AUC"),
        tuple(
            (*names, rate(f.greedy), rate(f.discoverable), estimate(f.auc))
            for names, f in by_kind(audits)
        ),
    )


def onion(steps: Sequence[OnionStep]) -> Section:
    """Return the section on what each stage cured and brought up."""
    return Section(
        "onion",
        "The onion",
        (
            "What each stage cured and brought up, occurrence by occurrence. First seen: newly "
            "extractable, and at no earlier stage.",
        ),
        ("stage", "cured", "kept", "newly extractable", "first seen", "p of the paired test"),
        tuple(
            (
                f"{stage_name(step.source)} to {stage_name(step.to)}",
                *map(str, (step.cured, step.kept, step.new, step.first_seen)),
                p_value(step.p_value),
            )
            for step in steps
        ),
    )
