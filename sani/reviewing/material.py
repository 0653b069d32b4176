"""The material of a review: the values to look at, and a digest that ties a saved review to it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from sani.corpus.documents import ANNOTATION, TERM_SOURCE, Corpus, Document, Span
from sani.reviewing.draw import reviewed_spans
from sani.scanning.labels import scan_labels
from sani.text.folding import fold_text

FORMAT = 1  # of the page and of what it saves


@dataclass(frozen=True)
class ValueRow:
    """A value under one label.

    Attributes:
        label: The label.
        value: Number of the value, however it is written.
        occurrences: Spans.
        documents: Documents in which they stand.
    """

    label: str
    value: int
    occurrences: int
    documents: int


@dataclass(frozen=True)
class Material:
    """The documents of a review, and the values in them.

    Attributes:
        corpus: The documents with the findings of the scan.
        values: The values that detectors marked, each as it is written where it first stands.
        rows: Their counts by label: frequent labels first, then frequent values.
        labels: Labels to choose from: those of the corpus, frequent ones first, then the scan's.
        digest: Tells the material from any other.
    """

    corpus: Corpus = field(repr=False)
    values: tuple[str, ...] = field(repr=False)
    rows: tuple[ValueRow, ...]
    labels: tuple[str, ...]
    digest: str
    _numbers: dict[str, int] = field(repr=False)

    def value_of(self, span: Span, document: Document) -> int | None:
        """Return the number of the value that a span marks; None if it cannot be struck."""
        return self._numbers.get(key_of(span, document))


def key_of(span: Span, document: Document) -> str:
    """Return what all spellings of a span's value share: the scan compares values by it."""
    return fold_text(document.value(span).strip())


def material_of(corpus: Corpus) -> Material:
    """Collect the values of a scanned corpus.

    Values that people annotated, or that a list of terms names, cannot be struck: the scan marks
    them in any case. They are not among the values.
    """
    kept: set[str] = set()
    written: dict[str, str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[int]] = defaultdict(set)
    labels: Counter[str] = Counter()
    for number, document in enumerate(corpus):
        for span in reviewed_spans(document):
            labels[span.label] += 1
            key = key_of(span, document)
            if span.source in (ANNOTATION, TERM_SOURCE) or not key:
                kept.add(key)
                continue
            written.setdefault(key, " ".join(document.value(span).split()))
            counts[span.label, key] += 1
            holders[span.label, key].add(number)
    keys = sorted(written.keys() - kept)
    numbers = {key: number for number, key in enumerate(keys)}
    by_label = sorted(labels, key=lambda label: (-labels[label], label))
    place = {label: number for number, label in enumerate(by_label)}
    listed = sorted(
        (pair for pair in counts if pair[1] in numbers),
        key=lambda pair: (place[pair[0]], -counts[pair], pair[1]),
    )
    state = hashlib.sha256(f"{FORMAT} {corpus.digest()}".encode())
    for key in keys:
        state.update(f"\n{key}".encode())
    return Material(
        corpus=corpus,
        values=tuple(written[key] for key in keys),
        rows=tuple(
            ValueRow(label, numbers[key], counts[label, key], len(holders[label, key]))
            for label, key in listed
        ),
        labels=(*by_label, *(label for label in scan_labels() if label not in place)),
        digest=state.hexdigest(),
        _numbers=numbers,
    )
