"""A model folder: which files it has, what is refused, and its digests; no weight is loaded.

A folder holds a model of its own or an adapter (PEFT) on a base. `open_folder` is the one reader of
folders: every command opens with it what it reads, and what it writes before that is renamed. It
gives a `ModelFolder`, which reads its configuration and computes its digests at most once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sani.errors import CheckpointError, SaniError, WriteError
from sani.machine.device import quiet_libraries
from sani.models.building import skeleton
from sani.models.families import family_of, text_config
from sani.models.family import Family
from sani.models.folder_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    check_whole_files,
    is_adapter,
    read_json,
    tokenizer_files,
)
from sani.models.layouts import (
    no_folder,
    other_weights,
    refuse_other_adapter,
    refuse_other_layout,
    refuse_quantized,
)
from sani.models.safetensors_files import StoredWeights
from sani.models.stored_adapters import check_adapter_tensors, rows_of_adapter
from sani.models.stored_tensors import check_finite, check_tensors
from sani.models.tokenizers import check_fits, switch_off_random_steps
from sani.models.weight_files import check_one_set, check_only_weights


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
        model_type = read_json(path, "config.json").get("model_type")
        if model_type is None:
            raise CheckpointError(
                f"model folder {path}: config.json names no model_type; copy the one that was "
                "saved with the weights"
            )
        # The family first: transformers may not know it either, and says so less clearly.
        family_of(SimpleNamespace(model_type=model_type))
        try:
            config = AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise CheckpointError(
                f"model folder {path}: config.json cannot be read ({type(error).__name__}); copy "
                "the one that was saved with the weights"
            ) from None
        if hasattr(config, "auto_map"):  # it names code, which is neither run nor written
            del config.auto_map
        return config

    @cached_property
    def skeleton(self) -> Any:
        """The model without memory for its weights, of an adapter its base's; do not change it.

        Raises:
            CheckpointError: If the configuration describes no model that can be built.
        """
        path, config = self.whole.path, self.config
        try:
            return skeleton(config)
        except Exception as error:
            text = text_config(config)
            pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
            if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
                raise CheckpointError(
                    f"model folder {path}: pad_token_id in config.json is {pad}, and the model has "
                    f"{rows} tokens; set it to null, or to a token that the model has"
                ) from None
            raise CheckpointError(
                f"model folder {path}: config.json describes no model that can be built "
                f"({type(error).__name__}); copy the one that was saved with the weights"
            ) from None

    @cached_property
    def rows(self) -> int:
        """Rows of the model's embedding, those that an adapter brings along too."""
        own = self.whole.skeleton.get_input_embeddings().weight.shape[0]
        return rows_of_adapter(self.skeleton, self.stored) if self.is_adapter else int(own)

    @cached_property
    def stored(self) -> StoredWeights:
        """The tensors of the weight files, of an adapter its own; errors as of `StoredWeights`."""
        return StoredWeights(self.weight_files)

    def check_finite(self) -> None:
        """Read all weights, of an adapter its own and its base's; refuse NaN and infinity.

        Raises:
            CheckpointError: If there is one.
        """
        for folder in filter(None, (self, self.base)):
            named = folder.stored if folder.is_adapter else folder.stored.named_as_in(self.skeleton)
            check_finite(folder.path, named)

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
        names = (*tokenizer_files(self.path), *CONFIG_FILES, ADAPTER_CONFIG)
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


def open_folder(
    path: Path | str, *, base: Path | str | None = None, more_weights: bool = False
) -> ModelFolder:
    """Check that a folder is a checkpoint that sani reads; loads no weight.

    From here on the libraries below are quiet and use no network: see `quiet_libraries`.

    Args:
        path: The folder.
        base: Of the model that it is an adapter on; without meaning if it is none.
        more_weights: Weight files that loading does not read may lie beside: the folder is only
            compared with, neither judged nor sanitized.

    Raises:
        CheckpointError: If it is missing, a hub name, holds anything but one whole checkpoint, or
            an adapter without its base, or its files do not fit each other.
        UnsupportedModelError: If the family is not one of `sani.models.families`.
    """
    quiet_libraries()
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(no_folder(path))
    names = {file.name for file in path.iterdir()}
    check_whole_files(path)
    folder = _open_adapter(path, names, base) if is_adapter(path) else _open_whole(path, names)
    if not more_weights:
        check_only_weights(path, read=folder.weight_files, below=False)
    return folder


