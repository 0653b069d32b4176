"""Identifiers by pattern: Presidio's recognizers, and ours for what clinical text needs.

What is looked for is data, in ``recognizers/``: headings with the value that follows (all headings
are found at once, by an Aho-Corasick automaton over the folded text), expressions that stand on
their own, and names of Presidio's classes, whose expressions, checksums and context words are used
as they are. Presidio's own engine is not: it tags and parses each text for the context words alone,
skips an expression that takes too long, and asks the network for e-mail addresses.

Everything is looked for in the plain reading of a text (`sani.text.plain`), so that a value is
found whole wherever a line ends in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ahocorasick
import regex

from sani.corpus.documents import Span
from sani.errors import ScanError
from sani.scanning.labels import kind_of, scan_label
from sani.scanning.matches import Rule, rule
from sani.scanning.recognizers.tables import (
    common,
    expressions,
    folded_headings,
    given_names,
    headings,
)
from sani.scanning.windows import moved, windows
from sani.text.folding import Folded, fold
from sani.text.plain import plain

SOURCE = "pattern"
TIMEOUT_SECONDS = 30.0
_PRESIDIO_FLAGS = regex.DOTALL | regex.MULTILINE | regex.IGNORECASE
# Presidio's rule: a context word within five words before raises a score by 0.35, to at least 0.4.
_CONTEXT_WORDS, _CONTEXT_CHARACTERS = 5, 80
_CONTEXT_BONUS, _CONTEXT_LEAST = 0.35, 0.4
_DOTTED_WORD = regex.compile(r"[^\s.]*+\.[^\W\d_]\S+")
_NUMBER_LINE = regex.compile(r"[^\n]*?\d(?:[^\w\n]{0,3}\d){6}[^\n]*")
_LONGEST_WHOLE = 5  # letters of a word that must begin one; a longer one may end one: zehnjährige
_NEAR = 80  # characters beside a word that an expression needs
_TRAILING = " \t\r\n.,;:-\u2013(["


def find_by_pattern(text: str) -> list[Span]:
    """Find everything in a text that looks like an identifier, overlaps included.

    Raises:
        ScanError: If an expression takes longer than `TIMEOUT_SECONDS` on one window of the text:
            what it would have found is not known, so nothing is passed over in silence.
    """
    reading = plain(text)
    return sorted(located(span, reading) for span in find_in_plain(reading.text))


def located(span: Span, reading: Folded) -> Span:
    """Return a span of a plain reading, counted in the text that was read."""
    start, end = reading.original(span.start, span.end)
    return replace(span, start=start, end=end)


def find_in_plain(text: str) -> list[Span]:
    """Find as `find_by_pattern` does, in a text that `sani.text.plain` has read."""
    spans: set[Span] = set()
    for window in windows(text):
        folded = fold(window.text)
        try:
            for recognize in (_presidio, _fields, _expressions):
                for span in recognize(window.text, folded):
                    if span.start >= span.end:
                        continue
                    if share := window.share(span.start, span.end):
                        owned = replace(span, start=share[0], end=share[1])
                        spans.add(moved(owned, window.offset))
        except TimeoutError:
            raise ScanError(
                f"{recognize.__name__.strip('_')}: an expression took longer than "
                f"{TIMEOUT_SECONDS:.0f} s; look for a long run without blanks in the text"
            ) from None
    return sorted(spans)


def load_patterns() -> None:
    """Build everything that the first search would build, so that processes can share it."""
    for build in (_recognizers, _headings, _compiled_expressions, given_names, _suffixes):
        build()


def _span(text: str, start: int, end: int, label: str, score: float) -> Span:
    return Span(start, end, label, kind_of(label, text[start:end]), SOURCE, round(score, 4))


# --- Presidio ---------------------------------------------------------------------------------


def _presidio(text: str, folded: Folded) -> Iterator[Span]:
    """Find what Presidio's recognizers know, with its scores."""
    lower = text.lower()
    threshold = common()["presidio_threshold"]
    for recognizer, label in _recognizers():
        if recognizer.name == "PhoneRecognizer":
            hits = _by_lines(recognizer, text)
        elif recognizer.name == "UrlRecognizer":
            hits = _by_words(recognizer, text)
        elif hasattr(recognizer, "patterns") and not _analyzes_itself(recognizer):
            hits = _by_expression(recognizer, text)
        else:
            results = recognizer.analyze(text, recognizer.supported_entities)
            hits = ((result.start, result.end, result.score) for result in results)
        for start, end, score in hits:
            if score < 1.0 and _in_context(recognizer.context, lower, start):
                score = min(1.0, max(score + _CONTEXT_BONUS, _CONTEXT_LEAST))
            if score >= threshold:
                yield _span(text, start, end, label, score)


