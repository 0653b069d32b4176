"""Encoder-decoders: each reads a first text and predicts a second one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sani.models.family import Family, Mlp, Stack
from sani.models.rows.blocks import BART_SELF, separate

_T5_MLP = tuple(
    Mlp(
        tuple(f"layer.{place}.DenseReluDense.{name}" for name in names),
        f"layer.{place}.DenseReluDense.wo",
    )
    for place in (1, 2)  # behind cross-attention in the decoder
    for names in (("wi",), ("wi_0", "wi_1"))
)
_BART = Family(
    (
        Stack("model.encoder.layers", "", "encoder_layers", "encoder_attention_heads"),
        Stack("model.decoder.layers", "", "decoder_layers", "decoder_attention_heads"),
    ),
    (Mlp(("fc1",), "fc2"),),
    (BART_SELF, separate("encoder_attn.{}_proj", "q", "k", "v", "out")),
    objective="seq2seq",
    branches=False,
)
_MBART = replace(  # norms stand before attention, so each stack ends in one
    _BART,
    stacks=tuple(
        replace(stack, norm=stack.layers.replace("layers", "layer_norm")) for stack in _BART.stacks
    ),
)
_LED = replace(
    _BART,
    stacks=tuple(
        replace(stack, layers=stack.layers.replace("model.", "led.")) for stack in _BART.stacks
    ),
    attention=(
        replace(
            separate("self_attn.longformer_self_attn.{}", "query", "key", "value", "output"),
            output="self_attn.output",
            positions=tuple(
                f"self_attn.longformer_self_attn.{name}_global"
                for name in ("query", "key", "value")
            ),
        ),
        *_BART.attention,
    ),
    sdpa=False,
)
_T5 = Family(
    (
        Stack("encoder.block", "encoder.final_layer_norm"),
        Stack("decoder.block", "decoder.final_layer_norm", "num_decoder_layers"),
    ),
    _T5_MLP,
    (
        separate("layer.0.SelfAttention.{}", "q", "k", "v", "o"),
        separate("layer.1.EncDecAttention.{}", "q", "k", "v", "o"),
    ),
    objective="seq2seq",
    branches=False,
    whole=("layer.0.SelfAttention.relative_attention_bias",),  # all layers read the first's
)

ENCODER_DECODERS: Mapping[str, Family] = {
    "bart": _BART,
    "led": _LED,
    "mbart": _MBART,
    "mt5": _T5,
    "pegasus": _MBART,
    "t5": replace(_T5, scaled="scale_decoder_outputs"),
    "umt5": replace(_T5, scaled="tie_word_embeddings"),
}
