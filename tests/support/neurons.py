"""Random models of every family, and where the activations of their neurons go in."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from sani.erasing.plan import ErasePlan, PlannedNeurons
from sani.erasing.reinit import fresh_model
from sani.recipe.settings import Part
from tests.support.architectures import HEADS, tiny_config

SEED = 3
Entry = tuple[int, Part, Sequence[int]]  # layer, part, neurons
# Where the neurons' activation goes in, by model_type: list of layers, then the modules that take
# in the activation of MLP neurons and of heads, in the order in which neurons are numbered.
_LLAMA = (["model.layers"], ["mlp.down_proj"], ["self_attn.o_proj"])
_BERT = (["bert.encoder.layer"], ["output.dense"], ["attention.output.dense"])
_ROBERTA = (["roberta.encoder.layer"], *_BERT[1:])
_BIG = (["transformer.h"], ["mlp.dense_4h_to_h"], ["self_attention.dense"])
_MIXTURE = (
    ["model.layers"],
    ["mlp.experts", "mlp.shared_expert.down_proj", "mlp.down_proj"],
    ["self_attn.o_proj"],
)
OUTPUTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "bart": (
        ["model.encoder.layers", "model.decoder.layers"],
        ["fc2"],
        ["self_attn.out_proj", "encoder_attn.out_proj"],
    ),
    "bert": _BERT,
    "bloom": _BIG,
    "camembert": _ROBERTA,
    "deberta-v2": (["deberta.encoder.layer"], *_BERT[1:]),
    "distilbert": (["distilbert.transformer.layer"], ["ffn.lin2"], ["attention.out_lin"]),
    "electra": (["electra.encoder.layer"], *_BERT[1:]),
    "falcon": _BIG,
    "gemma2": _LLAMA,
    "gemma3": (["model.language_model.layers"], *_LLAMA[1:]),
    "gemma3_text": _LLAMA,
    "gpt2": (["transformer.h"], ["mlp.c_proj"], ["attn.c_proj"]),
    "gpt_neo": (["transformer.h"], ["mlp.c_proj"], ["attn.attention.out_proj"]),
    "gpt_neox": (["gpt_neox.layers"], ["mlp.dense_4h_to_h"], ["attention.dense"]),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTURE,
    "modernbert": (["model.layers"], ["mlp.Wo"], ["attn.Wo"]),
    "olmo2": _LLAMA,
    "opt": (["model.decoder.layers"], ["fc2"], ["self_attn.out_proj"]),
    "phi": (["model.layers"], ["mlp.fc2"], ["self_attn.dense"]),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2_moe": _MIXTURE,
    "qwen3": _LLAMA,
    "qwen3_moe": _MIXTURE,
    "roberta": _ROBERTA,
    "t5": (
        ["encoder.block", "decoder.block"],
        ["layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"],
        ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"],
    ),
    "xlm-roberta": _ROBERTA,
}


def random_model(name: str, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model in which every weight counts: no bias is zero and no norm is one."""
    config = tiny_config(name)
    config._experts_implementation = "eager"  # the others have no float64
    model = fresh_model(config, seed=seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=chance)
            norm = tensor.ndim == 1 and "norm" in key.lower()
            tensor.copy_(1 + 0.1 * noise if norm else 0.4 * noise)
    return model.to(dtype)


def layers_of(model: Any) -> list[str]:
    """Return the names of all layers, in the order of their numbers."""
    stacks, _, _ = OUTPUTS[model.config.model_type]
    return [
        f"{stack}.{number}" for stack in stacks for number in range(len(model.get_submodule(stack)))
    ]


def blocks_of(model: Any, layer: int, part: Part) -> list[tuple[str, int, int, int]]:
    """Return the modules of a layer that take in activations.

    Each is (name, first neuron, number of neurons, channels of each neuron).
    """
    _, mlps, attentions = OUTPUTS[model.config.model_type]
    modules, first = dict(model.named_modules()), 0
    blocks = []
    for output in mlps if part == "mlp" else attentions:
        name = f"{layers_of(model)[layer]}.{output}"
        if name not in modules:
            continue
        module = modules[name]
        if output.endswith("experts"):
            channels = module.down_proj.shape[0] * module.down_proj.shape[2]
        else:
            channels = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        heads = 2 if ".encoder." in name and model.config.model_type == "bart" else HEADS
        width = 1 if part == "mlp" else channels // heads
        blocks.append((name, first, channels // width, width))
        first += channels // width
    return blocks


def num_neurons(model: Any, layer: int, part: Part) -> int:
    return sum(neurons for _, _, neurons, _ in blocks_of(model, layer, part))


def plan(model: Any, reset: Any, *entries: Entry) -> ErasePlan:
    planned = tuple(
        PlannedNeurons(layer, part, tuple(chosen), num_neurons(model, layer, part), None)
        for layer, part, chosen in entries
    )
    return ErasePlan({"kind": "all"}, reset, SEED, planned)


def some(model: Any, layer: int, part: Part) -> list[int]:
    """Return the first and the last neuron, and some of every block; of heads, those that share."""
    total = num_neurons(model, layer, part)
    if part == "attention":
        return [0, total - 2, total - 1]
    return sorted({0, 5, total // 2, total - 9, total - 1})


def mixed(model: Any) -> list[Entry]:
    """Return neurons of two layers; all heads of one, and some of the other, of which two share."""
    last = len(layers_of(model)) - 1
    return [
        (0, "mlp", some(model, 0, "mlp")),
        (0, "attention", range(num_neurons(model, 0, "attention"))),
        (last, "mlp", some(model, last, "mlp")),
        (last, "attention", [1, *some(model, last, "attention")[1:]]),
    ]
