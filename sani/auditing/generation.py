"""The audit by generation: identifiers that a checkpoint recites when it is left to write.

Forward passes answer for the contexts of the corpus; they cannot tell what comes up elsewhere. So
many continuations are sampled from nothing, from headings, from document openings and from the
user's prompts, and each is searched for every known identifier of every subject. An identifier
that stands in a prompt never counts for that prompt's sample. Decoys of every identifier are
searched for alike: `sampled_test` says how many values come up by chance.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sani.auditing.identifier_index import DecoyIndex, Identifier, IdentifierIndex
from sani.auditing.prompts import PROMPTS, Prompt, fit_prompts, make_prompts
from sani.auditing.rarefaction import Distinct, Incidence
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.auditing.sampling import sample
from sani.auditing.written_text import (
    CuedByPrompt,
    Written,
    search_continuations,
    search_decoys,
    written,
)
from sani.corpus.documents import Corpus, Kind
from sani.errors import AuditError
from sani.intervals import Rate, rate
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import GenerationSettings
from sani.text.framing import Framing
from sani.text.tokens import Encoded
from sani.values.decoys import DecoyMaker

PER_SAMPLES = 1000  # to compare prompts of which different numbers were sampled
CURVE_POINTS = 10
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Recited:
    """Identifiers that one kind of prompt, or all together, brought up.

    Attributes:
        prompts: Different prompts.
        samples: Continuations sampled.
        tokens: Tokens generated, up to each sample's end token.
        with_hit: Samples that hold at least one known identifier.
        identifiers: Distinct identifiers recited.
        inexact: Those of them that only a looser reading finds (see `Hit`).
        subjects: Subjects they belong to; a shared identifier counts for each that shares it.
        per_thousand: Distinct identifiers in `PER_SAMPLES` samples, or in all if there are fewer.
        curve: The same at up to `CURVE_POINTS` numbers of samples: flat where it has saturated.
        unseen: Further identifiers that still more samples would recite, at least (Chao2).
        doubled: Those of them that come up if the number of samples is doubled.
        by_label: Distinct identifiers by label; one with two labels counts under both.
    """

    prompts: int
    samples: int
    tokens: int
    with_hit: Rate
    identifiers: int
    inexact: int
    subjects: int
    per_thousand: Distinct | None
    curve: tuple[Distinct, ...]
    unseen: float | None
    doubled: float | None
    by_label: dict[str, int]


@dataclass(frozen=True)
class Hits:
    """Hits of the sampling, one by one; numbers only.

    Attributes:
        kinds: Kind of each sample's prompt, as its index in `PROMPTS`, [samples].
        hits: Sample, identifier, and 1 if found exactly, [hits, 3]; each pair once.
        cued: True where the prompt gives the identifier away, [hits].
        decoy_hits: Sample, identifier, and number of its decoy that came up, [decoy hits, 3];
            none whose prompt gives the decoy or the identifier away.
        num_decoys: Number of decoys of each identifier, [identifiers].
        places: Identifier, document and span of every occurrence in the corpus, [places, 3].
    """

    kinds: Ints
    hits: Ints
    cued: NDArray[np.bool_]
    decoy_hits: Ints
    num_decoys: Ints
    places: Ints


@dataclass(frozen=True)
class GenerationResult:
    """The result of an audit by generation; numbers only, no text and no identifier.

    Attributes:
        framing: Name of the framing before each prompt.
        searched: Distinct identifiers searched for.
        too_short: By label, values too short to be searched for.
        new_tokens: Maximum number of tokens in a sample.
        recited: By kind of prompt, and ``all``.
        seconds: Wall time.
        identifiers: Labels and subjects of every identifier, by number.
        one_by_one: Every hit.
    """

    framing: str
    searched: int
    too_short: dict[str, int]
    new_tokens: int
    recited: dict[str, Recited]
    seconds: float
    identifiers: tuple[Identifier, ...] = field(repr=False)
    one_by_one: Hits = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return all but the single hits as plain data."""
        names = ("framing", "searched", "too_short", "new_tokens", "seconds")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**data, "recited": {name: asdict(part) for name, part in self.recited.items()}}


@dataclass(frozen=True)
class Decoys:
    """The maker of decoys, and their number for each identifier."""

    maker: DecoyMaker
    count: int


