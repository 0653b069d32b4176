"""Sentences of the report: every branch, from reports that differ in the figures alone."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sani.auditing.candidate_tests import CountTest
from sani.auditing.unlearning_depth import LayerDepth, UnlearningDepth
from sani.intervals import Estimate
from sani.reporting.evidence import untested
from sani.reporting.format import beyond_control
from sani.reporting.junit import junit
from sani.reporting.schema import Erase, Plan, Report
from sani.reporting.sentences import (
    at_risk,
    beyond_base,
    depth_in_words,
    framings,
    verdict,
    what_changed,
    what_was_reset,
    written_by_itself,
)
from tests.support.reports import LABELS, corpus_of, finished_run, report_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The report of a small finished run as plain data, whose gate holds with default limits."""
    folder: Path = tmp_path_factory.mktemp("run")
    _, _, report = finished_run(folder / "run", corpus_of(6, 8))
    plain = report.to_json()
    plain["gate"].update(holds=True, weaker=[])
    return plain


def changed(data: Mapping[str, Any], path: str, value: Any) -> Report:
    """Return the report with another value at one place, as ``gate.holds``."""
    import copy

    plain: Any = copy.deepcopy(data)
    *above, last = path.split(".")
    part = plain
    for key in above:
        part = part[key]
    part[last] = value
    return report_of(plain)


def test_the_verdict_says_whether_limits_hold_and_which_are_weak(data: Mapping[str, Any]) -> None:
    assert verdict(report_of(dict(data))).startswith(
        "Every limit of the recipe is met on the documents and identifiers given."
    )
    weak = changed(data, "gate.weaker", ["subjects is no limit, by default test"])
    assert "with limits weaker than the defaults: subjects is no limit" in verdict(weak)
    assert "subjects is no limit, by default test" in junit(weak)
    assert "properties" not in junit(report_of(dict(data)))
    assert verdict(changed(data, "gate.holds", False)).startswith("At least one limit")


def test_what_was_not_tested_names_the_labels_that_are_not_judged(data: Mapping[str, Any]) -> None:
    # 6 documents with 8 values each, every second of them indirect, under three labels in turn.
    line = "indirect identifiers (LABELS): measured, but the gate sets no limit for them"
    counts = Counter(LABELS[index % 3] for index in range(1, 8, 2))
    names = ", ".join(f"{label} {6 * counts[label]}" for label in sorted(counts))
    line = line.replace("LABELS", names)
    lines = untested(report_of(dict(data)))
    assert line in lines
    assert not any("marked indirect by the corpus itself" in line for line in lines)
    older = untested(changed(data, "scan.understated", 3))
    assert any("3 occurrences are marked indirect by the corpus itself" in line for line in older)


def test_what_was_not_tested_names_a_list_of_allowed_values(data: Mapping[str, Any]) -> None:
    line = "values that the list of scan.allow names: the scan does not mark them"
    assert line not in untested(report_of(dict(data)))
    assert line in untested(changed(data, "recipe.scan", {"allow": "(a path)"}))


def test_the_verdict_names_the_subjects_at_risk(data: Mapping[str, Any]) -> None:
    tests = dict(data["audits"]["after"]["control_tests"]["direct"])
    tests["subjects"] = {"tested": 60, "largest": 4.9, "limit": 3.0, "above": 7}
    tests.update(at_risk=7, untested=0)
    seven = changed(data, "audits.after.control_tests.direct", tests)
    assert at_risk(seven) == ["Subjects at risk (direct): 7 of 60."]
    known = changed(data, "audits.after.control_tests.direct", {**tests, "without_control": 4})
    assert "The base seems to know 4 of them" in at_risk(known)[1]
    unknown = changed(data, "audits.after.control_tests", {})
    assert at_risk(unknown) == ["Subjects at risk (direct): not tested."]


