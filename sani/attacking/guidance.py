"""Guidance by the old checkpoint: the two models together point at what was removed.

Threat: whoever has the unsanitized checkpoint besides the sanitized one (an earlier release, a
backup). Where the two differ is where something was removed; stepping from the new one past the
old one makes that likelier than even the old one does. Even exact retraining does not help, so
the old checkpoint must never be released. The control is the old checkpoint guided away from the
base; the old checkpoint by itself is the ``unsanitized`` model's figure, since it guides to nowhere.

Cost: an audit of two models at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sani.attacking.context import AttackContext, Outcome
from sani.auditing.teacher_forcing import Reading
from sani.models import families
from sani.models.checkpoint import Checkpoint
from sani.recipe import GuidanceSettings

IMPLAUSIBLE = -1e4
PLAUSIBLE = 1e-5  # gamma of 2505.24379: least share of the highest p
NEEDS_OLD = "the unsanitized checkpoint was not given"


def guidance(
    model: Checkpoint, scene: AttackContext, settings: GuidanceSettings
) -> Iterator[Outcome]:
    """Audit the two models' combined next-token distribution.

    Source: Reversed Model Guidance (2505.24379). Deviations: greedy verdicts by teacher forcing,
    which are those of greedy decoding, from the whole left context; also (n, p) and decoys.
    """
    for weight in settings.weights:
        name = f"weight {weight:g}"
        if scene.old is None:
            yield Outcome(name, not_run=NEEDS_OLD)
            continue
        reading = Guided(scene.old.model, weight=weight, plausible=PLAUSIBLE)
        yield Outcome(name, scene.score(model, reading=reading), scene.places)


class Guided(Reading):
    """log q = log p_new + w (log p_old - log p_new) where the old model finds a token plausible.

    Elsewhere `IMPLAUSIBLE` instead of minus infinity, so that any value has a log-probability.
    """

    def __init__(self, old: Any, *, weight: float, plausible: float) -> None:
        """Guide by ``old``.

        Args:
            old: The unsanitized model.
            weight: w; 0 is the new model, 1 the old one, above 1 away from the new one.
            plausible: Tokens with at least this share of the old model's highest probability.
        """
        self._old = old
        self._weight = weight
        self._floor = float(torch.tensor(plausible).log())

    def hidden(self, model: Any, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """Both models' hidden states side by side."""
        old = families.hidden_states(self._old, cache=cache, **inputs)
        if cache is not None:
            cache = _Further(cache, first=families.text_config(self._old.config).num_hidden_layers)
        return torch.cat([old, families.hidden_states(model, cache=cache, **inputs)], dim=-1)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """The combined log q, not normalized, [n, vocab]."""
        width = families.text_config(self._old.config).hidden_size
        old = families.logits(self._old, hidden[:, :width]).float().log_softmax(dim=1)
        new = families.logits(model, hidden[:, width:]).float().log_softmax(dim=1)
        guided = new + self._weight * (old - new)
        implausible = old < old.max(dim=1, keepdim=True).values + self._floor
        return guided.masked_fill(implausible, IMPLAUSIBLE)


class _Further(DynamicCache):
    """The further layers of a cache, from ``first`` on, as a cache: room for a second model's."""

    def __init__(self, cache: DynamicCache, *, first: int) -> None:
        super().__init__()
        self._cache: Any = cache
        self._first = first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions so far, [rows, heads, seq, size] each."""
        keys, values = self._cache.update(
            key_states, value_states, self._first + layer_idx, *args, **kwargs
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions so far."""
        return int(self._cache.get_seq_length(self._first + layer_idx))
