"""Overlaps: what becomes of spans that claim the same characters.

The rule loses no letter or digit that any source claims, but for one. Annotations stay as they are.
The others take their turn: confidential terms first, then direct before indirect, longer before
shorter, surer before less sure, then by place, label and source. Each keeps what nobody before it
has taken; a span that is cut keeps its pieces where they hold a letter or a digit. A lone letter,
the M that is left of "M. Amadou" beside the term "Amadou", is no identifier and stays free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from sani.corpus.documents import ANNOTATION, TERM_SOURCE, Span


def resolve(spans: Iterable[Span], text: str) -> tuple[Span, ...]:
    """Return spans that cover the same letters of a text and, annotations aside, never overlap."""
    spans = set(spans)
    resolved = {span for span in spans if span.source == ANNOTATION}
    rest = sorted(spans - resolved, key=_rank)
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
