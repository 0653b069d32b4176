"""The one place that reads and writes model folders.

A folder is written beside its final place and renamed, so it exists whole or not at all. It gets
the weights as safetensors and an allow-list of tokenizer and configuration files; nothing else of
the source folder goes in (optimizer state, training arguments and logs may hold records).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sani.errors import CheckpointError
from sani.families import is_masked

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
# Families that number positions from behind the padding token.
OFFSET_POSITIONS = ("camembert", "roberta", "xlm-roberta")
# Parts of a pretrained masked model that no prediction of a token passes through.
UNUSED_PARTS = ("pooler", "seq_relationship", "position_ids")
CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass
class Checkpoint:
    """A model in evaluation mode, its tokenizer, and the folder they came from."""

    model: Any
    tokenizer: Any
    path: Path

    def weights_digest(self) -> str:
        """SHA-256 over every tensor's name, type, shape and bytes, in name order."""
        state = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.view(torch.uint8).numpy() if tensor.ndim else repr(tensor).encode())
        return state.hexdigest()

    @property
    def context_tokens(self) -> int:
        """The longest input the model takes, or its attention window where that is shorter."""
        config = self.model.config
        sliding = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True) or is_masked(config):
            sliding = None  # ModernBERT's window is of some layers only
        positions = int(config.max_position_embeddings)
        if config.model_type in OFFSET_POSITIONS:
            positions -= config.pad_token_id + 1
        return min(positions, int(sliding or 2**62))


def check_folder(path: Path | str) -> Path:
    """The folder, if it looks like a checkpoint that sani reads; loads nothing.

    Raises:
        CheckpointError: If it is missing, a hub name, a quantized or pickled checkpoint, or an
            adapter without its base.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        hub = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists():
            hub = (
                f". If it is a name on the Hugging Face hub: hf download {path} --local-dir "
                f"models/{path.name}, on a machine with a network, then give models/{path.name}"
            )
        raise CheckpointError(
            f"model folder {path} {what}; sani reads local folders only (no download): copy "
            f"config.json, model.safetensors and the tokenizer files into one{hub}"
        )
    names = {file.name for file in path.iterdir()}
    if {"config.json", "adapter_config.json"} <= names:
        # transformers would load the adapter unasked, and save nothing but the adapter.
        raise CheckpointError(
            f"model folder {path} holds an adapter beside a model; merge it "
            "(peft: merge_and_unload), or remove the adapter's files if it is merged already"
        )
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise CheckpointError(
                f"model folder {path} holds an adapter without its base; merge it first "
                "(peft: merge_and_unload), then give the merged folder"
            )
        raise CheckpointError(f"model folder {path} has no config.json; is it a checkpoint folder?")
    if not names & {"model.safetensors", "model.safetensors.index.json"}:
        found = (
            "pickled weights (.bin), which sani never loads"
            if any(name.endswith((".bin", ".pt", ".pth")) for name in names)
            else "no weights"
        )
        raise CheckpointError(
            f"model folder {path}: expected model.safetensors, found {found}; save it with "
            "save_pretrained(..., safe_serialization=True)"
        )
    if "tokenizer.json" not in names:
        raise CheckpointError(
            f"model folder {path} has no tokenizer.json; sani needs a fast tokenizer, which alone "
            "can tell where a token stands in the text: save one with AutoTokenizer(...)"
            ".save_pretrained"
        )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"model folder {path}: config.json is not valid JSON") from None
    if isinstance(config, dict) and config.get("quantization_config"):
        raise CheckpointError(
            f"model folder {path} is quantized; neurons of quantized weights cannot be reset: "
            "give the checkpoint it was quantized from"
        )
    return path


def load_checkpoint(path: Path | str, *, device: torch.device | None = None) -> Checkpoint:
    """Load a causal or masked language model and its fast tokenizer, in float32.

    A family of `sani.families.MASKED` is loaded as a masked model: it can be audited.

    Raises:
        CheckpointError: If the folder is not a checkpoint that sani reads, or the weights hold
            NaN or infinities, or the tokenizer has more tokens than the model.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
    )

    path = check_folder(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        loader = AutoModelForMaskedLM if is_masked(config) else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        loaded: Any = loader.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",  # whatever config.json asks for
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(
            f"model folder {path} cannot be loaded ({type(error).__name__}); are config.json, the "
            "weights and the tokenizer of one model, and whole?"
        ) from error
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise CheckpointError(
            f"model folder {path}: {len(info['missing_keys'])} tensors are missing and "
            f"{len(info['mismatched_keys'])} have another shape than config.json says"
        )
    unexpected = [
        name
        for name in info["unexpected_keys"]
        if not is_masked(config) or not any(part in name for part in UNUSED_PARTS)
    ]
    if unexpected:
        raise CheckpointError(
            f"model folder {path}: {len(unexpected)} tensors have no place in the "
            "model that config.json describes, so an audit would not be of the whole checkpoint; "
            "check num_hidden_layers and the like"
        )
    _check_loaded(model, tokenizer, path)
    return Checkpoint(model.to(device or torch.device("cpu")).eval(), tokenizer, path)


def _check_loaded(model: Any, tokenizer: Any, path: Path) -> None:
    if not tokenizer.is_fast:
        raise CheckpointError(f"model folder {path}: the tokenizer is not a fast one")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"model folder {path}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; "
            "they are not of one checkpoint"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"model folder {path}: tensor '{name}' holds NaN or infinity")


