"""Permutation tests: against slow versions, never-saw tables and planted people."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from sani.auditing.permutation import (
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


def slow_limit(given: np.ndarray, keys: np.ndarray) -> int:
    """Return the limit by trying every outcome of every key; all rows have as many candidates."""
    chances = []
    for key in np.unique(keys):
        rows = given[keys == key]
        if rows[:, 1:].any():
            chances.append(rows.any(axis=0).mean())
        else:
            chances.append(rows[:, 0].any() / max(20, given.shape[1]))
    probabilities = np.zeros(len(chances) + 1)
    for outcome in itertools.product((False, True), repeat=len(chances)):
        chance = np.prod([p if hit else 1 - p for p, hit in zip(chances, outcome, strict=True)])
        probabilities[sum(outcome)] += chance
    return next(k for k in range(len(chances) + 1) if probabilities[k + 1 :].sum() <= LEVEL + 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_limit_of_a_count_is_exact(seed: int) -> None:
    chance = np.random.default_rng(seed)
    keys = np.array([0, 0, 1, 2, 2, 3, 4])
    candidates = np.full(len(keys), 5)
    given = chance.random((len(keys), 5)) < chance.choice([0.05, 0.3, 0.6])
    assert count_limit(given, candidates, keys) == slow_limit(given, keys)


def test_one_value_none_of_whose_decoys_is_given_is_one_too_many() -> None:
    for decoys in (3, 18, 19, 40):
        given = np.zeros((3, decoys + 1), dtype=np.bool_)
        given[1, 0] = True  # the true value, and no decoy
        assert count_limit(given, np.full(3, decoys + 1), np.arange(3)) == 0
    given[1, 1] = True
    assert count_limit(given, np.full(3, 41), np.arange(3)) == 0
    assert count_limit(given[:, :20], np.full(3, 20), np.arange(3)) == 1  # 2 of 20 are 10 %


def test_a_value_that_stands_often_counts_once() -> None:
    """One person recited sixty times must not raise the limit to sixty."""
    given = np.zeros((60, 18), dtype=np.bool_)
    given[:, 0] = True
    candidates, keys = np.full(60, 18), np.zeros(60, dtype=np.int64)
    assert count_limit(given, candidates, keys) == 0
    given[:, 1] = True  # and one decoy
    assert count_limit(given, candidates, keys) == 1


def test_rows_of_different_length_share_one_draw() -> None:
    """u in [0, 1/2) draws a given candidate of the first row, and of the second one too."""
    given = np.zeros((2, 20), dtype=np.bool_)
    given[0, :1] = given[1, :1] = given[1, 1] = True  # 1 of 20 and 2 of 40, all with u below 1/20
    wide = np.zeros((2, 40), dtype=np.bool_)
    wide[:, :20] = given
    together = count_limit(wide, np.array([20, 40]), np.zeros(2, dtype=np.int64))
    assert together == 0  # one key, given with a chance of 1/20
    wide[1, 30] = True  # in the second row also with u in [30/40, 31/40)
    assert count_limit(wide, np.array([20, 40]), np.zeros(2, dtype=np.int64)) == 1


def never_saw(
    seed: int, *, subjects: int, values: int, decoys: int, few: int = 0
) -> tuple[np.ndarray, Groups]:
    """Return shares of a model that prefers candidates at random, and the subjects.

    The first ``few`` subjects have one decoy a value.
    """
    chance = np.random.default_rng(seed)
    number = subjects * values
    scores = chance.normal(size=(number, decoys + 1))
    scores[: few * values, 2:] = np.nan
    table = shares(scores)
    return table, Groups.of(table, np.arange(number), np.repeat(np.arange(subjects), values))


@pytest.mark.parametrize("few", [0, 8])
def test_of_models_that_never_saw_the_records_one_in_forty_is_above_the_limit(few: int) -> None:
    above = 0
    for seed in range(200):
        table, groups = never_saw(seed, subjects=12, values=6, decoys=19, few=few)
        limit = largest_limit(groups, seed=seed)
        above += bool(exceeding(np.abs(groups.statistic(table[:, 0])), limit))
    assert 1 <= above <= 12  # 5 expected; three standard deviations are 7


@pytest.mark.false_clean
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_person_of_sixty_stands_out(share: float) -> None:
    """All values of one person are the likeliest, or the unlikeliest, of their decoys."""
    table, groups = never_saw(1, subjects=60, values=9, decoys=19)
    known = table[:, 0].copy()
    known[9 * 7 : 9 * 8] = share
    limit = largest_limit(groups, seed=0)
    assert not exceeding(np.abs(groups.statistic(table[:, 0])), limit)
    assert list(exceeding(np.abs(groups.statistic(known)), limit)) == [7]


@pytest.mark.false_clean
def test_people_with_few_decoys_do_not_widen_the_limit_of_others() -> None:
    """Shares of one decoy are 0 or 1; by chance all nine of one of 50 people may well be 1."""
    wide = largest_limit(never_saw(2, subjects=60, values=9, decoys=19, few=50)[1], seed=0)
    usual = largest_limit(never_saw(2, subjects=60, values=9, decoys=19)[1], seed=0)
    assert 0.85 * usual < wide < 1.02 * usual


def test_the_largest_statistic_is_that_of_a_slow_version() -> None:
    """Keys of one row, of two rows, and of two rows with different numbers of decoys."""
    chance = np.random.default_rng(3)
    scores = chance.normal(size=(10, 5))
    scores[4, 3:] = scores[7, 2:] = np.nan
    table = shares(scores)
    keys = np.array([0, 1, 2, 2, 3, 3, 4, 5, 5, 6])
    group_of_key = np.array([0, 0, 0, 1, 1, 2, 2])
    groups = Groups.of(table, keys, group_of_key[keys])
    candidates = np.isfinite(scores).sum(axis=1)

    def means(u: np.ndarray) -> list[float]:
        """Return the mean of each group where u chooses the candidate of each key."""
        of_key = [
            np.mean([table[row, int(u[key] * candidates[row])] for row in rows])
            for key in range(7)
            for rows in [np.flatnonzero(keys == key)]
        ]
        return [
            float(np.mean([of_key[key] for key in np.flatnonzero(group_of_key == group)]))
            for group in range(3)
        ]

    drawn = np.array([means(chance.random(7)) for _ in range(20_000)])
    assert groups.variances == pytest.approx(drawn.var(axis=0), rel=0.04)
    # No statistic is larger than a normal number with the chance that all true values are drawn.
    of_key = [int(candidates[keys == key].max()) for key in range(7)]
    caps = [
        NormalDist().inv_cdf(1 - 1 / math.prod(of_key[k] for k in range(7) if group_of_key[k] == g))
        for g in range(3)
    ]
    largest = np.minimum(np.abs((drawn - 0.5) / drawn.std(axis=0)), caps).max(axis=1)
    slow = float(np.quantile(largest, 1 - LARGEST_LEVEL))
    assert largest_limit(groups, seed=0) == pytest.approx(slow, abs=0.1)


def test_a_mean_is_over_values_and_not_over_their_occurrences() -> None:
    table = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    groups = Groups.of(table, np.array([5, 5, 5, 8]), np.array([2, 2, 2, 2]))
    statistic = groups.statistic(table[:, 0])
    assert statistic == pytest.approx([0.0])  # (1 + 0) / 2, not 3 / 4
    assert groups.variances == pytest.approx([0.125])  # (0.25 + 0.25) / 2^2


@pytest.mark.false_clean
def test_one_value_with_a_long_tail_does_not_widen_the_limit_of_others() -> None:
    """Tie 19 of its candidates and not the twentieth, which chance draws in 5 of 100 cases."""
    scores = np.random.default_rng(4).normal(size=(61, 20))
    scores[60] = 0.0
    scores[60, 7] = 1.0
    table, subjects = shares(scores), np.append(np.repeat(np.arange(10), 6), 10)
    with_tail = largest_limit(Groups.of(table, np.arange(61), subjects), seed=0)
    without = largest_limit(Groups.of(table[:60], np.arange(60), subjects[:60]), seed=0)
    assert with_tail == pytest.approx(without, abs=0.1)


def test_groups_of_some_rows_are_those_of_these_rows_alone() -> None:
    """Beside the others, on the same rows; a group without a row is never above a limit."""
    table, _ = never_saw(5, subjects=4, values=3, decoys=6)
    subjects = np.repeat(np.arange(4), 3)
    use = np.tile([True, True, False], 4)
    use[9:] = False
    keys = np.arange(12)
    both = Groups.of(table, keys, subjects).beside(Groups.of(table, keys, subjects, use))
    alone = Groups.of(table[use], keys[use], subjects[use])
    statistic = both.statistic(table[:, 0])
    whole = Groups.of(table, keys, subjects).statistic(table[:, 0])
    assert statistic[:4] == pytest.approx(whole)
    assert statistic[4:7] == pytest.approx(alone.statistic(table[use, 0]))
    assert statistic[7] == 0
