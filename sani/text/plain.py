r"""Plain reading: a text as it would be typed on one line, and the way back to the text.

A value may be broken by what no reader sees as part of it: a line end where a note was wrapped, a
soft hyphen, a zero-width space, a no-break space, a blank between all letters, markup, an HTML
entity, a digit that a scanner read for a letter. Here is the one place that undoes them, so that
each recognizer is written for ``Ana Lima`` alone. Case and accents stay: they tell names from
words (`sani.text.folding` drops them for comparison).

A line end is taken for a wrap where the sentence goes on: the next line begins with a small letter,
or reads like prose, or its first word would not have fit on the line before. Headings, items and
lines after the end of a sentence stay lines.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator

import numpy as np
import regex

from sani.text.folding import Folded

Edit = tuple[int, int, str]  # start, end, and what stands in its place

_ASCII_ODD = regex.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ODD = regex.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\p{Cf}\u034f\ufe00-\ufe0f]+"
    r"|[^\S\n\r\t ]|[\u00b4\u02b9\u02bb\u02bc\u2018\u2019\u201b\u2032`]|[\u2010-\u2013\u2212]"
)
_APOSTROPHES = frozenset("\u00b4\u02b9\u02bb\u02bc\u2018\u2019\u201b\u2032`")
_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2212")
_ENTITY = regex.compile(r"&(?:#\d{1,5}|#[xX][0-9a-fA-F]{1,4}|[a-zA-Z]{2,8});")
_TAG = regex.compile(
    r"<(?P<end>/)?(?P<name>b|i|u|p|a|br|hr|em|h[1-6]|strong|span|div|font|table|tr|td|th|ul|ol|li)"
    r"(?:[ ][^<>\n]{0,200})?/?>",
    regex.IGNORECASE,
)
_LINE_TAGS = frozenset({"p", "br", "hr", "div", "tr", "li", "table", "ul", "ol"})
_SPACED = regex.compile(r"(?<!\S)[\p{L}\p{N}](?: [\p{L}\p{N}.:,/-]){3,}(?!\S)")
_FEWEST_SPACED_LETTERS = 3
# A digit among the letters of a word: Wh1tfield, 0'Hara.
_MISREAD = regex.compile(r"(?<=\p{L})[01]{1,2}(?=\p{Ll}{2})|(?<![\p{L}\d])0(?='\p{Lu}\p{Ll})")
_VOWELS = frozenset("aeiouyAEIOUY")

_WRAP = regex.compile(r"(?<=[^\s])[ \t]*\r?\n[ \t]*(?=[^\s])")
# What begins a line that is one by itself: an item, a heading before a colon, a rule.
_BEGINS = regex.compile(
    r"[-*\u2022\u00b7>#|=_~+]|\(?\d{1,2}[.)][ \t]|\(?\p{L}[.)][ \t](?!\p{Lu})"
    r"|\p{Lu}[\p{L}/'()-]*(?:[ ][\p{L}/'()-]+){0,3}[ ]?:(?!\d)"
)
_CLOSED = regex.compile(r"[.!?:;|]$")
_ABBREVIATED = regex.compile(
    r"(?:(?<!\p{L})(?:\p{Lu}|[Dd]ra?|[Dd]rs|Mrs?|Ms|Prof|St|Sra?|Srta|Hr|Fr|Mme|Mlle|med|univ|geb|gez|Tel|[Tt]el|Ph"
    r"|No|Nr|Str|str|Av|Avda|Apt|Ste|d|M|vs|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|approx)"
    r"|(?<!\d)\d{1,2})\.$"
)
_PROSE = regex.compile(r"(?:\S+[ ]){1,5}?\(?\p{Ll}{2,}(?![\p{L}]*:)")
_WIDE, _LINES = (
    28,
    3,
)  # a paragraph that is narrower or shorter shows no width that it was wrapped to


def plain(text: str) -> Folded:
    """Return the plain reading of a text; its offsets lead back to the text.

    Reading a plain text again changes nothing.
    """
    reading = Folded(text, np.arange(len(text)), np.arange(1, len(text) + 1))
    for edits in (_characters, _entities, _tags, _letterspacing, _misread, _line_ends):
        reading = _edited(reading, edits)
    return reading


def _edited(reading: Folded, edits: Callable[[str], Iterator[Edit]]) -> Folded:
    """Return a reading with some stretches replaced; a replacement has at most their length."""
    text, pieces, kept, at = reading.text, [], [], 0
    for start, end, new in edits(text):
        pieces += [text[at:start], new]
        kept.append((end - start, start, len(new)))
        at = end
    if not pieces:
        return reading
    edited = "".join([*pieces, text[at:]])
    if len(edited) == len(text):
        return Folded(edited, reading.starts, reading.ends)
    starts = np.ones(len(text), dtype=bool)
    ends = np.ones(len(text), dtype=bool)
    for length, start, size in kept:  # the first characters begin, the last one ends at the end
        starts[start + size : start + length] = False
        ends[start + max(size - 1, 0) : start + length - (size > 0)] = False
    return Folded(edited, reading.starts[starts], reading.ends[ends])


def _characters(text: str) -> Iterator[Edit]:
    """Drop what is invisible; write blanks, apostrophes and hyphens as they are typed."""
    for match in (_ASCII_ODD if text.isascii() else _ODD).finditer(text):
        first = match.group()[0]
        if first in _APOSTROPHES:
            new = "'"
        elif first in _DASHES:
            new = "-"
        elif first.isspace() and first not in "\x0b\x0c\x1c\x1d\x1e\x1f":
            new = " "
        else:
            new = ""
        yield *match.span(), new


def _entities(text: str) -> Iterator[Edit]:
    for match in _ENTITY.finditer(text) if "&" in text else ():
        new = html.unescape(match.group())
        if len(new) == 1:
            yield *match.span(), {"\xa0": " ", "\u2019": "'", "\xad": ""}.get(new, new)


def _tags(text: str) -> Iterator[Edit]:
    for match in _TAG.finditer(text) if "<" in text else ():
        yield *match.span(), "\n" if match["name"].lower() in _LINE_TAGS else " "


def _letterspacing(text: str) -> Iterator[Edit]:
    """Join letters that stand apart: ``L i m a``. Numbers alone may be a scale."""
    for match in _SPACED.finditer(text):
        if sum(map(str.isalpha, match.group())) >= _FEWEST_SPACED_LETTERS:
            for at in range(match.start() + 1, match.end(), 2):
                yield at, at + 1, ""


def _misread(text: str) -> Iterator[Edit]:
    for match in _MISREAD.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end()]
        for at in range(*match.span()):
            if text[at] == "0":
                yield at, at + 1, "O" if after == "'" else "o"
            else:
                vowel = len(match.group()) == 1 and not {before, after} & _VOWELS
                yield at, at + 1, "i" if vowel else "l"


def _line_ends(text: str) -> Iterator[Edit]:
    """Put a blank, or after a hyphen nothing, for each line end inside a sentence."""
    if "\n" not in text:
        return
    width, block_end = 0, -1
    for match in _WRAP.finditer(text):
        if match.start() >= block_end:
            width, block_end = _width(text, match.start())
        last = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        before, after = text[last : match.start()], text[match.end() : end if end >= 0 else None]
        if _goes_on(before, after, width):
            new = "" if before[-1] == "-" and before[-2:-1].isalnum() else " "
            yield *match.span(), new


def _width(text: str, at: int) -> tuple[int, int]:
    """Return the width that the paragraph here was wrapped to, 0 if none, and where it ends."""
    start = text.rfind("\n\n", 0, at) + 1
    end = text.find("\n\n", at)
    end = len(text) if end < 0 else end
    lines = text[start:end].strip("\n").split("\n")
    width = max(map(len, lines))
    wrapped = len(lines) >= _LINES and width >= _WIDE and any(line[:1].islower() for line in lines)
    return (width if wrapped else 0), end


def _goes_on(before: str, after: str, width: int) -> bool:
    """Return whether a sentence goes on from one line to the next."""
    if _ABBREVIATED.search(before):
        return not _BEGINS.match(after)
    if _CLOSED.search(before) or _BEGINS.match(after):
        return False
    if after[0].islower():
        return True
    capitals = before.isupper() or after.isupper()
    first = after.split(None, 1)[0]
    if width and not capitals and len(before) + 1 + len(first) > width:
        return True
    return not capitals and _PROSE.match(after) is not None
