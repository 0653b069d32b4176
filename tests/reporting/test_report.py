"""The report: from a run folder to every format, for hostile labels and for large runs too."""

import hashlib
import json
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from huggingface_hub import ModelCard

from sani import run
from sani.auditing.occurrences import Occurrences
from sani.cli.main import main
from sani.corpus.documents import Corpus
from sani.corpus.tables import write_jsonl
from sani.errors import CheckpointError
from sani.recipe import Recipe
from sani.reporting import sentences
from sani.reporting.by_subject import BINS, against_control, by_subject
from sani.reporting.card import model_card, read_source_card
from sani.reporting.junit import junit
from sani.reporting.page import render
from sani.reporting.process import cost
from sani.reporting.report import build_report, write_report
from sani.reporting.schema import SCHEMA_FILE, SCHEMA_VERSION, SourceCard, json_schema
from sani.reporting.stored_report import read_report
from sani.runfolder import DIGESTS, RunFolder
from tests.support.charts import blank_charts
from tests.support.clinic import Clinic
from tests.support.optional import present
from tests.support.reports import (
    HOSTILE,
    at_risk_of,
    checks_of,
    corpus_of,
    entry,
    finished_run,
    report_of,
    verdicts_of,
)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Corpus, dict[str, Any]]:
    """A finished run with hostile labels. Do not write."""
    corpus = corpus_of(40, 6)
    folder, _, report = finished_run(tmp_path_factory.mktemp("report") / "run", corpus)
    return folder, corpus, report.to_json()


@pytest.fixture
def blank() -> Iterator[None]:
    """Draw blank charts in the reports that this test makes."""
    with blank_charts():
        yield


Done = tuple[RunFolder, Corpus, dict[str, Any]]


@pytest.fixture
def copy(done: Done, tmp_path: Path) -> Path:
    """That run, to be changed."""
    shutil.copytree(done[0].path, tmp_path / "run")
    return tmp_path / "run"


def with_a_gate_that_holds(folder: Path) -> Any:
    """Change the report of a run as if every limit were met, and return it."""
    report = json.loads((folder / "report.json").read_text())
    report["gate"]["holds"] = True
    for check in report["gate"]["checks"]:
        if not check["holds"]:
            check |= {"holds": True, "measured": check["limit"] or 0.0}
            check["limit"] = check["measured"]
    (folder / "report.json").write_text(json.dumps(report))
    return report


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


# The page.


def test_the_page_is_one_file_that_asks_for_nothing(done: Done) -> None:
    text = (done[0].path / "report.html").read_text()
    page = Page(text)
    for tag in ("script", "link", "img", "iframe", "object", "form", "video"):
        assert page.all(tag) == []
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value is not None
                assert value.startswith("#")
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")


def test_no_place_on_this_machine_is_told(done: Done) -> None:
    folder, _, report = done
    place = str(folder.path.parent)
    assert place in (folder.path / "recipe.resolved.yaml").read_text()
    for name in ("report.html", "report.md", "report.json", "junit.xml", "report.sarif"):
        assert place not in (folder.path / name).read_text()
    model = report["recipe"]["model"]
    assert model == {"path": "(a path)", "base": "(a path)", "unsanitized": None}


def test_a_hostile_label_stays_text_in_every_format(done: Done) -> None:
    folder, _, report = done
    assert HOSTILE in report["scan"]["labels"]
    page = Page((folder.path / "report.html").read_text())
    assert sum(HOSTILE in text for text in page.texts) >= 3  # tables and charts
    assert page.all("script") == []
    for name in ("report.md.jinja", "card.md.jinja"):
        assert "<script" not in render(report_of(report), name)
    ElementTree.fromstring(junit(report_of(report)))


