"""The files of a checkpoint folder: which are released, and what lies beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from fnmatch import fnmatch
from pathlib import Path

from sani.models.folder_files import (
    ADAPTER_FILES,
    CONFIG_FILES,
    TEMPLATES,
    TOKENIZER_FILES,
    is_adapter,
)

INDEX = "model.safetensors.index.json"
# What training leaves beside a model, by pattern; anything else is counted without its name,
# which may be a patient's.
LEFTOVERS = {
    "optimizer.pt": "optimizer.pt",
    "scheduler.pt": "scheduler.pt",
    "rng_state*.pth": "rng_state.pth",
    "trainer_state.json": "trainer_state.json",
    "training_args.*": "training_args",
    "events.out.tfevents.*": "TensorBoard logs",
    ".ipynb_checkpoints": ".ipynb_checkpoints",
    "checkpoint-*": "saved states of training",
    "global_step*": "saved states of training",
    "wandb": "wandb logs",
    "mlruns": "MLflow logs",
    "*.log": "logs",
    "*.py": "code",
    "*.bin": "pickled weights",
    "*.pt": "pickled weights",
    "*.pth": "pickled weights",
    "README.md": "README.md",
}
OTHER = "other entries"

# Texts that a public model's folder holds too. They are searched; a data file is not one of them.
TEXTS = re.compile(
    r"(?i)((readme|licen[cs]e|notice|use_policy|citation|changelog)\b.*|.+\.(md|txt|jinja|json"
    r"|ya?ml|toml|cff)|\.git(attributes|ignore)|model\.sig)"
)
LARGEST_TEXT = 2**24  # bytes; a longer one is data


def may_be_released(name: str) -> bool:
    """Return whether a file of this path in its folder is on the allow-list, or is weights."""
    weights = name == INDEX or re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name)
    template = re.fullmatch(rf"{TEMPLATES}/[^/]+\.jinja", name)
    return bool(weights or template) or name in TOKENIZER_FILES or name in CONFIG_FILES


def searched_texts(folder: Path) -> list[str]:
    """Return the names of the texts beside a checkpoint in which identifiers can be searched for.

    Those that training leaves are none of them: a log or a state holds more than text.
    """
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if TEXTS.fullmatch(entry.name)
        and _kind_of(entry.name) in (OTHER, "README.md")
        and not may_be_released(entry.name)
        and entry.is_file()
        and entry.stat().st_size <= LARGEST_TEXT
    )


def files_not_released(folder: Path, *, but: Container[str] = ()) -> dict[str, int]:
    """Count the entries of a checkpoint folder that are not released, by kind.

    TensorBoard logs are found in folders too. The names of files that training does not write are
    not told.

    Args:
        folder: The folder.
        but: Names of entries that are not counted.
    """
    counts: Counter[str] = Counter()
    read = ADAPTER_FILES if is_adapter(folder) else ()
    for entry in folder.iterdir():
        if entry.is_file() and (may_be_released(entry.name) or entry.name in read):
            continue
        if entry.name in but or _is_templates(entry):
            continue
        logs = entry.is_dir() and any(entry.rglob("events.out.tfevents.*"))
        counts["TensorBoard logs" if logs else _kind_of(entry.name)] += 1
    return dict(sorted(counts.items(), key=lambda item: (item[0] == OTHER, item[0])))


def _is_templates(entry: Path) -> bool:
    """Return whether an entry is the folder of templates, with nothing else in it."""
    names = [f"{entry.name}/{file.name}" for file in entry.iterdir()] if entry.is_dir() else []
    return entry.name == TEMPLATES and all(map(may_be_released, names))


def _kind_of(name: str) -> str:
    return next((kind for pattern, kind in LEFTOVERS.items() if fnmatch(name, pattern)), OTHER)
