"""The form of one record, and the document it becomes, whatever format it came from.

A record is a mapping with ``id``, ``text`` and, where known, ``subject_id`` and ``spans``; a
conversation has ``messages`` instead of ``text`` and ``spans``. What is
wrong with it is told without a single value of it: only names of fields, types and positions.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import cast

from sani.corpus.documents import (
    ANNOTATION,
    BETWEEN_TURNS,
    COLUMNS,
    KINDS,
    Document,
    Kind,
    Span,
    Turn,
)
from sani.errors import CorpusError
from sani.scanning.labels import is_public_name, kind_by_value
from sani.text.folding import fold_text

_TYPE_NAMES = {
    type(None): "missing or null",
    bool: "a boolean",
    int: "a whole number",
    float: "a decimal number",
    str: "a string",
    bytes: "bytes",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


class RecordError(CorpusError):
    """One problem of one record; the reader adds where that record stands.

    Attributes:
        line: Line in the record's own file, from 1, where the record is a file by itself.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


Row = Mapping[str, object]
# Where a record stands ("line 3", "" for the file as a whole), and the record or its problem.
Rows = Generator[tuple[str, Row | RecordError], None, None]


def to_document(row: Row, *, kinds: Mapping[str, Kind]) -> Document:
    """Return the document that a record describes; spans sorted, exact duplicates dropped.

    Args:
        row: The record; keys other than ``COLUMNS`` are ignored.
        kinds: Kind of each label whose spans name none. Of a date or an age that is not in it the
            value decides (`kind_by_value`); any other label is ``direct``.

    Raises:
        RecordError: If a field is missing, of the wrong type, or a span does not fit the text.
    """
    check_names(row)
    identity = _identity(row.get("id"), "id")
    if identity is None:
        raise RecordError(
            "'id' is missing or empty; expected a string or a whole number of its own"
        )
    subject = _identity(row.get("subject_id"), "subject_id") or identity
    source = row.get("source_text")
    if source is not None:
        _check_text(source, "source_text")
    if row.get("messages") is not None:
        beside = [name for name in ("text", "spans", "source_text") if row.get(name)]
        if beside:
            raise RecordError(
                f"it has 'messages' and also {beside[0]!r}; a conversation has its text and its "
                "spans in its messages"
            )
        text, spans, turns = _conversation(row["messages"], kinds=kinds)
        return Document(identity, subject, text, spans, turns)
    text = _check_text(row.get("text"), "text")
    spans = _to_spans(row.get("spans"), text, kinds=kinds)
    return Document(identity, subject, text, spans, source_text=cast(str | None, source))


def _check_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{field!r} is {type_name(value)}; expected a string")
    _check_surrogates(value, field)
    if "\0" in value:
        raise RecordError(
            f"{field!r} holds NUL characters, which are no text and would hide an identifier; "
            "remove them, also from what the model is trained on"
        )
    return value


def _conversation(
    value: object, *, kinds: Mapping[str, Kind]
) -> tuple[str, tuple[Span, ...], tuple[Turn, ...]]:
    """Join the messages to one text; return it with its spans and the turns."""
    if not isinstance(value, list) or not value:
        got = "empty" if isinstance(value, list) else type_name(value)
        raise RecordError(f"'messages' is {got}; expected a list of objects")
    text = ""
    spans: list[Span] = []
    turns: list[Turn] = []
    for number, item in enumerate(value, start=1):
        try:
            if not isinstance(item, dict):
                raise RecordError(f"it is {type_name(item)}; expected an object")
            role = item.get("role")
            if not isinstance(role, str) or not role.strip():
                raise RecordError("'role' is no name; expected one such as user or assistant")
            content = _check_text(item.get("content"), "content")
            turn_spans = _to_spans(item.get("spans"), content, kinds=kinds)
        except RecordError as problem:
            raise RecordError(f"message {number}: {problem}") from None
        text += BETWEEN_TURNS if turns else ""
        start = len(text)
        spans += [
            replace(span, start=start + span.start, end=start + span.end) for span in turn_spans
        ]
        text += content
        turns.append(Turn(role, start, len(text)))
    return text, tuple(spans), tuple(turns)


def marks(row: Row) -> bool:
    """Return whether a record, or a message of it, has the key for spans, be they none."""
    messages = row.get("messages")
    inner = messages if isinstance(messages, list) else []
    return any("spans" in item for item in (row, *inner) if isinstance(item, Mapping))


def names_like_values(documents: Iterable[Document]) -> set[str]:
    """Return the labels and sources that are, but for their spelling, a value of the documents.

    Labels and sources are printed in reports, ids and values are not. Names of one letter are let
    pass, and names that the scan knows without any corpus: a detector may take the heading ``MRN``
    for a name.
    """
    documents = list(documents)
    values = {document.value(span) for document in documents for span in document.spans}
    values |= {name for document in documents for name in (document.id, document.subject_id)}
    folded = set(map(fold_text, values))
    names = {name for d in documents for span in d.spans for name in (span.label, span.source)}
    return {
        name
        for name in names
        if len(name) > 1 and not is_public_name(name) and fold_text(name) in folded
    }


