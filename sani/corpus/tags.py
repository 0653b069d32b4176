r"""Tags beside a text: the words that each repeats settle what its offsets count.

Both i2b2 XML and BRAT repeat the words of every tag, so where line ends (``\r\n``) or a byte-order
mark at the head leave two readings of a text, the one in which every tag covers its words is taken:
first the one its standard prescribes (XML counts ``\r\n`` as one character, BRAT counts every
character, the mark too, as MEDDOCAN does). If tags have no words to settle it, or no reading fits,
that is an error. Runs of blanks compare as one blank, since XML turns a line break within an
attribute into a blank, and BRAT does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sani.corpus.records import RecordError, Row, check_offsets

_BETWEEN_FRAGMENTS = "..."  # MAE puts it between the pieces of one tag


@dataclass(frozen=True, slots=True)
class Tag:
    """An annotation as its file has it.

    Attributes:
        line: Where it stands in its file, from 1.
        label: What it is.
        fragments: Start and end of every piece; more than one only in BRAT.
        words: What it says it covers; None where it does not say.
    """

    line: int
    label: str
    fragments: tuple[tuple[int, int], ...]
    words: str | None = field(default=None, repr=False)


def settle(readings: Sequence[str], tags: Sequence[Tag], *, certain: bool) -> str:
    """Return the first reading of a text in which every tag covers the words it says.

    Args:
        readings: The text as its standard reads it, then what else the offsets may count.
        tags: All tags of the text.
        certain: Whether nothing but the first reading is possible.
    """
    for tag in tags:
        if not certain and not tag.words:
            raise RecordError(
                "the tag does not repeat the words it covers, so it cannot be told whether its "
                "offsets count line ends as one character or two, or the byte-order mark; "
                "convert the text to plain line ends without that mark, and the offsets with it",
                line=tag.line,
            )
    problems = [_misfit(reading, tags) for reading in readings]
    for reading, problem in zip(readings, problems, strict=True):
        if problem is None:
            return reading
    raise next(filter(None, problems))


def _misfit(text: str, tags: Sequence[Tag]) -> RecordError | None:
    """Return the problem of the first tag that does not fit a text; None if all do."""
    for tag in tags:
        try:
            for start, end in tag.fragments:
                check_offsets(start, end, text)
        except RecordError as problem:
            return RecordError(str(problem), line=tag.line)
        covered = " ".join(text[start:end] for start, end in tag.fragments)
        if tag.words and covered.split() != _words(tag):
            return RecordError(
                "the words that the tag repeats are not those between its offsets; "
                "check that text and tags belong together and offsets count characters from 0",
                line=tag.line,
            )
    return None


def _words(tag: Tag) -> list[str]:
    words = (tag.words or "").split()
    if len(tag.fragments) == 1:
        return words
    return [word for word in words if word != _BETWEEN_FRAGMENTS]


def tagged_row(stem: str, text: str, tags: Sequence[Tag]) -> Row:
    """Return the record of a file; its kinds are left to whoever knows the labels."""
    spans = [
        {"start": start, "end": end, "label": tag.label}
        for tag in tags
        for start, end in tag.fragments
    ]
    return {"id": stem, "text": text, "spans": spans}
