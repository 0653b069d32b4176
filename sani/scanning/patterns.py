"""Identifiers by pattern: Presidio's recognizers, and ours for what clinical text needs.

What is looked for is data, in ``recognizers.yaml``: headings with the value that follows (all
headings are found at once, by an Aho-Corasick automaton over the folded text), expressions that
stand on their own, and names of Presidio's classes, whose expressions, checksums and context words
are used as they are. Presidio's own engine is not: it tags and parses each text for the context
words alone, skips an expression that takes too long, and asks the network for e-mail addresses.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ahocorasick
import regex

from sani.corpus.documents import Span
from sani.errors import ScanError
from sani.scanning.labels import kind_of, read_data, scan_label
from sani.scanning.plausible import is_month_in_time
from sani.scanning.windows import moved, windows
from sani.text.folding import Folded, fold, fold_text
from sani.values.dates import month_names
from sani.values.names import listed_names

SOURCE = "pattern"
TIMEOUT_SECONDS = 30.0
_PIECE = regex.compile(r"\{([a-z_]+)\}")
_PRESIDIO_FLAGS = regex.DOTALL | regex.MULTILINE | regex.IGNORECASE
# Presidio's rule: a context word within five words before raises a score by 0.35, to at least 0.4.
_CONTEXT_WORDS, _CONTEXT_CHARACTERS = 5, 80
_CONTEXT_BONUS, _CONTEXT_LEAST = 0.35, 0.4
_NUMBER_LINE = regex.compile(r"[^\n]*?\d(?:[^\w\n]{0,3}\d){6}[^\n]*")
_OPENING = ' \t"\u201c'
_TRAILING = " \t\r\n.,;:-\u2013(["

Check = Callable[[regex.Match[str]], tuple[int, int] | None]


def find_by_pattern(text: str) -> list[Span]:
    """Find everything in a text that looks like an identifier, overlaps included.

    Raises:
        ScanError: If an expression takes longer than `TIMEOUT_SECONDS` on one window of the text:
            what it would have found is not known, so nothing is passed over in silence.
    """
    spans: set[Span] = set()
    for window in windows(text):
        folded = fold(window.text)
        try:
            for recognize in (_presidio, _fields, _expressions):
                for span in recognize(window.text, folded):
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
    for build in (_recognizers, _headings, _compiled_expressions, _listed_names, _suffixes):
        build()


def _span(text: str, start: int, end: int, label: str, score: float) -> Span:
    return Span(start, end, label, kind_of(label, text[start:end]), SOURCE, round(score, 4))


# --- Presidio ---------------------------------------------------------------------------------


def _presidio(text: str, folded: Folded) -> Iterator[Span]:
    """Find what Presidio's recognizers know, with its scores."""
    lower = text.lower()
    threshold = read_data("recognizers.yaml")["presidio_threshold"]
    for recognizer, label in _recognizers():
        if recognizer.name == "PhoneRecognizer":
            hits = _by_lines(recognizer, text)
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

    data = read_data("recognizers.yaml")
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
    heading: str | None


def _fields(text: str, folded: Folded) -> Iterator[Span]:
    """Find the value after each heading that stands in the text as words of its own."""
    for last, (length, fields) in _headings().iter(folded.text):
        first, after = last + 1 - length, last + 1
        if folded.text[first - 1 : first].isalnum() or folded.text[after : after + 1].isalnum():
            continue
        before, place = folded.original(first, after)
        for field in fields:
            match = field.value.match(text, place, timeout=TIMEOUT_SECONDS)
            if match is not None:
                if field.heading:
                    yield _span(text, before, place, field.heading, field.score)
                start, end = match.span("value")
                end = _stripped(text, start, end)
                yield _span(text, start, end, field.label, field.score)


def _stripped(text: str, start: int, end: int) -> int:
    """Return the end without trailing blanks and punctuation."""
    return start + len(text[start:end].rstrip(_TRAILING))


@cache
def _headings() -> Any:
    """Return all headings, each with its length and the fields that it opens."""
    data = read_data("recognizers.yaml")
    fields: dict[str, list[_Field]] = {}
    for row in data["fields"]:
        separator = data["separators"][row["separator"]]
        value = regex.compile(f"{separator}(?P<value>{_expand(data['pieces'][row['value']])})")
        for heading in row["after"]:
            field = _Field(row["label"], row["score"], value, row.get("heading"))
            fields.setdefault(fold_text(heading), []).append(field)
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
    check: Check | None


def _expressions(text: str, folded: Folded) -> Iterator[Span]:
    for row in _compiled_expressions():
        for match in row.pattern.finditer(text, timeout=TIMEOUT_SECONDS):
            extent = row.check(match) if row.check else match.span()
            if extent is not None:
                start, end = extent
                yield _span(text, start, _stripped(text, start, end), row.label, row.score)


