"""Masked language models: each predicts masked tokens from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sani.models.family import Attention, Family, Mlp, Stack
from sani.models.rows.blocks import LLAMA, separate, stacked

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

ENCODERS: Mapping[str, Family] = {
    "bert": _BERT,
    "big_bird": replace(_BERT, sdpa=False),
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
        read_from_outside=("deberta.encoder.rel_embeddings",),
    ),
    "distilbert": Family(
        (Stack("distilbert.transformer.layer"),),
        (Mlp(("ffn.lin1",), "ffn.lin2"),),
        (separate("attention.{}_lin", "q", "k", "v", "out"),),
        objective="masked",
        head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ),
    "electra": replace(
        _BERT,
        stacks=(Stack("electra.encoder.layer"),),
        head=("generator_predictions", "generator_lm_head"),
    ),
    "ernie": replace(_BERT, stacks=(Stack("ernie.encoder.layer"),)),
    "eurobert": replace(LLAMA, objective="masked", head=("lm_head",)),
    "longformer": replace(
        _ROBERTA,
        stacks=(Stack("longformer.encoder.layer"),),
        attention=(
            replace(
                _BERT.attention[0],
                positions=tuple(
                    f"attention.self.{name}_global" for name in ("query", "key", "value")
                ),
            ),
        ),
        sdpa=False,
    ),
    "megatron-bert": replace(
        _BERT, stacks=(Stack("bert.encoder.layer", "bert.encoder.ln"),), sdpa=False
    ),
    "modernbert": Family(
        (Stack("model.layers", "model.final_norm"),),
        (Mlp(("mlp.Wi", "mlp.Wi"), "mlp.Wo"),),
        (stacked("attn.Wqkv", "attn.Wo"),),
        objective="masked",
        head=("head", "decoder"),
    ),
    "mpnet": replace(
        _ROBERTA,
        stacks=(Stack("mpnet.encoder.layer"),),
        attention=(separate("attention.attn.{}", "q", "k", "v", "o"),),
        sdpa=False,
    ),
    "roberta": _ROBERTA,
    "roformer": replace(_BERT, stacks=(Stack("roformer.encoder.layer"),), sdpa=False),
    "xlm-roberta": _ROBERTA,
}
