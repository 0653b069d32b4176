"""Detection: a corpus with the spans that its annotation marks and those that the scan finds.

Each document by itself (patterns, names by a model, terms: in parallel, and cached), then all
together (header fields, propagation, k-anonymity). The result does not depend on how many
processes or ranks worked on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from sani.corpus.documents import ANNOTATION, Corpus, Document, Span, by_turn
from sani.errors import ScanError
from sani.machine import distributed
from sani.machine.progress import OnNamedStep
from sani.recipe import ScanSettings, settings_from
from sani.scanning.allowed import is_allowed, read_allowed
from sani.scanning.cache import SpanCache, spans_from_json, spans_to_json
from sani.scanning.evaluation import Evaluation, evaluate
from sani.scanning.indirect import find_indirect
from sani.scanning.ner import NerEngine, load_engines
from sani.scanning.overlaps import resolve
from sani.scanning.patterns import find_in_plain, load_patterns, located
from sani.scanning.plausible import plausible
from sani.scanning.propagation import propagate
from sani.scanning.structure import find_structure, in_words
from sani.scanning.terms import Finder, read_terms
from sani.text.plain import plain

# Everything whose version may change what the patterns find.
_LIBRARIES = (
    "sani-llm", "presidio-analyzer", "phonenumbers", "tldextract", "regex", "faker", "babel",
    "python-stdnum",
)  # fmt: skip
# Of sani, likewise: a cache of an older version must not answer for this one.
_PACKAGES = ("sani.scanning", "sani.scanning.recognizers", "sani.text", "sani.values")
_CHUNK = 256
_BATCH = 32


def detect(
    corpus: Corpus,
    settings: ScanSettings,
    *,
    cache_folder: Path | None = None,
    on_step: OnNamedStep | None = None,
    annotated: Sequence[Corpus] = (),
) -> Corpus:
    """Add what the scan finds to what the corpus marks; overlaps as `overlaps.resolve` says.

    Args:
        corpus: The documents; their annotation stays as it is.
        settings: Who looks for what.
        cache_folder: Where findings are kept for the next scan; None for nowhere.
        on_step: Called with what is done, steps done, and steps in all.
        annotated: Other corpora whose annotated values ``settings.allow`` does not remove either.

    Raises:
        ScanError: If a detector cannot be loaded, or a document cannot be looked at to its end.
    """
    report = on_step or (lambda stage, done, total: None)
    add = partial(_with, allowed=read_allowed(settings.allow, (corpus, *annotated)))
    spans_of = _find_all(corpus, settings, cache_folder, report)
    documents = list(map(add, corpus, spans_of))
    notes: list[str] = []
    if settings.structure:
        more, fields = find_structure(documents)
        notes.append(in_words(fields))
        documents = list(map(add, documents, more))
    if settings.propagate:
        more = propagate(
            documents, scope=settings.propagate, on_step=lambda *n: report("scan: propagate", *n)
        )
        documents = list(map(add, documents, more))
    if settings.indirect:
        more = find_indirect(
            documents,
            settings.indirect,
            threads=settings.num_proc,
            on_step=lambda *n: report("scan: indirect", *n),
        )
        documents = list(map(add, documents, more))
    return Corpus(documents, notes)


def check_gold(gold: Corpus) -> None:
    """Refuse documents that no scan can be measured on.

    Raises:
        ScanError: If a span was found by a scan, or the documents mark no direct identifier.
    """
    machines = {s.source for document in gold for s in document.spans} - {ANNOTATION}
    if machines:
        raise ScanError(
            f"the gold documents hold spans that a scan found (source {', '.join(sorted(machines))}"
            "); held against its own findings every scan looks complete: give documents that "
            "people have annotated"
        )
    if not any(span.kind == "direct" for document in gold for span in document.spans):
        raise ScanError(
            "the gold documents mark no direct identifier, so recall cannot be estimated; give "
            "documents whose spans are right and complete"
        )


def estimate(
    gold: Corpus,
    settings: ScanSettings,
    *,
    cache_folder: Path | None = None,
    on_step: OnNamedStep | None = None,
) -> Evaluation:
    """Measure the detectors on documents whose spans are right and complete.

    Their annotation is kept from the detectors; each distinct text counts once. K-anonymity is left
    out: what is rare in a sample is not what is rare in the corpus.

    Raises:
        ScanError: If a span was found by a scan, the documents mark no direct identifier, or as
            for `detect`.
    """
    check_gold(gold)
    gold = Corpus(list({document.text: document for document in gold}.values()))  # a copy is none
    bare = Corpus([replace(document, spans=()) for document in gold])
    alone = settings.model_copy(update={"indirect": None})
    scanned = detect(bare, alone, cache_folder=cache_folder, on_step=on_step, annotated=(gold,))
    return evaluate(gold, [document.spans for document in scanned])


def _with(document: Document, spans: Sequence[Span], *, allowed: frozenset[str]) -> Document:
    spans = [piece for span in spans for piece in by_turn(span, document)]
    if allowed:
        spans = [span for span in spans if not is_allowed(span, document, allowed)]
    return replace(document, spans=resolve((*document.spans, *spans), document.text))


def _find_all(
    corpus: Corpus, settings: ScanSettings, cache_folder: Path | None, report: OnNamedStep
) -> list[tuple[Span, ...]]:
    """Find the spans of each document by itself; ranks share the work, the main one caches."""
    if not (settings.patterns or settings.ner or settings.terms):
        return [()] * len(corpus)
    settings_text = detector_settings(settings)
    detector = load_detector(settings_text)
    if settings.num_proc > 1 and not all(engine.forks for engine in detector.ner):
        raise ScanError(
            "num_proc: processes cannot share a model on an accelerator; leave num_proc at 1, or "
            "start a process for each device with accelerate launch"
        )
    distributed.check_same("detectors", detector.name)
    texts = [document.text for document in corpus]
    known = distributed.on_main(lambda: _known(cache_folder, detector, texts))
    spans_of = {number: spans for number, spans in enumerate(known) if spans is not None}
    rest = [number for number in range(len(texts)) if number not in spans_of]
    if rest and settings.patterns:
        load_patterns()  # here, so that processes share it
    step = _CHUNK * settings.num_proc * distributed.world_size()
    for first in range(0, len(rest), step):
        numbers = rest[first : first + step]
        new = _find_together(numbers, texts, settings_text, settings.num_proc)
        distributed.on_main(partial(_keep, cache_folder, detector, texts, new))
        spans_of |= new
        report("scan: detect", len(spans_of), len(texts))
    return [spans_of[number] for number in range(len(texts))]


def _known(
    folder: Path | None, detector: Detector, texts: Sequence[str]
) -> Sequence[tuple[Span, ...] | None]:
    """Return the cached spans of each text; None for a text that is not cached."""
    if folder is None:
        return [None] * len(texts)
    with SpanCache(folder, detector=detector.name) as cache:
        return cache.load(texts)


def _keep(
    folder: Path | None,
    detector: Detector,
    texts: Sequence[str],
    spans_of: Mapping[int, tuple[Span, ...]],
) -> None:
    if folder is not None:
        with SpanCache(folder, detector=detector.name) as cache:
            cache.save([texts[number] for number in spans_of], list(spans_of.values()))


def _find_together(
    numbers: Sequence[int], texts: Sequence[str], settings_text: str, num_proc: int
) -> dict[int, tuple[Span, ...]]:
    """Find the spans of the texts of these numbers; each text is one rank's."""
    own_numbers = [
        numbers[index] for index in distributed.shard([len(texts[number]) for number in numbers])
    ]

    def work() -> list[tuple[int, tuple[Span, ...]]]:
        spans = _find_chunk(
            own_numbers, [texts[number] for number in own_numbers], settings_text, num_proc
        )
        return list(zip(own_numbers, spans, strict=True))

    parts = distributed.on_every_rank(work)
    return {number: spans for part in parts for number, spans in part}


