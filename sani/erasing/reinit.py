"""Fresh weights for ``reinit``, tensor by tensor, without building a model.

The model is a skeleton without weights. One tensor of it at a time is given memory and drawn by
the architecture's own initialization, from a generator seeded by the seed and the tensor's name.
So a tensor's fresh values do not depend on which others are drawn, nor in what order: an erase in
memory and one shard by shard put in the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sani.errors import UnsupportedModelError
from sani.models.building import new_model, skeleton


def fresh_model(config: Any, *, seed: int) -> Any:
    """Return a whole model as its architecture initializes it, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_model(config).eval()


class FreshWeights(Mapping[str, Tensor]):
    """Each parameter as its architecture initializes it, drawn when asked for, in float32."""

    def __init__(self, config: Any, *, seed: int) -> None:
        self._skeleton = skeleton(config)
        self._seed = seed
        self._names = [name for name, _ in self._skeleton.named_parameters()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        """Draw one parameter.

        Raises:
            UnsupportedModelError: If the architecture leaves it without values.
        """
        *path, leaf = name.split(".")
        owners = [self._skeleton]
        for part in path:
            owners.append(getattr(owners[-1], part))
        without_memory = owners[-1]._parameters[leaf]
        # NaN, so that what no initialization fills is noticed.
        drawn = Parameter(torch.full(without_memory.shape, torch.nan), requires_grad=False)
        owners[-1]._parameters[leaf] = drawn
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(_seed_of(self._seed, name))
            self._initialize(owners)
            if drawn.sum().isnan() and hasattr(owners[-1], "reset_parameters"):
                owners[-1].reset_parameters()  # left as its constructor makes it
                self._initialize(owners)
        owners[-1]._parameters[leaf] = without_memory
        if drawn.sum().isnan():
            raise UnsupportedModelError(
                f"tensor '{name}': its architecture does not say how it is initialized, so it "
                "cannot be reset to fresh weights; use reset zero or rewind"
            )
        return drawn.data

    def _initialize(self, owners: list[Any]) -> None:
        """Initialize as transformers does: inside out, each module by its sub-model."""
        from transformers import PreTrainedModel

        model, calls = owners[0], []
        for module in owners:
            model = module if isinstance(module, PreTrainedModel) else model
            calls.append((model, module))
        for model, module in reversed(calls):
            model._init_weights(module)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
