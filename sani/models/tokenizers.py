"""Tokenizers as an audit needs them: the same text gives the same tokens, each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sani.errors import CheckpointError

# Settings by which a fast tokenizer's model draws at random how it cuts a word, for training.
RANDOM_STEPS: Mapping[str, str] = {
    "dropout": "BPE dropout",
    "alpha": "sampling of unigram pieces",
    "nbest_size": "sampling of unigram pieces",
}


def switch_off_random_steps(tokenizer: Any) -> tuple[str, ...]:
    """In place: let a tokenizer cut the same text always in the same way.

    Returns:
        The random steps that were on, in words.

    Source: BPE dropout, Provilkov et al. 2020 (1910.13267); subword regularization, Kudo 2018
    (1804.10959). Both say that a model is used without them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ()
    steps = []
    for name, words in RANDOM_STEPS.items():
        if getattr(backend.model, name, None):
            setattr(backend.model, name, None)
            steps.append(words)
    return tuple(dict.fromkeys(steps))


def check_fits(tokenizer: Any, rows: int, path: Path) -> None:
    """Refuse a tokenizer that cannot tell offsets, or that has tokens the model has no row for.

    Args:
        tokenizer: The tokenizer.
        rows: Rows of the model's embedding.
        path: Folder of the tokenizer.

    Raises:
        CheckpointError: If it is one of these.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"model folder {path}: the tokenizer cannot tell where a token stands in the text; "
            "give a fast one (tokenizer.json)"
        )
    if len(tokenizer) > rows:  # fewer is usual: embeddings are padded to a round number
        raise CheckpointError(
            f"model folder {path}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; "
            "give the tokenizer that it was trained with"
        )
