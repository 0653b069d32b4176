"""Blocks and rows that several families share."""

from __future__ import annotations

from dataclasses import replace

from sani.models.family import Attention, Family, Mlp, Stack


def separate(pattern: str, query: str, key: str, value: str, output: str) -> Attention:
    """Return attention with a projection each; ``pattern`` has ``{}`` for their short names."""
    query, key, value, output = map(pattern.format, (query, key, value, output))
    return Attention(query, key, value, output)


def stacked(name: str, output: str, *, interleaved: bool = False) -> Attention:
    """Return attention whose queries, keys and values are rows of one tensor."""
    return Attention(name, name, name, output, interleaved)


def tower(family: Family) -> Family:
    """Return the row of a model that also reads images, whose text tower is of a family."""
    layers = Stack(
        "model.language_model.layers",
        "model.language_model.norm",
        in_file="language_model.model.layers",
    )
    return replace(family, stacks=(layers,), vision=True)


GATED = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
GATED_STACKED = Mlp(("mlp.gate_up_proj",) * 2, "mlp.down_proj")
PLAIN = Mlp(("mlp.up_proj",), "mlp.down_proj")
SELF = separate("self_attn.{}_proj", "q", "k", "v", "o")
LLAMA = Family((Stack("model.layers", "model.norm"),), (GATED,), (SELF,))
BART_SELF = separate("self_attn.{}_proj", "q", "k", "v", "out")
