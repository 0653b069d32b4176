"""Known identifiers in text, all at once, however they are written.

Text and values are folded alike (`sani.text.folding`). What is left are words, and numbers whose
separators are dropped; one Aho-Corasick automaton over every value reads the text once. A value
counts only at whole-word boundaries, and a number never inside a longer one. A date is read off the
text in any usual writing and looked up by its day.
"""

from __future__ import annotations

import datetime
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import ahocorasick
from babel import Locale

from sani.corpus.documents import TERM_SOURCE, Corpus, Kind
from sani.text.folding import UNSPACED, fold_text

# Of 1,000 samples by a base that never saw the corpus (MEDDOCAN), 5 of 6 values of four digits came
# up, 15 of 77 of five and 0 of 190 of more; and every value of one to three letters.
MIN_LETTERS = 4
MIN_DIGITS = 5
LANGUAGES = (
    "ca", "cs", "da", "de", "el", "en", "en_GB", "es", "fi", "fr", "it", "nb", "nl", "pl", "pt",
    "ro", "ru", "sv", "tr",
)  # fmt: skip
"""Languages whose month names are known."""

_GAP = 3  # most characters that may separate the groups of one number
_LETTER = rf"(?:[^\W\d_{UNSPACED}]|[\u0900-\u0963\u0970-\u0dff])"  # with the vowel signs of Indic
# A number with thousands separators, or a decimal fraction, is one: nothing may match inside it.
_NUMBER = (
    r"(?<!\d)(?<!\d[.,'])(?:\d{1,3}(?P<sep>[.,'])\d{3}(?:(?P=sep)\d{3})*(?:[.,]\d{1,2})?|0\.\d+)"
    r"(?!\d|[.,']\d)"
)
_TOKEN = re.compile(rf"(?P<number>{_NUMBER}|\d+)|(?P<alone>[{UNSPACED}])|{_LETTER}+")
_ALONE = re.compile(f"[{UNSPACED}]")
# Classes of marks of Indic scripts (nukta, virama) that folding drops, and that count as letters.
_INDIC_MARKS = (7, 9)
_INSIDE, _IN_WORD, _WORD = 0, 1, 2


@dataclass(frozen=True)
class Identifier:
    """One value of the corpus by what it is and whose it is; the value itself is not here.

    Attributes:
        labels: Every label it stands under.
        subjects: Numbers of the subjects whose documents mark it, in the order of their ids.
    """

    labels: tuple[str, ...]
    subjects: tuple[int, ...]


@dataclass(frozen=True, order=True)
class Hit:
    """An identifier that a text holds.

    Attributes:
        identifier: Its number in the index.
        exact: False if only a looser reading finds it: a date whose day and month, or century, the
            writing leaves open, or a name with its words turned around.
    """

    identifier: int
    exact: bool


