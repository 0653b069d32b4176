"""The corpus for selectors and resets: in batches, by label, and occurrence by occurrence.

A causal model is asked for the next token. A masked one is asked for the token at a mask: every
document is read `COPIES` times, each time with another share of its tokens masked, so that each
token is masked once and about as many at a time as in training (15 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from sani.corpus.documents import Corpus
from sani.machine.device import generator
from sani.models.checkpoint import Checkpoint
from sani.text.batches import Batch, make_batches
from sani.text.chat import check_source, rendered
from sani.text.framing import Framing, framing_of
from sani.text.tokens import Encoded, encode, windows

BATCH_TOKENS = 2048
COPIES = 7
_NO_OCCURRENCES = torch.empty(0, 4, dtype=torch.long)  # no selector needs those of masked tokens


@dataclass(frozen=True)
class Question:
    """One token of an identifier, to be read at position ``at`` of ``ids``.

    A causal model predicts it there from what stands before; for a masked one it is masked there,
    and so are the identifier's tokens behind it, as in the audit. ``source`` is what an encoder
    reads beside it.
    """

    ids: tuple[int, ...]
    at: int
    target: int
    source: tuple[int, ...] = ()


class Texts:
    """A corpus for one checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, corpus: Corpus, *, framing: str = "auto", seed: int = 0
    ) -> None:
        """Keep what is needed; the corpus is encoded when it is first read.

        Args:
            checkpoint: Its tokenizer and its context are used.
            corpus: Documents with spans.
            framing: What stands before each document, by name.
            seed: Of the masks of a masked language model.

        Raises:
            CheckpointError: If documents cannot be read with the tokenizer.
        """
        self._corpus = rendered(corpus, checkpoint.tokenizer)
        self._config = checkpoint.model.config
        self._tokenizer = checkpoint.tokenizer
        self._context = checkpoint.context_tokens
        self._seed = seed
        self.masked = checkpoint.family.objective == "masked"
        checkpoint.check_tokenizer()
        self.framing: Framing = framing_of(checkpoint, framing)

    @cached_property
    def encoded(self) -> list[Encoded]:
        """Documents as tokens.

        Raises:
            CorpusError: If one lacks a source that the model reads, or has one that it does not.
        """
        check_source(self._corpus, self._config)
        return encode(self._corpus, self._tokenizer)

    @property
    def labels(self) -> list[str]:
        """Return every label of the corpus once, sorted."""
        return sorted({span.label for document in self._corpus for span in document.spans})

    def batches(self, label: str | None = None) -> list[Batch]:
        """Return the documents as batches.

        Args:
            label: If given, only documents with it, and ``identifier`` is for this label alone.
        """
        encoded = self.encoded if label is None else list(self._of_label(label))
        if self.masked:
            return [batch for item in encoded for batch in self._masked_batches(item)]
        return make_batches(
            encoded, self.framing, context_tokens=self._context, batch_tokens=BATCH_TOKENS
        )

    def drawn_questions(self, number: int, *, seed: int) -> list[list[Question]]:
        """Draw at most ``number`` occurrences that a token covers, and return their questions."""
        occurrences = [
            (item.document, span)
            for item in self.encoded
            for span, (first, last) in enumerate(item.spans)
            if first < last
        ]
        drawn = torch.randperm(len(occurrences), generator=generator(seed))[:number]
        return [self.questions(*occurrences[index]) for index in drawn.tolist()]

    def questions(self, document: int, span: int) -> list[Question]:
        """Return a question for each token of an occurrence, with as much context as fits.

        Without a framing, a causal model is not asked for a document's first token.
        """
        item = self.encoded[document]
        prefix, suffix = self.framing.prefix, self.framing.suffix
        room = self.framing.capacity(self._context)
        first, last = item.spans[span]
        if self.masked:
            start = max(0, min(first - room // 2, len(item.ids) - room))
            end = min(len(item.ids), start + room)
            return [
                Question(
                    (*prefix, *item.ids[start:t], *self._masks(min(last, end) - t),
                     *item.ids[last:end], *suffix),
                    len(prefix) + t - start,
                    item.ids[t],
                )
                for t in range(first, min(last, end))
            ]  # fmt: skip
        before = [(*prefix, *item.ids[max(0, t - room) : t]) for t in range(first, last)]
        source = tuple(item.source_within(self._context))
        return [
            Question(ids, len(ids) - 1, item.ids[t], source)
            for t, ids in zip(range(first, last), before, strict=True)
            if ids
        ]

    def _of_label(self, label: str) -> Iterator[Encoded]:
        for item, document in zip(self.encoded, self._corpus, strict=True):
            spans = [
                where
                for where, span in zip(item.spans, document.spans, strict=True)
                if span.label == label
            ]
            if any(first < last for first, last in spans):
                yield replace(item, spans=spans)

    def _masks(self, number: int) -> list[int]:
        return [self._tokenizer.mask_token_id] * number

    def _masked_batches(self, item: Encoded) -> Iterator[Batch]:
        """Yield batches of one document or window: a masked model would see padding."""
        prefix, suffix = self.framing.prefix, self.framing.suffix
        lead, room = len(prefix), self.framing.capacity(self._context)
        chance = generator(self._seed + item.document)
        touched = torch.tensor(item.in_span())
        for window in windows(len(item.ids), item=item.document, capacity=room):
            read = item.ids[window.start : window.end]
            if not read:
                continue
            targets = torch.tensor([*prefix, *read, *suffix]).repeat(COPIES, 1)
            text = slice(lead, lead + len(read))  # between prefix and suffix
            copy = torch.randperm(len(read), generator=chance) % COPIES  # in which it is masked
            hidden = torch.zeros_like(targets, dtype=torch.bool)
            hidden[:, text] = copy[None] == torch.arange(COPIES)[:, None]
            inside, new = torch.zeros_like(hidden), torch.zeros_like(hidden)
            inside[:, text] = touched[window.start : window.end]
            new[:, lead + window.new - window.start : text.stop] = True
            ids = targets.masked_fill(hidden, self._tokenizer.mask_token_id)
            predicted = hidden & new
            rows = max(1, BATCH_TOKENS // ids.shape[1])
            for first in range(0, COPIES, rows):
                piece = slice(first, first + rows)
                yield Batch(ids[piece], targets[piece], (predicted & ~inside)[piece],
                            (predicted & inside)[piece], _NO_OCCURRENCES)  # fmt: skip
