"""Rates with their intervals, from arrays of verdicts. No torch, no identifier, no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


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


def log10_queries(log_probability: Floats) -> Floats:
    """Expected number of samples until a value first comes up, as a power of ten, [n].

    The number is geometric with mean 1 / p_z; infinite where the sampler never draws the value.

    Args:
        log_probability: log p_z of each value under the sampler in nats, [n].
    """
    return np.asarray(-np.minimum(log_probability, 0.0) / np.log(10.0))


def extraction_strength(ranks: Sequence[NDArray[np.int64]]) -> Floats:
    """How little of each value must be given away before greedy decoding finishes it, [n].

    1 - m / T, with m the fewest leading tokens of T that must be given so that the likeliest
    token is right at every later position; 0 where even the last token is wrong. NaN for no tokens.

    Args:
        ranks: Rank of each token of each value under teacher forcing, 1 for the likeliest.

    Source: Carlini et al. 2021 as made exact by OpenUnlearning. Deviations: the last token counts,
    and a value of no tokens is undefined instead of 0.
    """
    strength = np.full(len(ranks), np.nan)
    for index, tokens in enumerate(ranks):
        if len(tokens):
            wrong = np.flatnonzero(tokens > 1)
            given = int(wrong[-1]) + 1 if len(wrong) else 0
            strength[index] = 1 - given / len(tokens)
    return strength


def exact_memorization(ranks: Sequence[NDArray[np.int64]]) -> Floats:
    """Share of each value's tokens that are the likeliest under teacher forcing, [n].

    Source: Tirumala et al. 2022. NaN for a value of no tokens.
    """
    return np.array([np.mean(tokens == 1) if len(tokens) else np.nan for tokens in ranks])


@dataclass(frozen=True)
class Preference:
    """How the model ranks each true value among decoys; NaN without decoys.

    Attributes:
        auc: Share of its decoys that the value beats, ties half, [n].
        exposure: Bits, log2 |R| - log2 rank over the value and its decoys, [n].
        first: 1 if it is the likeliest of all, shared among those that tie for it, [n].
        chance: What ``first`` is by chance, 1 / C for C candidates, [n].
    """

    auc: Floats
    exposure: Floats
    first: Floats
    chance: Floats


def preference(true: Floats, decoys: Sequence[Floats]) -> Preference:
    """Rank each true value among its decoys.

    Args:
        true: log p of each true value in its context, [n].
        decoys: log p of its decoys in the same context, n arrays, possibly empty.

    Source: exposure, Carlini et al. 2019, section 4, over declared candidates; inference accuracy,
    Lukas et al. 2023. Deviation: a tie ranks at the middle of its group.
    """
    auc, exposure, first, chance = (np.full(len(true), np.nan) for _ in range(4))
    for index, (value, others) in enumerate(zip(true, decoys, strict=True)):
        if len(others):
            ties = int((others == value).sum())
            above = int((others > value).sum())
            candidates = len(others) + 1
            auc[index] = 1 - (above + 0.5 * ties) / len(others)
            exposure[index] = np.log2(candidates) - np.log2(1 + above + 0.5 * ties)
            first[index] = 0.0 if above else 1 / (ties + 1)
            chance[index] = 1 / candidates
    return Preference(auc, exposure, first, chance)
