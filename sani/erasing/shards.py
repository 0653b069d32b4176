"""Erase in files: copy each shard, then patch the copy's chosen rows and columns.

No model is built. One tensor at a time is read from where the header says it lies, reset by the
code that resets tensors in memory, and written back; so memory is that of the largest tensor, time
that of a copy, and whatever is not chosen keeps its bits and its type.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sani.checkpoint import (
    copy_files,
    copy_large,
    files_beside,
    read_config,
    staged,
    weight_files,
)
from sani.erasing.erase import EraseResult, check_rewind, planned_slices, reset_slices
from sani.erasing.fresh import FreshWeights, names_in_model, skeleton
from sani.erasing.plan import ErasePlan, architecture_digest, check_plan
from sani.errors import CheckpointError, SelectionError
from sani.layout import Layout, Slice

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
RESETS = ("zero", "reinit", "rewind")  # those that need no activations
OLD_BUFFER = "rotary_emb.inv_freq"  # in older files; the model makes it itself


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: its file, its name, type and shape there, and its bytes."""

    file: Path
    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    end: int


class StoredWeights(Mapping[str, Tensor]):
    """Tensors of safetensors files, each read from disk when asked for and held by nobody."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            CheckpointError: If a file is broken, or a tensor stands in two of them.
        """
        self.files = tuple(files)
        self._places: dict[str, _Place] = {}
        for file in self.files:
            for name, place in _header(file).items():
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
            return _read(file, place)

    def renamed(self, names: Mapping[str, str]) -> StoredWeights:
        """The same tensors by other names; in the files they keep theirs."""
        other = copy(self)
        other._places = {names[name]: place for name, place in self._places.items()}
        return other

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(place.shape) for place in self._places.values())

    def index(self) -> dict[str, Any]:
        """What ``model.safetensors.index.json`` says: which file holds which tensor."""
        size = sum(place.end - place.start for place in self._places.values())
        files = {place.name: place.file.name for place in self._places.values()}
        return {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}

    def copy_patched(
        self,
        folder: Path,
        pieces: Mapping[str, Sequence[Slice]],
        source: Mapping[str, Tensor] | None,
    ) -> dict[str, int]:
        """Copy all files into a folder, and reset slices in the copies.

        Files to patch come first; while one copy is patched the next is made. Of the files' own
        metadata only the format goes along.

        Args:
            folder: Where the copies go.
            pieces: What to reset, by tensor; files that hold none of these are copied as they are.
            source: Weights to take the values from; None for zero.

        Returns:
            How many numbers were set in each tensor.
        """
        changed: dict[str, int] = {}
        touched = {self._places[name].file for name in pieces}
        files = sorted(self.files, key=lambda path: path not in touched)
        copier = ThreadPoolExecutor(max_workers=1)
        try:
            copies = {p: copier.submit(copy_large, p, folder / p.name) for p in files}
            for path, copy in copies.items():
                copy.result()
                with (folder / path.name).open("r+b") as file:
                    _drop_metadata(file)
                    for name in (n for n in pieces if self._places[n].file == path):
                        place = self._places[name]
                        tensor = _read(file, place)
                        changed[name] = reset_slices(tensor, pieces[name], source)
                        file.seek(place.start)
                        file.write(_bytes(tensor))
        finally:
            copier.shutdown(cancel_futures=True)
        return changed


