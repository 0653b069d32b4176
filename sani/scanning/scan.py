"""The scan: mark identifiers in a corpus, count them, and estimate how many were missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sani.corpus.documents import TERM_SOURCE, Corpus
from sani.corpus.readers import read_corpus
from sani.corpus.records import NAME_LIKE_VALUE, names_like_values
from sani.counting import counted
from sani.errors import CorpusError, ScanError
from sani.machine.progress import OnNamedStep
from sani.recipe import ScanSettings
from sani.scanning.defaults import default_settings
from sani.scanning.detection import detect, estimate
from sani.scanning.evaluation import Evaluation
from sani.scanning.inventory import Inventory, take_inventory
from sani.tabular import Tabular

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScanResult(Tabular):
    """A scanned corpus.

    Attributes:
        corpus: The documents with all their spans, those of the annotation unchanged.
        inventory: Identifiers by label, and how many places look forgotten (``unmarked``).
        settings: The detectors that looked for them.
        quality: How good the detectors are on documents whose spans are right; None if no such
            documents were given.
    """

    corpus: Corpus
    inventory: Inventory
    settings: ScanSettings
    quality: Evaluation | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return a row a label: occurrences, distinct identifiers and subjects."""
        import pandas as pd

        labels = self.inventory.labels
        rows = [asdict(count) for count in labels.values()]
        return pd.DataFrame(rows, index=pd.Index(list(labels), name="label"))


def scan(
    corpus: Corpus,
    settings: ScanSettings | None = None,
    *,
    gold: Corpus | None = None,
    cache_folder: Path | None = None,
    on_step: OnNamedStep | None = None,
    measure: bool = True,
) -> ScanResult:
    """Find identifiers as the settings say, propagate them, and count what is marked.

    Args:
        corpus: The documents, with or without annotation; annotated spans stay as they are.
        settings: Which detectors to use; None for those of `default_settings`: none for an
            annotated corpus.
        gold: Documents whose spans are right and complete, to measure the detectors on; None for
            those that ``settings.gold`` names, if it names any.
        cache_folder: Where findings are kept for the next scan; None for nowhere.
        on_step: Called with what is done, steps done, and steps in all.
        measure: Measure the detectors on the gold documents, if there are any.

    Raises:
        CorpusError: If no document has a span after the scan, or the gold documents cannot be read.
        ScanError: If a detector cannot be loaded, a document cannot be scanned to its end, or the
            gold documents are not fit to measure detectors.
    """
    settings = settings or default_settings([corpus])
    if gold is None and settings.gold is not None:
        gold = read_corpus(settings.gold)
    known = () if gold is None else (gold,)
    if settings.detects:
        corpus = detect(
            corpus, settings, cache_folder=cache_folder, on_step=on_step, annotated=known
        )
        _check_labels_of_terms(corpus)
        if corpus.num_spans == 0:
            raise CorpusError(
                f"the scan finds no identifier in {counted(len(corpus), 'document')}, which is not "
                "the same as clean. Check that the text is read (format, encoding, language), add "
                "detectors (--ner, --terms), or annotate the corpus"
            )
    inventory, quality = take_inventory(corpus), None
    if gold is not None and measure:
        quality = estimate(gold, settings, cache_folder=cache_folder, on_step=on_step)
    return ScanResult(corpus, inventory, settings, quality)


def scan_held_out(
    held_out: Corpus,
    settings: ScanSettings,
    *,
    annotated: Sequence[Corpus],
    cache_folder: Path | None = None,
    on_step: OnNamedStep | None = None,
) -> Corpus:
    """Return held-out documents with the spans of the scan that the records went through.

    K-anonymity is left out: they are few, and what is rare among them is not rare in the records.

    Args:
        held_out: Documents that the model was not trained on.
        settings: The detectors of the records.
        annotated: The records, and the gold documents if there are any.
        cache_folder: As for `scan`.
        on_step: As for `scan`.

    Raises:
        ScanError: As for `scan`.
    """
    if not settings.detects:
        return held_out
    return detect(
        held_out,
        settings.model_copy(update={"indirect": None}),
        cache_folder=cache_folder,
        on_step=on_step,
        annotated=annotated,
    )


def _check_labels_of_terms(corpus: Corpus) -> None:
    """Refuse labels of the user's list of terms that are values of the corpus: reports print them.

    Raises:
        ScanError: If there is one.
    """
    labels = {s.label for document in corpus for s in document.spans if s.source == TERM_SOURCE}
    if labels & names_like_values(corpus):
        raise ScanError(f"scan.terms: {NAME_LIKE_VALUE}")
