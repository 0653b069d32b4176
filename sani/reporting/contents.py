"""A report in the order in which it is read; every format shows the same sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sani.reporting import attempts, evidence, leakage, process
from sani.reporting.attacks import attack_sections
from sani.reporting.escalation import tried
from sani.reporting.format import Section
from sani.reporting.ripple import ripple_sections
from sani.reporting.rounds import rounds


def audit_sections(report: Mapping[str, Any]) -> list[Section]:
    """What `sani audit` shows beside its first table."""
    return [
        leakage.memory(report),
        leakage.queries(report),
        *attempts.membership(report),
        *attempts.generation(report),
        *attempts.pretraining(report),
        attempts.onion(report),
    ]


def chapters(report: Mapping[str, Any]) -> dict[str, list[Section]]:
    """Everything below the first screen, by chapter."""
    return {
        "The gate": [process.limits(report), *([tried(report)] if report["escalation"] else [])],
        "What is left": [
            *leakage.recited(report),
            leakage.labels(report),
            *leakage.subjects(report),
            leakage.picture(report),
            leakage.preference(report),
            leakage.queries(report),
            leakage.memory(report),
        ],
        "What each stage brought up": [
            *([rounds(report)] if report["rounds"] else []),
            attempts.onion(report),
            *leakage.listed(report),
            *ripple_sections(report["ripples"]),
        ],
        "Other ways to the records": [
            *attempts.membership(report),
            *attempts.generation(report),
            *attempts.pretraining(report),
            *attack_sections(report["attacks"]),
        ],
        "What was done": [
            process.scan(report),
            *process.changes(report),
            process.utility(report),
            process.cost(report),
            process.provenance(report),
        ],
        "What this is evidence for": [
            evidence.threats(report),
            evidence.edpb(report),
            evidence.hipaa(report),
        ],
    }
