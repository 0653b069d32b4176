"""Sampling from a model: continuations of prompts, and documents that it writes itself.

Every sample has random numbers of its own, so what is sampled does not depend on how prompts are
batched, nor on how many processes share them, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sani.auditing.prompts import PROMPTS, Prompt
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.corpus.documents import Corpus, Document
from sani.errors import AuditError
from sani.machine import distributed
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.models.streaming import check_in_memory
from sani.text.batches import token_batches
from sani.text.framing import framing_of

BATCH_TOKENS = 16384


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
    """Sample one continuation of each prompt, with a KV cache, in batches of similar length.

    Args:
        checkpoint: A causal language model and its tokenizer.
        prompts: Samples to draw.
        new_tokens: Maximum number of tokens in a continuation.
        sampler: Temperature, top-k and top-p.
        batch_tokens: Maximum number of tokens in a batch, prompts and continuations together.
        seed: With a prompt's kind and number, the seed of its random numbers.
        on_step: Called with (batches done, batches in all).

    Returns:
        New tokens in the order of the prompts, up to the end token and without it.

    Raises:
        AuditError: If the model gives NaN.
    """
    shard = distributed.shard([len(prompt.tokens) for prompt in prompts])

    def work() -> list[tuple[int, tuple[int, ...]]]:
        own = [prompts[at] for at in shard]
        continuations = _sample_shard(
            checkpoint, own, new_tokens, sampler, batch_tokens, seed, on_step
        )
        return list(zip(shard, continuations, strict=True))

    by_prompt = {at: tokens for part in distributed.on_every_rank(work) for at, tokens in part}
    return [by_prompt[at] for at in range(len(prompts))]


def sample_documents(
    checkpoint: Checkpoint,
    number: int,
    *,
    first: int = 0,
    new_tokens: int = 256,
    sampler: Sampler = DEFAULT_SAMPLER,
    framing: str = "auto",
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Corpus:
    """Sample texts that a causal model writes behind nothing but its framing, a subject each.

    For a repair where the training text is gone or never was: what a model recites most often is
    what it writes most often, so its own text can be scanned, masked and repaired with. Such a
    repair does not reach what the model does not write.

    Args:
        checkpoint: A causal language model.
        number: Number of texts.
        first: Number of the first text; other numbers are other texts of the same seed.
        new_tokens: Maximum number of tokens in a text; it ends at the end token.
        sampler: Temperature, top-k and top-p.
        framing: Name of the framing before a document.
        seed: Seed of everything that is drawn.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If there is no token to begin with, or the model gives NaN.
    """
    start = framing_of(checkpoint, framing).prefix
    if not start:
        raise AuditError(
            f"framing {framing} gives no token to begin with; choose one that does, such as bos"
        )
    room = min(new_tokens, checkpoint.context_tokens - len(start))
    texts = sample(
        checkpoint,
        [Prompt("empty", first + n, start) for n in range(number)],
        new_tokens=room,
        sampler=sampler,
        batch_tokens=BATCH_TOKENS,
        seed=seed,
        on_step=on_step,
    )
    decode = checkpoint.tokenizer.decode
    names = [f"sampled-{first + n}" for n in range(number)]
    return Corpus(
        [
            Document(name, name, decode(tokens, skip_special_tokens=True).strip())
            for name, tokens in zip(names, texts, strict=True)
        ]
    )


@torch.no_grad()
def _sample_shard(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    new_tokens: int,
    sampler: Sampler,
    batch_tokens: int,
    seed: int,
    on_step: OnStep | None,
) -> list[tuple[int, ...]]:
    """Sample the continuations of this process's prompts."""
    from transformers import GenerationConfig, LogitsProcessorList

    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    check_in_memory(model, "sampling")
    end = tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,  # `_Draw` leaves one token to choose from
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end if end is not None else 0,
    )
    continuations: list[tuple[int, ...]] = [()] * len(prompts)
    lengths = [len(prompt.tokens) + new_tokens for prompt in prompts]
    batches = token_batches(lengths, budget=batch_tokens)
    if not checkpoint.family.padded_in_front:  # of one length each, so none is padded
        batches = [
            [at for at in batch if lengths[at] == length]
            for batch in batches
            for length in sorted({lengths[at] for at in batch})
        ]
    for done, batch in enumerate(batches, start=1):
        chosen = [prompts[at] for at in batch]
        # Padded in front, so that every row's next token stands at the same place.
        width = max(len(prompt.tokens) for prompt in chosen)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        sees = torch.zeros(len(batch), width, dtype=torch.long)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            sees[row, width - len(prompt.tokens) :] = 1
        draw = _Draw(sampler, random_numbers(chosen, new_tokens=new_tokens, seed=seed), width)
        with _without_generation_config(model):
            output = model.generate(
                ids.to(model.device),
                attention_mask=sees.to(model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([draw]),
            )
        for at, tokens in zip(batch, output[:, width:].tolist(), strict=True):
            continuations[at] = tuple(tokens[: tokens.index(end)] if end in tokens else tokens)
        if on_step is not None:
            on_step(done, len(batches))
    return continuations


def random_numbers(prompts: Sequence[Prompt], *, new_tokens: int, seed: int) -> Tensor:
    """Return uniform numbers in [0, 1), a row for each prompt, [prompts, new_tokens]."""
    rows = [
        np.random.default_rng([seed, PROMPTS.index(p.kind), p.number]).random(new_tokens)
        for p in prompts
    ]
    return torch.from_numpy(np.stack(rows))


class _Draw:
    """A logits processor that draws each row's next token by the row's own random number."""

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
        """Return logits with all but the drawn token at -inf, [batch, vocab]."""
        for warp in self._warpers:
            logits = warp(ids, logits)
        # The inverse transform: the first token whose cumulative probability exceeds the number.
        # float64, or rounding in the sum over a large vocabulary would shift the draw; scaled by
        # the last sum, which is 1 up to rounding, so that there always is such a token.
        below = logits.double().softmax(dim=1).cumsum(dim=1)
        if not torch.isfinite(below).all():
            raise AuditError("the model gives NaN or infinite logits; it cannot be sampled")
        number = self._numbers[:, ids.shape[1] - self._prompt_tokens, None].to(below.device)
        drawn = torch.searchsorted(below, number * below[:, -1:], right=True)
        return torch.full_like(logits, -torch.inf).scatter_(1, drawn, 0.0)


@contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """Set the model's generation_config aside; it would fill in whatever ours leaves open."""
    from transformers import GenerationConfig

    stored = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = stored
