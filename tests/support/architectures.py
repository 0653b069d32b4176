"""A tiny configuration for every row of `sani.models.families`, as awkward as the family allows.

Biases, grouped heads, heads whose sizes do not add up to the hidden size, mixed sorts of layers.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from sani.models.families import FAMILIES

HEADS, MLP = 4, 20
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 6}
EXPERTS = {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ROUTED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    **ROUTED, "num_key_value_heads": HEADS, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6, "v_head_dim": 5,
}  # fmt: skip
SHARED = {
    "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 12,
}  # fmt: skip
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
DELTA_NET = {
    **MIXED, "linear_conv_kernel_dim": 3, "linear_key_head_dim": 4, "linear_value_head_dim": 6,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": "auto", "mamba_n_groups": 2, "mamba_d_state": 4,
    "mamba_d_conv": 3, "mamba_expand": 2, "mamba_chunk_size": 4,
}  # fmt: skip
GEMMA4 = {
    **WIDE, "num_hidden_layers": 4, "final_logit_softcapping": 2.0, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "position_embedding_size": 16,
}
QWEN_VISION = {
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
TOWERS = {"mistral3": "ministral3"}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "camembert": {},
    "roberta": {},
    "xlm-roberta": {},
    "distilbert": {},
}
SEQ2SEQ: dict[str, Any] = {
    "num_hidden_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": MLP,
}

# The name of a variant starts with its model_type.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **ENCODERS,
    "bart": SEQ2SEQ,
    "bloom": {},
    "deberta-v2 of version 2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": False,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "deberta-v2 of version 3": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "position_buckets": 8,
    },
    "big_bird": {"attention_type": "original_full", "use_bias": False},
    "biogpt": {},
    "cohere2": {**GROUPED, "attention_bias": True, "logit_scale": 0.5},
    "electra": {"embedding_size": 8},
    "ernie": {},
    "ernie4_5": {**WIDE, "use_bias": True},
    "eurobert": {**GROUPED, "mlp_bias": True},
    "exaone4": {**WIDE, "sliding_window_pattern": 2},
    "falcon": {"ffn_hidden_size": MLP, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon with ALiBi": {
        "ffn_hidden_size": MLP,
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
    },
    "falcon with one key": {"ffn_hidden_size": MLP, "multi_query": True, "bias": True},
    "gemma": WIDE,
    "gemma2": {**WIDE, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 6},
    "gemma3": {**WIDE, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 6},
    "gemma3_text": {**WIDE, "final_logit_softcapping": 2.0, "attention_bias": True},
    "gemma4": {
        **GEMMA4,
        "enable_moe_block": True,
        "num_experts": 3,
        "top_k_experts": 2,
        "moe_intermediate_size": 8,
        "attention_k_eq_v": True,
        "global_head_dim": 8,
    },
    "gemma4_text": {**GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    "deepseek_v3": {**LATENT, "q_lora_rank": None},
    "deepseek_v3 with a latent query": {**LATENT, "q_lora_rank": 8},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5},
    "glm4": {**WIDE, "attention_bias": True, "partial_rotary_factor": 0.5},
    "glm4_moe": {**WIDE, **ROUTED, "use_qk_norm": True, "attention_bias": True},
    "gpt_oss": {
        **WIDE,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "intermediate_size": 8,
        "sliding_window": 4,
    },
    "granitemoehybrid": {
        **GROUPED,
        **MAMBA,
        **MIXED,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 12,
        "logits_scaling": 4.0,
    },
    "granitemoehybrid without experts": {
        **GROUPED,
        **MAMBA,
        **MIXED,
        "num_local_experts": 0,
        "shared_intermediate_size": 12,
    },
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 4},
    "llama4_text": {
        **WIDE,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "intermediate_size": 8,
        "intermediate_size_mlp": 20,
        "moe_layers": [1],
    },
    "gpt2": {"n_inner": MLP},
    "gpt_bigcode": {"n_inner": MLP},
    "gpt_bigcode with a key a head": {"n_inner": MLP, "multi_query": False},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_neox": {"attention_bias": True, "use_parallel_residual": True},
    "gpt_neox one by one": {"attention_bias": False, "use_parallel_residual": False},
    "granite": {
        **GROUPED,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "mlp_bias": True,
    },
    "led": {
        **SEQ2SEQ,
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "llama": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "longformer": {"attention_window": 4, "pad_token_id": 0},
    "mbart": SEQ2SEQ,
    "megatron-bert": {},
    "ministral": WIDE,
    "ministral3": WIDE,
    "mistral": WIDE,
    "mistral3": WIDE,
    "mixtral": {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2},
    "modernbert": {"attention_bias": True, "mlp_bias": True, "cls_token_id": 0, "sep_token_id": 1},
    "mpnet": {},
    "mt5": {"num_decoder_layers": 2, "d_kv": 6, "d_ff": MLP, "feed_forward_proj": "gated-gelu"},
    "nemotron": {**WIDE, "attention_bias": True, "mlp_bias": True},
    "olmo": {**GROUPED, "clip_qkv": 2.0},
    "olmo2": {**GROUPED, "attention_bias": True},
    "olmo3": GROUPED,
    "nemotron_h": {
        **GROUPED,
        "head_dim": 4,
        "ssm_state_size": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 4,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "moe_shared_expert_intermediate_size": 12,
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
    },
    "olmoe": {**EXPERTS, "intermediate_size": 8},
    "phimoe": {**GROUPED, "num_local_experts": 3, "attention_bias": True, "lm_head_bias": True},
    "qwen3_5": {**WIDE, **DELTA_NET},
    "qwen3_5_moe": {**WIDE, **DELTA_NET, **SHARED},
    "qwen3_5_moe_text": {**WIDE, **DELTA_NET, **SHARED},
    "qwen3_5_text": {**WIDE, **DELTA_NET},
    "qwen3_next": {**WIDE, **DELTA_NET, **SHARED, "mlp_only_layers": [0]},
    "opt": {"ffn_dim": MLP, "word_embed_proj_dim": 8},
    "pegasus": SEQ2SEQ,
    "phi": {**GROUPED, "qk_layernorm": True},
    "phi3": GROUPED,
    "phi4_multimodal": {
        **GROUPED,
        "vision_config": {**VISION, "num_hidden_layers": 2, "crop_size": 28},
        "audio_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 8,
            "depthwise_separable_out_channel": 8,
            "input_size": 8,
            "nemo_conv_channels": 8,
            "bias_max_distance": 4,
        },
    },
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 12, "mlp_only_layers": [0]},
    "qwen3": {**WIDE, "attention_bias": True},
    "qwen3_moe": {**EXPERTS, "head_dim": 6},
    "qwen3_vl": WIDE,
    "roformer": {"embedding_size": 8},
    "smollm3": {**GROUPED, "attention_bias": True, "mlp_bias": True, "no_rope_layer_interval": 2},
    "starcoder2": {**GROUPED, "use_bias": True},
    "t5": {"num_decoder_layers": 2, "d_kv": 6, "d_ff": MLP, "feed_forward_proj": "relu"},
    "t5 gated": {
        "num_decoder_layers": 2,
        "d_kv": 6,
        "d_ff": MLP,
        "feed_forward_proj": "gated-gelu",
    },
    "umt5": {"num_decoder_layers": 2, "d_kv": 6, "d_ff": MLP, "feed_forward_proj": "gated-gelu"},
}

# Tried briefly by default, being laid out like another variant or slow; all else that is tried of
# these is `long`, but for the figures of an audit.
ALIKE = frozenset(
    {
        "big_bird", "biogpt", "cohere2", "deepseek_v3", "ernie", "ernie4_5", "eurobert",
        "exaone4", "falcon_h1", "gemma", "gemma4", "gemma4_text", "glm4", "glm4_moe",
        "gpt_bigcode with a key a head", "granite", "granitemoehybrid",
        "granitemoehybrid without experts", "led", "lfm2", "longformer", "mbart",
        "megatron-bert", "ministral", "ministral3", "mistral3", "mpnet", "mt5", "nemotron",
        "olmo", "olmo3", "olmoe", "pegasus", "phi4_multimodal", "phimoe", "qwen3_5",
        "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_vl", "roformer",
        "smollm3", "starcoder2", "umt5",
    }
)  # fmt: skip


def each(names: Iterable[str]) -> list[Any]:
    """Return variants as parameters of a test; those that are `ALIKE` another are ``long``."""
    return [pytest.param(name, marks=[pytest.mark.long] if name in ALIKE else []) for name in names]


EVERY = each(sorted(ARCHITECTURES))


def _of(objective: str) -> list[str]:
    rows = FAMILIES.items()
    types = {model_type for model_type, row in rows if row.objective == objective}
    return [name for name in ARCHITECTURES if name.partition(" ")[0] in types]


CAUSAL, MASKED = _of("causal"), _of("masked")


def tiny_config(name: str, *, vocab_size: int = 24, **changes: Any) -> Any:
    """Return the configuration of a variant; ``changes`` are those of its text tower."""
    model_type = name.partition(" ")[0]
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "vocab_size_per_layer_input": vocab_size,
        **ARCHITECTURES[name],
        **changes,
    }
    if not model_type.startswith("gemma4"):
        del sizes["vocab_size_per_layer_input"]
    if model_type == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    if FAMILIES[model_type].vision:
        tower = {"model_type": TOWERS[model_type], **sizes} if model_type in TOWERS else sizes
        vision = {**VISION, **QWEN_VISION} if model_type.startswith("qwen") else VISION
        return AutoConfig.for_model(model_type, text_config=tower, vision_config=vision)
    return AutoConfig.for_model(model_type, **sizes)


def tiny_tokenizer(letters: str = "abcdefghijklmn", *, times: int = 1) -> PreTrainedTokenizerFast:
    """Return a tokenizer of sixteen words: begin, end, and letters repeated ``times`` times."""
    words = ["<s>", "</s>", *(letter * times for letter in letters)]
    numbers = {word: number for number, word in enumerate(words)}
    word_level = Tokenizer(models.WordLevel(numbers, unk_token="<s>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level, bos_token="<s>", eos_token="</s>", mask_token=words[-1]
    )
