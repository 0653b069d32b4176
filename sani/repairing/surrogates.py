"""Documents with other values for their identifiers: consistent within one, new each epoch."""

from __future__ import annotations

import random
from dataclasses import replace

from sani.corpus.documents import Corpus, Document, Span
from sani.values.decoys import DecoyMaker

CHOICES = 16  # surrogates made of a value; each document and epoch draws one of them


class Surrogates:
    """Source of surrogates for one corpus: the same seed draws the same ones."""

    def __init__(self, corpus: Corpus, *, seed: int) -> None:
        """Take the corpus; no surrogate stands in its texts.

        Args:
            corpus: The documents.
            seed: Of the values. An audit with this seed uses other values as decoys: a repair
                must not train on what the audit compares with.
        """
        self._corpus = corpus
        self._seed = seed
        self._maker = DecoyMaker([corpus], seed=-1 - seed)

    def document(
        self, number: int, *, round: int, share: float = 1.0
    ) -> tuple[Document, list[bool]]:
        """Return a document with replaced identifiers, and for each span if it was replaced.

        The spans are those of the document, in its order. Where some overlap, each of them becomes
        all of what they cover together. A value without a surrogate stays.

        Args:
            number: Number of the document in the corpus.
            round: Each round draws other surrogates.
            share: Share of the distinct values that are replaced, drawn anew each round, in [0, 1].
        """
        document = self._corpus[number]
        drawn: dict[tuple[str, str], str | None] = {}
        pieces, length, end = [], 0, 0
        spans: list[Span] = list(document.spans)
        replaced = [False] * len(spans)
        for first, last, covering in _merged(document):
            label, value = spans[covering[0]].label, document.text[first:last]
            if (label, value) not in drawn:
                # Seeded by all that names the draw, so that no order of calls changes it.
                chance = random.Random(f"{self._seed}\0{number}\0{round}\0{label}\0{value}")
                choices = self._maker.decoys(label, value, count=CHOICES)
                is_replaced = bool(choices) and chance.random() < share
                drawn[label, value] = chance.choice(choices) if is_replaced else None
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
    """Return the runs of characters [first, last) that overlapping spans cover, and which spans."""
    merged: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(document.spans)), key=lambda index: document.spans[index]):
        span = document.spans[index]
        if merged and span.start < merged[-1][1]:
            first, last, covering = merged[-1]
            merged[-1] = (first, max(last, span.end), [*covering, index])
        else:
            merged.append((span.start, span.end, [index]))
    return merged