NAME_LIKE_VALUE = (
    "a label or a source of it is the text of an identifier of this corpus, or an id, but for its "
    "spelling; labels and sources are printed in reports: expected a name such as NAME or DATE"
)
LONGEST_LABEL = 64
_LOOKS_LIKE_A_VALUE = re.compile(r"\d{4}|@")


def check_names(names: Iterable[str]) -> None:
    """Refuse a name that is one of ``COLUMNS`` but for case or blanks.

    ``Spans`` would otherwise be ignored as an unknown column and its identifiers never looked for.

    Raises:
        RecordError: If there is such a name.
    """
    for name in set(names).difference(COLUMNS):
        if name.strip().casefold() in COLUMNS:
            meant = name.strip().casefold()
            raise RecordError(
                f"a field is called {meant!r} but for case or blanks and would be ignored; "
                f"rename it to {meant!r}"
            )


def type_name(value: object) -> str:
    """Return the type of a value in a reader's words, never the value."""
    return _TYPE_NAMES.get(type(value), "of another type")


def _identity(value: object, field: str) -> str | None:
    """Return an id as text; None where it is missing, null or blank."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecordError(f"{field!r} is {type_name(value)}; expected a string or a whole number")
    _check_surrogates(value, field)
    return value if value.strip() else None


def _check_surrogates(value: str, field: str) -> None:
    """Refuse text that no UTF-8 file and no tokenizer can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError(
            f"{field!r} holds half of a surrogate pair, which is no character; "
            "write the character itself or both halves of its escape"
        ) from None


def _to_spans(value: object, text: str, *, kinds: Mapping[str, Kind]) -> tuple[Span, ...]:
    """Read all spans of a record, in order; null means none."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RecordError(f"'spans' is {type_name(value)}; expected a list")
    spans = set()
    for number, item in enumerate(value, start=1):
        try:
            spans.add(_to_span(item, text, kinds=kinds))
        except RecordError as problem:
            raise RecordError(f"span {number}: {problem}") from None
    return tuple(sorted(spans))


def _to_span(item: object, text: str, *, kinds: Mapping[str, Kind]) -> Span:
    """Read one span and check it against the text that it points into."""
    if not isinstance(item, dict):
        raise RecordError(f"it is {type_name(item)}; expected an object")
    start, end = _offset(item, "start"), _offset(item, "end")
    check_offsets(start, end, text)
    label = check_name(item.get("label"), "label", example="NAME or DATE")
    if len(label) > 1 and label == text[start:end]:
        raise RecordError(
            "'label' is the text that it marks; labels are printed in reports: expected a name "
            "such as NAME or DATE"
        )
    source, score = _provenance(item)
    kind = item.get("kind")
    if kind is None:
        kind = kinds.get(label) or kind_by_value(label, text[start:end]) or "direct"
    if kind not in KINDS:
        raise RecordError(f"'kind' is not one of {', '.join(KINDS)}")
    return Span(start, end, label, cast(Kind, kind), source, float(score))


def _provenance(item: Mapping[str, object]) -> tuple[str, float]:
    """Return a span's source and score; a score without a source is another tool's column."""
    if item.get("source") is None:
        return ANNOTATION, 1.0
    score = 1.0 if item.get("score") is None else item["score"]
    if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1:
        raise RecordError("'score' is not a number from 0 to 1")
    return check_name(item["source"], "source", example=ANNOTATION), float(score)


def check_name(value: object, field: str, *, example: str) -> str:
    """Check a label or a source: both are printed in reports, so neither may look like a value.

    Raises:
        RecordError: If it does, or is no text.
    """
    if not isinstance(value, str):
        raise RecordError(f"{field!r} is {type_name(value)}; expected a string")
    if not value.strip():
        raise RecordError(f"{field!r} is empty; expected a name such as {example}")
    _check_surrogates(value, field)
    if len(value) > LONGEST_LABEL or _LOOKS_LIKE_A_VALUE.search(value):
        raise RecordError(
            f"{field!r} is longer than {LONGEST_LABEL} characters, or holds four digits or an @, "
            f"like an identifier; {field}s are printed in reports: expected a name such as "
            f"{example}"
        )
    return value


def _offset(item: Mapping[str, object], field: str) -> int:
    """Read a start or an end as a whole number."""
    value = item.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RecordError(f"{field!r} is {type_name(value)}; expected a whole number")
    return value


def check_offsets(start: int, end: int, text: str) -> None:
    """Refuse a span that is empty or leaves the text; numbers of the data are not repeated.

    Raises:
        RecordError: Unless ``0 <= start < end <= len(text)``.
    """
    if start < 0:
        raise RecordError("'start' is negative; offsets count characters from 0")
    if end <= start:
        raise RecordError("'end' is not greater than 'start'; it is one past the last character")
    if end > len(text):
        raise RecordError(
            f"'end' lies beyond the text, which has {len(text)} characters; "
            "offsets count characters (not bytes) from 0"
        )
