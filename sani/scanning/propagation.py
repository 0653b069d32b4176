"""Propagation: a value found once for a subject is looked for in all of the subject's documents.

Also in the other forms it takes: a name's parts, initials and order, a date in another format, a
number with other separators. What a detector misses in one place it has often found in another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date
from typing import Literal

import regex

from sani.corpus.documents import Document, Kind, Span
from sani.scanning.labels import scan_label
from sani.scanning.patterns import find_dates
from sani.scanning.plausible import (
    is_eponym,
    is_heading,
    is_listed_name,
    is_month_in_time,
    starts_a_sentence,
)
from sani.scanning.recognizers.tables import common
from sani.scanning.terms import Finder, Value
from sani.scanning.windows import windows
from sani.text.folding import APOSTROPHES, fold, fold_text
from sani.values.dates import days_in, find_days

SOURCE = "propagation"
SCORE = 0.6
LEAST_SCORE = 0.5  # weaker findings are not spread
SHORTEST_PART = 3
SHORTEST_NUMBER = 4  # of digits alone
FEWEST_DIGITS = 6
Scope = Literal["subject", "corpus"]

# Labels whose values say little by themselves: repeating them would mark ordinary words.
NOT_PROPAGATED = frozenset({"AGE", "DEMOGRAPHIC", "OTHER", "NGRAM", "LOCATION", "ORGANIZATION"})
_DIGITS = regex.compile(r"\d(?:[ .()/-]{0,2}\d){5,}")  # in folded text
# With every apostrophe, every hyphen, and what is invisible inside a word (a soft hyphen).
_NAME_WORD = regex.compile(rf"[\p{{L}}\p{{M}}\p{{Cf}}\p{{Pd}}{APOSTROPHES}]+")
# The words, in en, es, de, fr, it, pt and nl, that stand between the parts of a name.
_PARTICLES = frozenset(common()["particles"])


def propagate(
    documents: Sequence[Document],
    *,
    scope: Scope = "subject",
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[Span]]:
    """Find the known values of each document's subject in it; spans may overlap those it has.

    Args:
        documents: With the spans found so far.
        scope: ``subject`` looks in the documents of the same subject, ``corpus`` in all.
        on_step: Called with documents done and documents in all.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        groups[document.subject_id if scope == "subject" else ""].append(number)
    spans_of: list[list[Span]] = [[] for _ in documents]
    done = 0
    for numbers in groups.values():
        values = {
            (span.label, span.kind, document.value(span))
            for document in (documents[number] for number in numbers)
            for span in document.spans
            if span.score >= LEAST_SCORE and scan_label(span.label) not in NOT_PROPAGATED
        }
        finder = Finder(form for value in sorted(values) for form in forms(*value))
        dates = _known_days(values)
        digits = _known_numbers(values)
        lower = {
            fold_text(word)
            for number in numbers
            for word in _NAME_WORD.findall(documents[number].text)
            if word.islower()
        }
        for number in numbers:
            text = documents[number].text
            known = {span for span in finder.find(text) if not _is_ordinary(text, span, lower)}
            spans_of[number] = sorted(
                {*known, *_find_dates(text, dates), *_find_numbers(text, digits)}
            )
            done += 1
            if on_step:
                on_step(done, len(documents))
    return spans_of


def _is_ordinary(text: str, span: Span, lower: Collection[str]) -> bool:
    """Return whether one word of a name stands here as an ordinary word.

    That is a month in a date, an eponym, or a word on no list of names that starts a sentence,
    where its capital says nothing, and that the subject's documents also write with a small letter.
    """
    word = text[span.start : span.end]
    if scan_label(span.label) != "NAME" or not word.isalpha():
        return False
    if is_month_in_time(text, span.start, span.end) or is_eponym(text, span.start, span.end):
        return True
    ordinary = fold_text(word) in lower and not is_listed_name(word)
    return ordinary and starts_a_sentence(text, span.start)


