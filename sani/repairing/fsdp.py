"""Sharding (FSDP2): weights, gradients and optimizer state spread over the processes in training.

Each layer is a unit of its own; embeddings, final norm and head are one more. All work with the
model runs `inside` its forward pass, because only there its weights are whole. Saved states are
whole too, so any number of processes, sharded or not, can resume from them.
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


def shard(model: Any, layers: Sequence[str]) -> None:
    """Give each process its part of every weight, on its device; in place.

    Args:
        model: The same on every process.
        layers: Names of its layers.
    """
    mesh = init_device_mesh(default_device().type, (distributed.world_size(),))
    for name in layers:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)


def inside(model: Any, work: Callable[[], _T]) -> _T:
    """Call ``work`` as the forward pass of a sharded model and return its result.

    Every process must take part: FSDP gathers a layer's weights from all of them.
    """
    before = vars(model).get("forward")
    model.forward = work
    try:
        result: _T = model()
    finally:
        del model.forward
        if before is not None:
            model.forward = before
    return result


def gathered_state(state: Any) -> Any:
    """Return a state with whole tensors, on the CPU of the main process; every process must call.

    On the others each tensor is None.
    """
    if isinstance(state, dict):
        return {name: gathered_state(part) for name, part in state.items()}
    if isinstance(state, list):
        return [gathered_state(part) for part in state]
    if isinstance(state, Tensor):
        tensor = gathered(state)
        return tensor.cpu() if distributed.is_main() else None
    return state


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor made whole from the parts of all processes; every process must call."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state cut as its sharded weights are; each process keeps its part.

    Args:
        state: ``state_dict`` of an optimizer of the whole model.
        optimizer: Of the sharded model.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    sharded: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        weight = weights[index]
        # Moments have their weight's shape and are cut like it; the step count is a scalar.
        # Every process read the whole state, so none is asked to send it (src_data_rank=None).
        sharded[index] = {
            name: distribute_tensor(
                value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
            )
            if isinstance(weight, DTensor) and value.shape == weight.shape
            else value
            for name, value in values.items()
        }
    return {**state, "state": sharded}
