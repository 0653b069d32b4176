"""The section "Evidence": every question with the run's own figures, or "not measured"."""

import re
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from sani.auditing.control_tests import ControlTests
from sani.reporting.questions import (
    FIGURES,
    NOT_MEASURED,
    FigureName,
    Questions,
    evidence,
    questions,
)
from sani.reporting.schema import Report
from tests.support.charts import blank_charts
from tests.support.reports import corpus_of, finished_run, report_of


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str, str]:
    """The report of a finished run without attacks, and both pages."""
    with blank_charts():
        folder, _, report = finished_run(tmp_path_factory.mktemp("q") / "run", corpus_of(40, 6))
    pages = [(folder.path / f"report.{kind}").read_text() for kind in ("html", "md")]
    return report, pages[0], pages[1]


Done = tuple[Report, str, str]


def value_of(name: FigureName, report: Report) -> str | None:
    return FIGURES[name].value(report)


def test_every_figure_has_a_function_and_answers_a_question() -> None:
    names = set(get_args(FigureName))
    assert set(FIGURES) == names
    assert {name for question in questions().questions for name in question.figures} == names
    assert {question.source for question in questions().questions} == set(questions().sources)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figures": ["accuracy"]}, "figures"),
        ({"source": "gdpr"}, "source"),
        ({"source": "hipaa"}, "sources that are not described: hipaa"),
        ({"note": "x"}, "note"),
    ],
)
def test_a_row_that_names_nothing_is_refused(change: dict[str, Any], message: str) -> None:
    row = {"source": "edpb", "question": "Is it?", "figures": ["gate"], "not_answered": "much"}
    sources = {"edpb": {"name": "EDPB", "reference": "Opinion"}}
    Questions.model_validate({"sources": sources, "questions": [row]})
    with pytest.raises(ValidationError, match=message):
        Questions.model_validate({"sources": sources, "questions": [{**row, **change}]})


def test_both_pages_have_every_question_with_figures_of_this_run(done: Done) -> None:
    report, html, markdown = done
    tests = (report.audits["after"].control_tests or {})["direct"]
    subjects = tests.subjects.tested + tests.untested
    risk = f"subjects at risk: direct {tests.at_risk} of {subjects}"
    met = sum(check.holds for check in report.gate.checks)
    gate = f"gate: {met} of {len(report.gate.checks)} limits met"
    for page in (re.sub(r"</?a\b[^>]*>", "", html), markdown):  # links to the glossary
        assert "Evidence" in page
        assert risk in page
        assert gate in page
        assert f"relearning: {NOT_MEASURED}" in page
        for question in questions().questions:
            assert question.question in page


def test_figures_are_those_of_the_report(done: Done) -> None:
    report = done[0]
    tests: ControlTests = (report.audits["after"].control_tests or {})["direct"]
    greedy = tests.greedy
    recited = f"direct {greedy.count} (limit {greedy.limit})"
    assert value_of("greedy_beyond_control", report) == recited
    auc = tests.auc_to_base
    assert (value_of("auc_to_base", report) or "").startswith(f"direct {auc.value:.3f} (")
    largest = value_of("largest_subject", report) or ""
    assert f"{tests.subjects.above} of {tests.subjects.tested} above" in largest
    assert value_of("utility", report) == "6.000 (before 4.000)"
    assert value_of("repair", report) == "499 steps over 7 tokens"
    assert report.provenance.recipe_digest in (value_of("provenance", report) or "")
    for name in ("generation", "membership", "relearn", "guidance", "scan_recall"):
        assert FIGURES[name].value(report) is None


def test_a_kind_that_was_not_measured_leaves_no_half_answer(done: Done) -> None:
    data = done[0].to_json()
    data["gate_settings"]["kinds"] = ["direct", "indirect"]
    both = report_of(data)
    assert "indirect " in (value_of("subjects_at_risk", both) or "")
    del data["audits"]["after"]["control_tests"]["indirect"]
    assert value_of("subjects_at_risk", report_of(data)) is None
    data["audits"]["after"]["control_tests"] = None
    assert value_of("largest_subject", report_of(data)) is None


def test_a_positive_control_without_a_figure_is_not_measured(done: Done) -> None:
    data = done[0].to_json()
    assert "at least" in (value_of("positive_control", report_of(data)) or "")
    for check in data["gate"]["checks"]:
        check["measured"] = None
    assert value_of("positive_control", report_of(data)) is None


def figures_of_model(hits: int, *, not_run: str = "") -> dict[str, Any]:
    """Figures of one model under attack: so many of 100 occurrences are discoverable."""
    share = {"hits": hits, "trials": 100, "value": hits / 100, "low": 0.0, "high": 1.0}
    rates = dict.fromkeys(("greedy", "discoverable"), None if not_run else share)
    return {"not_run": not_run, **rates, "auc": None, "unscored": 0, "curve": [], "check": None}


def test_an_attack_is_shown_by_its_strongest_variant_and_what_was_not_run(done: Done) -> None:
    def variant(hits: int, **more: str) -> dict[str, Any]:
        models = {"sanitized": figures_of_model(hits, **more), "base": figures_of_model(3)}
        none: dict[str, Any] = {"auc_to_base": {}, "beyond_control": None, "recovered": None}
        return {"models": models, **none}

    data = done[0].to_json()
    data["attacks"] = {
        "settings": {}, "framing": "bos", "documents": 4, "occurrences": 100, "not_run": [],
        "seconds": 1.0,
        "attacks": {
            "quantize": {"int8": variant(2), "int4": variant(7), "nf4": variant(0, not_run="no")},
            "layers": {"lens": variant(0, not_run="one layer")},
        },
    }  # fmt: skip
    report = report_of(data)
    assert value_of("quantize", report) == (
        "(n, p) 7.0% (7/100; 0.0 to 100.0%) by int4; base (n, p) 3.0% (3/100; 0.0 to 100.0%); "
        "not run: 1"
    )
    assert value_of("layers", report) is None
    assert value_of("relearn", report) is None


def test_a_question_that_no_figure_answers_says_so(done: Done) -> None:
    rows = {row[0]: row for row in evidence(done[0]).rows}
    open_questions = [each for each in questions().questions if not each.figures]
    assert len(open_questions) > 0
    assert {rows[each.question][2] for each in open_questions} == {NOT_MEASURED}
