"""Checks of a checkpoint that is only judged: it is not the unsanitized one in another guise."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file

from sani.errors import RecipeError
from sani.models.checkpoint import Checkpoint
from sani.models.configurations import numerical_difference
from sani.models.folder import ModelFolder
from sani.models.folder_files import read_json

NO_CANDIDATE = (
    "model.path: has the same weights as model.unsanitized, the checkpoint that recites; whatever "
    "stands beside them, nothing was removed. Give the sanitized checkpoint"
)


MIN_SCALE = 0.05  # of an adapter; usual ones are 0.5 to 4. Ours


def check_candidate(path: ModelFolder, unsanitized: ModelFolder) -> None:
    """Refuse to check a checkpoint that is the unsanitized one, or whose numbers count otherwise.

    Leaky weights behind another epsilon, or an adapter scaled down, recite nothing; with the old
    number put back they recite again.

    Args:
        path: Folder of the checkpoint that is only checked.
        unsanitized: Folder of the one that it was made from.

    Raises:
        RecipeError: If the weight files are the same, or a number of the configuration differs.
    """
    if path.weights_digest == unsanitized.weights_digest or _same_adapter(path, unsanitized):
        raise RecipeError(NO_CANDIDATE)
    if path.is_adapter:
        check_scale(path)
    if path.is_adapter == unsanitized.is_adapter:  # merging changes a configuration
        _check_configurations(path.config, unsanitized.config)


def check_loaded_candidate(candidate: Checkpoint, unsanitized: Checkpoint) -> None:
    """Refuse the same weights, in whatever files and types, other numbers, and another tokenizer.

    Arguments and errors as for `check_candidate`.
    """
    if candidate.has_weights_of(unsanitized):
        raise RecipeError(NO_CANDIDATE)
    if _cuts(candidate.tokenizer) != _cuts(unsanitized.tokenizer):
        raise RecipeError(
            "model.path: its tokenizer cuts text otherwise than that of model.unsanitized, with "
            "which it would be audited; give it the tokenizer that it was fine-tuned with"
        )
    _check_configurations(candidate.model.config, unsanitized.model.config)


def _cuts(tokenizer: Any) -> list[Any]:
    """Return what decides how a tokenizer cuts text."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return [parts.get(name) for name in ("normalizer", "pre_tokenizer", "model")]


def _check_configurations(candidate: Any, unsanitized: Any) -> None:
    field = numerical_difference(candidate, unsanitized)
    if field is not None:
        raise RecipeError(
            f"model.path: config.json differs from that of model.unsanitized in {field}, so the "
            "same weights would compute something else, and a low figure may come from that "
            "alone. Give the checkpoint with the configuration that it was made with"
        )


def check_scale(folder: ModelFolder) -> None:
    """Refuse an adapter whose matrices are multiplied by almost nothing when they are merged."""
    config = read_json(folder.path, "adapter_config.json")
    alpha, rank = config.get("lora_alpha", config.get("alpha")), config.get("r")
    alphas = [alpha, *(config.get("alpha_pattern") or {}).values()]
    ranks = [rank, *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(number, int | float) for number in (*alphas, *ranks)) or 0 in ranks:
        return  # of a kind without a scale
    largest = max(ranks) ** 0.5 if config.get("use_rslora") else max(ranks)
    scale = min(map(abs, alphas)) / largest
    if scale < MIN_SCALE:
        raise RecipeError(
            f"model.path: the adapter's scale is {scale:.2g} (lora_alpha over r), so what its "
            "matrices hold does not show, and whoever has the folder can put the number back; "
            f"give an adapter with a scale of {MIN_SCALE} or more"
        )


def _same_adapter(one: ModelFolder, other: ModelFolder) -> bool:
    """Return whether two adapters hold the same tensors, whatever their scale."""
    if not (one.is_adapter and other.is_adapter):
        return False
    tensors, others = (
        {name: tensor for file in side.weight_files for name, tensor in load_file(file).items()}
        for side in (one, other)
    )
    return tensors.keys() == others.keys() and all(
        torch.equal(tensor, others[name].to(tensor)) for name, tensor in tensors.items()
    )
