"""The weight files of a model folder: one set that loading reads, and whatever lies beside it.

Who audits a folder judges the set that transformers loads. Another program may load another one:
vLLM reads every safetensors file, llama.cpp the GGUF. So a folder that is judged holds one set.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from sani.errors import CheckpointError

# Anywhere in the name: a copy is often called model.safetensors.old.
WEIGHTS_IN_NAME = re.compile(
    r"\.(safetensors|bin|gguf|ggml|npz|npy|h5|keras|onnx|onnx_data|pt|pth|pkl|ckpt|msgpack|ot|tflite"
    r"|mlmodel|mlpackage|nemo|llamafile|engine)(\.|$)",
    re.IGNORECASE,
)
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Training's own state, which no program loads as a model; see `sani.releasing.leftovers`.
STATES = (
    "training_args.*", "optimizer*", "scheduler*", "rng_state*", "random_states*", "scaler.*",
    "*.json",
)  # fmt: skip


def check_one_set(path: Path, single: str, listed: list[str]) -> None:
    """Refuse a folder with two sets of weights, of which loading would read one.

    Args:
        path: The folder.
        single: Name of the file that holds the weights alone.
        listed: Names of the files that its index lists; empty without an index.

    Raises:
        CheckpointError: If the single file lies beside others that an index lists, or beside
            shards, or there are shards that the index does not list.
    """
    there = {name for name in os.listdir(path) if SHARD.fullmatch(name)}
    whole = (path / single).is_file()
    if (whole and (there or set(listed) - {single})) or (listed and there - set(listed)):
        raise CheckpointError(
            f"model folder {path} holds two sets of weights ({single}, or shards of "
            "another save, beside an index and its shards), of which only one would be read; "
            "remove the one that is not the model's"
        )


def check_only_weights(path: Path, *, read: Iterable[Path], below: bool) -> None:
    """Refuse a folder that holds weight files which loading does not read.

    Args:
        path: The folder, of an adapter its own.
        read: The weight files that loading reads.
        below: Also look into the folders in it.

    Raises:
        CheckpointError: With their number by kind; names may be a person's, so they are not told.
    """
    read = set(read)
    kinds: Counter[str] = Counter()
    for file in _files(path, below=below):
        match = WEIGHTS_IN_NAME.search(file.name)
        if match and file not in read and not any(fnmatch(file.name, p) for p in STATES):
            kinds[match[1].lower()] += 1
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise CheckpointError(
            f"model folder {path} holds weight files that loading does not read "
            f"({counts}), so figures would not be of the whole folder; move them "
            "elsewhere, and audit each set in a folder of its own"
        )


def _files(path: Path, *, below: bool) -> Iterator[Path]:
    for folder, inner, names in os.walk(path):
        yield from (Path(folder) / name for name in names)
        if not below:
            inner.clear()
