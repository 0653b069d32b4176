"""The tests of a table of candidates: how many values are given, and who stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sani.auditing.candidates import CandidateTable
from sani.auditing.permutation import (
    Bools,
    Floats,
    Groups,
    count_limit,
    exceeding,
    largest_limit,
)

GUESSED = 0.001  # share of a label's decoys that are given, above which it is guessed; ours


@dataclass(frozen=True)
class CountTest:
    """Values that a model gives and its control does not, and how many of them chance allows.

    Attributes:
        count: Values of subjects that are given in one of their occurrences or more.
        limit: The most they may be.
        occurrences: The occurrences in which they are given.
        unlikely: Those of labels of whose decoys hardly any is given, and those without decoys.
            Many dates that anybody guesses raise ``limit``; a few names must not hide below it.
        unlikely_limit: The most these may be.
    """

    count: int
    limit: int
    occurrences: int
    unlikely: int
    unlikely_limit: int

    @property
    def exceeded(self) -> bool:
        """True if more values are given than chance allows."""
        return self.count > self.limit or self.unlikely > self.unlikely_limit


@dataclass(frozen=True)
class LargestTest:
    """The largest statistic of all subjects, or of all labels, and how large chance allows.

    Attributes:
        tested: Number of subjects or labels.
        largest: The largest statistic; None if none was tested.
        limit: The most it may be; None if none was tested.
        above: Number of subjects or labels above the limit.
    """

    tested: int
    largest: float | None
    limit: float | None
    above: int


def count_test(table: CandidateTable, given: Bools) -> CountTest:
    """Test how many true values are given; one without decoys has no chance to be.

    Args:
        table: The candidates.
        given: True for the candidates that the model gives, [rows, candidates].
    """
    rows, true = table.ranked, given[:, 0]
    unlikely = rows & ~np.isin(table.sorts, _guessed_sorts(table, given))

    def limit(rows: Bools) -> int:
        return count_limit(given[rows], table.candidates[rows], table.keys[rows])

    return CountTest(
        count=len(np.unique(table.keys[true])),
        limit=limit(rows),
        occurrences=int(true.sum()),
        unlikely=len(np.unique(table.keys[true & (unlikely | ~rows)])),
        unlikely_limit=limit(unlikely),
    )


def _guessed_sorts(table: CandidateTable, given: Bools) -> list[str]:
    """Return the labels, by form of the value, of whose decoys more than `GUESSED` are given."""
    decoys = given[:, 1:].sum(axis=1)
    return [
        sort
        for sort in np.unique(table.sorts).tolist()
        for rows in [table.ranked & (table.sorts == sort)]
        if decoys[rows].sum() > GUESSED * (table.candidates[rows] - 1).sum()
    ]


def largest_test(
    table: CandidateTable,
    bias: Floats,
    groups: Groups,
    seed: int,
    *,
    tested: int,
    spread: float = 1.0,
    more_variance: Floats | float = 0.0,
) -> tuple[LargestTest, Sequence[int]]:
    """Test the largest statistic of all groups, of either sign; also return those above the limit.

    Args:
        table: The candidates.
        bias: How far true values beat decoys by chance, [rows].
        groups: Groups of the rows with decoys; those of one subject stand ``tested`` apart.
        seed: Seed of the draws.
        tested: Number of subjects or labels.
        spread: Factor of the limit.
        more_variance: Added to the variance of each group's mean, [groups].
    """
    ranked = table.ranked
    share = table.share[ranked]
    # A model that makes true values less likely than any decoy gives them away, too. A bias says
    # nothing about those: it is how far true values are preferred.
    statistics = np.maximum(
        groups.statistic(share - bias[ranked], more_variance), -groups.statistic(share)
    )
    limit = spread * largest_limit(groups, seed=seed)
    above = list(dict.fromkeys(group % tested for group in exceeding(statistics, limit)))
    return LargestTest(tested, float(statistics.max()), limit, len(above)), above
