"""The audit by generation: what a checkpoint recites when it is left to write.

Forward passes answer for the contexts of the corpus; they cannot tell what comes up elsewhere. So
many continuations are sampled from nothing, from headings, from document openings and from the
user's prompts, and each is searched for every known identifier of every subject. An identifier
that stands in a prompt never counts for that prompt's sample.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sani.auditing.identifier_index import Identifier, IdentifierIndex
from sani.auditing.rarefaction import Distinct, Incidence
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.corpus.documents import Corpus
from sani.errors import AuditError
from sani.intervals import Rate, rate
from sani.machine import distributed
from sani.machine.device import token_batches
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import GenerationSettings
from sani.text.tokens import Encoded, Framing, encode, overlapping

PROMPTS = ("empty", "headings", "openings", "file")
PER = 1000
CURVE_POINTS = 10
HEADING_SHARE = 0.1
OPENING_TOKENS = 32  # ours: enough to name the document, too few to give its identifiers
FILE_SAMPLES = 1000  # ours: where no other kind of prompt says how many
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Prompt:
    """One sample to draw.

    Attributes:
        kind: One of `PROMPTS`.
        number: Which sample of its kind; with the seed it fixes the random numbers.
        tokens: What the model reads, framing included.
    """

    kind: str
    number: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Recited:
    """What one kind of prompt, or all together, brought up.

    Attributes:
        prompts: Different prompts.
        samples: Continuations sampled.
        tokens: Tokens generated, up to each sample's end token.
        with_hit: Samples that hold at least one known identifier.
        identifiers: Distinct identifiers recited.
        inexact: Those of them that only a looser reading finds (see `Hit`).
        subjects: Subjects they belong to; a shared identifier counts for each that shares it.
        per_thousand: Distinct identifiers in `PER` samples, or in all if there are fewer.
        curve: The same at up to `CURVE_POINTS` numbers of samples: flat where it has saturated.
        unseen: Further identifiers that still more samples would recite, at least.
        doubled: How many of them if the number of samples were doubled.
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
    """What sampling brought up, one by one; numbers only.

    Attributes:
        kinds: Kind of each sample's prompt, as its place in `PROMPTS`, [samples].
        hits: Sample, identifier, and 1 if found exactly, [hits, 3]; each pair once.
    """

    kinds: Ints
    hits: Ints


@dataclass(frozen=True)
class GenerationResult:
    """Everything that sampling brought up; numbers only, no text and no identifier.

    Attributes:
        framing: What stood before each prompt.
        searched: Distinct identifiers searched for.
        too_short: By label, values too short to be searched for.
        new_tokens: Tokens per sample, at most.
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
        """All but the single hits, as plain data."""
        names = ("framing", "searched", "too_short", "new_tokens", "seconds")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**data, "recited": {name: asdict(part) for name, part in self.recited.items()}}


@dataclass(frozen=True)
class Beyond:
    """What a model recited and its base, given the same prompts, did not.

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
        sampler: Temperature, top-k and top-p.
        framing: What stands before each prompt. The empty prompt is this alone; if it is nothing,
            the begin token, else the end token, else the commonest first token of a document.
        batch_tokens: Most tokens of a batch, prompts and continuations together.
        seed: Of the sampling.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If the model is not causal, no identifier can be searched for, no prompt is to
            be had, the file cannot be read, or the model gives NaN.

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
    prompts, new_tokens = _fitted(
        make_prompts(checkpoint, corpus, settings, framing),
        framing,
        new_tokens=settings.new_tokens,
        context_tokens=checkpoint.context_tokens,
    )
    if not prompts:
        raise AuditError(
            "no prompt is to be had: no line recurs and no document has two tokens; ask for "
            "samples from the empty prompt"
        )
    continuations = sample(
        checkpoint, prompts, new_tokens=new_tokens, sampler=sampler, batch_tokens=batch_tokens,
        seed=seed, on_step=on_step,
    )  # fmt: skip
    kinds = np.array([PROMPTS.index(prompt.kind) for prompt in prompts])
    hits = search_continuations(checkpoint.tokenizer, index, prompts, continuations)
    lengths = np.array([len(tokens) for tokens in continuations])
    asked = [kind for kind in PROMPTS if getattr(settings, kind)]
    scopes = {kind: kinds == PROMPTS.index(kind) for kind in asked}
    scopes["all"] = np.ones(len(kinds), dtype=np.bool_)
    return GenerationResult(
        framing=framing.name,
        searched=len(index),
        too_short=index.too_short,
        new_tokens=new_tokens,
        recited={
            name: _recited(index.identifiers, prompts, lengths, hits, inside)
            for name, inside in scopes.items()
        },
        seconds=time.perf_counter() - started,
        identifiers=index.identifiers,
        one_by_one=Hits(kinds, hits),
    )


