"""The quality of a scan: its spans against gold spans, by entity and by character.

An entity counts strictly if a found span has its extent and label, and overlapping if a found span
of its label shares a character with it. Recall of *covered* characters asks for no label: what is
covered is kept out of the loss, whatever it is called, so that is the figure for safety. A *missed*
identifier is a gold span of which a letter or a digit is not covered; one without any counts not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sani.corpus.documents import Document, Span
from sani.intervals import Rate, rate
from sani.scanning.breakdown import Breakdown
from sani.scanning.labels import scan_label


@dataclass
class Tally:
    """Counts of gold things and predicted things, and of those that match.

    Attributes:
        gold: Things there are; ``gold_matched`` of them were found.
        predicted: Things found; ``predicted_matched`` of them are there.
    """

    gold: int = 0
    gold_matched: int = 0
    predicted: int = 0
    predicted_matched: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the counts, precision, recall and F1; None where nothing was tried."""
        recall = self.gold_matched / self.gold if self.gold else None
        precision = self.predicted_matched / self.predicted if self.predicted else None
        f1 = None
        if recall is not None and precision is not None:
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {**asdict(self), "precision": precision, "recall": recall, "f1": f1}


@dataclass
class LabelScores:
    """One label's tallies, in the scan's words."""

    strict: Tally = field(default_factory=Tally)
    overlapping: Tally = field(default_factory=Tally)
    characters: Tally = field(default_factory=Tally)
    covered: Tally = field(default_factory=Tally)


@dataclass
class Evaluation:
    """A scan held against gold spans.

    Attributes:
        documents: Documents compared.
        labels: By label of the scan.
        direct: Characters of direct gold spans, and how many are covered by any found span.
        characters: Gold characters covered, and found characters that are gold, labels aside.
        missed: Direct gold spans not wholly covered, by label.
        entities: Direct gold spans and how many are wholly covered; spans of the scan of any kind
            and how many share a letter or a digit with a gold span.
        breakdown: Counts by language and label, and the errors; no part of `to_json`.
    """

    documents: int = 0
    labels: dict[str, LabelScores] = field(default_factory=dict)
    direct: Tally = field(default_factory=Tally)
    characters: Tally = field(default_factory=Tally)
    entities: Tally = field(default_factory=Tally)
    missed: Counter[str] = field(default_factory=Counter)
    breakdown: Breakdown = field(default_factory=Breakdown)

    @property
    def recall(self) -> Rate:
        """Direct identifiers wholly covered, with the interval: the scan's estimated recall."""
        return rate(self.entities.gold_matched, self.entities.gold)

    @property
    def precision(self) -> Rate:
        """Spans of the scan that mark an identifier, at least in part, with the interval."""
        return rate(self.entities.predicted_matched, self.entities.predicted)

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain data; holds no value of the corpus."""
        missed = sum(self.missed.values())
        return {
            "documents": self.documents,
            "recall": asdict(self.recall),
            "precision": asdict(self.precision),
            "recall_char_direct": self.direct.to_json()["recall"],
            "precision_char": self.characters.to_json()["precision"],
            "recall_char": self.characters.to_json()["recall"],
            "missed_per_document": missed / self.documents if self.documents else None,
            "missed": dict(sorted(self.missed.items())),
            "labels": {
                label: {
                    **{name: tally.to_json() for name, tally in vars(scores).items()},
                    "covered": {"recall": scores.covered.to_json()["recall"]},
                }
                for label, scores in sorted(self.labels.items())
            },
        }


def evaluate(gold: Iterable[Document], predicted: Iterable[Sequence[Span]]) -> Evaluation:
    """Compare the scan's spans with the gold spans of the same documents, in the same order.

    Args:
        gold: Documents whose spans are right and complete; labels in any corpus's words.
        predicted: The scan's spans of each.
    """
    result = Evaluation()
    for document, spans in zip(gold, predicted, strict=True):
        result.documents += 1
        _compare(document, spans, result)
        result.breakdown.add(document, spans)
    return result


def _compare(document: Document, scan_spans: Sequence[Span], result: Evaluation) -> None:
    text = document.text
    gold = [(span, scan_label(span.label)) for span in document.spans]
    hits = [(span, scan_label(span.label)) for span in scan_spans]
    covered = _mask(text, (span for span in scan_spans))
    real = _mask(text, document.spans)
    direct = _mask(text, (span for span in document.spans if span.kind == "direct"))
    solid = np.fromiter((c.isalnum() for c in text), dtype=bool, count=len(text))
    _count(result.direct, direct & solid, covered & solid)
    _count(result.characters, real & solid, covered & solid)
    for span, label in gold:
        inside = slice(span.start, span.end)
        if span.kind == "direct" and solid[inside].any():
            whole = not bool((solid[inside] & ~covered[inside]).any())
            result.entities.gold += 1
            result.entities.gold_matched += whole
            if not whole:
                result.missed[label] += 1
    for span in scan_spans:
        inside = slice(span.start, span.end)
        if solid[inside].any():
            result.entities.predicted += 1
            result.entities.predicted_matched += bool((solid[inside] & real[inside]).any())
    for label in {name for _, name in (*gold, *hits)}:
        scores = result.labels.setdefault(label, LabelScores())
        gold_spans = [span for span, name in gold if name == label]
        predicted_spans = [span for span, name in hits if name == label]
        gold_mask, predicted_mask = _mask(text, gold_spans), _mask(text, predicted_spans)
        _count(scores.characters, gold_mask & solid, predicted_mask & solid)
        _count(scores.covered, gold_mask & solid, covered & solid)
        extents = {(span.start, span.end) for span in gold_spans}
        claimed = {(span.start, span.end) for span in predicted_spans}
        both = len(extents & claimed)
        scores.strict.gold += len(extents)
        scores.strict.predicted += len(claimed)
        scores.strict.gold_matched += both
        scores.strict.predicted_matched += both
        scores.overlapping.gold += len(extents)
        scores.overlapping.predicted += len(claimed)
        scores.overlapping.gold_matched += sum(bool(predicted_mask[a:b].any()) for a, b in extents)
        scores.overlapping.predicted_matched += sum(bool(gold_mask[a:b].any()) for a, b in claimed)


def _mask(text: str, spans: Iterable[Span]) -> np.ndarray:
    mask = np.zeros(len(text), dtype=bool)
    for span in spans:
        mask[span.start : span.end] = True
    return mask


def _count(tally: Tally, gold: np.ndarray, predicted_mask: np.ndarray) -> None:
    both = int((gold & predicted_mask).sum())
    tally.gold += int(gold.sum())
    tally.predicted += int(predicted_mask.sum())
    tally.gold_matched += both
    tally.predicted_matched += both
