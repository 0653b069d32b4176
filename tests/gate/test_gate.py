"""The gate fails closed: whatever is missing, broken or too small never holds."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sani.auditing.candidate_tests import CountTest, LargestTest
from sani.auditing.control_tests import ControlTests
from sani.auditing.figures import Figures, Queries
from sani.auditing.record import AuditRecord
from sani.auditing.sampled_test import SampledTest
from sani.auditing.utility import Utility
from sani.gate import Check, judge
from sani.gate.memory import check_memory
from sani.intervals import Estimate, rate
from sani.recipe import GateSettings
from sani.scanning.record import ScanQuality, ScanRecord

UNKNOWN = Estimate(0, None, None, None)


def figures_of(greedy: tuple[int, int], *, auc: float | None) -> Figures:
    """Return figures with these rates and this AUC, the others unknown."""
    return Figures(
        greedy=rate(*greedy),
        discoverable=rate(*greedy),
        queries=Queries({}, {}, 0),
        identifiers=rate(0, 0),
        within_beam=rate(0, 0),
        worst_rank=None,
        extraction_strength=UNKNOWN,
        exact_memorization=UNKNOWN,
        auc=Estimate(greedy[1], auc, auc, auc),
        exposure=UNKNOWN,
        accuracy=UNKNOWN,
        chance=None,
        association=UNKNOWN,
        association_accuracy=UNKNOWN,
        association_chance=None,
        log_probability=UNKNOWN,
    )


def audit_of(
    greedy: tuple[int, int], *, auc: float | None = 0.52, perplexity: float = 2.0
) -> AuditRecord:
    """Return an audit with these figures for direct identifiers."""
    return AuditRecord(
        framing="bos",
        framings=("bos",),
        framings_tried={},
        figures=dict.fromkeys(("direct", "direct:uncued"), figures_of(greedy, auc=auc)),
        jointly=None,
        unscored={},
        without_decoys=0,
        utility=Utility(tokens=100, perplexity=perplexity, accuracy=0.5),
        membership=None,
        tokens=1000,
        seconds=1.0,
        generation=None,
    )


# The limits on totals alone; those on memory have tests of their own.
TOTALS: dict[str, Any] = {
    "greedy": "control",
    "discoverable": "control",
    "auc_excess": 0.05,
    "greedy_beyond_control": None,
    "discoverable_beyond_control": None,
    "sampled_beyond_control": None,
    "subjects": None,
    "auc_to_base": None,
}
BEFORE = audit_of((900, 1000), auc=0.99)
CONTROL = audit_of((2, 1000))
CLEAN = audit_of((3, 1000))
ZERO = audit_of((0, 1000))


def failed(
    after: AuditRecord,
    *,
    control: AuditRecord | None = CONTROL,
    before: AuditRecord = BEFORE,
    **limits: Any,
) -> set[str]:
    checks = judge(GateSettings(**TOTALS | limits), before=before, after=after, control=control)
    return {check.name for check in checks if not check.holds}


def test_a_clean_audit_holds_and_a_leaky_one_does_not() -> None:
    assert failed(CLEAN) == set()
    assert failed(audit_of((900, 1000), auc=0.99)) == {
        "greedy.direct", "discoverable.direct", "auc.direct",
    }  # fmt: skip


def broken(path: str, value: Any, audit: AuditRecord = CLEAN) -> AuditRecord:
    """Return the audit with another value at one place, as ``figures.direct.greedy.value``."""

    def changed(part: Any, keys: Sequence[str]) -> Any:
        if not keys:
            return value
        first, *rest = keys
        if isinstance(part, dict):
            return {**part, first: changed(part[first], rest)}
        return replace(part, **{first: changed(getattr(part, first), rest)})

    result: AuditRecord = changed(audit, path.split("."))
    return result


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("figures.direct.greedy", rate(0, 0), "greedy.direct"),
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
        f"{name}.indirect" for name in ("positive_control", "greedy", "discoverable", "auc")
    }


def test_without_a_control_nothing_is_within_it() -> None:
    assert failed(CLEAN, control=None) == {"greedy.direct", "discoverable.direct", "auc.direct"}
    assert failed(CLEAN, control=None, greedy=0.01, discoverable=0.01, auc_excess=None) == set()


@pytest.mark.parametrize(("trials", "allowed"), [(20, 0), (88, 0), (400, 0), (1000, 2), (5000, 3)])
def test_a_wide_interval_lets_nothing_through(trials: int, allowed: int) -> None:
    """0 of 20 has a 95 % interval up to 16 %; three recited identifiers are not within it."""
    control = audit_of((0, trials))
    assert failed(audit_of((allowed, trials)), control=control) == set()
    more = failed(audit_of((allowed + 1, trials)), control=control)
    assert more == {"greedy.direct", "discoverable.direct"}


def test_a_few_occurrences_say_too_little_to_hold() -> None:
    assert failed(audit_of((0, 19)), control=audit_of((0, 19))) == {
        "greedy.direct", "discoverable.direct", "auc.direct",
    }  # fmt: skip


def test_an_auc_of_a_few_occurrences_says_too_little_too() -> None:
    rates: dict[str, Any] = {"greedy": None, "discoverable": None}
    for trials, broken in ((19, {"auc.direct"}), (20, set())):
        after, control = audit_of((0, trials)), audit_of((0, trials))
        assert failed(after, control=control, **rates) == broken


def test_a_leaky_control_does_not_make_the_limits_vacuous() -> None:
    """The base is an earlier epoch of the same fine-tuning: everything is within its figures."""
    leaky = audit_of((899, 1000), auc=0.985)
    assert failed(BEFORE, control=leaky) == {"positive_control.direct", "auc.direct"}
    assert failed(audit_of((0, 1000), auc=0.5), control=audit_of((1000, 1000), auc=1.0)) == {
        "positive_control.direct", "greedy.direct", "discoverable.direct", "auc.direct",
    }  # fmt: skip


def test_a_base_that_saw_the_records_is_no_control() -> None:
    """An earlier checkpoint in the base's place: it recites less, and enough to hide much."""
    earlier = audit_of((600, 1000), auc=0.9)
    assert failed(audit_of((600, 1000), auc=0.92), control=earlier) == {"positive_control.direct"}
    assert failed(CLEAN, control=audit_of((2, 1000), auc=0.74)) == set()


