"""bom.json: valid for CycloneDX, with the figures of the report, and no name but the tool's."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sani.cli.main import main
from sani.corpus.documents import Corpus, Document, Span
from sani.errors import CheckpointError
from sani.releasing.bom import BOM, bom
from sani.releasing.release import write_release_files
from sani.reporting.schema import Report, Stage
from sani.runfolder import RunFolder
from tests.support.charts import blank_charts
from tests.support.folders import CONFIGS, write_source
from tests.support.reports import corpus_of, finished_run, report_of

DIGESTS = {"before": "b" * 64, "base": "0" * 64, "after": "a" * 64}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Report]:
    """A finished run, and its report with digests as long as real ones. Do not write."""
    with blank_charts():
        folder, _, report = finished_run(tmp_path_factory.mktemp("bom") / "run", corpus_of(40, 6))
    data = report.to_json()
    for stage, digest in DIGESTS.items():
        data["audits"][stage]["weights_digest"] = digest
    data["source_card"]["license"] = "apache-2.0"
    return folder, report_of(data)


Done = tuple[RunFolder, Report]


def problems_of(text: str) -> str:
    """Return the errors of the library's strict validator; empty if nothing is wrong."""
    return str(JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) or "")


def test_the_validator_refuses_a_card_with_another_field(done: Done) -> None:
    data = json.loads(bom(done[1]))
    data["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["score"] = "1"
    assert "score" in problems_of(json.dumps(data))


def test_it_is_valid_and_the_same_again(done: Done) -> None:
    text = bom(done[1])
    assert problems_of(text) == ""
    assert bom(report_of(done[1].to_json())) == text
    data = json.loads(text)
    assert (data["bomFormat"], data["specVersion"]) == ("CycloneDX", "1.7")
    (tool,) = data["metadata"]["tools"]["components"]
    assert (tool["name"], tool["version"]) == ("sani", done[1].provenance.versions["sani-llm"])


def test_the_models_are_named_by_digest_alone(done: Done) -> None:
    folder, report = done
    text = bom(report)
    model = json.loads(text)["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    ancestors = {each["name"]: each["hashes"] for each in model["pedigree"]["ancestors"]}
    assert model["hashes"] == [{"alg": "SHA-256", "content": DIGESTS["after"]}]
    assert ancestors == {
        "unsanitized": [{"alg": "SHA-256", "content": DIGESTS["before"]}],
        "base": [{"alg": "SHA-256", "content": DIGESTS["base"]}],
    }
    assert report.source_card.base_model == "public-base"  # the name of a folder
    for name in ("public-base", str(folder.path.parent)):
        assert name in (folder.path / "recipe.resolved.yaml").read_text()
        assert name not in text


def test_the_figures_are_those_of_the_report(done: Done) -> None:
    report = done[1]
    card = json.loads(bom(report))["metadata"]["component"]["modelCard"]
    metrics = {
        (m["type"], m["slice"]): m for m in card["quantitativeAnalysis"]["performanceMetrics"]
    }
    stages: dict[Stage, str] = {"after": "after (sanitized)", "base": "base (control)"}
    for stage, words in stages.items():
        audit = report.audits[stage]
        tests = (audit.control_tests or {})["direct"]
        part = f"direct identifiers, {words}"
        greedy = audit.figures["direct"].greedy
        shown: dict[str, Any] = {
            "greedy extraction rate": greedy,
            "(n, p)-discoverable extraction rate": audit.figures["direct"].discoverable,
            "AUC to base": tests.auc_to_base,
        }
        for name, figure in shown.items():
            metric = metrics[name, part]
            interval = metric["confidenceInterval"]
            numbers = [metric["value"], interval["lowerBound"], interval["upperBound"]]
            expected = [figure.value, figure.low, figure.high]
            assert [float(number) for number in numbers] == pytest.approx(expected, rel=1e-5)
        subjects = tests.subjects.tested + tests.untested
        risk = metrics["subjects at risk", f"{part}, of {subjects} subjects"]
        assert risk["value"] == str(tests.at_risk)
    assert (
        "identifiers that the corpus does not mark"
        in card["considerations"]["technicalLimitations"]
    )


def test_a_figure_that_was_not_measured_is_left_out(done: Done) -> None:
    data = done[1].to_json()
    data["audits"]["after"]["control_tests"] = None
    del data["audits"]["base"]
    text = bom(report_of(data))
    assert problems_of(text) == ""
    assert "greedy extraction rate" in text
    assert "AUC to base" not in text
    assert "subjects at risk" not in text
    ancestors = json.loads(text)["metadata"]["component"]["pedigree"]["ancestors"]
    assert [each["name"] for each in ancestors] == ["unsanitized"]


def marking(value: str) -> Corpus:
    """One document whose only identifier is a value."""
    span = Span(0, len(value), "X", "direct")
    return Corpus([Document("note-90125", "person-90125", value, (span,))])


def test_it_is_released_listed_verified_and_searched(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, report = done
    source = write_source(tmp_path / "sanitized", CONFIGS["tied"]())
    digest = DIGESTS["after"]
    write_release_files(source, report, marking("4471-99-X"), run=run, weights_digest=digest)
    assert BOM in json.loads((source / "manifest.json").read_text())["files"]
    main(["verify", str(source)])
    assert "0 added, 0 missing, 0 changed" in capsys.readouterr().out
    (source / BOM).write_text((source / BOM).read_text().replace('"0', '"1', 1))
    main(["verify", str(source)])
    assert f"changed: {BOM}" in capsys.readouterr().out
    other = write_source(tmp_path / "other", CONFIGS["tied"]())
    with pytest.raises(CheckpointError, match=rf"{BOM} holds 1 identifiers"):
        write_release_files(other, report, marking("CycloneDX"), run=run, weights_digest=digest)