class StoredModel:
    """A model folder that is read where it lies: configuration, names, shapes, and weights."""

    def __init__(self, path: Path) -> None:
        """Read configuration and headers of a folder that `check_folder` passed.

        Raises:
            UnsupportedModelError: If the family is unknown.
            CheckpointError: If it cannot be read.
        """
        self.path = path
        self._stored = StoredWeights(weight_files(path))
        self.config: Any = read_config(path)

    @cached_property
    def layout(self) -> Layout:
        """Where the neurons stand in the model once it is loaded."""
        return Layout(self.config, self.parameters)

    @cached_property
    def weights(self) -> StoredWeights:
        """The tensors, as far as possible by the names that they have in the model."""
        return self._stored.renamed(names_in_model(self._skeleton, self._stored))

    @cached_property
    def _skeleton(self) -> Any:
        return skeleton(self.config)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that the model has once it is loaded."""
        named = self._skeleton.named_parameters()
        return {name: tuple(tensor.shape) for name, tensor in named}

    @cached_property
    def is_plain(self) -> bool:
        """Whether the files hold the model's parameters, all of them, each whole.

        Transformers stacks or converts some families' tensors when it loads a model (experts).
        """
        state = self._skeleton.state_dict()
        known = {name: tuple(tensor.shape) for name, tensor in state.items()}
        shapes = self.weights.shapes
        stored = {name: shapes[name] for name in shapes if not name.endswith(OLD_BUFFER)}
        named = self._skeleton.named_parameters(remove_duplicate=False)  # tied: by each name
        found = {id(tensor) for name, tensor in named if name in stored}
        whole = all(id(tensor) in found for tensor in self._skeleton.parameters())
        return whole and stored.items() <= known.items()

    def difference(self, base: StoredModel) -> str | None:
        """None if the base has the same parameters, heads and vocabulary; else what differs."""
        shapes, others = self.parameters, base.parameters
        names = sorted(n for n in shapes | others if shapes.get(n) != others.get(n))
        if names:
            return f"they differ in {names[0]}"
        if architecture_digest(self.layout) != architecture_digest(base.layout):
            return "they differ in num_attention_heads"
        if _vocabulary(self.path) != _vocabulary(base.path):
            return "their tokenizers have different vocabularies"
        return None


def erase_stored(
    model: StoredModel, out: Path, plan: ErasePlan, *, base: StoredModel | None = None
) -> EraseResult:
    """Write a model folder with the neurons of a plan reset; the model's own is not touched.

    Args:
        model: What to erase from.
        out: The new folder; written whole or not at all.
        plan: Which neurons, with reset ``zero``, ``reinit`` or ``rewind``.
        base: The model it was fine-tuned from, for ``rewind``.

    Raises:
        SelectionError: If the plan does not fit the model, has another reset, or the base is
            missing, does not fit or has the same weights.
        CheckpointError: If a tensor's type is none that can be reset, or the place cannot be
            written.
    """
    started = time.perf_counter()
    check_plan(plan, model.layout)
    pieces, source = planned_slices(plan, model.layout), _source(model, plan, base)
    if plan.reset == "rewind" and source is not None:
        check_rewind(model.weights, source, pieces)
    with torch.no_grad(), staged(out) as staging:
        changed = model.weights.copy_patched(staging, pieces, source)
        copy_files(model.path, staging, files_beside(model.config))
        _write_configuration(model, staging)
    numbers = sum(math.prod(shape) for shape in model.parameters.values())
    return EraseResult.of(plan, changed, numbers, started)


def _source(
    model: StoredModel, plan: ErasePlan, base: StoredModel | None
) -> Mapping[str, Tensor] | None:
    if plan.reset == "zero":
        return None
    if plan.reset == "reinit":
        return FreshWeights(model.config, seed=plan.seed)
    if plan.reset != "rewind":
        raise SelectionError(f"reset '{plan.reset}' cannot be done in files, only {RESETS}")
    if base is None:
        raise SelectionError("reset 'rewind' needs the base model; give it, or use reinit")
    difference = model.difference(base)
    if difference:
        raise SelectionError(f"reset 'rewind': the base does not fit the checkpoint: {difference}")
    return base.weights


def _write_configuration(model: StoredModel, folder: Path) -> None:
    from transformers import GenerationConfig

    model.config.save_pretrained(folder)
    if (model.path / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(model.path, local_files_only=True).save_pretrained(folder)
    if len(model.weights.files) > 1:
        text = json.dumps(model.weights.index(), indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _header(file: Path) -> dict[str, _Place]:
    """Where each tensor of a file lies; safetensors has checked it before it is believed."""
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(size))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}); copy the whole checkpoint"
        ) from None
    header.pop("__metadata__", None)
    return {
        name: _Place(
            file,
            name,
            row["dtype"],
            tuple(row["shape"]),
            *(8 + size + offset for offset in row["data_offsets"]),
        )
        for name, row in header.items()
    }


def _drop_metadata(file: BufferedIOBase) -> None:
    """In place: metadata may say anything, so its format alone stays; no tensor is moved."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    found, kept = header.pop("__metadata__", None), {"format": "pt"}
    if found is None or found == kept:
        return
    if found.get("format") == "pt":
        header = {"__metadata__": kept, **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.seek(8)
    file.write(text.ljust(size))


def _read(file: BufferedIOBase, place: _Place) -> Tensor:
    if place.type not in TYPES:
        raise CheckpointError(
            f"{place.file}: tensor '{place.name}' is of type {place.type}, expected one of "
            f"{', '.join(TYPES)}; give the checkpoint it was quantized from"
        )
    tensor = torch.empty(place.shape, dtype=TYPES[place.type])
    file.seek(place.start)
    if file.readinto(_bytes(tensor)) != tensor.nbytes:
        raise CheckpointError(f"{place.file}: it ends before tensor '{place.name}'; copy it again")
    return tensor


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _vocabulary(path: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary
