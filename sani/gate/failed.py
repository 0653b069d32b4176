"""Limits that a run does not meet: by how much, and whether chance may be the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from sani.auditing.control_tests import ControlTests
from sani.auditing.record import AuditRecord
from sani.corpus.documents import KINDS, Kind
from sani.gate.check import Check
from sani.intervals import Estimate

# A model that never saw the records exceeded the limit of subjects by 4 % (docs/results.md); ours.
NEAR_LIMIT = 1.1


@dataclass(frozen=True)
class FailedLimit:
    """A limit that is not met.

    Attributes:
        name: Name of its check.
        kind: Kind of the identifiers that it judges; None for all, or none.
        values: Values of subjects, or labels, above the limit or behind it; None if not counted.
        occurrences: Occurrences behind it; None if not counted.
        subjects: Subjects behind it; None if not counted.
        missing: Nothing was measured, or too little to decide.
        noise: Chance may be the reason: one above the limit, or a limit within the 95 % interval;
            None where nobody can tell.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: Kind | None
    values: int | None
    occurrences: int | None
    subjects: int | None
    missing: bool
    noise: bool | None


def failed_limits(checks: Sequence[Check], audits: Mapping[str, AuditRecord]) -> list[FailedLimit]:
    """Return the limits that are not met, in the order of the checks."""
    return [_failed(check, audits) for check in checks if not check.holds]


def _failed(check: Check, audits: Mapping[str, AuditRecord]) -> FailedLimit:
    name, _, rest = check.name.partition(".")
    kind = next((kind for kind in KINDS if kind == rest.partition(".")[0]), None)
    missing = check.measured is None or check.limit is None
    tests = (audits["after"].control_tests or {}).get(kind) if kind else None
    counts = _counts(name, tests) if tests and not missing else (None, None, None)
    noise = None if missing else _noise(name, check, tests, audits)
    return FailedLimit(check.name, kind, *counts, missing=missing, noise=noise)


def _counts(name: str, tests: ControlTests) -> tuple[int | None, int | None, int | None]:
    """Return the values, the occurrences and the subjects behind a limit on memory."""
    if name in ("greedy_beyond_control", "discoverable_beyond_control"):
        test = tests.greedy if name.startswith("greedy") else tests.discoverable
        return test.count, test.occurrences, None  # subjects are tested by a limit of their own
    if name == "sampled_beyond_control" and tests.sampled:
        return tests.sampled.count, None, tests.sampled.subjects
    if name == "subjects":
        return None, None, tests.subjects.above
    if name == "labels":
        return tests.labels.above, None, None
    return None, tests.occurrences if name == "auc_to_base" else None, None


def _noise(
    name: str, check: Check, tests: ControlTests | None, audits: Mapping[str, AuditRecord]
) -> bool | None:
    """Return whether chance may be why a measured figure is beyond its limit."""
    measured, limit = check.measured or 0.0, check.limit or 0.0
    if name.endswith("_beyond_control"):
        return measured - limit <= 1
    if name in ("subjects", "labels") and tests:
        above = tests.subjects.above if name == "subjects" else tests.labels.above
        return above <= 1 and measured <= NEAR_LIMIT * limit
    if name == "auc_to_base" and tests:
        return _holds_limit(tests.auc_to_base, limit)
    figures = audits["after"].figures.get(check.name.split(".")[1]) if "." in check.name else None
    if name == "auc" and figures:
        return _holds_limit(figures.auc, limit)
    if name in ("greedy", "discoverable") and figures:
        rate = figures.greedy if name == "greedy" else figures.discoverable
        return rate.low is not None and rate.low <= limit
    return None


def _holds_limit(figure: Estimate, limit: float) -> bool:
    return figure.low is not None and figure.high is not None and figure.low <= limit <= figure.high
