"""Count what a corpus marks as identifiers, and what it seems to have forgotten to mark.

What is not marked, the repair trains on as ordinary text, so the second figure matters as much
as the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sani.corpus.documents import KINDS, Corpus, Document, Kind
from sani.errors import CorpusError
from sani.scanning.labels import kind_by_value
from sani.scanning.terms import Finder, Value

SHORTEST = 4
SOURCE = "inventory"


@dataclass(frozen=True)
class LabelCount:
    """One label: how often it is marked, with how many distinct values, for how many subjects.

    Attributes:
        kind: ``direct`` if any occurrence is.
        occurrences: Spans.
        direct: Those of kind ``direct``: a date that names a day is, a year alone is not.
        identifiers: Distinct values.
        subjects: Subjects.
    """

    kind: Kind
    occurrences: int
    direct: int
    identifiers: int
    subjects: int

    def of_kinds(self, kinds: Collection[Kind]) -> int:
        """Return the number of occurrences of these kinds."""
        return sum(
            count
            for kind, count in (
                ("direct", self.direct),
                ("indirect", self.occurrences - self.direct),
            )
            if kind in kinds
        )


@dataclass(frozen=True)
class Inventory:
    """The identifiers that a corpus marks.

    Attributes:
        documents: Documents.
        subjects: Subjects.
        without_subject_id: Documents whose subject is called like the document: none was given.
        occurrences: Spans in all documents.
        documents_without_spans: Documents that mark nothing; look at them.
        unmarked: Places where a value that is marked as a direct identifier of a subject stands
            unmarked in one of the same subject's documents (as a word of its own, at least
            `SHORTEST` characters long).
        labels: By label.
        sources: Occurrences by who found them.
        understated: Dates that name a day, and ages above 89, whose span says ``indirect``.
    """

    documents: int
    subjects: int
    without_subject_id: int
    occurrences: int
    documents_without_spans: int
    unmarked: int
    labels: dict[str, LabelCount]
    sources: dict[str, int]
    understated: int

    def to_json(self) -> dict[str, Any]:
        """Return the inventory as plain data."""
        return asdict(self)


def subjects_in_words(documents: int, subjects: int, without_subject_id: int) -> str:
    """Return how many documents of how many subjects there are, and whether anybody knows."""
    if without_subject_id == 0 or documents == 1:
        return f"{documents} documents of {subjects} subjects"
    if without_subject_id == documents:
        return (
            f"{documents} documents without a subject_id: each counts as a subject of its own, so "
            "propagation and figures by subject mean little"
        )
    return (
        f"{documents} documents of {subjects} subjects; {without_subject_id} documents have no "
        "subject_id and count as a subject each"
    )


def take_inventory(corpus: Corpus) -> Inventory:
    """Count the identifiers that the spans of a corpus mark, whoever found them.

    Raises:
        CorpusError: If no document has a span.
    """
    if corpus.num_spans == 0:
        raise CorpusError(
            f"none of the {len(corpus)} documents has a span: there is nothing to sanitize, which "
            "is not the same as clean. Annotate the corpus, have it scanned (sani scan --patterns, "
            "scan.patterns in a recipe), or check its format"
        )
    of_subject: dict[str, list[Document]] = defaultdict(list)
    for document in corpus:
        of_subject[document.subject_id].append(document)
    return Inventory(
        documents=len(corpus),
        subjects=len(of_subject),
        without_subject_id=sum(d.subject_id == d.id for d in corpus),
        occurrences=corpus.num_spans,
        documents_without_spans=sum(not document.spans for document in corpus),
        unmarked=sum(_count_unmarked(documents) for documents in of_subject.values()),
        labels=count_labels(corpus),
        sources=dict(
            sorted(Counter(s.source for document in corpus for s in document.spans).items())
        ),
        understated=count_understated(corpus),
    )


def count_labels(corpus: Corpus) -> dict[str, LabelCount]:
    """Count the spans of a corpus by label, in the order of the alphabet."""
    kinds: dict[str, Counter[Kind]] = defaultdict(Counter)
    values: dict[str, set[str]] = defaultdict(set)
    subjects: dict[str, set[str]] = defaultdict(set)
    for document in corpus:
        for span in document.spans:
            kinds[span.label][span.kind] += 1
            values[span.label].add(document.value(span))
            subjects[span.label].add(document.subject_id)
    return {
        label: LabelCount(
            # A label used for both kinds counts as direct: the stricter.
            kind="direct" if kinds[label]["direct"] else "indirect",
            occurrences=kinds[label].total(),
            direct=kinds[label]["direct"],
            identifiers=len(values[label]),
            subjects=len(subjects[label]),
        )
        for label in sorted(kinds)
    }


def labels_in_words(labels: Mapping[str, LabelCount], kinds: Collection[Kind]) -> str:
    """Return the labels with their number of occurrences of these kinds; empty if there are none.

    Args:
        labels: Counts by label.
        kinds: Kinds that count.
    """
    counts = {label: count.of_kinds(kinds) for label, count in labels.items()}
    return ", ".join(f"{label} {count:,}" for label, count in counts.items() if count)


def judged_in_words(
    labels: Mapping[str, LabelCount], kinds: Collection[Kind], understated: int
) -> list[str]:
    """Return which labels a gate judges, and which not, each with its occurrences.

    Args:
        labels: Counts by label; no line without any.
        kinds: Kinds that the gate judges.
        understated: From `count_understated`.
    """
    if not labels:
        return []
    others = [kind for kind in KINDS if kind not in kinds]
    lines = [
        f"judged by the gate: {labels_in_words(labels, kinds) or 'none'}",
        f"not judged ({', '.join(others)}): {labels_in_words(labels, others) or 'none'}",
    ]
    return [*lines, understated_in_words(understated)] if understated else lines


def count_understated(corpus: Corpus) -> int:
    """Count the spans that say ``indirect``, and whose value is direct by the rule of dates."""
    return sum(
        span.kind == "indirect" and kind_by_value(span.label, document.value(span)) == "direct"
        for document in corpus
        for span in document.spans
    )


def understated_in_words(count: int) -> str:
    """Return what it means that so many spans are understated, and what to do."""
    return (
        f"{count:,} occurrences are marked indirect by the corpus itself, though they are dates "
        "that name a day or ages above 89: leave their 'kind' out, or scan the plain records again"
    )


def _count_unmarked(documents: list[Document]) -> int:
    """Count the places where direct identifiers of these documents stand unmarked in them.

    However they are written, but for a capital first letter: a Rose is marked, a rose is not.
    """
    values = {
        Value(document.value(span), span.label, "direct", SOURCE, cased=True)
        for document in documents
        for span in document.spans
        if span.kind == "direct" and span.end - span.start >= SHORTEST
    }
    finder = Finder(values)
    count = 0
    for document in documents:
        text = document.text
        marked = np.zeros(len(text) + 1, dtype=np.int64)  # marked characters before each place
        for span in document.spans:
            marked[span.start + 1 : span.end + 1] = 1
        marked = marked.cumsum()
        places = finder.find(text)
        count += len({at.start for at in places if marked[at.start] == marked[at.end]})
    return count
