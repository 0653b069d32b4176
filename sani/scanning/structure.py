"""Header fields that the documents themselves show: a recognizer that is learnt, without weights.

Notes of a hospital come from templates. A line that recurs in many documents, alike up to a place
and different behind it, is a header field: ``Pacjent: Anna Kowalska``. Its value is a candidate, in
any language and under any heading. A value says whom the note is about if it differs from subject
to subject; laboratory values, findings and ordinary words do not, so a field needs more evidence:

1. at least half of its values are what other detectors mark with one label, or
2. they stay the same in all documents of a subject, or
3. they are numbers of one format with at least six digits and not rounded, and hardly any
   subject has a second document that would tell.

The fields are learnt from the corpus that is scanned, so a corpus with few subjects teaches none.
Source: ours, after wrapper induction (Kushmerick 2000), which learns what surrounds a field in
pages of one template.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sani.corpus.documents import Document, Kind, Span
from sani.counting import counted
from sani.scanning.labels import kind_of, scan_label
from sani.text.folding import fold_text

SOURCE = "structure"
SCORE = 0.6
FEWEST_SUBJECTS = 8  # with the field; of fewer, values differ by chance
FEWEST_REPEATED = 4  # subjects with several documents, to tell if a value stays the same
FEWEST_SHARE = 0.1  # of all subjects that have the field
MOST_ALIKE = 0.1  # share of the subjects whose value another subject has too
SAME_LABEL = 0.5  # share of the values that other detectors mark with one label
ONE_FORMAT = 0.9  # share of numbers with the most frequent lengths of digits and letters
FEWEST_DIGITS = 6
MOST_WORDS = 5
_HEADING = re.compile(
    r"[ \t]*(?P<heading>[^\W\d][^\n:=\t]{0,40}?)"
    r"(?:[ \t]*[:=][ \t]*|\t[ \t]*|[ ]{2,})(?P<value>\S[^\n]*)"
)
_GAP = re.compile(r"[ \t]{2,}|\t|[;|]")  # ends a value where several fields share a line
_NAME_WORD = re.compile(r"[^\W\d_][^\W\d_'\u2019.-]*(?:['\u2019-][^\W\d_]+)*\.?")
_NUMBER = re.compile(r"[A-Za-z]{0,4}[-/ ]?\d[\d /-]*\d")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class HeaderField:
    """A header field that the documents show.

    Attributes:
        label: Label of the scan for its values.
        documents: Documents that have it.
        subjects: Their subjects.
        values: Distinct values.
    """

    label: str
    documents: int
    subjects: int
    values: int


@dataclass(frozen=True)
class _Value:
    """The value of a field in one document."""

    document: int
    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def find_structure(documents: Sequence[Document]) -> tuple[list[list[Span]], list[HeaderField]]:
    """Find the header fields of a corpus, and their values in each document.

    Args:
        documents: With the spans that other detectors have found.

    Returns:
        The spans of each document, which may overlap those it has; and the fields, in the order
        of their headings. A field holds no text of the corpus: a heading may name a physician.
    """
    values_of: dict[str, list[_Value]] = defaultdict(list)
    for number, document in enumerate(documents):
        for heading, value in _lines(number, document.text):
            values_of[heading].append(value)
    subjects = len({document.subject_id for document in documents})
    least = max(FEWEST_SUBJECTS, FEWEST_SHARE * subjects)
    spans_of: list[list[Span]] = [[] for _ in documents]
    fields = []
    ordinary: set[str] | None = None
    for _, values in sorted(values_of.items()):
        if len({documents[value.document].subject_id for value in values}) < least:
            continue
        if ordinary is None:
            ordinary = _lower_words(documents)
        if label := _label(values, documents, ordinary):
            fields.append(_field(label, values, documents))
            for value in values:
                if not _fits(label, value.text, ordinary):
                    continue  # "Name: unknown"
                kind: Kind = kind_of(label, value.text)
                span = Span(value.start, value.end, label, kind, SOURCE, SCORE)
                spans_of[value.document].append(span)
    return spans_of, fields


def in_words(fields: Sequence[HeaderField]) -> str:
    """Return what was learnt as a sentence without any text of the corpus."""
    if not fields:
        return "the documents show no header field whose values identify"
    shown = Counter(field.label for field in fields)
    return (
        f"{counted(len(fields), 'header field')} learnt from lines that recur: "
        f"{', '.join(f'{label} ({count})' for label, count in sorted(shown.items()))}; "
        f"{counted(sum(field.values for field in fields), 'distinct value')}"
    )


def _lines(number: int, text: str) -> Iterator[tuple[str, _Value]]:
    """Yield the folded heading and the value of each line of that form, the first of a heading."""
    seen = set()
    for line in _HEADING.finditer(text):
        if line.start() and text[line.start() - 1] != "\n":
            continue
        heading = fold_text(line["heading"])
        value = _GAP.split(line["value"], maxsplit=1)[0].rstrip(" \t.,\r")
        if value and heading not in seen:
            seen.add(heading)
            yield heading, _Value(number, line.start("value"), value)


def _label(
    values: Sequence[_Value], documents: Sequence[Document], ordinary: set[str]
) -> str | None:
    """Return the label of a field whose values identify; None for any other field."""
    texts = [value.text for value in values]
    if not _differ(values, documents) or _rounded(texts):
        return None
    marked = Counter(
        label
        for value in values
        if (label := _marked_as(value, documents)) and _fits(label, value.text, ordinary)
    )
    label, count = marked.most_common(1)[0] if marked else ("", 0)
    if count >= SAME_LABEL * len(values):
        return label
    shape = _shape(texts, ordinary)
    same = _same_within_subjects(values, documents)
    if same is None and shape == "ID" and _one_format(texts):
        return label or shape
    return (label or shape) if shape and same else None


def _differ(values: Sequence[_Value], documents: Sequence[Document]) -> bool:
    """Return whether hardly any value is that of two subjects."""
    subjects_of: dict[str, set[str]] = defaultdict(set)
    for value in values:
        subjects_of[fold_text(value.text)].add(documents[value.document].subject_id)
    everyone = set().union(*subjects_of.values())
    shared = set().union(*(subjects for subjects in subjects_of.values() if len(subjects) > 1))
    return len(shared) <= MOST_ALIKE * len(everyone)


def _marked_as(value: _Value, documents: Sequence[Document]) -> str | None:
    """Return the label of the direct identifier that is most of a value."""
    for span in documents[value.document].spans:
        if span.kind == "direct" and span.start < value.end and value.start < span.end:
            inside = min(span.end, value.end) - max(span.start, value.start)
            if 2 * inside > len(value.text):
                return scan_label(span.label)
    return None


def _shape(texts: Sequence[str], ordinary: set[str]) -> str | None:
    """Return ``NAME`` or ``ID`` where nine in ten values have the form of one."""
    names = sum(_looks_like_a_name(text, ordinary) for text in texts)
    numbers = sum(_looks_like_a_number(text) for text in texts)
    shapes = {"NAME": names, "ID": numbers}
    best = max(shapes, key=lambda shape: shapes[shape])
    return best if shapes[best] >= 0.9 * len(texts) else None


def _looks_like_a_name(text: str, ordinary: set[str]) -> bool:
    """Return whether a value is a few words with a capital that no document writes without."""
    words = text.replace(",", " ").split()
    if not 2 <= len(words) <= MOST_WORDS or not all(map(_NAME_WORD.fullmatch, words)):
        return False
    capitals = [word for word in words if word[0] != word[0].lower()]
    small = [word for word in words if word[0] == word[0].lower()]
    return (
        len(capitals) >= 2
        and all(len(word) <= 3 for word in small)  # particles
        and not any(fold_text(word) in ordinary for word in capitals)
    )


def _fits(label: str, text: str, ordinary: set[str]) -> bool:
    """Return whether a value may be what the label of its field says."""
    digits = sum(character.isdigit() for character in text)
    if label != "NAME":
        return digits >= (1 if label == "ADDRESS" else FEWEST_DIGITS - 2)
    words = text.replace(",", " ").split()
    return (
        len(words) <= MOST_WORDS
        and all(map(_NAME_WORD.fullmatch, words))
        and not any(fold_text(word) in ordinary for word in words if len(word) > 3)
    )


def _looks_like_a_number(text: str) -> bool:
    digits = sum(character.isdigit() for character in text)
    return digits >= FEWEST_DIGITS and _NUMBER.fullmatch(text) is not None


def _one_format(texts: Sequence[str]) -> bool:
    """Return whether numbers have one format: letters, digits and separators in the same places."""
    formats = Counter(re.sub(r"\d", "0", re.sub(r"[A-Za-z]", "A", text)) for text in texts)
    return formats.most_common(1)[0][1] >= ONE_FORMAT * len(texts)


def _rounded(texts: Sequence[str]) -> bool:
    """Return whether numbers are measured ones: three in ten end in a zero, of numbers one does."""
    return sum(text.endswith("0") for text in texts) >= 0.3 * len(texts)


def _same_within_subjects(values: Sequence[_Value], documents: Sequence[Document]) -> bool | None:
    """Return whether subjects with several documents have one value in all; None of few such."""
    by_subject: dict[str, list[str]] = defaultdict(list)
    for value in values:
        by_subject[documents[value.document].subject_id].append(fold_text(value.text))
    several = [texts for texts in by_subject.values() if len(texts) > 1]
    same = sum(len(set(texts)) == 1 for texts in several)
    return same >= 0.9 * len(several) if len(several) >= FEWEST_REPEATED else None


def _lower_words(documents: Sequence[Document]) -> set[str]:
    """Return the words that some document writes with a small letter, folded."""
    return {
        fold_text(word)
        for document in documents
        for word in set(_WORD.findall(document.text))
        if word.islower()
    }


def _field(label: str, values: Sequence[_Value], documents: Sequence[Document]) -> HeaderField:
    return HeaderField(
        label,
        documents=len(values),
        subjects=len({documents[value.document].subject_id for value in values}),
        values=len({fold_text(value.text) for value in values}),
    )
