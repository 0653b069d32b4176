"""Inputs of public reports, read from where they lie beside the project, if they do."""

from pathlib import Path
from typing import Any

import pytest

from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.errors import CorpusError

INPUTS = Path(__file__).parents[3] / "shared" / "cases" / "inputs"


def shared(name: str) -> Path:
    if not (INPUTS / name).exists():
        pytest.skip(f"shared/cases/inputs/{name} is not beside the project")
    return INPUTS / name


def read(name: str) -> Corpus:
    path = shared(name)
    options: dict[str, Any] = {"format": "text"} if path.is_dir() else {}
    return read_corpus(path, **options)


@pytest.mark.parametrize(
    ("name", "documents", "spans"),
    [
        ("fhir-second-attachment.ndjson", 2, 0),
        ("fhir-wrapped-base64.ndjson", 1, 0),
        ("fhir-byte-order-mark.ndjson", 1, 0),
        ("text-mixed-suffixes", 2, 0),
        ("semicolons.csv", 1, 1),
        ("spans-under-label.jsonl", 1, 1),
        ("message-with-null-content.jsonl", 1, 1),
        ("text-utf-16", 1, 0),
        ("bundle.ndjson", 1, 0),
        ("bundle_pretty.ndjson", 1, 0),
        ("dates.jsonl", 56, 0),
        ("var.jsonl", 49, 51),
        ("wrap.jsonl", 25, 275),
    ],
)
def test_it_is_read_whole(name: str, documents: int, spans: int) -> None:
    corpus = read(name)
    assert (len(corpus), corpus.num_spans) == (documents, spans)
    assert not any("\0" in document.text or "\ufeff" in document.text for document in corpus)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("txt16le", "as UTF-16LE has them, without a byte order mark"),
        ("nul.jsonl", "'text' holds NUL characters"),
    ],
)
def test_it_is_refused_with_the_reason(name: str, problem: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read(name)
    assert problem in str(caught.value)


def test_the_separator_and_the_tool_calls_are_named() -> None:
    assert read("semicolons.csv").notes == (
        "its cells are separated by the semicolon, as its header shows",
    )
    notes = read("message-with-null-content.jsonl").notes
    assert [note for note in notes if "tool calls" in note and note.endswith(": 1")]
