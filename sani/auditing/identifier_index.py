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

import ahocorasick
import numpy as np
from numpy.typing import NDArray

from sani.corpus.documents import TERM_SOURCE, Corpus, Kind, Place
from sani.text.folding import LETTER, UNSPACED, fold_text
from sani.values.dates import Days, days_of, find_days
from sani.values.decoys import DecoyMaker

# Of 1,000 samples by a base that never saw the corpus (MEDDOCAN), 5 of 6 values of four digits came
# up, 15 of 77 of five and 0 of 190 of more; and every value of one to three letters.
MIN_LETTERS = 4
MIN_DIGITS = 5
_GAP = 3  # most characters that may separate the groups of one number
# A number with thousands separators, or a decimal fraction, is one: nothing may match inside it.
_NUMBER = (
    r"(?<!\d)(?<!\d[.,'])(?:\d{1,3}(?P<sep>[.,'])\d{3}(?:(?P=sep)\d{3})*(?:[.,]\d{1,2})?|0\.\d+)"
    r"(?!\d|[.,']\d)"
)
_TOKEN = re.compile(rf"(?P<number>{_NUMBER}|\d+)|(?P<alone>[{UNSPACED}])|{LETTER}+")
_ALONE = re.compile(f"[{UNSPACED}]")
# Classes of marks of Indic scripts (nukta, virama) that folding drops, and that count as letters.
_INDIC_MARKS = (7, 9)
_INSIDE, _IN_WORD, _WORD = 0, 1, 2
REDRAWN = 4  # times as many decoys are drawn where some cannot be searched for
_Key = str | Days
Ints = NDArray[np.int64]


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
    """A search for every identifier of every subject in a text, in one reading of it.

    Values that fold to the same words and digits are one identifier, whoever it belongs to; so are
    unambiguous writings of one date.

    Attributes:
        identifiers: What can be found, by number.
        places: Number, document and span of every occurrence of each, [places, 3].
        too_short: By label, distinct values that are not searched for: fewer than `MIN_LETTERS`
            letters and digits (`MIN_DIGITS` if digits only), which texts hold by chance;
            confidential terms are, however short: their owner named them.

    Source: Aho & Corasick 1975, by pyahocorasick. Month names: Unicode CLDR, by Babel.
    """

    identifiers: tuple[Identifier, ...]
    places: Ints
    too_short: dict[str, int]

    def __init__(self, corpus: Corpus, *, kinds: Sequence[Kind] = ("direct",)) -> None:
        """Index the values of every span of these kinds."""
        subjects = {name: at for at, name in enumerate(sorted({d.subject_id for d in corpus}))}
        occurrences: dict[_Key, list[Place]] = {}
        short: dict[str, set[_Key]] = defaultdict(set)
        for number, document in enumerate(corpus):
            for at, span in enumerate(document.spans):
                if span.kind not in kinds:
                    continue
                value = document.value(span)
                key = _key(value)
                if _too_short(key, value) and span.source != TERM_SOURCE:
                    short[span.label].add(key)
                    continue
                occurrences.setdefault(key, []).append((number, at))
        self.too_short = {label: len(keys) for label, keys in sorted(short.items())}
        self.identifiers = tuple(
            Identifier(
                tuple(sorted({corpus[d].spans[s].label for d, s in places})),
                tuple(sorted({subjects[corpus[d].subject_id] for d, _ in places})),
            )
            for places in occurrences.values()
        )
        rows = [(n, *place) for n, places in enumerate(occurrences.values()) for place in places]
        self.places = np.array(rows, dtype=np.int64).reshape(-1, 3)
        self._corpus = corpus
        self._first = [places[0] for places in occurrences.values()]
        self._search = _KeySearch(list(occurrences))

    def __len__(self) -> int:
        """Return the number of distinct identifiers that are searched for."""
        return len(self.identifiers)

    def find(self, text: str) -> list[Hit]:
        """Find the identifiers that stand in a text, by number, each once."""
        return self._search.find(text)

    def label_and_value(self, number: int) -> tuple[str, str]:
        """Return the label and the value of an identifier as the corpus first has them."""
        document, span = self._first[number]
        target = self._corpus[document].spans[span]
        return target.label, self._corpus[document].value(target)

    def usable_decoys(self, values: Sequence[str]) -> list[str]:
        """Return the values that no reading takes for an identifier, and none too short.

        Of values that are the same to the search, the first stays.
        """
        usable: dict[_Key, str] = {}
        for value in values:
            key = _key(value)
            if not (_too_short(key, value) or self._search.reads(key)):
                usable.setdefault(key, value)
        return list(usable.values())


