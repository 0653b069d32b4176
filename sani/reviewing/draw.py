"""Draw documents at random for a review: every document is as likely, every stratum has its share.

The strata are by length and by what the scan marked, so that neither short notes nor notes without
any finding are left out by chance. The sample weights itself: a figure over all its documents is
one of the corpus.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from sani.corpus.documents import Corpus, Document, Span
from sani.scanning.indirect import SOURCE as K_ANONYMITY

Stratum = tuple[int, int, str]
"""Third of the lengths, class of the density of findings (0 for none), most frequent label."""
_THIRDS = 3


def reviewed_spans(document: Document) -> tuple[Span, ...]:
    """Return the spans that a review shows: those of k-anonymity are words and no identifiers."""
    return tuple(span for span in document.spans if span.source != K_ANONYMITY)


def distinct_documents(corpus: Corpus) -> list[int]:
    """Return the numbers of the documents with text, each text once: a copy says nothing new."""
    first: dict[str, int] = {}
    for number, document in enumerate(corpus):
        if document.text.strip():
            first.setdefault(document.text, number)
    return list(first.values())


def strata(documents: Sequence[Document]) -> list[Stratum]:
    """Return the stratum of each document.

    A document without findings is of class 0. Of the others, those with fewer findings a character
    than the median are of class 1, the rest of class 2.
    """
    lengths = sorted(len(document.text) for document in documents)
    densities = [len(reviewed_spans(d)) / max(1, len(d.text)) for d in documents]
    marked = sorted(density for density in densities if density)
    median = marked[len(marked) // 2] if marked else 0.0
    result = []
    for document, density in zip(documents, densities, strict=True):
        third = bisect_left(lengths, len(document.text)) * _THIRDS // len(lengths)
        labels = Counter(span.label for span in reviewed_spans(document))
        most = min(labels, key=lambda label: (-labels[label], label), default="")
        result.append((third, 0 if not density else 1 if density < median else 2, most))
    return result


def draw(corpus: Corpus, count: int, *, seed: int) -> tuple[int, ...]:
    """Draw documents in a random order, so that whoever stops early has a random sample too.

    Args:
        corpus: The documents with the findings of the scan.
        count: How many; all distinct ones if there are fewer.
        seed: The same seed draws the same documents.

    Returns:
        Their numbers in the corpus, from 0.

    Source: systematic sampling of the documents sorted by stratum, with a random start (Cochran,
    Sampling Techniques, 3rd edition, chapter 8). Each document has the same chance.
    """
    numbers = distinct_documents(corpus)
    stratum = dict(zip(numbers, strata([corpus[n] for n in numbers]), strict=True))
    chance = random.Random(seed)
    chance.shuffle(numbers)
    numbers.sort(key=stratum.__getitem__)  # stable: random within a stratum
    count = min(count, len(numbers))
    start = chance.randrange(len(numbers)) if numbers else 0
    chosen = [numbers[(start + turn * len(numbers)) // count] for turn in range(count)]
    chance.shuffle(chosen)
    return tuple(chosen)
