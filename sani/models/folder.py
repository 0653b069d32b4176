"""A model folder: which files it has, what is refused, and its digests; no weight is loaded.

A folder holds a model of its own or an adapter (PEFT) on a base. `open_folder` checks it once and
gives a `ModelFolder`, which reads its configuration and computes its digests at most once. Whoever
writes a folder copies files from the lists below and nothing else: optimizer state, training
arguments and logs of the source folder may hold records.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from huggingface_hub import ModelCard

from sani.errors import CheckpointError
from sani.machine.device import quiet_libraries
from sani.models.families import family_of
from sani.models.family import Family
from sani.models.tokenizers import switch_off_random_steps
from sani.models.weight_files import check_one_set

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
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # of images
CONFIG_FILES = ("config.json", "generation_config.json")
ADAPTER_FILES = ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")  # of a model, or owner and model
QUANTIZERS = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder. Make it with `open_folder`.

    Everything below is read at most once, so one object stands for the folder as it was.

    Attributes:
        path: The folder.
        base: Folder of the model that it is an adapter on; None for a model of its own.
    """

    path: Path
    base: ModelFolder | None = None

    @property
    def is_adapter(self) -> bool:
        """Return whether the folder holds an adapter and no model of its own."""
        return self.base is not None

    @property
    def whole(self) -> ModelFolder:
        """The folder that holds a whole model: itself, or the base of an adapter."""
        return self.base or self

    @cached_property
    def config(self) -> Any:
        """Configuration of the model, of an adapter's base.

        Raises:
            UnsupportedModelError: If the family is not one of `sani.models.families`.
            CheckpointError: If it cannot be read.
        """
        from transformers import AutoConfig

        path = self.whole.path
        model_type = read_json(path, "config.json").get("model_type", "unknown")
        # The family first: transformers may not know it either, and says so less clearly.
        family_of(SimpleNamespace(model_type=model_type))
        try:
            return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise CheckpointError(
                f"model folder {path}: config.json cannot be read ({type(error).__name__})"
            ) from None

    @cached_property
    def family(self) -> Family:
        """The row of `sani.models.families` that the model is of; errors as of `config`."""
        return family_of(self.config)

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files of the weights, of an adapter its own, in name order.

        Raises:
            CheckpointError: If the index is broken or names files that are not there.
        """
        single = self.path / (ADAPTER_WEIGHTS if self.is_adapter else WEIGHTS)
        if single.is_file():
            return (single,)
        names = _indexed(self.path)
        for name in names:
            if Path(name).name != name or not (self.path / name).is_file():
                raise CheckpointError(
                    f"model folder {self.path}: {WEIGHTS_INDEX} names {name}, which is not there; "
                    "copy the whole checkpoint"
                )
        if not names:
            raise CheckpointError(f"model folder {self.path}: {WEIGHTS_INDEX} names no file")
        return tuple(self.path / name for name in names)

    @property
    def tokenizer_path(self) -> Path:
        """The folder with the tokenizer: an adapter's own goes before its base's."""
        return self.path if (self.path / "tokenizer.json").is_file() else self.whole.path

    @cached_property
    def begin_tokens(self) -> tuple[int, ...]:
        """Begin tokens that ``config.json`` and ``generation_config.json`` name, each once.

        A tokenizer may name none, or another one, and training may have put these before a text.
        """
        path, tokens = self.whole.path, []
        for name in CONFIG_FILES:
            values = read_json(path, name) if (path / name).is_file() else {}
            nested = values.get("text_config")
            for part in (values, nested if isinstance(nested, dict) else {}):
                token = part.get("bos_token_id")
                if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
                    tokens.append(token)
        return tuple(dict.fromkeys(tokens))

    def load_tokenizer(self) -> Any:
        """Load the fast tokenizer, without its random steps.

        Raises:
            CheckpointError: If it cannot be loaded.
        """
        return self.load_tokenizer_and_steps()[0]

    def load_tokenizer_and_steps(self) -> tuple[Any, tuple[str, ...]]:
        """Load the tokenizer; also return its random steps that were switched off, in words."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.tokenizer_path, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception as error:
            raise CheckpointError(
                f"model folder {self.tokenizer_path}: the tokenizer cannot be loaded "
                f"({type(error).__name__}); save it again with save_pretrained"
            ) from error
        return tokenizer, switch_off_random_steps(tokenizer)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 over the names and contents of the weight files."""
        return self._digest_of(self._weight_digests)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over weight, configuration and tokenizer files; without those of the base."""
        names = (*TOKENIZER_FILES, *CONFIG_FILES, ADAPTER_CONFIG)
        others = {name: _digest(self.path / name) for name in names if (self.path / name).is_file()}
        return self._digest_of(self._weight_digests | others)

    def check_unchanged(self) -> None:
        """Refuse a folder whose files are not those of `digest` any more.

        Raises:
            CheckpointError: If one was changed, added or removed since.
        """
        if replace(self).digest != self.digest:
            raise CheckpointError(
                f"model folder {self.path} was changed while sani read it, so no figure would be "
                "of the files that lie there now; wait until nothing writes there, and start again"
            )

    @cached_property
    def _weight_digests(self) -> dict[str, bytes]:
        return {file.name: _digest(file) for file in self.path.glob("*.safetensors")}

    @staticmethod
    def _digest_of(files: dict[str, bytes]) -> str:
        state = hashlib.sha256()
        for name, digest in sorted(files.items()):
            state.update(name.encode() + digest)
        return state.hexdigest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def open_folder(path: Path | str, *, base: Path | str | None = None) -> ModelFolder:
    """Check that a folder looks like a checkpoint that sani reads; loads nothing.

    From here on the libraries below are quiet and use no network: see `quiet_libraries`.

    Args:
        path: The folder.
        base: Of the model that it is an adapter on; without meaning if it is none.

    Raises:
        CheckpointError: If it is missing, a hub name, a quantized or pickled checkpoint, an
            adapter without its base, or holds two sets of weights.
    """
    quiet_libraries()
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(_no_folder(path))
    names = {file.name for file in path.iterdir()}
    if {"config.json", ADAPTER_CONFIG} <= names:
        # transformers would load the adapter unasked, and save nothing but the adapter.
        raise CheckpointError(
            f"model folder {path} holds an adapter beside a model; merge it "
            "(peft: merge_and_unload), or remove the adapter's files if it is merged already"
        )
    if is_adapter(path):
        return _open_adapter(path, names, base)
    if any(name.endswith(".gguf") for name in names) and not _has_safetensors(names):
        raise CheckpointError(
            f"model folder {path} holds GGUF files, whose weights are quantized; give the folder "
            "with safetensors that they were converted from"
        )
    if "config.json" not in names:
        raise CheckpointError(f"model folder {path} has no config.json; is it a checkpoint folder?")
    _check_not_quantized(path, names)
    if not names & {WEIGHTS, WEIGHTS_INDEX}:
        raise CheckpointError(
            f"model folder {path}: expected {WEIGHTS}, found {_other_weights(names)}; "
            "save it with save_pretrained(..., safe_serialization=True)"
        )
    check_one_set(path, WEIGHTS, _indexed(path) if WEIGHTS_INDEX in names else [])
    if "transformers_weights" in read_json(path, "config.json"):
        raise CheckpointError(
            f"model folder {path}: config.json names other weights (transformers_weights), which "
            f"only transformers would read; remove that field, and call the weights {WEIGHTS}"
        )
    if "tokenizer.json" not in names:
        raise CheckpointError(
            f"model folder {path} has no tokenizer.json; sani needs a fast tokenizer, which alone "
            "can tell where a token stands in the text: save one with AutoTokenizer(...)"
            ".save_pretrained"
        )
    return ModelFolder(path)


