"""Privacy neurons by learned masks: close few, so that identifiers fail and text does not.

Chen et al. 2024 (2405.10989). Every neuron's and head's activation is multiplied by a mask in
[0, 1] of a hard concrete distribution (Louizos et al. 2018, 1712.01312); weights are frozen, and
the masks' scores learn

    CE(ordinary tokens) - adversary * min(CE(identifier tokens), LOSS_CAP)
        + CLOSING_COST * P(closed),

the cap token by token. The authors' code is not public: the sum and its weights are ours. A mask is
drawn anew for each document and step; afterwards it is the one without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sani.erasing.hooks import Outputs, Site, changed, neurons_of, states
from sani.erasing.statistics import Means, frozen, precise
from sani.errors import SelectionError
from sani.machine.device import generator
from sani.models import families
from sani.models.neurons import Output
from sani.recipe import HardConcreteSelector
from sani.text.batches import Batch

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and ends of the stretch, as in the paper
START = 3.0  # nearly every mask is open: the model starts as it is
CLOSED = 0.5
PATH_STEPS = 8
LOSS_CAP = 5.0  # ours: nats at which an identifier's token counts as unknown
CLOSING_COST = 5.0  # ours: cost of closing every mask, in nats


def learn_scores(
    model: Any,
    batches: Sequence[Batch],
    outputs: Outputs,
    settings: HardConcreteSelector,
    *,
    seed: int,
) -> Means:
    """Learn the scores of the masks: the lower, the more a neuron serves identifiers alone.

    Args:
        model: In evaluation mode; its weights are not changed.
        batches: Documents with spans.
        outputs: Where each site's activations go in.
        settings: Steps, learning rate and weight of the identifiers' loss.
        seed: Of the masks' noise and of the order of the batches.

    Returns:
        A tensor for each site, [neurons]; see `mask`.

    Raises:
        SelectionError: If one of the two sorts of token does not occur, or the loss is NaN.
    """
    for sort in ("identifier", "ordinary"):
        if not any(getattr(batch, sort).any() for batch in batches):
            raise SelectionError(
                f"the corpus has no {sort} token, so there is nothing for masks to tell apart"
            )
    chance = generator(seed)
    scores = {
        site: torch.full((neurons,), START, device=model.device, requires_grad=True)
        for site, neurons in neurons_of(outputs).items()
    }
    optimizer = torch.optim.Adam(scores.values(), lr=settings.learning_rate)
    order: list[int] = []
    with frozen(model), torch.enable_grad():
        for _ in range(settings.steps):
            order = order or torch.randperm(len(batches), generator=chance).tolist()
            batch = batches[order.pop()]
            # A mask for each row: with one for the whole batch the gradient would be noisier.
            drawn = {
                site: _draw(score, rows=len(batch.ids), chance=chance)
                for site, score in scores.items()
            }
            with masked(model, outputs, drawn):
                loss = _objective(model, batch, settings)
            loss = loss + CLOSING_COST * _closed(scores.values())
            if not torch.isfinite(loss):
                raise SelectionError(
                    "the loss of the masks is NaN or infinite; check the checkpoint, or lower "
                    "erase.selector.learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {site: score.detach().double().cpu() for site, score in scores.items()}


def mask(score: Tensor) -> Tensor:
    """Compute the mask without noise, in [0, 1], of scores of any shape."""
    return (torch.sigmoid(score) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def report(
    model: Any,
    batches: Callable[[str], Sequence[Batch]],
    labels: Sequence[str],
    outputs: Outputs,
    scores: Means,
) -> dict[str, Any]:
    """Tell in which layers the closed neurons lie, and which label's identifiers they serve.

    Closing them all raises each label's loss. That rise is divided between them by integrated
    gradients along the straight path from open masks to the learned ones, so that the shares sum
    to it. A neuron is specific to a label if more than half of its rises, in nats per token of each
    label, is that label's.
    Takes `PATH_STEPS` passes over the documents of each label.

    Args:
        model: In evaluation mode.
        batches: The documents of a label, in which only its identifiers count.
        labels: Of the corpus.
        outputs: Where each site's activations go in.
        scores: As learned.

    Returns:
        Plain data: ``layers``, a row for each site with the number closed, of how many, and how
        many of these are specific to each label; ``labels``, the rise of each label's loss in nats
        per token; ``neurons``, each closed one with the label that it raises most (null if none)
        and that label's share.
    """
    masks = {site: mask(score) for site, score in scores.items()}
    rises = {}
    for label in labels:
        if of_label := [batch for batch in batches(label) if batch.identifier.any()]:
            rises[label] = _rises(model, of_label, outputs, masks)
    layers, neurons = [], []
    for site, values in masks.items():
        closed = (values < CLOSED).nonzero().flatten().tolist()
        specific: dict[str, int] = {}
        for neuron in closed:
            parts = {label: max(0.0, float(rise[site][neuron])) for label, rise in rises.items()}
            share, label = max((part, label) for label, part in parts.items())
            share = share / sum(parts.values()) if share else 0.0
            if share > 0.5:
                specific[label] = specific.get(label, 0) + 1
            neurons.append(
                {
                    "layer": site[0],
                    "part": site[1],
                    "neuron": neuron,
                    "mask": float(values[neuron]),
                    "label": label if share else None,
                    "share": share,
                }
            )
        layers.append(
            {"layer": site[0], "part": site[1], "closed": len(closed), "total": len(values),
             "specific": specific}
        )  # fmt: skip
    totals = {
        label: sum(float(values.sum()) for values in rise.values()) for label, rise in rises.items()
    }
    return {"layers": layers, "labels": totals, "neurons": neurons}


def masked(
    model: Any, outputs: Outputs, masks: Mapping[Site, Tensor]
) -> AbstractContextManager[None]:
    """Within, activations are multiplied by masks [neurons] or [batch, neurons]."""
    by_output: dict[Output, Tensor] = {}
    for site, values in masks.items():
        parts = torch.split(values, [output.neurons for output in outputs[site]], dim=-1)
        by_output |= zip(outputs[site], parts, strict=True)

    def multiply(output: Output, activation: Tensor) -> Tensor:
        size = activation.shape[-1]
        # A head's mask is that of each of its channels.
        values = by_output[output].to(activation)
        channels = values.repeat_interleave(size // output.neurons, dim=-1)
        channels = channels.reshape(-1, 1, size)  # of every row of the batch, or of all alike
        return (activation.reshape(len(channels), -1, size) * channels).reshape(activation.shape)

    return changed(model, by_output, multiply)


def _draw(score: Tensor, *, rows: int, chance: torch.Generator) -> Tensor:
    """Draw masks [rows, neurons]: binary concrete noise, stretched to [GAMMA, ZETA] and clamped.

    The stretch is what lets a mask be exactly 0 or 1.
    """
    # Noise of 0 or 1 has an infinite logit.
    noise = torch.rand(rows, len(score), generator=chance).clamp(1e-4, 1 - 1e-4).to(score.device)
    stretched = torch.sigmoid((noise.logit() + score) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def _closed(scores: Any) -> Tensor:
    """Compute the expected share of the masks that are exactly 0 (Louizos et al., equation 12)."""
    everything = torch.cat(list(scores))
    return torch.sigmoid(BETA * math.log(-GAMMA / ZETA) - everything).mean()


def _objective(model: Any, batch: Batch, settings: HardConcreteSelector) -> Tensor:
    """Compute the loss of the masks on one batch, but for the cost of closing."""
    hidden = states(model, batch)
    loss = hidden.new_zeros((), dtype=torch.float32)
    if batch.ordinary.any():
        loss = loss + _losses(model, hidden, batch, batch.ordinary).mean()
    if batch.identifier.any():
        # Without the cap, one token that is made ever less likely would pay for all others.
        failing = _losses(model, hidden, batch, batch.identifier).clamp(max=LOSS_CAP)
        loss = loss - settings.adversary * failing.mean()
    return loss


def _losses(model: Any, hidden: Tensor, batch: Batch, where: Tensor) -> Tensor:
    """Compute the cross-entropy in nats of every token of one sort, [tokens]."""
    scores = precise(families.logits(model, hidden[where.to(hidden.device)]))
    return functional.cross_entropy(
        scores, batch.targets[where].to(scores.device), reduction="none"
    )


def _rises(model: Any, batches: Sequence[Batch], outputs: Outputs, masks: Means) -> Means:
    """Compute each neuron's share of the rise of the mean loss on identifier tokens, [neurons]."""
    tokens = sum(int(batch.identifier.sum()) for batch in batches)
    rises = {site: torch.zeros_like(values) for site, values in masks.items()}
    with frozen(model), torch.enable_grad():
        for step in range(PATH_STEPS):
            # Midpoints: their sum misses the integral by far less than that of left or right ends.
            share = (step + 0.5) / PATH_STEPS
            at = {
                site: (1 - share * (1 - values)).to(model.device).requires_grad_()
                for site, values in masks.items()
            }
            for batch in batches:
                with masked(model, outputs, at):
                    hidden = states(model, batch)
                    loss = _losses(model, hidden, batch, batch.identifier).sum()
                slopes = torch.autograd.grad(loss, list(at.values()))
                for site, slope in zip(at, slopes, strict=True):
                    rises[site] -= (1 - masks[site]) * slope.cpu() / (tokens * PATH_STEPS)
    return rises
