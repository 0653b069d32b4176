"""The layers below the lowest trained one: run once for each batch, and skipped afterwards.

While the model runs on a batch whose states are cached, each layer below returns these states
and computes nothing. Embeddings, masks and rotary angles stay the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sani.models import families
from sani.models.passes import PassGroup
from sani.models.streaming import run_passes
from sani.text.batches import Batch

TOLERANCE = 1e-3  # relative to the largest state; float16 rounds at 5e-4


class FrozenLayers:
    """The first layers of one model, which are not trained."""

    def __init__(self, model: Any, *, frozen: Sequence[str], trained: Sequence[str]) -> None:
        """Take the model.

        Args:
            model: A causal or masked language model.
            frozen: Names of its first layers, in order.
            trained: Names of all layers after them.
        """
        self._model = model
        self._names = (frozen, trained)
        self._layers = [model.get_submodule(name) for name in frozen]
        self._trained = [model.get_submodule(name) for name in trained]
        self._returns_tuples = False

    def of(self, copy: Any) -> FrozenLayers:
        """Return the same layers of a copy of the model."""
        layers = FrozenLayers(copy, frozen=self._names[0], trained=self._names[1])
        layers._returns_tuples = self._returns_tuples
        return layers

    def train(self) -> None:
        """Switch dropout on in trained layers and off below: cached states have none."""
        self._model.eval()
        for layer in self._trained:
            layer.train()

    def states(self, batches: Sequence[Batch], keep: Callable[[int, Tensor], None]) -> None:
        """Compute the output of the last of these layers; no layer above it is run.

        Args:
            batches: On any device.
            keep: Called with the number of each batch and its states, [batch, seq, hidden].
        """

        def stop(module: Any, inputs: Any, output: Any) -> None:
            self._returns_tuples = isinstance(output, tuple)
            raise _StopError(output[0] if self._returns_tuples else output)

        def run(number: int, batch: Batch) -> None:
            try:
                hidden_states(self._model, batch.to(self._model.device))
            except _StopError as end:
                keep(number, end.states)

        hook = self._layers[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                run_passes(
                    self._model,
                    (PassGroup([partial(run, n, b)], b.ids.numel()) for n, b in enumerate(batches)),
                )
        finally:
            hook.remove()

    def can_be_skipped(self, batch: Batch) -> bool:
        """Test if the model returns the same states with these layers skipped.

        It does not where an upper layer reads what a lower one leaves somewhere else.

        Args:
            batch: On the model's device.
        """
        self._model.eval()
        states: list[Tensor] = []
        self.states([batch], lambda _, computed: states.append(computed))
        with torch.no_grad():
            computed = hidden_states(self._model, batch)
            with self.skipped(states[0]):
                skipped = hidden_states(self._model, batch)
        return nearly_equal(skipped, computed)

    @contextmanager
    def skipped(self, states: Tensor | None) -> Iterator[None]:
        """Make these layers return ``states`` within the context; with None they compute."""
        if states is None:
            yield
            return
        output = (states,) if self._returns_tuples else states
        # Every layer returns the output of the last one. Only the last layer's is read, and the
        # others cost nothing: the model's own loop over its layers stays as it is.
        skipped = list(self._layers)
        for layer in skipped:
            layer.forward = lambda *_, **__: output
        embedding = self._model.get_input_embeddings()
        if embedding.weight.is_meta and embedding.embedding_dim == states.shape[-1]:
            # Streamed: its weights would be read to compute what the first layer then ignores.
            embedding.forward = lambda *_, **__: states
            skipped.append(embedding)
        try:
            yield
        finally:
            for module in skipped:
                del module.forward  # the class's own method is visible again


class _StopError(Exception):
    """Ends a forward pass whose rest is not needed; it has the states, [batch, seq, hidden]."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def nearly_equal(states: Tensor, expected: Tensor) -> bool:
    """Test if states differ by rounding only."""
    return bool((states - expected).abs().max() <= TOLERANCE * expected.abs().max())


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """Return the model's last hidden states of a batch on its device, [batch, seq, hidden]."""
    inputs: dict[str, Any] = {"input_ids": batch.ids}
    if batch.source is None:  # a decoder beside an encoder counts its positions by itself
        inputs["position_ids"] = batch.positions
    else:
        inputs |= {"source_ids": batch.source, "source_seen": batch.source_seen}
    if batch.seen is not None:
        inputs["attention_mask"] = batch.seen.long()
    return families.hidden_states(model, **inputs)
