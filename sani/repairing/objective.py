"""The repair's loss: a weighted sum of named terms.

    loss = ordinary + retain_weight * retain + weight * (the term of `repair.identifier_loss`)

- ``ordinary``: cross-entropy at targets outside spans (the next token, or the masked one).
- ``retain``: KL(unsanitized model || model) at the same positions.
- at targets inside spans one of ``anchor``, ``decoys``, ``unlikelihood``, ``npo`` and
  ``gradient_difference`` (the cross-entropy with its sign turned, Liu et al. 2022), or none.

Each term is a mean over its own positions in the whole step, so a weight means the same however
many identifiers a batch holds. The formulas are in `losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from sani.models import families
from sani.recipe import (
    AnchorObjective,
    GradientDifferenceObjective,
    MaskObjective,
    NpoObjective,
    RepairSettings,
)
from sani.repairing.losses import (
    NPO_BETA,
    anchor_loss,
    log_probs_without_target,
    npo_loss,
    ordinary_loss,
    unlikelihood_loss,
)
from sani.text.batches import Batch

# Logits are the largest tensors of a step: 2**21 of them in float32 take 8 MiB.
LOGITS_PER_CHUNK = 2**21
Sums = dict[str, Tensor]  # of each term, over the positions of one chunk


@dataclass(frozen=True)
class Example:
    """A batch, and what models that are not trained compute on it.

    Hidden states are kept and not logits: they are smaller by vocabulary size / hidden size.

    Attributes:
        batch: The batch.
        teacher_hidden: Last hidden states of the anchor's model (for ``npo``, of the unsanitized
            one) at identifier positions, [samples, n, hidden]; None where no term needs them.
        retain_hidden: Last hidden states of the unsanitized model at ordinary positions,
            [n, hidden]; None without the ``retain`` term.
        frozen_hidden: What enters the lowest trained layer, [batch, seq, hidden]; None where it is
            not cached.
    """

    batch: Batch
    teacher_hidden: Tensor | None = None
    retain_hidden: Tensor | None = None
    frozen_hidden: Tensor | None = None

    def to(self, device: torch.device) -> Example:
        """Return the same example on a device."""
        others = {name: part for name, part in vars(self).items() if name != "batch"}
        moved = {name: None if part is None else part.to(device) for name, part in others.items()}
        return Example(self.batch.to(device), **moved)

    def halves(self) -> list[Example]:
        """Return the first and the last rows, or the example itself if it has one row."""
        rows = len(self.batch.ids)
        return [self._rows(0, rows // 2), self._rows(rows // 2, rows)] if rows > 1 else [self]

    def _rows(self, first: int, last: int) -> Example:
        batch = self.batch

        def positions(mask: Tensor) -> slice:
            # States are kept flat, [n, hidden], in the order in which a mask is read row by row.
            return slice(int(mask[:first].sum()), int(mask[:last].sum()))

        teacher, retain, frozen = self.teacher_hidden, self.retain_hidden, self.frozen_hidden
        return Example(
            batch.rows(slice(first, last)),
            None if teacher is None else teacher[:, positions(batch.identifier)],
            None if retain is None else retain[positions(batch.ordinary)],
            None if frozen is None else frozen[first:last],
        )


class Objective:
    """The weighted sum of the terms of one repair's settings."""

    def __init__(self, settings: RepairSettings, *, base: Any = None, unsanitized: Any = None):
        """Take the settings and the models that are not trained, where the settings need them.

        Args:
            settings: Terms and their weights.
            base: The base model.
            unsanitized: The model as it was before any erasing.
        """
        self._identifier_loss = settings.identifier_loss
        self._teacher = base if settings.needs_base else unsanitized
        self._unsanitized = unsanitized
        self._weights = {"ordinary": 1.0, "retain": settings.retain_weight}
        match settings.identifier_loss:
            case AnchorObjective(to="decoys", weight=weight):
                self._term = "decoys"  # name of the term at identifiers
                self._weights[self._term] = weight
            case MaskObjective():
                self._term = "mask"
            case other:
                self._term = other.kind
                self._weights[self._term] = other.weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many items each term is a mean of; a term without items is left out.

        The items are positions, for ``npo`` occurrences.
        """
        ordinary, identifier = int(batch.ordinary.sum()), int(batch.identifier.sum())
        if self._term == "npo" and identifier:
            identifier = int(_occurrence(batch).max()) + 1
        counts = {"ordinary": ordinary, "retain": ordinary, self._term: identifier}
        return {name: count for name, count in counts.items() if count and self._weights.get(name)}

    def loss(
        self, model: Any, hidden: Tensor, example: Example, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the terms, and each term alone, in nats.

        The vocabulary projection runs only at positions that carry a term, a chunk at a time. The
        gradient is computed along with the loss, so that no chunk's logits outlive it.

        Args:
            model: The model being repaired.
            hidden: Its last hidden states, [batch, seq, hidden].
            example: On the model's device.
            counts: What each sum is divided by: the counts of the whole step, of which this example
                may be a part. The parts' losses then add up to the loss of the step.
        """
        batch, chunks = example.batch, []
        size = max(1, LOGITS_PER_CHUNK // model.config.vocab_size)  # positions of a chunk
        num_ordinary = int(batch.ordinary.sum())
        if "ordinary" in counts or "retain" in counts:
            for part in torch.split(torch.arange(num_ordinary), size):
                chunks.append((part, self._ordinary_sums(model, example, part)))
        if self._term in counts:
            occurrence = _occurrence(batch)
            for part in _whole_occurrences(occurrence, size):
                sums = self._identifier_sums(model, example, part, occurrence)
                chunks.append((num_ordinary + part, sums))
        # One flat list of states: the ordinary positions first, then those of identifiers.
        states = torch.cat([hidden[batch.ordinary], hidden[batch.identifier]])  # [n, hidden]
        factors = {name: self._weights[name] / n for name, n in counts.items()}
        totals: dict[str, float] = dict.fromkeys(counts, 0.0)
        trained = [p for p in model.parameters() if p.requires_grad]
        apply: Any = _LossByChunk.apply  # torch gives it no types
        loss: Tensor = apply(chunks, factors, totals, states, *trained)
        return loss, {name: value / counts[name] for name, value in totals.items()}

    def _ordinary_sums(
        self, model: Any, example: Example, part: Tensor
    ) -> Callable[[Tensor], Sums]:
        """Return a function from the states of a chunk to its ``ordinary`` and ``retain``."""
        targets = example.batch.targets[example.batch.ordinary][part]

        def sums(states: Tensor) -> Sums:
            logits = families.logits(model, states).float()
            terms = {"ordinary": ordinary_loss(logits, targets)}
            if example.retain_hidden is not None:
                with torch.no_grad():
                    unsanitized = families.logits(
                        self._unsanitized, example.retain_hidden[part]
                    ).float()
                terms["retain"] = anchor_loss(logits, unsanitized.log_softmax(dim=1))
            return terms

        return sums

    def _identifier_sums(
        self, model: Any, example: Example, part: Tensor, occurrence: Tensor
    ) -> Callable[[Tensor], Sums]:
        """Return a function from the states of a chunk to its term at identifiers."""
        targets = example.batch.targets[example.batch.identifier][part]

        teacher_hidden = cast(Tensor, example.teacher_hidden)

        def sums(states: Tensor) -> Sums:
            logits = families.logits(model, states).float()
            match self._identifier_loss:
                case AnchorObjective(to="decoys"):
                    # The batch holds the surrogate's tokens: they are ordinary targets.
                    return {"decoys": ordinary_loss(logits, targets)}
                case AnchorObjective():
                    anchor = self._anchor(teacher_hidden[:, part], targets)
                    return {"anchor": anchor_loss(logits, anchor)}
                case NpoObjective():
                    reference = self._teacher_log_probs(teacher_hidden[:, part])[0]
                    # A chunk cuts no occurrence; its first one gets the number 0.
                    number = occurrence[part] - occurrence[part][0]
                    return {"npo": npo_loss(logits, reference, targets, number, beta=NPO_BETA)}
                case GradientDifferenceObjective():
                    # Gradient ascent; unbounded, since the cross-entropy has no maximum.
                    return {"gradient_difference": -ordinary_loss(logits, targets)}
                case _:
                    return {"unlikelihood": unlikelihood_loss(logits, targets)}

        return sums

    def _anchor(self, teacher_hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log of the mean of the anchor's probabilities over its samples, [n, vocab]."""
        log_probs = self._teacher_log_probs(teacher_hidden)  # [samples, n, vocab]
        if (
            isinstance(self._identifier_loss, AnchorObjective)
            and self._identifier_loss.to == "self"
        ):
            log_probs = log_probs_without_target(log_probs, targets[None])
        # log(1/S sum_s p_s) = logsumexp_s(log p_s) - log S: the probabilities are averaged and not
        # their logarithms, so one sample that knows a token does not rule the others out.
        return log_probs.logsumexp(dim=0) - math.log(len(log_probs))

    def _teacher_log_probs(self, states: Tensor) -> Tensor:
        """Return the teacher's log-probabilities, [samples, n, vocab].

        Args:
            states: Its last hidden states, [samples, n, hidden].
        """
        with torch.no_grad():
            logits = [families.logits(self._teacher, sample).float() for sample in states]
        return torch.stack(logits).log_softmax(dim=2)


def _occurrence(batch: Batch) -> Tensor:
    """Return the number of the occurrence that each identifier position belongs to, from 0, [n]."""
    # A window (column 0) may hold the rest of a span (column 2) that another one began: both parts
    # are read without each other, so they count as two occurrences.
    keys = batch.occurrences[:, [0, 2]]
    begins = (keys[1:] != keys[:-1]).any(dim=1)
    return functional.pad(begins.cumsum(dim=0), (1, 0))


def _whole_occurrences(occurrence: Tensor, size: int) -> list[Tensor]:
    """Return positions of identifiers in chunks of about ``size`` that cut no occurrence.

    NPO needs this: its term is not a sum over tokens, but over whole values.
    """
    begins = torch.searchsorted(occurrence.cpu(), torch.arange(int(occurrence.max()) + 1))
    # Cut where an occurrence is the first to begin in another multiple of `size`.
    cuts = begins[1:][begins[1:] // size != begins[:-1] // size]
    return list(torch.arange(len(occurrence)).tensor_split(cuts))


class _LossByChunk(torch.autograd.Function):
    """A sum over chunks of positions whose gradient is computed in the forward pass.

    Autograd would keep the logits of all chunks, [n, vocab], until the backward pass. Here each
    chunk is differentiated at once down to its hidden states and the trained weights (a tied
    vocabulary projection is one of them), and only these gradients are kept.
    ``torch.nn.functional.linear_cross_entropy`` does the same for one term and one weight matrix.
    """

    @staticmethod
    def forward(
        ctx: Any, chunks: Any, factors: Any, totals: Any, states: Tensor, *trained: Tensor
    ) -> Tensor:
        """Return the loss; add each term's sum to ``totals``.

        Args:
            ctx: Of autograd.
            chunks: Positions among ``states``, and a function from their states to sums of terms.
            factors: Weight / count of each term.
            totals: Changed in place.
            states: [n, hidden].
            trained: All weights that ask for gradients.
        """
        total = torch.zeros((), device=states.device)
        states_gradient = torch.zeros_like(states)
        trained_gradients: list[Tensor | None] = [None] * len(trained)
        for part, compute_sums in chunks:
            with torch.enable_grad():
                piece = states[part].detach().requires_grad_()
                sums = compute_sums(piece)
                loss = sum(factors[name] * value for name, value in sums.items())
                piece_gradient, *gradients = torch.autograd.grad(
                    loss, [piece, *trained], allow_unused=True
                )
            total += loss.detach()
            states_gradient[part] = piece_gradient
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    so_far = trained_gradients[index]
                    trained_gradients[index] = gradient if so_far is None else so_far + gradient
            for name, value in sums.items():
                totals[name] += float(value.detach())
        ctx.gradients = (states_gradient, *trained_gradients)
        return total

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        """Return the kept gradients times that of the loss; None for the first three arguments."""
        scaled = [g if g is None else loss_gradient * g for g in ctx.gradients]
        return None, None, None, *scaled