def folder_digest(path: Path | str, *, weights_only: bool) -> str:
    """SHA-256 over a checkpoint folder's weight files, and its configuration and tokenizer files.

    Args:
        path: The folder.
        weights_only: Leave out configuration and tokenizer.
    """
    path = check_folder(path)
    names = [file.name for file in path.glob("*.safetensors")]
    if not weights_only:
        names += [name for name in (*TOKENIZER_FILES, *CONFIG_FILES) if (path / name).is_file()]
    state = hashlib.sha256()
    for name in sorted(names):
        with (path / name).open("rb") as content:
            state.update(name.encode() + hashlib.file_digest(content, "sha256").digest())
    return state.hexdigest()


def architecture_difference(one: Checkpoint, other: Checkpoint) -> str | None:
    """None if both have the same tensors, shapes, heads and vocabulary; else what differs."""
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in side.model.state_dict().items()}
        for side in (one, other)
    ]
    differing = [name for name in shapes[0] if shapes[0][name] != shapes[1].get(name)]
    if differing or len(shapes[0]) != len(shapes[1]):
        name = differing[0] if differing else "the number of tensors"
        return f"they differ in {name}"
    heads = [side.model.config.num_attention_heads for side in (one, other)]
    if heads[0] != heads[1]:  # the same shapes cut otherwise: no head means the same in both
        return "they differ in num_attention_heads"
    if one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        return "their tokenizers have different vocabularies"
    return None


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, *, finish: Callable[[Path], None] | None = None
) -> None:
    """Write weights, configuration and tokenizer to ``folder``, whole or not at all.

    Args:
        checkpoint: What to write; its tokenizer files are copied from ``checkpoint.path``.
        folder: Must not exist yet, or be one that this function may replace.
        finish: Adds files; called with the staging folder just before it is renamed.

    Raises:
        CheckpointError: If the place cannot be written.
    """
    folder = Path(folder)
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        checkpoint.model.save_pretrained(staging, safe_serialization=True)
        for name in TOKENIZER_FILES:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, staging / name)
        if finish is not None:
            finish(staging)
        for file in staging.iterdir():
            _flush(file)
        replace_folder(staging, folder)
    except (OSError, SafetensorError) as error:  # safetensors has a full disk as its own error
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise CheckpointError(
            f"cannot write {folder} ({reason}); nothing was left half-written: free space or "
            "choose another --out"
        ) from None
    finally:  # whatever `finish` raised, or an interrupt
        shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Rename ``new`` to ``place``; what stood there is removed once the new one stands."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    _flush(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it: whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path} ({error.strerror or type(error).__name__}); free space or "
            "choose another --out"
        ) from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
