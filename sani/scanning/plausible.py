"""Rules that tell findings of a model from debris: ordinary words, quantities, relative times.

A model that was trained on news takes "Cr 0.9" for a person and "daily" for a date. Each rule says
what no identifier of that label looks like; none is a list of cases. Only findings of a model pass
through here: what a pattern finds after a heading or a title stays.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import regex
from babel import Locale

from sani.corpus.documents import Span
from sani.scanning.labels import read_data
from sani.scanning.pipelines import is_foreign, language_in, stop_words
from sani.scanning.recognizers.tables import (
    common,
    given_names,
    heading_words,
    ordinary_words,
    surnames,
)
from sani.text.folding import fold_text
from sani.values.dates import month_names, names_a_day

_WORD = regex.compile(r"[\p{L}\p{M}][\p{L}\p{M}'\u2019.-]*")
_EDGES = "()[]{}.,;:!?\"'\u2018\u2019\u201c\u201d/\\|*#=-"
# A measurement, a ratio, a range; an ICD-10 code; a vertebra. Longer numbers may identify.
_QUANTITY = regex.compile(r"[<>≤≥~±+-]?\d{1,3}(?:[.,:/x-]\d{1,3}){0,2}[%+]?")
_CODE = regex.compile(r"[A-TV-Z]\d[\dA-Z]\.[\dA-Z]{1,4}|[CTLS]\d{1,2}(?:[-/][CTLS]?\d{1,2})?")
_CATEGORY = regex.compile(r"[A-TV-Z]\d[\dA-Z]")  # of ICD-10; a room may be called so, a person not
_DOSE = regex.compile(r"[ ]?[<>]?\d[\d.,/-]*[ ]?(?P<unit>[\p{L}%µ]+)(?:/[\p{L}\d]+)?")
_RESULT = regex.compile(r"[ ]\d+(?:[.,]\d+)?(?![\d/-])")
_YEAR = regex.compile(r"(?<!\d)(?:19|20)\d{2}(?!\d)|['\u2019]\d{2}\b")
_SENTENCE_START = regex.compile(r"(?:^|[.!?:;\n\r•*-]|\d\))[\s\"'(]*$")
# A day or a year on the same line, or a word. A longer number before a month is no time.
_BEFORE = regex.compile(
    r"(?:(?<!\d)(\d{1,2}|\d{4})(?:st|nd|rd|th)?[^\S\n]*[,.]?[^\S\n]*|(\p{L}+)[\s,.]*)$"
)
_TIME_AFTER = regex.compile(r"[^\S\n]*[,.]?[^\S\n]*\d{1,4}(?!\d)")
_NOUN = regex.compile(r"(?P<of>['\u2019]s?)?[ -]+(?P<noun>\p{L}+)")
_SEPARATOR = regex.compile(r"\n|[;|\t]|\s[-\u2013\u2014]+\s")
_HEADED = regex.compile(r"(?P<heading>\D*?)[ :#.]+(?P<rest>\d\S*.*)")
_HEADING_BEHIND = regex.compile(r"(?P<rest>.*[^\s:#])\s+(?P<heading>[^\W\d]+)[:#]?")
_ANNOUNCES = regex.compile(r"[ ]*[:#]?[ ]*\d")
_LONG_NUMBER = regex.compile(r"\d{4}")
_SHORT = 4  # letters of an abbreviation of a laboratory


def plausible(
    spans: Sequence[Span], text: str, *, words: Container[str], language: str
) -> list[Span]:
    """Return the findings of a model that may be what their label says.

    Args:
        spans: In the text, with labels of the scan.
        text: The text.
        words: Ordinary words of the model's language, folded; may hold names too.
        language: The model's language in ISO 639-1; empty if it is not known.
    """
    spoken = language_in(text)
    foreign = bool(language) and is_foreign(text, language)  # it knows no word of the text
    lower = {fold_text(word) for word in _WORD.findall(text) if word.islower()}
    ordinary = _Ordinary(() if foreign else words, lower, stop_words(spoken), spoken or "")
    pieces = [piece for span in spans for piece in _parts(span, text)]
    judge = _is_plausible_abroad if foreign else _is_plausible
    return [span for span in pieces if judge(span, text, ordinary)]


def is_relative(value: str, ordinary: Container[str] = (), *, first: bool = False) -> bool:
    """Return whether a time names no day, month or year: "tonight", "several days ago", "2 weeks".

    Args:
        value: A time that a model took for a date.
        ordinary: Ordinary words.
        first: Whether its first word starts a sentence, so that a capital there says nothing.
    """
    if _YEAR.search(value) or names_a_day(value):
        return False
    words = _WORD.findall(value)
    if any(fold_text(word.strip(".")) in _days_and_months(word[0].isupper()) for word in words):
        return False
    if first and words and words[0] in ordinary:
        words = words[1:]
    return not any(word[0].isupper() for word in words)  # a capital: a holiday, a season


def is_eponym(text: str, start: int, end: int) -> bool:
    """Return whether a word stands before a clinical noun that makes it no person's name."""
    match = _NOUN.match(text[end : end + 40])
    if match is None or " " in text[start:end].strip():
        return False
    noun = fold_text(match["noun"])
    if noun in _listed("eponym_of"):
        return True
    if match["of"]:  # "Smith's line" is a line of Smith
        return False
    unlisted = not is_listed_name(text[start:end])
    return noun in _listed("eponym") or (unlisted and noun in _listed("eponym_of_unlisted"))


