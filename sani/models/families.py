"""The one place that knows model families: what their modules are called, and how to call them.

A family is one row of `FAMILIES`; `sani.models.family` says what a row holds. To add one, add its
row to the module of `sani.models.rows` for its kind, and a tiny configuration to the tests, which
then try every selector, reset and figure on it. `sani.models.neurons` finds a family's neurons by
its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from sani.errors import UnsupportedModelError
from sani.models.family import Family, Objective
from sani.models.rows.decoders import DECODERS
from sani.models.rows.encoder_decoders import ENCODER_DECODERS
from sani.models.rows.encoders import ENCODERS
from sani.models.rows.hybrids import HYBRIDS
from sani.models.rows.mixtures import MIXTURES
from sani.models.unlisted import TOKENS, check_reading, unlisted_family

FAMILIES: Mapping[str, Family] = {
    **DECODERS, **MIXTURES, **HYBRIDS, **ENCODERS, **ENCODER_DECODERS,
}  # fmt: skip


# Families that are audited and, for a reason of their own, not erased.
NOT_ERASED = {"albert": "all its layers are one set of weights, so to erase one is to erase all"}


def find_family(model_type: str) -> Family | None:
    """Return the row of a family, or one to audit it with, or None if it cannot be read."""
    return FAMILIES.get(model_type) or unlisted_family(model_type)


def family_of(config: Any, *objectives: Objective) -> Family:
    """Return the row of a checkpoint's family; of one that is not listed, a row to audit it with.

    Args:
        config: Of the checkpoint.
        objectives: Objectives that the caller can handle; all, if none is given.

    Raises:
        UnsupportedModelError: If there is none, or the caller cannot handle it.
    """
    model_type = str(getattr(config, "model_type", "unknown"))
    family = find_family(model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model_type '{model_type}' is not supported: it is not in the table of families "
            "(docs/models.md), and transformers has no causal or masked language model of this type"
        )
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


def listed_family(config: Any, *objectives: Objective) -> Family:
    """Return the row of a checkpoint's family, whose layers are known; errors as of `family_of`.

    Raises:
        UnsupportedModelError: Also if the family is only audited.
    """
    family = family_of(config, *objectives)
    if not family.listed:
        model_type = config.model_type
        reason = NOT_ERASED.get(
            model_type, "its layers are not known. A family is one row in sani/models/rows"
        )
        raise UnsupportedModelError(
            f"model_type '{model_type}' can be audited, but not erased, repaired or attacked: "
            f"{reason}"
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
    return sum(getattr(sizes, stack.length) for stack in listed_family(config).stacks)


def is_masked(config: Any) -> bool:
    """Return whether the model predicts masked tokens from both sides, not the next one."""
    family = find_family(str(getattr(config, "model_type", "")))
    decoder = getattr(config, "is_decoder", False)
    return family is not None and family.objective == "masked" and not decoder


def decoder_start(config: Any) -> int | None:
    """Return the token that the decoder of a second text begins with; None for other models."""
    family = FAMILIES.get(str(getattr(config, "model_type", "")))
    two_texts = family is not None and family.objective == "seq2seq"
    if not two_texts:
        return None
    # mBART's shifts the end token to the front.
    start = config.decoder_start_token_id
    return int(config.eos_token_id if start is None else start)


def base_of(model: Any) -> Any:
    """Return the part of a model that gives hidden states.

    Raises:
        UnsupportedModelError: If it has none of its own.
    """
    base = model.base_model
    if base is model:  # Llama 4 names another part, which it has with images only
        base = getattr(model, "model", None)
    if base is None:
        raise UnsupportedModelError(
            f"model_type '{model.config.model_type}' cannot be audited: hidden states and logits "
            "are not computed by two parts of it"
        )
    return base


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
    cached: dict[str, Any] = {}
    if family_of(model.config, "causal", "masked").objective == "causal":
        cached = {"use_cache": cache is not None}
    if cache is not None:
        cached["past_key_values"] = cache
    hidden: Tensor = base_of(model)(**inputs, **cached).last_hidden_state
    return hidden


def run_experts(
    experts: Any,
    hidden: Tensor,
    chosen: Tensor | None = None,
    shares: Tensor | None = None,
    *,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute the output of a module of experts, its neurons' activations changed on the way.

    Args:
        experts: The module, which holds all experts' weights in one tensor a projection.
        hidden: Its input, [tokens, hidden]; [experts * tokens, hidden] where ``chosen`` is absent:
            then each expert has an input of its own (Llama 4), 0 for a token that it does not get.
        chosen: The experts of each token, [tokens, chosen].
        shares: The weight of each in the token's output, likewise.
        change: Takes the activations and gives others, [tokens, experts * neurons]. An expert
            that a token was not sent to has 0 there, and what is given for it has no effect.

    Returns:
        Of the shape of ``hidden``.
    """
    count = len(experts.down_proj)
    if chosen is None or shares is None:
        inputs = hidden.reshape(count, -1, hidden.shape[-1])
        gate, up = torch.bmm(inputs, experts.gate_up_proj).chunk(2, dim=-1)
        active = (up * experts.act_fn(gate)).transpose(0, 1)  # [tokens, experts, neurons]
        changed = change(active.flatten(1)).reshape(active.shape).transpose(0, 1)
        return torch.bmm(changed, experts.down_proj).reshape(hidden.shape)
    # Pairs of token and expert, grouped by expert: a stable sort keeps tokens in order, so the
    # sums below add in the same order each time.
    expert, order = chosen.flatten().sort(stable=True)
    token = order // chosen.shape[1]
    lengths = torch.bincount(expert, minlength=count).tolist()
    pieces = [
        _activations(experts, number, rows)
        for number, rows in enumerate(torch.split(hidden[token], lengths))
    ]
    silent = hidden.new_zeros(len(hidden), count, pieces[0].shape[-1])
    # All neurons of all experts side by side, as `change` numbers them; 0 where a token was not.
    activations = silent.index_put((token, expert), torch.cat(pieces)).flatten(1)
    changed = change(activations).reshape(silent.shape)[token, expert]
    outputs = [
        _projected(experts, "down_proj", number, rows)
        for number, rows in enumerate(torch.split(changed, lengths))
    ]
    weighted = torch.cat(outputs) * shares.flatten()[order, None]
    return torch.zeros_like(hidden).index_add(0, token, weighted.to(hidden))


