"""Erase inside a LoRA adapter: chosen neurons get no update, so they are the base's again.

The update of a projection is B A. Row j of it is row j of B times A, and column j is B times
column j of A, so setting these to zero takes back a neuron's update and nothing else.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sani.atomic import new_folder
from sani.erasing.erase import EraseResult, planned_slices, reset_slices
from sani.erasing.plan import ErasePlan, check_plan
from sani.erasing.shards import StoredModel
from sani.errors import CheckpointError, SelectionError
from sani.models.folder import ModelFolder, check_written
from sani.models.folder_files import ADAPTER_CONFIG, copy_files, read_json, tokenizer_files
from sani.models.layouts import HUB_NAME
from sani.models.neurons import Slice
from sani.models.safetensors_files import StoredWeights
from sani.models.stored_copies import copy_patched

# Ways to begin training that leave the base's weights as they are.
PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva")


def erase_adapter(
    folder: ModelFolder, out: Path, plan: ErasePlan, *, base: StoredModel
) -> EraseResult:
    """Write an adapter folder without the update of a plan's neurons; the rest keeps its bits.

    Args:
        folder: One with a LoRA adapter.
        out: The new folder; written whole or not at all. A local path of the base is left out of
            its configuration.
        plan: Neurons to erase, with reset ``rewind``.
        base: The model that it is an adapter on.

    Raises:
        SelectionError: If the plan does not fit the base, resets to something else, or has token
            rows.
        CheckpointError: If the adapter is not a plain LoRA at these neurons, or does not fit.
        WriteError: If the folder cannot be written.
    """
    started = time.perf_counter()
    if plan.reset != "rewind":
        raise SelectionError(
            f"reset '{plan.reset}' cannot be done inside an adapter, which can only leave a neuron "
            "as the base has it (reset rewind); merge it for the others (--merge)"
        )
    if plan.interpolate_to_base:
        raise SelectionError(
            "interpolate_to_base cannot be done inside an adapter; merge it (--merge), or scale it "
            "by its lora_alpha"
        )
    if plan.token_rows is not None:
        raise SelectionError(
            "token rows cannot be reset inside an adapter, which leaves them as the base has them; "
            "merge it (--merge)"
        )
    path = folder.path
    check_plan(plan, base.layout)
    config = read_json(path, ADAPTER_CONFIG)
    weights = folder.stored
    folder.check_finite()
    pieces = _adapter_slices(path, config, weights, planned_slices(plan, base.layout), base)
    changed: dict[str, int] = {}

    def patch(name: str, tensor: Tensor) -> None:
        changed[name] = reset_slices(tensor, pieces[name], None)

    with torch.no_grad(), new_folder(out) as staging:
        copy_patched(weights, staging, list(pieces), patch)
        copy_files(path, staging, tokenizer_files(path))
        named = config.get("base_model_name_or_path") or ""
        if not HUB_NAME.fullmatch(named) or Path(named).exists():
            config["base_model_name_or_path"] = None
        text = json.dumps(config, indent=2, sort_keys=True)
        (staging / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        check_written(staging, out, base=base.folder.path)
    return EraseResult.from_counts(plan, changed, weights.num_parameters, started)


def _adapter_slices(
    path: Path,
    config: dict[str, Any],
    weights: StoredWeights,
    planned: dict[str, list[Slice]],
    base: StoredModel,
) -> dict[str, list[Slice]]:
    """Return the parts of the adapter's matrices that make up the update of planned slices."""
    plain = config.get("init_lora_weights") in PLAIN_BEGINNINGS
    if config.get("peft_type") != "LORA" or config.get("layer_replication") or not plain:
        raise CheckpointError(_not_plain(path, "its configuration"))
    transposed = base.layout.family.transposed  # peft goes by the base too, whatever its file says
    result: dict[str, list[Slice]] = {}
    for name, slices in planned.items():
        module = f"base_model.model.{name.rpartition('.')[0]}."
        into, out_of = f"{module}lora_A.weight", f"{module}lora_B.weight"
        there = {stored for stored in weights if stored.startswith(module)}
        stacked = any(piece.expert is not None for piece in slices)
        if there and (stacked or there != {into, out_of}):
            raise CheckpointError(_not_plain(path, f"'{module[:-1]}'"))
        if not there or name.endswith(".bias"):  # no update there
            continue
        shape = (weights.shapes[out_of][0], weights.shapes[into][1])
        if base.parameters[name] != (shape[::-1] if transposed else shape):
            raise CheckpointError(
                f"model folder {path}: the adapter's '{out_of}' does not fit the base's '{name}'; "
                "give the base that it was trained on"
            )
        for piece in slices:
            if (piece.dim == 0) != transposed:
                result.setdefault(out_of, []).append(Slice(out_of, 0, piece.index))
            else:
                result.setdefault(into, []).append(Slice(into, 1, piece.index))
    modules = {name.rpartition(".lora_")[0] for name in result}
    if not any(
        all(weights[f"{module}.lora_{half}.weight"].any() for half in "AB") for module in modules
    ):
        raise SelectionError(
            f"the adapter in {path} updates none of the chosen neurons; choose other layers or "
            "parts, or is it one that was never trained?"
        )
    return result


def _not_plain(path: Path, where: str) -> str:
    return (
        f"model folder {path}: {where} is not of a plain LoRA adapter, so its neurons have no "
        "update of their own; merge it (--merge)"
    )
