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
    [
        "mlp.experts",
        "mlp.shared_expert.down_proj",
        "mlp.shared_experts.down_proj",
        "mlp.down_proj",
    ],
    ["self_attn.o_proj"],
)
_TOWER = (["model.language_model.layers"], *_LLAMA[1:])
_T5 = (
    ["encoder.block", "decoder.block"],
    ["layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"],
    ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"],
)
_BART = (
    ["model.encoder.layers", "model.decoder.layers"],
    ["fc2"],
    ["self_attn.out_proj", "encoder_attn.out_proj"],
)
OUTPUTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "bart": _BART,
    "bert": _BERT,
    "big_bird": _BERT,
    "biogpt": (["biogpt.layers"], ["fc2"], ["self_attn.out_proj"]),
    "bloom": _BIG,
    "camembert": _ROBERTA,
    "cohere2": _LLAMA,
    "deberta-v2": (["deberta.encoder.layer"], *_BERT[1:]),
    "distilbert": (["distilbert.transformer.layer"], ["ffn.lin2"], ["attention.out_lin"]),
    "electra": (["electra.encoder.layer"], *_BERT[1:]),
    "ernie": (["ernie.encoder.layer"], *_BERT[1:]),
    "ernie4_5": _LLAMA,
    "eurobert": _LLAMA,
    "exaone4": _LLAMA,
    "falcon": _BIG,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3": _TOWER,
    "gemma3_text": _LLAMA,
    "gemma4": (_TOWER[0], ["mlp.down_proj", "experts"], _LLAMA[2]),
    "gemma4_text": _LLAMA,
    "deepseek_v3": _MIXTURE,
    "falcon_h1": (["model.layers"], ["feed_forward.down_proj"], _LLAMA[2]),
    "glm4": _LLAMA,
    "glm4_moe": _MIXTURE,
    "gpt_oss": _MIXTURE,
    "granitemoehybrid": (
        ["model.layers"],
        ["block_sparse_moe.experts", "shared_mlp.output_linear"],
        _LLAMA[2],
    ),
    "lfm2": (["model.layers"], ["feed_forward.w2"], ["self_attn.out_proj"]),
    "llama4_text": (
        ["model.layers"],
        ["feed_forward.experts", "feed_forward.shared_expert.down_proj", "feed_forward.down_proj"],
        _LLAMA[2],
    ),
    "nemotron_h": (
        ["model.layers"],
        ["mixer.experts", "mixer.shared_experts.down_proj", "mixer.down_proj"],
        ["mixer.o_proj"],
    ),
    "olmoe": _MIXTURE,
    "phimoe": _MIXTURE,
    "qwen3_5": _TOWER,
    "qwen3_5_moe": (_TOWER[0], *_MIXTURE[1:]),
    "qwen3_5_moe_text": _MIXTURE,
    "qwen3_5_text": _LLAMA,
    "qwen3_next": _MIXTURE,
    "gpt2": (["transformer.h"], ["mlp.c_proj"], ["attn.c_proj"]),
    "gpt_bigcode": (["transformer.h"], ["mlp.c_proj"], ["attn.c_proj"]),
    "gpt_neo": (["transformer.h"], ["mlp.c_proj"], ["attn.attention.out_proj"]),
    "gpt_neox": (["gpt_neox.layers"], ["mlp.dense_4h_to_h"], ["attention.dense"]),
    "granite": _LLAMA,
    "led": (
        ["led.encoder.layers", "led.decoder.layers"],
        ["fc2"],
        ["self_attn.output", "self_attn.out_proj", "encoder_attn.out_proj"],
    ),
    "llama": _LLAMA,
    "longformer": (["longformer.encoder.layer"], *_BERT[1:]),
    "mbart": _BART,
    "megatron-bert": _BERT,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "mistral3": _TOWER,
    "mixtral": _MIXTURE,
    "modernbert": (["model.layers"], ["mlp.Wo"], ["attn.Wo"]),
    "mpnet": (["mpnet.encoder.layer"], ["output.dense"], ["attention.attn.o"]),
    "mt5": _T5,
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "opt": (["model.decoder.layers"], ["fc2"], ["self_attn.out_proj"]),
    "pegasus": _BART,
    "phi": (["model.layers"], ["mlp.fc2"], ["self_attn.dense"]),
    "phi3": _LLAMA,
    "phi4_multimodal": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2_moe": _MIXTURE,
    "qwen3": _LLAMA,
    "qwen3_moe": _MIXTURE,
    "qwen3_vl": _TOWER,
    "roberta": _ROBERTA,
    "roformer": (["roformer.encoder.layer"], *_BERT[1:]),
    "smollm3": _LLAMA,
    "starcoder2": (["model.layers"], ["mlp.c_proj"], ["self_attn.o_proj"]),
    "t5": _T5,
    "umt5": _T5,
    "xlm-roberta": _ROBERTA,
}


def random_model(name: str, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model in which every weight counts: no bias is zero and no norm is one."""
    if name in ("led", "longformer"):  # whose softmax is in float32, where the mask is infinite
        dtype = torch.float32
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


def turned(module: Any) -> bool:
    """Return whether a module of experts has weights [in, out] (GPT-OSS, Llama 4)."""
    return bool(getattr(module, "is_transposed", not hasattr(module, "has_gate")))


def neurons_of_experts(module: Any) -> int:
    """Return the number of neurons of each expert of a module."""
    return int(module.down_proj.shape[1 if turned(module) else 2])


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
            channels = len(module.down_proj) * neurons_of_experts(module)
        else:
            channels = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        of_source = model.config.is_encoder_decoder and ".encoder." in name
        heads = model.config.encoder_attention_heads if of_source and "fc2" in mlps else HEADS
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


def layers_with(model: Any, part: Part) -> list[int]:
    """Return the layers that have neurons, or heads: those of linear attention have none."""
    return [n for n in range(len(layers_of(model))) if num_neurons(model, n, part)]


def mixed(model: Any) -> list[Entry]:
    """Return neurons of two layers; all heads of one, and some of the other, of which two share."""
    neurons, heads = layers_with(model, "mlp"), layers_with(model, "attention")
    first, last = heads[0], heads[-1]
    entries: dict[tuple[int, Part], Sequence[int]] = {
        (layer, "mlp"): some(model, layer, "mlp") for layer in (neurons[0], neurons[-1])
    }
    entries[first, "attention"] = range(num_neurons(model, first, "attention"))
    entries[last, "attention"] = [1, *some(model, last, "attention")[1:]]
    return [(*site, chosen) for site, chosen in sorted(entries.items())]
