"""Figures with their 95 % interval: a proportion (`Rate`) and a mean over subjects (`Estimate`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAP_ROUNDS = 1000
BLOCK = 2**22  # draws of the bootstrap that are converted to float64 at a time: 32 MB


@dataclass(frozen=True)
class Rate:
    """Hits of trials with the 95 % Wilson interval; all None where nothing was tried."""

    hits: int
    trials: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A mean over ``trials`` occurrences with a 95 % bootstrap interval clustered by subject.

    ``value`` is None without trials; ``low`` and ``high`` are None with fewer than two subjects.
    """

    trials: int
    value: float | None
    low: float | None
    high: float | None


def rate(hits: int, trials: int) -> Rate:
    """Return a proportion and its Wilson interval; zero trials is no rate at all, never 0 %."""
    if trials == 0:
        return Rate(0, 0, None, None, None)
    # Wilson, not the normal approximation: at 0 hits that one would have no width.
    interval = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    return Rate(hits, trials, hits / trials, float(interval.low), float(interval.high))


def clustered_mean(values: NDArray[np.float64], subjects: Sequence[int], *, seed: int) -> Estimate:
    """Compute the mean of ``values`` [n] and its interval; subjects are resampled whole.

    Args:
        values: One per occurrence; NaN for an occurrence without a value, which is left out.
        subjects: The subject number of each occurrence, [n].
        seed: Makes the interval repeatable.

    Source: the cluster bootstrap, percentile interval, `BOOTSTRAP_ROUNDS` rounds.
    """
    known = np.isfinite(values)
    if not known.any():
        return Estimate(0, None, None, None)
    _, cluster = np.unique(np.asarray(subjects)[known], return_inverse=True)
    if cluster.max() == 0:  # one subject says nothing about how subjects differ
        return Estimate(int(known.sum()), float(values[known].mean()), None, None)
    # A resampled mean needs only each subject's sum and count, weighted by how often it is drawn:
    # two matrix products for all rounds, however many occurrences there are.
    sums = np.bincount(cluster, weights=values[known])
    counts = np.bincount(cluster)
    means = np.empty(BOOTSTRAP_ROUNDS)
    draws = _draws(len(sums), seed)
    for rounds in _blocks(len(sums)):
        times = draws[rounds].astype(np.float64)
        means[rounds] = (times @ sums) / (times @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(int(known.sum()), float(values[known].mean()), float(low), float(high))


@lru_cache(maxsize=1)  # all figures of one scope are of the same subjects
def _draws(subjects: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each round of the bootstrap draws each subject, [rounds, subjects]."""
    chance = np.random.default_rng(seed)
    draws = np.empty((BOOTSTRAP_ROUNDS, subjects), dtype=np.uint8)
    for rounds in _blocks(subjects):
        size = len(draws[rounds])
        # Drawing n of n with replacement gives each subject a multinomial count.
        draws[rounds] = chance.multinomial(subjects, np.full(subjects, 1 / subjects), size=size)
    draws.flags.writeable = False  # the cached array is shared between calls
    return draws


def _blocks(subjects: int) -> Iterator[slice]:
    """Yield slices of rounds of at most `BLOCK` draws, so that memory stays bounded."""
    step = max(1, BLOCK // subjects)
    for start in range(0, BOOTSTRAP_ROUNDS, step):
        yield slice(start, start + step)
