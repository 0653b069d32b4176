"""Erase inside a LoRA adapter: chosen neurons get no update, so they are the base's again."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from sani.atomic import new_folder
from sani.erasing.adapter_matrices import matrix_changes
from sani.erasing.erase import EraseResult, planned_slices
from sani.erasing.plan import ErasePlan, check_plan
from sani.erasing.shards import StoredModel
from sani.models.adapters import write_settings
from sani.models.folder import ModelFolder, check_written
from sani.models.stored_copies import copy_patched


def erase_adapter(
    folder: ModelFolder, out: Path, plan: ErasePlan, *, base: StoredModel
) -> EraseResult:
    """Write an adapter folder without the update of a plan's neurons; the rest keeps its bits.

    With ``interpolate_to_base`` the whole update is scaled first.

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
    path = folder.path
    check_plan(plan, base.layout)
    weights = folder.stored
    folder.check_finite()
    changes = matrix_changes(
        path, weights, plan, planned_slices(plan, base.layout),
        base=base.parameters, layout=base.layout,
    )  # fmt: skip
    changed: dict[str, int] = {}

    def patch(name: str, tensor: Tensor) -> None:
        changed[name] = changes[name].apply(tensor)

    with torch.no_grad(), new_folder(out) as staging:
        copy_patched(weights, staging, list(changes), patch)
        write_settings(path, staging)
        check_written(staging, out, base=base.folder.path)
    return EraseResult.from_counts(plan, changed, weights.num_parameters, started)