class DecoyIndex:
    """A search for decoys of every identifier of an index, as that one searches for the values.

    A decoy that is too short, or that the search cannot tell from a value of the corpus, is none:
    others are drawn in its place.

    Attributes:
        num_decoys: Number of decoys of each identifier, [identifiers].
    """

    num_decoys: Ints

    def __init__(self, index: IdentifierIndex, maker: DecoyMaker, *, count: int) -> None:
        """Make up to ``count`` decoys for each identifier, and index them."""
        self._decoys = [self._make(index, maker, number, count) for number in range(len(index))]
        self.num_decoys = np.array([len(each) for each in self._decoys], dtype=np.int64)
        # One made-up value may be a decoy of several identifiers.
        of_key: dict[_Key, list[tuple[int, int]]] = defaultdict(list)
        for identifier, decoys in enumerate(self._decoys):
            for number, decoy in enumerate(decoys):
                of_key[_key(decoy)].append((identifier, number))
        self._of_key = list(of_key.values())
        self._search = _KeySearch(list(of_key))

    @staticmethod
    def _make(index: IdentifierIndex, maker: DecoyMaker, number: int, count: int) -> list[str]:
        label, value = index.label_and_value(number)
        usable: list[str] = []
        for drawn in (count, REDRAWN * count):
            usable = index.usable_decoys(maker.decoys(label, value, count=drawn))
            if len(usable) >= count:
                break
        return usable[:count]

    def find(self, text: str) -> list[tuple[int, int]]:
        """Find the decoys that stand in a text: identifier, and number among its decoys."""
        return [pair for hit in self._search.find(text) for pair in self._of_key[hit.identifier]]

    def value(self, identifier: int, number: int) -> str:
        """Return a decoy."""
        return self._decoys[identifier][number]


class _KeySearch:
    """A search for many keys at once; a hit's identifier is the number of its key."""

    def __init__(self, keys: Sequence[_Key]) -> None:
        self._dates: dict[datetime.date, list[tuple[int, Days]]] = defaultdict(list)
        patterns: dict[str, list[Hit]] = {}
        for number, key in enumerate(keys):
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
        self._patterns = {*patterns, *turned}
        self._automaton = ahocorasick.Automaton()
        for pattern, hits in itertools.chain(patterns.items(), turned.items()):
            level = _IN_WORD if pattern.isdigit() else _WORD
            self._automaton.add_word(pattern, (len(pattern), level, hits))
        self._automaton.make_automaton()

    def reads(self, key: _Key) -> bool:
        """Return whether a text of this key alone has a hit of all of it, exact or not."""
        if isinstance(key, str):
            return key in self._patterns
        return any(day in self._dates for day in key)

    def find(self, text: str) -> list[Hit]:
        """Find the keys that stand in a text, by number, each once."""
        folded = fold_text(text)
        exact_hits: dict[int, bool] = {}
        line, edges = _line(folded)
        for last, (length, level, hits) in self._automaton.iter(line) if self._automaton else ():
            if edges[last + 1] >= level and edges[last + 1 - length] >= level:
                for hit in hits:
                    known = exact_hits.get(hit.identifier, False)
                    exact_hits[hit.identifier] = known or hit.exact
        for _, _, days in find_days(folded) if self._dates else ():
            for number, meant in (pair for day in days for pair in self._dates.get(day, ())):
                exact_hits[number] = exact_hits.get(number, False) or meant == days
        return [Hit(number, exact) for number, exact in sorted(exact_hits.items())]


def _line(folded: str) -> tuple[str, bytearray]:
    """Join words one space apart and numbers without separators, and mark where words end.

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
    """Return what makes two values one identifier: the days of a date, else the value's line."""
    return days_of(value) or _line(fold_text(value))[0]


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
    """Yield a name of two to four words with its last words first, as in ``surname given``."""
    words = line.split()
    if 2 <= len(words) <= 4 and all(word.isalpha() and len(word) > 1 for word in words):
        for first in range(1, len(words)):
            yield " ".join(words[first:] + words[:first])