class IdentifierIndex:
    """Finds every identifier of every subject in a text, in one reading of it.

    Values that fold to the same words and digits are one identifier, whoever it belongs to; so are
    unambiguous writings of one date.

    Attributes:
        identifiers: What can be found, by number.
        too_short: By label, distinct values that are not searched for: fewer than `MIN_LETTERS`
            letters and digits (`MIN_DIGITS` if digits only), which texts hold by chance;
            confidential terms are, however short: their owner named them.

    Source: Aho & Corasick 1975, by pyahocorasick. Month names: Unicode CLDR, by Babel.
    """

    identifiers: tuple[Identifier, ...]
    too_short: dict[str, int]

    def __init__(self, corpus: Corpus, *, kinds: Sequence[Kind] = ("direct",)) -> None:
        """Index the values of every span of these kinds."""
        subjects = {name: at for at, name in enumerate(sorted({d.subject_id for d in corpus}))}
        found: dict[_Key, tuple[set[str], set[int]]] = {}
        short: dict[str, set[_Key]] = defaultdict(set)
        for document in corpus:
            for span in document.spans:
                if span.kind not in kinds:
                    continue
                value = document.value(span)
                key = _key(value)
                if _too_short(key, value) and span.source != TERM_SOURCE:
                    short[span.label].add(key)
                    continue
                labels, owners = found.setdefault(key, (set(), set()))
                labels.add(span.label)
                owners.add(subjects[document.subject_id])
        self.too_short = {label: len(keys) for label, keys in sorted(short.items())}
        self.identifiers = tuple(
            Identifier(tuple(sorted(labels)), tuple(sorted(owners)))
            for labels, owners in found.values()
        )
        self._dates: dict[datetime.date, list[tuple[int, _Readings]]] = defaultdict(list)
        patterns: dict[str, list[Hit]] = {}
        for number, key in enumerate(found):
            if isinstance(key, str):
                patterns[key] = [Hit(number, exact=True)]
            else:
                for day in key:
                    self._dates[day].append((number, key))
        turned: dict[str, list[Hit]] = defaultdict(list)
        for pattern, hits in patterns.items():
            for other in _turned(pattern):
                if other not in patterns:  # else it is the other value's own writing
                    turned[other].append(Hit(hits[0].identifier, exact=False))
        self._automaton = ahocorasick.Automaton()
        for pattern, hits in itertools.chain(patterns.items(), turned.items()):
            level = _IN_WORD if pattern.isdigit() else _WORD
            self._automaton.add_word(pattern, (len(pattern), level, hits))
        self._automaton.make_automaton()

    def __len__(self) -> int:
        """How many distinct identifiers are searched for."""
        return len(self.identifiers)

    def find(self, text: str) -> list[Hit]:
        """The identifiers that stand in a text, by number, each once."""
        folded = fold_text(text)
        found: dict[int, bool] = {}
        line, edges = _line(folded)
        for last, (length, level, hits) in self._automaton.iter(line) if self._automaton else ():
            if edges[last + 1] >= level and edges[last + 1 - length] >= level:
                for hit in hits:
                    found[hit.identifier] = found.get(hit.identifier, False) or hit.exact
        for readings in _dates(folded) if self._dates else ():
            for day in readings:
                for number, own in self._dates.get(day, ()):
                    found[number] = found.get(number, False) or own == readings
        return [Hit(number, exact) for number, exact in sorted(found.items())]


_Readings = tuple[datetime.date, ...]
_Key = str | _Readings


def _line(folded: str) -> tuple[str, bytearray]:
    """Words one space apart and numbers without separators; at each place, what ends there.

    Returns:
        The line, and for each of its n + 1 places whether a word begins or ends there (`_WORD`),
        only a number within a word as in ``mrn123`` (`_IN_WORD`), or neither (`_INSIDE`).
    """
    parts: list[str] = []
    edges: list[tuple[int, int]] = []
    length, end, before = 0, -1, ""
    for match in _TOKEN.finditer(folded):
        token, kind, gap = match[0], match.lastgroup or "word", match.start() - end
        if kind == "number" and not token.isdigit():
            token = re.sub(r"\D", "", token)
        level = _WORD if gap or "alone" in (kind, before) else _IN_WORD
        if parts:
            edges.append((length, level))
            if gap > _GAP or "number" not in (kind, before):
                parts.append(" ")
                length += 1
        edges.append((length, level))
        parts.append(token)
        length += len(token)
        end, before = match.end(), kind
    places = bytearray(length + 1)
    for place, level in edges:
        places[place] = level
    places[length] = _WORD
    return "".join(parts), places


def _key(value: str) -> _Key:
    """What makes two values one identifier: the days it may mean if it is a date, else its line."""
    folded = fold_text(value)
    bare = folded.strip(" .,;:()[]")
    for pattern in _date_patterns()[:-1]:  # eight digits alone are a number, not a date
        match = pattern.fullmatch(bare)
        if match and (readings := _readings(match)):
            return readings
    return _line(folded)[0]


