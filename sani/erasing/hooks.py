"""Hooks on neurons' activations where they go into output projections: to read or change them.

Where one module holds all experts of a layer, its activations never leave it; inside `changed` it
runs `families.run_experts` instead of its own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from sani.models import families
from sani.models.neurons import Layout, Output
from sani.recipe import Part
from sani.text.batches import Batch

Site = tuple[int, Part]
Outputs = Mapping[Site, Sequence[Output]]


def outputs_of(layout: Layout, sites: Iterable[Site]) -> Outputs:
    """Return the output projections that the activations of each site go into."""
    return {(layer, part): layout.outputs(part, layer=layer) for layer, part in sites}


def all_of(outputs: Outputs) -> list[Output]:
    """Return the output projections of all sites, in order."""
    return [output for of_site in outputs.values() for output in of_site]


def neurons_of(outputs: Outputs) -> dict[Site, int]:
    """Return the number of neurons or heads of each site."""
    return {site: sum(output.neurons for output in part) for site, part in outputs.items()}


@contextmanager
def changed(
    model: Any, outputs: Iterable[Output], change: Callable[[Output, Tensor], Tensor]
) -> Iterator[None]:
    """Within, each output projection takes in what ``change`` gives for its neurons' activations.

    Args:
        model: The model.
        outputs: The projections to hook.
        change: Maps an output and its activations, [..., channels], to others of this shape.
    """
    undo: list[Callable[[], Any]] = []
    try:
        for output in outputs:
            module, hook = model.get_submodule(output.name), partial(change, output)
            if output.experts:
                # On the instance, so that the class's own forward is back once this is deleted.
                module.forward = partial(families.run_experts, module, change=hook)
                undo.append(partial(delattr, module, "forward"))
            else:
                handle = module.register_forward_pre_hook(
                    lambda _, inputs, hook=hook: (hook(inputs[0]), *inputs[1:])
                )
                undo.append(handle.remove)
        yield
    finally:
        for step in undo:
            step()


@contextmanager
def recorded(model: Any, outputs: Iterable[Output]) -> Iterator[dict[Output, Tensor]]:
    """Within, keep the activations of the latest forward pass, [..., channels] by output."""
    seen: dict[Output, Tensor] = {}

    def record(output: Output, activation: Tensor) -> Tensor:
        seen[output] = activation
        return activation

    with changed(model, outputs, record):
        yield seen


def by_position(activation: Tensor, ids: Tensor) -> Tensor:
    """Reshape activations for ids [batch, seq] to [batch, seq, channels].

    Experts join the two; a Longformer pads behind, to a multiple of its window.
    """
    by_row = activation.reshape(len(ids), -1, activation.shape[-1])
    return by_row[:, : ids.shape[1]]


def states(model: Any, batch: Batch) -> Tensor:
    """Compute the model's last hidden states of a batch, [batch, seq, hidden]."""
    batch = batch.to(model.device)
    return families.hidden_states(
        model, input_ids=batch.ids, source_ids=batch.source, source_seen=batch.source_seen
    )
