"""An estimate of the time that a run takes on this machine, from a few seconds of each stage.

The audit runs on a sample of the documents, which is doubled until it takes long enough to be
measured; of the samples and of a repair's steps a few are made. The time is then extrapolated: by
tokens for the audit, by documents for the scan, by samples, by steps for the repair.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from sani.auditing.audit import audit
from sani.auditing.generation import Decoys, generate_audit
from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.selectors import reads_texts
from sani.machine.progress import OnNamedStep
from sani.models.checkpoint import Checkpoint
from sani.pipeline.models_of_run import GivenModels
from sani.pipeline.run_inputs import RunInputs
from sani.recipe import AuditSettings, GenerationSettings, Recipe, RepairSettings
from sani.repairing.repair import repair
from sani.reporting.format import duration
from sani.scanning.detection import detect
from sani.text.chat import rendered
from sani.text.framing import framing_of
from sani.text.tokens import encode
from sani.values.decoys import decoy_maker

MEASURED_SECONDS = 3.0  # of the audit and of the repair, unless all documents take less
MEASURED_DOCUMENTS = 64  # at most
MEASURED_STEPS = 8  # of a repair, at most
MEASURED_SAMPLES = 24  # of each kind of prompts, at most
# Of an audit: that after the erase measures no swaps and no membership.
ERASED_SHARE = 0.9


@dataclass(frozen=True)
class RunTime:
    """The estimated time of a run.

    Attributes:
        seconds: By stage: ``scan``, ``audits``, ``repair``; of an escalation and of rounds, all of
            them.
        first: Seconds in all if the first rung or round is the last one.
        not_counted: Stages that the estimate leaves out.
    """

    seconds: dict[str, float]
    first: float
    not_counted: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def in_words(self) -> str:
        """The time of the run, and of its stages."""
        whole = f"about {duration(self.total)}"
        if self.first < self.total:
            whole = f"about {duration(self.first)} if the first attempt holds, else {whole}"
        stages = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items() if s >= 1)
        missing = f"; not counted: {', '.join(self.not_counted)}" if self.not_counted else ""
        return f"{whole} on this machine{f' ({stages})' if stages else ''}{missing}"


def estimate_time(
    inputs: RunInputs, models: GivenModels, on_step: OnNamedStep | None = None
) -> RunTime:
    """Return the estimated time of a run.

    Args:
        inputs: Its recipe and documents.
        models: Its models. A copy of the checkpoint is trained.
        on_step: Called with (what is measured, steps done, steps in all).
    """
    recipe, report = inputs.recipe, on_step or (lambda stage, done, total: None)
    report("measure the scan", 0, 3)
    sample = _sample(inputs, models.unsanitized)
    report("measure the audit", 1, 3)
    read = _audit_seconds(recipe.audit, models.unsanitized, sample)
    full = read + _sampling_seconds(recipe.audit, models.unsanitized, sample)
    report("measure the repair", 2, 3)
    seconds = {
        "scan": sample.scan_seconds,
        "audits": full * (2 if recipe.model.base is not None else 1),
        "repair": 0.0,
    }
    if recipe.strategy == "once" and recipe.rounds == 1 and recipe.erase is not None:
        seconds["audits"] += ERASED_SHARE * read
    attempts: list[RepairSettings | None] = [rung.repair for rung in recipe.ladder]
    totals = []
    for settings in attempts or [recipe.repair] * recipe.rounds:
        seconds["audits"] += full
        if settings is not None:
            seconds["repair"] += _repair_seconds(models, sample, settings)
        totals.append(sum(seconds.values()))
    report("measure the repair", 3, 3)
    return RunTime(seconds, totals[0], tuple(_not_counted(recipe)))


def _not_counted(recipe: Recipe) -> Iterator[str]:
    if recipe.attack is not None:
        yield "attacks"
    if recipe.audit.unlearning_depth:
        yield "the unlearning depth"
    erases = [recipe.erase, *(rung.erase for rung in recipe.ladder)]
    if any(erase is not None and reads_texts(erase.selector) for erase in erases):
        yield "a selector that reads documents"


@dataclass(frozen=True)
class _Sample:
    """Evenly spaced documents that the time is measured on, scanned and rendered.

    Attributes:
        documents: Of the corpus.
        held_out: Held-out ones, about as many of them as of the corpus; may be empty.
        lengths: Tokens of each document of the corpus.
        tokens: Tokens of the whole corpus.
        scan_seconds: Seconds of a scan of all documents.
    """

    documents: Corpus
    held_out: Corpus
    lengths: list[int]
    tokens: float
    scan_seconds: float


def _sample(inputs: RunInputs, checkpoint: Checkpoint) -> _Sample:
    corpus, held_out = inputs.documents.corpus, inputs.documents.held_out or Corpus(())
    step = max(1, len(corpus) // MEASURED_DOCUMENTS)
    documents, others = Corpus(corpus[::step]), Corpus(held_out[::step])
    scan_seconds = 0.0
    if inputs.recipe.scan.detects:
        settings = inputs.recipe.scan.model_copy(update={"indirect": None})
        began = time.perf_counter()
        documents = detect(documents, settings)
        number = len(corpus) + len(held_out)
        scan_seconds = (time.perf_counter() - began) * number / len(documents)
        others = detect(others, settings) if others else others
    documents = rendered(documents, checkpoint.tokenizer)
    if not documents.num_spans:  # then an audit would cost nothing, and tell nothing
        documents = Corpus([_with_span(document) for document in documents])
    lengths = [len(item.ids) for item in encode(documents, checkpoint.tokenizer)]
    tokens = sum(lengths) * len(corpus) / len(documents)
    others = rendered(others, checkpoint.tokenizer)
    return _Sample(documents, others, lengths, tokens, scan_seconds)


def _with_span(document: Document) -> Document:
    return replace(document, spans=(Span(0, min(8, len(document.text)), "X"),))


def _audit_seconds(settings: AuditSettings, checkpoint: Checkpoint, sample: _Sample) -> float:
    """Return the seconds of an audit of all documents, without samples."""
    settings = settings.model_copy(update={"generation": None})
    size = 4
    while True:
        size = min(size, len(sample.documents))
        others = math.ceil(size * len(sample.held_out) / len(sample.documents))
        part = Corpus([_marked(document, n) for n, document in enumerate(sample.documents[:size])])
        began = time.perf_counter()
        audit(checkpoint, part, settings, held_out=Corpus(sample.held_out[:others]) or None)
        seconds = time.perf_counter() - began
        if seconds >= MEASURED_SECONDS / 2 or size == len(sample.documents):
            return seconds * sample.tokens / max(1, sum(sample.lengths[:size]))
        size *= 2


def _marked(document: Document, number: int) -> Document:
    """Return the document; the first one gets a span, without which there is nothing to audit."""
    return document if document.spans or number else _with_span(document)


def _sampling_seconds(settings: AuditSettings, checkpoint: Checkpoint, sample: _Sample) -> float:
    """Return the seconds of the samples of one audit."""
    generation = settings.generation
    if generation is None:
        return 0.0
    kinds = ("empty", "headings", "openings")
    numbers: dict[str, int] = {name: getattr(generation, name) for name in kinds}
    few = {name: min(number, MEASURED_SAMPLES) for name, number in numbers.items()}
    drawn: GenerationSettings = generation.model_copy(update={**few, "file": None})
    largest = max(numbers.values())
    number = sum(numbers.values()) + (largest or 1000 if generation.file is not None else 0)
    if not sum(few.values()):
        drawn = drawn.model_copy(update={"empty": MEASURED_SAMPLES})
    began = time.perf_counter()
    result = generate_audit(
        checkpoint,
        sample.documents,
        drawn,
        framing=framing_of(checkpoint, settings.framing),
        decoys=Decoys(decoy_maker([sample.documents], seed=0), settings.decoys),
        batch_tokens=settings.batch_tokens,
    )
    made = max(1, result.recited["all"].samples)
    return (time.perf_counter() - began) * number / made


class _EnoughStepsError(Exception):
    """The steps of a repair that were to be measured are made."""


def _repair_seconds(models: GivenModels, sample: _Sample, settings: RepairSettings) -> float:
    """Return the seconds of a repair on all documents, from the time between its first steps."""
    checkpoint = models.unsanitized
    trained = models.copy_of_unsanitized()
    times: list[float] = []
    steps = 0

    def on_step(done: int, total: int) -> None:
        nonlocal steps
        steps = total
        times.append(time.perf_counter())
        if len(times) > 2 and (
            len(times) > MEASURED_STEPS or times[-1] - times[0] > MEASURED_SECONDS
        ):
            raise _EnoughStepsError

    documents = Corpus([_marked(d, n) for n, d in enumerate(sample.documents)])
    began = time.perf_counter()
    with suppress(_EnoughStepsError):
        repair(
            trained,
            documents,
            settings.model_copy(update={"early_stop": False}),
            base=models.base if settings.needs_base else None,
            unsanitized=checkpoint if settings.needs_unsanitized else None,
            on_step=on_step,
        )
    before = times[0] - began
    between = [later - earlier for earlier, later in pairwise(times)]
    a_step = median(between) if between else before
    share = sample.tokens / max(1, sum(sample.lengths))
    return before + steps * share * a_step