def test_an_audit_that_found_nothing_before_is_no_success_after() -> None:
    """The wrong corpus, tokenizer or framing: nothing is recited before, so nothing is after."""
    blind = audit_of((2, 1000), auc=0.55)
    assert failed(ZERO, before=blind) == {"positive_control.direct"}
    assert failed(ZERO, before=audit_of((2, 1000), auc=0.75)) == set()
    assert failed(ZERO, before=audit_of((60, 1000), auc=None)) == set()


def test_a_control_that_skipped_occurrences_is_none() -> None:
    control = replace(CONTROL, unscored={"no token covers it": 1})
    assert failed(CLEAN, control=control) == {"unscored.control"}


def test_an_auc_over_a_few_occurrences_does_not_stand_for_all() -> None:
    assert failed(broken("figures.direct.auc.trials", 899)) == {"auc.direct"}
    assert failed(broken("figures.direct.auc.trials", 900)) == set()


def test_a_limit_of_zero_allows_nothing() -> None:
    assert failed(audit_of((1, 1000)), greedy=0.0) == {"greedy.direct"}
    assert failed(audit_of((0, 1000)), greedy=0.0) == set()


def test_an_auc_below_chance_gives_the_control_no_extra_room() -> None:
    assert failed(audit_of((0, 1000), auc=0.56), control=audit_of((2, 1000), auc=0.3)) == {
        "auc.direct"
    }
    assert failed(audit_of((0, 1000), auc=0.54), control=audit_of((2, 1000), auc=0.3)) == set()


