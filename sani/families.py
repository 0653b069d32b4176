"""The one place that knows model families: which tensors a neuron is made of, for each of them.

A *neuron* is row j of an MLP block's input projections, with its bias, and column j of its output
projection. For attention it is a head: its rows of the query projection and its columns of the
output projection, and the rows of the key and value head it reads once every head that shares
them is chosen (grouped-query attention).

Tensors are named as in the checkpoint, so what needs no activations needs no model either.
Adding a family is adding one row to `FAMILIES`; the tests exercise every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sani.errors import UnsupportedModelError
from sani.recipe import Part


@dataclass(frozen=True)
class Family:
    """Where the weights of one architecture stand, relative to a layer unless said otherwise.

    Attributes:
        layers: Prefix of the layer list, from the top of the checkpoint.
        norm: Final norm, from the top of the checkpoint.
        mlp_in: Projections into the MLP's neurons; two for a gated MLP.
        mlp_out: Projection out of them; its input is the neurons' activation.
        query, key, value: Projections of the heads. The same name three times means one tensor
            that stacks query, key and value in this order.
        attention_out: Projection out of the heads; its input is the heads' output.
        transposed: Weights are [in, out] (``Conv1D``) instead of [out, in] (``Linear``).
    """

    layers: str
    norm: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    query: str
    key: str
    value: str
    attention_out: str
    transposed: bool = False


_LLAMA = Family(
    layers="model.layers",
    norm="model.norm",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_out="self_attn.o_proj",
)

FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        layers="transformer.h",
        norm="transformer.ln_f",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        attention_out="attn.c_proj",
        transposed=True,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


# Masked language models, which can be audited: the modules from hidden states to logits, in order.
MASKED: Mapping[str, tuple[str, ...]] = {
    "bert": ("cls",),
    "camembert": ("lm_head",),
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "electra": ("generator_predictions", "generator_lm_head"),
    "modernbert": ("head", "decoder"),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
}


@dataclass(frozen=True)
class Slice:
    """Part of one tensor: ``index`` [n] along dimension ``dim`` of the tensor ``name``."""

    name: str
    dim: int
    index: Tensor


class Layout:
    """Where the neurons of one checkpoint stand: its family's row and its own sizes."""

    def __init__(self, config: Any, shapes: Mapping[str, Sequence[int]]) -> None:
        """Look up the family and check that its tensors are there.

        Args:
            config: The checkpoint's `PreTrainedConfig`.
            shapes: Shape of every tensor of the checkpoint, by name.

        Raises:
            UnsupportedModelError: If the family is unknown, or the tensors are not its own.
        """
        self.family = family_of(config)
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_key_value_heads: int = getattr(config, "num_key_value_heads", self.num_heads)
        self._shapes = shapes
        for layer in range(self.num_layers):
            if self._weight(layer, self.family.mlp_out) not in shapes:
                raise UnsupportedModelError(
                    f"model_type '{config.model_type}': layer {layer} has no tensor "
                    f"'{self._weight(layer, self.family.mlp_out)}'; a quantized or modified "
                    "checkpoint? Give the plain one"
                )

    def num_neurons(self, part: Part, *, layer: int) -> int:
        """MLP neurons or attention heads of a layer."""
        if part == "attention":
            return self.num_heads
        shape = self._shapes[self._weight(layer, self.family.mlp_out)]
        return int(shape[0 if self.family.transposed else 1])

    def output_projection(self, part: Part, *, layer: int) -> str:
        """Module whose input is the neurons' activation, [..., neurons] or [..., heads * size]."""
        family = self.family
        return self._module(layer, family.mlp_out if part == "mlp" else family.attention_out)

    def slices(self, part: Part, *, layer: int, neurons: Iterable[int]) -> list[Slice]:
        """Every part of every tensor that belongs to these neurons of a layer, each once."""
        chosen = sorted(set(neurons))
        if part == "mlp":
            index = torch.tensor(chosen, dtype=torch.long)
            found = [
                piece for name in self.family.mlp_in for piece in self._rows(layer, name, index)
            ]
            return [*found, self._columns(layer, self.family.mlp_out, index)]
        return self._head_slices(layer, chosen)

    def trained_prefixes(self, last_layers: int) -> tuple[str, ...]:
        """Name prefixes of the last ``last_layers`` layers and of the final norm."""
        first = max(0, self.num_layers - last_layers)
        layers = range(first, self.num_layers)
        return (*(f"{self.family.layers}.{layer}." for layer in layers), f"{self.family.norm}.")

    def _head_slices(self, layer: int, heads: list[int]) -> list[Slice]:
        family = self.family
        out_shape = self._shapes[self._weight(layer, family.attention_out)]
        size = int(out_shape[0 if family.transposed else 1]) // self.num_heads
        shared = self.num_heads // self.num_key_value_heads
        groups = [
            group
            for group in range(self.num_key_value_heads)
            if all(head in heads for head in range(group * shared, (group + 1) * shared))
        ]
        query, pair = _expand(heads, size), _expand(groups, size)
        if family.query == family.key:
            width = self.num_heads * size
            offsets = (width, width + self.num_key_value_heads * size)
            stacked = torch.cat([query, *(offset + pair for offset in offsets)])
            found = self._rows(layer, family.query, stacked)
        else:
            found = [
                *self._rows(layer, family.query, query),
                *self._rows(layer, family.key, pair),
                *self._rows(layer, family.value, pair),
            ]
        return [*found, self._columns(layer, family.attention_out, query)]

    def _rows(self, layer: int, name: str, index: Tensor) -> list[Slice]:
        found = [Slice(self._weight(layer, name), 1 if self.family.transposed else 0, index)]
        bias = self._module(layer, name) + ".bias"
        return [*found, Slice(bias, 0, index)] if bias in self._shapes else found

    def _columns(self, layer: int, name: str, index: Tensor) -> Slice:
        return Slice(self._weight(layer, name), 0 if self.family.transposed else 1, index)

    def _module(self, layer: int, name: str) -> str:
        return f"{self.family.layers}.{layer}.{name}"

    def _weight(self, layer: int, name: str) -> str:
        return self._module(layer, name) + ".weight"


