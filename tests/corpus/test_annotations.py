"""Annotation as other tools write it, and messages as chat exports have them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from tests.support.corpora import END, NAME, START, TEXT, refusal, write_lines

AT = [START, END, "NAME"]
NAMED = {"start": START, "end": END, "label": "NAME"}


def region(start: int = START, end: int = END, words: str = NAME) -> dict[str, Any]:
    return {"start": start, "end": end, "text": words, "labels": ["NAME"]}


def task(*annotations: dict[str, Any], text: str = TEXT, **fields: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    return {"id": 7, "data": {"text": text}, "annotations": list(annotations), **fields}


def result(*values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    items = [{"type": "labels", "from_name": "l", "to_name": "t", "value": v} for v in values]
    return {"was_cancelled": False, "result": items, **fields}


def read(path: Path, *rows: Any) -> Corpus:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return read_corpus(path)
    return read_corpus(write_lines(path, *rows))


RECORDS: dict[str, dict[str, Any]] = {
    "doccano, sequence labelling": {"id": 1, "text": TEXT, "label": [AT]},
    "doccano, older": {"id": 1, "text": TEXT, "labels": [AT]},
    "doccano, relations": {
        "id": 1, "text": TEXT, "relations": [], "Comments": [],
        "entities": [{"id": 3, "label": "NAME", "start_offset": START, "end_offset": END}],
    },
    "Label Studio": task(result(region())),
    "Label Studio, older": {"id": 7, "data": {"note": TEXT}, "completions": [result(region())]},
    "Label Studio, JSON-MIN": {"id": 7, "text": TEXT, "label": [region()], "annotator": 1},
    "Prodigy": {
        "text": TEXT, "_input_hash": 5, "tokens": [{"text": "Name", "start": 0, "end": 4, "id": 0}],
        "spans": [{**NAMED, "token_start": 2, "token_end": 3}], "answer": "accept",
    },
    "spaCy 3, entities": {"id": 1, "text": TEXT, "entities": [AT]},
    "spaCy, Doc.to_json": {"text": TEXT, "ents": [NAMED], "tokens": [], "sents": []},
    "Presidio, analyzer": {
        "id": 1, "text": TEXT,
        "analyzer_results": [{"entity_type": "NAME", "start": START, "end": END, "score": 0.8}],
    },
    "presidio-research": {
        "full_text": TEXT, "masked": "Name: {{name}}", "template_id": 3,
        "spans": [{"entity_type": "NAME", "entity_value": NAME,
                   "start_position": START, "end_position": END}],
    },
    "spans beside an empty list of another tool": {
        "id": 1, "text": TEXT, "spans": [NAMED], "entities": [], "label": [],
    },
    "spans as triples": {"id": 1, "text": TEXT, "spans": [AT]},
    "token classification by transformers": {
        "id": 1, "text": TEXT,
        "entities": [{"entity_group": "NAME", "word": "x", "start": START, "end": END}],
    },
}  # fmt: skip


@pytest.mark.parametrize("tool", RECORDS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_annotation_of_other_tools_is_read(tmp_path: Path, tool: str, suffix: str) -> None:
    (document,) = read(tmp_path / f"c{suffix}", RECORDS[tool])
    assert document.text == TEXT
    assert [(document.value(span), span.label) for span in document.spans] == [(NAME, "NAME")]
    assert [span.source for span in document.spans] == ["annotation"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_pairs_as_spacy_2_trains_on_are_read(tmp_path: Path, suffix: str) -> None:
    pairs = [[TEXT, {"entities": [AT]}], ["x", {"entities": []}]]
    corpus = read(tmp_path / f"c{suffix}", *pairs)
    assert [d.text for d in corpus] == [TEXT, "x"]
    assert corpus.num_spans == 1
    path = tmp_path / "annotator.json"
    path.write_text(json.dumps({"classes": ["NAME"], "annotations": pairs}))
    assert list(read_corpus(path)) == list(corpus)


def test_annotation_in_the_cells_of_tables_is_read(tmp_path: Path) -> None:
    cell = json.dumps([AT]).replace('"', '""')
    (tmp_path / "c.csv").write_text(f'id;text;label\n1;{TEXT};"{cell}"\n')
    assert read_corpus(tmp_path / "c.csv").num_spans == 1
    (tmp_path / "c.csv").write_text(f"id;text;label\n1;{TEXT};[(0, 3, 'NAME')]\n")
    assert "line 2: 'label': not valid JSON" in refusal(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text(f"id;text;label\n1;{TEXT};positive\n")
    assert read_corpus(tmp_path / "c.csv").num_spans == 0
    pq.write_table(
        pa.table({"id": ["1"], "text": [TEXT], "entities": [[NAMED]]}), tmp_path / "c.parquet"
    )
    assert read_corpus(tmp_path / "c.parquet").num_spans == 1


def test_the_class_of_a_text_is_no_annotation_but_counted(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": TEXT, "label": "urgent"}, {"id": 2, "text": "x", "label": ["a"]}]
    corpus = read(tmp_path / "c.jsonl", *rows)
    assert corpus.num_spans == 0
    assert corpus.notes[-1] == "fields that are not read, with the number of records: label (2)"


def test_a_record_without_annotation_among_annotated_ones_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", task(result(region())), {**task(), "id": 8})
    assert refusal(path).startswith(f"{path}, line 2: it has no 'spans', but others have")


def test_annotations_of_several_people_are_united_and_counted(tmp_path: Path) -> None:
    first, second = result(region()), result(region(0, 4, "Name"), region())
    thrown_away = result(region(0, 3, "Nam"), was_cancelled=True)
    choice = {"type": "choices", "value": {"choices": ["urgent"]}}
    second["result"].append(choice)
    row = task(first, second, thrown_away, predictions=[{"result": []}])
    corpus = read(tmp_path / "c.json", row)
    assert [(s.start, s.end) for s in corpus[0].spans] == [(0, 4), (START, END)]
    assert corpus.notes == (
        "annotations of Label Studio that were united with another one: 1",
        "predictions of Label Studio, which nobody confirmed: 1",
        "results of Label Studio that mark no place, and were not read: 1",
    )


def test_offsets_of_javascript_are_turned_into_characters(tmp_path: Path) -> None:
    text = f"😀👍🏽 {TEXT}"
    units = len("😀👍🏽 ".encode("utf-16-le")) // 2
    value = region(units + START, units + END)
    (document,) = read(tmp_path / "c.json", task(result(value), text=text))
    assert document.value(document.spans[0]) == NAME


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (task(result(region(START + 1))), "'entities', item 1: the words that it repeats are not"),
        (
            task(result({**region(), "start": "/p[1]/text()[1]"})),
            "'entities', item 1: its place is given by an element of HTML",
        ),
        (
            {"id": 1, "text": TEXT, "entities": {"NAME": [NAME]}},
            "its annotation under 'entities' has a form that is not read; expected a list",
        ),
        (
            {"id": 1, "text": TEXT, "annotations": [{"value": NAME}]},
            "'annotations', item 1: its for",
        ),
        ({"id": 1, "text": TEXT, "denotations": [{"span": {"begin": 0}}]}, "'denotations', item 1"),
        ({"id": 1, "text": TEXT, "label": [[0, 4]]}, "'label', item 1: its form is not read"),
        ({"id": 1, "text": TEXT, "label": [[0, 9999, "A"]]}, "span 1: 'end' lies beyond the text"),
        ({"id": 1, "text": TEXT, "label": [[0, 4, 7]]}, "span 1: 'label' is a whole number"),
        (
            {"id": 1, "text": TEXT, "spans": [NAMED], "entities": [AT]},
            "it has annotation under 'spans' and also under 'entities'; keep one of them",
        ),
        (
            {"id": 1, "text": TEXT, "label": [AT], "ents": [NAMED]},
            "it has annotation under 'ents' and also under 'label'; keep one of them",
        ),
        (
            {"text": TEXT, "spans": [NAMED], "answer": "reject"},
            "its 'answer' of Prodigy is not accept, so nobody confirmed its spans",
        ),
        (
            {"text": "<PERSON>", "items": [{"start": 0, "end": 8, "operator": "replace"}]},
            "it is a result of Presidio's anonymizer",
        ),
        ({"id": 1, "tokens": [NAME], "ner_tags": [1]}, "it has 'tokens' and no 'text'"),
    ],
)
def test_annotation_that_cannot_be_read_is_an_error(tmp_path: Path, row: Any, problem: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", row)
    assert refusal(path).startswith(f"{path}, line 1: {problem}")


# ---- messages ----------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "find", "arguments": f'{{"who": "{NAME}"}}'}}


def chat(*messages: Any) -> dict[str, Any]:
    return {"id": 1, "subject_id": "s", "messages": list(messages)}


def test_a_content_of_null_is_no_text_and_tool_calls_are_counted(tmp_path: Path) -> None:
    corpus = read(
        tmp_path / "c.jsonl",
        chat(
            {"role": "user", "content": "Who?", "tool_calls": None, "refusal": None},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": NAME, "spans": [{**NAMED, "start": 0, "end": len(NAME)}]},
            {"role": "assistant", "content": None, "audio": {"id": "x"}},
        ),
    )
    (document,) = corpus
    assert [document.text[turn.start : turn.end] for turn in document.turns] == [
        "Who?", "", "", NAME, "",
    ]  # fmt: skip
    assert [document.value(span) for span in document.spans] == [NAME]
    assert corpus.notes == (
        "messages without content, read as no text: 3",
        "messages with tool calls, whose names and arguments were not read: 2",
        "fields that are not read, with the number of records: messages.audio (1)",
    )


def test_parts_of_text_are_joined_and_others_counted(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "See "}, {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "input_text", "text": NAME}, " today", {"type": "tool_use", "input": {}},
    ]  # fmt: skip
    spans = [{**NAMED, "start": 4, "end": 4 + len(NAME)}]
    corpus = read(tmp_path / "c.jsonl", chat({"role": "user", "content": parts, "spans": spans}))
    assert corpus[0].text == f"See {NAME} today"
    assert corpus[0].value(corpus[0].spans[0]) == NAME
    assert corpus.notes == ("parts of messages that are not text, and were not read: 2",)


def test_annotation_of_other_tools_is_read_in_messages(tmp_path: Path) -> None:
    corpus = read(tmp_path / "c.jsonl", chat({"role": "user", "content": TEXT, "entities": [AT]}))
    assert corpus[0].value(corpus[0].spans[0]) == NAME


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user"}, "'content' is missing or null; expected a string"),
        ({"role": "user", "value": NAME}, "'content' is missing or null; expected a string"),
        ({"role": "user", "content": 7}, "'content' is a whole number; expected a string"),
        ({"role": "user", "content": [7]}, "a part of 'content' is a whole number"),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "the 'text' of a part is missing or null",
        ),
        ({"role": "user", "content": TEXT, "entities": {"N": NAME}}, "its annotation under"),
    ],
)
def test_a_message_of_no_known_form_is_an_error(tmp_path: Path, message: Any, problem: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", chat({"role": "user", "content": "x"}, message))
    assert refusal(path).startswith(f"{path}, line 1: message 2: {problem}")
