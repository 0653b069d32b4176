"""Audits one after the other: cured, kept, newly extractable, and what that is by chance."""

from math import comb

import numpy as np
import pytest

from sani.auditing.compare import ChangeCounts, beyond_control, compare, onion, paired_test
from sani.auditing.occurrences import Occurrences


def verdicts(extracted: str, *, unscored: str = "") -> Occurrences:
    """One letter an occurrence: g greedy, s sampled, - neither."""
    number = len(extracted)
    nothing = np.full(number, np.nan)
    return Occurrences(
        document=np.zeros(number, dtype=np.int64),
        span=np.arange(number),
        reason=np.array(["lost" if u == "x" else "" for u in unscored.ljust(number)]),
        cued=np.zeros(number, dtype=np.bool_),
        greedy=np.array([letter == "g" for letter in extracted]),
        log_probability=nothing,
        sampled=nothing,
        discoverable=np.array([letter in "gs" for letter in extracted]),
        num_tokens=np.zeros(number, dtype=np.int64),
        ranks=np.zeros(0, dtype=np.int64),
        auc=nothing,
        exposure=nothing,
        first=nothing,
        chance=nothing,
        swap_auc=nothing,
        swap_first=nothing,
        swap_chance=nothing,
        num_decoys=np.zeros(number, dtype=np.int64),
        decoy_number=np.zeros(0, dtype=np.int64),
        decoy_log_probability=np.zeros(0),
        decoy_greedy=np.zeros(0, dtype=np.bool_),
        decoy_discoverable=np.zeros(0, dtype=np.bool_),
    )


def test_every_occurrence_is_cured_kept_new_or_never_extractable() -> None:
    change = compare(verdicts("gs-g-g", unscored="     x"), verdicts("-sg-s-"))
    assert change.cured.tolist() == [True, False, False, True, False, False]
    assert change.kept.tolist() == [False, True, False, False, False, False]
    assert change.new.tolist() == [False, False, True, False, True, False]
    assert change.counts() == ChangeCounts(cured=2, kept=1, new=2, p_value=1.0)
    assert beyond_control(verdicts("gs-"), verdicts("-s-")).tolist() == [True, False, False]


def test_audits_of_other_occurrences_do_not_compare() -> None:
    with pytest.raises(ValueError, match="different occurrences"):
        compare(verdicts("gg"), verdicts("ggg"))


@pytest.mark.parametrize(("cured", "new"), [(10, 0), (7, 2), (0, 1), (5, 5), (30, 12)])
def test_the_paired_test_is_the_binomial_sum(cured: int, new: int) -> None:
    number, least = cured + new, min(cured, new)
    tail = sum(comb(number, k) for k in range(least + 1)) / 2**number
    assert paired_test(cured, new) == pytest.approx(min(1.0, 2 * tail))


def test_without_a_change_there_is_no_p_value() -> None:
    assert paired_test(0, 0) is None


def test_the_onion_tells_what_surfaces_for_the_first_time() -> None:
    audits = {"before": verdicts("gg--"), "erased": verdicts("--g-"), "after": verdicts("g--s")}
    steps = onion(["before", "erased", "round-1", "after"], audits)  # there is no round
    assert [(step.source, step.to) for step in steps] == [("before", "erased"), ("erased", "after")]
    assert [(s.cured, s.kept, s.new, s.first_seen) for s in steps] == [
        (2, 0, 1, 1),
        (1, 0, 2, 1),  # the first came back, the last had never come up
    ]
    assert onion(["before"], {"before": verdicts("gg")}) == []
