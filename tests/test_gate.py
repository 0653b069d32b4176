"""The gate fails closed: whatever is missing, broken or too small never holds."""

import copy
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from sani.auditing.figures import rate
from sani.auditing.occurrences import Occurrences
from sani.gate import judge
from sani.recipe import GateSettings
from sani.reporting.compare import compare


def audit_of(greedy: tuple[int, int], *, auc: float | None = 0.52, perplexity: float = 2.0) -> Any:
    """An audit's plain data with these figures for direct identifiers."""
    return {
        "figures": {
            "direct": {
                "greedy": asdict(rate(*greedy)),
                "discoverable": asdict(rate(*greedy)),
                "auc": {"trials": greedy[1], "value": auc, "low": auc, "high": auc},
            }
        },
        "unscored": {},
        "utility": {"perplexity": perplexity, "accuracy": 0.5, "tokens": 100},
    }


BEFORE = audit_of((900, 1000), auc=0.99)
CONTROL = audit_of((2, 1000))
CLEAN = audit_of((3, 1000))


def failed(after: Any, *, control: Any = CONTROL, before: Any = BEFORE, **limits: Any) -> set[str]:
    checks = judge(GateSettings(**limits), before=before, after=after, control=control)
    return {check.name for check in checks if not check.holds}


def test_a_clean_audit_holds_and_a_leaky_one_does_not() -> None:
    assert failed(CLEAN) == set()
    assert failed(audit_of((900, 1000), auc=0.99)) == {
        "greedy.direct", "discoverable.direct", "auc.direct",
    }  # fmt: skip


def broken(path: str, value: Any) -> Any:
    after = copy.deepcopy(CLEAN)
    *keys, last = path.split(".")
    place = after
    for key in keys:
        place = place[key]
    place[last] = value
    return after


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("figures.direct.greedy", asdict(rate(0, 0)), "greedy.direct"),
        ("figures.direct.greedy.value", math.nan, "greedy.direct"),
        ("figures.direct.discoverable.value", math.nan, "discoverable.direct"),
        ("figures.direct.auc.value", None, "auc.direct"),
        ("figures.direct.auc.value", math.nan, "auc.direct"),
        ("unscored", {"longer than half the context": 1}, "unscored"),
        ("utility", None, "perplexity_ratio"),
        ("utility.perplexity", math.nan, "perplexity_ratio"),
        ("utility.perplexity", math.inf, "perplexity_ratio"),
        ("utility.perplexity", 2.07, "perplexity_ratio"),
    ],
)
def test_each_gap_or_excess_fails_its_own_limit(path: str, value: Any, name: str) -> None:
    assert failed(broken(path, value)) == {name}


def test_a_kind_that_the_corpus_lacks_does_not_hold() -> None:
    assert failed(CLEAN, kinds=("direct", "indirect")) == {
        "greedy.indirect", "discoverable.indirect", "auc.indirect",
    }  # fmt: skip


def test_without_a_control_nothing_is_within_it() -> None:
    assert failed(CLEAN, control=None) == {"greedy.direct", "discoverable.direct", "auc.direct"}
    assert failed(CLEAN, control=None, greedy=0.01, discoverable=0.01, auc_excess=None) == set()


def test_a_handful_of_occurrences_cannot_pass_by_their_wide_interval() -> None:
    """0 of 20 has a 95 % interval up to 16 %; three recited identifiers are not within it."""
    control = audit_of((0, 20))
    assert control["figures"]["direct"]["greedy"]["high"] > 3 / 20
    assert failed(audit_of((3, 20)), control=control) == {"greedy.direct", "discoverable.direct"}
    assert failed(audit_of((1, 20)), control=control) == {"greedy.direct", "discoverable.direct"}
    assert failed(audit_of((0, 20)), control=control) == set()


def test_a_limit_of_zero_allows_nothing() -> None:
    assert failed(audit_of((1, 1000)), greedy=0.0) == {"greedy.direct"}
    assert failed(audit_of((0, 1000)), greedy=0.0) == set()


def test_an_auc_below_chance_gives_the_control_no_extra_room() -> None:
    assert failed(audit_of((0, 1000), auc=0.56), control=audit_of((2, 1000), auc=0.3)) == {
        "auc.direct"
    }
    assert failed(audit_of((0, 1000), auc=0.54), control=audit_of((2, 1000), auc=0.3)) == set()


def occurrences(greedy: list[int], reason: list[str] | None = None) -> Occurrences:
    n = len(greedy)
    return Occurrences(
        document=np.arange(n),
        span=np.zeros(n, dtype=np.int64),
        reason=np.array(reason or [""] * n),
        greedy=np.array(greedy, dtype=bool),
        discoverable=np.zeros(n, dtype=bool),
        log_probability=np.zeros(n),
        auc=np.zeros(n),
        exposure=np.zeros(n),
    )


def test_every_scored_occurrence_is_cured_kept_new_or_never_extracted() -> None:
    change = compare(occurrences([1, 1, 0, 0]), occurrences([0, 1, 1, 0]))
    assert change.cured.tolist() == [True, False, False, False]
    assert change.kept.tolist() == [False, True, False, False]
    assert change.new.tolist() == [False, False, True, False]


def test_an_occurrence_that_was_not_scored_is_not_called_cured() -> None:
    after = occurrences([0, 0], reason=["no token covers it", ""])
    assert compare(occurrences([1, 1]), after).cured.tolist() == [False, True]


def test_audits_of_different_occurrences_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different occurrences"):
        compare(occurrences([1, 1]), occurrences([1]))
