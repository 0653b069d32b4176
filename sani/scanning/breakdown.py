"""A scan held against gold spans by language and label, and its errors as a page to read.

The counts hold no value. The errors do: each is shown with the text around it, so the page belongs
into ``private/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal

from sani.atomic import write_error, write_text
from sani.corpus.documents import Document, Span
from sani.scanning.labels import scan_label
from sani.scanning.pipelines import LANGUAGES, language_in

UNKNOWN = "unknown"
Sort = Literal["missed", "missed in part", "marked wrongly"]
SORTS: dict[Sort, str] = {
    "missed": "Missed: no letter or digit of the identifier is marked.",
    "missed in part": "Missed in part: a letter or a digit of the identifier is not marked.",
    "marked wrongly": "Marked wrongly: the finding shares no letter or digit with an identifier.",
}
_AROUND = 60  # characters of text on either side of an error
_STYLE = (
    "body{font:16px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "td,th{padding:.2em .6em;text-align:left;vertical-align:top}mark{background:#fd8}"
    "td{white-space:pre-wrap}"
)


@dataclass
class BreakdownRow:
    """One language and one label of the scan.

    Attributes:
        language: In English; of each document it is the one whose stop-words it uses most.
        label: Label of the scan.
        gold: Gold spans with a letter or a digit; ``whole`` of them are covered whole.
        predicted: Spans of the scan; ``right`` of them share a letter or digit with a gold span.
    """

    language: str
    label: str
    gold: int = 0
    whole: int = 0
    predicted: int = 0
    right: int = 0


@dataclass(frozen=True)
class ScanMistake:
    """One error of the scan, with the text around it; never printed."""

    sort: Sort
    label: str
    language: str
    before: str = field(repr=False)
    value: str = field(repr=False)
    after: str = field(repr=False)


@dataclass
class Breakdown:
    """Counts by language and label, and all errors."""

    rows_by_key: dict[tuple[str, str], BreakdownRow] = field(default_factory=dict)
    mistakes: list[ScanMistake] = field(default_factory=list, repr=False)

    @property
    def rows(self) -> list[BreakdownRow]:
        """The rows in order of language and label."""
        return [row for _, row in sorted(self.rows_by_key.items())]

    def add(self, document: Document, spans: Sequence[Span]) -> None:
        """Add a gold document and the spans of the scan in it."""
        code = language_in(document.text)
        language = LANGUAGES[code] if code else UNKNOWN
        solid = {place for place, sign in enumerate(document.text) if sign.isalnum()}
        covered = solid & _places(spans)
        real = solid & _places(document.spans)
        for span in document.spans:
            places = solid & _places([span])
            if places:
                row = self._row(language, span)
                row.gold += 1
                row.whole += places <= covered
                if not places <= covered:
                    sort: Sort = "missed in part" if places & covered else "missed"
                    self.mistakes.append(_mistake(sort, span, document, language))
        for span in spans:
            places = solid & _places([span])
            if places:
                row = self._row(language, span)
                row.predicted += 1
                row.right += bool(places & real)
                if not places & real:
                    self.mistakes.append(_mistake("marked wrongly", span, document, language))

    def _row(self, language: str, span: Span) -> BreakdownRow:
        key = language, scan_label(span.label)
        return self.rows_by_key.setdefault(key, BreakdownRow(*key))


def write_mistakes(breakdown: Breakdown, path: Path) -> None:
    """Write all errors as an HTML page of mode 0600 that loads nothing, by sort and label.

    Its folder is made with mode 0700 if it is not there. An older page is replaced.

    Raises:
        WriteError: If it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from None
    write_text(path, "\n".join(_page(breakdown)) + "\n", mode=0o600)


def _page(breakdown: Breakdown) -> Iterator[str]:
    yield (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Errors of the scan</title><style>{_STYLE}</style></head><body>"
        "<h1>Errors of the scan</h1><p>This page holds identifiers in clear. Keep it private.</p>"
    )
    for sort, sentence in SORTS.items():
        mistakes = [mistake for mistake in breakdown.mistakes if mistake.sort == sort]
        yield f"<h2>{escape(sentence)} {len(mistakes)}</h2>"
        for label in sorted({mistake.label for mistake in mistakes}):
            of_label = [mistake for mistake in mistakes if mistake.label == label]
            yield f"<h3>{escape(label)}: {len(of_label)}</h3><table>"
            for one in sorted(of_label, key=lambda mistake: (mistake.language, mistake.value)):
                yield (
                    f"<tr><th>{escape(one.language)}</th><td>{escape(one.before)}"
                    f"<mark>{escape(one.value)}</mark>{escape(one.after)}</td></tr>"
                )
            yield "</table>"
    yield "</body></html>"


def _mistake(sort: Sort, span: Span, document: Document, language: str) -> ScanMistake:
    text = document.text
    before = text[max(0, span.start - _AROUND) : span.start]
    after = text[span.end : span.end + _AROUND]
    value = document.value(span)
    return ScanMistake(sort, scan_label(span.label), language, before, value, after)


def _places(spans: Sequence[Span]) -> set[int]:
    return {place for span in spans for place in range(span.start, span.end)}