def _open_whole(path: Path, names: set[str]) -> ModelFolder:
    if {"config.json", ADAPTER_CONFIG} <= names:
        # transformers would load the adapter unasked, and save nothing but the adapter.
        raise CheckpointError(
            f"model folder {path} holds an adapter beside a model; merge it "
            "(peft: merge_and_unload), or remove the adapter's files if it is merged already"
        )
    refuse_other_layout(path, names)
    refuse_quantized(path, names)
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
    folder = ModelFolder(path)
    _check_generation_config(folder)
    masked = folder.family.objective == "masked"
    check_tensors(path, folder.skeleton, folder.stored, masked=masked)
    check_fits(folder.load_tokenizer(), folder.rows, folder.tokenizer_path)
    return folder


def _check_generation_config(folder: ModelFolder) -> None:
    """Refuse defaults for generation that cannot be loaded, or saved again."""
    from transformers import GenerationConfig

    path, name = folder.path, "generation_config.json"
    if not (path / name).is_file():
        return
    read_json(path, name)
    try:
        GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"model folder {path}: transformers refuses {name} ({type(error).__name__}); correct "
            "it, or remove it: it only holds defaults for writing text"
        ) from None


def _open_adapter(path: Path, names: set[str], base: Path | str | None) -> ModelFolder:
    config = read_json(path, ADAPTER_CONFIG)
    refuse_other_adapter(path, names, config)
    if ADAPTER_WEIGHTS not in names:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        raise CheckpointError(
            f"model folder {path}: expected {ADAPTER_WEIGHTS}, found "
            f"{other_weights(pickled=pickled)}; save it with peft's save_pretrained(..., "
            "safe_serialization=True)"
        )
    if base is None:
        named = config.get("base_model_name_or_path")
        there = isinstance(named, str) and Path(named).is_dir()
        hint = f" (its configuration names {named})" if there else ""
        raise CheckpointError(
            f"model folder {path} holds an adapter without its base; give the base too{hint}, or "
            "merge it first (peft: merge_and_unload) and give the merged folder"
        )
    folder = ModelFolder(path, open_folder(base, more_weights=True))
    check_finite(path, folder.stored)
    check_adapter_tensors(path, folder.whole.path, folder.skeleton, folder.stored)
    tokenizer = folder.load_tokenizer()
    if folder.tokenizer_path == path and len(tokenizer) > folder.rows:
        raise CheckpointError(
            f"model folder {path}: its tokenizer has {len(tokenizer)} tokens, and adapter and base "
            f"have {folder.rows} rows; the rows of added tokens were not saved: save the adapter "
            "with save_embedding_layers=True where it was trained, or give the base's tokenizer"
        )
    check_fits(tokenizer, folder.rows, folder.tokenizer_path)
    return folder


def check_written(staging: Path, out: Path, *, base: Path | None = None) -> None:
    """Open a folder that was just written, before it is renamed: nothing is left that nobody reads.

    Args:
        staging: The folder as it lies now.
        out: Its name to come.
        base: Folder of the base, of an adapter.

    Raises:
        WriteError: If it cannot be opened.
    """
    try:
        open_folder(staging, base=base)
    except SaniError as error:
        reason = str(error).replace(str(staging), str(out))
        raise WriteError(
            f"cannot write {out}: it would not load again, and nothing was left of it ({reason})"
        ) from None


def _indexed(path: Path) -> list[str]:
    """Return the names of the files that the index of a folder lists, in order."""
    files = read_json(path, WEIGHTS_INDEX).get("weight_map")
    values = set(files.values()) if isinstance(files, dict) else set()
    return sorted(map(str, values))
