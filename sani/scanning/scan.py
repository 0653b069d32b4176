"""The scan: mark identifiers in a corpus, count them, and estimate how many were missed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sani.corpus.documents import TERM_SOURCE, Corpus
from sani.corpus.readers import read_corpus
from sani.corpus.records import NAME_LIKE_VALUE, names_like_values
from sani.errors import ScanError
from sani.machine.progress import OnNamedStep
from sani.recipe import ScanSettings
from sani.scanning.detection import detect, estimate
from sani.scanning.evaluation import Evaluation
from sani.scanning.inventory import Inventory, take_inventory


@dataclass(frozen=True)
class ScanResult:
    """A scanned corpus.

    Attributes:
        corpus: The documents with all their spans, those of the annotation unchanged.
        inventory: Identifiers by label, and how many places look forgotten (``unmarked``).
        quality: How good the detectors are on documents whose spans are right; None if no such
            documents were given.
    """

    corpus: Corpus
    inventory: Inventory
    quality: Evaluation | None = None


def scan(
    corpus: Corpus,
    settings: ScanSettings | None = None,
    *,
    gold: Corpus | None = None,
    cache_folder: Path | None = None,
    on_step: OnNamedStep | None = None,
) -> ScanResult:
    """Find identifiers as the settings say, propagate them, and count what is marked.

    Args:
        corpus: The documents, with or without annotation; annotated spans stay as they are.
        settings: Which detectors to use; None for none, which counts the annotation alone.
        gold: Documents whose spans are right and complete, to measure the detectors on; None for
            those that ``settings.gold`` names, if it names any.
        cache_folder: Where findings are kept for the next scan; None for nowhere.
        on_step: Called with what is done, steps done, and steps in all.

    Raises:
        CorpusError: If no document has a span after the scan, or the gold documents cannot be read.
        ScanError: If a detector cannot be loaded, a document cannot be scanned to its end, or the
            gold documents are not fit to measure detectors.
    """
    settings = settings or ScanSettings()
    quality = None
    if settings.detects:
        corpus = detect(corpus, settings, cache_folder=cache_folder, on_step=on_step)
        _check_labels_of_terms(corpus)
    inventory = take_inventory(corpus)
    if gold is None and settings.gold is not None:
        gold = read_corpus(settings.gold)
    if gold is not None:
        quality = estimate(gold, settings, cache_folder=cache_folder, on_step=on_step)
    return ScanResult(corpus, inventory, quality)


def _check_labels_of_terms(corpus: Corpus) -> None:
    """Refuse labels of the user's list of terms that are values of the corpus: reports print them.

    Raises:
        ScanError: If there is one.
    """
    labels = {s.label for document in corpus for s in document.spans if s.source == TERM_SOURCE}
    if labels & names_like_values(corpus):
        raise ScanError(f"scan.terms: {NAME_LIKE_VALUE}")
