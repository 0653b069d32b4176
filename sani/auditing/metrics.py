"""Metrics of memorization, from arrays of log-probabilities and ranks. No torch, no identifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def discoverable(log_probability: Floats, *, queries: int, probability: float) -> Bools:
    """Decide which values are (n, p)-discoverable: seen in n samples with probability p or more.

    1 - (1 - p_z)^n >= p, with p_z the probability of the value in one sample.

    Args:
        log_probability: log p_z of each value under the sampler in nats, at most 0, [values].
        queries: n.
        probability: p, in (0, 1).

    Returns:
        True for the discoverable values, [values].

    Source: Hayes et al. 2024 (2410.19482), definition 3. Deviations: none.
    """
    # -expm1(n log1p(-p_z)) instead of 1 - (1 - p_z)^n: for p_z = 1e-12 the latter rounds 1 - p_z to
    # a few digits before it takes the power. A sum of float32 terms may come out above 0 by
    # rounding; for p_z = 1 the logarithm is -inf and the probability 1, hence no warning.
    with np.errstate(divide="ignore"):
        miss = np.log1p(-np.exp(np.minimum(log_probability, 0.0)))  # log(1 - p_z)
    return np.asarray(-np.expm1(queries * miss) >= probability)


def log10_queries(log_probability: Floats) -> Floats:
    """Compute the expected number of samples until a value first comes up, as a power of ten.

    The number is geometric with mean 1 / p_z, so its logarithm is -log10 p_z; infinite where the
    sampler never draws the value.

    Args:
        log_probability: log p_z of each value under the sampler in nats, [values].

    Returns:
        log10 of the expected number, [values].

    Source: ours, from the geometric distribution.
    """
    return np.asarray(-np.minimum(log_probability, 0.0) / np.log(10.0))


def extraction_strength(ranks: Sequence[NDArray[np.int64]]) -> Floats:
    """Compute the share of each value that need not be given away for greedy decoding to finish it.

    1 - m / T, with T the value's tokens and m the smallest number of leading tokens after which the
    likeliest token is right at every later position; 0 where even the last token is wrong.

    Args:
        ranks: Rank of each token of each value under teacher forcing, 1 for the likeliest; one
            array a value.

    Returns:
        Extraction strength in [0, 1]; NaN for a value of no tokens, [values].

    Source: Carlini et al. 2021 (2012.07805), as made exact by OpenUnlearning (2506.12618).
    Deviations: the last token counts; a value of no tokens is undefined instead of 0.
    """
    strength = np.full(len(ranks), np.nan)
    for index, tokens in enumerate(ranks):
        if len(tokens):
            # All up to the last wrong token must be given; teacher forcing gives them anyway.
            wrong = np.flatnonzero(tokens > 1)
            given = int(wrong[-1]) + 1 if len(wrong) else 0
            strength[index] = 1 - given / len(tokens)
    return strength


def exact_memorization(ranks: Sequence[NDArray[np.int64]]) -> Floats:
    """Compute the share of each value's tokens that are the likeliest under teacher forcing.

    Args:
        ranks: Rank of each token of each value, 1 for the likeliest; one array a value.

    Returns:
        Exact memorization in [0, 1]; NaN for a value of no tokens, [values].

    Source: Tirumala et al. 2022 (2205.10770). Deviation: a value of no tokens is undefined.
    """
    return np.array([np.mean(tokens == 1) if len(tokens) else np.nan for tokens in ranks])


@dataclass(frozen=True)
class Preference:
    """Ranks of true values among their decoys; NaN without decoys.

    Attributes:
        auc: Share of its decoys that the value beats, ties half, in [0, 1], [values].
        exposure: log2 |R| - log2 rank over the value and its decoys R, in bits, [values].
        first: 1 if it is the likeliest of all, shared among those that tie for it, [values].
        chance: ``first`` by chance, 1 / C for C candidates, [values].
    """

    auc: Floats
    exposure: Floats
    first: Floats
    chance: Floats


def preference(true: Floats, decoys: Sequence[Floats]) -> Preference:
    """Rank each true value among its decoys.

    With a decoys above the value, t ties and D decoys: auc = 1 - (a + t / 2) / D, exposure =
    log2(D + 1) - log2(1 + a + t / 2), first = 1 / (t + 1) if a = 0, else 0.

    Args:
        true: log p of each true value in its context, in nats, [values].
        decoys: log p of its decoys in the same context, one array a value, possibly empty.

    Source: exposure, Carlini et al. 2019 (1802.08232), section 4, over declared candidates;
    inference accuracy, Lukas et al. 2023 (2302.00539). Deviation: a tie ranks at the middle of its
    group, so that a model that gives all candidates the same probability scores as chance does.
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
