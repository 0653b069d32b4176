r"""Folding: one spelling for case, accents, digits and blanks, and the way back to the text.

Searches for known values (terms, headings, propagated names) run over the folded text, so that
``JOSE\u0301  garcia`` finds ``José García``; offsets lead back to Python characters of the text.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Scripts that put no blank between words, or join particles to them: a word may end anywhere.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_SIZE = 0x110000
_DROPPED = 0xFFFFFFFF
_SAME = {
    "\u2018": "'", "\u2019": "'", "\u02bc": "'",
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
}  # fmt: skip
_BLANK = ord(" ")


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded text.

    Attributes:
        text: Case-folded, without accents and combining marks, each run of blanks one blank.
        starts: Where each of its characters stands in the original, [len(text)].
        ends: One past the last character it stands for, marks and further blanks included.
    """

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The original's offsets of a non-empty stretch of the folded text."""
        return int(self.starts[start]), int(self.ends[end - 1])


def fold(text: str) -> Folded:
    """Fold a text: every character becomes one character or none, so that offsets stay exact."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    mapped = _table()[codes]
    starts = np.flatnonzero(mapped != _DROPPED)
    blank = mapped[starts] == _BLANK
    blank[1:] &= blank[:-1]  # a further blank of a run
    blank[:1] = False
    starts = starts[~blank]
    ends = np.append(starts[1:], len(codes)) if len(starts) else starts
    folded = mapped[starts].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return Folded(folded, starts, ends)


@cache
def _table() -> NDArray[np.uint32]:
    """What each code point becomes; planes beyond the first stay as they are, but for digits."""
    table = np.arange(_SIZE, dtype=np.uint32)
    for code in range(0x10000):
        table[code] = _fold_character(chr(code))
    return table


def _fold_character(character: str) -> int:
    if character.isspace():
        return _BLANK
    if character in _SAME:
        return ord(_SAME[character])
    category = unicodedata.category(character)
    if category in ("Mn", "Cf"):
        return _DROPPED
    if category == "Nd":
        return ord(str(unicodedata.decimal(character)))
    if "\uac00" <= character <= "\ud7a3":  # a Hangul syllable: its first part is another one
        return ord(character)
    base = unicodedata.normalize("NFD", character)[0].casefold()
    return ord(base) if len(base) == 1 else ord(character)
