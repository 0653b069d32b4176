"""The one place that knows model families: what their modules are called, and how to call them.

A family is one row of `FAMILIES`; `sani.models.family` says what a row holds. To add one, add its
row here and a tiny configuration to the tests, which then try every selector, reset and figure on
it. `sani.models.neurons` finds a family's neurons by its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from sani.errors import UnsupportedModelError
from sani.models.family import Attention, Family, Mlp, Objective, Stack


def _separate(pattern: str, query: str, key: str, value: str, output: str) -> Attention:
    query, key, value, output = map(pattern.format, (query, key, value, output))
    return Attention(query, key, value, output)


def _stacked(name: str, output: str, *, interleaved: bool = False) -> Attention:
    return Attention(name, name, name, output, interleaved)


_GATED = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_SELF = _separate("self_attn.{}_proj", "q", "k", "v", "o")
_LLAMA = Family((Stack("model.layers", "model.norm"),), (_GATED,), (_SELF,))
_BIG_SCIENCE = Family(  # BLOOM, and Falcon after it
    (Stack("transformer.h", "transformer.ln_f"),),
    (Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),),
    (_stacked("self_attention.query_key_value", "self_attention.dense", interleaved=True),),
    branches=False,
)
_MIXTURE = replace(  # one tensor for all experts in memory, one for each in files
    _LLAMA,
    mlp=(
        Mlp(("mlp.experts.gate_up_proj",) * 2, "mlp.experts.down_proj"),
        Mlp(("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"), "mlp.experts.{}.down_proj"),
        Mlp(
            ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
            "block_sparse_moe.experts.{}.w2",
        ),
        Mlp(
            ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
            "mlp.shared_expert.down_proj",
        ),
        _GATED,
    ),
    whole=("mlp.gate", "block_sparse_moe.gate", "mlp.shared_expert_gate"),
)
_BERT = Family(
    (Stack("bert.encoder.layer"),),
    (Mlp(("intermediate.dense",), "output.dense"),),
    (
        Attention(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ),
    ),
    objective="masked",
    head=("cls",),
)
_ROBERTA = replace(
    _BERT,
    stacks=(Stack("roberta.encoder.layer"),),
    head=("lm_head",),
    positions_behind_padding=True,
)
_BART_SELF = _separate("self_attn.{}_proj", "q", "k", "v", "out")
_T5_MLP = tuple(
    Mlp(
        tuple(f"layer.{place}.DenseReluDense.{name}" for name in names),
        f"layer.{place}.DenseReluDense.wo",
    )
    for place in (1, 2)  # behind cross-attention in the decoder
    for names in (("wi",), ("wi_0", "wi_1"))
)

FAMILIES: Mapping[str, Family] = {
    "bart": Family(
        (
            Stack("model.encoder.layers", "", "encoder_layers", "encoder_attention_heads"),
            Stack("model.decoder.layers", "", "decoder_layers", "decoder_attention_heads"),
        ),
        (Mlp(("fc1",), "fc2"),),
        (_BART_SELF, _separate("encoder_attn.{}_proj", "q", "k", "v", "out")),
        objective="seq2seq",
        branches=False,
    ),
    "bert": _BERT,
    "bloom": replace(_BIG_SCIENCE, sdpa=False),
    "camembert": _ROBERTA,
    "deberta-v2": replace(
        _BERT,
        stacks=(Stack("deberta.encoder.layer"),),
        attention=(
            Attention(
                "attention.self.query_proj",
                "attention.self.key_proj",
                "attention.self.value_proj",
                "attention.output.dense",
                positions=("attention.self.pos_query_proj", "attention.self.pos_key_proj"),
            ),
        ),
        sdpa=False,
    ),
    "distilbert": Family(
        (Stack("distilbert.transformer.layer"),),
        (Mlp(("ffn.lin1",), "ffn.lin2"),),
        (_separate("attention.{}_lin", "q", "k", "v", "out"),),
        objective="masked",
        head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ),
    "electra": replace(
        _BERT,
        stacks=(Stack("electra.encoder.layer"),),
        head=("generator_predictions", "generator_lm_head"),
    ),
    "falcon": _BIG_SCIENCE,
    "gemma2": replace(_LLAMA, sdpa=False, capped=True),
    "gemma3": replace(
        _LLAMA,
        stacks=(
            Stack(
                "model.language_model.layers",
                "model.language_model.norm",
                in_file="language_model.model.layers",
            ),
        ),
        vision=True,
    ),
    "gemma3_text": replace(_LLAMA, capped=True),
    "gpt2": Family(
        (Stack("transformer.h", "transformer.ln_f"),),
        (Mlp(("mlp.c_fc",), "mlp.c_proj"),),
        (_stacked("attn.c_attn", "attn.c_proj"),),
        transposed=True,
    ),
    "gpt_neo": Family(
        (Stack("transformer.h", "transformer.ln_f"),),
        (Mlp(("mlp.c_fc",), "mlp.c_proj"),),
        (_separate("attn.attention.{}_proj", "q", "k", "v", "out"),),
        sdpa=False,
        branches=False,
    ),
    "gpt_neox": Family(
        (Stack("gpt_neox.layers", "gpt_neox.final_layer_norm"),),
        (Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),),
        (_stacked("attention.query_key_value", "attention.dense", interleaved=True),),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTURE,
    "modernbert": Family(
        (Stack("model.layers", "model.final_norm"),),
        (Mlp(("mlp.Wi", "mlp.Wi"), "mlp.Wo"),),
        (_stacked("attn.Wqkv", "attn.Wo"),),
        objective="masked",
        head=("head", "decoder"),
    ),
    "olmo2": replace(_LLAMA, attention=(replace(_SELF, normalized_together=True),)),
    "opt": Family(
        (Stack("model.decoder.layers", "model.decoder.final_layer_norm"),),
        (Mlp(("fc1",), "fc2"),),
        (_BART_SELF,),
    ),
    "phi": Family(
        (Stack("model.layers", "model.final_layernorm"),),
        (Mlp(("mlp.fc1",), "mlp.fc2"),),
        (replace(_SELF, output="self_attn.dense"),),
    ),
    "phi3": replace(
        _LLAMA,
        mlp=(Mlp(("mlp.gate_up_proj",) * 2, "mlp.down_proj"),),
        attention=(_stacked("self_attn.qkv_proj", "self_attn.o_proj"),),
    ),
    "qwen2": _LLAMA,
    "qwen2_moe": _MIXTURE,
    "qwen3": _LLAMA,
    "qwen3_moe": _MIXTURE,
    "roberta": _ROBERTA,
    "t5": Family(
        (
            Stack("encoder.block", "encoder.final_layer_norm"),
            Stack("decoder.block", "decoder.final_layer_norm", "num_decoder_layers"),
        ),
        _T5_MLP,
        (
            _separate("layer.0.SelfAttention.{}", "q", "k", "v", "o"),
            _separate("layer.1.EncDecAttention.{}", "q", "k", "v", "o"),
        ),
        objective="seq2seq",
        branches=False,
        whole=("layer.0.SelfAttention.relative_attention_bias",),  # all layers read the first's
    ),
    "xlm-roberta": _ROBERTA,
}


def family_of(config: Any, *objectives: Objective) -> Family:
    """Return the row of a checkpoint's family.

    Args:
        config: Of the checkpoint.
        objectives: Objectives that the caller can handle; all, if none is given.

    Raises:
        UnsupportedModelError: If there is none, with a list of those there are, or the caller
            cannot handle it.
    """
    model_type = str(getattr(config, "model_type", "unknown"))
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type '{model_type}' is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}. A family is one row in sani/models/families.py"
        )
    family = FAMILIES[model_type]
    if family.objective == "masked" and getattr(config, "is_decoder", False):
        raise UnsupportedModelError(
            f"model_type '{model_type}' is supported as a masked language model, not as a decoder "
            "(is_decoder in config.json)"
        )
    if objectives and family.objective not in objectives:
        others = sorted(name for name, row in FAMILIES.items() if row.objective in objectives)
        raise UnsupportedModelError(
            f"model_type '{model_type}' is a {family.objective} language model, which can be "
            f"erased, but this takes a {' or '.join(objectives)} one: {', '.join(others)}"
        )
    return family


def auto_class(config: Any) -> Any:
    """Return the class of transformers that builds and loads checkpoints of this family."""
    family = family_of(config)
    names = {
        "causal": "AutoModelForCausalLM",
        "masked": "AutoModelForMaskedLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
    }
    name = "AutoModelForImageTextToText" if family.vision else names[family.objective]
    return getattr(transformers, name)


def text_config(config: Any) -> Any:
    """Return the sizes of what reads text: all of the model, or a tower of it."""
    return getattr(config, "text_config", config)


def num_layers(config: Any) -> int:
    """Return the number of layers of all stacks, as `Family.stacks` numbers them."""
    sizes = text_config(config)
    return sum(getattr(sizes, stack.length) for stack in family_of(config).stacks)


def is_masked(config: Any) -> bool:
    """Return whether the model predicts masked tokens from both sides, not the next one."""
    family = FAMILIES.get(str(getattr(config, "model_type", "")))
    decoder = getattr(config, "is_decoder", False)
    return family is not None and family.objective == "masked" and not decoder


def decoder_start(config: Any) -> int | None:
    """Return the token that the decoder of a second text begins with; None for other models."""
    family = FAMILIES.get(str(getattr(config, "model_type", "")))
    two_texts = family is not None and family.objective == "seq2seq"
    return int(config.decoder_start_token_id) if two_texts else None


def hidden_states(
    model: Any,
    *,
    cache: DynamicCache | None = None,
    source_ids: Tensor | None = None,
    source_seen: Tensor | None = None,
    **inputs: Tensor | None,
) -> Tensor:
    """Compute the last hidden states, final norm included, [batch, seq, hidden], and no logits.

    Args:
        model: A language model.
        cache: Takes the keys and values of the inputs, or has those of what stands before them.
            None for a model that is read at once.
        source_ids: Input of the encoder of an encoder-decoder model, [batch, source].
        source_seen: Positions of it that are no padding, likewise, bool.
        inputs: Inputs of the model; where there is an encoder, of its decoder.

    Raises:
        UnsupportedModelError: If the model is not of a known family, or reads a second text and
            none is given.
    """
    if source_ids is not None and source_seen is not None:
        family_of(model.config, "seq2seq")
        seen = source_seen.long()
        source = model.get_encoder()(input_ids=source_ids, attention_mask=seen).last_hidden_state
        decoded: Tensor = model.get_decoder()(
            **inputs, encoder_hidden_states=source, encoder_attention_mask=seen, use_cache=False
        ).last_hidden_state
        return decoded
    cached: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache}
    if family_of(model.config, "causal", "masked").objective == "masked":
        cached = {}
    hidden: Tensor = model.base_model(**inputs, **cached).last_hidden_state
    return hidden


def run_experts(
    experts: Any,
    hidden: Tensor,
    chosen: Tensor,
    shares: Tensor,
    *,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute the output of a module of experts, its neurons' activations changed on the way.

    Args:
        experts: The module, which holds all experts' weights in tensors [experts, out, in].
        hidden: Its input, [tokens, hidden].
        chosen: The experts of each token, [tokens, chosen].
        shares: The weight of each in the token's output, likewise.
        change: Takes the activations and gives others, [tokens, experts * neurons]. An expert
            that a token was not sent to has 0 there, and what is given for it has no effect.

    Returns:
        [tokens, hidden].
    """
    count, _, size = experts.down_proj.shape
    # Pairs of token and expert, grouped by expert: a stable sort keeps tokens in order, so the
    # sums below add in the same order each time.
    expert, order = chosen.flatten().sort(stable=True)
    token = order // chosen.shape[1]
    lengths = torch.bincount(expert, minlength=count).tolist()
    active = []
    for rows, weight in zip(torch.split(hidden[token], lengths), experts.gate_up_proj, strict=True):
        gate, up = functional.linear(rows, weight).chunk(2, dim=-1)
        active.append(experts.act_fn(gate) * up)
    silent = hidden.new_zeros(len(hidden), count, size)
    # All neurons of all experts side by side, as `change` numbers them; 0 where a token was not.
    activations = silent.index_put((token, expert), torch.cat(active)).flatten(1)
    changed = change(activations).reshape(len(hidden), count, size)[token, expert]
    outputs = [
        functional.linear(rows, weight)
        for rows, weight in zip(torch.split(changed, lengths), experts.down_proj, strict=True)
    ]
    weighted = torch.cat(outputs) * shares.flatten()[order, None]
    return torch.zeros_like(hidden).index_add(0, token, weighted.to(hidden))