@dataclass(frozen=True)
class Beyond:
    """Identifiers that a model recited and its base, given the same prompts, did not.

    Attributes:
        identifiers: Distinct identifiers.
        subjects: Subjects they belong to.
        by_label: Distinct identifiers by label.
        by_prompt: Distinct identifiers by kind of prompt: the model's from these prompts that the
            base gave from none.
    """

    identifiers: int
    subjects: int
    by_label: dict[str, int]
    by_prompt: dict[str, int]


def check_searchable(corpus: Corpus, kinds: Sequence[Kind]) -> IdentifierIndex:
    """Return an index of all identifiers of these kinds that samples can be searched for.

    Raises:
        AuditError: If there is none.
    """
    index = IdentifierIndex(corpus, kinds=kinds)
    if not len(index):
        raise AuditError(
            f"the corpus marks no {' or '.join(kinds)} identifier long enough to search for, so "
            "sampling would find nothing, which is not the same as clean; annotate the corpus, "
            "change audit.generation.kinds, or set audit.generation to null"
        )
    return index


def generate_audit(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: GenerationSettings | None = None,
    *,
    encoded: Sequence[Encoded] | None = None,
    sampler: Sampler = DEFAULT_SAMPLER,
    framing: Framing,
    decoys: Decoys | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> GenerationResult:
    """Sample continuations and find every known identifier in them.

    Run it on the base model too, with the same arguments: prompts and random numbers are then the
    same, and `beyond` tells what only the model recites.

    Args:
        checkpoint: A causal language model and its tokenizer.
        corpus: Documents whose spans are searched for, and which headings and openings are from.
        settings: Prompts and their number; the defaults if None.
        encoded: The documents as tokens of this checkpoint; made from ``corpus`` if None.
        sampler: Temperature, top-k and top-p.
        framing: The tokens before each prompt. The empty prompt is these alone; if there are none,
            the begin token, else the end token, else the commonest first token of a document.
        decoys: Decoys that are searched for too; none if None.
        batch_tokens: Maximum number of tokens in a batch, prompts and continuations together.
        seed: Seed of the sampling.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If the model is not causal, no identifier can be searched for, no prompt can be
            made, the file cannot be read, or the model gives NaN.

    A sample ends at the tokenizer's end token. Only the continuation is searched, from its first
    whole word on. Where prompt and continuation do not fit the model's context, the prompt loses
    tokens on its left, behind the framing, and the continuation gets at least half the context.
    """
    settings = settings or GenerationSettings()
    started = time.perf_counter()
    if checkpoint.family.objective != "causal":
        raise AuditError(
            "only a causal language model can be sampled by prompts; set audit.generation to null"
        )
    index = check_searchable(corpus, settings.kinds)
    prompts, new_tokens = fit_prompts(
        make_prompts(checkpoint, corpus, settings, framing, encoded=encoded),
        framing,
        new_tokens=settings.new_tokens,
        context_tokens=checkpoint.context_tokens,
    )
    if not prompts:
        raise AuditError(
            "no sampling prompts could be built (no recurring heading, no document longer than one "
            "token); set audit.generation.empty"
        )
    continuations = sample(
        checkpoint, prompts, new_tokens=new_tokens, sampler=sampler, batch_tokens=batch_tokens,
        seed=seed, on_step=on_step,
    )  # fmt: skip
    texts = written(checkpoint.tokenizer, prompts, continuations)
    hits = search_continuations(index, texts)
    return GenerationResult(
        framing=framing.name,
        searched=len(index),
        too_short=index.too_short,
        new_tokens=new_tokens,
        recited=_by_kind(index.identifiers, settings, prompts, continuations, hits),
        seconds=time.perf_counter() - started,
        identifiers=index.identifiers,
        one_by_one=_one_by_one(index, prompts, texts, hits, decoys),
    )


def _one_by_one(
    index: IdentifierIndex,
    prompts: Sequence[Prompt],
    texts: Sequence[Written],
    hits: Ints,
    decoys: Decoys | None,
) -> Hits:
    """Return every hit, and every hit of a decoy, with what `sampled_test` needs to know."""
    cued = CuedByPrompt(index, texts)
    decoy_hits, num_decoys = np.zeros((0, 3), dtype=np.int64), np.zeros(len(index), dtype=np.int64)
    if decoys is not None and decoys.count:
        made_up = DecoyIndex(index, decoys.maker, count=decoys.count)
        decoy_hits, num_decoys = search_decoys(made_up, texts, cued), made_up.num_decoys
    return Hits(
        kinds=np.array([PROMPTS.index(prompt.kind) for prompt in prompts]),
        hits=hits,
        cued=cued.of(hits),
        decoy_hits=decoy_hits,
        num_decoys=num_decoys,
        places=index.places,
    )


def _by_kind(
    identifiers: Sequence[Identifier],
    settings: GenerationSettings,
    prompts: Sequence[Prompt],
    continuations: Sequence[tuple[int, ...]],
    hits: Ints,
) -> dict[str, Recited]:
    """Compute the figures of each kind of prompt that the settings ask for, and of all."""
    kinds = np.array([PROMPTS.index(prompt.kind) for prompt in prompts])
    lengths = np.array([len(tokens) for tokens in continuations])
    scopes = {kind: kinds == PROMPTS.index(kind) for kind in PROMPTS if getattr(settings, kind)}
    scopes["all"] = np.ones(len(kinds), dtype=np.bool_)
    return {
        name: _recited(identifiers, prompts, lengths, hits, inside)
        for name, inside in scopes.items()
    }


def beyond(result: Hits, base: Hits, identifiers: Sequence[Identifier]) -> Beyond:
    """Count the identifiers that a model recited and its base did not.

    Args:
        result: Hits of the model.
        base: Hits of the base, on the same corpus with the same settings.
        identifiers: Identifiers searched for, by number.

    Raises:
        AuditError: If the two are not from as many samples of each kind of prompt.
    """
    if not np.array_equal(result.kinds, base.kinds):
        raise AuditError(
            "the two audits by generation differ in their samples, so the one is no control of "
            "the other; run both with the same corpus and settings"
        )
    new = ~np.isin(result.hits[:, 1], base.hits[:, 1])
    kinds, numbers = result.kinds[result.hits[new, 0]], result.hits[new, 1]
    distinct = np.unique(numbers)
    return Beyond(
        identifiers=len(distinct),
        subjects=_num_subjects(identifiers, distinct),
        by_label=_by_label(identifiers, distinct),
        by_prompt={
            PROMPTS[kind]: len(np.unique(numbers[kinds == kind]))
            for kind in np.unique(result.kinds).tolist()
        },
    )


def _recited(
    identifiers: Sequence[Identifier],
    prompts: Sequence[Prompt],
    lengths: Ints,
    hits: Ints,
    inside: NDArray[np.bool_],
) -> Recited:
    """Compute the figures of some samples.

    Args:
        identifiers: Identifiers searched for, by number.
        prompts: Prompt of each sample, [samples].
        lengths: Tokens of each continuation, [samples].
        hits: Sample, identifier, and 1 if found exactly, [hits, 3].
        inside: True for the samples of the scope, [samples].
    """
    samples = int(inside.sum())
    hits = hits[inside[hits[:, 0]]]
    distinct = np.unique(hits[:, 1])
    row = (np.cumsum(inside) - 1)[hits[:, 0]]  # samples numbered within the scope
    seen = Incidence(row, hits[:, 1], samples=samples, searched=len(identifiers))
    sizes = sorted({ceil(samples * k / CURVE_POINTS) for k in range(1, CURVE_POINTS + 1)} - {0})
    unseen, doubled = seen.still_to_come()
    return Recited(
        prompts=len({prompts[at].tokens for at in np.flatnonzero(inside).tolist()}),
        samples=samples,
        tokens=int(lengths[inside].sum()),
        with_hit=rate(len(np.unique(hits[:, 0])), samples),
        identifiers=len(distinct),
        inexact=len(distinct) - len(np.unique(hits[hits[:, 2] == 1, 1])),
        subjects=_num_subjects(identifiers, distinct),
        per_thousand=seen.expected(min(PER_SAMPLES, samples)) if samples else None,
        curve=tuple(seen.expected(size) for size in sizes),
        unseen=unseen,
        doubled=doubled,
        by_label=_by_label(identifiers, distinct),
    )


def _num_subjects(identifiers: Sequence[Identifier], numbers: Ints) -> int:
    """Count the subjects of some identifiers."""
    return len({subject for number in numbers for subject in identifiers[number].subjects})


def _by_label(identifiers: Sequence[Identifier], numbers: Ints) -> dict[str, int]:
    """Count some identifiers by label."""
    labels = Counter(label for number in numbers for label in identifiers[number].labels)
    return dict(sorted(labels.items()))
