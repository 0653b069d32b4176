"""Values found in texts in whichever way they are written there.

Three searches go over the folded text (`sani.text.folding`), each by an Aho-Corasick automaton:

- as it is written;
- by its words: other hyphens, underscores and punctuation between them, and for a name the words in
  another order (``Doe, Jane``);
- by its letters and digits alone, if it has many digits or is a name of several words: the number
  447199 is one value with ``44 71 99`` and ``4471-99``, and ``JaneDoe`` with ``Jane Doe``.

What looks like base64, or is written with escapes (``&eacute;``, ``%C3%A9``), is decoded and
searched too.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterable, Iterator
from itertools import permutations
from urllib.parse import unquote

import ahocorasick

from sani.text.folding import fold_text

MAX_SIGN = 0x10FFFF

BETWEEN = "\0"  # stands between strings that are searched as one text
SHORTEST = 5
MAX_PERMUTED = 3  # words of a name; longer ones are turned round and rotated
SHORTEST_COMPACT, FEWEST_DIGITS = 6, 4
SHORTEST_JOINED = 7  # letters of a name of several words that is written as one
_ESCAPE = re.compile(r"\\+(?:u\{?([0-9a-fA-F]{4,6})\}?|x([0-9a-fA-F]{2}))")
_NO_WORD = re.compile(rf"[^\w{BETWEEN}]+|_+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")


class Spellings:
    """A set of folded values, and their places in texts."""

    def __init__(self, values: Iterable[str]) -> None:
        values = set(values)
        self._written = _automaton((value, value) for value in values)
        self._by_words = _automaton(
            (spelling, value) for value in values for spelling in _orders(value)
        )
        self._compact = _automaton(
            (spelling, value) for value in values for spelling in _compact_spellings(value)
        )

    def find(self, strings: Iterable[str], *, whole_words: bool = True) -> set[str]:
        """Return the values that stand in one of the strings.

        Args:
            strings: Texts; no value is found across two of them.
            whole_words: Find a value only where no word goes on before or behind it.
        """
        text = fold_text(BETWEEN.join(_with_decoded(strings)))
        words = _NO_WORD.sub(" ", text)
        places = [place for place, sign in enumerate(text) if sign.isalnum() or sign == BETWEEN]
        compact = "".join(text[place] for place in places)
        standing = set()
        for automaton, searched in ((self._written, text), (self._by_words, words)):
            for start, end, value in _matches(automaton, searched):
                if not (whole_words and _inside(searched, start, end)):
                    standing.add(value)
        for start, end, value in _matches(self._compact, compact):
            if not (whole_words and _inside(text, places[start], places[end - 1] + 1)):
                standing.add(value)
        return standing


def _automaton(pairs: Iterable[tuple[str, str]]) -> ahocorasick.Automaton:
    """Return the automaton of the spellings; a spelling of two values stands for one of them."""
    automaton = ahocorasick.Automaton()
    for spelling, value in pairs:
        automaton.add_word(spelling, (len(spelling), value))
    automaton.make_automaton()
    return automaton


def _matches(automaton: ahocorasick.Automaton, text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and value of every match."""
    if len(automaton):
        for last, (length, value) in automaton.iter(text):
            yield last + 1 - length, last + 1, value


def _inside(text: str, start: int, end: int) -> bool:
    """Return whether a word goes on before or after a stretch of the text."""
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    return re.match(r"\w", before) is not None or re.match(r"\w", after) is not None


def _orders(value: str) -> set[str]:
    """Return a value by its words, and a name with its words in other orders."""
    words = tuple(_NO_WORD.sub(" ", value).split())
    if len("".join(words)) < SHORTEST:
        return set()
    orders = {words}
    if not any(sign.isdigit() for sign in value):
        if len(words) <= MAX_PERMUTED:
            orders.update(permutations(words))
        else:
            orders.update(words[turn:] + words[:turn] for turn in range(len(words)))
            orders.add(words[::-1])
    return {" ".join(order) for order in orders}


def _compact_spellings(value: str) -> Iterator[str]:
    """Yield the letters and digits of a value with many digits; without zeros in front, too.

    A name of several words is yielded as one word, in every order.
    """
    compact = "".join(sign for sign in value if sign.isalnum())
    digits = sum(sign.isdigit() for sign in compact)
    if not digits and len(compact) >= SHORTEST_JOINED:
        yield from {order.replace(" ", "") for order in _orders(value) if " " in order}
    if digits < FEWEST_DIGITS:
        return
    for spelling in {compact, compact.lstrip("0")}:
        if len(spelling) >= SHORTEST_COMPACT:
            yield spelling


def _with_decoded(strings: Iterable[str]) -> Iterator[str]:
    """Yield each string, the same without escapes, and its base64 decoded once or twice over."""
    for string in strings:
        yield string
        if (plain := unquote(html.unescape(_ESCAPE.sub(_unescaped, string)))) != string:
            yield plain
        for decoded in _decoded(string):
            yield decoded
            yield from _decoded(decoded)


def _unescaped(match: re.Match[str]) -> str:
    """Return the sign that an escape stands for; the escape itself if there is none."""
    number = int(match[1] or match[2], 16)
    return chr(number) if number <= MAX_SIGN and not 0xD800 <= number < 0xE000 else match[0]


def _decoded(string: str) -> Iterator[str]:
    """Yield the texts that stand in a string as base64."""
    for match in _BASE64.finditer(string):
        signs = match[0].rstrip("=").translate(_URL_SAFE)
        for start in range(4):  # other signs of the same alphabet may stand before it
            code = signs[start:]
            code = code[: len(code) - (len(code) % 4 == 1)]
            try:
                content = base64.b64decode(code + "=" * (-len(code) % 4))
            except binascii.Error:
                continue
            text = content.decode("utf-8", "ignore")
            if len(text.encode()) >= 0.7 * len(content) and sum(map(str.isalnum, text)) >= SHORTEST:
                yield text
