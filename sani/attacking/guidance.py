"""Guidance: the unsanitized and the sanitized checkpoint together point at what was removed.

Threat: the adversary has the unsanitized checkpoint besides the sanitized one (an earlier release,
a backup). The two differ where something was removed. A step from the sanitized model past the
unsanitized one makes the removed text likelier than the unsanitized model alone does. Even exact
retraining does not help, so the unsanitized checkpoint must never be released.

Control: the unsanitized checkpoint guided away from the base. The figures of the model
``unsanitized`` are those of the unsanitized checkpoint alone, since it guides to itself.

Cost: an audit of two models at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sani.attacking.context import AttackContext, Outcome
from sani.auditing.teacher_forcing import LogitReader
from sani.models import families
from sani.models.checkpoint import Checkpoint
from sani.recipe import GuidanceSettings

# Nats. Finite, so that a value with one implausible token still has a log-probability and a rank
# among decoys; low enough that no sum of plausible tokens comes near it.
IMPLAUSIBLE = -1e4
PLAUSIBLE = 1e-5  # gamma of 2505.24379: least share of the highest p
NO_UNSANITIZED = "the unsanitized checkpoint was not given"


def guidance(
    model: Checkpoint, context: AttackContext, settings: GuidanceSettings
) -> Iterator[Outcome]:
    """Audit the two models' combined next-token distribution, once for each weight.

    Source: Reversed Model Guidance (2505.24379). Deviations: greedy verdicts by teacher forcing,
    which equal those of greedy decoding, from the whole left context; (n, p) and decoys too.
    """
    for weight in settings.weights:
        variant = f"weight {weight:g}"
        if context.unsanitized is None:
            yield Outcome(variant, not_run=NO_UNSANITIZED)
            continue
        reader = GuidedReader(context.unsanitized.model, weight=weight, plausible=PLAUSIBLE)
        yield Outcome(variant, context.score(model, reader=reader), context.places)


class GuidedReader(LogitReader):
    """Logits of two models combined: log q = log p + w (log p_u - log p).

    p is the model under attack and p_u the unsanitized model. The formula holds for tokens that
    the unsanitized model finds plausible; all others get `IMPLAUSIBLE`.
    """

    def __init__(self, unsanitized: Any, *, weight: float, plausible: float) -> None:
        """Guide by the unsanitized model.

        Args:
            unsanitized: The unsanitized model.
            weight: w; 0 is the model under attack, 1 the unsanitized model, above 1 a step past it.
            plausible: Tokens with at least this share of the unsanitized model's highest
                probability are plausible.
        """
        self._unsanitized = unsanitized
        self._weight = weight
        self._floor = float(torch.tensor(plausible).log())

    def hidden(self, model: Any, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """Return both models' hidden states side by side, [batch, seq, hidden of both]."""
        unsanitized = families.hidden_states(self._unsanitized, cache=cache, **inputs)
        if cache is not None:
            layers = families.text_config(self._unsanitized.config).num_hidden_layers
            cache = _FurtherLayers(cache, first=layers)
        attacked = families.hidden_states(model, cache=cache, **inputs)
        return torch.cat([unsanitized, attacked], dim=-1)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Return the combined log q, not normalized, [n, vocab]."""
        width = families.text_config(self._unsanitized.config).hidden_size
        # Logits of two models differ by any constant, so both are normalized before the step.
        unsanitized = families.logits(self._unsanitized, hidden[:, :width]).float()
        unsanitized = unsanitized.log_softmax(dim=1)
        attacked = families.logits(model, hidden[:, width:]).float().log_softmax(dim=1)
        guided = attacked + self._weight * (unsanitized - attacked)
        # Far out in the tail the difference of two small log-probabilities is noise, and the step
        # would raise tokens that neither model ever says.
        floor = unsanitized.max(dim=1, keepdim=True).values + self._floor
        return guided.masked_fill(unsanitized < floor, IMPLAUSIBLE)


class _FurtherLayers(DynamicCache):
    """The layers of a cache from ``first`` on, as a cache of its own for a second model."""

    def __init__(self, cache: DynamicCache, *, first: int) -> None:
        super().__init__()
        self._cache: Any = cache
        self._first = first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far, [rows, heads, seq, size] each."""
        keys, values = self._cache.update(
            key_states, value_states, self._first + layer_idx, *args, **kwargs
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of positions so far."""
        return int(self._cache.get_seq_length(self._first + layer_idx))
