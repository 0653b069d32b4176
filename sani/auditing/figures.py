"""Rates with their intervals, from arrays of verdicts. No torch, no identifier, no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_ROUNDS = 1000

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``trials`` occurrences with a 95 % bootstrap interval clustered by subject."""

    trials: int
    value: float | None
    low: float | None
    high: float | None


def clustered_mean(values: Floats, subjects: Sequence[int], *, seed: int) -> Estimate:
    """Mean of ``values`` [n] and its interval; subjects are resampled whole.

    Args:
        values: One per occurrence; NaN for an occurrence without a value, which is left out.
        subjects: The subject number of each occurrence, [n].
        seed: Makes the interval repeatable.
    """
    known = np.isfinite(values)
    if not known.any():
        return Estimate(0, None, None, None)
    _, cluster = np.unique(np.asarray(subjects)[known], return_inverse=True)
    if cluster.max() == 0:  # one subject says nothing about how subjects differ
        return Estimate(int(known.sum()), float(values[known].mean()), None, None)
    sums = np.bincount(cluster, weights=values[known])
    counts = np.bincount(cluster)
    chance = np.random.default_rng(seed)
    draws = chance.multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=BOOTSTRAP_ROUNDS
    )  # [rounds, subjects]
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(int(known.sum()), float(values[known].mean()), float(low), float(high))


def discoverable(log_probability: Floats, *, queries: int, probability: float) -> Bools:
    """Which values are (n, p)-discoverable: seen at least once in n samples with probability p.

    1 - (1 - p_z)^n >= p, computed as -expm1(n log1p(-p_z)), safe for p_z near 0 and near 1.

    Args:
        log_probability: log p_z of each value under the sampler in nats, at most 0, [n].
        queries: n.
        probability: p, in (0, 1).

    Source: Hayes et al. 2024 (2410.19482), definition 3. Deviations: none.
    """
    with np.errstate(divide="ignore"):
        miss = np.log1p(-np.exp(np.minimum(log_probability, 0.0)))  # log(1 - p_z), -inf for p_z = 1
    return np.asarray(-np.expm1(queries * miss) >= probability)


def discrimination(true: Floats, decoys: Sequence[Floats]) -> tuple[Floats, Floats]:
    """How often the model prefers the true value to a decoy, and the value's exposure.

    Args:
        true: log p of each true value in its context, [n].
        decoys: log p of its decoys in the same context, n arrays, possibly empty.

    Returns:
        AUC of each occurrence in [0, 1] (ties count half) and exposure in bits,
        log2 |R| - log2 rank over the value and its decoys, both [n]; NaN without decoys.

    Source: exposure, Carlini et al. 2019, section 4, over declared candidates. Deviation: a tie
    ranks at the middle of its group.
    """
    auc = np.full(len(true), np.nan)
    exposure = np.full(len(true), np.nan)
    for index, (value, others) in enumerate(zip(true, decoys, strict=True)):
        if len(others):
            below = float((others < value).sum() + 0.5 * (others == value).sum())
            auc[index] = below / len(others)
            rank = 1 + len(others) - below
            exposure[index] = np.log2(len(others) + 1) - np.log2(rank)
    return auc, exposure
