"""Overlaps: what becomes of spans that claim the same characters.

The rule loses no letter or digit that any source claims, but for one. Annotations stay as they are.
The others take their turn: confidential terms first, then whole dates, then direct before indirect,
longer before shorter, surer before less sure, then by place, label and source. A date goes first
unless a longer direct finding holds all of it, as a street may: a cut date no longer says which day
it names. Each keeps what nobody before it has taken; a span that is cut keeps its pieces where they
hold a letter or a digit. A lone letter, the M that is left of "M. Amadou" beside the term "Amadou",
is no identifier and stays free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from sani.corpus.documents import ANNOTATION, TERM_SOURCE, Span
from sani.scanning.labels import scan_label

SURE = 0.7  # score of a name after a heading or a title


def resolve(spans: Iterable[Span], text: str) -> tuple[Span, ...]:
    """Return spans that cover the same letters of a text and, annotations aside, never overlap."""
    spans = set(spans)
    resolved = {span for span in spans if span.source == ANNOTATION}
    rest = sorted(spans - resolved, key=_rank)
    if dates := set(_whole_dates(rest)):
        rest = sorted(rest, key=lambda span: (span.source != TERM_SOURCE, span not in dates))
    if not rest:
        return tuple(sorted(resolved))
    taken = np.zeros(len(text), dtype=bool)
    for span in resolved:
        taken[span.start : span.end] = True
    for span in rest:
        pieces = set(_pieces(span, text, taken))
        lone = {piece for piece in pieces if piece != span and _is_letter(text, piece)}
        resolved |= pieces - lone
        taken[span.start : span.end] = True
        taken[[piece.start for piece in lone]] = False
    return tuple(sorted(resolved))


def _rank(span: Span) -> tuple[object, ...]:
    return (
        span.source != TERM_SOURCE,
        span.kind != "direct",
        span.start - span.end,
        -span.score,
        span.start,
        span.label,
        span.source,
    )


def _whole_dates(spans: Sequence[Span]) -> Iterator[Span]:
    """Yield the dates that no other finding may cut.

    A month and a year name nobody: a direct finding that is surer, a name after a title, keeps its
    place beside them. Dates of a model are no dates for sure.
    """
    starts, ends, scores = (
        np.array([getattr(span, name) for span in spans]) for name in ("start", "end", "score")
    )
    direct = np.array([span.kind == "direct" for span in spans])
    by_pattern = np.array([span.source == "pattern" for span in spans])
    for number, span in enumerate(spans):
        if span.source == "ner" or scan_label(span.label) != "DATE":
            continue
        stronger = direct & (starts <= span.start) & (span.end <= ends)
        stronger &= ends - starts > span.end - span.start
        if span.kind != "direct":
            # A month alone that is also a known name of the subject is the name: "June said".
            stronger |= direct & (starts <= span.start) & (span.end <= ends)
            stronger |= direct & by_pattern & (scores >= SURE)
            stronger &= (starts < span.end) & (span.start < ends)
        stronger[number] = False
        if not stronger.any():
            yield span


def _is_letter(text: str, piece: Span) -> bool:
    """Return whether a piece is one letter of an alphabet; a Chinese character may be a name."""
    character = text[piece.start : piece.end]
    return len(character) == 1 and character.lower() != character.upper()


def _pieces(span: Span, text: str, taken: np.ndarray) -> Iterable[Span]:
    """Return the free pieces of a span, without blanks and punctuation at their ends."""
    free = ~taken[span.start : span.end]
    if free.all():
        return [span]
    edges = np.flatnonzero(np.diff(free.astype(np.int8), prepend=0, append=0))
    pieces = []
    for start, end in edges.reshape(-1, 2) + span.start:
        inner = [at for at in range(start, end) if text[at].isalnum()]
        if inner:
            pieces.append(replace(span, start=inner[0], end=inner[-1] + 1))
    return pieces
