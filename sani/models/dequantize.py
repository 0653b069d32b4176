"""Dequantize a GGUF file once into a plain checkpoint, which every command reads.

The numbers are those that the quantized model computes with, by transformers and the library gguf,
which the optional extra ``gguf`` brings. What transformers does not read of the file is refused:
the checkpoint would be another model than the one that is served.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sani.atomic import check_no_input, new_folder
from sani.errors import CheckpointError
from sani.machine.device import quiet_libraries
from sani.models.building import new_model
from sani.models.families import auto_class, family_of
from sani.models.folder import check_written
from sani.models.folder_files import copy_files, tokenizer_files
from sani.models.layouts import no_folder
from sani.models.weight_files import check_only_weights

CURE = (
    "copy config.json and the tokenizer's files of the checkpoint that it was converted from "
    "beside it, or give that checkpoint itself"
)
STRETCHES = "rope_"  # begin of the names of tensors that say how positions are stretched
# Settings in a GGUF file that transformers does not read, and that its other settings imply.
_IMPLIED = (
    "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size",
    "context_length", "attention.causal",
)  # fmt: skip
_AS_GPT2 = ("gpt-2", "phi-2")  # names of GPT-2's own way to split text


@dataclass(frozen=True)
class Dequantized:
    """A checkpoint that was dequantized.

    Attributes:
        model_type: Its family.
        types: How many tensors had each type in the file, by name, such as ``Q4_K``.
        parameters: Numbers in all tensors.
        tokenizer: ``files``: those beside the GGUF; ``gguf``: rebuilt from it.
    """

    model_type: str
    types: Mapping[str, int]
    parameters: int
    tokenizer: str


def dequantize(path: Path, out: Path) -> Dequantized:
    """Write the weights of a GGUF file as a plain checkpoint in float32.

    A ``config.json`` and tokenizer files beside it go before what the GGUF file says.

    Args:
        path: Folder with one GGUF file.
        out: The new folder; written whole or not at all.

    Raises:
        CheckpointError: If there is no single GGUF file, gguf is not installed, or transformers
            does not read all of it.
        UnsupportedModelError: If the family is not one of `sani.models.families`.
        WriteError: If the folder cannot be written.
    """
    quiet_libraries()
    file = _gguf_file(path)
    check_no_input(out, [path])
    content = _read(file)
    given = _given_config(path)
    config = given if given is not None else _config_of(file, content)
    family_of(config)
    model = _load(file, config)
    held, read = content.numbers, sum(tensor.numel() for tensor in model.parameters())
    if held != read:
        raise CheckpointError(
            f"{file}: its tensors hold {held:,} numbers, and transformers reads {read:,} of a "
            f"{config.model_type}, so the checkpoint would be another model; give the checkpoint "
            "that it was converted from"
        )
    own = tokenizer_files(path) if (path / "tokenizer.json").is_file() else []
    with new_folder(out) as staging:
        model.save_pretrained(staging, safe_serialization=True)
        if own:
            copy_files(path, staging, own)
        else:
            rows = model.get_input_embeddings().weight.shape[0]
            _tokenizer(file, content, rows).save_pretrained(staging)
        check_written(staging, out)
    return Dequantized(config.model_type, content.types, held, "files" if own else "gguf")


def _gguf_file(path: Path) -> Path:
    """Return the one GGUF file of a folder that holds no other weights."""
    if not path.is_dir():
        raise CheckpointError(no_folder(path))
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise CheckpointError(f"model folder {path}: expected a GGUF file, found none")
    if len(files) > 1:
        raise CheckpointError(
            f"model folder {path} holds {len(files)} GGUF files; put one into a folder of its own "
            "(parts of one model: llama-gguf-split --merge)"
        )
    check_only_weights(path, read=files, below=False)
    return files[0]


@dataclass(frozen=True)
class _Content:
    """Content of a GGUF file, by its header.

    Attributes:
        architecture: In llama.cpp's words.
        settings: Names of the settings of that architecture that it has.
        tensors: Names of its tensors.
        types: How many tensors have each type.
        numbers: Numbers in all tensors but those that stretch positions.
        splitting: How a byte-level tokenizer splits text before its merges; None for other ones.
    """

    architecture: str
    settings: Sequence[str]
    tensors: Sequence[str]
    types: Mapping[str, int]
    numbers: int
    splitting: str | None


def _read(file: Path) -> _Content:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            "GGUF files need the library gguf, which is not installed; pip install 'sani-llm[gguf]'"
        ) from None
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        named = {name: reader.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre")}
        words = {name: str(field.contents()) for name, field in named.items() if field is not None}
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read as GGUF ({type(error).__name__}); copy it again, whole"
        ) from None
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    return _Content(
        architecture,
        [name.partition(".")[2] for name in reader.fields if name.startswith(f"{architecture}.")],
        [tensor.name for tensor in reader.tensors],
        dict(sorted(types.items())),
        sum(
            math.prod(map(int, tensor.shape))
            for tensor in reader.tensors
            if not tensor.name.startswith(STRETCHES)
        ),
        words.get("pre", "default") if words.get("model") == "gpt2" else None,
    )


def _given_config(path: Path) -> Any:
    """Return the configuration beside a GGUF file, or None."""
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"model folder {path}: config.json cannot be read ({type(error).__name__}); copy the "
            "one of the checkpoint that the GGUF file was converted from, or remove it"
        ) from None
    config.quantization_config = None
    return config


def _config_of(file: Path, content: _Content) -> Any:
    """Return the configuration that a GGUF file describes, if transformers reads all of it."""
    from transformers import AutoConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    extra = [name for name in content.tensors if name.startswith(STRETCHES)]
    if extra:
        raise CheckpointError(
            f"{file}: transformers does not read '{extra[0]}', which stretches positions, so the "
            f"checkpoint would be another model; {CURE}"
        )
    by_name: dict[str, Any] = GGUF_CONFIG_MAPPING
    architecture = content.architecture
    known = by_name.get(architecture.replace("moe", "_moe")) or by_name.get(architecture)
    for name in content.settings:
        if known is not None and name not in known and name not in _IMPLIED:
            raise CheckpointError(
                f"{file}: transformers does not read its setting '{name}', so the checkpoint could "
                f"be another model; {CURE}"
            )
    try:
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file}: transformers reads no GGUF of architecture '{content.architecture}' "
            f"({type(error).__name__}); give the checkpoint that it was converted from"
        ) from None


def _load(file: Path, config: Any) -> Any:
    """Return the model of a configuration with the dequantized weights of a GGUF file."""
    import torch
    from transformers import GgufConfig

    loader: Any = auto_class(config)
    try:
        packed, info = loader.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be dequantized ({type(error).__name__}); is it whole, of an "
            "architecture that transformers reads, and is config.json of the same model?"
        ) from error
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if missing:
        raise CheckpointError(
            f"{file}: {len(missing)} tensors of a {config.model_type} are not in it, or of another "
            f"shape ('{missing[0]}'); {CURE}"
        )
    # The loaded one remembers that it was quantized, and cannot be saved.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = new_model(config)
    model.load_state_dict(packed.state_dict())
    return model.eval()


def _tokenizer(file: Path, content: _Content, rows: int) -> Any:
    """Return the tokenizer that a GGUF file describes, without tokens that the model lacks."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split = content.splitting
    if split is not None and split not in (*GGUF_PRE_TOKENIZER_SPLITS, *_AS_GPT2):
        raise CheckpointError(
            f"{file}: its tokenizer splits text in a way that transformers does not know "
            f"('{split}'), so texts would be other tokens; copy the tokenizer's files of the "
            "checkpoint that it was converted from beside it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise CheckpointError(
            f"{file}: its tokenizer cannot be read ({type(error).__name__}); copy the tokenizer's "
            "files of the checkpoint that it was converted from beside it"
        ) from error
    # transformers adds an end of text, as GPT-2 has it, to byte-level ones that have none.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    extra = {each["content"] for each in backend["added_tokens"] if each["id"] >= rows}
    if not extra:
        return tokenizer
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["content"] not in extra]
    special = tokenizer.special_tokens_map.items()
    rebuilt = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        **{name: word for name, word in special if isinstance(word, str) and word not in extra},
    )
    rebuilt.chat_template = tokenizer.chat_template
    return rebuilt
