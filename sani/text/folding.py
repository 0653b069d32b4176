r"""Folding: one spelling for every way to write the same value, and the way back to the text.

Case, accents, ligatures, widths, blanks, apostrophes, hyphens and invisible characters do not
count: ``JOSE\u0301  garcia`` folds to the same text as ``José García``, ``Strauß`` to the same as
``STRAUSS``. Scan, audit, decoys, cues and the release check all compare folded text, so a value
that one of them knows is known to all. Offsets lead back to Python characters of the text.

Source: Unicode normalization form KD and full case folding (Unicode Standard Annex 15; section
3.13). Deviations: marks that are accents are dropped; letters with a stroke and the like, which
Unicode does not decompose, become the letters that people write for them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Scripts that put no blank between words, or join particles to them: a word may end anywhere.
# Thai and Lao, Burmese, Khmer, Chinese characters with their signs, kana, Bopomofo, Yi, Vai,
# Javanese, Cham and their like, Hangul. As the inside of a character class.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"
    "\u3040-\ua63f\ua800-\uab2f\uabc0-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
# A letter of a script with blanks between words; marks are letters in Indic scripts.
LETTER = rf"(?:[^\W\d_{UNSPACED}]|[\u0900-\u0963\u0970-\u0dff])"
# What people type for an apostrophe, likewise: accents and primes by themselves, modifier letters,
# quotation marks.
APOSTROPHES = (
    "'`\u00b4\u02b9\u02bb-\u02bd\u02ca\u02cb\u055a\u05f3\u2018\u2019\u201b\u2032\u2035\ua78c"
)
_APOSTROPHE = re.compile(f"[{APOSTROPHES}]")
_HYPHENS = "\u02d7\u2043\u2212"  # beside all of Unicode's category of dashes
_LETTERS = {
    "ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ħ": "h", "ŧ": "t",
    "ŋ": "n",
    "\u0131": "i",  # without its dot
    "\u2044": "/",  # of a fraction in one character
}  # fmt: skip
# Signs without width or looks of their own that Unicode counts as marks or letters: joiners of
# marks, variation selectors, fillers of Hangul.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_JAMO = re.compile("[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?|[\uac00-\ud7a3][\u11a8-\u11c2]")
_BLANK = " "


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded text.

    Attributes:
        text: Without case, accents and invisible characters; each run of blanks is one blank.
        starts: Where the character that each of its characters comes from stands in the original,
            [len(text)]. The characters that one original character became share its place.
        ends: One past the last original character that each stands for, dropped marks and further
            blanks included, [len(text)].
    """

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the original's offsets of a non-empty stretch of the folded text."""
        return int(self.starts[start]), int(self.ends[end - 1])


def fold(text: str) -> Folded:
    """Fold a text and keep where each character of the result comes from."""
    codes = _codes(text)
    folded = _codes(text.translate(_CHARACTERS))
    counts = np.ones(len(codes), dtype=np.int64)  # of characters that each one becomes
    for character in set(text):  # few of these become none or several
        if (count := len(_CHARACTERS[ord(character)])) != 1:
            counts[codes == ord(character)] = count
    starts = np.repeat(np.arange(len(codes)), counts)
    repeated = folded == ord(_BLANK)
    repeated[1:] &= repeated[:-1]
    repeated[:1] = False
    starts, folded = starts[~repeated], folded[~repeated]
    if _JAMO.search(_decoded(folded)):
        starts, folded = _compose_hangul(starts, folded)
    return Folded(_decoded(folded), starts, _ends(starts, len(codes)))


def fold_text(text: str) -> str:
    """Return the folded text alone, without blanks at its ends."""
    folded = " ".join(text.translate(_CHARACTERS).split())
    return folded if folded.isascii() else _JAMO.sub(_composed, folded)


def fold_character(character: str) -> str:
    """Return what one character becomes by itself: none, one or more characters."""
    if character.isspace():
        return _BLANK
    if _APOSTROPHE.match(character):  # an acute accent by itself would become a blank
        return "'"
    if "\uac00" <= character <= "\ud7a3":  # a Hangul syllable stays whole
        return character
    decomposed = unicodedata.normalize("NFKD", character).casefold()
    return "".join(map(_fold_part, unicodedata.normalize("NFKD", decomposed)))


def _fold_part(part: str) -> str:
    """Return what a decomposed and case-folded character becomes."""
    category = unicodedata.category(part)
    if part.isspace():
        return _BLANK
    if part in _LETTERS:
        return _LETTERS[part]
    if _APOSTROPHE.match(part):
        return "'"
    if category == "Pd" or part in _HYPHENS:
        return "-"
    # Format characters (soft hyphens, joiners, marks of direction) and enclosing marks.
    if category in ("Cf", "Me") or _INVISIBLE.match(part):
        return ""
    # A mark of class 0 is no accent: it is a vowel sign of an Indic or South-East Asian script,
    # and words that differ in it are different words.
    if category == "Mn" and unicodedata.combining(part):
        return ""
    return str(unicodedata.decimal(part)) if category == "Nd" else part


class _Characters(dict[int, str]):
    """Code point -> the characters that it becomes; filled as they are asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = fold_character(chr(code))
        return folded


_CHARACTERS = _Characters()


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _decoded(codes: NDArray[np.uint32]) -> str:
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def _compose_hangul(
    starts: NDArray[np.int64], folded: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Put the letters of each Hangul syllable together; alone they would match inside others."""
    staying = np.ones(len(folded), dtype=bool)
    for match in _JAMO.finditer(_decoded(folded)):
        syllable = _composed(match)
        if len(syllable) == 1:
            folded[match.start()] = ord(syllable)
            staying[match.start() + 1 : match.end()] = False
    return starts[staying], folded[staying]


def _composed(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", match[0])


def _ends(starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return where the next original character that was not dropped begins, [len(starts)]."""
    if not len(starts):
        return starts
    firsts = np.flatnonzero(np.diff(starts, prepend=-1))  # the rest come from the same character
    return np.repeat(np.append(starts[firsts[1:]], length), np.diff(firsts, append=len(starts)))
