"""Activation patching: hidden states of one model in the place of another's, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sani.models.families import listed_family


def layers_of(model: Any) -> list[torch.nn.Module]:
    """Return the layers of a causal model, the input's side first.

    Raises:
        UnsupportedModelError: If the model is not a causal one of a known family.
    """
    stack = listed_family(model.config, "causal").stacks[-1]
    return list(model.get_submodule(stack.layers).children())


@contextmanager
def recorded(model: Any, places: Tensor) -> Iterator[list[Tensor]]:
    """Record what each layer gives at some places of the next forward pass.

    Args:
        model: A causal model.
        places: Places whose hidden states are kept, [batch, seq], bool.

    Yields:
        A list that the pass fills: hidden states behind each layer, [places, hidden] each, before
        any final norm.
    """
    states: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        states.append(_hidden(output)[places].clone())

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.callback(layer.register_forward_hook(record).remove)
        yield states


@contextmanager
def patched(model: Any, layer: int, states: Tensor, places: Tensor) -> Iterator[None]:
    """Replace what one layer gives at some places, in every forward pass within the block.

    Args:
        model: A causal model.
        layer: Number of the layer, from 0 on the input's side.
        states: Hidden states that take the place of the model's own, [places, hidden].
        places: Where, [batch, seq], bool.
    """

    def replace(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        hidden = _hidden(output).clone()
        hidden[places] = states.to(hidden)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    handle = layers_of(model)[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _hidden(output: Any) -> Tensor:
    """Return the hidden states among what a layer gives, [batch, seq, hidden]."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden
