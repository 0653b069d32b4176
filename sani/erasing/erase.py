"""Erase: carry out a plan. Of this stage only `apply_plan` changes a loaded model's weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sani.corpus.documents import Corpus
from sani.erasing.adapter_matrices import matrix_changes
from sani.erasing.hooks import all_of, outputs_of
from sani.erasing.plan import ErasePlan, check_plan, layout_of, plan_erase, sizes_of
from sani.erasing.reinit import FreshWeights
from sani.erasing.resets import Dampening, check_biases, dampening, folded_biases
from sani.erasing.selector_batches import Texts
from sani.errors import SelectionError
from sani.models.adapter_change import change_adapter
from sani.models.adapters import Lora
from sani.models.bases import architecture_difference
from sani.models.checkpoint import Checkpoint
from sani.models.neurons import Layout, Slice
from sani.models.streaming import check_in_memory
from sani.recipe import EraseSettings, complete_erase_settings
from sani.tabular import Tabular

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EraseResult(Tabular):
    """Result of an erase.

    Attributes:
        plan: The neurons that were reset, with the rule that chose them.
        changed_tensors: Names of the tensors that were touched.
        changed_parameters: Numbers in them that were set, or changed by dampening or by moving
            to the base's; where both was done to a tensor, the greater count.
        fraction: Those over all parameters of the model.
        seconds: Wall time.
    """

    plan: ErasePlan
    changed_tensors: tuple[str, ...]
    changed_parameters: int
    fraction: float
    seconds: float

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each layer and part: the number of its neurons that were reset."""
        import pandas as pd

        rows = [(each.layer, each.part, len(each.neurons)) for each in self.plan.entries]
        return pd.DataFrame(rows, columns=["layer", "part", "neurons"])

    @classmethod
    def from_counts(
        cls, plan: ErasePlan, changed: Mapping[str, int], parameters: int, started: float
    ) -> EraseResult:
        """Return the result of an erase that has just ended.

        Args:
            plan: The plan.
            changed: Numbers set in each tensor, by name.
            parameters: Parameters of the model.
            started: Time of `time.perf_counter` when it began.
        """
        numbers = sum(changed.values())
        return cls(
            plan=plan,
            changed_tensors=tuple(sorted(name for name, count in changed.items() if count)),
            changed_parameters=numbers,
            fraction=numbers / parameters,
            seconds=time.perf_counter() - started,
        )


def erase(
    checkpoint: Checkpoint,
    corpus: Corpus | None = None,
    settings: EraseSettings | None = None,
    *,
    base: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
) -> EraseResult:
    """In place: choose neurons and reset them.

    Args:
        checkpoint: The model to change; its folder is not touched.
        corpus: Documents with spans, for selectors and resets that look at the model's work.
        settings: Layers, parts, selector and reset; the last three layers whole if None.
        base: The model it was fine-tuned from, for ``rewind`` and the selector ``drift``.
        framing: Name of the tokens before each document.
        seed: Seed of every random draw: selectors and fresh weights.

    Raises:
        SelectionError: If nothing can be chosen, or the base is missing or does not fit.

    Source: SANI, Boutet & Magnana 2025 (2510.21322): a random half of the last layer. Deviations:
    the paper does not say which matrices nor what value; ours are in `sani.models.neurons` and
    `EraseSettings.reset`.
    """
    check_in_memory(checkpoint.model, "an erase outside the files")
    settings = settings or complete_erase_settings()
    plan = plan_neurons(checkpoint, settings, corpus=corpus, base=base, framing=framing, seed=seed)
    return apply_plan(checkpoint, plan, base=base, corpus=corpus, framing=framing)


