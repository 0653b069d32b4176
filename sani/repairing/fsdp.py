"""Sharding: weights, gradients and optimizer state spread over the ranks (FSDP2) while trained.

A unit is a layer; embeddings, final norm and head are one more. The model must be run `inside` its
own forward pass, for only there its weights are together. What is saved is whole, so that any
number of ranks, sharded or not, goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sani.machine import distributed
from sani.machine.device import default_device

_T = TypeVar("_T")


def shard_(model: Any, layers: Sequence[str]) -> None:
    """In place: give each rank its part of every weight, on its device.

    Args:
        model: The same on every rank.
        layers: Names of its layers.
    """
    mesh = init_device_mesh(default_device().type, (distributed.count(),))
    for name in layers:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)


def inside(model: Any, work: Callable[[], _T]) -> _T:
    """What ``work`` gives, done as the forward pass of a sharded model; every rank must do it."""
    before = vars(model).get("forward")
    model.forward = work
    try:
        found: _T = model()
    finally:
        del model.forward
        if before is not None:
            model.forward = before
    return found


def whole(state: Any) -> Any:
    """A state with its tensors put together, on the CPU of the main rank; every rank must do it."""
    if isinstance(state, dict):
        return {name: whole(part) for name, part in state.items()}
    if isinstance(state, list):
        return [whole(part) for part in state]
    if isinstance(state, Tensor):
        tensor = together(state)
        return tensor.cpu() if distributed.main() else None
    return state


def together(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts that the ranks hold; every rank must do it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state as its sharded weights need it; each rank keeps its part.

    Args:
        state: As ``state_dict`` of an optimizer of the whole model gives it.
        optimizer: Of the sharded model.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    spread: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        weight = weights[index]
        spread[index] = {
            name: distribute_tensor(
                value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
            )
            if isinstance(weight, DTensor) and value.shape == weight.shape
            else value
            for name, value in values.items()
        }
    return {**state, "state": spread}
