"""The layers below the lowest trained one: run once for each batch, and skipped afterwards.

While the model runs on a batch whose states are cached, each layer below returns these states
and computes nothing. Embeddings, masks and rotary angles stay the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sani.models import families
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

    def states(self, batch: Batch) -> Tensor:
        """Return the output of the last of these layers, [batch, seq, hidden].

        No layer above it is run.
        """
        outputs: list[Tensor] = []

        def stop(module: Any, inputs: Any, output: Any) -> None:
            self._returns_tuples = isinstance(output, tuple)
            outputs.append(output[0] if self._returns_tuples else output)
            raise _StopError

        hook = self._layers[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                hidden_states(self._model, batch)
        except _StopError:
            pass
        finally:
            hook.remove()
        return outputs[0]

    def can_be_skipped(self, batch: Batch) -> bool:
        """Test if the model returns the same states with these layers skipped.

        It does not where an upper layer reads what a lower one leaves somewhere else.

        Args:
            batch: On the model's device.
        """
        self._model.eval()
        with torch.no_grad():
            computed = hidden_states(self._model, batch)
            with self.skipped(self.states(batch)):
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
        for layer in self._layers:
            layer.forward = lambda *_, **__: output
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward  # the class's own method is visible again


class _StopError(Exception):
    """Ends a forward pass whose rest is not needed."""


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
