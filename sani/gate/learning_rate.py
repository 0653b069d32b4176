"""The learning rate of a repair, judged by its loss: too low, too high, or neither.

The rate follows a cosine and ends near zero. So a loss that still falls in the last quarter of the
steps says that the repair was too short, or its rate too low; one that ends above what it had
reached says that the rate was too high. At a rate that is too high the loss falls late, too: so a
higher one is never advised above what was measured to do well for a model of that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

RateFault = Literal["low", "short", "high"]
# Learning rates by number of parameters; measured up to 3e6. At 1.3e8, 1e-4 was too low.
LEARNING_RATES = ((3e6, 4e-3), (2e7, 1e-3), (2e8, 3e-4), (1e9, 1e-4), (math.inf, 2e-5))
QUARTERS = 4
MIN_STEPS = 20  # in the curve: fewer say nothing of a trend
FALLS, RISES = 0.97, 1.05  # of the last quarter to the one before; to the lowest one


def usual_rate(parameters: float) -> float:
    """Return the learning rate of a repair for a model of this size."""
    rates = (rate for size, rate in LEARNING_RATES if parameters < size)
    return next(rates, LEARNING_RATES[-1][1])  # of a size that is not known, the lowest


def rate_fault(
    curve: Sequence[Mapping[str, float]], *, rate: float, usual: float
) -> RateFault | None:
    """Return what the loss at ordinary tokens says of the repair's schedule; None for nothing.

    Args:
        curve: The repair's loss terms, by step.
        rate: Its learning rate.
        usual: The one for a model of this size.

    Returns:
        ``low`` or ``high`` for the rate; ``short`` if the loss still falls at the usual rate.
    """
    losses = [entry["ordinary"] for entry in curve if "ordinary" in entry]
    if len(losses) < MIN_STEPS:
        return None
    size = len(losses) // QUARTERS
    means = [fmean(losses[size * n : size * (n + 1)]) for n in range(QUARTERS)]
    if means[-1] > RISES * min(means):
        return "high"
    if means[-1] >= FALLS * means[-2]:
        return None
    return "low" if rate < usual else "short"
