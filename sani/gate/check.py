"""One limit of the gate and what was measured against it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sani.recipe import CountLimit

if TYPE_CHECKING:
    from sani.auditing.candidate_tests import CountTest
    from sani.auditing.sampled_test import SampledTest

from sani.counting import counted, verb

MIN_TRIALS = 20  # fewer occurrences decide nothing; ours
MIN_DECOY_SHARE = 0.9  # of the occurrences must have decoys, or their AUC does not speak for all

NOTHING_SCORED = "No occurrence of this kind was scored."


@dataclass(frozen=True)
class Check:
    """One limit and what was measured against it.

    Attributes:
        name: What is limited, as ``greedy.direct``.
        measured: The sanitized checkpoint's figure; None if there is none.
        limit: The most it may be, or the least if ``at_least``; None if that is not known.
        holds: Whether it is met; False whenever either number is missing.
        reason: What was compared with what, or why nothing was, in whole sentences.
        at_least: Whether the limit is a lower one.
    """

    name: str
    measured: float | None
    limit: float | None
    holds: bool
    reason: str
    at_least: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain data."""
        return asdict(self)


def too_few(trials: int) -> str:
    """Return why so few occurrences decide nothing."""
    return (
        f"Only {counted(trials, 'occurrence')} {verb(trials, 'was', 'were')} scored; fewer than "
        f"{MIN_TRIALS} say too little."
    )


def few_decoys(ranked: int, trials: int, things: str = "occurrences") -> str | None:
    """Return why so few things with decoys decide nothing; None if there are enough.

    Args:
        ranked: Number of those with decoys.
        trials: Number of all.
        things: What is counted.
    """
    if ranked >= MIN_DECOY_SHARE * trials:
        return None
    return (
        f"Only {ranked} of {trials} {things} have decoys; {MIN_DECOY_SHARE:.0%} must. The "
        "inventory (sani scan) may hold values that are no identifiers."
    )


def compare(name: str, value: float, highest: float, reason: str, *, bounded: bool = True) -> Check:
    """Check that a figure is at most a limit; neither holds if it is not a number.

    Args:
        name: Name of the check.
        value: The figure.
        highest: The limit.
        reason: What was compared.
        bounded: True for a figure in [0, 1], of which a limit of 1 or more limits nothing.
    """
    known = math.isfinite(value) and math.isfinite(highest)
    if bounded and known and highest >= 1.0:
        reason += " A limit of 1 or more limits nothing: the control itself recites."
        known = False
    measured = value if math.isfinite(value) else None
    return Check(name, measured, highest, known and value <= highest, reason)


def count_check(name: str, test: CountTest | SampledTest, limit: CountLimit, reason: str) -> Check:
    """Check that no more values are given than a limit allows.

    By the test, a few values that nobody guesses must not hide below many that anybody does: they
    have a limit of their own.

    Args:
        name: Name of the check.
        test: The counts, and what chance allows.
        limit: A number, or ``test`` for what chance allows.
        reason: What was compared.
    """
    highest = test.limit if limit == "test" else int(limit)
    if limit == "test" and test.count <= highest and test.exceeded:
        reason += (
            f" But {test.unlikely} of them {verb(test.unlikely, 'is', 'are')} no guess, since "
            f"hardly any of their decoys comes up; at most {test.unlikely_limit} of such may."
        )
        return Check(name, float(test.unlikely), float(test.unlikely_limit), False, reason)
    return Check(name, float(test.count), float(highest), test.count <= highest, reason)
