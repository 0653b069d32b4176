"""The record of a scan: what stands of it in ``scan.json``, and what the gate judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from sani.intervals import Rate
from sani.scanning.inventory import Inventory


@dataclass(frozen=True)
class MatchScores:
    """Entities or characters of a scan compared with gold ones.

    Attributes:
        gold: Number of gold entities or characters; ``gold_matched`` of them were predicted.
        predicted: Number of predicted ones; ``predicted_matched`` of them are gold.
        precision: None where nothing was predicted.
        recall: None where there is no gold.
        f1: None where precision or recall is.
    """

    gold: int
    predicted: int
    gold_matched: int
    predicted_matched: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class CoveredShare:
    """Share of a label's gold characters that any predicted span covers."""

    recall: float | None


@dataclass(frozen=True)
class LabelQuality:
    """Scores of one label: entities of the same extent, overlapping ones, characters."""

    strict: MatchScores
    overlapping: MatchScores
    characters: MatchScores
    covered: CoveredShare


@dataclass(frozen=True)
class ScanQuality:
    """The scan's quality, estimated on gold documents.

    Attributes:
        documents: Gold documents.
        recall: Direct identifiers that the scan covers whole.
        precision: Spans of the scan that mark an identifier, at least in part.
        recall_char_direct: Share of the characters of direct identifiers that it covers.
        precision_char: Share of the predicted characters that are gold.
        recall_char: Share of all gold characters that it covers.
        missed_per_document: Direct identifiers not covered whole, per document.
        missed: The same by label, in all documents.
        labels: Scores by label.
    """

    documents: int
    recall: Rate
    precision: Rate
    recall_char_direct: float | None
    precision_char: float | None
    recall_char: float | None
    missed_per_document: float | None
    missed: dict[str, int]
    labels: dict[str, LabelQuality]


@dataclass(frozen=True)
class ScanRecord(Inventory):
    """The inventory of a corpus, the scan's quality (None if unknown) and the keyed digest."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    quality: ScanQuality | None
    digest: str