def beyond(result: Hits, base: Hits, identifiers: Sequence[Identifier]) -> Beyond:
    """Identifiers that a model recited and its base did not.

    Args:
        result: Of the model.
        base: Of the base, on the same corpus with the same settings.
        identifiers: Those searched for, by number.

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
    found = np.unique(numbers)
    return Beyond(
        identifiers=len(found),
        subjects=_num_subjects(identifiers, found),
        by_label=_by_label(identifiers, found),
        by_prompt={
            PROMPTS[kind]: len(np.unique(numbers[kinds == kind]))
            for kind in np.unique(result.kinds).tolist()
        },
    )


def make_prompts(
    checkpoint: Checkpoint, corpus: Corpus, settings: GenerationSettings, framing: Framing
) -> list[Prompt]:
    """Every sample to draw; the samples of a kind are spread evenly over its prompts.

    Headings are the lines, each up to its first identifier, that recur in at least `HEADING_SHARE`
    of the documents and with two subjects or more. An opening is the first tokens of a document,
    as they stand; at most half of it.

    Raises:
        AuditError: If the file of prompts cannot be read or holds none.
    """
    tokenizer, encoded = checkpoint.tokenizer, encode(corpus, checkpoint.tokenizer)
    openings = [tuple(item.ids[: min(OPENING_TOKENS, len(item.ids) // 2)]) for item in encoded]
    lines = read_prompts(settings.file) if settings.file else []
    choices: dict[str, tuple[list[tuple[int, ...]], int]] = {
        "empty": ([()], settings.empty),
        "headings": (_headings(corpus, encoded), settings.headings),
        "openings": ([opening for opening in openings if opening], settings.openings),
        "file": (
            [tuple(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in lines],
            max(
                max(settings.empty, settings.headings, settings.openings) or FILE_SAMPLES,
                len(lines),
            ),
        ),
    }
    nothing = framing.prefix or _first_token(tokenizer, encoded)
    return [
        Prompt(kind, number, (*framing.prefix, *chosen) or nothing)
        for kind, (prompts, samples) in choices.items()
        for number in range(samples if prompts else 0)
        for chosen in [prompts[number * len(prompts) // samples]]
    ]


def _first_token(tokenizer: Any, encoded: Sequence[Encoded]) -> tuple[int, ...]:
    """What to start from where nothing stands before a document."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (int(token),)
    first = Counter(item.ids[0] for item in encoded if item.ids)
    return (min(first, key=lambda token: (-first[token], token)),)


