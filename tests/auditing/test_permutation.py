"""Permutation tests: against slow versions, never-saw tables and planted people."""

import itertools

import numpy as np
import pytest

from sani.auditing.permutation import (
    DRAWS,
    LARGEST_LEVEL,
    LEVEL,
    Groups,
    count_limit,
    exceeding,
    largest_limit,
    shares,
)


def test_a_share_is_that_of_the_other_candidates_that_are_beaten() -> None:
    chance = np.random.default_rng(0)
    scores = chance.integers(0, 4, (50, 6)).astype(float)  # many ties
    scores[chance.random(scores.shape) < 0.2] = np.nan
    result = shares(scores)
    for row, values in zip(scores, result, strict=True):
        known = row[np.isfinite(row)]
        for score, value in zip(row, values, strict=True):
            if np.isnan(score) or len(known) < 2:
                assert np.isnan(value)
            else:
                beaten = (known < score).sum() + 0.5 * ((known == score).sum() - 1)
                assert value == pytest.approx(beaten / (len(known) - 1))


def slow_limit(given: np.ndarray, candidates: np.ndarray, keys: np.ndarray) -> int:
    """Return the limit by trying every draw of every key; all rows have as many candidates."""
    names = np.unique(keys)
    counts = []
    for drawn in itertools.product(range(int(candidates[0])), repeat=len(names)):
        column = dict(zip(names.tolist(), drawn, strict=True))
        counts.append(sum(given[row, column[key]] for row, key in enumerate(keys.tolist())))
    ordered = np.array(counts)
    return next(limit for limit in range(len(keys) + 1) if (ordered > limit).mean() <= LEVEL + 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_limit_of_a_count_is_exact(seed: int) -> None:
    chance = np.random.default_rng(seed)
    keys = np.array([0, 0, 1, 2, 2, 3, 4])
    candidates = np.full(len(keys), 5)
    given = chance.random((len(keys), 5)) < chance.choice([0.05, 0.3, 0.6])
    assert count_limit(given, candidates, keys) == slow_limit(given, candidates, keys)


def test_one_value_among_nineteen_decoys_is_one_too_many() -> None:
    for decoys, limit in ((18, 1), (19, 0), (40, 0)):
        given = np.zeros((3, decoys + 1), dtype=np.bool_)
        given[1, 0] = True  # the true value, and no decoy
        assert count_limit(given, np.full(3, decoys + 1), np.arange(3)) == limit


def test_occurrences_of_one_value_and_subject_are_drawn_together() -> None:
    given = np.zeros((6, 20), dtype=np.bool_)
    given[:, :2] = True  # of 20 candidates two are given everywhere
    together = count_limit(given, np.full(6, 20), np.zeros(6, dtype=np.int64))
    apart = count_limit(given, np.full(6, 20), np.arange(6))
    assert (together, apart) == (6, 2)


def test_rows_of_different_length_share_one_draw() -> None:
    """With u in [0, 1/4) both rows draw their first candidate, in [1/4, 1/2) only the second."""
    given = np.zeros((2, 4), dtype=np.bool_)
    given[:, 0] = True
    limit = count_limit(given, np.array([4, 2]), np.zeros(2, dtype=np.int64))
    assert limit == 2
    assert count_limit(given, np.array([4, 2]), np.arange(2)) == 2


def never_saw(seed: int, *, subjects: int, values: int, decoys: int) -> tuple[np.ndarray, Groups]:
    """Return shares of a model that prefers candidates at random, and the subjects."""
    chance = np.random.default_rng(seed)
    number = subjects * values
    table = shares(chance.normal(size=(number, decoys + 1)))
    return table, Groups.of(np.arange(number), np.repeat(np.arange(subjects), values))


def test_of_models_that_never_saw_the_records_one_in_forty_is_above_the_limit() -> None:
    above = 0
    for seed in range(300):
        table, groups = never_saw(seed, subjects=12, values=6, decoys=19)
        limit = largest_limit(table, groups, seed=seed)
        above += bool(exceeding(groups.statistic(table[:, 0]), limit))
    assert 1 <= above <= 16  # 7.5 expected; three standard deviations are 8


def test_one_person_of_sixty_stands_out() -> None:
    table, groups = never_saw(1, subjects=60, values=9, decoys=19)
    known = table[:, 0].copy()
    known[9 * 7 : 9 * 8] = 1.0  # all values of one person are the likeliest
    limit = largest_limit(table, groups, seed=0)
    assert not exceeding(groups.statistic(table[:, 0]), limit)
    assert list(exceeding(groups.statistic(known), limit)) == [7]


def test_the_largest_statistic_is_that_of_a_slow_version() -> None:
    table, groups = never_saw(3, subjects=4, values=3, decoys=4)
    chance = np.random.default_rng(9)
    largest = []
    for _ in range(DRAWS):
        scores = []
        for subject in range(4):
            drawn = [table[3 * subject + value, chance.integers(5)] for value in range(3)]
            scores.append((np.mean(drawn) - 0.5) * np.sqrt(12 * 3))
        largest.append(max(scores))
    slow = float(np.quantile(largest, 1 - LARGEST_LEVEL))
    assert largest_limit(table, groups, seed=0) == pytest.approx(slow, abs=0.1)


def test_a_mean_is_over_values_and_not_over_their_occurrences() -> None:
    groups = Groups.of(np.array([5, 5, 5, 8]), np.array([2, 2, 2, 2]))
    statistic = groups.statistic(np.array([1.0, 1.0, 1.0, 0.0]))
    assert statistic == pytest.approx([0.0])  # (1 + 0) / 2, not 3 / 4
    assert groups.sizes.tolist() == [2]
