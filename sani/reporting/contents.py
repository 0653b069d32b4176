"""A report in the order in which it is read; every format shows the same sections."""

from __future__ import annotations

from sani.auditing.compare import AuditComparison
from sani.reporting import evidence, leakage, process, questions
from sani.reporting.attacks import attack_sections
from sani.reporting.depth import depth
from sani.reporting.escalation import tried
from sani.reporting.format import Section
from sani.reporting.generation import generation
from sani.reporting.membership import membership
from sani.reporting.onion import onion, pretraining
from sani.reporting.ripple import ripple_sections
from sani.reporting.rounds import rounds
from sani.reporting.schema import Report


def audit_sections(comparison: AuditComparison) -> list[Section]:
    """Return what `sani audit` shows beside its first table."""
    audits, settings = comparison.audits, comparison.audit_settings
    seen = comparison.pretraining
    return [
        leakage.memory(audits, settings),
        leakage.queries(audits, settings),
        *membership(audits),
        *generation(audits),
        *pretraining(seen.audits, seen.changes, settings),
        onion(comparison.onion),
    ]


def chapters(report: Report) -> dict[str, list[Section]]:
    """Return everything below the first screen, by chapter."""
    audits, settings, seen = report.audits, report.audit_settings, report.pretraining
    return {
        "The gate": [process.limits(report), *([tried(report)] if report.escalation else [])],
        "What is left": [
            *leakage.recited(report),
            leakage.labels(report),
            *leakage.subjects(report),
            leakage.log_prob_scatter(report),
            leakage.preference(report),
            leakage.queries(audits, settings),
            leakage.memory(audits, settings),
        ],
        "What each stage brought up": [
            *([rounds(report)] if report.rounds else []),
            onion(report.onion),
            *leakage.listed(report),
            *ripple_sections(report.ripples),
        ],
        "Other ways to the records": [
            *membership(audits),
            *generation(audits),
            *pretraining(seen.audits, seen.changes, settings),
            *depth(report.unlearning_depth),
            *attack_sections(report.attacks),
        ],
        "What was done": [
            process.scan(report),
            *process.changes(report.erase, report.repair),
            process.utility(report),
            process.cost(report),
            *process.memory_use(report),
            process.provenance(report),
        ],
        "What this is evidence for": [
            evidence.threats(report),
            questions.evidence(report),
        ],
    }
