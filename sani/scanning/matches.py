"""Rules that a match of an expression must pass: a checksum, a list of names, no ordinary word.

Each rule takes a match and returns the stretches of it that are marked, or none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module

import regex

from sani.scanning.plausible import is_after_eponym_noun, is_eponym, is_month_in_time
from sani.scanning.plausible import is_ordinary_word as is_ordinary
from sani.scanning.recognizers.tables import (
    common,
    given_names,
    heading_words,
    ordinary_words,
    surnames,
)
from sani.text.folding import fold_text
from sani.values.dates import names_a_day

Match = regex.Match[str]
Places = list[tuple[int, int]]
Rule = Callable[[Match], Places]

_OPENING = ' \t"\u201c'
_WORD = regex.compile(r"[\p{L}\p{M}][\p{L}\p{M}'-]*")
_LOWER = regex.compile(r"(?<![\p{L}\p{M}'-])\p{Ll}[\p{Ll}\p{M}]+(?![\p{L}\p{M}])")
# Dotted letters that are no initials of a person.
_DOTTED = frozenset(common()["dotted"])


def spans_of(match: Match) -> Places:
    """Return what a match marks: its groups ``value``, or all of it."""
    return match.spans("value") if "value" in match.re.groupindex else [match.span()]


def rule(name: str) -> Rule:
    """Return the rule of this name; the empty name lets everything pass."""
    return _RULES[name]


# --- words ------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def lower_words(text: str) -> frozenset[str]:
    """Return the words that stand in a text with a small letter, folded."""
    return frozenset(map(fold_text, _LOWER.findall(text)))


def _words(value: str) -> list[str]:
    return _WORD.findall(value)


def _is_listed(word: str) -> bool:
    folded = fold_text(word)
    return folded in given_names() or folded in surnames()


# --- names ------------------------------------------------------------------------------------


def _name(match: Match) -> Places:
    """Return values without ordinary words at their end; none if they are nothing else."""
    return [place for start, end in spans_of(match) if (place := _trimmed(match, start, end))]


def _trimmed(match: Match, start: int, end: int) -> tuple[int, int] | None:
    value = match.string[start:end]
    words = list(_WORD.finditer(value))
    if words and all(is_ordinary(word.group()) and len(word.group()) > 1 for word in words):
        cued = len(words) == 1 and words[0].group()[:1].isupper() and not value.isupper()
        if not (cued and _may_be_called(match, words[0].group())):
            return None
    if not words and not regex.search(r"[^\x00-\x7f]", value):
        return None
    while len(words) > 1 and fold_text(words[-1].group()) in _after_names():
        words.pop()
        end = start + words[-1].end()
    if words and max(len(word.group()) for word in words) == 1 and len(value) > 1:
        return (start, end) if "." in value and value.count(".") > 1 else None
    return start, end


def _may_be_called(match: Match, word: str) -> bool:
    """Return whether a word that is ordinary may still be a name after a title: Nurse Hope."""
    return _is_listed(word) and fold_text(word) not in heading_words()


@cache
def _after_names() -> frozenset[str]:
    """Return the words with a capital that follow a name and are none: headings."""
    return heading_words() - given_names() - surnames()


def _person(match: Match) -> Places:
    """Return the value after the heading of a person: two words or more, or a listed one."""
    places = _name(match)
    kept = []
    for start, end in places:
        words = _words(match.string[start:end])
        one = len(words) == 1 and "." not in match.string[start:end]
        if one and not (_is_listed(words[0]) and not is_ordinary(words[0])):
            rest = match.string[end : end + 12]
            if is_ordinary(words[0]) or not regex.match(r",[ ](?:MD|M\.D|DO|RN|NP|PA)\b", rest):
                continue
        kept.append((start, end))
    return kept


def _unlisted(match: Match) -> Places:
    """Return values none of whose words is an ordinary one, in a list or in the text."""
    lower = lower_words(match.string)
    return [
        (start, end)
        for start, end in spans_of(match)
        if (words := _words(match.string[start:end]))
        and not any(is_ordinary(w) or fold_text(w) in lower or _is_abbreviation(w) for w in words)
        and not is_eponym(match.string, start, end)
        and not is_after_eponym_noun(match.string, start)
    ]


def _is_abbreviation(word: str) -> bool:
    return word.isupper() and 1 < len(word) <= 5


def _listed_name(match: Match) -> Places:
    """Cut a match at its first listed given name, or at the word before a listed surname.

    A given name may also stand last, after a surname in capitals: ``LIMONE Félicia``.
    """
    value, at = match.group(), match.start()
    words = [(*word.span(), fold_text(word.group())) for word in _WORD.finditer(value)]
    words = [word for word in words if len(word[2]) > 1]
    for number, (place, end, word) in enumerate(words):
        is_given = word in given_names() or word.split("-")[0] in given_names()
        if is_given and end < len(value):  # a word or an initial follows
            if word in ordinary_words() and not _is_full_name(words[number:]):
                continue
            if value[place:end].isupper() and word in heading_words():
                continue  # IBAN, before its number; Iban is a name
            if number and _is_surname_before(value, words[number - 1], (place, end)):
                place = words[number - 1][0]
            return _cut(match, at + place)
    *_, before, last = regex.finditer(r"\S+", value)
    capitals = before.group().isupper() > last.group().isupper()
    if fold_text(last.group()) in given_names() and capitals and not is_ordinary(before.group()):
        return [(at + before.start(), match.end())]
    if value.isupper():
        whole = words and words[-1][2] in given_names() and len(words) > 1
        plain_words = any(is_ordinary(word) for _, _, word in words)
        return _cut(match, at + words[0][0]) if whole and not plain_words else []
    for number, (_, _, word) in enumerate(words):
        if word in surnames() and number and not is_ordinary(word):
            start, _, first = words[number - 1]
            if (
                not is_ordinary(first)
                and not first.endswith("'s")
                and first not in lower_words(match.string)
            ):
                return _cut(match, at + start)
    return []


def _is_surname_before(value: str, before: tuple[int, int, str], given: tuple[int, int]) -> bool:
    """Return whether a surname in capitals stands before a given name: BOFFIN Lily."""
    surname = value[slice(*before[:2])]
    return (
        surname.isupper()
        and len(surname) > 2
        and not value[slice(*given)].isupper()
        and value[before[1] : given[0]] == " "
        and not is_ordinary(surname)
    )


def _is_full_name(words: list[tuple[int, int, str]]) -> bool:
    """Return whether a given name that is a word too is followed by a name: Will Turner."""
    return any(_is_listed(word) and not is_ordinary(word) for _, _, word in words[1:3])


def _cut(match: Match, start: int) -> Places:
    """Return a name from here on, without what follows it; none if it is of an eponym."""
    place = _trimmed(match, start, match.end())
    if place is None:
        return []
    last = match.string.rfind(" ", *place) + 1
    if last and is_after_eponym_noun(match.string, last):
        return []
    return [place]


def _given_name(match: Match) -> Places:
    """Return a given name alone, if it announces no name and is no ordinary word of the text."""
    start = match.end() - len(match.group().lstrip(_OPENING))
    word = match.string[start : match.end()]
    folded = fold_text(word)
    if folded not in given_names() or is_ordinary(word) or folded in lower_words(match.string):
        return []
    after = match.string[match.end() : match.end() + 2]
    if after[:1] == "-" and after[1:].isupper() and is_eponym_pair(match.string, match.start()):
        return []
    if is_month_in_time(match.string, start, match.end()):
        return []
    if is_eponym(match.string, start, match.end()) or is_after_eponym_noun(match.string, start):
        return []
    return [(start, match.end())]


_PAIR = regex.compile(r"(\p{Lu}\p{L}+)(?:-\p{Lu}\p{L}+)+[ ](\p{L}+)")


def is_eponym_pair(text: str, start: int) -> bool:
    """Return whether joined names stand before a clinical noun: Jackson-Pratt drain."""
    pair = _PAIR.match(text[start : start + 60])
    return pair is not None and is_eponym("X " + pair[2], 0, 1)


def _given_name_last(match: Match) -> Places:
    first, last = match.group().split(",", 1)
    given = _words(last)[0]
    if fold_text(given) not in given_names() or any(map(is_ordinary, [*_words(first), given])):
        return []
    return [match.span()]


def _small_name(match: Match) -> Places:
    """Return a name in small letters: a given name of a list that is no word, or after dr."""
    words = _words(match.group("value"))
    stop = ordinary_words() | _SMALL_WORDS
    if any(fold_text(word) in stop or fold_text(word) in heading_words() for word in words):
        return []
    if len(words) > 1 and fold_text(words[0]) not in given_names():
        return []
    return spans_of(match)


_SMALL_WORDS = frozenset(common()["small_words"])


def _initials(match: Match) -> Places:
    value = match.group("value")
    return [] if "".join(filter(str.isalpha, value)).lower() in _DOTTED else spans_of(match)


def _other_script(match: Match) -> Places:
    """Return words of another script in a text of Latin letters: a text of that script has many."""
    script = unicodedata.name(match.group()[0]).split()[0]
    count = _scripts(match.string).get(script, 0)
    latin = _scripts(match.string).get("LATIN", 0)
    return [match.span()] if 5 * count < latin else []


@lru_cache(maxsize=2)
def _scripts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text):
        script = "LATIN" if letter.isascii() else unicodedata.name(letter, "?").split()[0]
        counts[script] = counts.get(script, 0) + 1
    return counts


# Letters of no language of the recognizers: Vietnamese, Turkish, Polish, Czech, Romanian.
_FOREIGN = regex.compile(
    r"[\u1ea0-\u1ef9\u0110\u0111\u01a0\u01a1\u01af\u01b0Şşİ\u0131ğĞŁłĄąĘęŚśŹźŻżŘřĚěŮůĎďŤťŇňŐőŰűȘșȚțĂă]"
)


def _foreign_letters(match: Match) -> Places:
    value = match.group()
    if not _FOREIGN.search(value) or len(_FOREIGN.findall(match.string)) * 10 > len(match.string):
        return []
    words = [w for w in _WORD.finditer(value)]
    while words and is_ordinary(words[0].group()):
        words.pop(0)
    return [(match.start() + words[0].start(), match.end())] if words else []


# --- dates, ages, numbers, addresses ------------------------------------------------------------


def _month_date(match: Match) -> Places:
    """Return a date whose month, if it is short and small, is no word: "put out 30", "mag 1"."""
    value = match.group()
    for word in regex.findall(r"\p{L}{3,}", value):
        if fold_text(word) in _MONTH_WORDS and word.islower() and not regex.search(r"\d{4}", value):
            return []
    after = match.string[match.end() : match.end() + 12]
    if regex.match(r"[ ]?(?:mg|ml|mL|mcg|cm|mm|kg|%|units?|weeks?|days?|x\b)|[.,]\d", after):
        return []
    return [match.span()]


_MONTH_WORDS = frozenset(common()["month_words"])


def _number_date(match: Match) -> Places:
    """Return three numbers that are a day of some calendar, or that no other reading has."""
    digits = [int(number) for number in regex.findall(r"\d+", match.group().split("T")[0])[:3]]
    if len(digits) == 3 and min(digits) == 0:
        return []
    if len(digits) == 3 and max(digits) < 32 and "." in match.group():
        day, month, _ = digits
        return [match.span()] if (day <= 31 and month <= 12) or (month <= 31 and day <= 12) else []
    return [match.span()]


def _dates_together(match: Match) -> Places:
    """Return dates without a year of which one at least can be no ratio: 3/14 and again 4/7."""
    pairs = [tuple(map(int, match.string[a:b].split("/")[:2])) for a, b in spans_of(match)]
    return spans_of(match) if any(day > 10 for _, day in pairs) else []


def _no_date(match: Match) -> Places:
    """Return a number that is no date: 03.04.1951 is no phone, 03-04-1951 no code."""
    value = match.group()
    shape = regex.fullmatch(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})", value)
    return [] if shape and len(shape[4]) in (2, 4) and names_a_day(value) else spans_of(match)


def _age(match: Match) -> Places:
    digits = regex.search(r"\d+", match.group())
    return spans_of(match) if digits and int(digits[0]) <= 120 else []


def _street(match: Match) -> Places:
    """Return a match that has a number, or a name with a capital: "place on" is no address."""
    words = match.group().split()
    if fold_text(words[0]) in _VAGUE and fold_text(words[1]).split("'")[0] not in _OF:
        return []
    named = any(word[0].isupper() for word in regex.split(r"[ ']", match.group())[1:] if word)
    return [match.span()] if words[0][0].isdigit() or named else []


# Words for streets that are ordinary words too: these need a number or an article.
_VAGUE = frozenset({"place", "cours", "passage", "route", "square", "villa"})
_OF = frozenset({"de", "du", "des", "d", "la", "l"})


def _address_line(match: Match) -> Places:
    start, end = match.span("value")
    words = _words(match.string[start:end])
    return [] if any(map(is_ordinary, words[:-1])) or is_ordinary(words[-1]) else [(start, end)]


def _letters_and_digits(match: Match) -> Places:
    kinds = {unicodedata.category(character)[0] for character in match.group()}
    return [match.span()] if {"L", "N"} <= kinds else []


def _national(match: Match) -> Places:
    """Return a number whose check digits hold under the rule of a country."""
    bare = "".join(filter(str.isalnum, match.group()))
    for module, shape in _shapes():
        if shape.fullmatch(bare) and _valid(module)(bare):
            return [match.span()]
    return []


@cache
def _shapes() -> tuple[tuple[str, regex.Pattern[str]], ...]:
    return tuple((module, regex.compile(shape)) for module, shape in common()["national"].items())


@cache
def _valid(module: str) -> Callable[[str], bool]:
    valid: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return valid


_RULES: dict[str, Rule] = {
    "": spans_of,
    "name": _name,
    "person": _person,
    "unlisted": _unlisted,
    "listed_name": _listed_name,
    "given_name": _given_name,
    "given_name_last": _given_name_last,
    "small_name": _small_name,
    "initials": _initials,
    "other_script": _other_script,
    "foreign_letters": _foreign_letters,
    "month_date": _month_date,
    "number_date": _number_date,
    "dates_together": _dates_together,
    "no_date": _no_date,
    "age": _age,
    "street": _street,
    "address_line": _address_line,
    "letters_and_digits": _letters_and_digits,
    "national": _national,
}