def family_of(config: Any) -> Family:
    """The row of a checkpoint's family.

    Raises:
        UnsupportedModelError: If there is none; the message lists those there are.
    """
    model_type = str(getattr(config, "model_type", "unknown"))
    if is_masked(config):
        raise UnsupportedModelError(
            f"model_type '{model_type}' is a masked language model, which can be audited "
            f"(sani audit), not erased or repaired; for these, one of {', '.join(FAMILIES)}"
        )
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type '{model_type}' is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}. A family is one row in sani/families.py"
        )
    return FAMILIES[model_type]


def is_masked(config: Any) -> bool:
    """Whether the model predicts masked tokens from both sides, instead of the next one."""
    decoder = getattr(config, "is_decoder", False)
    return str(getattr(config, "model_type", "")) in MASKED and not decoder


def hidden_states(
    model: Any, *, cache: DynamicCache | None = None, **inputs: Tensor | None
) -> Tensor:
    """The last hidden states, final norm included, [batch, seq, hidden], and no logits.

    Args:
        model: A causal or masked language model.
        cache: Takes the keys and values of the inputs, or has those of what stands before them.
            None for a model that is read at once.
        inputs: Of the model.
    """
    cached: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache}
    if is_masked(model.config):
        cached = {}
    hidden: Tensor = model.base_model(**inputs, **cached).last_hidden_state
    return hidden


def logits(model: Any, hidden: Tensor) -> Tensor:
    """The model's own logits [n, vocab] for chosen hidden states [n, hidden]."""
    if is_masked(model.config):
        for name in MASKED[model.config.model_type]:
            hidden = getattr(model, name)(hidden)
        return hidden
    result: Tensor = model.get_output_embeddings()(hidden)
    return result


def _expand(heads: Iterable[int], size: int) -> Tensor:
    """Rows of these heads, ``size`` each."""
    starts = torch.tensor(list(heads), dtype=torch.long) * size
    return (starts[:, None] + torch.arange(size)).flatten()
