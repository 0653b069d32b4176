"""The parts that a streamed model is read in: its layers, and what stands around them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from sani.models.folder import ModelFolder


@dataclass(frozen=True)
class Part:
    """A layer, or a module that stands before, between or behind the layers.

    Attributes:
        name: Of the module.
        is_layer: False for a module that is none.
        tensors: Names of its parameters; of a module around layers, of its own alone and of those
            modules in it that `Family.read_from_outside` names.
    """

    name: str
    is_layer: bool
    tensors: tuple[str, ...]


def largest_part(folder: ModelFolder) -> int:
    """Return the bytes of the largest part of a model, in float32; no weight is read."""
    model = folder.skeleton
    weights = dict(model.named_parameters(remove_duplicate=False))
    parts = parts_of(model, folder.family.read_from_outside)
    return 4 * max(sum(int(weights[name].numel()) for name in part.tensors) for part in parts)


def parts_of(model: Any, from_outside: Collection[str]) -> Iterator[Part]:
    """Yield the parts of a model in the order of its modules.

    A layer is a module of an outermost list of modules. All else is cut into the largest modules
    without such a list, and the weights of those around lists.
    """

    def walk(name: str, module: nn.Module) -> Iterator[Part]:
        below = f"{name}." if name else ""
        if isinstance(module, nn.ModuleList):
            for number, layer in module.named_children():
                yield Part(f"{below}{number}", True, _weights(f"{below}{number}", layer))
        elif not any(isinstance(inner, nn.ModuleList) for inner in module.modules()):
            yield Part(name, False, _weights(name, module))
        else:
            own = [f"{below}{tensor}" for tensor, _ in module.named_parameters(recurse=False)]
            for child, inner in module.named_children():
                if f"{below}{child}" in from_outside:
                    own += _weights(f"{below}{child}", inner)
            yield Part(name, False, tuple(own))
            for child, inner in module.named_children():
                yield from walk(f"{below}{child}", inner)

    return (part for part in walk("", model) if part.tensors or part.is_layer)


def _weights(name: str, module: nn.Module) -> tuple[str, ...]:
    """Return the names of all parameters of a module that has a name."""
    below = f"{name}." if name else ""
    named = module.named_parameters(remove_duplicate=False)
    return tuple(f"{below}{tensor}" for tensor, _ in named)