_EPONYM_NOUN = regex.compile(
    r"(?i)\b(?:signo|signe|sonda|sonde|maladie|enfermedad|s[ií]ndrome|syndrome|morbus|escala|score|test|maniobra|reflejo|"
    r"r[ée]flexe|zeichen|katheter|cat[ée]ter|malattia|segno|doen[çc]a|ziekte|french|fr|classification|clasificaci[óo]n|point|punto)"
    r"[ ](?:de[ ]|di[ ]|nach[ ]|van[ ]|of[ ])?$"
)


def is_after_eponym_noun(text: str, start: int) -> bool:
    """Return whether a clinical noun stands before: signo de Murphy, Morbus Crohn."""
    return _EPONYM_NOUN.search(text[max(0, start - 30) : start]) is not None


def is_month_in_time(text: str, start: int, end: int) -> bool:
    """Return whether a word is a month beside a number, or after a word that a time follows."""
    if fold_text(text[start:end].strip(".")) not in _months():
        return False
    before = _BEFORE.search(text[max(0, start - 20) : start])
    after = _TIME_AFTER.match(text[end : end + 10])
    if after or (before and before[1]):
        return True
    return bool(before and fold_text(before[2]) in _listed("before_months"))


def is_heading(value: str) -> bool:
    """Return whether a value is what announces one, and no name: "Med Rec No", "DNI"."""
    words = fold_text(value.strip(_EDGES)).split()
    while len(words) > 1 and words[-1].strip(_EDGES) in _listed("numbers"):
        words = words[:-1]
    heading = " ".join(words)
    return heading in _headings() and heading not in _names()


def starts_a_sentence(text: str, start: int) -> bool:
    """Return whether a capital here says nothing: a line, a sentence or an item starts."""
    return _SENTENCE_START.search(text[max(0, start - 8) : start]) is not None


@dataclass(frozen=True)
class _Ordinary:
    """The ordinary words of a text.

    Attributes:
        words: Those of its language, if the model knows them; some of them are names too.
        lower: Those that stand in the text with a small letter.
        stop: The stop-words of its language.
        language: In ISO 639-1; empty if it is not known.
    """

    words: Container[str]
    lower: Collection[str]
    stop: Collection[str]
    language: str = ""

    def __contains__(self, word: object) -> bool:
        """Return whether a word of a name is an ordinary word, and on no list of names."""
        folded = fold_text(str(word))
        if folded in _names():
            return False
        return (
            folded in self.lower
            or folded in self.stop
            or folded in _headings()
            or folded in _listed("units")
            or (folded in self.words and len(folded) >= _SHORT)
        )


def _is_plausible(span: Span, text: str, ordinary: _Ordinary) -> bool:
    """Return whether a finding of a model may be what its label says."""
    value = text[span.start : span.end]
    if span.label == "DATE":
        if _is_number_without_unit(text, span.start, span.end):
            return True
        first = starts_a_sentence(text, span.start)
        return not is_relative(value, ordinary, first=first)
    if span.label not in ("NAME", "LOCATION", "ORGANIZATION"):
        return True
    bare = value.strip(_EDGES)
    if span.label == "NAME" and _CATEGORY.fullmatch(bare):
        return False
    if bare.isupper() and bare.isalpha() and len(bare) < _SHORT and not is_listed_name(bare):
        return False  # CHF, WBC; a state of two letters names nobody
    tokens = [token for token in value.split() if not _is_quantity(token)]
    names = [word for token in tokens for word in _WORD.findall(token)]
    places = (text, span.start, span.end)
    if len(names) == 1 and (is_eponym(*places) or is_month_in_time(*places)):
        return False
    if any(is_listed_name(word) for word in names):
        return True
    if any(character.isdigit() for token in tokens for character in token):
        return True  # what is no quantity may be a number of a person
    if not any(_has_capital(word) for word in names) or is_heading(value):
        return False
    if len(names) > 1:
        return span.label != "NAME" or not all(word in ordinary for word in names)
    if _is_measured(text, span, names[0]):
        return False
    return span.label == "LOCATION" or names[0] not in ordinary


def _is_plausible_abroad(span: Span, text: str, ordinary: _Ordinary) -> bool:
    """Return whether a finding of a model may be what its label says in a language not its own.

    To such a model each word with a capital is a name: all nouns of German, all first words. What
    remains says it by itself: a listed name, two capitals side by side that are no words, a number.
    """
    if not _is_plausible(span, text, ordinary):
        return False
    value = text[span.start : span.end]
    words = _WORD.findall(value)
    if span.label == "DATE":
        months = _days_and_months(True)
        return any(map(str.isdigit, value)) or any(fold_text(w.strip(".")) in months for w in words)
    if not words:
        return any(map(str.isdigit, value))
    if any(is_listed_name(word) and not is_ordinary_word(word) for word in words):
        return True
    if span.label == "NAME" and any(map(str.isdigit, value)):
        return _LONG_NUMBER.search(value) is not None
    nouns = ordinary.language == "de"  # which have a capital, whatever they mean
    alone = len(words) < 2 and (nouns or starts_a_sentence(text, span.start))
    if alone or (nouns and span.label != "NAME"):
        return False
    return all(_has_capital(word[0]) for word in words if word not in _particles()) and not any(
        word in ordinary or is_ordinary_word(word) or (word.isupper() and len(word) < _SHORT)
        for word in words
        if word not in _particles()
    )


