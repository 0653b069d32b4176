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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError

from sani.atomic import new_folder, write_error
from sani.errors import CheckpointError
from sani.models.families import Family, auto_class, decoder_start, family_of, text_config
from sani.models.safetensors_files import StoredWeights, named_tensors

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
# Where positions have no end (ALiBi, relative ones): what such models were trained with.
ENDLESS_POSITIONS = 2048
# Parts of a pretrained masked model that no prediction of a token passes through.
UNUSED_PARTS = ("pooler", "seq_relationship", "position_ids")
CONFIG_FILES = ("config.json", "generation_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
HALF = (torch.float16, torch.bfloat16)
HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")  # of a model, or owner and model


@dataclass
class Checkpoint:
    """A model in evaluation mode, its tokenizer, and the folder they came from.

    Attributes:
        model: In float32, whatever its files hold.
        tokenizer: A fast one.
        path: The folder.
        types: Of the parameters and buffers that its files hold in less than float32, by name.
    """

    model: Any
    tokenizer: Any
    path: Path
    types: Mapping[str, torch.dtype] = field(default_factory=dict)

    def rounded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What becomes of a tensor's numbers in the type that it has in the files."""
        return tensor.to(self.types[name]).to(tensor) if name in self.types else tensor

    def rounding_of_both(self, other: Checkpoint) -> Callable[[str, torch.Tensor], torch.Tensor]:
        """What rounds a tensor, by its name, to the types that it has in both's files."""
        return lambda name, tensor: self.rounded(name, other.rounded(name, tensor))

    def round_(self) -> None:
        """In place: give every weight a value that its type in the files can hold.

        Raises:
            CheckpointError: If one is too large for it.
        """
        with torch.no_grad():
            for name, tensor in named_tensors(self.model):
                if name not in self.types:
                    continue
                tensor.copy_(self.rounded(name, tensor))
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(
                        f"tensor '{name}' holds numbers that are too large for its type, "
                        f"{self.types[name]}; give the checkpoint in float32"
                    )

    def has_weights_of(self, other: Checkpoint) -> bool:
        """Whether both have the same weights, rounded to the types that either has in its files."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        theirs = dict(other.model.named_parameters(remove_duplicate=False))
        rounded = self.rounding_of_both(other)
        return own.keys() == theirs.keys() and all(
            tensor.shape == theirs[name].shape
            and torch.equal(rounded(name, tensor), rounded(name, theirs[name].to(tensor)))
            for name, tensor in own.items()
        )

    def weights_digest(self) -> str:
        """SHA-256 over every tensor's name, type, shape and bytes, in name order."""
        state = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.view(torch.uint8).numpy() if tensor.ndim else repr(tensor).encode())
        return state.hexdigest()

    @cached_property
    def family(self) -> Family:
        """The row of `sani.models.families` that the model is of.

        Raises:
            UnsupportedModelError: If there is none.
        """
        return family_of(self.model.config)

    @property
    def text_config(self) -> Any:
        """Configuration of what reads text: all of the model, or a tower of it."""
        return text_config(self.model.config)

    @property
    def decoder_start(self) -> int | None:
        """The token that a decoder which reads a second text begins with; None if there is none."""
        return decoder_start(self.model.config)

    @property
    def context_tokens(self) -> int:
        """The longest input the model takes, or its attention window where that is shorter."""
        config = self.text_config
        sliding = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True) or self.family.objective == "masked":
            sliding = None  # ModernBERT's window is of some layers only
        positions = int(getattr(config, "max_position_embeddings", ENDLESS_POSITIONS))
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":  # what stands further on changes what stands before
            positions = min(positions, int(rope["original_max_position_embeddings"]))
        if self.family.positions_behind_padding:
            positions -= config.pad_token_id + 1
        return min(positions, int(sliding or 2**62))