def _find_chunk(
    numbers: Sequence[int], texts: Sequence[str], settings_text: str, num_proc: int
) -> list[tuple[Span, ...]]:
    """Find the spans of each text with ``num_proc`` processes."""
    # Long and short texts are dealt out in turn, so that the processes end together.
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
    order = [index for first in range(num_proc) for index in order[first::num_proc]]
    batch: dict[str, list[Any]] = {
        "number": [numbers[i] for i in order],
        "text": [texts[i] for i in order],
    }
    if num_proc == 1 or len(texts) < num_proc:
        answers = _find_batch(batch, settings_text)
    else:
        from datasets import Dataset

        # In memory: the library would otherwise write what it maps to a folder of its own.
        dataset = Dataset.from_dict(batch).map(
            _find_batch,
            batched=True,
            batch_size=_BATCH,
            num_proc=num_proc,
            remove_columns=["number", "text"],
            fn_kwargs={"settings_text": settings_text},
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint="scan",
        )
        answers = {"found": dataset["found"], "problem": dataset["problem"]}
    for problem in filter(None, answers["problem"]):
        raise ScanError(problem)
    spans: list[tuple[Span, ...]] = [()] * len(texts)
    for index, answer in zip(order, answers["found"], strict=True):
        spans[index] = spans_from_json(answer)
    return spans