def test_ids_are_unique_and_every_reference_has_its_target(done: Done) -> None:
    page = Page((done[0].path / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name == "href":
                assert value is not None
                assert value[1:] in ids
            if name in ("aria-labelledby", "clip-path"):
                assert value is not None
                assert value.removeprefix("url(#").removesuffix(")") in ids


def test_every_chart_is_named_and_has_a_table_and_the_themes_colours(done: Done) -> None:
    text = (done[0].path / "report.html").read_text()
    page = Page(text)
    charts = page.all("svg")
    assert len(charts) == 7
    assert all(chart["role"] == "img" and chart["aria-labelledby"] for chart in charts)
    for section in text.split("<section ")[1:]:
        if "<svg" in section:
            assert "<table" in section
    for drawing in text.split("<svg")[1:]:
        drawing = drawing.split("</svg>")[0]
        assert "var(--" in drawing
        assert "#1b1b1f" not in drawing  # ink that would vanish in the dark
    assert all("scope" in cell for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert [tag for tag, _ in page.tags if tag == "h1"] == ["h1"]


def test_the_first_screen_says_what_decides_before_anything_else(done: Done) -> None:
    folder, _, report = done
    text = (folder.path / "report.html").read_text()
    order = [
        text.index(part)
        for part in ("does not hold.", "Before, after, and the control", "What was not tested",
                     "no attack was run", "Limits of the gate", "Threat model")
    ]  # fmt: skip
    assert not report["gate"]["holds"]
    assert order == sorted(order)
    greedy = report["audits"]["after"]["figures"]["direct"]["greedy"]
    assert f"({greedy['hits']}/{greedy['trials']};" in text


def test_it_never_calls_anything_anonymous_or_compliant(done: Done) -> None:
    folder, _, report = done
    for text in (*((folder.path / f"report.{kind}").read_text() for kind in ("html", "md")),
                 model_card(report_of(report))):  # fmt: skip
        for word in ("anonymous", "anonymised", "anonymized", "compliant", "compliance"):
            assert word not in text.casefold()
    assert "evidence for" in (folder.path / "report.html").read_text()


def test_the_same_report_gives_the_same_bytes(done: Done, tmp_path: Path) -> None:
    folder, _, report = done
    write_report(tmp_path, report_of(report))
    for name in ("report.html", "report.md", "report.json", "junit.xml", "report.sarif"):
        assert (tmp_path / name).read_bytes() == (folder.path / name).read_bytes()


# report.json, report.md, junit.xml.


def test_the_shipped_schema_is_that_of_the_code() -> None:
    shipped = json.loads(SCHEMA_FILE.read_text())
    assert shipped == json_schema(), "run python -m sani.reporting.schema"
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_the_report_fits_the_shipped_schema(done: Done) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    validator.validate(json.loads((done[0].path / "report.json").read_text()))


@pytest.mark.parametrize(
    "path",
    [(), ("gate",), ("gate", "checks", 0), ("audits", "after"), ("audits", "after", "figures",
     "direct", "greedy"), ("subjects", "kinds", "direct", "worst", 0), ("provenance",), ("erase",)],
)  # fmt: skip
def test_the_schema_refuses_an_unknown_field_and_a_missing_one(
    done: Done, path: tuple[str | int, ...]
) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    report: Any = json.loads(json.dumps(done[2]))
    inner = report
    for name in path:
        inner = inner[name]
    name, value = inner.popitem()
    assert not validator.is_valid(report) or name == "at_least"  # the one field with a default
    inner[name] = value
    assert validator.is_valid(report)
    inner["value_in_clear"] = "x"
    assert not validator.is_valid(report)


def test_markdown_fits_a_comment_and_its_tables_are_whole(done: Done) -> None:
    text = (done[0].path / "report.md").read_text()
    assert len(text) < 12_000
    assert "DOES NOT HOLD" in text.splitlines()[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    for above, below in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if above.startswith("|") and below.startswith("|"):
            assert above.replace("|---", "| ").count("|") == below.replace("|---", "| ").count("|")


def test_junit_has_a_case_for_each_limit_and_a_failure_for_each_broken_one(done: Done) -> None:
    suite = ElementTree.parse(done[0].path / "junit.xml").getroot()
    checks = done[2]["gate"]["checks"]
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [check["name"] for check in checks]
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert failed == [check["name"] for check in checks if not check["holds"]]
    assert failed
    assert suite.get("failures") == str(len(failed))


# What is counted.


def test_subjects_are_counted_as_one_by_one() -> None:
    corpus = corpus_of(30, 7)
    verdicts: dict[Any, Occurrences] = {
        "before": verdicts_of(corpus, memory=0.9, seed=1),
        "after": verdicts_of(corpus, memory=0.2, seed=2),
    }
    verdicts["after"].reason[::5] = "lost"
    digest = hashlib.sha256
    subjects = by_subject(verdicts, corpus, lambda text: digest(text.encode()).hexdigest())
    found = subjects.model_dump(mode="json")
    limits = {"none": 0, "1": 1, "2": 2, "3 to 5": 5, "6 to 10": 10, "more": 10**9}
    for kind in ("direct", "indirect"):
        for stage, verdict in verdicts.items():
            given: dict[str, int] = {}
            for i in range(corpus.num_spans):
                document = corpus[int(verdict.document[i])]
                if document.spans[int(verdict.span[i])].kind == kind:
                    leaks = verdict.scored[i] and (verdict.greedy[i] or verdict.discoverable[i])
                    given[document.subject_id] = given.get(document.subject_id, 0) + bool(leaks)
            classes = [
                next(name for name, most in limits.items() if count <= most)
                for count in given.values()
            ]
            expected = [classes.count(name) for name in limits]
            assert found["kinds"][kind]["distribution"][stage] == expected
            if stage == "after":
                worst = [row["extractable"]["after"] for row in found["kinds"][kind]["worst"]]
                assert worst == sorted(given.values(), reverse=True)[:10]
                assert "subject-" not in json.dumps(found)


def test_the_scatter_has_every_occurrence_once_and_knows_above_from_below() -> None:
    corpus = corpus_of(30, 7)
    base = verdicts_of(corpus, memory=0.0, seed=1)
    louder = replace(base, log_probability=np.minimum(base.log_probability + 6.0, 0.0))
    scatter = against_control({"base": base, "before": louder, "after": base}, corpus)
    found = scatter.model_dump(mode="json")
    assert found["against"] == "base"
    total = 0
    for stages in found["kinds"].values():
        assert set(stages) == {"before", "after"}
        for stage, part in stages.items():
            cells = np.array(part["cells"])
            assert cells[:, 2].sum() == part["occurrences"]
            assert cells[:, :2].min() >= 0
            assert cells[:, :2].max() < BINS
            if stage == "after":
                assert (cells[:, 0] == cells[:, 1]).all()
                assert part["above"] == part["below"] == 0
                total += part["occurrences"]
            else:
                assert (cells[:, 1] >= cells[:, 0]).all()
                assert part["above"] > 0
                assert part["below"] == 0
    assert total == corpus.num_spans


def test_without_a_base_the_scatter_is_against_the_unsanitized_checkpoint() -> None:
    corpus = corpus_of(4, 3)
    verdicts: dict[Any, Occurrences] = {
        stage: verdicts_of(corpus, memory=0.5, seed=3) for stage in ("before", "after")
    }
    found = against_control(verdicts, corpus).model_dump(mode="json")
    assert found["against"] == "before"
    assert set(found["kinds"]["direct"]) == {"after"}


def test_the_erase_map_and_the_curve_are_the_means_of_what_they_stand_for(done: Done) -> None:
    report = done[2]
    first = report["erase"]["plan"]["entries"][0]
    assert (first["neurons"], first["total"]) == (100, 256)
    assert first["map"] == [1.0] * 25 + [0.0] * 39  # 64 stretches of 4 neurons
    assert report["erase"]["plan"]["entries"][2]["map"] == [1.0, 0.0, 0.0, 1.0]
    curve = report["repair"]["curve"]
    assert len(curve) <= 200
    assert curve[0]["step"] == 2.0  # the mean of steps 1 to 3
    assert curve[0]["ordinary"] == pytest.approx((3 / 1 + 3 / 2 + 3 / 3) / 3)


# What it cost.


def test_what_a_repair_noted_stands_in_the_page(done: Done) -> None:
    text = (done[0].path / "report.html").read_text()
    assert "Note: rounding left 48% of what the repair moved." in text


def test_the_cost_of_all_stages_is_the_sum_of_their_seconds(done: Done) -> None:
    assert float(cost(report_of(done[2])).rows[-1][1]) == 4 * 2.0 + 0.5 + 1.0


# The model card.


def card_folder(folder: Path, front: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    return folder


def test_the_card_is_read_by_the_hubs_own_classes_and_has_the_audits_figures(done: Done) -> None:
    report = json.loads(json.dumps(done[2]))
    report["source_card"] |= {"license": "apache-2.0", "base_model": "org/public"}
    card = ModelCard(model_card(report_of(report)))
    data: Any = card.data
    assert data.base_model == "org/public"
    assert data.license == "apache-2.0"
    assert data.eval_results is not None
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    for kind in ("direct", "indirect"):
        figures = report["audits"]["after"]["figures"][kind]
        for figure in ("greedy", "discoverable", "auc"):
            assert values[f"{figure}_{kind}"] == pytest.approx(figures[figure]["value"], abs=1e-5)
    assert values["perplexity"] == report["audits"]["after"]["utility"]["perplexity"] == 6.0
    for heading in ("Intended use", "What was removed, and how", "Limits"):
        assert f"## {heading}" in card.text
    assert "DOES NOT HOLD" in card.text
    assert "never be released" in card.text


def test_the_card_says_what_was_erased(done: Done) -> None:
    report = json.loads(json.dumps(done[2]))
    assert "parameters changed (neurons reset: all, reinit)" in model_card(report_of(report))
    report["erase"]["plan"] |= {"interpolate_to_base": 0.5}
    both = "(all weights set 50 % of the way to the base's; neurons reset: all, reinit)"
    assert both in model_card(report_of(report))
    report["erase"]["plan"]["entries"] = []
    assert "parameters changed (all weights set 50 % of the way to the base's)." in model_card(
        report_of(report)
    )


def test_licence_and_base_are_carried_over_from_the_cards_at_hand(tmp_path: Path) -> None:
    model = card_folder(tmp_path / "model", "base_model: org/public\nlanguage: es")
    base = card_folder(
        tmp_path / "base", "license: other\nlicense_name: ours\nlicense_link: LICENSE"
    )
    assert read_source_card(model, base, corpus_of(1, 1)) == SourceCard(
        base_model="org/public", license="other", license_name="ours", license_link="LICENSE",
        language=["es"],
    )  # fmt: skip
    broken = card_folder(tmp_path / "broken", "license: [x\n: :")
    card = read_source_card(broken, tmp_path / "nowhere", corpus_of(1, 1))
    assert card.license is None
    assert card.base_model == "nowhere"
    assert read_source_card(broken, None, corpus_of(1, 1)).base_model is None


FIELDS = {
    "base_model": "base_model: org/{}",
    "license_name": "license: other\nlicense_name: for {}",
    "license_link": "license: other\nlicense_link: https://example.org/{}",
    "language": "language: [es, {}]",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_card_that_names_a_patient_is_not_copied_into_a_report(
    tmp_path: Path, field: str
) -> None:
    corpus = corpus_of(2, 2)
    secret = corpus[1].value(corpus[1].spans[0])
    harmless = card_folder(tmp_path / "harmless", FIELDS[field].format("apache"))
    assert "apache" in str(read_source_card(harmless, None, corpus))
    guilty = card_folder(tmp_path / "guilty", FIELDS[field].format(secret))
    for model, base in ((guilty, None), (tmp_path / "none", guilty)):
        if base is not None and not field.startswith("license"):
            continue  # of the base's card only the licence is read
        with pytest.raises(CheckpointError, match="holds 1 identifiers or ids of the corpus") as e:
            read_source_card(model, base, corpus)
        assert secret not in str(e.value)


def test_the_name_of_the_bases_folder_is_looked_at_too(tmp_path: Path) -> None:
    corpus = corpus_of(2, 2)
    secret = corpus[1].value(corpus[1].spans[0])
    with pytest.raises(CheckpointError, match="holds 1 identifiers"):
        read_source_card(tmp_path / "model", tmp_path / f"base of {secret}", corpus)


def test_a_card_of_lists_without_end_is_read_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    folder = card_folder(tmp_path / "bomb", "\n".join([*lines, "language: [es, *a8]"]))
    began = time.monotonic()
    assert read_source_card(folder, None, corpus_of(1, 1)).language == ["es"]
    assert time.monotonic() - began < 5


# sani report.


def test_report_renders_again_and_tells_the_gate_by_its_exit_code(
    done: Done, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("report.html", "report.md", "junit.xml", "report.sarif"):
        (copy / name).unlink()
    assert main(["report", str(copy)]) == 3
    shown = capsys.readouterr().out
    assert "DOES NOT HOLD" in shown
    assert "Before, after, and the control" in shown
    for name in ("report.html", "report.md", "report.json", "junit.xml", "report.sarif"):
        assert (copy / name).read_bytes() == (done[0].path / name).read_bytes()
    assert not (copy / "private" / "revealed.jsonl").exists()
    holds = with_a_gate_that_holds(copy)
    with blank_charts():
        assert main(["report", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == holds


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "holds no report.json; finish the run with --resume"),
        ("[]", "cannot be read as JSON"),
        ('{"schema_version": 1}', f"has schema_version 1, this sani reads {SCHEMA_VERSION}"),
        (f'{{"schema_version": {SCHEMA_VERSION}}}', "fields do not fit the schema"),
    ],
)
def test_a_report_that_is_not_of_this_shape_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    (tmp_path / "recipe.resolved.yaml").touch()
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert sentence in capsys.readouterr().err


def test_two_runs_stand_side_by_side(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    report = with_a_gate_that_holds(other)
    report["recipe"]["repair"]["epochs"] = 9
    (other / "report.json").write_text(json.dumps(report))
    shutil.copyfile(copy / "private" / "audit-base.npz", other / "private" / "audit-after.npz")
    kept = json.loads((other / "private" / DIGESTS).read_text())
    kept["audit-after.npz"] = kept["audit-base.npz"]
    (other / "private" / DIGESTS).write_text(json.dumps(kept))
    assert main(["report", "--compare", str(copy), str(other), "--json"]) == 0
    figures, occurrences, differ = json.loads(capsys.readouterr().out)
    assert differ["rows"] == [["repair.epochs", "4", "9"]]
    assert figures["rows"][0] == ["gate", "DOES NOT HOLD", "holds"]
    assert "Both read the same corpus." in figures["sentences"]
    ((only_first, both, only_second, _),) = occurrences["rows"]
    assert int(only_first) > 0
    assert int(both) + int(only_second) > 0
    (other / "private" / "inputs.json").write_text('{"corpus": "another"}')
    assert main(["report", "--compare", str(copy), str(other)]) == 0
    shown = capsys.readouterr().out
    assert "THE CORPORA DIFFER" in shown
    assert "only A gives" not in shown


@pytest.mark.parametrize(
    "arguments", [["--compare", "a"], ["a", "b"], ["--compare", "a", "b", "--reveal"]]
)
def test_a_wrong_number_of_runs_is_wrong_usage(arguments: list[str]) -> None:
    assert main(["report", *arguments]) == 2


def test_clear_values_go_into_private_with_mode_0600_and_nowhere_else(
    done: Done, copy: Path, blank: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _, corpus, report = done
    assert main(["report", str(copy)]) == 3
    capsys.readouterr()
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["report", str(copy), "--reveal"]) == 3
    place = copy / "private" / "revealed.jsonl"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {place}
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    changes = report["changes"]
    assert len(rows) == changes["kept"] + changes["new"]
    for row in rows:
        document = corpus[row["document"]]
        assert document.text[row["start"] : row["end"]] == row["value"]
        assert document.subject_id == row["subject_id"]
    named = {item["digest"]: item["document"] for item in changes["kept_listed"]}
    assert named.items() <= {row["digest"]: row["document"] for row in rows}.items()
    worst = {row["digest"] for part in report["subjects"]["kinds"].values() for row in part["worst"]
             if row["extractable"]["after"]}  # fmt: skip
    assert worst <= {row["subject"] for row in rows}
    shown = capsys.readouterr()
    values = {document.value(span) for document in corpus for span in document.spans}
    ids = {name for document in corpus for name in (document.id, document.subject_id)}
    public = [path.read_text() for path in after if "private" not in path.relative_to(copy).parts]
    for text in (shown.out, shown.err, *public):
        assert not [secret for secret in values | ids if secret in text]


def test_values_are_not_revealed_of_another_corpus(
    copy: Path, done: Done, blank: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copy / "recipe.resolved.yaml"
    write_jsonl(Corpus(done[1][:-1]), tmp_path / "notes.jsonl")
    notes = done[0].path.parent / "notes.jsonl"
    recipe.write_text(recipe.read_text().replace(str(notes), str(tmp_path / "notes.jsonl")))
    assert main(["report", str(copy), "--reveal"]) == 1
    assert "start again in another --out" in capsys.readouterr().err
    assert not (copy / "private" / "revealed.jsonl").exists()
    shutil.rmtree(copy / "private")
    assert main(["report", str(copy), "--reveal"]) == 1
    assert "is not a finished run" in capsys.readouterr().err


@pytest.mark.long
def test_the_report_of_a_whole_run_with_everything_asked_for_fits_the_schema(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path: Path
) -> None:
    """Membership, samples, documents of the base, and the scan's recall included."""
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("public", "private", "held_out")}
    for name, path in paths.items():
        write_jsonl(getattr(clinic, name), path)
    samples = {"empty": 8, "headings": 8, "openings": 8, "new_tokens": 32}
    recipe = Recipe.model_validate_json(
        json.dumps(
            {
                "version": 2,
                "model": {"path": str(leaky_folder), "base": str(base_folder)},
                "corpus": {"path": str(paths["private"]), "held_out": str(paths["held_out"]),
                           "pretraining": str(paths["public"])},
                "scan": {"patterns": True, "gold": str(paths["held_out"])},
                "audit": {"decoys": 2, "swaps": 1, "generation": samples, "framing": "bos",
                          "unlearning_depth": True, "depth_occurrences": 20},
                "erase": {"last_layers": 1, "selector": {"kind": "all"}, "reset": "reinit"},
                "repair": {"epochs": 1, "batch_tokens": 768},
            }
        )
    )  # fmt: skip
    report = run(recipe, tmp_path / "run").report
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(json.loads((tmp_path / "run" / "report.json").read_text()))
    assert report.scan.quality
    after, erased = report.audits["after"], report.audits["erased"]
    assert after.membership
    assert after.generation
    assert after.generation.beyond
    tests = present(after.control_tests)["direct"]
    assert present(tests.sampled).samples == 24
    assert "sampled_beyond_control.direct" in {check.name for check in report.gate.checks}
    assert "Written by itself (direct): " in sentences.verdict(report)
    shown = render(report, "report.md.jinja") + (tmp_path / "run" / "report.html").read_text()
    assert "direct: written by itself beyond control" in shown
    depth = present(report.unlearning_depth)
    assert depth.occurrences == 20
    assert len(depth.layers) == 3
    assert sentences.depth_in_words(depth) in re.sub(r"</?a\b[^>]*>", "", shown)
    assert report.pretraining.changes["after"]
    assert erased.membership is None  # nothing is decided of it, and the figures that decide
    assert erased.generation is None
    assert erased.figures["direct"].association.trials == 0
    assert erased.figures["direct"].auc.trials > 0
    assert main(["report", str(tmp_path / "run"), str(tmp_path / "run"), "--compare"]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    titles = ("Membership", "Recited when left to write", "What the base may have seen")
    for title in titles:
        assert f"{title}: table" in text
    assert "Estimated recall of the scan: unknown" not in text
    assert read_report(tmp_path / "run") == report


@pytest.mark.long
@pytest.mark.timeout(1800)  # four minutes on two idle cores
def test_a_hundred_thousand_occurrences_fit_a_page(tmp_path: Path) -> None:
    corpus = corpus_of(10_000, 10)
    assert corpus.num_spans == 100_000
    chance = np.random.default_rng(0)
    half = [
        entry(layer, "mlp", sorted(chance.choice(11008, 5504, replace=False).tolist()), 11008)
        for layer in range(80)
    ]
    heads = [entry(layer, "attention", range(0, 64, 2), 64) for layer in range(80)]
    folder, recipe, report = finished_run(tmp_path / "run", corpus, entries=[*half, *heads])
    started = time.perf_counter()
    checks = checks_of(folder, recipe)
    again = build_report(folder, recipe, corpus, checks, at_risk_of(folder, recipe, corpus))
    built = time.perf_counter()
    write_report(folder.path, again)
    wrote = time.perf_counter()
    assert again == report
    size = (folder.path / "report.html").stat().st_size
    print(f"built in {built - started:.1f} s, written in {wrote - built:.1f} s, {size} bytes")
    assert size < 2_000_000
    assert len((folder.path / "report.md").read_text()) < 20_000
    for part in again.subjects.kinds.values():
        assert sum(part.distribution["after"]) == 5_000
    assert checks[0] == again.gate.checks[0]
