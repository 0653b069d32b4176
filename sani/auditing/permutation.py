"""Permutation tests with decoys: how far a model may favour true values by chance alone.

A model that never saw a record cannot tell the true value from its decoys. Then each of them is as
likely to be the true one. So the null distribution of any figure follows from drawing one of them
at random; the same draw holds for one value of one subject everywhere. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

LEVEL = 0.05  # a model that never saw the records is above the limit of a count this often
# Decoys are no exact match for real values, so the largest statistic is above its limit more often
# than the level says. At 1 %, 20 of 20 models that never saw the records hold all limits, and one
# subject who was read once is still far above: see benchmarks/gate.py.
LARGEST_LEVEL = 0.01
MIN_CANDIDATES = 20  # one given value among so many is one too many at that level
DRAWS = 5000  # of the largest statistic; the limit's relative error is then about 1 %
DRAW_CELLS = 2**23  # draws times occurrences held at a time: 64 MB in float64

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def shares(scores: Floats) -> Floats:
    """Compute for each candidate the share of the others in its row that it beats, ties half.

    Args:
        scores: Scores of the candidates, the true value first; NaN where a row has fewer,
            [rows, candidates].

    Returns:
        Shares in [0, 1], [rows, candidates]; NaN where the score is, and in rows of one candidate.
    """
    result = np.full(scores.shape, np.nan)
    known = np.isfinite(scores)
    others = known.sum(axis=1) - 1
    for column in range(scores.shape[1]):
        here = scores[:, column : column + 1]
        beaten = (scores < here).sum(axis=1) + 0.5 * ((scores == here).sum(axis=1) - 1)
        usable = known[:, column] & (others > 0)
        result[usable, column] = beaten[usable] / others[usable]
    return result


def count_limit(given: Bools, candidates: Ints, keys: Ints) -> int:
    """Compute how many values a model may give by chance, exactly.

    For each key (a value of a subject) one candidate is drawn, each as likely; the key counts if
    the drawn one is given in any of its rows. Keys are independent, so the distribution of the
    count is the convolution of theirs. Where rows of a key have different numbers of candidates,
    one uniform number u chooses candidate floor(u C) of C in all of them.

    A key of whose decoys none is given counts as if it had `MIN_CANDIDATES` at least: a true value
    alone among seventeen decoys is no chance.

    Args:
        given: True for the candidates that the model gives, the true value first,
            [rows, candidates].
        candidates: Number of candidates of each row, [rows].
        keys: Number of each row's value and subject, [rows].

    Returns:
        The smallest count of keys that is exceeded with a probability of at most `LEVEL`.
    """
    total = np.ones(1)
    hits = np.flatnonzero(given.any(axis=1))  # the other rows add nothing, whatever is drawn
    hits = hits[np.argsort(keys[hits], kind="stable")]
    for rows in np.split(hits, np.flatnonzero(np.diff(keys[hits])) + 1):
        if not len(rows):  # no row at all
            continue
        if given[rows, 1:].any():
            weights, drawn = _stretches(candidates[rows])
            chance = float(weights @ given[rows, drawn].any(axis=1))
        else:
            chance = 1 / max(MIN_CANDIDATES, int(candidates[rows].max()))
        total = np.convolve(total, [1 - chance, chance])
    # 1 - 1/20 is not 0.95 in binary: without a margin the limit of one value would be 1, not 0.
    return int(np.searchsorted(np.cumsum(total), 1 - LEVEL - 1e-9))


@dataclass(frozen=True)
class Groups:
    """Occurrences by key, and keys by group (a subject, or a label).

    Attributes:
        table: Shares of every candidate, from `shares`, [rows, candidates].
        keys: Number of each row's value and subject, [rows].
        weights: Matrix that turns shares of rows into means of groups, [groups, rows]. A group's
            mean is over its keys, a key's over its rows.
        variances: Variance of each group's mean for a model that never saw the records, [groups].
        caps: Largest statistic of each group, [groups]: that of a standard normal number with the
            chance that every drawn candidate is the true value. One value of whose decoys all but
            one are tied has a long tail, and would widen the limit of everybody.
    """

    table: Floats
    keys: Ints
    weights: sparse.csr_matrix
    variances: Floats
    caps: Floats

    @classmethod
    def of(cls, table: Floats, keys: Ints, groups: Ints, use: Bools | None = None) -> Groups:
        """Number keys and groups anew, from 0.

        Args:
            table: Shares of every candidate, [rows, candidates].
            keys: Number of each row's value and subject, [rows].
            groups: Number of each row's group; all rows of a key are of one, [rows].
            use: Rows that count, all or none of a key; all if None, [rows].
        """
        _, first, keys, rows_of = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        _, groups = np.unique(groups, return_inverse=True)
        used = np.ones(len(keys), dtype=np.bool_) if use is None else use
        of_key, count = groups[first], used[first].astype(np.float64)
        sizes = np.maximum(np.bincount(of_key, weights=count), 1)
        weight = used / (rows_of[keys] * sizes[groups])
        shape = (len(sizes), len(keys))
        weights = sparse.csr_matrix((weight, (groups, np.arange(len(keys)))), shape=shape)
        # Keys are independent: the variance of a group's mean is the mean of theirs over n.
        variances = np.bincount(of_key, weights=count * _variances(table, keys, rows_of)) / sizes**2
        candidates = np.isfinite(table[first]).sum(axis=1)
        caps = stats.norm.isf(np.exp(-np.bincount(of_key, weights=count * np.log(candidates))))
        return cls(table, keys, weights, variances, np.maximum(caps, 0.0))

    def beside(self, other: Groups) -> Groups:
        """Return these groups and then other groups of the same rows."""
        return Groups(
            self.table,
            self.keys,
            sparse.vstack([self.weights, other.weights]).tocsr(),
            np.concatenate([self.variances, other.variances]),
            np.concatenate([self.caps, other.caps]),
        )

    def statistic(self, values: Floats, more_variance: Floats | float = 0.0) -> Floats:
        """Compute (mean share - 0.5) / deviation of each group.

        The deviation is that of a model that never saw the records. So a group with few decoys, of
        which one share is 0 or 1, has no larger statistics by chance than any other.

        Args:
            values: Share of each row, [..., rows].
            more_variance: Added to the variance of each group's mean, [groups].

        Returns:
            The statistics, [..., groups]; 0 where every candidate is tied with every other.
        """
        means = (self.weights @ values.T).T
        deviation = np.sqrt(self.variances + more_variance)
        excess = np.where(self.variances > 0, means - 0.5, 0.0)
        return np.clip(excess / np.where(deviation > 0, deviation, 1.0), -self.caps, self.caps)


def _variances(table: Floats, keys: Ints, rows_of: Ints) -> Floats:
    """Compute the variance of each key's mean share, where one of its candidates is drawn.

    Args:
        table: Shares of every candidate, [rows, candidates].
        keys: Number of each row's key, from 0, [rows].
        rows_of: Number of rows of each key, [keys].

    Returns:
        Variances, [keys]. A mean of all candidates is 0.5.
    """
    candidates = np.isfinite(table).sum(axis=1)
    fewest = np.full(len(rows_of), table.shape[1])
    most = np.zeros(len(rows_of), dtype=np.int64)
    np.minimum.at(fewest, keys, candidates)
    np.maximum.at(most, keys, candidates)
    result = np.zeros(len(rows_of))
    for count in np.unique(candidates):
        rows = np.flatnonzero((fewest == count)[keys] & (most == count)[keys])
        sums = np.zeros((len(rows_of), count))
        np.add.at(sums, keys[rows], table[rows, :count])
        here = np.unique(keys[rows])
        result[here] = ((sums[here] / rows_of[here, None] - 0.5) ** 2).mean(axis=1)
    # Rows with different numbers of candidates: one uniform number u chooses in all of them.
    mixed = np.flatnonzero(fewest < most)
    order = np.argsort(keys, kind="stable")
    begins = np.searchsorted(keys[order], mixed)
    for key, begin in zip(mixed.tolist(), begins.tolist(), strict=True):
        rows = order[begin : begin + rows_of[key]]
        weights, drawn = _stretches(candidates[rows])
        means = table[rows, drawn].mean(axis=1)
        result[key] = weights @ (means - 0.5) ** 2
    return result


def _stretches(candidates: Ints) -> tuple[Floats, Ints]:
    """Cut [0, 1] where a uniform number u draws another candidate, floor(u C), of a row.

    Args:
        candidates: Number of candidates C of each row, [rows].

    Returns:
        The length of each stretch, [stretches], and the candidates drawn in it, [stretches, rows].
    """
    edges = np.unique(np.concatenate([np.arange(c + 1) / c for c in set(candidates.tolist())]))
    middles = (edges[1:] + edges[:-1]) / 2
    return np.diff(edges), (middles[:, None] * candidates).astype(np.int64)


def largest_limit(groups: Groups, *, seed: int) -> float:
    """Compute how large the largest statistic of all groups, of either sign, may be by chance.

    Source: the single-step max-statistic of Westfall and Young 1993, which keeps the error over
    all groups at `LARGEST_LEVEL` whatever hangs together between them. Deviation: `DRAWS` draws
    of a decoy instead of all.

    Args:
        groups: Groups of the rows.
        seed: Seed of the draws.

    Returns:
        The quantile 1 - `LARGEST_LEVEL` of the largest statistic.
    """
    table = groups.table
    chance = np.random.default_rng(seed)
    candidates = np.isfinite(table).sum(axis=1)
    largest = np.empty(DRAWS)
    step = max(1, DRAW_CELLS // len(table))
    for start in range(0, DRAWS, step):
        stop = min(start + step, DRAWS)
        u = chance.random((stop - start, int(groups.keys.max()) + 1))
        # Candidates of a row stand side by side, so their number chooses the column.
        drawn = (u[:, groups.keys] * candidates).astype(np.int64)
        values = table[np.arange(len(table)), drawn]
        largest[start:stop] = np.abs(groups.statistic(values)).max(axis=1)
    return float(np.quantile(largest, 1 - LARGEST_LEVEL))


def exceeding(statistics: Floats, limit: float) -> Sequence[int]:
    """Return the numbers of the groups whose statistic is above the limit, the largest first."""
    order = np.argsort(-statistics, kind="stable")
    return [int(group) for group in order if statistics[group] > limit]