def _by_expression(recognizer: Any, text: str) -> Iterator[tuple[int, int, float]]:
    """Apply a recognizer's expressions and its checksum; a failed one is no finding."""
    for pattern in recognizer.patterns:
        for match in _compiled(pattern.regex).finditer(text, timeout=TIMEOUT_SECONDS):
            value = match.group()
            if not value:
                continue
            valid = recognizer.validate_result(value)
            if valid is False or recognizer.invalidate_result(value):
                continue
            yield match.start(), match.end(), 1.0 if valid else pattern.score


def _by_lines(recognizer: Any, text: str) -> Iterator[tuple[int, int, float]]:
    """Find phone numbers, only in lines with seven digits near each other."""
    for line in _NUMBER_LINE.finditer(text, timeout=TIMEOUT_SECONDS):
        for result in recognizer.analyze(line.group(), recognizer.supported_entities):
            yield line.start() + result.start, line.start() + result.end, result.score


def _by_words(recognizer: Any, text: str) -> Iterator[tuple[int, int, float]]:
    """Find web addresses, only in words with a period inside: they hold no blank."""
    for word in _DOTTED_WORD.finditer(text, timeout=TIMEOUT_SECONDS):
        for start, end, score in _by_expression(recognizer, word.group()):
            yield word.start() + start, word.start() + end, score


def _in_context(words: list[str] | None, lower: str, start: int) -> bool:
    """Return whether a context word stands within, or is part of, the five words before."""
    if not words or start >= len(lower):
        return False
    before = lower[max(0, start - _CONTEXT_CHARACTERS) : start].split()[-_CONTEXT_WORDS:]
    return any(word in other for word in words for other in before)


@cache
def _compiled(expression: str) -> regex.Pattern[str]:
    return regex.compile(expression, _PRESIDIO_FLAGS)


@cache
def _recognizers() -> tuple[tuple[Any, str], ...]:
    """Return Presidio's recognizers by name, and what the scan calls their findings."""
    from presidio_analyzer import predefined_recognizers

    data = common()
    options = {"PhoneRecognizer": {"supported_regions": tuple(data["phone_regions"])}}
    made = []
    for name in data["presidio"]:
        recognizer = getattr(predefined_recognizers, name)(**options.get(name, {}))
        if name == "EmailRecognizer":
            recognizer.validate_result = _has_public_suffix
        recognizer.context = [word.lower() for word in recognizer.context or ()]
        made.append((recognizer, scan_label(recognizer.supported_entities[0])))
    return tuple(made)


def _analyzes_itself(recognizer: Any) -> bool:
    from presidio_analyzer import PatternRecognizer

    return type(recognizer).analyze is not PatternRecognizer.analyze


@cache
def _suffixes() -> Any:
    """Return the public suffix list that comes with the library: no download, no cache on disk."""
    from tldextract import TLDExtract

    return TLDExtract(suffix_list_urls=(), fallback_to_snapshot=True, cache_dir=None)


def _has_public_suffix(value: str) -> bool:
    """Check an e-mail address as Presidio does, without its request to the network."""
    return bool(_suffixes()(value).fqdn)


# --- headings, and the values after them ------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    label: str
    score: float
    value: regex.Pattern[str]
    check: Rule
    heading: str | None
    fused: bool