def is_adapter(path: Path | str) -> bool:
    """Whether the folder holds an adapter (PEFT) and no model of its own."""
    path = Path(path)
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def check_folder(path: Path | str, *, base: Path | str | None = None) -> Path:
    """The folder, if it looks like a checkpoint that sani reads; loads nothing.

    Args:
        path: The folder.
        base: Of the model that it is an adapter on, if it is one.

    Raises:
        CheckpointError: If it is missing, a hub name, a quantized or pickled checkpoint, or an
            adapter without its base.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        hub = ""
        if HUB_NAME.fullmatch(str(path)) and path.name != str(path) and not path.parent.exists():
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
    if is_adapter(path):
        return _check_adapter(path, names, base)
    if any(name.endswith(".gguf") for name in names) and not _has_safetensors(names):
        raise CheckpointError(
            f"model folder {path} holds GGUF files, whose weights are quantized; give the folder "
            "with safetensors that they were converted from"
        )
    if "config.json" not in names:
        raise CheckpointError(f"model folder {path} has no config.json; is it a checkpoint folder?")
    _check_config(path, names)
    if not names & {"model.safetensors", "model.safetensors.index.json"}:
        raise CheckpointError(
            f"model folder {path}: expected model.safetensors, found {_pickled_or_none(names)}; "
            "save it with save_pretrained(..., safe_serialization=True)"
        )
    if "tokenizer.json" not in names:
        raise CheckpointError(
            f"model folder {path} has no tokenizer.json; sani needs a fast tokenizer, which alone "
            "can tell where a token stands in the text: save one with AutoTokenizer(...)"
            ".save_pretrained"
        )
    return path


def _check_adapter(path: Path, names: set[str], base: Path | str | None) -> Path:
    if "adapter_model.safetensors" not in names:
        raise CheckpointError(
            f"model folder {path}: expected adapter_model.safetensors, found "
            f"{_pickled_or_none(names)}; save it with peft's save_pretrained(..., "
            "safe_serialization=True)"
        )
    if base is None:
        named = _json(path, "adapter_config.json").get("base_model_name_or_path")
        there = isinstance(named, str) and Path(named).is_dir()
        hint = f" (its configuration names {named})" if there else ""
        raise CheckpointError(
            f"model folder {path} holds an adapter without its base; give the base too{hint}, or "
            "merge it first (peft: merge_and_unload) and give the merged folder"
        )
    check_folder(base)
    return path


def _check_config(path: Path, names: set[str]) -> None:
    """Refuse weights that are codes of numbers: no neuron of them can be reset or compared."""
    quantization = _json(path, "config.json").get("quantization_config")
    aside = names & {"quantize_config.json", "quant_config.json"}  # of early GPTQ and AWQ
    if not quantization and not aside:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    way = ", or its dequantize() saved" if method == "bitsandbytes" else ""
    known = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}
    how = f" ({known[method]})" if method in known else ""
    raise CheckpointError(
        f"model folder {path} is quantized{how}; neurons of quantized weights cannot be reset: "
        f"give the checkpoint it was quantized from{way}"
    )


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"model folder {path}: {name} is not valid JSON") from None
    return data if isinstance(data, dict) else {}


def _has_safetensors(names: set[str]) -> bool:
    return any(name.endswith(".safetensors") for name in names)


def _pickled_or_none(names: set[str]) -> str:
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "pickled weights (.bin), which sani never loads"
    return "no weights"


def read_config(path: Path) -> Any:
    """The configuration of a checked model folder.

    Raises:
        UnsupportedModelError: If the family is not one of `sani.models.families`.
        CheckpointError: If it cannot be read.
    """
    from transformers import AutoConfig

    named = _json(path, "config.json").get("model_type", "unknown")
    family_of(SimpleNamespace(model_type=named))  # transformers itself may not know it either
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"model folder {path}: config.json cannot be read ({type(error).__name__})"
        ) from None


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that a checked folder's weights are in, in name order.

    Raises:
        CheckpointError: If its index is broken or names files that are not there.
    """
    whole = ADAPTER_FILES[1] if is_adapter(path) else "model.safetensors"
    if (path / whole).is_file():
        return [path / whole]
    places = _json(path, "model.safetensors.index.json").get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise CheckpointError(
                f"model folder {path}: model.safetensors.index.json names {name}, which is not "
                "there; copy the whole checkpoint"
            )
    if not names:
        raise CheckpointError(f"model folder {path}: model.safetensors.index.json names no file")
    return [path / name for name in names]


