"""Known values: confidential terms, and whatever else is to be found wherever it stands.

All values are searched at once by an Aho-Corasick automaton over the folded text
(`sani.text.folding`), so case, accents and blanks do not matter. A match is a word, or words, of
its own; a term may carry one of the inflections of `INFLECTIONS`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ahocorasick

from sani.corpus.documents import TERM_SOURCE, Kind, Span
from sani.corpus.records import RecordError, check_name
from sani.errors import ScanError
from sani.scanning.windows import MARGIN, moved, windows
from sani.text.folding import UNSPACED, fold, fold_text

DEFAULT_LABEL = "TERM"
# Endings of plural, genitive and case in en, es, de and fr, for terms of four letters and more.
INFLECTIONS = ("'s", "s'", "s", "es", "e", "en", "n", "er", "ern", "em", "ns", "x")
SHORTEST_INFLECTED = 4
_WINDOW = 1_000_000
_unspaced = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True, slots=True)
class Value:
    """Something to find.

    Attributes:
        text: As it is written; must hold a letter or a digit.
        label: What to call it.
        kind: Whether it names a person by itself.
        source: Who asks for it.
        score: How sure a match is.
        inflected: Whether endings are allowed.
        cased: Whether the first letter must be a capital where the value's is.
    """

    text: str
    label: str
    kind: Kind
    source: str
    score: float = 1.0
    inflected: bool = False
    cased: bool = False


class Finder:
    """Finds all of many values in a text, in one pass."""

    def __init__(self, values: Iterable[Value]) -> None:
        by_text: dict[str, list[Value]] = {}
        for value in values:
            folded = fold_text(value.text)
            if any(character.isalnum() for character in folded):
                by_text.setdefault(folded, []).append(value)
        self._automaton = ahocorasick.Automaton()
        for folded, same in by_text.items():
            self._automaton.add_word(folded, (len(folded), tuple(dict.fromkeys(same))))
        self._longest = max(map(len, by_text), default=0)
        if by_text:
            self._automaton.make_automaton()

    def find(self, text: str) -> Iterator[Span]:
        """Find every place of every value, overlaps included."""
        if self._longest:
            for window in windows(text, size=_WINDOW, margin=MARGIN + 2 * self._longest):
                for span in self._find(window.text):
                    if window.owns(span.start):
                        yield moved(span, window.offset)

    def _find(self, text: str) -> Iterator[Span]:
        folded = fold(text)
        for last, (length, values) in self._automaton.iter(folded.text):
            first, after = last + 1 - length, last + 1
            if _joined(folded.text, first):
                continue
            whole = not _joined(folded.text, after)
            ending = 0 if whole else _ending(folded.text, after)
            for value in values:
                if not whole and not (ending and value.inflected and length >= SHORTEST_INFLECTED):
                    continue
                start, end = folded.original(first, after + ending)
                if value.cased and value.text[0].isupper() and text[start].islower():
                    continue
                yield Span(start, end, value.label, value.kind, value.source, value.score)


def _joined(text: str, at: int) -> bool:
    """Return whether letters or digits of one word stand on both sides of a place."""
    before, after = text[at - 1 : at], text[at : at + 1]
    if not (before.isalnum() and after.isalnum()):
        return False
    return not (_unspaced.match(before) or _unspaced.match(after))


def _ending(text: str, at: int) -> int:
    """Return the length of the inflection that ends the word here; 0 if none does."""
    for ending in INFLECTIONS:
        if text.startswith(ending, at) and not text[at + len(ending) :][:1].isalnum():
            return len(ending)
    return 0


def read_terms(path: Path) -> list[Value]:
    """Read confidential terms: one a line, or CSV with columns ``term`` and, if wanted, ``label``.

    Blank lines are skipped. A file whose name ends in ``.csv`` is CSV.

    Raises:
        ScanError: If it cannot be read, or holds no term.
    """
    text = read_list(path, "terms")
    rows: list[tuple[str, str]] = []
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(path, text)
    else:
        rows = [(line, DEFAULT_LABEL) for line in text.splitlines()]
    terms = [
        Value(term.strip(), label.strip(), "direct", TERM_SOURCE, inflected=True)
        for term, label in rows
        if any(character.isalnum() for character in term)
    ]
    if not terms:
        raise ScanError(f"terms: {path} holds no term; expected one a line")
    return list(dict.fromkeys(terms))


def read_list(path: Path, name: str) -> str:
    """Return the text of a file that a user wrote.

    Args:
        path: The file.
        name: What the user calls it: the recipe's key.

    Raises:
        ScanError: If it cannot be read, or is no text in UTF-8.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ScanError(f"{name}: {path} is a pipe or a device, which may never end; give a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ScanError(f"{name}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScanError(f"{name}: {path} is not UTF-8 text; convert it with iconv") from None
    if "\0" in text:
        raise ScanError(f"{name}: {path} holds NUL characters (UTF-16?); convert it with iconv")
    return text


def _csv_rows(path: Path, text: str) -> list[tuple[str, str]]:
    """Return each row's term and label; a row that does not fit the header is an error."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        if "term" not in (reader.fieldnames or ()):
            raise ScanError(f"terms: {path} has no column 'term'; give it that header")
        for row in reader:
            where = f"terms: {path}, line {reader.line_num}"
            if None in row:
                raise ScanError(f"{where}: more cells than the header; put the term in quotes")
            label = (row.get("label") or "").strip() or DEFAULT_LABEL
            rows.append((row["term"] or "", check_name(label, "label", example="NAME")))
    except csv.Error:
        raise ScanError(
            f"terms: {path}, line {reader.line_num}: not CSV (a quote that is not closed?)"
        ) from None
    except RecordError as problem:
        raise ScanError(f"{where}: {problem}") from None
    return rows
