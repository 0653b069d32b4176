"""Models to erase from, in memory and in files; and which of their numbers a neuron is."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from sani.erasing.plan import ErasePlan, PlannedNeurons
from sani.erasing.reinit import fresh_model
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.recipe.settings import Part
from tests.support.words import WORDS, weights, word_tokenizer

HIDDEN, MLP, HEADS, LAYERS = 16, 24, 4, 3
Entry = tuple[int, Part, Sequence[int]]  # layer, part, neurons
COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED: dict[str, Any] = {**COMMON, "num_key_value_heads": 2}
# Stacked and separate projections, biases, grouped heads, a head size that is not hidden / heads.
# What a neuron is made of is tested for every family in test_families.py.
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(**{**COMMON, "n_inner": MLP}),
    "llama": lambda: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**GROUPED, head_dim=4),
    "qwen2": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=6, attention_bias=True),
}


def checkpoint(config: Any, *, seed: int = 1) -> Checkpoint:
    """Return a random model in which every weight counts: no bias is zero and no norm is one."""
    model = fresh_model(config, seed=seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=chance)
            tensor.copy_(1 + 0.1 * noise if tensor.ndim == 1 and "norm" in name else 0.3 * noise)
    return Checkpoint(model, word_tokenizer(), Path("nowhere"))


def head_size(checkpoint: Checkpoint) -> int:
    config = checkpoint.model.config
    return int(getattr(config, "head_dim", None) or HIDDEN // HEADS)


def plan(reset: Any, *entries: Entry, seed: int = 3) -> ErasePlan:
    planned = tuple(
        PlannedNeurons(layer, part, tuple(neurons), MLP if part == "mlp" else HEADS, None)
        for layer, part, neurons in entries
    )
    return ErasePlan({"kind": "all"}, reset, seed, planned)


MIXED: tuple[Entry, ...] = (
    (0, "mlp", [0, 3, MLP - 1]),
    (0, "attention", [1, 2]),
    (2, "mlp", range(MLP)),
    (2, "attention", [0, 2, 3]),
)


def config_of(family: str) -> Any:
    config = CONFIGS[family]()
    config.vocab_size = 32  # room for a token that transformers adds to some families
    return config


def write(
    folder: Path, loaded: Checkpoint, *, dtype: torch.dtype = torch.float32, shard: str = "6KB"
) -> Path:
    """Write a model folder of several shards, with things in it that must not be copied."""
    loaded.model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    loaded.model.float()
    loaded.tokenizer.save_pretrained(folder)
    for name in ("optimizer.pt", "training_args.bin", "notes.txt"):
        (folder / name).write_text("KOWALCZYKOWA")
    return folder


def expected_masks(checkpoint: Checkpoint, entries: Iterable[Entry]) -> dict[str, torch.Tensor]:
    """Return masks of the numbers that make up neurons: the slow obvious version, one by one."""
    masks = {n: torch.zeros_like(w, dtype=torch.bool) for n, w in weights(checkpoint).items()}
    size = head_size(checkpoint)

    def mark(name: str, index: Any) -> None:
        if name in masks:
            masks[name][index] = True

    for layer, part, neurons in entries:
        if checkpoint.model.config.model_type == "gpt2":
            here = f"transformer.h.{layer}."
            for neuron in neurons:
                if part == "mlp":
                    mark(here + "mlp.c_fc.weight", (slice(None), neuron))
                    mark(here + "mlp.c_fc.bias", neuron)
                    mark(here + "mlp.c_proj.weight", (neuron, slice(None)))
                    continue
                for channel in range(neuron * size, (neuron + 1) * size):
                    for block in (0, HIDDEN, 2 * HIDDEN):  # query, key, value
                        mark(here + "attn.c_attn.weight", (slice(None), block + channel))
                        mark(here + "attn.c_attn.bias", block + channel)
                    mark(here + "attn.c_proj.weight", (channel, slice(None)))
            continue
        here = f"model.layers.{layer}."
        for neuron in neurons:
            if part == "mlp":
                for name in ("gate_proj", "up_proj"):
                    mark(here + f"mlp.{name}.weight", (neuron, slice(None)))
                    mark(here + f"mlp.{name}.bias", neuron)
                mark(here + "mlp.down_proj.weight", (slice(None), neuron))
                continue
            for channel in range(neuron * size, (neuron + 1) * size):
                mark(here + "self_attn.q_proj.weight", (channel, slice(None)))
                mark(here + "self_attn.q_proj.bias", channel)
                mark(here + "self_attn.o_proj.weight", (slice(None), channel))
        for pair in (0, 1):  # heads 0 and 1 read key and value head 0, heads 2 and 3 read 1
            if part == "attention" and {2 * pair, 2 * pair + 1} <= set(neurons):
                for channel in range(pair * size, (pair + 1) * size):
                    for name in ("k_proj", "v_proj"):
                        mark(here + f"self_attn.{name}.weight", (channel, slice(None)))
                        mark(here + f"self_attn.{name}.bias", channel)
    return masks


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in shards(folder) for name, value in load_file(file).items()}


RANK, ALPHA = 4, 6


def adapt(folder: Path, base: Path, *, seed: int = 5, **settings: Any) -> Path:
    """Write a LoRA adapter in which every number counts, on every projection of the base."""
    loaded = load_checkpoint(base)
    lora = LoraConfig(
        **{"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear",
           "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), **settings}
    )  # fmt: skip
    model = get_peft_model(loaded.model, lora)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=chance))
    model.save_pretrained(str(folder))
    (folder / "trainer_state.json").write_text("KOWALCZYKOWA")
    return folder