def _headings(corpus: Corpus, encoded: Sequence[Encoded]) -> list[tuple[int, ...]]:
    """Tokens of each recurring line as it is tokenized most often; commonest line first."""
    tokens: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    documents: Counter[str] = Counter()
    subjects: dict[str, set[str]] = defaultdict(set)
    for document, item in zip(corpus, encoded, strict=True):
        here: set[str] = set()
        for line in re.finditer(r"[^\n\r]+", document.text):
            touched = [
                max(span.start, line.start())
                for span in document.spans
                if span.start < line.end() and span.end > line.start()
            ]
            text = document.text[line.start() : min([line.end(), *touched])]
            heading = text.strip()
            if not any(map(str.isalpha, heading)):
                continue
            start = line.start() + len(text) - len(text.lstrip())
            first, last = overlapping(item.starts, item.ends, start, start + len(heading))
            while last > first and item.ends[last - 1] > start + len(heading):
                last -= 1
            if last > first:
                here.add(heading)
                tokens[heading][tuple(item.ids[first:last])] += 1
        documents.update(here)
        for heading in here:
            subjects[heading].add(document.subject_id)
    enough = ceil(HEADING_SHARE * len(corpus))
    found = [
        heading
        for heading in sorted(documents, key=lambda heading: (-documents[heading], heading))
        if documents[heading] >= enough and len(subjects[heading]) >= 2
    ]
    return list(dict.fromkeys(tokens[heading].most_common(1)[0][0] for heading in found))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines are skipped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise AuditError(
            f"audit.generation.file {path} cannot be read ({reason}); give a text file with one "
            "prompt a line"
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise AuditError(f"audit.generation.file {path} holds no prompt; write one a line")
    return lines


def _fitted(
    prompts: Sequence[Prompt], framing: Framing, *, new_tokens: int, context_tokens: int
) -> tuple[list[Prompt], int]:
    """Prompts cut on the left, and how many tokens to add, so that both fit the context."""
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    new_tokens = min(new_tokens, max(context_tokens - longest, context_tokens // 2))
    if new_tokens < 1:
        raise AuditError(f"a context of {context_tokens} tokens leaves no room to sample")
    room = context_tokens - new_tokens
    lead = framing.prefix[-room:]

    def cut(tokens: tuple[int, ...]) -> tuple[int, ...]:
        over = len(tokens) - room
        return (*lead, *tokens[len(lead) + over :]) if over > 0 else tokens

    return [Prompt(p.kind, p.number, cut(p.tokens)) for p in prompts], new_tokens


def sample(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int,
    sampler: Sampler,
    batch_tokens: int,
    seed: int,
    on_step: OnStep | None = None,
) -> list[tuple[int, ...]]:
    """One continuation of each prompt, with a KV cache, in batches of similar length.

    Every sample has random numbers of its own, fixed by the seed and the prompt's kind and number,
    so what is sampled does not depend on how prompts are batched, nor on how many ranks share
    them, up to rounding.

    Returns:
        New tokens in the order of the prompts, up to the end token and without it.

    Raises:
        AuditError: If the model gives NaN.
    """
    mine = distributed.shard([len(prompt.tokens) for prompt in prompts])

    def work() -> list[tuple[int, tuple[int, ...]]]:
        chosen = [prompts[at] for at in mine]
        found = _sample_share(checkpoint, chosen, new_tokens, sampler, batch_tokens, seed, on_step)
        return list(zip(mine, found, strict=True))

    by_place = {at: tokens for part in distributed.on_every_rank(work) for at, tokens in part}
    return [by_place[at] for at in range(len(prompts))]


@torch.no_grad()
def _sample_share(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    new_tokens: int,
    sampler: Sampler,
    batch_tokens: int,
    seed: int,
    on_step: OnStep | None,
) -> list[tuple[int, ...]]:
    """What `sample` gives for the prompts of this rank."""
    from transformers import GenerationConfig, LogitsProcessorList

    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    end = tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,  # `_Draw` leaves one token to choose from
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end if end is not None else 0,
    )
    found: list[tuple[int, ...]] = [()] * len(prompts)
    batches = token_batches([len(p.tokens) + new_tokens for p in prompts], budget=batch_tokens)
    for done, batch in enumerate(batches, start=1):
        chosen = [prompts[at] for at in batch]
        width = max(len(prompt.tokens) for prompt in chosen)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        sees = torch.zeros(len(batch), width, dtype=torch.long)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            sees[row, width - len(prompt.tokens) :] = 1
        draw = _Draw(sampler, random_numbers(chosen, new_tokens=new_tokens, seed=seed), width)
        with _own_config_aside(model):
            output = model.generate(
                ids.to(model.device),
                attention_mask=sees.to(model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([draw]),
            )
        for at, tokens in zip(batch, output[:, width:].tolist(), strict=True):
            found[at] = tuple(tokens[: tokens.index(end)] if end in tokens else tokens)
        if on_step is not None:
            on_step(done, len(batches))
    return found


def random_numbers(prompts: Sequence[Prompt], *, new_tokens: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), a row for each prompt, [prompts, new_tokens]."""
    rows = [
        np.random.default_rng([seed, PROMPTS.index(p.kind), p.number]).random(new_tokens)
        for p in prompts
    ]
    return torch.from_numpy(np.stack(rows))


class _Draw:
    """Draws each row's next token by that row's own random number, by the inverse transform."""

    def __init__(self, sampler: Sampler, numbers: Tensor, prompt_tokens: int) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._numbers = numbers
        self._prompt_tokens = prompt_tokens
        self._warpers: list[Any] = [TemperatureLogitsWarper(sampler.temperature)]
        if sampler.top_k:
            self._warpers.append(TopKLogitsWarper(sampler.top_k))
        if sampler.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(sampler.top_p))

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """All but the drawn token at -inf, [batch, vocab]."""
        for warp in self._warpers:
            logits = warp(ids, logits)
        below = logits.double().softmax(dim=1).cumsum(dim=1)
        if not torch.isfinite(below).all():
            raise AuditError("the model gives NaN or infinite logits; it cannot be sampled")
        number = self._numbers[:, ids.shape[1] - self._prompt_tokens, None].to(below.device)
        drawn = torch.searchsorted(below, number * below[:, -1:], right=True)
        return torch.full_like(logits, -torch.inf).scatter_(1, drawn, 0.0)


@contextmanager
def _own_config_aside(model: Any) -> Iterator[None]:
    """Without the model's generation_config, which fills in whatever a given one leaves open."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def search_continuations(
    tokenizer: Any,
    index: IdentifierIndex,
    prompts: Sequence[Prompt],
    continuations: Sequence[tuple[int, ...]],
) -> Ints:
    """Every identifier in every continuation that its prompt does not give away.

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
    """What stands behind a prompt; a word or number that the prompt began is left out.

    Digits behind letters are not that word going on (``NHC`` and 12345678), nor are characters of
    a script that is written without blanks. The whole may differ from the prompt's end: bytes of
    half a character show as a mark.
    """
    pairs = enumerate(zip(head, whole, strict=False))
    begin = next((at for at, (one, other) in pairs if one != other), min(len(head), len(whole)))
    going_on = _sort(whole[begin - 1]) if begin else None
    while going_on is not None and begin < len(whole) and _sort(whole[begin]) == going_on:
        begin += 1
    return whole[begin:]


def _sort(character: str) -> str | None:
    """Letter or digit; None for what no word goes on with, as in scripts without blanks."""
    if character.isdigit():
        return "digit"
    unspaced = unicodedata.name(character, "").startswith(UNSPACED)
    return "letter" if character.isalpha() and not unspaced else None


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text with special tokens in it: without them, the words around one would run together."""
    text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    return text


def _recited(
    identifiers: Sequence[Identifier],
    prompts: Sequence[Prompt],
    lengths: Ints,
    hits: Ints,
    inside: NDArray[np.bool_],
) -> Recited:
    """The figures of the samples that are ``inside`` [samples]."""
    samples = int(inside.sum())
    hits = hits[inside[hits[:, 0]]]
    found = np.unique(hits[:, 1])
    row = (np.cumsum(inside) - 1)[hits[:, 0]]  # samples numbered within the scope
    seen = Incidence(row, hits[:, 1], samples=samples, searched=len(identifiers))
    sizes = sorted({ceil(samples * k / CURVE_POINTS) for k in range(1, CURVE_POINTS + 1)} - {0})
    unseen, doubled = seen.still_to_come()
    return Recited(
        prompts=len({prompts[at].tokens for at in np.flatnonzero(inside).tolist()}),
        samples=samples,
        tokens=int(lengths[inside].sum()),
        with_hit=rate(len(np.unique(hits[:, 0])), samples),
        identifiers=len(found),
        inexact=len(found) - len(np.unique(hits[hits[:, 2] == 1, 1])),
        subjects=_num_subjects(identifiers, found),
        per_thousand=seen.expected(min(PER, samples)) if samples else None,
        curve=tuple(seen.expected(size) for size in sizes),
        unseen=unseen,
        doubled=doubled,
        by_label=_by_label(identifiers, found),
    )


def _num_subjects(identifiers: Sequence[Identifier], numbers: Ints) -> int:
    return len({subject for number in numbers for subject in identifiers[number].subjects})


def _by_label(identifiers: Sequence[Identifier], numbers: Ints) -> dict[str, int]:
    labels = Counter(label for number in numbers for label in identifiers[number].labels)
    return dict(sorted(labels.items()))