def layer_states(
    model: Any, layers: Sequence[int], *, cache: DynamicCache | None = None, **inputs: Tensor | None
) -> list[Tensor]:
    """Compute hidden states behind some layers, final norm applied, [batch, seq, hidden] each.

    Args:
        model: A causal language model.
        layers: Numbers from 0, the input's side; the last layer of the model is none of them.
        cache: As for `hidden_states`.
        inputs: Of the model.

    Raises:
        UnsupportedModelError: If the model is not a causal one of a known family.
    """
    stack = family_of(model.config, "causal").stacks[-1]
    norm = model.get_submodule(stack.norm) if stack.norm else torch.nn.Identity()
    states = model.base_model(
        **inputs,
        use_cache=cache is not None,
        past_key_values=cache,
        output_hidden_states=True,
    ).hidden_states  # the embeddings first
    return [norm(states[layer + 1]) for layer in layers]


def logits(model: Any, hidden: Tensor) -> Tensor:
    """Compute the model's own logits [n, vocab] for chosen hidden states [n, hidden]."""
    family = family_of(model.config)
    if family.objective == "seq2seq":
        if getattr(model.config, "scale_decoder_outputs", False):  # T5, where the head is tied
            hidden = hidden * model.config.d_model**-0.5
        scores: Tensor = model.get_output_embeddings()(hidden)
        return scores + getattr(model, "final_logits_bias", 0.0)
    if family.head:
        for name in family.head:
            hidden = getattr(model, name)(hidden)
        return hidden
    result: Tensor = model.get_output_embeddings()(hidden)
    cap = model.config.final_logit_softcapping if family.capped else None
    return result if cap is None else cap * torch.tanh(result / cap)
