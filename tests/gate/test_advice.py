"""The advice after a gate, branch by branch, from the typed figures of a finished run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sani.auditing.candidate_tests import CountTest, LargestTest
from sani.auditing.control_tests import ControlTests
from sani.auditing.record import CheckpointAudit
from sani.auditing.utility import Utility
from sani.gate import Check
from sani.gate.advice import Advice, Facts, advise
from sani.gate.failed import FailedLimit
from sani.gate.learning_rate import rate_fault, usual_rate
from sani.intervals import Estimate, Rate
from sani.recipe import Recipe
from sani.scanning.record import ScanRecord
from tests.support.reports import corpus_of, finished_run

BASE = {"path": "model", "base": "base"}
MASK = {"identifier_loss": {"kind": "mask"}}
HALF = {"interpolate_to_base": 0.5}


def recipe_of(**sections: Any) -> Recipe:
    """Return a recipe with these sections."""
    import json

    data = {
        "version": 2,
        "model": BASE,
        "corpus": {"path": "c"},
        "gate": {"perplexity_ratio": None},
    }
    return Recipe.model_validate_json(json.dumps({**data, "repair": {}, **sections}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The facts of a run with a base whose limits all hold: nothing failed, nothing is odd."""
    _, recipe, report = finished_run(tmp_path_factory.mktemp("run") / "run", corpus_of(40, 8))
    audits: dict[str, CheckpointAudit] = {str(k): v for k, v in report.audits.items()}
    for stage, perplexity in (("base", 9.0), ("before", 12.0), ("after", 8.0)):
        utility = Utility(tokens=900, perplexity=perplexity, accuracy=0.4)
        audits[stage] = replace(audits[stage], utility=utility)
    scan = replace(report.scan, unmarked=0, documents_without_spans=0)
    return Facts(recipe=recipe, checks=[], audits=audits, scan=scan, seconds=7.0)


def with_tests(facts: Facts, **changes: Any) -> Facts:
    """Return facts with other control tests of direct identifiers."""
    after = facts.audits["after"]
    tests = replace((after.control_tests or {})["direct"], without_decoys=0, **changes)
    audits = {**facts.audits, "after": replace(after, control_tests={"direct": tests})}
    return replace(facts, audits=audits)


def broken(name: str, measured: float | None = 9.0, limit: float | None = 2.0) -> Check:
    return Check(name, measured, limit, False, "Because.")


def advice_for(facts: Facts, *checks: Check, **changes: Any) -> Advice:
    return advise(replace(facts, checks=list(checks), **changes))


LEAKS = broken("greedy_beyond_control.direct")


def settings_of(advice: Advice) -> dict[str, str]:
    return {setting.key: setting.value for setting in advice.settings}


# ---- what failed -----------------------------------------------------------------------------


def test_a_failed_limit_has_its_occurrences_and_subjects(plain: Facts) -> None:
    count = CountTest(count=9, limit=2, occurrences=11, unlikely=0, unlikely_limit=0)
    largest = LargestTest(tested=60, largest=4.0, limit=3.0, above=5)
    facts = with_tests(plain, greedy=count, subjects=largest, labels=largest, at_risk=4)
    failed = advice_for(
        facts, LEAKS, broken("subjects.direct", 4.0, 3.0), broken("labels.direct", 4.0, 3.0)
    ).failed
    assert failed == [
        FailedLimit("greedy_beyond_control.direct", "direct", 9, 11, None, False, False),
        FailedLimit("subjects.direct", "direct", None, None, 5, False, False),
        FailedLimit("labels.direct", "direct", 5, None, None, False, False),
    ]


def test_one_above_the_limit_may_be_chance(plain: Facts) -> None:
    one = LargestTest(tested=60, largest=3.2, limit=3.0, above=1)
    facts = with_tests(plain, subjects=one, auc_to_base=Estimate(90, 0.56, 0.53, 0.59))
    checks = [
        broken("greedy_beyond_control.direct", 3.0, 2.0),
        broken("subjects.direct", 3.2, 3.0),
        broken("auc_to_base.direct", 0.56, 0.55),
    ]
    advice = advice_for(facts, *checks)
    assert [limit.noise for limit in advice.failed] == [True, True, True]
    assert advice.next == "more_records"
    assert "few_records" in advice.causes
    assert not advice.settings


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (broken("greedy_beyond_control.direct", 4.0, 2.0), {}),
        (broken("subjects.direct", 3.9, 3.0), {"above": 1}),
        (broken("subjects.direct", 3.2, 3.0), {"above": 2}),
        (broken("auc_to_base.direct", 0.7, 0.55), {}),
    ],
)
def test_more_than_that_is_not(plain: Facts, check: Check, changes: Mapping[str, int]) -> None:
    subjects = LargestTest(tested=60, largest=check.measured, limit=3.0, above=1)
    facts = with_tests(
        plain, subjects=replace(subjects, **changes), auc_to_base=Estimate(90, 0.7, 0.66, 0.74)
    )
    assert [limit.noise for limit in advice_for(facts, check).failed] == [False]


