"""Erase in files: copy each shard, then patch the copy's chosen rows and columns.

No model is built. One tensor at a time is read from where the header says it lies, reset by the
code that resets tensors in memory, and written back; so memory is that of the largest tensor, time
that of a copy, and whatever is not chosen keeps its bits and its type. Where the model stacks its
experts' matrices the files hold each by itself, and each is reset by itself.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
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
from sani.models.neurons import Layout
from sani.models.safetensors_files import Expert, StoredWeights
from sani.models.stored_copies import copy_other_files, copy_patched
from sani.models.stored_tensors import refuse_infinite
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
    toward = _weights_on_the_way(model, plan, base)
    changed: Counter[str] = Counter()

    def patch(name: str, tensor: Tensor) -> None:
        moved = 0
        if name in toward:  # before the reset, which is final
            old = tensor.float()
            new = old.lerp(toward[name].float(), plan.interpolate_to_base).to(tensor)
            refuse_infinite(model.folder.path, name, new)
            moved = int((new != tensor).sum())
            tensor.copy_(new)
        reset = reset_slices(tensor, pieces[name], source) if name in pieces else 0
        changed[model.tensor_of(name)] += max(moved, reset)

    with torch.no_grad(), new_folder(out) as staging:
        names = [*pieces, *(name for name in toward if name not in pieces)]
        copy_patched(model.weights, staging, names, patch)
        copy_other_files(model.folder, staging)
        check_written(staging, out)
    numbers = sum(math.prod(shape) for shape in model.parameters.values())
    return EraseResult.from_counts(plan, changed, numbers, started)


def _weights_on_the_way(
    model: StoredModel, plan: ErasePlan, base: StoredModel | None
) -> Mapping[str, Tensor]:
    """Return the base's weights, where every weight first goes a part of the way to them.

    Raises:
        SelectionError: If the base is missing, does not fit, or has the checkpoint's own weights.
    """
    if not plan.interpolate_to_base:
        return {}
    if base is None:
        raise SelectionError("interpolate_to_base needs the base model; give it")
    difference = model.difference(base)
    if difference:
        raise SelectionError(
            f"interpolate_to_base: the base does not fit the checkpoint: {difference}"
        )
    if all(torch.equal(weight, base.weights[name]) for name, weight in model.weights.items()):
        raise SelectionError(
            "interpolate_to_base would change nothing: the base has the checkpoint's own weights; "
            "give the public model that it was fine-tuned from"
        )
    return base.weights


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