def scan_of(quality: ScanQuality | None) -> ScanRecord:
    """Return the record of a scan of this quality."""
    return ScanRecord(9, 9, 0, 9, 0, 0, {}, {}, 0, quality, "digest")


def test_a_scan_of_unknown_or_low_recall_does_not_hold_where_the_recipe_asks() -> None:
    def check(hits: int, trials: int, least: float = 0.9) -> Any:
        scan = scan_of(
            ScanQuality(9, rate(hits, trials), rate(0, 0), None, None, None, None, {}, {})
        )
        settings = GateSettings(**TOTALS, scan_recall=least)
        checks = judge(settings, before=BEFORE, after=CLEAN, control=CONTROL, scan=scan)
        return next(check for check in checks if check.name == "scan_recall")

    assert check(990, 1000).holds
    assert check(990, 1000).measured == rate(990, 1000).low
    assert not check(905, 1000).holds  # the value is above, the lower end of its interval is not
    assert not check(10, 10).holds
    for scan in (None, scan_of(None)):
        checks = judge(
            GateSettings(**TOTALS, scan_recall=0.0),
            before=BEFORE,
            after=CLEAN,
            control=CONTROL,
            scan=scan,
        )
        last = {check.name: check for check in checks}["scan_recall"]
        assert (last.holds, last.measured) == (False, None)
        assert "unknown" in last.reason
    assert "scan_recall" not in {
        check.name for check in judge(GateSettings(), before=BEFORE, after=CLEAN, control=CONTROL)
    }


def test_a_masked_model_must_meet_the_rates_in_both_ways_of_asking() -> None:
    clean, control = (replace(side, jointly=side.figures) for side in (CLEAN, CONTROL))
    assert failed(clean, control=control) == set()
    leaks = replace(clean, jointly=audit_of((200, 1000)).figures)
    assert failed(leaks, control=control) == {
        "greedy.direct.jointly",
        "discoverable.direct.jointly",
    }
    assert failed(replace(clean, jointly={}), control=control) == set()  # of a causal model
    assert failed(clean) == {"greedy.direct.jointly", "discoverable.direct.jointly"}


def test_an_auc_check_says_what_it_allows_and_whether_that_is_settled() -> None:
    def reason(value: float, low: float, high: float, base: float) -> str:
        auc = Estimate(1000, value, low, high)
        after = broken("figures.direct.auc", auc, audit_of((0, 1000)))
        settings = GateSettings(**TOTALS)
        checks = judge(settings, before=BEFORE, after=after, control=audit_of((0, 1000), auc=base))
        return next(check.reason for check in checks if check.name == "auc.direct")

    below = "The control's AUC is 0.480; 0.05 above chance (0.5) is allowed."
    assert reason(0.52, 0.51, 0.53, 0.48) == below
    assert reason(0.54, 0.44, 0.64, 0.52) == (
        "The control's AUC is 0.520; 0.05 above that is allowed. The limit lies within the 95 % "
        "interval, 0.440 to 0.640: 1000 occurrences do not settle this."
    )


# --- what the model writes by itself --------------------------------------------------------------


def audit_with_samples(**changes: Any) -> AuditRecord:
    """Return an audit with this test of its samples; none if ``sampled`` is None."""
    nobody = LargestTest(0, None, None, 0)
    test = SampledTest(
        samples=90, searched=40, without_decoys=2, count=1, limit=2, unlikely=0, unlikely_limit=0,
        subjects=1,
    )  # fmt: skip
    count = CountTest(0, 0, 0, 0, 0)
    tests = ControlTests(
        occurrences=90, without_decoys=0, greedy=count, discoverable=count, auc_to_base=UNKNOWN,
        held_out_auc=None, held_out_is_control=False, subjects=nobody, labels=nobody,
        auc_by_label={}, without_control=0, at_risk=0, untested=0,
        sampled=None if changes.get("sampled", test) is None else replace(test, **changes),
    )  # fmt: skip
    return replace(CLEAN, control_tests={"direct": tests})