def plan_neurons(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    corpus: Corpus | None = None,
    base: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons and change nothing; arguments and errors as of `erase`."""
    if settings.reset == "mean":  # before a selector takes its hour
        layout = layout_of(checkpoint)
        outputs = all_of(outputs_of(layout, sizes_of(settings, layout)))
        check_biases(outputs, dict(checkpoint.model.named_parameters()))
    texts = _texts(checkpoint, corpus, framing, seed)
    return plan_erase(checkpoint, settings, texts=texts, base=base, seed=seed)


def apply_plan(
    checkpoint: Checkpoint,
    plan: ErasePlan,
    *,
    base: Checkpoint | None = None,
    corpus: Corpus | None = None,
    framing: str = "auto",
) -> EraseResult:
    """In place: reset the neurons of a plan; every other weight keeps its bits.

    Args:
        checkpoint: The model to change; one with an adapter of its own is changed in that alone.
        plan: Made for this model.
        base: The model it was fine-tuned from, for ``rewind`` and ``interpolate_to_base``.
        corpus: Documents with spans, for ``mean`` and ``dampen``.
        framing: Name of the tokens before each document.

    Raises:
        SelectionError: If the plan is of another architecture, the base is missing, does not fit or
            has the same weights, the corpus is missing, or the model has no bias to put a mean
            into; nothing is changed then.
        CheckpointError: If it has an adapter of its own in which the plan cannot be carried out.
    """
    started = time.perf_counter()
    layout = layout_of(checkpoint)
    check_plan(plan, layout)
    if checkpoint.lora is not None:
        return _apply_to_adapter(checkpoint, checkpoint.lora, plan, layout, started)
    weights = dict(checkpoint.model.named_parameters())
    texts = _texts(checkpoint, corpus, framing, plan.seed)
    pieces = planned_slices(plan, layout)
    source = _source(checkpoint, plan, base)
    base_weights = (
        _weights_of_base(checkpoint, base, "interpolate_to_base")
        if plan.interpolate_to_base
        else {}
    )
    if base_weights and base is not None and checkpoint.has_weights_of(base):
        raise SelectionError(
            "interpolate_to_base would change nothing: the base has the checkpoint's own weights; "
            "give the public model that it was fine-tuned from"
        )
    if plan.reset == "rewind" and source is not None and base is not None:
        check_rewind(weights, source, pieces, rounded=checkpoint.rounding_of_both(base))
    biases = folded_biases(checkpoint, plan, texts=texts) if plan.reset == "mean" else {}
    dampen = dampening(checkpoint, plan, texts=texts) if plan.reset == "dampen" else None
    changed = {name: bias.numel() for name, bias in biases.items()}
    with torch.no_grad():
        for name, bias in biases.items():
            weights[name].copy_(bias)
        for name, weight in weights.items() if base_weights else ():
            moved = weight.lerp(base_weights[name].to(weight), plan.interpolate_to_base)
            moved = checkpoint.rounded(name, moved)  # as saved, so that it is counted as saved
            changed[name] = int((moved != weight).sum())
            weight.copy_(moved)
        for name, slices in pieces.items():  # after the way to the base: a reset is final
            reset = reset_slices(weights[name], slices, source, dampen=dampen)
            changed[name] = max(changed.get(name, 0), reset)
    checkpoint.round_weights()
    return EraseResult.from_counts(
        plan, changed, sum(tensor.numel() for tensor in weights.values()), started
    )


def _apply_to_adapter(
    checkpoint: Checkpoint, lora: Lora, plan: ErasePlan, layout: Layout, started: float
) -> EraseResult:
    """Carry out a plan in the adapter that a checkpoint is merged from; errors as there."""
    weights = {name: tensor.clone() for name, tensor in lora.weights.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.named_parameters()}
    changes = matrix_changes(
        lora.folder.path, weights, plan, planned_slices(plan, layout), base=shapes, layout=layout
    )
    changed = {name: change.apply(weights[name]) for name, change in changes.items()}
    change_adapter(checkpoint, weights)
    size = sum(tensor.numel() for tensor in weights.values())
    return EraseResult.from_counts(plan, changed, size, started)


def planned_slices(plan: ErasePlan, layout: Layout) -> dict[str, list[Slice]]:
    """Return the slices that a plan resets, by tensor."""
    planned: dict[str, list[Slice]] = {}
    for entry in plan.entries:
        for piece in layout.slices(entry.part, layer=entry.layer, neurons=entry.neurons):
            planned.setdefault(piece.name, []).append(piece)
    if plan.token_rows is not None and plan.token_rows.tokens:
        rows = torch.tensor(plan.token_rows.tokens)
        planned |= {name: [Slice(name, 0, rows)] for name in plan.token_rows.tensors}
    return planned


def check_rewind(
    weights: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    pieces: Mapping[str, Sequence[Slice]],
    *,
    rounded: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Refuse to rewind to a base that has the very weights that are to be rewound.

    Args:
        weights: Tensors of the checkpoint, by name, in memory or in files.
        source: Tensors of the base.
        pieces: Slices to rewind, by tensor.
        rounded: Rounds a tensor, by its name, to the types of the files.

    Raises:
        SelectionError: If nothing would change.
    """
    for name, slices in pieces.items():
        weight, base_weight = weights[name], source[name]
        for piece in slices:
            index = piece.index.to(weight.device)
            old, new = (piece.of(t).index_select(piece.dim, index) for t in (weight, base_weight))
            old, new = rounded(name, old), rounded(name, new)
            # Of two types, equal in either: the coarser one may be that of either side.
            if not (torch.equal(old, new.to(old)) or torch.equal(old.to(new), new)):
                return
    raise SelectionError(
        "reset 'rewind' would change nothing: the base has the same weights at the chosen neurons; "
        "give the public model that the checkpoint was fine-tuned from, or choose other neurons"
    )


def reset_slices(
    tensor: Tensor,
    pieces: Sequence[Slice],
    source: Mapping[str, Tensor] | None,
    *,
    dampen: Dampening | None = None,
) -> int:
    """In place: reset slices of one tensor, in memory or read from a file.

    Args:
        tensor: The tensor that the slices name.
        pieces: Slices to reset; they do not overlap.
        source: Weights to take the values from; None for zero.
        dampen: Gives the values instead, from a slice and its own values.

    Returns:
        The number of numbers set, or changed by dampening.

    Raises:
        SelectionError: If the tensor's type cannot hold what it would get.
    """
    # Read once for all slices: from a file, or drawn anew, a tensor is costly.
    values = None if source is None else source[pieces[0].name]
    count = 0
    for piece in pieces:
        matrix, index = piece.of(tensor), piece.index.to(tensor.device)
        if dampen is not None:
            old = matrix.index_select(piece.dim, index)
            new = dampen(piece, old)
            matrix.index_copy_(piece.dim, index, new)
            count += int((new != old).sum())
            continue
        if values is None:
            matrix.index_fill_(piece.dim, index, 0.0)
        elif len(index) == matrix.shape[piece.dim]:  # all of it, in order: no copy is made
            _check_finite(matrix.copy_(piece.of(values)), piece.name)
        else:
            new = piece.of(values).index_select(piece.dim, piece.index.to(values.device)).to(matrix)
            _check_finite(new, piece.name)
            matrix.index_copy_(piece.dim, index, new)
        count += matrix.numel() // matrix.shape[piece.dim] * len(index)
    return count


def _check_finite(tensor: Tensor, name: str) -> None:
    # Least and greatest number, which a NaN is both of; unlike isfinite this takes no memory.
    if not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise SelectionError(
            f"tensor '{name}' is of type {tensor.dtype}, and the numbers that it would get are too "
            "large for it; give the checkpoint in float32"
        )


def _source(
    checkpoint: Checkpoint, plan: ErasePlan, base: Checkpoint | None
) -> Mapping[str, Tensor] | None:
    """Return the weights that reset neurons take their values from; None if from no other model."""
    if plan.reset in ("zero", "mean", "dampen"):
        return None
    if plan.reset == "reinit":
        return FreshWeights(checkpoint.model.config, seed=plan.seed)
    return _weights_of_base(checkpoint, base, "reset 'rewind'")


def _weights_of_base(
    checkpoint: Checkpoint, base: Checkpoint | None, user: str
) -> dict[str, Tensor]:
    """Return the base's weights for a ``user`` that needs them, if they fit."""
    if base is None:
        other = ", or use reinit" if user != "interpolate_to_base" else ""
        raise SelectionError(f"{user} needs the base model; give it{other}")
    difference = architecture_difference(checkpoint, base)
    if difference:
        raise SelectionError(f"{user}: the base does not fit the checkpoint: {difference}")
    # By every name: a head that is tied in the base may be one of its own in the checkpoint.
    return dict(base.model.named_parameters(remove_duplicate=False))


def _texts(checkpoint: Checkpoint, corpus: Corpus | None, framing: str, seed: int) -> Texts | None:
    if corpus is None:
        return None
    return Texts(checkpoint, corpus, framing=framing, seed=seed)
