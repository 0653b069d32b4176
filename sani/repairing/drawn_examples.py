"""Examples that differ from epoch to epoch: surrogates, decoys as targets, masked words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sani.corpus.documents import Corpus
from sani.repairing.activation_cache import Storage
from sani.repairing.example_source import ExampleSource, own_rows
from sani.repairing.mlm_masking import free_words, masked_batches
from sani.repairing.objective import Example
from sani.text.batches import Batch, token_batches
from sani.text.tokens import Encoded, encode

SHARE_OF_DECOYS = 0.5  # of the values, where decoys are the targets and all others stay


class DrawnExamples:
    """Examples with other values or masks in each epoch."""

    activation_cache: Storage = "none"

    def __init__(self, source: ExampleSource, *, pack: bool) -> None:
        """Deal the documents out to steps.

        Args:
            source: What the batches of each epoch are made from.
            pack: Put several documents into one row.
        """
        self._source = source
        self._pack = pack
        around = len(source.framing.prefix) + len(source.framing.suffix)
        lengths = [len(item.ids) + around for item in source.encoded]
        self._documents_by_step = token_batches(lengths, budget=source.settings.batch_tokens)

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self._documents_by_step)

    @property
    def has_ordinary_tokens(self) -> bool:
        """True if there is a token outside spans to train on."""
        if self._source.masked:
            return any(free_words(item) for item in self._source.encoded)
        return any(False in item.in_span() for item in self._source.encoded)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the documents."""
        return self._source.num_tokens

    def read(self, number: int, *, epoch: int) -> list[Example]:
        """Return the batches of one step; several where replaced documents outgrow the budget."""
        source, documents = self._source, self._documents_by_step[number]
        encoded = [source.encoded[document] for document in documents]
        replaced: dict[int, list[bool]] = {}
        if source.replaces_identifiers:
            encoded, replaced = self._replaced(documents, epoch)
        batches = (
            self._masked(encoded, epoch)
            if source.masked
            else source.batches(encoded, pack=self._pack)
        )
        batches = [own_rows(batch) for batch in batches]
        if source.term == "decoys":
            batches = [_without_loss_at_true_values(batch, replaced) for batch in batches]
        retained: dict[int, Tensor] = {}
        source.retain_hidden(batches, retained.__setitem__)
        return [
            Example(batch, teacher_hidden, retained.get(number))
            for number, (batch, teacher_hidden) in enumerate(
                zip(batches, source.teacher_hidden(batches), strict=True)
            )
        ]

    def _replaced(
        self, documents: Sequence[int], epoch: int
    ) -> tuple[list[Encoded], dict[int, list[bool]]]:
        """Return documents with this epoch's values, and for each span if it was replaced."""
        source = self._source
        share = 1.0 if source.settings.context == "surrogate" else SHARE_OF_DECOYS
        encoded, replaced = [], {}
        for number in documents:
            document, replaced[number] = source.surrogates.document(
                number, round=epoch, share=share
            )
            (item,) = encode(Corpus([document]), source.checkpoint.tokenizer)
            encoded.append(replace(item, document=number))
        return encoded, replaced

    def _masked(self, encoded: Sequence[Encoded], epoch: int) -> list[Batch]:
        source = self._source
        return masked_batches(
            encoded,
            source.framing,
            mask=source.checkpoint.tokenizer.mask_token_id,
            identifier_loss=source.term != "mask",
            # Seeded by all that names the draw: a resumed repair draws the same masks.
            chance=lambda document: random.Random(f"{source.seed}\0{epoch}\0{document}"),
            context_tokens=source.checkpoint.context_tokens,
            batch_tokens=source.settings.batch_tokens,
        )


def _without_loss_at_true_values(batch: Batch, replaced: dict[int, list[bool]]) -> Batch:
    """Return the batch with loss at replaced identifiers only.

    A true value that stayed is context: predicting it would teach it again.
    """
    is_replaced = torch.tensor(
        [replaced[document][span] for _, document, span, _ in batch.occurrences.tolist()],
        dtype=torch.bool,
    )
    identifier = batch.identifier.clone()
    identifier[batch.identifier] = is_replaced
    return replace(batch, identifier=identifier, occurrences=batch.occurrences[is_replaced])