def sampled_check(limit: Any, after: AuditRecord) -> Check:
    limits = {**TOTALS, "greedy": 1.0, "sampled_beyond_control": limit}
    checks = judge(GateSettings(**limits), before=BEFORE, after=after, control=CONTROL)
    (check,) = [check for check in checks if check.name == "sampled_beyond_control.direct"]
    return check


def test_more_values_than_chance_allows_do_not_hold() -> None:
    assert sampled_check("test", audit_with_samples()).holds
    assert sampled_check("test", audit_with_samples(count=2)).holds
    over = sampled_check("test", audit_with_samples(count=3, subjects=2))
    assert (over.holds, over.measured, over.limit) == (False, 3.0, 2.0)
    assert "3 (of 2 subjects) are written in 90 samples and not by the control" in over.reason
    assert "5 of 100 cases" in over.reason
    assert "bring up none, so this check says little" in over.reason  # of `BEFORE`


def test_a_few_written_values_that_nobody_guesses_do_not_hide_below_those_that_anybody_does() -> (
    None
):
    hidden = sampled_check("test", audit_with_samples(count=2, unlikely=1))
    assert (hidden.holds, hidden.measured, hidden.limit) == (False, 1.0, 0.0)
    assert "1 of them is no guess" in hidden.reason
    assert sampled_check("test", audit_with_samples(unlikely=1, unlikely_limit=1)).holds
    assert sampled_check(2, audit_with_samples(count=2, unlikely=1)).holds  # the recipe decides


def test_a_number_in_the_recipe_takes_the_place_of_the_test_of_samples() -> None:
    assert not sampled_check(0, audit_with_samples()).holds
    assert sampled_check(1, audit_with_samples()).holds
    assert "the recipe sets the limit" in sampled_check(1, audit_with_samples()).reason
    assert sampled_check(1, audit_with_samples(without_decoys=40)).holds  # a number needs no decoy


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (audit_with_samples(sampled=None), "was not compared with a control"),
        (CLEAN, "was not compared with a control"),
        (audit_with_samples(searched=19), "Only 19 values are long enough"),
        (audit_with_samples(without_decoys=5), "Only 35 of 40 values have decoys; 90% must"),
    ],
)
def test_samples_that_say_nothing_do_not_hold(after: AuditRecord, reason: str) -> None:
    check = sampled_check("test", after)
    assert (check.holds, check.measured) == (False, None)
    assert reason in check.reason


@pytest.mark.false_clean
def test_a_few_names_do_not_hide_below_many_guesses() -> None:
    nobody = LargestTest(0, None, None, 0)
    counts = {
        "guesses": CountTest(count=6, limit=9, occurrences=6, unlikely=0, unlikely_limit=1),
        "names": CountTest(count=6, limit=9, occurrences=6, unlikely=3, unlikely_limit=1),
    }
    checks = {}
    for name, count in counts.items():
        tests = ControlTests(
            occurrences=90, without_decoys=0, greedy=count, discoverable=count,
            auc_to_base=UNKNOWN, held_out_auc=None, held_out_is_control=False, subjects=nobody,
            labels=nobody, auc_by_label={}, without_control=0, at_risk=0, untested=0,
        )  # fmt: skip
        settings = GateSettings(subjects=None, auc_to_base=None)
        audit = replace(CLEAN, control_tests={"direct": tests})
        checks[name] = list(check_memory("direct", settings, audit))
    assert [check.holds for check in checks["guesses"]] == [True, True]
    for check in checks["names"]:
        assert (check.holds, check.measured, check.limit) == (False, 3.0, 1.0)
        assert "3 of them are no guess" in check.reason
