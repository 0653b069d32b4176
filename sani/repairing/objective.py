"""The repair's loss: a sum of named terms, each a mean over its own tokens of the batch.

``ordinary``: next-token cross-entropy on tokens outside spans. ``anchor``: KL(base || model) on
tokens inside them, so that the model predicts there what a model that never saw them predicts.
The vocabulary projection runs only at positions that carry a term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sani import families
from sani.batches import Batch


def ordinary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        logits: [n, vocab].
        targets: [n].

    Source: PPclm, Boutet et al. 2025 (2501.02407): identifiers carry no loss and stay as context.
    """
    return functional.cross_entropy(logits.float(), targets)


def anchor_loss(logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """Mean KL(anchor || model) in nats, over the whole vocabulary.

    Args:
        logits: The model's, [n, vocab].
        anchor_logits: Those of a model that never saw the identifiers, [n, vocab].

    Source: ours (a distillation term, Hinton et al. 2015, restricted to identifier tokens).
    """
    return functional.kl_div(
        logits.float().log_softmax(dim=1),
        anchor_logits.float().log_softmax(dim=1),
        log_target=True,
        reduction="batchmean",
    )


def anchor_states(base: Any, batches: list[Batch]) -> list[Tensor]:
    """The base's last hidden states at identifier positions, [n, hidden] for each batch.

    Computed once for all epochs. Hidden states instead of logits: they are smaller by the ratio
    of vocabulary to hidden size.
    """
    states = []
    for batch in batches:
        with torch.no_grad():
            hidden = families.hidden_states(base, input_ids=batch.ids.to(base.device))
        states.append(hidden[batch.identifier.to(hidden.device)].clone())
    return states


def loss_terms(
    model: Any, batch: Batch, *, base: Any | None, anchor: Tensor | None
) -> dict[str, Tensor]:
    """Every term that has tokens in this batch, unweighted.

    Args:
        model: The model being repaired.
        batch: On the model's device.
        base: The base model, for its vocabulary projection; None without an anchor.
        anchor: Its hidden states at this batch's identifier positions, [n, hidden].
    """
    hidden = families.hidden_states(model, input_ids=batch.ids)  # [batch, seq, hidden]
    terms = {}
    if batch.ordinary.any():
        logits = families.logits(model, hidden[batch.ordinary])
        terms["ordinary"] = ordinary_loss(logits, batch.targets[batch.ordinary])
    if base is not None and anchor is not None and len(anchor):
        with torch.no_grad():
            anchor_logits = families.logits(base, anchor)
        logits = families.logits(model, hidden[batch.identifier])
        terms["anchor"] = anchor_loss(logits, anchor_logits)
    return terms
