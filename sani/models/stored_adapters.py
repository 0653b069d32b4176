"""Check the tensors of an adapter's file against its base; nothing is merged yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sani.errors import CheckpointError
from sani.models.safetensors_files import StoredWeights

_TOP = "base_model.model."


def check_adapter_tensors(path: Path, base: Path, model: Any, weights: StoredWeights) -> None:
    """Refuse an adapter's file that does not fit its base, as far as names and shapes tell.

    Args:
        path: Folder of the adapter.
        base: Folder of its base.
        model: Skeleton of the base.
        weights: The adapter's file.

    Raises:
        CheckpointError: If half of a LoRA pair is missing, is on a module that the base does not
            have or that is of another shape, or has a bias that the base has no place for.
    """
    shapes, state = weights.shapes, model.state_dict()
    modules = {name for name, _ in model.named_modules()}
    if not shapes:
        raise CheckpointError(f"model folder {path}: the adapter's file holds no tensor")
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    vocabulary = {name for name, module in model.named_modules() if module in ends}
    rows = rows_of_adapter(model, weights)
    for name, shape in shapes.items():
        module, _, part = name.partition(".lora_")
        half = part.partition(".")[0]
        if half not in ("A", "B") or not module.startswith(_TOP) or len(shape) != 2:
            continue
        other = name.replace(f".lora_{half}", f".lora_{'B' if half == 'A' else 'A'}")
        target = module.removeprefix(_TOP).removesuffix(".base_layer")
        if other not in shapes:
            raise CheckpointError(
                f"model folder {path}: '{name}' lacks its other half ('{other}'); copy the whole "
                "adapter again"
            )
        matrix, side = state.get(f"{target}.weight"), shape[1] if half == "A" else shape[0]
        fits = matrix is None or matrix.ndim != 2 or side in matrix.shape
        fits |= target in vocabulary and side == rows  # which training gave it
        if target not in modules or not fits:
            place = "has in another shape" if target in modules else "does not have"
            raise CheckpointError(
                f"model folder {path}: the adapter changes '{target}', which {base} {place}; give "
                "the base that it was trained on"
            )
    for name in shapes:
        module, found, _ = name.partition(".lora_B.bias")
        if found and f"{module.removeprefix(_TOP)}.bias" not in state:
            raise CheckpointError(
                f"model folder {path}: the adapter has biases (lora_bias) where {base} has none, "
                "so it cannot become part of its weights; train it without lora_bias"
            )


def rows_of_adapter(model: Any, weights: StoredWeights) -> int:
    """Return the rows of the embedding that an adapter was trained with.

    Args:
        model: Skeleton of its base.
        weights: The adapter's file.
    """
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    for tensor in ("weight", "base_layer.weight"):  # whole, or below a LoRA
        shape = weights.shapes.get(f"{_TOP}{name}.{tensor}")
        if shape is not None and len(shape) == 2:
            return shape[0]
    low_rank = weights.shapes.get(f"{_TOP}{name}.lora_embedding_A")
    return int(embedding.weight.shape[0] if low_rank is None else low_rank[1])
