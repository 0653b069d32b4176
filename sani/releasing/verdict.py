"""The verdict of a run derived again from its checks, for whoever did not see the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sani.gate import Check
from sani.reporting.schema import Gate

# What every run checks, and what it checks where the recipe sets the limit: starts of names.
ALWAYS = ("unscored", "positive_control")
BY_KIND = {"greedy": "greedy", "discoverable": "discoverable", "auc_excess": "auc"}
BY_RUN = {
    "attacks": "attack",
    "attacks_auc_excess": "attack",
    "scan_recall": "scan_recall",
    "perplexity_ratio": "perplexity_ratio",
}


def verdict_problems(gate: Gate, settings: Mapping[str, Any]) -> list[str]:
    """Return where a verdict does not follow from its checks, a sentence each.

    A check holds if both of its numbers are there and the measured one is within the limit. The
    verdict holds if every check does. A limit that the recipe sets must have its check.

    Args:
        gate: The verdict and its checks.
        settings: The section ``gate`` of the recipe, as plain data.
    """
    problems = [
        f"The check {check.name!r:.80} is said to hold, and its numbers do not meet its limit."
        for check in gate.checks
        if check.holds and not is_met(check)
    ]
    if gate.holds != (bool(gate.checks) and all(check.holds for check in gate.checks)):
        problems.append("The verdict is not the one that follows from its checks.")
    names = [check.name for check in gate.checks]
    for start, kind in _expected(settings):
        if not any(name.startswith(start) and (not kind or kind in name) for name in names):
            of = f" of {kind} identifiers" if kind else ""
            problems.append(f"There is no check {start!r}{of}, and the recipe sets its limit.")
    return problems


def is_met(check: Check) -> bool:
    """Return whether both numbers of a check are known and the measured one is within the limit."""
    measured, limit = check.measured, check.limit
    if measured is None or limit is None or not (math.isfinite(measured) and math.isfinite(limit)):
        return False
    return measured >= limit if check.at_least else measured <= limit


def _expected(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the start of each check's name that there must be, and the kind in it, if any."""
    yield from ((name, "") for name in ALWAYS)
    for name, start in BY_KIND.items():
        if settings.get(name) is not None:
            yield from ((start, str(kind)) for kind in settings.get("kinds", ()))
    for name, start in BY_RUN.items():
        if settings.get(name) is not None:
            yield start, ""