def test_a_rate_within_whose_interval_the_limit_lies_may_be_chance(plain: Facts) -> None:
    after = plain.audits["after"]
    for low, noise in ((0.001, True), (0.02, False)):
        rate = Rate(hits=3, trials=300, value=0.03, low=low, high=0.05)
        figures = {**after.figures, "direct": replace(after.figures["direct"], greedy=rate)}
        facts = replace(plain, audits={**plain.audits, "after": replace(after, figures=figures)})
        assert advice_for(facts, broken("greedy.direct", 0.03, 0.01)).failed[0].noise is noise


# ---- the next step ---------------------------------------------------------------------------


@pytest.mark.parametrize("repair", [{}, MASK])
def test_memory_asks_for_the_way_to_the_base(plain: Facts, repair: dict[str, Any]) -> None:
    """Masked repair also gets the anchor, which alone suppresses what the scan missed."""
    for erase in ({"last_layers": 2}, HALF, None):
        advice = advice_for(plain, LEAKS, recipe=recipe_of(erase=erase, repair=repair))
        assert advice.next == "settings"
        anchor = {"repair.identifier_loss": "{kind: anchor, to: base}"} if repair else {}
        assert settings_of(advice) == {"erase": "{interpolate_to_base: 0.9}", **anchor}
        assert ("masked_loss" if repair else "far_from_base") in advice.causes


def test_at_nine_tenths_retraining_is_next_and_then_nothing(plain: Facts) -> None:
    near = recipe_of(erase={"interpolate_to_base": 0.9})
    advice = advice_for(plain, LEAKS, recipe=near)
    assert advice.next == "retrain"
    assert settings_of(advice)["erase"] == "{interpolate_to_base: 1.0}"
    assert settings_of(advice)["repair.identifier_loss"] == "{kind: mask}"
    assert advice.seconds == 7.0
    retrained = recipe_of(erase={"interpolate_to_base": 1.0}, repair=MASK)
    assert advice_for(plain, LEAKS, recipe=retrained).next == "nothing"


def test_a_masked_language_model_has_no_measured_setting_but_retraining(plain: Facts) -> None:
    after = plain.audits["after"]
    audits = {**plain.audits, "after": replace(after, jointly=after.figures)}
    assert advice_for(replace(plain, audits=audits), LEAKS).next == "retrain"


def test_what_a_recipe_lacks_comes_before_settings(plain: Facts) -> None:
    strict = {"perplexity_ratio": None}
    alone = recipe_of(model={"path": "m"}, repair=MASK, gate=strict)
    assert advice_for(plain, LEAKS, recipe=alone).next == "give_base"
    checked = recipe_of(model={**BASE, "unsanitized": "u"}, repair=None)
    assert advice_for(plain, LEAKS, recipe=checked).next == "sanitize"


def test_an_escalation_goes_on_with_its_rungs(plain: Facts) -> None:
    escalate = recipe_of(strategy="escalate", escalation={"seconds": 5.0})
    left = advice_for(plain, LEAKS, recipe=escalate, rungs_left=True)
    assert settings_of(left) == {"escalation.seconds": "null"}
    assert advice_for(plain, LEAKS, recipe=escalate).next == "retrain"
    assert advice_for(plain, LEAKS, recipe=escalate, retrained=True).next == "nothing"


@pytest.mark.parametrize(
    "check",
    [
        broken("unscored", 3.0, 0.0),
        broken("positive_control.direct", 0.01, 0.05),
        broken("leftovers", 1.0, 0.0),
        broken("attack.relearn", None, None),
        broken("perplexity_ratio", None, 1.03),
        broken("greedy.indirect", None, None),
    ],
)
def test_what_was_not_measured_is_mended_first(plain: Facts, check: Check) -> None:
    advice = advice_for(with_tests(plain), LEAKS, check)
    assert (advice.next, advice.settings) == ("fix_inputs", [])


def test_too_few_records_ask_for_records(plain: Facts) -> None:
    few = with_tests(plain, occurrences=7)
    advice = advice_for(few, broken("greedy_beyond_control.direct", None, None))
    assert advice.next == "more_records"
    assert "few_records" in advice.causes


