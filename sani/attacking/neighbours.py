"""Neighbours: text like what was learnt, and documents that the repair never had.

Threat: the adversary has a copy of a document that differs in a few lines (an earlier version, a
summary, a template filled in again), or other documents of the same subjects. What was removed
where it was listed may be left where it was not.

Cost: an audit for the near-duplicates, one for the other documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from sani.attacking.context import AttackContext, Outcome, all_places
from sani.corpus.documents import Corpus, Document, only
from sani.models.checkpoint import Checkpoint
from sani.recipe import NeighboursSettings
from sani.values.phrases import words_of

LEFT_OUT = 3  # ours: a near-duplicate lacks each line of this number
_LINE = re.compile(r"[^\n]*?(?:\n|[.;] |\Z)")


def neighbours(
    model: Checkpoint, scene: AttackContext, settings: NeighboursSettings
) -> Iterator[Outcome]:
    """Audit near-duplicates of the documents, and other documents.

    A near-duplicate lacks each n-th line or sentence, unless it holds an identifier. In other
    documents, values that the corpus marks somewhere are told from those it marks nowhere.

    Source: near-duplicates, Lee et al. 2022 (2107.06499), the other way round: there they teach,
    here they ask. Deviation: made by leaving lines out.
    """
    near = Corpus([near_duplicate(d, left_out=LEFT_OUT) for d in scene.corpus])
    yield Outcome("near-duplicates", scene.ask(model, near), scene.places)
    if scene.neighbours is None:
        return
    known = {words_of(d.value(span)) for d in scene.annotated for span in d.spans}
    places = all_places(scene.neighbours)
    listed = [words_of(scene.neighbours[d].value(scene.neighbours[d].spans[s])) in known
              for d, s in places]  # fmt: skip
    if not places:
        yield Outcome("other documents", not_run="they mark no identifier of the kinds attacked")
    for name, inside in (("other documents, listed", True), ("other documents, not listed", False)):
        chosen = [place for place, known in zip(places, listed, strict=True) if known == inside]
        if chosen:
            asked = only(scene.neighbours, chosen)
            yield Outcome(name, scene.ask(model, asked), chosen, corpus=scene.neighbours)


def near_duplicate(document: Document, *, left_out: int) -> Document:
    """A document without each ``left_out``-th of its lines that hold no marked character."""
    parts, spans, gone, count = [], list(document.spans), 0, 0
    for line in _LINE.finditer(document.text):
        if any(s.start < line.end() and s.end > line.start() for s in document.spans):
            spans = [
                replace(span, start=span.start - gone, end=span.end - gone)
                if line.start() <= document.spans[n].start < line.end()
                else span
                for n, span in enumerate(spans)
            ]
        else:
            count += 1
            if count % left_out == 0:
                gone += len(line[0])
                continue
        parts.append(line[0])
    return replace(document, text="".join(parts), spans=tuple(spans))
