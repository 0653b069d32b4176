"""Safetensors files read where they lie: one tensor at a time, with none kept in memory."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sani.errors import CheckpointError

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


# Modules that training wraps around others, which stand in the names of what it saves.
_WRAPPERS = re.compile(
    r"(^|\.)(?:_orig_mod|_orig_module|_forward_module|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module)(?=\.)"
)


def plain_name(name: str) -> str:
    """Return a tensor's name without the modules that training wrapped around its own."""
    return re.sub(r"^\.?(module\.)*", "", _WRAPPERS.sub("", name))


@dataclass(frozen=True)
class Place:
    """Place of a tensor: its file, its name, type and shape there, and its bytes."""

    file: Path
    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self, file: BufferedIOBase) -> Tensor:
        """Read the tensor from its opened file.

        Raises:
            CheckpointError: If its type is not one of `TYPES`, or the file ends before it.
        """
        if self.type not in TYPES:
            raise CheckpointError(
                f"{self.file}: tensor '{self.name}' is of type {self.type}, expected one of "
                f"{', '.join(TYPES)}; give the checkpoint it was quantized from"
            )
        tensor = torch.empty(self.shape, dtype=TYPES[self.type])
        file.seek(self.start)
        if file.readinto(_bytes(tensor)) != tensor.nbytes:
            raise CheckpointError(
                f"{self.file}: it ends before tensor '{self.name}'; copy it again"
            )
        return tensor

    def write(self, file: BufferedIOBase, tensor: Tensor) -> None:
        """Put a tensor of the same type and shape in its place, in a copy of its file."""
        file.seek(self.start)
        file.write(_bytes(tensor))


@dataclass(frozen=True)
class Expert:
    """Place of the matrix of one expert in a tensor [experts, out, in] of the model.

    Attributes:
        tensor: Name of that tensor.
        number: Number of the expert.
        row: Its first row there; a gate and what it gates stand one below the other.
    """

    tensor: str
    number: int
    row: int


class StoredWeights(Mapping[str, Tensor]):
    """Tensors of safetensors files, each read from disk when asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            CheckpointError: If a file is broken, or a tensor stands in two of them.
        """
        self.files = tuple(files)
        self._places: dict[str, Place] = {}
        self._known: tuple[Any, dict[str, tuple[str, Any]]] | None = None
        for file in self.files:
            for place in _header(file).values():
                name = plain_name(place.name)
                if name in self._places:
                    raise CheckpointError(f"{file}: tensor '{name}' also stands in another shard")
                self._places[name] = place

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        with place.file.open("rb") as file:
            return place.read(file)

    def place(self, name: str) -> Place:
        """Return the place of a tensor."""
        return self._places[name]

    def places(self) -> Mapping[str, Place]:
        """Return the place of every tensor, by name."""
        return self._places

    @property
    def wrapped(self) -> bool:
        """True if files name tensors by the modules that training wrapped around theirs."""
        return any(plain_name(place.name) != place.name for place in self._places.values())

    def targets(self, model: Any) -> dict[str, str]:
        """Return the tensor of a model, or its skeleton, that each of these is or is part of."""
        names = self._conversions(model).items()
        return {name: new if part is None else part[0] for name, (new, part) in names}

    def converted(self, model: Any) -> set[str]:
        """Return the tensors that are not only renamed when a model is loaded."""
        return {name for name, (_, part) in self._conversions(model).items() if part is not None}

    def _conversions(self, model: Any) -> dict[str, tuple[str, Any]]:
        """Return `_conversions` of these tensors; of the last model they are kept."""
        if self._known is None or self._known[0] is not model:
            self._known = model, _conversions(model, self)
        return self._known[1]

    def named_as_in(self, model: Any) -> StoredWeights:
        """Return the same tensors by the names that a model, or its skeleton, gives them.

        An expert's matrix that the model stacks with others has no name there and keeps its own;
        so do all if two would get the same.
        """
        names = {name: new for name, (new, _) in self._conversions(model).items()}
        if len(set(names.values())) < len(names):
            return self
        other = copy(self)
        other._known = None
        other._places = {names[name]: place for name, place in self._places.items()}
        return other

    def experts(self, model: Any) -> dict[str, Expert]:
        """Return the place of each expert's matrix that a model, or its skeleton, stacks."""
        return _experts(self._conversions(model), self.shapes)

    def stack_shapes(self, model: Any) -> dict[str, tuple[int, ...]]:
        """Return shapes of the tensors that `experts` make up; no shape where they do not."""
        parts: dict[str, list[tuple[Expert, tuple[int, ...]]]] = {}
        for name, expert in self.experts(model).items():
            parts.setdefault(expert.tensor, []).append((expert, self.place(name).shape))
        shapes: dict[str, tuple[int, ...]] = {}
        for tensor, members in parts.items():
            high, wide = members[0][1]
            experts = 1 + max(expert.number for expert, _ in members)
            rows = high + max(expert.row for expert, _ in members)
            alike = {shape for _, shape in members} == {members[0][1]}
            full = len(members) * high == experts * rows and alike
            shapes[tensor] = (experts, rows, wide) if full else ()
        return shapes

    def types(self, model: Any) -> dict[str, torch.dtype]:
        """Return the type of each parameter and buffer that lies here whole or by experts.

        Where the matrices of one tensor are of several types, that which holds all their numbers.
        A tensor that has several names (tied) is found by any of them and has it by all.
        """
        experts = self.experts(model)
        by_name: dict[str, torch.dtype] = {}
        for name, place in self.named_as_in(model)._places.items():
            target = experts[name].tensor if name in experts else name
            type_ = TYPES.get(place.type, torch.float32)
            by_name[target] = torch.promote_types(by_name.get(target, type_), type_)
        # Tied tensors are one object with several names: by its identity all of them are known.
        named = list(named_tensors(model, remove_duplicate=False))
        types = {id(tensor): by_name[name] for name, tensor in named if name in by_name}
        return {name: types[id(tensor)] for name, tensor in named if id(tensor) in types}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def num_parameters(self) -> int:
        """Return the count of numbers in all tensors."""
        return sum(math.prod(place.shape) for place in self._places.values())

    def index(self) -> dict[str, Any]:
        """Return the content of ``model.safetensors.index.json``: the file of each tensor."""
        size = sum(place.end - place.start for place in self._places.values())
        files = {plain_name(p.name): p.file.name for p in self._places.values()}
        return {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}