def _fields(text: str, folded: Folded) -> Iterator[Span]:
    """Find the value after each heading that stands in the text as words of its own."""
    for last, (length, fields) in _headings().iter(folded.text):
        first, after = last + 1 - length, last + 1
        around = folded.text[first - 1 : first], folded.text[after : after + 1]
        if around[0].isalnum():
            continue
        before, place = folded.original(first, after)
        for field in fields:
            if around[1].isalnum() and not field.fused:
                continue
            match = field.value.match(text, place, timeout=TIMEOUT_SECONDS)
            if match is None:
                continue
            for start, end in field.check(match):
                if field.heading:
                    yield _span(text, before, place, field.heading, field.score)
                yield _span(text, start, _stripped(text, start, end), field.label, field.score)


def _stripped(text: str, start: int, end: int) -> int:
    """Return the end without trailing blanks and punctuation."""
    return start + len(text[start:end].rstrip(_TRAILING))


@cache
def _headings() -> Any:
    """Return all headings, each with its length and the fields that it opens."""
    fields: dict[str, dict[_Field, None]] = {}
    for row in headings():
        field = _Field(
            row.label, row.score, regex.compile(row.value), rule(row.check), row.heading,
            row.kind == "fused_name",
        )  # fmt: skip
        for heading in folded_headings(row):
            fields.setdefault(heading, {})[field] = None
    automaton = ahocorasick.Automaton()
    for heading, opened in fields.items():
        automaton.add_word(heading, (len(heading), tuple(opened)))
    automaton.make_automaton()
    return automaton


# --- expressions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Expression:
    label: str
    score: float
    pattern: regex.Pattern[str]
    check: Rule
    needs: str = ""
    near: tuple[str, ...] = ()


def _expressions(text: str, folded: Folded) -> Iterator[Span]:
    for row, (start, end) in _places(text, folded):
        yield _span(text, start, _stripped(text, start, end), row.label, row.score)


def find_dates(text: str) -> Iterator[tuple[int, int]]:
    """Find the start and end of what is written like a date; the text must not be long."""
    for _, (start, end) in _places(text, fold(text), "DATE"):
        yield start, _stripped(text, start, end)


def _places(
    text: str, folded: Folded, label: str | None = None
) -> Iterator[tuple[_Expression, tuple[int, int]]]:
    """Yield what the expressions mark, of one label if it is given."""
    near = _near(folded)
    for number, row in enumerate(_compiled_expressions()):
        if (row.needs and row.needs not in text) or label not in (None, row.label):
            continue
        stretches = near.get(number, ()) if row.near else ((0, len(text)),)
        for start, end in stretches:
            for match in row.pattern.finditer(text, start, end, timeout=TIMEOUT_SECONDS):
                for place in row.check(match):
                    yield row, place


def _near(folded: Folded) -> dict[int, list[tuple[int, int]]]:
    """Return where to look with each expression that needs one of some words: around them."""
    stretches: dict[int, list[tuple[int, int]]] = {}
    text = folded.text
    for last, (length, numbers) in _words_needed().iter(text):
        first, after = last + 1 - length, last + 1
        joined = text[first].isalpha() and text[first - 1 : first].isalpha()
        if joined and length <= _LONGEST_WHOLE:
            continue
        if text[after : after + 1].isalpha():
            continue
        start, end = folded.original(first, after)
        start, end = max(0, start - _NEAR), end + _NEAR
        for number in numbers:
            known = stretches.setdefault(number, [])
            if known and known[-1][1] >= start:
                start = known.pop()[0]
            known.append((start, end))
    return stretches


@cache
def _words_needed() -> Any:
    """Return the words that expressions need, each with its length and the expressions."""
    numbers: dict[str, set[int]] = {}
    for number, row in enumerate(_compiled_expressions()):
        for word in row.near:
            numbers.setdefault(word, set()).add(number)
    automaton = ahocorasick.Automaton()
    for word, of_word in numbers.items():
        automaton.add_word(word, (len(word), tuple(sorted(of_word))))
    automaton.make_automaton()
    return automaton


@cache
def _compiled_expressions() -> tuple[_Expression, ...]:
    return tuple(
        _Expression(
            row.label,
            row.score,
            regex.compile(row.expression, regex.IGNORECASE if row.ignore_case else 0),
            rule(row.check),
            row.needs,
            row.near,
        )
        for row in expressions()
    )
