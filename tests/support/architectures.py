"""A tiny configuration for every row of `sani.models.families`, as awkward as the family allows.

Biases, grouped heads, heads whose sizes do not add up to the hidden size, mixed sorts of layers.
"""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from sani.models.families import FAMILIES

HEADS, MLP = 4, 20
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 6}
EXPERTS = {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "camembert": {},
    "roberta": {},
    "xlm-roberta": {},
    "distilbert": {},
}

# The name of a variant starts with its model_type.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **ENCODERS,
    "bart": {
        "num_hidden_layers": 2,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 12,
        "decoder_ffn_dim": MLP,
    },
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
    "electra": {"embedding_size": 8},
    "falcon": {"ffn_hidden_size": MLP, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon with ALiBi": {
        "ffn_hidden_size": MLP,
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
    },
    "falcon with one key": {"ffn_hidden_size": MLP, "multi_query": True, "bias": True},
    "gemma2": {**WIDE, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 6},
    "gemma3": {**WIDE, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 6},
    "gemma3_text": {**WIDE, "final_logit_softcapping": 2.0, "attention_bias": True},
    "gpt2": {"n_inner": MLP},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_neox": {"attention_bias": True, "use_parallel_residual": True},
    "gpt_neox one by one": {"attention_bias": False, "use_parallel_residual": False},
    "llama": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "mistral": WIDE,
    "mixtral": {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2},
    "modernbert": {"attention_bias": True, "mlp_bias": True, "cls_token_id": 0, "sep_token_id": 1},
    "olmo2": {**GROUPED, "attention_bias": True},
    "opt": {"ffn_dim": MLP, "word_embed_proj_dim": 8},
    "phi": {**GROUPED, "qk_layernorm": True},
    "phi3": GROUPED,
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 12, "mlp_only_layers": [0]},
    "qwen3": {**WIDE, "attention_bias": True},
    "qwen3_moe": {**EXPERTS, "head_dim": 6},
    "t5": {"num_decoder_layers": 2, "d_kv": 6, "d_ff": MLP, "feed_forward_proj": "relu"},
    "t5 gated": {
        "num_decoder_layers": 2,
        "d_kv": 6,
        "d_ff": MLP,
        "feed_forward_proj": "gated-gelu",
    },
}


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
        **ARCHITECTURES[name],
        **changes,
    }
    if model_type == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    if FAMILIES[model_type].vision:
        return AutoConfig.for_model(model_type, text_config=sizes, vision_config=VISION)
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
