"""Annotation as other tools write it, brought into the form of a record.

Read are doccano (``label``, ``labels`` or ``entities``), Label Studio (JSON and JSON-MIN), Prodigy,
spaCy (``entities``, ``ents``) and Presidio (results of the analyzer, samples of presidio-research).
Annotation that cannot be read for certain is an error: without it, its identifiers would count as
ordinary text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from sani.corpus.reading import Notes
from sani.corpus.records import RecordError, Row

ANNOTATION_FIELDS = (
    "entities",
    "ents",
    "label",
    "labels",
    "annotation",
    "annotations",
    "ner",
    "denotations",
    "analyzer_results",
    "recognizer_results",
)
FULL_TEXT = "full_text"  # presidio-research
_TASK_PARTS = ("annotations", "completions", "predictions")
_STARTS = ("start", "start_offset", "start_position", "begin")
_ENDS = ("end", "end_offset", "end_position")
_LABELS = ("label", "labels", "hypertextlabels", "entity_type", "entity_group", "type")
_WORDS = ("entity_value", "text")
_SHAPES = "expected a list of objects with start, end and label, or of [start, end, label]"


def task_as_record(row: Row, columns: Mapping[str, str], notes: Notes) -> Row:
    """Return the record of a task of Label Studio, whose fields lie in ``data``.

    The spans of all its annotations count together: an identifier that one annotator missed is
    still an identifier.

    Args:
        row: Any record; one that is no such task is returned as it is.
        columns: Name of a field -> its name in the corpus.
        notes: Where predictions and the annotations of several people are counted.

    Raises:
        RecordError: If a result cannot be read.
    """
    data = row.get("data")
    if not isinstance(data, Mapping) or not any(part in row for part in _TASK_PARTS):
        return row
    texts = [name for name, value in data.items() if isinstance(value, str)]
    inner: dict[str, object] = {"id": row.get("id"), **data}
    if columns.get("text", "text") not in data and len(texts) == 1:
        inner["text"] = inner.pop(texts[0])
    annotations = row.get("annotations", row.get("completions"))
    kept = [
        item
        for item in (annotations if isinstance(annotations, list) else [])
        if isinstance(item, Mapping) and not item.get("was_cancelled")
    ]
    notes.count("annotations of Label Studio that were united with another one", len(kept[1:]))
    predictions = row.get("predictions")
    if isinstance(predictions, list):
        notes.count("predictions of Label Studio, which nobody confirmed", len(predictions))
    if not kept:
        return inner
    spans = [item for annotation in kept for item in _results(annotation.get("result"), notes)]
    return {**inner, "entities": spans}


def _results(results: object, notes: Notes) -> list[object]:
    """Return the regions that mark a place; choices and relations mark none."""
    regions: list[object] = []
    for result in results if isinstance(results, list) else []:
        value = result.get("value") if isinstance(result, Mapping) else None
        if isinstance(value, Mapping) and "start" in value:
            regions.append(value)
        else:
            notes.count("results of Label Studio that mark no place, and were not read")
    return regions


def with_spans(row: Row) -> Row:
    """Return a record with its annotation under ``spans``, whichever tool wrote it.

    Raises:
        RecordError: If it has annotation that cannot be read, or that nobody confirmed.
    """
    _refuse_unconfirmed(row)
    if FULL_TEXT in row and "text" not in row:
        row = {("text" if name == FULL_TEXT else name): value for name, value in row.items()}
    textless = all(row.get(name) is None for name in ("text", "messages", "content"))
    if textless and isinstance(row.get("tokens"), list):
        raise RecordError(
            "it has 'tokens' and no 'text'; join the tokens to a text, and give its identifiers "
            "as spans with characters as offsets"
        )
    text = row.get("text", row.get("content"))
    present = [name for name in ANNOTATION_FIELDS if _may_mark(name, row.get(name))]
    filled = [name for name in ("spans", *present) if row.get(name)]
    if len(filled) > 1:
        raise RecordError(
            f"it has annotation under {filled[0]!r} and also under {filled[1]!r}; keep one of them"
        )
    rest = {name: value for name, value in row.items() if name not in present}
    name = (filled or present or ["spans"])[0]
    if name == "spans" and not isinstance(row.get(name), list):
        return rest
    return {**rest, "spans": _spans(name, row[name], text)}


def _refuse_unconfirmed(row: Row) -> None:
    answer = row.get("answer")
    if answer in ("reject", "ignore") and "spans" in row:
        raise RecordError(
            "its 'answer' of Prodigy is not accept, so nobody confirmed its spans; annotate it "
            "again, or leave such records out"
        )
    items = row.get("items")
    if isinstance(items, list) and any(isinstance(i, Mapping) and "operator" in i for i in items):
        raise RecordError(
            "it is a result of Presidio's anonymizer, whose text no longer holds the identifiers; "
            "give the text that went into it, with the results of the analyzer"
        )


def _may_mark(name: str, value: object) -> bool:
    """Return True unless a field is something else of that name, such as the class of a text."""
    if isinstance(value, Mapping):
        return bool(value) and name in ("entities", "ents", "annotation", "annotations")
    if not isinstance(value, list):
        return False
    return not value or any(isinstance(item, Mapping | Sequence) and not isinstance(item, str)
                            for item in value)  # fmt: skip


def _spans(name: str, value: object, text: object) -> list[object]:
    """Return spans in sani's own form; what has another is left to the check of records."""
    if not isinstance(value, list):
        raise RecordError(f"its annotation under {name!r} has a form that is not read; {_SHAPES}")
    spans: list[object] = []
    for number, item in enumerate(value, start=1):
        try:
            spans += _span(name, item, text)
        except RecordError as problem:
            raise RecordError(f"{name!r}, item {number}: {problem}") from None
    return spans


