"""Documents with fresh values for their identifiers: consistent within one, new each epoch."""

from __future__ import annotations

import random
from dataclasses import replace

from sani.corpus.documents import Corpus, Document, Span
from sani.values.decoys import DecoyMaker

CHOICES = 16  # surrogates of a value, of which each document and epoch draws one


class Surrogates:
    """Draws surrogates for one corpus, the same ones for the same seed."""

    def __init__(self, corpus: Corpus, *, seed: int) -> None:
        """Take the corpus: no surrogate stands in its texts.

        Args:
            corpus: The documents.
            seed: Of the values. They are not those that an audit with this seed compares with.
        """
        self._corpus = corpus
        self._seed = seed
        self._maker = DecoyMaker([corpus], seed=-1 - seed)

    def document(
        self, number: int, *, round: int, share: float = 1.0
    ) -> tuple[Document, list[bool]]:
        """A document with its identifiers replaced, and for each span whether it was.

        The spans are those of the document, in its order; where some overlap, all of them become
        the whole of what they cover. A value for which there is no surrogate stays.

        Args:
            number: Of the document in the corpus.
            round: Another one draws other surrogates.
            share: Of the distinct values that are replaced, drawn anew each round.
        """
        document = self._corpus[number]
        drawn: dict[tuple[str, str], str | None] = {}
        pieces, length, end = [], 0, 0
        spans: list[Span] = list(document.spans)
        replaced = [False] * len(spans)
        for first, last, covering in _merged(document):
            label, value = spans[covering[0]].label, document.text[first:last]
            if (label, value) not in drawn:
                chance = random.Random(f"{self._seed}\0{number}\0{round}\0{label}\0{value}")
                found = self._maker.decoys(label, value, count=CHOICES)
                taken = bool(found) and chance.random() < share
                drawn[label, value] = chance.choice(found) if taken else None
            new = drawn[label, value]
            pieces += [document.text[end:first], value if new is None else new]
            start = length + first - end
            length, end = start + len(pieces[-1]), last
            for index in covering:
                spans[index] = replace(spans[index], start=start, end=length)
                replaced[index] = new is not None
        text = "".join([*pieces, document.text[end:]])
        return replace(document, text=text, spans=tuple(spans)), replaced


def _merged(document: Document) -> list[tuple[int, int, list[int]]]:
    """Characters [first, last) that spans cover without a gap in between, and which spans."""
    merged: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(document.spans)), key=lambda index: document.spans[index]):
        span = document.spans[index]
        if merged and span.start < merged[-1][1]:
            first, last, covering = merged[-1]
            merged[-1] = (first, max(last, span.end), [*covering, index])
        else:
            merged.append((span.start, span.end, [index]))
    return merged