def is_ordinary_word(word: str) -> bool:
    """Return whether a word is no name by itself, whatever list has it."""
    folded = fold_text(word).strip("'-.").removesuffix("'s")
    return folded in ordinary_words() or folded in heading_words()


def _parts(span: Span, text: str) -> Iterator[Span]:
    """Yield what a finding holds on each line and between dashes: what follows is no part of it.

    "Ana Lima - DOB 06/20/1953" is a name, and a date that keeps its own place.
    """
    value = text[span.start : span.end]
    if span.label == "DATE":
        yield span
        return
    if not _SEPARATOR.search(value):
        yield _without_heading(span, text)
        return
    at = 0
    for separator in [*_SEPARATOR.finditer(value), None]:
        part = value[at : separator.start() if separator else len(value)]
        start = span.start + at + len(part) - len(part.lstrip())
        if part.strip():
            yield _without_heading(replace(span, start=start, end=start + len(part.strip())), text)
        at = separator.end() if separator else at


def _without_heading(span: Span, text: str) -> Span:
    """Return a finding without the heading of a number: in "Pager 4432", or "Lima, Ana  MRN: 7"."""
    value = text[span.start : span.end]
    match = _HEADED.match(value)
    if match is not None and is_heading(match["heading"]):
        return replace(span, start=span.start + match.start("rest"))
    match = _HEADING_BEHIND.fullmatch(value)
    announces = _ANNOUNCES.match(text[span.end : span.end + 10])
    if match is None or not announces or not is_heading(match["heading"]):
        return span
    return replace(span, end=span.start + match.end("rest"))


def _is_quantity(token: str) -> bool:
    """Return whether a token is a number of few digits, a unit, or a code of a classification."""
    bare = token.strip("()[],;:=.")
    parts = [part for part in bare.split("/") if part]
    return bool(
        _QUANTITY.fullmatch(bare)
        or _CODE.fullmatch(bare)
        or (parts and all(_QUANTITY.fullmatch(p) or _is_unit(p) for p in parts))
    )


def _is_unit(token: str) -> bool:
    return token.islower() and fold_text(token) in _listed("units")


def _has_capital(word: str) -> bool:
    """Return whether a word has a capital; a script without case has nothing but capitals."""
    return any(not character.islower() for character in word if character.isalpha())


def _is_number_without_unit(text: str, start: int, end: int) -> bool:
    """Return whether a number of four digits or more may be a postal code or a room."""
    if not regex.search(r"\d{4}", text[start:end]):
        return False
    unit = regex.match(r"\s?([\p{L}%]+)", text[end : end + 20])
    return not (unit and fold_text(unit[1]) in _listed("units"))


def _is_measured(text: str, span: Span, word: str) -> bool:
    """Return whether a quantity follows: a word before a dose, an abbreviation before a result."""
    end = text.index(word, span.start) + len(word)
    dose = _DOSE.match(text, end)
    if dose is not None and fold_text(dose["unit"]) in _listed("units"):
        return True
    return len(word) <= _SHORT and _RESULT.match(text, end) is not None


def is_listed_name(word: str) -> bool:
    """Return whether a word is on a list of given names or surnames."""
    return fold_text(word) in _names()


@cache
def _names() -> frozenset[str]:
    return given_names() | surnames()


@cache
def _headings() -> frozenset[str]:
    return _listed("headings") | heading_words()


@cache
def _months() -> frozenset[str]:
    """Return the names of months, in full and shortened, folded."""
    languages = common()["month_languages"]
    return frozenset(fold_text(name) for one in languages for name in month_names(one).values())


@cache
def _days_and_months(capital: bool) -> frozenset[str]:
    """Return the names of months and weekdays; shortened ones too if the word has a capital.

    "ago" is short for August in Spanish, and an ordinary word with a small letter.
    """
    languages = common()["month_languages"]
    widths = ("wide", "abbreviated") if capital else ("wide",)
    days = {
        fold_text(name)
        for one in languages
        for width in ("wide", "abbreviated")
        for name in Locale.parse(one).days["format"][width].values()
        if capital or width == "wide"
    }
    months = {
        fold_text(name)
        for one in languages
        for (way, _), name in month_names(one).items()
        if way.split()[-1] in widths
    }
    return frozenset(days | months)


@cache
def _particles() -> frozenset[str]:
    return frozenset(common()["particles"])


@cache
def _listed(name: str) -> frozenset[str]:
    return frozenset(fold_text(word) for word in read_data("plausible.yaml")[name])
