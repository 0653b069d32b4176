"""Mixtures of experts: decoders in which a router sends each token to a few of many MLPs.

Mostly one tensor holds all experts in memory, and one each in files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sani.models.family import Attention, Family, Mlp
from sani.models.rows.blocks import GATED, LLAMA, SELF


def _gated(place: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Mlp:
    gate, up, down = (f"{place}.{name}" for name in names)
    return Mlp((gate, up), down)


EXPERTS = Mlp(("mlp.experts.gate_up_proj",) * 2, "mlp.experts.down_proj")
MIXTURE = replace(
    LLAMA,
    mlp=(
        EXPERTS,
        _gated("mlp.experts.{}"),
        _gated("block_sparse_moe.experts.{}", ("w1", "w3", "w2")),
        _gated("mlp.shared_expert"),
        _gated("mlp.shared_experts"),
        GATED,
    ),
    whole=("mlp.gate", "mlp.router", "block_sparse_moe.gate", "mlp.shared_expert_gate"),
)
_LATENT = Attention(
    "self_attn.q_b_proj",
    "self_attn.kv_b_proj",
    "self_attn.kv_b_proj",
    "self_attn.o_proj",
    latent=True,
)
_GPT_OSS_EXPERTS = replace(EXPERTS, transposed=True, interleaved=True)
_LLAMA4_EXPERTS = Mlp(
    ("feed_forward.experts.gate_up_proj",) * 2, "feed_forward.experts.down_proj", transposed=True
)

MIXTURES: Mapping[str, Family] = {
    "deepseek_v3": replace(
        MIXTURE,
        attention=(_LATENT, replace(_LATENT, query="self_attn.q_proj")),
        whole=(*MIXTURE.whole, "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    ),
    "glm4_moe": MIXTURE,
    "gpt_oss": replace(MIXTURE, mlp=(_GPT_OSS_EXPERTS,), sdpa=False, branches=False),
    "llama4_text": replace(
        LLAMA,
        mlp=(_LLAMA4_EXPERTS, _gated("feed_forward.shared_expert"), _gated("feed_forward")),
        whole=("feed_forward.router",),
        branches=False,
        read_from_outside=("model.embed_tokens",),
    ),
    "mixtral": MIXTURE,
    "olmoe": replace(MIXTURE, attention=(replace(SELF, normalized_together=True),)),
    "phimoe": MIXTURE,
    "qwen2_moe": MIXTURE,
    "qwen3_moe": MIXTURE,
}
