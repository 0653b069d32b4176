"""Cue control: can an identifier be guessed from the very text it is asked with?

A model that copies a name it was just shown, or builds an e-mail address from it, has memorized
nothing. Such occurrences are told apart, so that what remains is memory and not reading.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from sani.corpus.documents import Corpus
from sani.text.folding import fold, fold_text
from sani.text.tokens import Encoded
from sani.values.dates import Days, days_of, find_days

SHORTEST_WORD = 3  # that counts inside a longer one
SHORTEST_NAME = 2
SHORTEST_NUMBER = 2
LONG_NUMBER = 4  # digits of a number that tells by itself
_WORD = re.compile(r"[^\W\d_]+|\d+")
_ADDRESS = re.compile(r"@|://|www\.")


class CueFinder:
    """A search of one text for what gives the values in it away.

    Source: the low-overlap subset of CRM (2601.03791). Deviation: words instead of n-grams of
    tokens, so that the verdict is the same for every tokenizer.
    """

    def __init__(self, text: str) -> None:
        """Index the words of a text; time linear in its length."""
        self._words: list[str] = []
        self._starts: list[int] = []
        self._where: dict[str, list[int]] = defaultdict(list)  # word -> its numbers
        folded = fold(text)
        for match in _WORD.finditer(folded.text):
            word = match.group()
            self._where[word].append(len(self._words))
            self._words.append(word)
            self._starts.append(int(folded.starts[match.start()]))
        self._text = text
        self._folded = folded

    def cued(self, start: int, end: int, seen: Sequence[tuple[int, int]]) -> bool:
        """Return whether all that tells of ``text[start:end]`` stands in seen parts of the text.

        What tells are its words of `SHORTEST_NAME` letters and its numbers of `SHORTEST_NUMBER`
        digits or more; a shorter value counts if all of it is repeated. A clinic's town above a
        patient's address gives the town away, and not the street: such a value is not cued. A
        number below `LONG_NUMBER` digits counts where the word before or behind it is seen beside
        it. Of an e-mail address only what stands before the @ tells; there, and in a web address,
        a seen word counts inside a longer one too, if fewer letters or digits are left than tell
        (garcia, jgarcia@). A date also counts if the seen parts have it in another writing.

        Args:
            start: First character of the value.
            end: One past its last.
            seen: Parts [start, end) of the text that stand in the model's input; the value itself
                never counts.
        """
        first, last = (bisect_left(self._starts, place) for place in (start, end))
        words = self._words[first:last]
        parts = [
            (bisect_left(self._starts, a), bisect_left(self._starts, b)) for a, b in seen if a < b
        ]
        if not words:
            return False
        if self._repeated(words, parts) or self._dated(start, end, seen):
            return True
        telling = self._telling(words, start, end)
        unseen = [words[number] for number in telling if not self._told(words, number, parts)]
        if unseen and _ADDRESS.search(fold_text(self._text[start:end])):
            unseen = [
                word
                for word in unseen
                if len(word) - self._covered_inside(word, parts) >= _shortest(word)
            ]
        return bool(telling) and not unseen

    def _telling(self, words: list[str], start: int, end: int) -> list[int]:
        """Return the numbers of the words of a value that tell of it."""
        value = fold_text(self._text[start:end])
        name, at, _ = value.rpartition("@")
        count = len(_WORD.findall(name)) if at else len(words)
        return [
            number
            for number, word in enumerate(words[: count or len(words)])
            if len(word) >= _shortest(word)
        ]

    def _told(self, words: list[str], number: int, parts: Sequence[tuple[int, int]]) -> bool:
        """Return whether a word of a value is seen; a short number only beside its neighbour.

        Two digits stand somewhere in most notes, as ages, doses and pulses do.
        """
        word = words[number]
        if not word.isdigit() or len(word) >= LONG_NUMBER:
            return self._stands(word, parts)
        pairs = (words[max(0, number - 1) : number + 1], words[number : number + 2])
        return any(len(pair) == 2 and self._repeated(pair, parts) for pair in pairs)

    def _dated(self, start: int, end: int, seen: Sequence[tuple[int, int]]) -> bool:
        """Return whether the value is a date and the seen parts hold it, in whatever writing."""
        days = set(days_of(self._text[start:end]))
        return bool(days) and any(
            a <= first and last <= b and not days.isdisjoint(meant)
            for first, last, meant in self._dates
            for a, b in seen
        )

    @cached_property
    def _dates(self) -> list[tuple[int, int, Days]]:
        """Every date of the text: its start, its end, and the days it may mean."""
        return [
            (*self._folded.original(first, last), days)
            for first, last, days in find_days(self._folded.text)
        ]

    def _stands(self, word: str, parts: Sequence[tuple[int, int]]) -> bool:
        numbers = self._where.get(word, [])
        return any(bisect_left(numbers, a) < bisect_left(numbers, b) for a, b in parts)

    def _repeated(self, words: list[str], parts: Sequence[tuple[int, int]]) -> bool:
        return any(
            self._words[number : number + len(words)] == words
            for number in self._where.get(words[0], [])
            if any(a <= number and number + len(words) <= b for a, b in parts)
        )

    def _covered_inside(self, word: str, parts: Sequence[tuple[int, int]]) -> int:
        longest = 0
        for other, numbers in self._where.items():
            if longest < len(other) < len(word) and len(other) >= SHORTEST_WORD and other in word:
                inside = any(bisect_left(numbers, a) < bisect_left(numbers, b) for a, b in parts)
                longest = len(other) if inside else longest
        return longest


class SearchedText:
    """All that stands before the model's eyes with a document: what may give its values away."""

    def __init__(
        self, corpus: Corpus, item: Encoded, preceding: Sequence[tuple[Encoded, int]] = ()
    ) -> None:
        """Index the text.

        Args:
            corpus: All documents.
            item: The document.
            preceding: Documents packed before it, each with the first of its tokens that is read.
        """
        document = corpus[item.document]
        before = "".join(
            f"{corpus[other.document].text[other.starts[first] :]}\n" for other, first in preceding
        )
        source = document.source_text or ""
        self._finder = CueFinder(f"{before}{document.text}\n{source}")
        self._shift = len(before)
        # The text that an encoder reads is before the model's eyes all the time.
        begin = self._shift + len(document.text) + 1
        self._always = [(0, self._shift), (begin, begin + len(source))]

    def cued(self, start: int, end: int, seen: Sequence[tuple[int, int]]) -> bool:
        """Return whether parts of the document, or what stands around it, give a value away.

        Args:
            start: First character of the value in the document.
            end: One past its last.
            seen: Parts [start, end) of the document that are read; see `CueFinder.cued`.
        """
        shift = self._shift
        shifted = [(begin + shift, stop + shift) for begin, stop in seen]
        return self._finder.cued(start + shift, end + shift, [*self._always, *shifted])


def _shortest(word: str) -> int:
    return SHORTEST_NUMBER if word.isdigit() else SHORTEST_NAME