def load_checkpoint(
    path: Path | str, *, base: Path | str | None = None, device: torch.device | None = None
) -> Checkpoint:
    """Load a language model and its fast tokenizer, in float32, as its family's objective asks.

    An adapter is merged into its base; its own tokenizer goes before the base's.

    Args:
        path: The folder.
        base: Of the model that it is an adapter on; without meaning if it is none.
        device: Where to put it; the CPU if absent.

    Raises:
        UnsupportedModelError: If the family is not one of `sani.models.families`.
        CheckpointError: If the folder is not a checkpoint that sani reads, or the weights hold
            NaN or infinities, or the tokenizer has more tokens than the model.
    """
    from transformers import AutoTokenizer

    path = check_folder(path, base=base)
    if base is not None and is_adapter(path):
        return _merged(path, load_checkpoint(base), device)
    config = read_config(path)
    family = family_of(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        loaded: Any = auto_class(config).from_pretrained(
            path,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            # Whatever config.json asks for.
            attn_implementation="sdpa" if family.sdpa else "eager",
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
        if family.objective != "masked" or not any(part in name for part in UNUSED_PARTS)
    ]
    if unexpected:
        raise CheckpointError(
            f"model folder {path}: {len(unexpected)} tensors have no place in the "
            "model that config.json describes, so an audit would not be of the whole checkpoint; "
            "check num_hidden_layers and the like"
        )
    _check_loaded(model, tokenizer, path)
    stored = StoredWeights(weight_files(path)).types(model)
    types = {name: type_ for name, type_ in stored.items() if type_ in HALF}
    return Checkpoint(model.to(device or torch.device("cpu")).eval(), tokenizer, path, types)


def _merged(path: Path, base: Checkpoint, device: torch.device | None) -> Checkpoint:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    own = (path / "tokenizer.json").is_file()
    try:
        tokenizer = (
            AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            if own
            else base.tokenizer
        )
        adapted = PeftModel.from_pretrained(base.model, path)
        # peft leaves at zero what it does not find, and leaves out what it has no place for: that
        # would be an audit of the base.
        taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        given = load_file(path / "adapter_model.safetensors")
        whole = taken.keys() == given.keys() and all(
            _same(taken[name].cpu(), given[name]) for name in given
        )
        model = adapted.merge_and_unload().requires_grad_(True)  # peft freezes the base
    except Exception as error:
        raise CheckpointError(
            f"model folder {path}: the adapter cannot be merged ({type(error).__name__}); is it "
            f"one on {base.path}, and of a kind that peft can merge?"
        ) from error
    if not whole:
        raise CheckpointError(
            f"model folder {path}: the adapter's tensors are not those that its configuration "
            f"adds to {base.path}; is it an adapter on this base, and whole?"
        )
    _check_loaded(model, tokenizer, path)
    place = path if own else base.path
    model = model.to(device or torch.device("cpu")).eval()
    return Checkpoint(model, tokenizer, place, base.types)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=0.0, equal_nan=True)


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


def folder_digest(path: Path | str, *, weights_only: bool, base: Path | str | None = None) -> str:
    """SHA-256 over a checkpoint folder's weight files, and its configuration and tokenizer files.

    Args:
        path: The folder.
        weights_only: Leave out configuration and tokenizer.
        base: Of the model that it is an adapter on, if it is one.
    """
    path = check_folder(path, base=base)
    names = [file.name for file in path.glob("*.safetensors")]
    if not weights_only:
        others = (*TOKENIZER_FILES, *CONFIG_FILES, ADAPTER_FILES[0])
        names += [name for name in others if (path / name).is_file()]
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
    own, others = ({name for name, _ in side.model.named_parameters()} for side in (one, other))
    if own != others:
        return f"only in one of them '{min(own ^ others)}' is tied to another tensor"
    heads = [side.text_config.num_attention_heads for side in (one, other)]
    if heads[0] != heads[1]:  # the same shapes cut otherwise: no head means the same in both
        return "they differ in num_attention_heads"
    if one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        return "their tokenizers have different vocabularies"
    return None


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path | str, *, finish: Callable[[Path], None] | None = None
) -> None:
    """Write weights, configuration and tokenizer to ``folder``, whole or not at all.

    Weights get the types that they had in their files.

    Args:
        checkpoint: What to write; its tokenizer files are copied from ``checkpoint.path``.
        folder: Must not exist yet, or be one that this function may replace.
        finish: Adds files; called with the staging folder just before it is renamed.

    Raises:
        WriteError: If the folder cannot be written.
    """
    folder = Path(folder)
    with new_folder(folder) as staging:
        with _in_their_types(checkpoint):
            try:
                checkpoint.model.save_pretrained(staging, safe_serialization=True)
            except SafetensorError as error:  # how safetensors puts a full disk
                raise write_error(folder, error, whole=True) from None
        copy_files(checkpoint.path, staging, files_beside(checkpoint.family))
        if finish is not None:
            finish(staging)


@contextmanager
def _in_their_types(checkpoint: Checkpoint) -> Iterator[None]:
    """Within, the model's tensors and its configuration have the types that they get in files."""
    config, held = checkpoint.model.config, []
    nested = (getattr(config, name, None) for name in config.sub_configs)
    configs = [config, *(own for own in nested if own is not None)]
    types = [own.dtype for own in configs]
    try:
        for name, tensor in named_tensors(checkpoint.model):
            if name in checkpoint.types:
                held.append((tensor, tensor.data))
                tensor.data = tensor.data.to(checkpoint.types[name])
        for own in configs:
            own.dtype = checkpoint.model.dtype
        yield
    finally:
        for own, type_ in zip(configs, types, strict=True):
            own.dtype = type_
        for tensor, data in held:
            tensor.data = data


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
            left = os.fstat(reader.fileno()).st_size
            while left > 0:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), left)
                if copied == 0:
                    raise OSError
                left -= copied
    except (OSError, AttributeError):  # another file system, or a system without the call
        shutil.copyfile(source, target)


def read_card(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint folder's model card; empty without a card that can be read."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8")
        return dict(vars(ModelCard(text, ignore_metadata_errors=True).data))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}
