"""An inverted index with positions: the texts that hold a phrase as whole words.

Letters and digits are words of their own (``MRN123`` is two), and so is each character of scripts
that are written without blanks. Punctuation does not count, nor does what folding drops (case,
accents, widths).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sani.text.folding import UNSPACED, fold_text

_WORD = re.compile(rf"\d+|[^\W\d_{UNSPACED}]+|[^\W\d_]")
_END = -1


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, folded."""
    return tuple(_WORD.findall(fold_text(text)))


class PhraseIndex:
    """Texts as word numbers, and where each word stands; 12 bytes a word of text."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index the texts; they are known by their number, from 0."""
        self._numbers: dict[str, int] = {}
        numbers, starts = array("i", [_END]), []
        for text in texts:
            starts.append(len(numbers))
            words = words_of(text)
            numbers.extend(self._numbers.setdefault(word, len(self._numbers)) for word in words)
            numbers.append(_END)
        self._words = np.array(numbers, dtype=np.int32)
        self._starts = np.array(starts, dtype=np.int64)
        self._places = np.argsort(self._words, kind="stable")
        # Word number -> its first place in `_places`.
        self._firsts: list[int] = np.searchsorted(
            self._words[self._places], np.arange(len(self._numbers) + 1)
        ).tolist()

    def holds(self, phrase: Sequence[str]) -> bool:
        """Return whether a text has these words in a row; no words are in none."""
        return bool(len(self._occurrences(phrase)))

    def texts_with(self, phrase: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of the texts that have these words in a row, ascending."""
        return np.unique(np.searchsorted(self._starts, self._occurrences(phrase), "right") - 1)

    def _occurrences(self, phrase: Sequence[str]) -> NDArray[np.int64]:
        """Return the places in `_words` where the phrase starts."""
        numbers = [self._numbers[word] for word in phrase if word in self._numbers]
        if len(numbers) < len(phrase) or not numbers:
            return np.empty(0, dtype=np.int64)
        counts = [self._firsts[number + 1] - self._firsts[number] for number in numbers]
        rarest = counts.index(min(counts))
        first = self._firsts[numbers[rarest]]
        places = self._places[first : first + counts[rarest]] - rarest
        for offset in sorted(range(len(numbers)), key=counts.__getitem__):
            if offset != rarest and len(places):
                words = self._words.take(places + offset, mode="clip")
                places = places[words == numbers[offset]]
        return places
