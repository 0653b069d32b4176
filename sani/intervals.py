"""Proportions with their intervals: what every rate of an audit or a scan is made of."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Rate:
    """Hits of trials with the 95 % Wilson interval; all None where nothing was tried."""

    hits: int
    trials: int
    value: float | None
    low: float | None
    high: float | None


def rate(hits: int, trials: int) -> Rate:
    """A proportion and its Wilson interval; zero trials is no rate at all, never 0 %."""
    if trials == 0:
        return Rate(0, 0, None, None, None)
    interval = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    return Rate(hits, trials, hits / trials, float(interval.low), float(interval.high))