def _too_short(key: _Key, value: str) -> bool:
    """Return whether texts hold a value by chance; a date never is too short."""
    if not isinstance(key, str):
        return False
    # An ideograph or syllable says as much as two letters.
    size = len(key.replace(" ", "")) + len(_ALONE.findall(key))
    decomposed = unicodedata.normalize("NFD", value)
    size += sum(unicodedata.combining(character) in _INDIC_MARKS for character in decomposed)
    return size < (MIN_DIGITS if key.isdigit() else MIN_LETTERS)


def _turned(line: str) -> Iterator[str]:
    """A name of two to four words with its last words first: ``surname given`` and the like."""
    words = line.split()
    if 2 <= len(words) <= 4 and all(word.isalpha() and len(word) > 1 for word in words):
        for first in range(1, len(words)):
            yield " ".join(words[first:] + words[:first])


def _dates(folded: str) -> Iterator[_Readings]:
    """The days that each date written in the text may mean."""
    for pattern in _date_patterns():
        for match in pattern.finditer(folded):
            if readings := _readings(match):
                yield readings


@cache
def _date_patterns() -> tuple[re.Pattern[str], ...]:
    """Usual writings of a date in folded text; the last one is eight digits without separators."""
    month = rf"(?P<name>{'|'.join(sorted(_months(), key=len, reverse=True))})(?!{_LETTER})"
    year = r"(?P<year>\d{4}|'?\d\d)(?!\d)"
    day = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|o|a|e)?"
    of = r"[ .,/-]{0,2}(?:(?:of|de|del|den) |d')?"
    return tuple(
        re.compile(pattern)
        for pattern in (
            r"(?<!\d)(?<!\d[-/.])(?P<one>\d{1,2})(?P<sep> ?[-/.] ?)(?P<two>\d{1,2})(?P=sep)"
            r"(?P<year>\d{4}|'?\d\d)(?!\d|[-/.]\d)",
            r"(?<!\d)(?<!\d[-/.])(?P<year>\d{4}) ?[-/.年년] ?(?P<month>\d{1,2}) ?[-/.月월] ?"
            r"(?P<day>\d{1,2})(?!\d|[-/.]\d)",
            rf"(?<!\d){day}{of}{month}{of}{year}",
            rf"(?<!{_LETTER}){month}[ .,/-]{{0,2}}{day}(?!\d)[ .,/-]{{1,3}}(?:of )?{year}",
            rf"(?<!\d)(?P<year>\d{{4}})[ .,/-]{{0,2}}{month}[ .,/-]{{0,2}}{day}(?!\d)",
            r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)(?:\d{4}|\d{6})?(?!\d)",
        )
    )


def _readings(match: re.Match[str]) -> _Readings:
    """The days that a written date may mean: day before month first, then this century."""
    part = match.groupdict()
    written = part["year"].lstrip("'")
    years = [int(written)] if len(written) == 4 else [2000 + int(written), 1900 + int(written)]
    if "one" in part:
        one, two = int(part["one"]), int(part["two"])
        pairs = [(two, one), (one, two)]
    else:
        month = _months()[part["name"]] if "name" in part else int(part["month"])
        pairs = [(month, int(part["day"]))]
    found: dict[datetime.date, None] = {}
    for (month, day), year in itertools.product(pairs, years):
        try:
            found[datetime.date(year, month, day)] = None
        except ValueError:
            continue
    return tuple(found)


@cache
def _months() -> dict[str, int]:
    """Folded name or abbreviation of a month -> its number; no two of `LANGUAGES` disagree."""
    found: dict[str, int] = {}
    for language in LANGUAGES:
        for widths in Locale.parse(language).months.values():
            for width in ("wide", "abbreviated"):
                for month, name in widths[width].items():
                    bare = re.sub(r"^(?:de |d')|\.$", "", fold_text(name))
                    if len(bare) >= 2 and bare.isalpha():
                        found[bare] = month
    return found
