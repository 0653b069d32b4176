"""The files of a model folder: which go with the weights, how they are read and copied.

Whoever writes a folder copies files from the lists below and nothing else: optimizer state,
training arguments and logs of the source folder may hold records.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from sani.errors import CheckpointError
from sani.models.family import Family

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
TEMPLATES = "additional_chat_templates"  # folder of the tokenizer's templates beside its first
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # of images
CONFIG_FILES = ("config.json", "generation_config.json")
ADAPTER_FILES = ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_POINTER = b"version https://git-lfs.github.com/spec/"


def is_adapter(path: Path | str) -> bool:
    """Return whether the folder holds an adapter (PEFT) and no whole model."""
    path = Path(path)
    weights = any((path / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX))
    whole = weights and (path / "config.json").is_file()
    return (path / ADAPTER_CONFIG).is_file() and not whole


def tokenizer_files(path: Path) -> list[str]:
    """Return the paths, from a folder, of the tokenizer's files that it has."""
    more = sorted(f"{TEMPLATES}/{file.name}" for file in (path / TEMPLATES).glob("*.jinja"))
    return [name for name in (*TOKENIZER_FILES, *more) if (path / name).is_file()]


def files_beside(path: Path, family: Family) -> list[str]:
    """Return the paths, from a folder, of its files that go with the weights of such a model."""
    images = PROCESSOR_FILES if family.vision else ()
    return tokenizer_files(path) + [name for name in images if (path / name).is_file()]


def check_whole_files(path: Path) -> None:
    """Refuse a folder in which a file of the model is a dangling link or a Git LFS pointer.

    Raises:
        CheckpointError: If one is.
    """
    known = {*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES, *ADAPTER_FILES, WEIGHTS_INDEX}
    for file in sorted(path.iterdir()):
        if file.name not in known and file.suffix != ".safetensors":
            continue
        if not file.exists():
            raise CheckpointError(
                f"model folder {path}: {file.name} is a link to a file that is not there (of a Hub "
                "cache, without its blobs); copy the folder with cp -rL where it is whole, or get "
                "it with hf download --local-dir"
            )
        if file.is_file():
            with file.open("rb") as content:
                start = content.read(len(_POINTER))
            if start == _POINTER:
                raise CheckpointError(
                    f"model folder {path}: {file.name} is a Git LFS pointer and not the file "
                    "itself; run git lfs pull in the folder, or get it with hf download"
                )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a model folder; empty where it holds no object.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        data = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(
            f"model folder {path}: {name} is not valid JSON in UTF-8 without a byte order mark; "
            "copy it again, or correct it"
        ) from None
    return data if isinstance(data, dict) else {}


def read_card(path: Path) -> dict[str, Any]:
    """Return the metadata of a folder's model card; empty without a card that can be read."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8")
        return dict(vars(ModelCard(text, ignore_metadata_errors=True).data))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files of a folder, given by their paths from there."""
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def copy_large(source: Path, target: Path) -> None:
    """Copy a file inside the kernel; where the file system can, the copy is a reflink.

    Never a hard link: to write to the copy leaves the source as it is.
    """
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            remaining = os.fstat(reader.fileno()).st_size
            while remaining > 0:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), remaining)
                if copied == 0:
                    raise OSError
                remaining -= copied
    except (OSError, AttributeError):  # another file system, or a system without the call
        shutil.copyfile(source, target)
