"""The audit by generation: identifiers that a checkpoint recites when it is left to write.

Forward passes answer for the contexts of the corpus; they cannot tell what comes up elsewhere. So
many continuations are sampled from nothing, from headings, from document openings and from the
user's prompts, and each is searched for every known identifier of every subject. An identifier
that stands in a prompt never counts for that prompt's sample.
"""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sani.auditing.identifier_index import Identifier, IdentifierIndex
from sani.auditing.prompts import PROMPTS, Prompt, fit_prompts, make_prompts
from sani.auditing.rarefaction import Distinct, Incidence
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.auditing.sampling import sample
from sani.corpus.documents import Corpus
from sani.errors import AuditError
from sani.intervals import Rate, rate
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import GenerationSettings
from sani.text.framing import Framing
from sani.text.tokens import Encoded

PER_SAMPLES = 1000  # to compare prompts of which different numbers were sampled
CURVE_POINTS = 10
# Scripts that are written without blanks: no word goes on there.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
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
    """

    kinds: Ints
    hits: Ints


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


def generate_audit(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: GenerationSettings | None = None,
    *,
    encoded: Sequence[Encoded] | None = None,
    sampler: Sampler = DEFAULT_SAMPLER,
    framing: Framing,
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
    index = IdentifierIndex(corpus, kinds=settings.kinds)
    if not len(index):
        raise AuditError(
            f"the corpus marks no {' or '.join(settings.kinds)} identifier long enough to search "
            "for, so sampling would find nothing, which is not the same as clean; annotate the "
            "corpus or change audit.generation.kinds"
        )
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
    hits = search_continuations(checkpoint.tokenizer, index, prompts, continuations)
    kinds = np.array([PROMPTS.index(prompt.kind) for prompt in prompts])
    return GenerationResult(
        framing=framing.name,
        searched=len(index),
        too_short=index.too_short,
        new_tokens=new_tokens,
        recited=_by_kind(index.identifiers, settings, prompts, continuations, hits),
        seconds=time.perf_counter() - started,
        identifiers=index.identifiers,
        one_by_one=Hits(kinds, hits),
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


def search_continuations(
    tokenizer: Any,
    index: IdentifierIndex,
    prompts: Sequence[Prompt],
    continuations: Sequence[tuple[int, ...]],
) -> Ints:
    """Find every identifier in every continuation that its prompt does not give away.

    A date that a prompt leaves open does not give away the same date written out.

    Returns:
        Sample, identifier, and 1 if found exactly, [hits, 3].
    """
    given: dict[tuple[int, ...], tuple[str, dict[int, bool]]] = {}
    hits: list[tuple[int, int, int]] = []
    for number, (prompt, tokens) in enumerate(zip(prompts, continuations, strict=True)):
        if prompt.tokens not in given:
            text = _decoded(tokenizer, prompt.tokens)
            given[prompt.tokens] = text, {hit.identifier: hit.exact for hit in index.find(text)}
        head, known = given[prompt.tokens]
        whole = _decoded(tokenizer, (*prompt.tokens, *tokens))
        for hit in index.find(_behind(head, whole)):
            if hit.identifier not in known or (hit.exact and not known[hit.identifier]):
                hits.append((number, hit.identifier, int(hit.exact)))
    return np.array(hits, dtype=np.int64).reshape(-1, 3)


def _behind(head: str, whole: str) -> str:
    """Return the text behind a prompt, without the rest of a word or number that the prompt began.

    Digits behind letters are not that word going on (``NHC`` and 12345678), nor are characters of
    a script that is written without blanks. The whole may differ from the prompt's end: bytes of
    half a character show as a mark.
    """
    pairs = enumerate(zip(head, whole, strict=False))
    begin = next((at for at, (one, other) in pairs if one != other), min(len(head), len(whole)))
    going_on = _character_class(whole[begin - 1]) if begin else None
    while (
        going_on is not None and begin < len(whole) and _character_class(whole[begin]) == going_on
    ):
        begin += 1
    return whole[begin:]


def _character_class(character: str) -> str | None:
    """Return letter or digit; None for a character that no word goes on with."""
    if character.isdigit():
        return "digit"
    unspaced = unicodedata.name(character, "").startswith(UNSPACED)
    return "letter" if character.isalpha() and not unspaced else None


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text with special tokens in it: without them, words around one would join."""
    text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    return text


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
