"""Neighbours: near-duplicates of the documents, and documents that the repair never read.

Threat: the adversary has a copy of a document that differs in a few lines (an earlier version, a
summary, a template filled in again), or other documents of the same subjects. A repair may remove
a value from the documents that it read and leave it in others.

Cost: an audit for the near-duplicates, and one for the other documents.
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
_LINE_OR_SENTENCE = re.compile(r"[^\n]*?(?:\n|[.;] |\Z)")


def neighbours(
    model: Checkpoint, context: AttackContext, settings: NeighboursSettings
) -> Iterator[Outcome]:
    """Audit near-duplicates of the documents, and other documents.

    In the other documents, values that the corpus marks somewhere (listed) and values that it
    marks nowhere (not listed) are counted apart.

    Source: near-duplicates, Lee et al. 2022 (2107.06499), who count what near-duplicates teach;
    here they are prompts. Deviation: a near-duplicate is made by leaving lines out.
    """
    near = Corpus([near_duplicate(d, left_out=LEFT_OUT) for d in context.corpus])
    yield Outcome("near-duplicates", context.score_documents(model, near), context.places)
    if context.neighbours is None:
        return
    others = context.neighbours
    marked = {words_of(d.value(span)) for d in context.annotated for span in d.spans}
    places = all_places(others)
    listed = [words_of(others[d].value(others[d].spans[s])) in marked for d, s in places]
    if not places:
        yield Outcome("other documents", not_run="they mark no identifier of the kinds attacked")
    for name, group in (("other documents, listed", True), ("other documents, not listed", False)):
        chosen = [place for place, inside in zip(places, listed, strict=True) if inside == group]
        if chosen:
            occurrences = context.score_documents(model, only(others, chosen))
            yield Outcome(name, occurrences, chosen, corpus=others)


def near_duplicate(document: Document, *, left_out: int) -> Document:
    """Return the document without each ``left_out``-th of the lines or sentences without a span."""
    parts, spans, removed, count = [], list(document.spans), 0, 0
    for line in _LINE_OR_SENTENCE.finditer(document.text):
        if any(s.start < line.end() and s.end > line.start() for s in document.spans):
            # A span moves with the line it starts in; its own offsets are those of the document.
            spans = [
                replace(span, start=span.start - removed, end=span.end - removed)
                if line.start() <= document.spans[n].start < line.end()
                else span
                for n, span in enumerate(spans)
            ]
        else:
            count += 1
            if count % left_out == 0:
                removed += len(line[0])
                continue
        parts.append(line[0])
    return replace(document, text="".join(parts), spans=tuple(spans))
