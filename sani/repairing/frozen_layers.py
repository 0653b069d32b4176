"""The layers below the lowest trained one: run once for each batch, and skipped afterwards.

While the model runs on a batch whose states are kept, each layer below gives these states out
instead of computing anything; embeddings, masks and rotary angles stay the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sani.models import families
from sani.text.batches import Batch


class FrozenPart:
    """The first layers of one model."""

    def __init__(self, model: Any, *, frozen: Sequence[str], trained: Sequence[str]) -> None:
        """Take the model.

        Args:
            model: A causal or masked language model.
            frozen: Names of its first layers, in order.
            trained: Names of all layers behind them.
        """
        self._model = model
        self._names = (frozen, trained)
        self._layers = [model.get_submodule(name) for name in frozen]
        self._trained = [model.get_submodule(name) for name in trained]
        self._gives_tuples = False

    def of(self, copy: Any) -> FrozenPart:
        """The same layers of a copy of the model."""
        found = FrozenPart(copy, frozen=self._names[0], trained=self._names[1])
        found._gives_tuples = self._gives_tuples
        return found

    def train(self) -> None:
        """Switch dropout on where something is trained, and off below."""
        self._model.eval()
        for layer in self._trained:
            layer.train()

    def states(self, batch: Batch) -> Tensor:
        """What leaves the last of these layers, [batch, seq, hidden]; no layer above is run."""
        found: list[Tensor] = []

        def stop(module: Any, inputs: Any, output: Any) -> None:
            self._gives_tuples = isinstance(output, tuple)
            found.append(output[0] if self._gives_tuples else output)
            raise _StopError

        hook = self._layers[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                hidden_states(self._model, batch)
        except _StopError:
            pass
        finally:
            hook.remove()
        return found[0]

    @contextmanager
    def skipped(self, states: Tensor | None) -> Iterator[None]:
        """Within, these layers give ``states`` out; with None they compute."""
        if states is None:
            yield
            return
        output = (states,) if self._gives_tuples else states
        for layer in self._layers:
            layer.forward = lambda *_, **__: output
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


class _StopError(Exception):
    """Ends a forward pass whose rest is not needed."""


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """The model's last hidden states of a batch on its device, [batch, seq, hidden]."""
    inputs: dict[str, Any] = {"input_ids": batch.ids}
    if batch.source is None:  # a decoder beside an encoder counts its positions by itself
        inputs["position_ids"] = batch.positions
    else:
        inputs |= {"source_ids": batch.source, "source_seen": batch.source_seen}
    if batch.seen is not None:
        inputs["attention_mask"] = batch.seen.long()
    return families.hidden_states(model, **inputs)
