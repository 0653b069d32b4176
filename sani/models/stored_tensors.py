"""Check the tensors of a folder's files against its configuration; no weight is kept in memory.

Loading would find most of this too, but later, and an erase in the files loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sani.errors import CheckpointError
from sani.models.safetensors_files import TYPES, StoredWeights

# Parts of a pretrained masked model that no prediction of a token passes through.
UNUSED_PARTS = re.compile(
    r"(.+\.)?((pooler(\.dense)?|seq_relationship)\.(weight|bias)|position_ids)"
)
# First parts of the names of heads that predict no token.
_HEADS = {
    "v_head": "value head", "score": "score head", "classifier": "classifier",
    "classification_head": "classifier", "qa_outputs": "head for questions",
    "value_head": "value head", "reward_head": "reward head", "regression_head": "score head",
}  # fmt: skip


def check_tensors(path: Path, model: Any, weights: StoredWeights, *, masked: bool) -> None:
    """Refuse files whose tensors are not those of the model.

    Args:
        path: The folder.
        model: The skeleton of its configuration.
        weights: Its files.
        masked: The model predicts masked tokens.

    Raises:
        CheckpointError: If tensors are empty, codes of a quantizer, missing, unexpected or of
            another shape, or a tied head has weights of its own.
    """
    shapes = weights.shapes
    empty = sum(shape == (0,) for shape in shapes.values())
    if empty:
        raise CheckpointError(
            f"model folder {path}: {empty} of {len(shapes)} tensors are empty (shape [0]), as "
            "DeepSpeed ZeRO-3 leaves them where a save did not gather them; run zero_to_fp32.py "
            "in the folder with global_step*, or save again with "
            "stage3_gather_16bit_weights_on_model_save: true"
        )
    targets = weights.targets(model)
    known = model.state_dict()
    _check_types(path, weights, {name for name, target in targets.items() if target in known})
    info = _missing_and_unexpected(model, targets)
    unexpected = {
        name for name in info.unexpected_keys
        if not (masked and UNUSED_PARTS.fullmatch(name))
    }  # fmt: skip
    _refuse_other_model(path, unexpected)
    stacks, converted = weights.stack_shapes(model), weights.converted(model)
    given = {targets[name]: shape for name, shape in shapes.items() if name not in converted}
    given |= stacks
    wrong = [n for n, shape in given.items() if n in known and tuple(known[n].shape) != shape]
    if info.missing_keys or wrong:
        first = min([*info.missing_keys, *wrong])
        raise CheckpointError(
            f"model folder {path}: {len(info.missing_keys)} tensors are missing and {len(wrong)} "
            f"have another shape than config.json says (the first is '{first}'); are config.json "
            "and the weights of one model, and whole?"
        )
    if unexpected:
        raise CheckpointError(
            f"model folder {path}: {len(unexpected)} tensors have no place in the model that "
            "config.json describes, so an audit would not be of the whole checkpoint; check "
            "num_hidden_layers and the like"
        )
    _check_ties(path, model, weights.named_as_in(model))


def check_finite(path: Path, weights: StoredWeights) -> None:
    """Refuse weights that hold NaN or infinity: no figure of such a model means anything.

    Reads every tensor, one at a time.

    Raises:
        CheckpointError: With the tensor's name.
    """
    for name, place in weights.places().items():
        if place.type in TYPES:
            refuse_infinite(path, name, weights[name])


def refuse_infinite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Refuse one tensor that holds NaN or infinity.

    Raises:
        CheckpointError: With its name.
    """
    # Least and greatest number, which a NaN is both of; unlike isfinite this takes no memory.
    if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise CheckpointError(f"model folder {path}: tensor '{name}' holds NaN or infinity")


def _check_types(path: Path, weights: StoredWeights, parameters: Iterable[str]) -> None:
    """Refuse tensors of the model that are of a type for codes of numbers."""
    types = {weights.place(name).type for name in parameters} - TYPES.keys()
    types |= {p.type for p in weights.places().values() if p.type.startswith("F")} - TYPES.keys()
    types -= {"I64", "BOOL"}  # of buffers
    if types:
        raise CheckpointError(
            f"model folder {path} is quantized: it holds tensors of type "
            f"{', '.join(sorted(types))}; neurons of quantized weights cannot be reset: give the "
            "checkpoint it was quantized from"
        )


def _missing_and_unexpected(model: Any, targets: Mapping[str, str]) -> SimpleNamespace:
    """Return what transformers would miss, and what it would find no place for."""
    state, given = model.state_dict(keep_vars=True), set(targets.values())
    # A tied tensor is there by any of its names.
    present = {id(state[name]) for name in given if name in state}
    missing = {name for name, tensor in state.items() if id(tensor) not in present}
    info = SimpleNamespace(missing_keys=missing, unexpected_keys=given - state.keys())
    model._adjust_missing_and_unexpected_keys(info)
    return info


def _refuse_other_model(path: Path, unexpected: set[str]) -> None:
    """Refuse tensors of a head that predicts no token, and of an adapter that was not merged."""
    if any(re.search(r"\.(base_layer|lora_[AB]|lora_embedding_[AB])\b", n) for n in unexpected):
        raise CheckpointError(
            f"model folder {path} holds an adapter that was saved with its base and not merged; "
            "merge it where it was trained (peft: merge_and_unload) and save that, or save the "
            "adapter alone"
        )
    for name in sorted(unexpected):
        head = _HEADS.get(name.partition(".")[0])
        if head is not None:
            raise CheckpointError(
                f"model folder {path} holds a {head} ({name.partition('.')[0]}), and sani reads "
                "models that predict tokens; give the language model without it (of trl's models "
                "with a value head: pretrained_model.save_pretrained), or that it was trained from"
            )


def _check_ties(path: Path, model: Any, weights: StoredWeights) -> None:
    """Refuse a tensor that config.json ties to another, if the files hold both and they differ."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name in weights:
            names.setdefault(id(tensor), []).append(name)
    for first, *others in names.values():
        for name in others:
            if not torch.equal(weights[first], weights[name]):
                raise CheckpointError(
                    f"model folder {path}: config.json ties '{name}' to '{first}' "
                    "(tie_word_embeddings), and the files hold different weights for them, of "
                    "which some programs read one and some both; set tie_word_embeddings to false "
                    "if both were trained, or take the one out that was not"
                )
