"""The learning rate of a repair, judged by its loss: too low, too high, or neither.

The rate follows a cosine and ends near zero. So a loss that still falls in the last quarter of the
steps says that the repair would have gone further at a higher rate, and one that ends above what
it had reached says that the rate was too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

RateFault = Literal["low", "high"]
QUARTERS = 4
MIN_STEPS = 20  # in the curve: fewer say nothing of a trend
FALLS, RISES = 0.97, 1.05  # of the last quarter to the one before; to the lowest one


def rate_fault(curve: Sequence[Mapping[str, float]]) -> RateFault | None:
    """Return what the loss at ordinary tokens says of the learning rate; None for nothing.

    Args:
        curve: The repair's loss terms, by step.
    """
    losses = [entry["ordinary"] for entry in curve if "ordinary" in entry]
    if len(losses) < MIN_STEPS:
        return None
    size = len(losses) // QUARTERS
    means = [fmean(losses[size * n : size * (n + 1)]) for n in range(QUARTERS)]
    if means[-1] > RISES * min(means):
        return "high"
    return "low" if means[-1] < FALLS * means[-2] else None
