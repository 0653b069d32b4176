"""Erase in files: copy each shard, then patch the copy's chosen rows and columns.

No model is built. One tensor at a time is read from where the header says it lies, reset by the
code that resets tensors in memory, and written back; so memory is that of the largest tensor, time
that of a copy, and whatever is not chosen keeps its bits and its type. Where the model stacks its
experts' matrices the files hold each by itself, and each is reset by itself.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sani.atomic import new_folder
from sani.erasing.erase import EraseResult, check_rewind, planned_slices, reset_slices
from sani.erasing.plan import ErasePlan, architecture_digest, check_plan
from sani.erasing.reinit import FreshWeights
from sani.errors import SelectionError, UnsupportedModelError
from sani.models.folder import ModelFolder, check_written
from sani.models.folder_files import (
    WEIGHTS,
    WEIGHTS_INDEX,
    copy_files,
    copy_large,
    files_beside,
)
from sani.models.neurons import Layout, Slice
from sani.models.safetensors_files import Expert, StoredWeights, plain_name
from sani.recipe import PARTS

RESETS = ("zero", "reinit", "rewind")  # those that need no activations
OLD_BUFFER = "rotary_emb.inv_freq"  # in older files; the model makes it itself


class StoredModel:
    """A model folder that is read where it lies: configuration, names, shapes, and weights."""

    def __init__(self, folder: ModelFolder) -> None:
        """Take a folder that `open_folder` has checked."""
        self.folder = folder
        self.config: Any = folder.config

    @cached_property
    def layout(self) -> Layout:
        """Places of the neurons in the model once it is loaded."""
        return Layout(self.config, self.parameters)

    @cached_property
    def stored_layout(self) -> Layout:
        """Places of the same neurons, by the same numbers, in `weights`."""
        return Layout(self.config, self.weights.shapes) if self.experts else self.layout

    @cached_property
    def weights(self) -> StoredWeights:
        """The tensors, as far as possible by the names that they have in the model."""
        return self.folder.stored.named_as_in(self._skeleton)

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """Those of `weights` that are part of a tensor of the model, each with its place there."""
        return self.folder.stored.experts(self._skeleton)

    @property
    def _skeleton(self) -> Any:
        return self.folder.skeleton

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.folder.load_tokenizer().get_vocab()
        return vocabulary

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that the model has once it is loaded."""
        named = self._skeleton.named_parameters()
        return {name: tuple(tensor.shape) for name, tensor in named}

    @cached_property
    def is_plain(self) -> bool:
        """True if the files hold all parameters of the model, each whole or by experts.

        Transformers may convert other tensors of a family's when it loads a model.
        """
        state = self._skeleton.state_dict()
        known = {name: tuple(tensor.shape) for name, tensor in state.items()}
        stored = {
            name: shape
            for name, shape in self.weights.shapes.items()
            if name not in self.experts and not name.endswith(OLD_BUFFER)
        }
        named = self._skeleton.named_parameters(remove_duplicate=False)  # tied: by each name
        present = {id(tensor) for name, tensor in named if name in stored or name in self._stacks}
        whole = all(id(tensor) in present for tensor in self._skeleton.parameters())
        twice = stored.keys() & self._stacks.keys()
        fits = whole and not twice and (stored | self._stacks).items() <= known.items()
        return fits and self._has_same_neurons

    @property
    def _has_same_neurons(self) -> bool:
        """True if names in the files lead to as many neurons, layer by layer, as in the model.

        Not where the files name experts by another prefix than all else: then a neuron's number
        would be another's.
        """
        try:
            sides = [self.layout, self.stored_layout]
        except UnsupportedModelError:
            return False
        counts = [
            [side.num_neurons(part, layer=n) for n in range(side.num_layers) for part in PARTS]
            for side in sides
        ]
        return counts[0] == counts[1]

    @cached_property
    def _stacks(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the experts' matrices make up; no shape where they do not."""
        return self.folder.stored.stack_shapes(self._skeleton)

    def fresh(self, *, seed: int) -> Mapping[str, Tensor]:
        """Return `weights` as the architecture initializes them; see `FreshWeights`."""
        return _Unstacked(FreshWeights(self.config, seed=seed), self)

    def tensor_of(self, name: str) -> str:
        """Return the model's tensor that one of `weights` is, or is part of."""
        return self.experts[name].tensor if name in self.experts else name

    def difference(self, base: StoredModel) -> str | None:
        """Return how the base differs in parameters, heads or vocabulary, or None.

        A base may have fewer tokens and other rows for them: see `sani.models.bases.fit_base`.
        """
        if not base._vocabulary.items() <= self._vocabulary.items():
            return "their tokenizers have different vocabularies"
        shapes, others = self._shapes_without_rows, base._shapes_without_rows
        names = sorted(n for n in shapes | others if shapes.get(n) != others.get(n))
        if names:
            return f"they differ in {names[0]}"
        if architecture_digest(self.layout) != architecture_digest(base.layout):
            return "they differ in num_attention_heads"
        return None

    @cached_property
    def _shapes_without_rows(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters, tied ones by each name; of a vocabulary without its rows."""
        ends = {self._skeleton.get_input_embeddings(), self._skeleton.get_output_embeddings()}
        rows = {id(tensor) for end in ends - {None} for tensor in end.parameters()}
        named = self._skeleton.named_parameters(remove_duplicate=False)
        return {name: tuple(t.shape)[id(t) in rows :] for name, t in named}


def erase_stored(
    model: StoredModel, out: Path, plan: ErasePlan, *, base: StoredModel | None = None
) -> EraseResult:
    """Write a model folder with the neurons of a plan reset; the model's own is not touched.

    Args:
        model: The model to erase from.
        out: The new folder; written whole or not at all.
        plan: Neurons to reset, with reset ``zero``, ``reinit`` or ``rewind``.
        base: The model it was fine-tuned from, for ``rewind``.

    Raises:
        SelectionError: If the plan does not fit the model, has another reset, or the base is
            missing, does not fit or has the same weights.
        CheckpointError: If a tensor's type is none that can be reset.
        WriteError: If the folder cannot be written.
    """
    started = time.perf_counter()
    check_plan(plan, model.layout)
    model.folder.check_finite()
    planned, source = planned_slices(plan, model.stored_layout), _source(model, plan, base)
    pieces = {name: planned[name] for name in sorted(planned, key=model.tensor_of)}
    if plan.reset == "rewind" and source is not None:
        check_rewind(model.weights, source, pieces)
    with torch.no_grad(), new_folder(out) as staging:
        changed: Counter[str] = Counter()
        for name, count in copy_patched(model.weights, staging, pieces, source).items():
            changed[model.tensor_of(name)] += count
        path = model.folder.path
        copy_files(path, staging, files_beside(path, model.folder.family))
        _write_configuration(model, staging)
        check_written(staging, out)
    numbers = sum(math.prod(shape) for shape in model.parameters.values())
    return EraseResult.from_counts(plan, changed, numbers, started)


def copy_patched(
    weights: StoredWeights,
    folder: Path,
    pieces: Mapping[str, Sequence[Slice]],
    source: Mapping[str, Tensor] | None,
) -> dict[str, int]:
    """Copy all files into a folder, and reset slices in the copies.

    Files to patch come first; while one copy is patched the next is made. Of the files' own
    metadata only the format goes along.

    Args:
        weights: The tensors of the files.
        folder: Folder of the copies.
        pieces: Slices to reset, by tensor; files that hold none of these are copied as they are.
        source: Weights to take the values from; None for zero.

    Returns:
        The count of numbers set in each tensor.
    """
    changed: dict[str, int] = {}
    places = {name: weights.place(name) for name in pieces}
    touched = {place.file for place in places.values()}
    # One thread copies while this one patches, so that the disk is never idle; files to patch
    # first, since the others need no second look.
    files = sorted(weights.files, key=lambda path: path not in touched)
    copier = ThreadPoolExecutor(max_workers=1)
    try:
        copies = {p: copier.submit(copy_large, p, folder / p.name) for p in files}
        for path, copy in copies.items():
            copy.result()
            with (folder / path.name).open("r+b") as file:
                _rewrite_header(file)
                for name in (name for name in pieces if places[name].file == path):
                    tensor = places[name].read(file)
                    changed[name] = reset_slices(tensor, pieces[name], source)
                    places[name].write(file, tensor)
    finally:
        copier.shutdown(cancel_futures=True)
    return changed


class _Unstacked(Mapping[str, Tensor]):
    """A model's tensors by the names in its files, an expert's matrix cut from that of all."""

    def __init__(self, weights: Mapping[str, Tensor], model: StoredModel) -> None:
        self._weights, self._model = weights, model
        self._held: tuple[str, Tensor] | None = None  # experts of one tensor are asked for together

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.weights)

    def __len__(self) -> int:
        return len(self._model.weights)

    def __getitem__(self, name: str) -> Tensor:
        expert = self._model.experts.get(name)
        if expert is None:
            return self._weights[name]
        if self._held is None or self._held[0] != expert.tensor:
            self._held = expert.tensor, self._weights[expert.tensor]
        rows = self._model.weights.shapes[name][0]
        return self._held[1][expert.number, expert.row : expert.row + rows]


def _source(
    model: StoredModel, plan: ErasePlan, base: StoredModel | None
) -> Mapping[str, Tensor] | None:
    if plan.reset == "zero":
        return None
    if plan.reset == "reinit":
        return model.fresh(seed=plan.seed)
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
    source = model.folder.path
    if (source / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    if [file.name for file in model.weights.files] != [WEIGHTS]:
        text = json.dumps(model.weights.index(), indent=2)
        (folder / WEIGHTS_INDEX).write_text(text + "\n", encoding="utf-8")


def _rewrite_header(file: BufferedIOBase) -> None:
    """In place: of metadata only the format stays, since it may say anything.

    Names lose the modules that training wrapped around theirs. No tensor is moved.
    """
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    metadata, allowed = header.pop("__metadata__", None), {"format": "pt"}
    plain = {plain_name(name): place for name, place in header.items()}
    if metadata in (None, allowed) and plain == header:
        return
    header = plain
    if metadata is not None and metadata.get("format") == "pt":
        header = {"__metadata__": allowed, **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Padded with blanks to its old length: offsets count from behind the header.
    file.seek(8)
    file.write(text.ljust(size))
