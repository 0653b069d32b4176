"""Tokenizers as an audit needs them: the same text gives the same tokens, each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
