"""The verdict of a run derived again from its checks, for whoever did not see the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sani.gate import Check
from sani.reporting.schema import Gate

# Starts of the names of checks: what every run checks, and what it does where a limit is set.
ALWAYS = "unscored"
ALWAYS_BY_KIND = "positive_control"
BY_KIND = {
    "greedy_beyond_control": ("greedy_beyond_control",),
    "discoverable_beyond_control": ("discoverable_beyond_control",),
    "sampled_beyond_control": ("sampled_beyond_control",),
    "subjects": ("subjects", "labels"),
    "auc_to_base": ("auc_to_base",),
    "greedy": ("greedy",),
    "discoverable": ("discoverable",),
    "auc_excess": ("auc",),
}
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
    problems += [
        f"There is no check {start!r}, and the recipe sets its limit."
        for start in _expected(settings)
        if not any(name.startswith(start) for name in names)
    ]
    return problems


def is_met(check: Check) -> bool:
    """Return whether both numbers of a check are known and the measured one is within the limit."""
    measured, limit = check.measured, check.limit
    if measured is None or limit is None or not (math.isfinite(measured) and math.isfinite(limit)):
        return False
    return measured >= limit if check.at_least else measured <= limit


def _expected(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the start of the name of each check that there must be."""
    yield ALWAYS
    kinds = list(map(str, settings.get("kinds", ())))
    yield from (f"{ALWAYS_BY_KIND}.{kind}" for kind in kinds)
    for name, starts in BY_KIND.items():
        if settings.get(name) is not None:
            yield from (f"{start}.{kind}" for start in starts for kind in kinds)
    yield from (start for name, start in BY_RUN.items() if settings.get(name) is not None)
