"""Examples that are the same in every epoch, with what other models compute on them once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sani.machine import distributed
from sani.recipe import AnchorObjective
from sani.repairing.activation_cache import ActivationCache, Storage, storage_with_room
from sani.repairing.example_source import ExampleSource, own_rows
from sani.repairing.frozen_layers import FrozenLayers
from sani.repairing.objective import Example
from sani.repairing.teacher_states import counterfactual_states
from sani.text.batches import Batch


class FixedExamples:
    """Examples that are the same in every epoch. `compute` makes them."""

    def __init__(
        self,
        source: ExampleSource,
        batches: Sequence[Batch],
        teacher_hidden: Sequence[Tensor | None],
        cache: ActivationCache,
    ) -> None:
        """Take what is computed already.

        Args:
            source: What the batches were made from.
            batches: This process's rows of each step.
            teacher_hidden: Of each batch, [samples, n, hidden].
            cache: Filled with the states of each batch.
        """
        self._source = source
        self._batches = batches
        self._teacher_hidden = teacher_hidden
        self._cache = cache

    @classmethod
    def compute(
        cls, source: ExampleSource, *, pack: bool, frozen: FrozenLayers | None, folder: Path
    ) -> FixedExamples:
        """Make the batches and run the models that are not trained on each of them, once.

        Args:
            source: What the batches are made from.
            pack: Put several documents into one row.
            frozen: The layers whose output is kept, or None.
            folder: States are kept here if memory has no room for them.
        """
        batches = [own_rows(batch) for batch in source.batches(source.encoded, pack=pack)]
        teacher_hidden = _all_teacher_hidden(source, batches, pack=pack)
        process = distributed.rank()
        cache = ActivationCache(
            folder / (f"states-{process}" if process else "states"),
            _storage(source, batches, frozen, folder),
        )
        if cache.storage != "none":
            _keep_states(cache, source, batches, frozen)
        return cls(source, batches, teacher_hidden, cache)

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self._batches)

    @property
    def has_ordinary_tokens(self) -> bool:
        """True if any process has a token outside spans to train on."""
        return any(distributed.gather(any(bool(batch.ordinary.any()) for batch in self._batches)))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the documents."""
        return self._source.num_tokens

    @property
    def activation_cache(self) -> Storage:
        """Storage of the untrained layers' states: ``memory``, ``disk`` or ``none``."""
        return self._cache.storage

    def read(self, number: int, *, epoch: int) -> list[Example]:
        """Return the one batch of a step."""
        batch, states = self._batches[number], self._cache.load(number)
        if self._cache.storage == "none":
            self._source.retain_hidden([batch], lambda _, hidden: states.update(retain=hidden))
        teacher_hidden = self._teacher_hidden[number]
        return [Example(batch, teacher_hidden, states.get("retain"), states.get("frozen"))]


def _all_teacher_hidden(
    source: ExampleSource, batches: Sequence[Batch], *, pack: bool
) -> list[Tensor | None]:
    """Return the anchor's states at identifier positions of each batch, [samples, n, hidden]."""
    objective = source.settings.identifier_loss
    if not isinstance(objective, AnchorObjective) or objective.to != "counterfactual":
        return source.teacher_hidden(batches)
    documents = {document for batch in batches for _, document, *_ in batch.occurrences.tolist()}
    states = counterfactual_states(
        source.teachers.unsanitized,
        source.checkpoint.tokenizer,
        [item for item in source.encoded if item.document in documents],
        source.surrogates,
        make_batches=lambda encoded: source.batches(encoded, pack=pack),
        samples=objective.samples,
    )
    return [
        torch.stack([states[document, token] for _, document, _, token in occurrences], dim=1)
        if (occurrences := batch.occurrences.tolist())
        else None
        for batch in batches
    ]


def _keep_states(
    cache: ActivationCache,
    source: ExampleSource,
    batches: Sequence[Batch],
    frozen: FrozenLayers | None,
) -> None:
    """Compute what the cache keeps of each batch, on the CPU; of one without rows nothing."""
    rows = [number for number, batch in enumerate(batches) if len(batch.ids)]
    for number in range(len(batches)):
        cache.save(number, {})
    if frozen is not None:
        frozen.states(
            [batches[number] for number in rows],
            lambda index, states: cache.save(rows[index], {"frozen": states.cpu()}),
        )
    source.retain_hidden(
        batches, lambda number, states: cache.save(number, {"retain": states.cpu()})
    )


def _storage(
    source: ExampleSource, batches: Sequence[Batch], frozen: FrozenLayers | None, folder: Path
) -> Storage:
    """Choose where states are kept: as the settings say, or where there is room.

    Processes may choose differently: what is kept equals what would be computed again.
    """
    setting = source.settings.activation_cache
    kinds = (frozen is not None) + (source.settings.retain_weight > 0)
    if not batches or setting == "none" or not kinds:
        return "none"
    model = source.checkpoint.model
    if frozen is not None:
        shortest = next((batch for batch in reversed(batches) if len(batch.ids)), None)
        if shortest is None or not frozen.can_be_skipped(shortest.to(model.device)):
            return "none"
    return storage_with_room(model, batches, kinds, folder) if setting == "auto" else setting
