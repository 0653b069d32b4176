"""The size of a review: how many documents an interval of a wanted width needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sani.intervals import Rate, rate

PLANNED_RECALL = 0.9  # before anything is measured
PLANNED_DESIGN = 2.0  # misses of one document are alike: as if each identifier counted half
LEAST = 20  # documents
WITHOUT_FINDINGS = 50  # documents, where the scan marks no direct identifier
_Z = 1.959963984540054  # of a 95 % interval

Counts = Sequence[tuple[int, int]]
"""Identifiers that were covered, and all identifiers, of each document."""


def identifiers_needed(share: float, half_width: float) -> int:
    """Return the least number of trials whose Wilson interval is no wider on either side."""

    def width(trials: int) -> float:
        spread = math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
        return _Z * spread / (1 + _Z**2 / trials)

    low, high = 0, 1
    while width(high) > half_width:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if width(middle) > half_width else (low, middle)
    return high


def design_effect(counts: Counts) -> float:
    """Return by how much the variance of a rate grows since identifiers of a document are alike.

    It is 1 where nothing shows it: one document, nothing missed, or everything missed.

    Source: the variance of a ratio of means over clusters (Cochran, Sampling Techniques, 3rd
    edition, chapter 6), divided by that of as many independent identifiers. Deviation: never below
    1.
    """
    hits, trials = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if len(counts) < 2 or hits in (0, trials):
        return 1.0
    share = hits / trials
    squares = sum((hit - share * trial) ** 2 for hit, trial in counts)
    clustered = len(counts) / (len(counts) - 1) * squares / trials**2
    return max(1.0, clustered * trials / (share * (1 - share)))


def documents_planned(identifiers: int, documents: int, half_width: float) -> int:
    """Return how many documents to review before anything is known of the recall.

    Args:
        identifiers: Direct identifiers that the scan marks.
        documents: Documents in which it does.
        half_width: Wanted distance from the recall to either end of its interval.
    """
    if not identifiers:
        return WITHOUT_FINDINGS
    needed = identifiers_needed(PLANNED_RECALL, half_width) * PLANNED_DESIGN
    return max(LEAST, math.ceil(needed * documents / identifiers))


def documents_needed(counts: Counts, half_width: float) -> int | None:
    """Return how many reviewed documents the interval needs, from what the review measured.

    It plans with the end of the interval that is nearest to one half, which needs most.

    Args:
        counts: Of each document that was reviewed.
        half_width: As for `documents_planned`.

    Returns:
        The number of documents, those at hand if they are enough; None where no document holds an
        identifier.
    """
    measured = effective_rate(counts)
    if measured.low is None or measured.high is None:
        return None
    if (measured.high - measured.low) / 2 <= half_width:
        return len(counts)
    share = min(max(0.5, measured.low), measured.high)
    identifiers = identifiers_needed(share, half_width) * design_effect(counts)
    per_document = sum(trials for _, trials in counts) / len(counts)
    return max(len(counts) + 1, math.ceil(identifiers / per_document))


def effective_rate(counts: Counts) -> Rate:
    """Return a rate with as many trials as the identifiers are worth if they were independent."""
    hits, trials = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if not trials:
        return rate(0, 0)
    worth = max(1, math.floor(trials / design_effect(counts)))
    return rate(round(worth * hits / trials), worth)