def named_tensors(model: Any, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's parameters and buffers, by name."""
    yield from model.named_parameters(remove_duplicate=remove_duplicate)
    yield from model.named_buffers(remove_duplicate=remove_duplicate)


def _conversions(model: Any, stored: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Return what transformers does with the tensors of a file as it loads them.

    Returns:
        By name in the file: the name in the model, and None; or, of a tensor that is not only
        renamed but converted, its own name, and (the tensor that it becomes part of, the pattern
        of its name, the rule).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    names: dict[str, tuple[str, Any]] = {}
    for name in sorted(stored, key=dot_natural_key):  # as transformers counts experts
        new, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if new not in state and name in state:  # it has its new name already
            new, pattern = name, None
        converted = None if pattern is None else (new, pattern, by_pattern[pattern])
        names[name] = (new if converted is None else name, converted)
    return names


def _experts(
    conversions: Mapping[str, tuple[str, Any]], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Expert]:
    """Return `StoredWeights.experts`, from what `_conversions` gives, and shapes."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    stacked = [[(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]]
    experts: dict[str, Expert] = {}
    numbers: Counter[tuple[str, str]] = Counter()
    for name, (_, converted) in conversions.items():
        if converted is None or len(shapes[name]) != 2:
            continue
        target, pattern, rule = converted
        if [(type(step), getattr(step, "dim", None)) for step in rule.operations] not in stacked:
            continue
        row = rule.source_patterns.index(pattern) * shapes[name][0]
        experts[name] = Expert(target, numbers[target, pattern], row)
        numbers[target, pattern] += 1
    return experts


def _header(file: Path) -> dict[str, Place]:
    """Read the place of each tensor of a file; safetensors checks the header first."""
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(size))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"model folder {file.parent}: {file.name} is cut off or damaged "
            f"({type(error).__name__}); copy or download it again"
        ) from None
    header.pop("__metadata__", None)
    return {
        name: Place(
            file,
            name,
            row["dtype"],
            tuple(row["shape"]),
            *(8 + size + offset for offset in row["data_offsets"]),
        )
        for name, row in header.items()
    }


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