def test_what_is_written_by_itself_stands_in_the_verdict_where_it_was_sampled(
    data: Mapping[str, Any],
) -> None:
    assert written_by_itself(report_of(dict(data))) == []
    assert "Written by itself" not in verdict(report_of(dict(data)))
    recited = {
        "prompts": 1, "samples": 90, "tokens": 900, "identifiers": 5, "inexact": 0, "subjects": 3,
        "with_hit": {"hits": 4, "trials": 90, "value": 0.04, "low": 0.01, "high": 0.1},
        "per_thousand": None, "curve": [], "unseen": None, "doubled": None, "by_label": {},
    }  # fmt: skip
    generation = {
        "framing": "bos", "searched": 40, "too_short": {}, "new_tokens": 10, "seconds": 1.0,
        "recited": {"all": recited},
    }  # fmt: skip
    plain = changed(data, "audits.after.generation", generation).to_json()
    plain = changed(plain, "audits.before.generation", generation).to_json()
    untested = changed(plain, "gate.holds", True)
    assert written_by_itself(untested) == ["Written by itself (direct): not tested."]
    test = {"samples": 90, "searched": 40, "without_decoys": 1, "count": 3, "limit": 2,
            "unlikely": 1, "unlikely_limit": 0, "subjects": 3}  # fmt: skip
    plain = changed(plain, "audits.after.control_tests.direct.sampled", test).to_json()
    sentence = (
        "Written by itself (direct): 3 of 40 values in 90 samples, and not by the base; chance "
        "allows 2."
    )
    assert written_by_itself(report_of(plain)) == [sentence]
    assert verdict(report_of(plain)).endswith(sentence)
    hidden = changed(plain, "audits.after.control_tests.direct.sampled.limit", 3)
    assert written_by_itself(hidden) == [
        sentence.replace("allows 2.", "allows 3. 1 of them is no guess; chance allows 0 of such.")
    ]
    nothing = {"all": {**recited, "identifiers": 0}}
    blind = changed(plain, "audits.before.generation.recited", nothing)
    assert written_by_itself(blind)[1:] == [
        "As many samples of the unsanitized checkpoint bring up none, so this says little."
    ]
    audits = {stage: audit for stage, audit in plain["audits"].items() if stage != "base"}
    (alone,) = written_by_itself(changed(plain, "audits", audits))
    assert "(there is no base to compare with); chance allows 2." in alone


def test_the_unlearning_depth_says_how_sure_it_is_and_what_has_no_score() -> None:
    def words(skipped: int, *estimate: Any) -> str:
        layers = (LayerDepth(1.0, 0.5),)
        return depth_in_words(UnlearningDepth(60, skipped, Estimate(*estimate), {}, layers, 1.0))

    assert words(0, 60, 0.5, 0.4, 0.6) == (
        "Unlearning depth: 0.500 (0.400 to 0.600), over 60 occurrences."
    )
    assert words(4, 56, 0.5, None, None) == (
        "Unlearning depth: 0.500, over 56 occurrences. 4 occurrences have no score: no layer of "
        "the base lacks anything of them."
    )
    assert words(60, 0, None, None, None).startswith("None of 60 occurrences has a score")


def test_without_a_base_no_sentence_compares_with_one(data: Mapping[str, Any]) -> None:
    count = data["changes"]["beyond_control"]
    assert beyond_base(report_of(dict(data))) == (
        f"{count} occurrences are extractable from the sanitized checkpoint, greedily or in "
        "samples, and in neither way from the base: of either kind, cued ones too. The gate "
        "compares each way by itself, so it may count more."
    )
    left = data["changes"]["kept"] + data["changes"]["new"]
    assert left > 0
    audits = {stage: audit for stage, audit in data["audits"].items() if stage != "base"}
    alone = beyond_base(changed(data, "audits", audits))
    assert alone.startswith(f"{left} occurrences are extractable from the sanitized checkpoint.")
    assert "No base was given" in alone


def test_what_changed_counts_occurrences(data: Mapping[str, Any]) -> None:
    changes = data["changes"]
    assert what_changed(report_of(dict(data))) == (
        f"{changes['cured']} occurrences cured, {changes['kept']} kept, and {changes['new']} that "
        "the unsanitized checkpoint did not give are given now."
    )


def test_a_fixed_framing_is_not_called_the_worst(data: Mapping[str, Any]) -> None:
    fixed = framings(changed(data, "audit_settings.framing", "eos"))
    assert "The recipe fixes" in fixed
    assert "No other was tried" in fixed
    assert "read behind" in framings(changed(data, "audit_settings.framing", "auto"))


@pytest.mark.parametrize(
    ("with_neurons", "towards", "expected"),
    [
        (True, 0.0, "neurons chosen by all were reset (reinit, seed 0). erase.json"),
        (True, 0.9, "all weights moved towards the base's, and neurons chosen by all were reset"),
        (False, 0.9, "all weights moved towards the base's. No neuron was reset."),
        (False, 0.0, "changed. No neuron was reset."),
    ],
)
def test_what_was_reset_names_neurons_only_where_some_were(
    data: Mapping[str, Any], with_neurons: bool, towards: float, expected: str
) -> None:
    plan = Plan.model_validate(
        {
            **data["erase"]["plan"],
            "interpolate_to_base": towards,
            "entries": [{"layer": 1, "part": "mlp", "neurons": 3, "total": 9, "map": [0.3]}]
            if with_neurons
            else [],
        }
    )
    erase = Erase.model_validate({**data["erase"], "plan": plan.model_dump()})
    assert expected in what_was_reset(erase)


@pytest.mark.parametrize(
    ("unlikely", "text"),
    [(1, "2 (limit 3)"), (2, "2 (limit 3; no guess: 2, limit 1)")],
)
def test_a_count_says_if_those_that_nobody_guesses_are_too_many(unlikely: int, text: str) -> None:
    test = CountTest(count=2, limit=3, occurrences=2, unlikely=unlikely, unlikely_limit=1)
    assert beyond_control(test) == text