def find_dates(text: str) -> Iterator[tuple[int, int]]:
    """Find the start and end of what is written like a date; the text must not be long."""
    for row in _compiled_expressions():
        if row.label == "DATE":
            for match in row.pattern.finditer(text, timeout=TIMEOUT_SECONDS):
                yield match.start(), _stripped(text, *match.span())


@cache
def _compiled_expressions() -> tuple[_Expression, ...]:
    data = read_data("recognizers.yaml")
    return tuple(
        _Expression(
            row["label"],
            row["score"],
            regex.compile(
                _expand(row["expression"]), regex.IGNORECASE if row.get("ignore_case") else 0
            ),
            _CHECKS[row["check"]] if "check" in row else None,
        )
        for row in data["patterns"]
    )


def _expand(expression: str) -> str:
    """Put its pieces into an expression; what stands in braces otherwise stays."""
    pieces = _pieces()
    while any(match[1] in pieces for match in _PIECE.finditer(expression)):
        expression = _PIECE.sub(lambda match: pieces.get(match[1], match[0]), expression)
    return expression


@cache
def _pieces() -> dict[str, str]:
    data = read_data("recognizers.yaml")
    months = {name for one in data["month_languages"] for name in month_names(one).values()}
    names = sorted({regex.escape(name) for name in months} | {"sept"}, key=lambda n: (-len(n), n))
    particles = "(?:" + "|".join([*data["particle_phrases"], *data["particles"]]) + ")"
    return {**data["pieces"], "month": "|".join(names), "particle": particles}


def _listed_name(match: regex.Match[str]) -> tuple[int, int] | None:
    """Cut a match at its first listed given name, or at the word before a listed surname.

    A given name may also stand last, after a surname in capitals: ``LIMONE Félicia``.
    """
    given, surnames = _listed_names()
    words = [
        (*word.span(), fold_text(word.group()))
        for word in regex.finditer(r"[\p{L}\p{M}]{2,}", match.group())
    ]
    for place, end, word in words:
        if word in given and end < len(match.group()):  # a word or an initial follows
            if word in _number_headings() and match.group()[place:end].isupper():
                continue  # IBAN, before its number; Iban is a name
            return match.start() + place, match.end()
    *_, before, last = regex.finditer(r"\S+", match.group())
    if fold_text(last.group()) in given and before.group().isupper() > last.group().isupper():
        return match.start() + before.start(), match.end()
    if match.group().isupper():
        return None
    for number, (_, _, word) in enumerate(words):
        if word in surnames and number:
            return match.start() + words[number - 1][0], match.end()
    return None


def _given_name(match: regex.Match[str]) -> tuple[int, int] | None:
    """Return a given name alone, if it announces no name and is no ordinary word of the text."""
    start = match.end() - len(match.group().lstrip(_OPENING))
    word = match.string[start : match.end()]
    folded = fold_text(word)
    if folded not in _listed_names()[0] or folded in _announcing():
        return None
    if is_month_in_time(match.string, start, match.end()):
        return None
    ordinary = regex.search(rf"(?<!\w){regex.escape(word.lower())}(?!\w)", match.string)
    return None if ordinary else (start, match.end())


def _given_name_last(match: regex.Match[str]) -> tuple[int, int] | None:
    last = match.group().rsplit(" ", 1)[1]
    return match.span() if fold_text(last) in _listed_names()[0] else None


@cache
def _announcing() -> frozenset[str]:
    """Return the words before a name, folded: Signe is a name, Signé more often announces one."""
    rows = read_data("recognizers.yaml")["fields"]
    return frozenset(word for row in rows if row["label"] == "NAME" for word in row["after"])


@cache
def _number_headings() -> frozenset[str]:
    """Return the headings of everything but names, folded."""
    rows = read_data("recognizers.yaml")["fields"]
    return frozenset(
        fold_text(word) for row in rows if row["label"] != "NAME" for word in row["after"]
    )


def _listed_names() -> tuple[frozenset[str], frozenset[str]]:
    """Return given names and surnames that Faker lists, folded."""
    return listed_names(tuple(read_data("recognizers.yaml")["name_locales"]))


def _age(match: regex.Match[str]) -> tuple[int, int] | None:
    digits = regex.search(r"\d+", match.group())
    return match.span() if digits and int(digits[0]) <= 120 else None


def _street(match: regex.Match[str]) -> tuple[int, int] | None:
    """Return a match that has a number, or a name with a capital: "place on" is no address."""
    words = match.group().split()
    named = any(word[0].isupper() for word in regex.split(r"[ '\u2019]", match.group())[1:] if word)
    return match.span() if words[0][0].isdigit() or named else None


def _letters_and_digits(match: regex.Match[str]) -> tuple[int, int] | None:
    kinds = {unicodedata.category(character)[0] for character in match.group()}
    return match.span() if {"L", "N"} <= kinds else None


_CHECKS: dict[str, Check] = {
    "listed_name": _listed_name,
    "given_name": _given_name,
    "given_name_last": _given_name_last,
    "age": _age,
    "street": _street,
    "letters_and_digits": _letters_and_digits,
}
