"""Rows and columns of a LoRA adapter's matrices that make up the update of neurons.

The update of a projection is B A. Row j of it is row j of B times A, and column j is B times
column j of A, so setting these to zero takes back a neuron's update and nothing else. All of B
times 1 - s is the update moved the share s of the way to none at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sani.erasing.plan import ErasePlan
from sani.errors import CheckpointError, SelectionError
from sani.models.adapters import MATRICES, OUT_OF, PLAIN_BEGINNINGS, not_plain_lora
from sani.models.folder_files import ADAPTER_CONFIG, read_json
from sani.models.neurons import Layout, Slice


def check_expressible(plan: ErasePlan) -> None:
    """Refuse a plan whose result is no adapter.

    Raises:
        SelectionError: If it resets neurons to something else than the base, or token rows.
    """
    if plan.entries and plan.reset != "rewind":
        raise SelectionError(
            f"reset '{plan.reset}' cannot be done inside an adapter, which can only leave a neuron "
            "as the base has it (reset rewind); merge it for the others (--merge)"
        )
    if plan.token_rows is not None:
        raise SelectionError(
            "token rows cannot be reset inside an adapter, which leaves them as the base has them; "
            "merge it (--merge)"
        )


@dataclass(frozen=True)
class MatrixChange:
    """Change of one matrix: a share of it is taken away, and then all of some slices."""

    share: float
    slices: tuple[Slice, ...]

    def apply(self, tensor: Tensor) -> int:
        """Change the matrix in place; return how many numbers were set."""
        if self.share:
            tensor.mul_(1 - self.share)
        for piece in self.slices:
            tensor.index_fill_(piece.dim, piece.index.to(tensor.device), 0.0)
        size = tensor.numel()
        if self.share:
            return size
        return sum(size // tensor.shape[piece.dim] * len(piece.index) for piece in self.slices)


def matrix_changes(
    path: Path,
    weights: Mapping[str, Tensor],
    plan: ErasePlan,
    planned: Mapping[str, Sequence[Slice]],
    *,
    base: Mapping[str, tuple[int, ...]],
    layout: Layout,
) -> dict[str, MatrixChange]:
    """Return the changes of an adapter's matrices that carry out a plan, by their names.

    Args:
        path: Folder of the adapter.
        weights: Its matrices, by their names in the file.
        plan: The plan.
        planned: The slices of the base's tensors that it resets, by tensor.
        base: Shapes of the base's tensors.
        layout: Of the base.

    Raises:
        CheckpointError: If the adapter is not a plain LoRA where it is changed, or does not fit.
        SelectionError: If the plan cannot be carried out in an adapter, or would change nothing.
    """
    check_expressible(plan)
    config = read_json(path, ADAPTER_CONFIG)
    plain = config.get("init_lora_weights") in PLAIN_BEGINNINGS
    if config.get("peft_type") != "LORA" or config.get("layer_replication") or not plain:
        raise CheckpointError(_not_plain(path, "its configuration"))
    slices = _slices(path, weights, planned, base=base, layout=layout)
    touched = {name.rpartition(".lora_")[0] for name in slices}
    scaled: list[str] = []
    if plan.interpolate_to_base:
        problem = not_plain_lora(config, list(weights))
        if problem is not None:
            raise CheckpointError(_not_plain(path, f"what it holds ({problem})"))
        scaled = [name for name in weights if name.endswith(OUT_OF)]
        touched = {name.removesuffix(OUT_OF) for name in scaled}
    if not any(all(weights[f"{module}{end}"].any() for end in MATRICES) for module in touched):
        raise SelectionError(
            f"the adapter in {path} updates none of the chosen neurons; choose other layers or "
            "parts, or is it one that was never trained?"
        )
    return {
        name: MatrixChange(
            plan.interpolate_to_base if name in scaled else 0.0, tuple(slices.get(name, ()))
        )
        for name in dict.fromkeys([*scaled, *slices])
    }


def _slices(
    path: Path,
    weights: Mapping[str, Tensor],
    planned: Mapping[str, Sequence[Slice]],
    *,
    base: Mapping[str, tuple[int, ...]],
    layout: Layout,
) -> dict[str, list[Slice]]:
    """Return the parts of the matrices that make up the update of planned slices."""
    transposed = layout.family.transposed  # peft goes by the base too, whatever its file says
    result: dict[str, list[Slice]] = {}
    for name, slices in planned.items():
        module = f"base_model.model.{name.rpartition('.')[0]}"
        into, out_of = (f"{module}{end}" for end in MATRICES)
        there = {stored for stored in weights if stored.startswith(f"{module}.")}
        stacked = any(piece.expert is not None for piece in slices)
        if there and (stacked or there != {into, out_of}):
            raise CheckpointError(_not_plain(path, f"'{module}'"))
        if not there or name.endswith(".bias"):  # no update there
            continue
        shape = (weights[out_of].shape[0], weights[into].shape[1])
        if base[name] != (shape[::-1] if transposed else shape):
            raise CheckpointError(
                f"model folder {path}: the adapter's '{out_of}' does not fit the base's '{name}'; "
                "give the base that it was trained on"
            )
        for piece in slices:
            if (piece.dim == 0) != transposed:
                result.setdefault(out_of, []).append(Slice(out_of, 0, piece.index))
            else:
                result.setdefault(into, []).append(Slice(into, 1, piece.index))
    return result


def _not_plain(path: Path, where: str) -> str:
    return (
        f"model folder {path}: {where} is not of a plain LoRA adapter, so its neurons have no "
        "update of their own; merge it (--merge)"
    )