def forms(label: str, kind: Kind, value: str) -> Iterator[Value]:
    """Yield a value as it is and, if it is a name, in its other forms.

    Surname and given name alone, surname first, given names as initials.
    """
    bare = value.strip()
    if len(bare) < (SHORTEST_NUMBER if bare.isdigit() else SHORTEST_PART):
        return
    name = scan_label(label) == "NAME"
    # A name of one word may be an ordinary word too (May, Rose), but not with a small letter.
    yield Value(value, label, kind, SOURCE, SCORE, cased=name and len(bare.split()) == 1)
    if name:
        for form in _name_forms(value):
            yield Value(form, label, kind, SOURCE, SCORE, cased=True)


def _name_forms(name: str) -> Iterator[str]:
    words = [word for word in _NAME_WORD.findall(name) if any(map(str.isalpha, word))]
    full = [word for word in words if len(word) > 1]
    yield from (
        word
        for word in full
        if len(word) >= SHORTEST_PART
        and fold_text(word) not in _PARTICLES
        and not (word.islower() or is_heading(word))
    )
    if len(words) > 1 and len(words[-1]) > 1 and words[0][0].isupper():
        yield f"{words[0][0]}.{words[-1][0]}."  # L.V.
    yield from (f"{word}s" for word in full[-1:] if len(word) > SHORTEST_PART and word[-1] != "s")
    if len(words) < 2:
        return
    given, surname = words[:-1], words[-1]
    initials = [word[0] + "." for word in given if fold_text(word) not in _PARTICLES]
    if initials:
        yield f"{initials[0]} {surname}"
        yield f"{' '.join(initials)} {surname}"
        yield f"{''.join(initials)} {surname}"
        yield f"{surname}, {initials[0]}"
        yield f"{surname} {initials[0]}"
    yield f"{surname}, {' '.join(given)}"
    yield f"{surname} {' '.join(given)}"


def _known_days(values: set[tuple[str, Kind, str]]) -> dict[date, tuple[str, Kind]]:
    """Return each day that a date among the values may mean, with the date's label and kind."""
    return {
        day: (label, kind)
        for label, kind, value in sorted(values)
        if scan_label(label) == "DATE"
        for day in days_in(value)
    }


def _find_dates(text: str, known: dict[date, tuple[str, Kind]]) -> Iterator[Span]:
    """Find dates of any shape that may mean a known day."""
    for window in windows(text) if known else ():
        for start, end, days in _dated(window.text):
            if window.owns(start):
                place = window.offset + start, window.offset + end
                for day in known.keys() & days:
                    yield Span(*place, *known[day], SOURCE, SCORE)


def _dated(text: str) -> Iterator[tuple[int, int, Collection[date]]]:
    """Find what the recognizers take for a date, and every full date, and read them."""
    for start, end in find_dates(text):
        yield start, end, days_in(text[start:end])
    folded = fold(text)
    for start, end, days in find_days(folded.text):
        yield *folded.original(start, end), days


def _known_numbers(values: set[tuple[str, Kind, str]]) -> dict[str, tuple[str, Kind]]:
    """Return the digits of each long number among the values, with its label and kind."""
    numbers = {}
    for label, kind, value in sorted(values):
        digits = "".join(filter(str.isdigit, fold_text(value)))
        letters = sum(character.isalpha() for character in value)
        if scan_label(label) != "DATE" and len(digits) >= FEWEST_DIGITS > letters:
            numbers[digits] = (label, kind)
    return numbers


def _find_numbers(text: str, numbers: dict[str, tuple[str, Kind]]) -> Iterator[Span]:
    """Find known numbers, whatever stands between their digits."""
    if not numbers:
        return
    folded = fold(text)
    for match in _DIGITS.finditer(folded.text):
        digits = "".join(filter(str.isdigit, match.group()))
        if digits in numbers:
            yield Span(*folded.original(*match.span()), *numbers[digits], SOURCE, SCORE)