def _span(name: str, item: object, text: object) -> list[object]:
    """Return the span of an item, or one for each of its labels."""
    if isinstance(item, list | tuple) and len(item) in (3, 4):
        start, end, labels = item[:3]
        return [{"start": start, "end": end, "label": label} for label in _listed(labels)]
    if not isinstance(item, Mapping):
        if name == "spans":
            return [item]
        raise RecordError(f"its form is not read; {_SHAPES}")
    start_key, end_key, label_key = (
        next((key for key in keys if key in item), None) for keys in (_STARTS, _ENDS, _LABELS)
    )
    if name == "spans" and "label" in item and "start" in item:
        return [item]
    if start_key is None or end_key is None or label_key is None:
        if name == "spans":
            return [item]
        raise RecordError(f"its form is not read; {_SHAPES}")
    start, end = item[start_key], item[end_key]
    if isinstance(start, str) and isinstance(item.get("globalOffsets"), Mapping):
        start, end = item["globalOffsets"].get("start"), item["globalOffsets"].get("end")
    if isinstance(start, str):
        raise RecordError(
            "its place is given by an element of HTML and not by characters; label the plain text"
        )
    words = next((item[key] for key in _WORDS if isinstance(item.get(key), str)), None)
    start, end = _fitted(start, end, words, text)
    extra = {key: item[key] for key in ("kind", "source") if key in item}
    return [
        {**extra, "start": start, "end": end, "label": label} for label in _listed(item[label_key])
    ]


def _listed(labels: object) -> list[object]:
    return labels if isinstance(labels, list) else [labels]


def _fitted(start: object, end: object, words: object, text: object) -> tuple[object, object]:
    """Return the characters that offsets name; those of JavaScript count UTF-16 units.

    Raises:
        RecordError: If the words that the item repeats stand at neither.
    """
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(text, str) and words):
        return start, end
    if _same(text[start:end], words):
        return start, end
    units = list(accumulate((2 if char > "\uffff" else 1 for char in text), initial=0))
    characters = {unit: number for number, unit in enumerate(units)}
    if start in characters and end in characters:
        start, end = characters[start], characters[end]
        if _same(text[start:end], words):
            return start, end
    raise RecordError(
        "the words that it repeats are not those between its offsets; check that text and "
        "annotation belong together and offsets count characters from 0"
    )


def _same(covered: str, words: object) -> bool:
    return isinstance(words, str) and covered.split() == words.split()
