"""Model folders as a training run leaves them, and a disk that is too small for them."""

import errno
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from sani.erasing.reinit import fresh_model
from tests.support.words import word_tokenizer

WORDS = ["<s>", "</s>", "name", *"abcdefgh"]
COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "tied": lambda: LlamaConfig(**COMMON, tie_word_embeddings=True),
    "untied": lambda: LlamaConfig(**COMMON, tie_word_embeddings=False),
}
# What training leaves in a folder, each with a canary in it.
CANARY = "KOWALCZYKOWA"
LEFTOVERS = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "trainer_state.json",
    "README.md",
    "train.log",
    "notes.txt",
    "processor_config.json",
    "modeling_custom.py",
    ".ipynb_checkpoints/train.ipynb",
    "runs/events.out.tfevents.1",
    "logs/stdout.log",
    "checkpoint-10/model.safetensors",
]


def write_source(
    folder: Path, config: PretrainedConfig, *, words: Sequence[str] = WORDS, seed: int = 1
) -> Path:
    """Write a folder as a training run leaves it, of a random model without a zero in it."""
    folder.mkdir(parents=True)
    word_tokenizer(words).save_pretrained(folder)
    model = fresh_model(config, seed=seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=chance))
    model.save_pretrained(folder)
    return folder


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``limit`` bytes: the kernel refuses the write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_space(*args: Any, **kwargs: Any) -> NoReturn:
    """Stand in for a function that writes: the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder and below, by its path from there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
