"""`sani init`: what a recipe is fitted to, a model and a corpus."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sani.auditing.utility import measure_utility
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.errors import RecipeError
from sani.machine.device import default_device
from sani.machine.memory import REPAIR_COPIES, device_memory, needed_memory
from sani.models.bases import architecture_difference, load_base
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.families import FAMILIES, listed_family
from sani.pipeline.inputs import Documents, check_control, read_others
from sani.recipe import (
    AnchorObjective,
    AuditSettings,
    CorpusSettings,
    GateSettings,
    GenerationSettings,
    RepairSettings,
    ScanSettings,
)
from sani.scanning.defaults import UNKNOWN_RECALL, default_settings, settings_in_words
from sani.scanning.inventory import (
    LabelCount,
    count_labels,
    count_understated,
    judged_in_words,
)
from sani.scanning.scan import scan, scan_held_out
from sani.text.chat import rendered
from sani.text.tokens import encode

EPOCHS = 4
BATCH_TOKENS = RepairSettings().batch_tokens
MIN_STEPS = 64  # of a repair: few records are read in smaller steps, and more often
MIN_BATCH_TOKENS, MAX_EPOCHS = 256, 20
# Near the base, skill comes back with the repair, and a lighter anchor brings back more of it; see
# docs/results.md.
NEAR_BASE = 0.9
SKILL_EPOCHS, SKILL_WEIGHT = 12, 10.0
# A larger model gets fewer epochs: it learns a domain within a few, and then what the scan missed.
SMALL_MODEL = 2e7  # parameters
MASKED_EPOCHS = 120  # of a masked language model: each masks 15 % of the words
MAX_ERASED_LAYERS = 3
# Samples hold twice as many tokens as the corpus, which takes at most about a third of an audit.
# More of a kind than the default are never drawn.
SAMPLED_TOKENS, NEW_TOKENS, MIN_SAMPLES = 2, 64, 20
COMPARED_DOCUMENTS = 8  # held-out ones on which the model and its base are compared


@dataclass(frozen=True)
class Fit:
    """The facts that a recipe is fitted to.

    Attributes:
        family: ``model_type`` of the checkpoint.
        layers: Number of its layers.
        parameters: Number of its parameters.
        vocabulary: Number of tokens in its vocabulary.
        context: Longest input, in tokens.
        documents: Number of documents.
        subjects: Number of their subjects.
        without_subject_id: Number of documents that name no subject.
        labels: Number of spans by label and kind.
        understated: Number of dates and ages that the corpus marks indirect though they are direct.
        tokens: Number of tokens of all documents.
        longest: Number of tokens of the longest document.
        fits: True if the memory suffices for the repair, activations not counted.
        perplexities: Those of the checkpoint and of the base on some held-out documents; None
            without held-out documents or base.
        scan: The detectors that all documents go through.
        scanned: The documents with the spans that count.
        num_held_out: Number of held-out documents that were scanned in the same way.
        notes: What was not read of the documents.
    """

    family: str
    layers: int
    parameters: int
    vocabulary: int
    context: int
    documents: int
    subjects: int
    without_subject_id: int
    labels: dict[str, LabelCount]
    understated: int
    tokens: int
    longest: int
    fits: bool = True
    perplexities: tuple[float, float] | None = None
    scan: ScanSettings = field(default_factory=ScanSettings)
    scanned: Corpus = field(default=Corpus(()), repr=False)
    num_held_out: int = 0
    notes: tuple[str, ...] = ()

    @property
    def scan_in_words(self) -> list[str]:
        """Say what was scanned and with what, and what nobody knows of it."""
        held_out = f" and {self.num_held_out} held-out ones" if self.num_held_out else ""
        of_subjects = "" if self.without_subject_id else f" of {self.subjects} subjects"
        lines = list(settings_in_words(self.scan, [self.scanned]))
        lines[0] = f"{self.documents} documents{of_subjects}{held_out} were {lines[0]}"
        return [*lines, UNKNOWN_RECALL] if self.scan.detects else lines

    @property
    def judged(self) -> list[str]:
        """Say which labels the default gate judges, with their occurrences, and which not."""
        return judged_in_words(self.labels, GateSettings().kinds, self.understated)

    @property
    def learnt_the_domain(self) -> bool:
        """True if the checkpoint predicts documents that are new to both better than its base."""
        return _learnt_the_domain(self.perplexities)


def fit(
    model: Path,
    corpus: CorpusSettings,
    *,
    base: Path | None,
    cache_folder: Path | None = None,
    on_step: Callable[[str, int, int], None],
) -> Fit:
    """Return the facts of a model and a corpus.

    Documents that nobody has annotated are scanned first, held-out ones in the same way.

    Args:
        model: Folder of the checkpoint; it is read, not changed.
        corpus: Its documents and, if there are any, those it was not trained on.
        base: Folder of the public model it was fine-tuned from.
        cache_folder: Where the findings of the scan are kept for the next one; None for nowhere.
        on_step: Called with (what is done, steps done, steps in all).

    Raises:
        SaniError: If the model or the documents cannot be used.
    """
    form: dict[str, Any] = {
        "format": corpus.format,
        "subject_pattern": corpus.subject_pattern,
        "columns": corpus.columns,
    }
    documents = read_corpus(corpus.path, **form)
    others = read_others("--held-out", corpus.held_out, documents, **form)
    notes = Documents(documents, others, None).notes()
    checkpoint = load_checkpoint(model, base=base, device=default_device())
    config = checkpoint.model.config
    listed_family(config)
    control = load_base(base, checkpoint) if base else None
    difference = control and architecture_difference(checkpoint, control)
    if difference:
        raise RecipeError(f"--base does not fit the model, so it is no control: {difference}")
    if control is not None:
        check_control(checkpoint, control)
    parameters = sum(tensor.numel() for tensor in checkpoint.model.parameters())
    fits = needed_memory(parameters, copies=REPAIR_COPIES) <= device_memory()
    settings = default_settings([documents, others] if others else [documents])
    scanned = scan(documents, settings, cache_folder=cache_folder, on_step=on_step).corpus
    if others:
        others = scan_held_out(
            others, settings, annotated=[scanned], cache_folder=cache_folder, on_step=on_step
        )
    documents = rendered(scanned, checkpoint.tokenizer)
    others = others and rendered(others, checkpoint.tokenizer)
    lengths = [len(encoded.ids) for encoded in encode(documents, checkpoint.tokenizer)]
    perplexities = _perplexities(checkpoint, control, others) if control and others else None
    return Fit(
        family=config.model_type,
        layers=config.num_hidden_layers,
        parameters=parameters,
        vocabulary=len(checkpoint.tokenizer),
        context=checkpoint.context_tokens,
        documents=len(documents),
        subjects=len({document.subject_id for document in documents}),
        without_subject_id=sum(document.subject_id == document.id for document in documents),
        labels=count_labels(documents),
        understated=count_understated(documents),
        tokens=sum(lengths),
        longest=max(lengths),
        fits=fits,
        perplexities=perplexities,
        scan=settings,
        scanned=scanned,
        num_held_out=len(others or ()),
        notes=tuple(notes),
    )


def _learnt_the_domain(perplexities: tuple[float, float] | None) -> bool:
    return perplexities is not None and perplexities[0] < perplexities[1]


def _perplexities(
    checkpoint: Checkpoint, base: Checkpoint, held_out: Corpus
) -> tuple[float, float] | None:
    """Return the perplexities of both on the first held-out documents.

    None for an encoder-decoder, which no framing fits.
    """
    if checkpoint.model.config.is_encoder_decoder:
        return None
    sample, settings = Corpus(held_out[:COMPARED_DOCUMENTS]), AuditSettings()
    utilities = (
        measure_utility(model, sample, settings, framing="tokenizer")
        for model in (checkpoint, base)
    )
    perplexity, base_perplexity = (utility.perplexity for utility in utilities)
    return perplexity, base_perplexity


def anchor_objective(family: str, *, has_base: bool) -> AnchorObjective:
    """Return an anchor to the base; without one, the kind that leaks least for the family."""
    if has_base:
        return AnchorObjective(kind="anchor")
    causal = FAMILIES[family].objective == "causal"
    return AnchorObjective(kind="anchor", to="counterfactual" if causal else "self")


def samples(tokens: int) -> int:
    """Return how many samples of each of three kinds of prompts fit a corpus of so many tokens."""
    most = GenerationSettings().empty
    return max(MIN_SAMPLES, min(most, SAMPLED_TOKENS * tokens // (3 * NEW_TOKENS)))


def schedule(
    tokens: int, *, parameters: int, masked: bool = False, skill: bool = False
) -> tuple[int, int]:
    """Return (epochs, tokens a step) for a corpus of so many tokens.

    A small corpus gets smaller steps first and more epochs then, until it has `MIN_STEPS` steps.

    Args:
        tokens: Tokens of the corpus.
        parameters: Number of parameters of the model.
        masked: True for a masked language model.
        skill: True where the fine-tuning taught what the base lacks; see `Fit.learnt_the_domain`.
    """
    if masked:
        return MASKED_EPOCHS, BATCH_TOKENS
    batch_tokens = BATCH_TOKENS
    while batch_tokens > MIN_BATCH_TOKENS and EPOCHS * tokens < MIN_STEPS * batch_tokens:
        batch_tokens //= 2
    epochs = math.ceil(MIN_STEPS * batch_tokens / max(1, tokens))
    least = SKILL_EPOCHS if skill and parameters < SMALL_MODEL else EPOCHS
    return max(least, min(MAX_EPOCHS, epochs)), batch_tokens