def _activations(experts: Any, number: int, rows: Tensor) -> Tensor:
    """Compute what goes into one expert's output projection, [tokens, neurons]."""
    if not experts.has_gate:
        active: Tensor = experts.act_fn(_projected(experts, "up_proj", number, rows))
    else:
        active = experts._apply_gate(_projected(experts, "gate_up_proj", number, rows))
    return active


def _projected(experts: Any, name: str, number: int, rows: Tensor) -> Tensor:
    weight = getattr(experts, name)[number]
    bias = getattr(experts, f"{name}_bias")[number] if experts.has_bias else None
    return functional.linear(rows, weight.T if experts.is_transposed else weight, bias)


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
    stack = listed_family(model.config, "causal").stacks[-1]
    norm = model.get_submodule(stack.norm) if stack.norm else torch.nn.Identity()
    states = base_of(model)(
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
        if family.scaled and getattr(model.config, family.scaled, False):
            hidden = hidden * model.config.d_model**-0.5
        scores: Tensor = model.get_output_embeddings()(hidden)
        return scores + getattr(model, "final_logits_bias", 0.0)
    if family.own_head:
        return _behind_the_base(model, hidden)
    if family.head:
        for name in family.head:
            hidden = getattr(model, name)(hidden)
        return hidden
    result: Tensor = model.get_output_embeddings()(hidden)
    return result


def check_reads(model: Any) -> None:
    """Refuse a loaded model of a family that is not listed and cannot be read; else do nothing.

    Raises:
        UnsupportedModelError: With the reason.
    """
    family = family_of(model.config)
    if family.listed:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 1 + TOKENS, device=model.device)[None] % rows
    with torch.no_grad():
        pieces = logits(model, hidden_states(model, input_ids=ids)[0])[None]
    check_reading(model, ids, pieces, causal=family.objective == "causal")


class _States(BaseModelOutput):
    """The hidden states that a base gives; whatever else a family's base gives is absent."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _behind_the_base(model: Any, hidden: Tensor) -> Tensor:
    """Run the model's own code behind its last hidden states: [n, hidden] to [n, vocab].

    Its base, which gives hidden states, is not run; it returns those that are given.
    """
    base, states = base_of(model), hidden[None]
    base.forward = lambda *inputs, **options: _States(last_hidden_state=states)
    try:
        # By the class: who shards a model puts work in the place of its forward pass.
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=hidden.device)
        result: Tensor = type(model).forward(model, input_ids=ids).logits[0]
    finally:
        del base.forward
    return result
