"""Merging: an adapter put into the weights of its base, so that nothing of it is lost.

PEFT adds each module's update to the module's weight. Where two modules share one weight (a tied
head, replicated layers) both updates go into both of them, and the merged model is another one than
the adapter on its base. So shared weights are parted before, and the logits compared after.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sani.models.families import text_config
from sani.models.folder_files import ADAPTER_WEIGHTS

# How far logits may be from those of the adapter on its base, as a share of the largest one, or
# absolute where that is below 1; merging itself costs about 1e-6.
TOLERANCE = 1e-3
_REPLACED = ".original_module.weight"  # of a layer that the adapter has a trained copy of
SEQUENCES, TOKENS = 4, 16  # of random tokens that both read


@dataclass(frozen=True)
class MergedModel:
    """A merged model, and whether it is the one that it was merged from.

    Attributes:
        model: The base, changed.
        whole: The adapter's file holds the tensors that its configuration adds, and no other.
        difference: Largest difference to the adapter on its base, before merging, in the logits of
            random tokens and the embeddings of all, in units of the largest of them or of 1.
    """

    model: Any
    whole: bool
    difference: float


def merge_adapter(model: Any, path: Path, *, rows: int) -> MergedModel:
    """Load an adapter (PEFT, of any kind that can be merged) and merge it into its base.

    Args:
        model: The base, in evaluation mode; it is changed.
        path: Folder of the adapter.
        rows: Rows of the embedding that the adapter was trained with; the base gets as many.

    Raises:
        Exception: Of PEFT, if the adapter cannot be loaded or merged.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    resize_rows(model, rows)
    names = _shared_names(model)
    flags = [(config, config.tie_word_embeddings) for config in _configurations(model)]
    weights = {id(tensor) for tensor in model.parameters()}
    adapted = PeftModel.from_pretrained(model, path)
    # peft leaves at zero what it does not find, and leaves out what it has no place for: that
    # would be an audit of the base.
    taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    given = load_file(path / ADAPTER_WEIGHTS)
    # Beside these peft may save the layers of the vocabulary as they are, whole.
    whole_layers = _vocabulary(adapted)
    taken |= {name: tensor for name, tensor in whole_layers.items() if name in given}
    given = {name: tensor for name, tensor in given.items() if not name.endswith(_REPLACED)}
    whole = taken.keys() == given.keys() and all(
        _same(taken[name].cpu(), given[name]) for name in given
    )
    before = _answers(adapted, rows)
    _part(adapted, weights)
    merged = adapted.merge_and_unload().requires_grad_(True)  # peft freezes the base
    tied = _share_again(merged, names)
    for config, flag in flags:  # peft may have changed it
        config.tie_word_embeddings = flag and tied
    after = _answers(merged, rows)
    return MergedModel(merged, whole, max(map(_distance, before, after)))


def resize_rows(model: Any, rows: int) -> None:
    """In place: give the embedding and the head of a model this many rows.

    New rows are the mean of the others: about that is what PEFT and transformers draw them around,
    and it is the same each time.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if rows == old:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            for tensor in (getattr(end, "weight", None), getattr(end, "bias", None)):
                if tensor is not None and rows > old:
                    tensor[old:] = tensor[:old].mean(0)


def _vocabulary(adapted: Any) -> dict[str, Tensor]:
    """Return the embedding and the head below an adapter, by the names that peft saves them by."""
    model, state = adapted.get_base_model(), adapted.state_dict()
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    layers = [name for name, module in adapted.named_modules() if id(module) in ends]
    names = {f"{layer}.{part}" for layer in layers for part in ("weight", "base_layer.weight")}
    whole = {name: state[name] for name in names & state.keys()}
    trained = {f"{layer}.modules_to_save.weight": layer for layer in layers}
    kept = {name: f"{layer}.modules_to_save.default.weight" for name, layer in trained.items()}
    return whole | {name: state[key] for name, key in kept.items() if key in state}


def _shared_names(model: Any) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _part(model: Any, weights: set[int]) -> None:
    """Give every module its own copy of a weight of the base that it shares with others."""
    seen: set[int] = set()
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is None or id(tensor) not in weights:
                continue
            if id(tensor) in seen:
                own = torch.nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
                module._parameters[name] = own
            seen.add(id(tensor))


def _configurations(model: Any) -> list[Any]:
    """Return a model's configuration, and that of its tower that reads text."""
    return [model.config, text_config(model.config)]


def _share_again(model: Any, groups: list[list[str]]) -> bool:
    """Tie the weights that were tied and are still equal; return whether all are."""
    tied = True
    for first, *others in groups:
        weight = model.get_parameter(first)
        for name in others:
            if torch.equal(weight, model.get_parameter(name)):
                module, _, short = name.rpartition(".")
                model.get_submodule(module)._parameters[short] = weight
            else:
                tied = False
    return tied


def _answers(model: Any, rows: int) -> list[Tensor]:
    """Return logits of random tokens, and the embeddings of all tokens: any of them may differ."""
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (SEQUENCES, TOKENS), generator=chance)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        return [model(**inputs).logits, model.get_input_embeddings()(torch.arange(rows))]


def _distance(before: Tensor, after: Tensor) -> float:
    """Return the largest difference, as a share of the largest number or of 1; NaN if either is."""
    scale = before.abs().max().clamp(min=1)
    return float((before - after).abs().max() / scale)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=0.0, equal_nan=True)