def is_adapter(path: Path | str) -> bool:
    """Return whether the folder holds an adapter (PEFT) and no model of its own."""
    path = Path(path)
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def _no_folder(path: Path) -> str:
    problem = "is a file, not a folder" if path.exists() else "does not exist"
    hub = ""
    is_alone = path.name == str(path) or not path.parent.exists()
    if HUB_NAME.fullmatch(str(path)) and is_alone and not path.exists():
        hub = (
            f". If it is a name on the Hugging Face hub: hf download {path} --local-dir "
            f"models/{path.name}, on a machine with a network, then give models/{path.name}"
        )
    return (
        f"model folder {path} {problem}; sani reads local folders only (no download): copy "
        f"config.json, {WEIGHTS} and the tokenizer files into one{hub}"
    )


def _open_adapter(path: Path, names: set[str], base: Path | str | None) -> ModelFolder:
    if ADAPTER_WEIGHTS not in names:
        raise CheckpointError(
            f"model folder {path}: expected {ADAPTER_WEIGHTS}, found {_other_weights(names)}; "
            "save it with peft's save_pretrained(..., safe_serialization=True)"
        )
    if base is None:
        named = read_json(path, ADAPTER_CONFIG).get("base_model_name_or_path")
        there = isinstance(named, str) and Path(named).is_dir()
        hint = f" (its configuration names {named})" if there else ""
        raise CheckpointError(
            f"model folder {path} holds an adapter without its base; give the base too{hint}, or "
            "merge it first (peft: merge_and_unload) and give the merged folder"
        )
    return ModelFolder(path, open_folder(base))


def _check_not_quantized(path: Path, names: set[str]) -> None:
    """Refuse weights that are codes of numbers: no neuron of them can be reset or compared."""
    quantization = read_json(path, "config.json").get("quantization_config")
    beside = names & {"quantize_config.json", "quant_config.json"}  # of early GPTQ and AWQ
    if not quantization and not beside:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    or_else = ", or its dequantize() saved" if method == "bitsandbytes" else ""
    by = f" ({QUANTIZERS[method]})" if method in QUANTIZERS else ""
    raise CheckpointError(
        f"model folder {path} is quantized{by}; neurons of quantized weights cannot be reset: "
        f"give the checkpoint it was quantized from{or_else}"
    )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a model folder; empty where it holds no object.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        data = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"model folder {path}: {name} is not valid JSON") from None
    return data if isinstance(data, dict) else {}


def _indexed(path: Path) -> list[str]:
    """Return the names of the files that the index of a folder lists, in order."""
    files = read_json(path, WEIGHTS_INDEX).get("weight_map")
    values = set(files.values()) if isinstance(files, dict) else set()
    return sorted(map(str, values))


def _has_safetensors(names: set[str]) -> bool:
    return any(name.endswith(".safetensors") for name in names)


def _other_weights(names: set[str]) -> str:
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "pickled weights (.bin), which sani never loads"
    return "no weights"


def files_beside(family: Family) -> tuple[str, ...]:
    """Return the names of the files that go with the weights of such a model."""
    return (*TOKENIZER_FILES, *PROCESSOR_FILES) if family.vision else TOKENIZER_FILES


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of these files that a folder has."""
    for name in names:
        if (source / name).is_file():
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


def read_card(path: Path) -> dict[str, Any]:
    """Return the metadata of a folder's model card; empty without a card that can be read."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8")
        return dict(vars(ModelCard(text, ignore_metadata_errors=True).data))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}
