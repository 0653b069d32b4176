"""JSON files: JSON Lines, also written, and one JSON value over any number of lines.

They are read with the standard library, since a shape that is slightly off must be an error that
names its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sani.atomic import new_file
from sani.corpus.documents import ANNOTATION, Document, Span
from sani.corpus.lines import read_lines
from sani.corpus.reading import Reading
from sani.corpus.records import RecordError, Row, Rows, type_name
from sani.errors import CorpusError
from sani.machine import distributed

SPAN_FIELDS = ("start", "end", "label", "kind")
_OPEN = ("{", "[", ",")  # how a line ends within a JSON value that goes on


def read_jsonl(path: Path, reading: Reading) -> Rows:
    """Read one JSON object a line; blank lines are skipped."""
    for place, value in _values_of_lines(path, reading):
        yield place, _to_row(value)


def read_json(path: Path, reading: Reading) -> Rows:
    """Read a JSON list of records, or one record."""
    for place, value in _values_of_file(path, reading):
        yield place, _to_row(value)


def read_json_values(path: Path, reading: Reading) -> Iterator[tuple[str, object]]:
    """Yield where each JSON value of a file stands and the value, or what is wrong with it."""
    whole = holds_one_value(path)
    yield from (_values_of_file if whole else _values_of_lines)(path, reading)


def holds_one_value(path: Path) -> bool:
    """Return True if a file is one JSON value rather than one a line.

    It is, if its first line ends within a value, or is a list of records, or holds such a list.
    """
    line = first_line(path)
    try:
        value = parse_json(line)
    except RecordError:
        return line.endswith(_OPEN)
    if isinstance(value, dict):
        return bool(_training_pairs(value))
    return isinstance(value, list) and _pair(value) is None and holds_records(value)


def holds_records(values: list[object]) -> bool:
    """Return True for a list that may be a corpus: each item is an object or a pair of spaCy."""
    return all(isinstance(value, dict) or _pair(value) is not None for value in values)


def first_line(path: Path) -> str:
    """Return the first line of a file that is not blank; empty where it cannot be decoded."""
    lines = read_lines(path, Reading())
    try:
        return next((line.strip() for line in lines if line.strip()), "")
    except RecordError:
        return ""


def _values_of_lines(path: Path, reading: Reading) -> Iterator[tuple[str, object]]:
    number = 0
    try:
        for number, line in enumerate(read_lines(path, reading), start=1):
            if line.strip(" \t\r\n"):
                yield f"line {number}", _value_of(line.rstrip("\r\n"))
    except RecordError as problem:
        yield f"line {number + 1}", problem


def _value_of(line: str) -> object:
    try:
        return parse_json(line)
    except RecordError as problem:
        return RecordError(str(problem))  # the place already names the line


def _values_of_file(path: Path, reading: Reading) -> Iterator[tuple[str, object]]:
    try:
        value = parse_json("".join(read_lines(path, reading)))
    except RecordError as problem:
        yield f"line {problem.line}" if problem.line else "", RecordError(str(problem))
        return
    if isinstance(value, dict):
        value = _training_pairs(value) or value
    if not isinstance(value, list):
        yield "", value
        return
    for number, item in enumerate(value, start=1):
        yield f"record {number}", item


def _to_row(value: object) -> Row | RecordError:
    """Return the record that a JSON value is, or its problem."""
    if isinstance(value, RecordError | dict):
        return value
    pair = _pair(value)
    if pair is None:
        return RecordError(f"it holds {type_name(value)}; expected a JSON object")
    return pair


def _pair(value: object) -> Row | None:
    """Return the record of a pair (text, annotations) as spaCy 2 trains on; None for others."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    text, annotations = value
    if not isinstance(text, str) or not isinstance(annotations, dict):
        return None
    return {**annotations, "text": text} if "entities" in annotations else None


def _training_pairs(value: Row) -> list[object]:
    """Return the pairs that annotators for spaCy write beside ``classes``; else none."""
    pairs = value.get("annotations")
    if not isinstance(pairs, list) or any(_pair(item) is None for item in pairs):
        return []
    return pairs


def parse_json(source: str) -> object:
    """Parse JSON; the parser's own words are dropped, since they may quote.

    Raises:
        RecordError: If it is none, or has a key twice.
    """
    try:
        value: object = json.loads(source, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"not valid JSON from column {error.colno} on; check quotes, commas and brackets",
            line=error.lineno,
        ) from None
    except (ValueError, RecursionError):
        raise RecordError("JSON with a number too long or brackets too deep to read") from None
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object with two equal keys: the first would be lost, and with it perhaps spans."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise RecordError("a JSON object holds the same key twice; keep one")
    return value


def write_jsonl(documents: Iterable[Document], path: Path) -> None:
    """Write documents and their spans in the clear, whole or not at all, mode 0600.

    Of several processes the main one writes.

    Raises:
        CorpusError: If a span reaches from one message into the next.
        WriteError: If the file cannot be written.
    """
    distributed.on_main(lambda: _write_jsonl(documents, path))


def _write_jsonl(documents: Iterable[Document], path: Path) -> None:
    with new_file(path, mode=0o600) as partial, partial.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(_row_of(document), ensure_ascii=False) + "\n")


def _row_of(document: Document) -> dict[str, object]:
    """Return a document as the record of the contract."""
    row: dict[str, object] = {"id": document.id, "subject_id": document.subject_id}
    if not document.turns:
        row["text"] = document.text
        row["spans"] = [_span_to_json(span) for span in document.spans]
        if document.source_text is not None:
            row["source_text"] = document.source_text
        return row
    messages: list[dict[str, Any]] = []
    for turn in document.turns:
        turn_spans = [
            replace(span, start=span.start - turn.start, end=span.end - turn.start)
            for span in document.spans
            if turn.start <= span.start and span.end <= turn.end
        ]
        content = document.text[turn.start : turn.end]
        spans = [_span_to_json(span) for span in turn_spans]
        messages.append({"role": turn.role, "content": content, "spans": spans})
    if sum(len(message["spans"]) for message in messages) < len(document.spans):
        raise CorpusError("a span reaches from one message into the next; cut it in two")
    return {**row, "messages": messages}


def _span_to_json(span: Span) -> dict[str, object]:
    """Return a span as the contract has it, with source and score where the scan found it."""
    row = asdict(span)
    return row if span.source != ANNOTATION else {name: row[name] for name in SPAN_FIELDS}