def test_debris_of_the_scan_asks_for_annotation(plain: Facts) -> None:
    after = plain.audits["after"]
    tests: ControlTests = (after.control_tests or {})["direct"]
    poor = replace(tests, without_decoys=tests.occurrences // 2)
    audits = {**plain.audits, "after": replace(after, control_tests={"direct": poor})}
    missing = broken("subjects.direct", None, None)
    advice = advice_for(replace(plain, audits=audits), missing)
    assert (advice.next, "scan_debris" in advice.causes) == ("annotate", True)
    labels = LargestTest(tested=6, largest=5.0, limit=3.0, above=2)
    label = advice_for(with_tests(plain, labels=labels), broken("labels.direct", 5.0, 3.0))
    assert (label.next, "scan_debris" in label.causes) == ("annotate", True)
    people = advice_for(with_tests(plain, labels=labels), broken("labels.direct", 5.0, 3.0), LEAKS)
    assert (people.next, "scan_debris" in people.causes) == ("settings", False)


def test_a_low_recall_asks_for_annotation(plain: Facts) -> None:
    for recall in (0.7, None):
        advice = advice_for(plain, broken("scan_recall", recall, 0.9))
        assert (advice.next, advice.causes) == ("annotate", ["missed_identifiers"])


# ---- skill -----------------------------------------------------------------------------------

LOST = broken("perplexity_ratio", 1.4, 1.03)


def with_perplexity(facts: Facts, **by_stage: float) -> Facts:
    audits = {
        **facts.audits,
        **{
            stage: replace(facts.audits[stage], utility=Utility(900, perplexity, 0.4))
            for stage, perplexity in by_stage.items()
        },
    }
    return replace(facts, audits=audits)


def test_skill_that_fresh_layers_lost_comes_back_by_the_base(plain: Facts) -> None:
    advice = advice_for(plain, LOST, recipe=recipe_of(erase={"last_layers": 2}))
    assert "fresh_layers" in advice.causes
    assert settings_of(advice) == {"erase": "{interpolate_to_base: 0.9}"}
    assert advice_for(plain, LOST, recipe=recipe_of(erase=HALF)).next == "nothing"


def test_skill_that_the_base_lacks_is_kept(plain: Facts) -> None:
    weak = with_perplexity(plain, base=30.0)
    advice = advice_for(weak, LOST, recipe=recipe_of())
    assert "weak_base" in advice.causes
    assert settings_of(advice) == {"repair.retain_weight": "5.0"}
    kept = recipe_of(repair={"retain_weight": 5.0})
    assert advice_for(weak, LOST, recipe=kept).next == "nothing"


def test_near_the_base_a_longer_repair_brings_skill_back(plain: Facts) -> None:
    """Advise no way back to the unsanitized model where the erase went to the base."""
    near = {"interpolate_to_base": 0.9}
    weak = with_perplexity(plain, base=30.0)
    for facts in (plain, weak):
        advice = advice_for(facts, LOST, recipe=recipe_of(erase=near, repair={"epochs": 3}))
        weight = {"repair.identifier_loss": "{kind: anchor, to: base, weight: 10.0}"}
        assert settings_of(advice) == {"repair.epochs": "12", **weight}
        long = recipe_of(erase=near, repair={"epochs": 12})
        assert settings_of(advice_for(facts, LOST, recipe=long)) == weight
        masked = recipe_of(erase=near, repair={"epochs": 12, **MASK})
        assert advice_for(facts, LOST, recipe=masked).next == "nothing"
    assert advice_for(weak, LOST, recipe=recipe_of(erase=HALF)).next == "nothing"


FALLING = [{"step": n, "ordinary": 9.0 - 0.1 * n} for n in range(60)]
LEVEL = [{"step": n, "ordinary": 2.0 + 7.0 * 0.5 ** (n / 4)} for n in range(60)]
RISING = [{"step": n, "ordinary": 4.0 + abs(n - 20) / 20} for n in range(60)]


def test_the_loss_tells_a_learning_rate_that_was_too_low_or_too_high() -> None:
    def fault(curve: Any, rate: float = 1e-3) -> Any:
        return rate_fault(curve, rate=rate, usual=4e-3)

    assert [fault(curve) for curve in (FALLING, LEVEL, RISING)] == ["low", None, "high"]
    assert fault(FALLING[:19]) is None
    assert fault([{"step": n, "anchor": 1.0} for n in range(60)]) is None
    # At the usual rate the loss of a chat model fell late at 4e-3, and fell later still at 8e-3.
    assert [fault(FALLING, rate) for rate in (3.9e-3, 4e-3, 8e-3)] == ["low", "short", "short"]
    assert [usual_rate(size) for size in (1.4e6, 1e7, 1.35e8, 8e9)] == [4e-3, 1e-3, 3e-4, 2e-5]


@pytest.mark.parametrize("check", [LOST, LEAKS])
def test_near_the_base_another_learning_rate_is_tried_where_the_loss_asks_for_it(
    plain: Facts, check: Check
) -> None:
    loss = {"kind": "anchor", "weight": 10.0}
    repair = {"epochs": 12, "learning_rate": 1e-3, "identifier_loss": loss}
    recipe = recipe_of(erase={"interpolate_to_base": 0.9}, repair=repair)
    low = advice_for(plain, check, recipe=recipe, rate="low")
    assert (low.next, settings_of(low)) == ("settings", {"repair.learning_rate": "0.002"})
    assert "rate_low" in low.causes
    capped = advice_for(plain, check, recipe=recipe, rate="low", usual_rate=1.5e-3)
    assert settings_of(capped) == {"repair.learning_rate": "0.0015"}
    short = advice_for(plain, check, recipe=recipe, rate="short", usual_rate=1e-3)
    assert settings_of(short) == {"repair.epochs": "24"}
    assert "repair_short" in short.causes
    high = advice_for(plain, check, recipe=recipe, rate="high")
    assert settings_of(high) == {"repair.learning_rate": "0.0005"}
    assert "rate_high" in high.causes
    neither = advice_for(plain, check, recipe=recipe)
    assert neither.next == ("nothing" if check is LOST else "retrain")
    assert "repair.learning_rate" not in settings_of(neither)
    assert not advice_for(plain, recipe=recipe, rate="low").settings  # the gate holds


def test_a_base_that_is_better_is_the_model_to_share(plain: Facts) -> None:
    worse = with_perplexity(plain, after=9.5)
    assert advice_for(plain).next == "decide"
    assert not advice_for(plain).base_is_better
    assert (advice_for(worse).next, advice_for(worse).base_is_better) == ("share_base", True)
    assert advice_for(worse, LEAKS).next == "settings"
    assert advice_for(worse, LEAKS).base_is_better


# ---- other causes, and doubt -----------------------------------------------------------------


def test_causes_are_named_where_their_figures_say_so(plain: Facts) -> None:
    scan: ScanRecord = replace(plain.scan, unmarked=3)
    assert "missed_identifiers" in advice_for(plain, LEAKS, scan=scan).causes
    assert "missed_identifiers" not in advice_for(plain, LEAKS).causes
    assert "base_knows" in advice_for(with_tests(plain, without_control=2), LEAKS).causes
    assert "rounding" in advice_for(plain, LEAKS, is_rounded=True).causes
    assert "rounding" in advice_for(plain, broken("attack.quantize.greedy")).causes
    assert "rounding" not in advice_for(plain, LEAKS).causes


def test_cued_text_is_named_where_it_matters(plain: Facts) -> None:
    after = plain.audits["after"]
    few = Rate(hits=0, trials=3, value=0.0, low=0.0, high=0.6)
    uncued = replace(after.figures["direct:uncued"], greedy=few)
    figures = {**after.figures, "direct:uncued": uncued}
    facts = replace(plain, audits={**plain.audits, "after": replace(after, figures=figures)})
    missing = broken("greedy_beyond_control.direct", None, None)
    assert "cued_text" in advice_for(facts, missing).causes
    assert "cued_text" in advice_for(facts, broken("greedy.direct", 0.5, 0.1)).causes
    assert "cued_text" not in advice_for(facts, LEAKS).causes
    assert "cued_text" not in advice_for(plain, missing).causes


def test_a_limit_that_holds_within_the_interval_is_not_settled(plain: Facts) -> None:
    holds = Check("auc_to_base.direct", 0.52, 0.55, True, "")
    wide = with_tests(plain, auc_to_base=Estimate(766, 0.52, 0.48, 0.56))
    narrow = with_tests(plain, auc_to_base=Estimate(766, 0.52, 0.50, 0.54))
    assert advice_for(wide, holds).unsettled == {"auc_to_base.direct": 766}
    assert advice_for(narrow, holds).unsettled == {}


def test_no_advice_touches_a_limit(plain: Facts) -> None:
    """Whatever failed, the settings of the gate and of the audit stay."""
    recipes = [
        recipe_of(erase=erase, repair=repair) for erase in (None, HALF) for repair in ({}, MASK)
    ]
    for recipe in recipes:
        for check in (LEAKS, broken("attack.relearn.greedy")):
            advice = advice_for(with_perplexity(plain, base=30.0), check, recipe=recipe)
            assert advice.settings
            assert not [s for s in advice.settings if s.key.startswith(("gate", "audit", "corpus"))]
