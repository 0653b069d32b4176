"""Hybrids: decoders some of whose layers keep a state (linear attention, state space, convolution).

That part of a layer has no heads, so only its neurons, and the heads of other layers, are erased.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sani.models.family import Family, Mlp, Stack
from sani.models.rows.blocks import BART_SELF, LLAMA, SELF, separate, tower
from sani.models.rows.mixtures import MIXTURE

_DELTA_NET = tuple(
    f"linear_attn.{name}"
    for name in (
        "conv1d", "in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_a",
        "in_proj_b", "out_proj",
    )
)  # fmt: skip
_STATEFUL: dict[str, Any] = {"branches": False, "cached": False}
_QWEN3_NEXT = replace(
    MIXTURE,
    attention=(replace(SELF, gated=True),),
    mixers=_DELTA_NET,
    **_STATEFUL,
)


def _mamba(place: str) -> tuple[str, ...]:
    return tuple(f"{place}.{name}" for name in ("in_proj", "conv1d", "out_proj"))


HYBRIDS: Mapping[str, Family] = {
    "falcon_h1": replace(
        LLAMA,
        stacks=(Stack("model.layers", "model.final_layernorm"),),
        mlp=(Mlp(("feed_forward.gate_proj", "feed_forward.up_proj"), "feed_forward.down_proj"),),
        mixers=_mamba("mamba"),
        own_head=True,
        **_STATEFUL,
    ),
    "granitemoehybrid": replace(
        LLAMA,
        mlp=(
            Mlp(
                ("block_sparse_moe.experts.gate_up_proj",) * 2, "block_sparse_moe.experts.down_proj"
            ),
            Mlp(("block_sparse_moe.input_linear",) * 2, "block_sparse_moe.output_linear"),
            Mlp(("shared_mlp.input_linear",) * 2, "shared_mlp.output_linear"),
        ),
        whole=("block_sparse_moe.router", "block_sparse_moe.router.layer"),
        mixers=_mamba("mamba"),
        own_head=True,
        **_STATEFUL,
    ),
    "lfm2": replace(
        LLAMA,
        stacks=(Stack("model.layers", "model.embedding_norm"),),
        mlp=(Mlp(("feed_forward.w1", "feed_forward.w3"), "feed_forward.w2"),),
        attention=(BART_SELF,),
        mixers=("conv.in_proj", "conv.conv", "conv.out_proj"),
        **_STATEFUL,
    ),
    "nemotron_h": replace(
        LLAMA,
        stacks=(Stack("model.layers", "model.norm_f", in_file="backbone.layers"),),
        mlp=(
            Mlp(("mixer.experts.up_proj",), "mixer.experts.down_proj"),
            Mlp(("mixer.experts.{}.up_proj",), "mixer.experts.{}.down_proj"),
            Mlp(("mixer.shared_experts.up_proj",), "mixer.shared_experts.down_proj"),
            Mlp(("mixer.up_proj",), "mixer.down_proj"),
        ),
        attention=(separate("mixer.{}_proj", "q", "k", "v", "o"),),
        whole=("mixer.gate", "mixer.fc1_latent_proj", "mixer.fc2_latent_proj"),
        mixers=_mamba("mixer"),
        **_STATEFUL,
    ),
    "qwen3_5": tower(_QWEN3_NEXT),
    "qwen3_5_moe": tower(_QWEN3_NEXT),
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_next": _QWEN3_NEXT,
}
