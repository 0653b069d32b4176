"""Decoders with one plain MLP a layer: each predicts the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sani.models.family import Family, Mlp, Stack
from sani.models.rows.blocks import (
    BART_SELF,
    GATED,
    GATED_STACKED,
    LLAMA,
    PLAIN,
    SELF,
    separate,
    stacked,
    tower,
)

_BIG_SCIENCE = Family(  # BLOOM, and Falcon after it
    (Stack("transformer.h", "transformer.ln_f"),),
    (Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),),
    (stacked("self_attention.query_key_value", "self_attention.dense", interleaved=True),),
    branches=False,
)

_PHI3 = replace(
    LLAMA,
    mlp=(GATED_STACKED,),
    attention=(stacked("self_attn.qkv_proj", "self_attn.o_proj"),),
)
_OLMO2 = replace(LLAMA, attention=(replace(SELF, normalized_together=True),))
_LENT = replace(SELF, optional=(SELF.key, SELF.value))  # a layer may read another's keys
_GEMMA4 = replace(
    LLAMA,
    mlp=(GATED, Mlp(("experts.gate_up_proj",) * 2, "experts.down_proj")),
    attention=(_LENT,),
    whole=("per_layer_input_gate", "per_layer_projection", "router.proj"),
    token_tables=("embed_tokens_per_layer",),
    own_head=True,
    branches=False,
)

DECODERS: Mapping[str, Family] = {
    "biogpt": Family(
        (Stack("biogpt.layers", "biogpt.layer_norm"),),
        (Mlp(("fc1",), "fc2"),),
        (BART_SELF,),
    ),
    "bloom": replace(_BIG_SCIENCE, sdpa=False),
    "cohere2": replace(LLAMA, own_head=True),
    "ernie4_5": LLAMA,
    "exaone4": LLAMA,
    "falcon": _BIG_SCIENCE,
    "gemma": LLAMA,
    "gemma2": replace(LLAMA, sdpa=False, own_head=True),
    "gemma3": tower(LLAMA),
    "gemma4": tower(_GEMMA4),
    "gemma4_text": _GEMMA4,
    "gemma3_text": replace(LLAMA, own_head=True),
    "glm4": replace(LLAMA, mlp=(GATED_STACKED,)),
    "gpt2": Family(
        (Stack("transformer.h", "transformer.ln_f"),),
        (Mlp(("mlp.c_fc",), "mlp.c_proj"),),
        (stacked("attn.c_attn", "attn.c_proj"),),
        transposed=True,
    ),
    "gpt_bigcode": Family(
        (Stack("transformer.h", "transformer.ln_f"),),
        (Mlp(("mlp.c_fc",), "mlp.c_proj"),),
        (stacked("attn.c_attn", "attn.c_proj", interleaved=True),),
    ),
    "gpt_neo": Family(
        (Stack("transformer.h", "transformer.ln_f"),),
        (Mlp(("mlp.c_fc",), "mlp.c_proj"),),
        (separate("attn.attention.{}_proj", "q", "k", "v", "out"),),
        sdpa=False,
        branches=False,
    ),
    "gpt_neox": Family(
        (Stack("gpt_neox.layers", "gpt_neox.final_layer_norm"),),
        (Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),),
        (stacked("attention.query_key_value", "attention.dense", interleaved=True),),
    ),
    "granite": replace(LLAMA, own_head=True),
    "llama": LLAMA,
    "ministral": LLAMA,
    "ministral3": LLAMA,
    "mistral": LLAMA,
    "mistral3": tower(LLAMA),
    "nemotron": replace(LLAMA, mlp=(PLAIN,)),
    "olmo": LLAMA,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "opt": Family(
        (Stack("model.decoder.layers", "model.decoder.final_layer_norm"),),
        (Mlp(("fc1",), "fc2"),),
        (BART_SELF,),
    ),
    "phi": Family(
        (Stack("model.layers", "model.final_layernorm"),),
        (Mlp(("mlp.fc1",), "mlp.fc2"),),
        (replace(SELF, output="self_attn.dense"),),
    ),
    "phi3": _PHI3,
    "phi4_multimodal": _PHI3,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_vl": tower(LLAMA),
    "smollm3": LLAMA,
    "starcoder2": replace(LLAMA, mlp=(Mlp(("mlp.c_fc",), "mlp.c_proj"),)),
}