def _find_batch(batch: dict[str, list[Any]], settings_text: str) -> dict[str, list[str]]:
    """Return the spans, or the problem: a pool whose process raises can hang as it is closed."""
    count = len(batch["text"])
    try:
        spans_of = load_detector(settings_text).find(batch["text"], numbers=batch["number"])
    except ScanError as problem:
        return {"found": [""] * count, "problem": [str(problem)] * count}
    return {"found": [spans_to_json(spans) for spans in spans_of], "problem": [""] * count}


def detector_settings(settings: ScanSettings) -> str:
    """Return the settings that decide the findings in a document, as JSON for other processes."""
    read = settings.terms.read_bytes() if settings.terms and settings.terms.is_file() else b""
    chosen = settings.model_dump(mode="json", include={"patterns", "ner", "ner_labels", "terms"})
    return json.dumps({**chosen, "terms_digest": hashlib.sha256(read).hexdigest()})


@dataclass(frozen=True)
class Detector:
    """Everything that looks at a document by itself.

    Attributes:
        name: Tells it from every detector that may find anything else.
        patterns: Whether to look by pattern.
        ner: The engines for names; none where no model is used.
        terms: Confidential terms, or None.
    """

    name: str
    patterns: bool
    ner: tuple[NerEngine, ...]
    terms: Finder | None

    def find(self, texts: Sequence[str], *, numbers: Sequence[int]) -> list[tuple[Span, ...]]:
        """Find the spans of each text, without overlaps; ``numbers`` name the texts in an error."""
        readings = [plain(text) for text in texts]
        plain_texts = [reading.text for reading in readings]
        spans_of: list[list[Span]] = [[] for _ in texts]
        for ner in self.ner:
            for spans, text, names in zip(
                spans_of, plain_texts, ner.find(plain_texts), strict=True
            ):
                spans += plausible(names, text, words=ner.words, language=ner.language)
        for number, text, spans in zip(numbers, plain_texts, spans_of, strict=True):
            if self.patterns:
                try:
                    spans += find_in_plain(text)
                except ScanError as problem:
                    raise ScanError(f"document {number}: {problem}") from None
            if self.terms:
                spans += self.terms.find(text)
        return [
            resolve([located(span, reading) for span in spans], text)
            for spans, reading, text in zip(spans_of, readings, texts, strict=True)
        ]


@cache
def load_detector(settings_text: str) -> Detector:
    """Return the detector of these settings; loaded once a process.

    Args:
        settings_text: What `detector_settings` writes: with the digest of the terms, so that a
            changed list is read again.
    """
    data = json.loads(settings_text)
    data.pop("terms_digest")
    settings = settings_from(ScanSettings, data)
    names: list[str] = [f"{library} {version(library)}" for library in _LIBRARIES]
    names += [
        hashlib.sha256(file.read_bytes()).hexdigest()
        for package in _PACKAGES
        for file in sorted(files(package).iterdir(), key=lambda file: file.name)
        if file.name.endswith((".py", ".yaml"))
    ]
    ner = load_engines(settings.ner_models, settings.ner_labels or {})
    terms = read_terms(settings.terms) if settings.terms else []
    names += [*(engine.name for engine in ner), repr(terms)]
    return Detector(
        json.dumps([settings.patterns, *names]),
        settings.patterns,
        ner,
        Finder(terms) if terms else None,
    )
