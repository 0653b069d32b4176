"""The repair's loss: a sum of named terms, each a mean over its own tokens of the batch.

``ordinary``: cross-entropy of the next token, or of the masked one, outside spans. ``skill``: KL to
the unsanitized model there. At tokens inside spans, one of ``anchor``, ``decoys``,
``unlikelihood``, ``npo``, ``gradient_difference`` (Liu et al. 2022: the cross-entropy with its sign
turned) or nothing. The vocabulary projection runs only at positions that carry a term, a chunk at
a time.
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
    NpoObjective,
    RepairSettings,
)
from sani.text.batches import Batch

LOGITS_PER_CHUNK = 2**21
NPO_BETA = 0.1  # inverse temperature; Zhang et al. 2024 (2404.05868)
Sums = dict[str, Tensor]


def ordinary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats.

    Args:
        logits: [n, vocab].
        targets: [n].

    Source: PPclm, Boutet et al. 2025 (2501.02407): identifiers carry no loss and stay as context.
    """
    return functional.cross_entropy(logits, targets, reduction="sum")


def anchor_loss(logits: Tensor, anchor: Tensor) -> Tensor:
    """Summed KL(anchor || model) in nats, over the whole vocabulary.

    Args:
        logits: The model's, [n, vocab].
        anchor: Log-probabilities that never saw the identifiers, [n, vocab].

    Source: ours (a distillation term, Hinton et al. 2015, restricted to identifier tokens).
    """
    return functional.kl_div(logits.log_softmax(dim=1), anchor, log_target=True, reduction="sum")


def unlikelihood_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log(1 - p(target)) in nats; no gradient where the target is impossible already.

    Args:
        logits: [n, vocab].
        targets: The true tokens, [n].

    Source: Welleck et al. 2019 (1908.04319), with the true identifier as the only negative token.
    """
    others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - others).sum()


def npo_loss(
    logits: Tensor, reference: Tensor, targets: Tensor, occurrence: Tensor, *, beta: float
) -> Tensor:
    """Sum over occurrences of -2/beta log sigmoid(-beta log(p(value) / p_reference(value))).

    Args:
        logits: The model's, [n, vocab].
        reference: Log-probabilities of the unsanitized model, [n, vocab].
        targets: The true tokens, [n].
        occurrence: Which occurrence each token belongs to, from 0, [n].
        beta: Inverse temperature; towards 0 this is gradient ascent.

    Source: NPO, Zhang et al. 2024 (2404.05868). Deviation: an occurrence is the unit, not a text.
    """
    ratio = logits.log_softmax(dim=1) - reference
    ratio = ratio.gather(1, targets[:, None]).squeeze(1)
    of_value = ratio.new_zeros(int(occurrence.max()) + 1).index_add(0, occurrence, ratio)
    return 2 / beta * functional.softplus(beta * of_value).sum()


def without(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [..., n, vocab] once one token of each row is made impossible.

    Source: UNDIAL, Dong et al. 2024 (2402.10052), which subtracts a constant; ours is the limit.
    """
    return logits.scatter(-1, targets[..., None], -1e9).log_softmax(dim=-1)


@dataclass(frozen=True)
class Example:
    """A batch, and what models that are not trained say of it.

    Attributes:
        batch: The batch.
        taught: Hidden states at identifier positions, [samples, n, hidden]: the anchor's, or for
            ``npo`` the unsanitized model's. None where the objective needs none.
        skill: The unsanitized model's at ordinary positions, [n, hidden], or None.
        frozen: What enters the lowest trained layer, [batch, seq, hidden], where it is kept.
    """

    batch: Batch
    taught: Tensor | None = None
    skill: Tensor | None = None
    frozen: Tensor | None = None

    def to(self, device: torch.device) -> Example:
        """The same example there."""
        others = {name: part for name, part in vars(self).items() if name != "batch"}
        moved = {name: None if part is None else part.to(device) for name, part in others.items()}
        return Example(self.batch.to(device), **moved)

    def halves(self) -> list[Example]:
        """The first and the last rows; one alone if there is one row only."""
        rows = len(self.batch.ids)
        return [self._rows(0, rows // 2), self._rows(rows // 2, rows)] if rows > 1 else [self]

    def _rows(self, first: int, last: int) -> Example:
        batch = self.batch

        def flat(where: Tensor) -> slice:
            return slice(int(where[:first].sum()), int(where[:last].sum()))

        return Example(
            batch.rows(slice(first, last)),
            None if self.taught is None else self.taught[:, flat(batch.identifier)],
            None if self.skill is None else self.skill[flat(batch.ordinary)],
            None if self.frozen is None else self.frozen[first:last],
        )


class Objective:
    """The sum of terms that the settings ask for."""

    def __init__(self, settings: RepairSettings, *, base: Any = None, unsanitized: Any = None):
        """Take the settings and the models that are not trained, where the settings need them.

        Args:
            settings: Terms and their weights.
            base: The base model.
            unsanitized: The model as it was before any erasing.
        """
        self._at = settings.identifier_loss
        self._teacher = base if settings.needs_base else unsanitized
        self._unsanitized = unsanitized
        name = self._at.to if isinstance(self._at, AnchorObjective) else self._at.kind
        self._name = "decoys" if name == "decoys" else self._at.kind
        self._weights = {"ordinary": 1.0, "skill": settings.retain_weight}
        if self._at.kind != "mask":
            self._weights[self._name] = self._at.weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many tokens (``npo``: occurrences) each term is a mean of, where there are any."""
        ordinary, identifier = int(batch.ordinary.sum()), int(batch.identifier.sum())
        if self._name == "npo" and identifier:
            identifier = int(_occurrence(batch).max()) + 1
        found = {"ordinary": ordinary, "skill": ordinary, self._name: identifier}
        return {name: n for name, n in found.items() if n and self._weights.get(name)}

    def loss(
        self, model: Any, hidden: Tensor, example: Example, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the terms, and each term alone, in nats.

        The gradient is computed along with the loss, so that no chunk's logits outlive it.

        Args:
            model: The model being repaired.
            hidden: Its last hidden states, [batch, seq, hidden].
            example: On the model's device.
            counts: What each sum is divided by: of the whole step, of which this may be a part.
        """
        batch, chunks = example.batch, []
        size = max(1, LOGITS_PER_CHUNK // model.config.vocab_size)
        num_ordinary = int(batch.ordinary.sum())
        if "ordinary" in counts or "skill" in counts:
            for part in torch.split(torch.arange(num_ordinary), size):
                chunks.append((part, self._ordinary_sums(model, example, part)))
        if self._name in counts:
            occurrence = _occurrence(batch)
            for part in _whole_occurrences(occurrence, size):
                sums = self._identifier_sums(model, example, part, occurrence)
                chunks.append((num_ordinary + part, sums))
        states = torch.cat([hidden[batch.ordinary], hidden[batch.identifier]])
        factors = {name: self._weights[name] / n for name, n in counts.items()}
        found: dict[str, float] = dict.fromkeys(counts, 0.0)
        trained = [p for p in model.parameters() if p.requires_grad]
        loss: Tensor = _ByChunk.apply(chunks, factors, found, states, *trained)
        return loss, {name: value / counts[name] for name, value in found.items()}

    def _ordinary_sums(
        self, model: Any, example: Example, part: Tensor
    ) -> Callable[[Tensor], Sums]:
        targets = example.batch.targets[example.batch.ordinary][part]

        def sums(states: Tensor) -> Sums:
            logits = families.logits(model, states).float()
            found = {"ordinary": ordinary_loss(logits, targets)}
            if example.skill is not None:
                with torch.no_grad():
                    known = families.logits(self._unsanitized, example.skill[part]).float()
                found["skill"] = anchor_loss(logits, known.log_softmax(dim=1))
            return found

        return sums

    def _identifier_sums(
        self, model: Any, example: Example, part: Tensor, occurrence: Tensor
    ) -> Callable[[Tensor], Sums]:
        targets = example.batch.targets[example.batch.identifier][part]

        taught = cast(Tensor, example.taught)

        def sums(states: Tensor) -> Sums:
            logits = families.logits(model, states).float()
            match self._at:
                case AnchorObjective(to="decoys"):
                    return {"decoys": ordinary_loss(logits, targets)}
                case AnchorObjective():
                    anchor = self._anchor(taught[:, part], targets)
                    return {"anchor": anchor_loss(logits, anchor)}
                case NpoObjective():
                    known, own = self._log_probabilities(taught[:, part])[0], occurrence[part]
                    return {"npo": npo_loss(logits, known, targets, own - own[0], beta=NPO_BETA)}
                case GradientDifferenceObjective():
                    return {"gradient_difference": -ordinary_loss(logits, targets)}
                case _:
                    return {"unlikelihood": unlikelihood_loss(logits, targets)}

        return sums

    def _anchor(self, taught: Tensor, targets: Tensor) -> Tensor:
        """The anchor's log-probabilities [n, vocab], the mean of those of its samples."""
        known = self._log_probabilities(taught)
        if isinstance(self._at, AnchorObjective) and self._at.to == "self":
            known = without(known, targets[None])
        return known.logsumexp(dim=0) - math.log(len(known))

    def _log_probabilities(self, states: Tensor) -> Tensor:
        """The teacher's, [samples, n, vocab], from its hidden states [samples, n, hidden]."""
        with torch.no_grad():
            logits = [families.logits(self._teacher, sample).float() for sample in states]
        return torch.stack(logits).log_softmax(dim=2)


def _occurrence(batch: Batch) -> Tensor:
    """Number of the occurrence that each identifier position belongs to, from 0, [n]."""
    keys = batch.occurrences[:, [0, 2]]
    begins = (keys[1:] != keys[:-1]).any(dim=1)
    return functional.pad(begins.cumsum(dim=0), (1, 0))


def _whole_occurrences(occurrence: Tensor, size: int) -> list[Tensor]:
    """Positions of identifiers in chunks of about this size that cut no occurrence."""
    begins = torch.searchsorted(occurrence.cpu(), torch.arange(int(occurrence.max()) + 1))
    cuts = begins[1:][begins[1:] // size != begins[:-1] // size]
    return list(torch.arange(len(occurrence)).tensor_split(cuts))


class _ByChunk(torch.autograd.Function):
    """A sum over chunks of positions whose gradient is computed in the forward pass.

    What ``torch.nn.functional.linear_cross_entropy`` does for one term and one weight matrix.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, chunks, factors, found, states: Tensor, *trained: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=states.device)
        gradient = torch.zeros_like(states)
        of_trained: list[Tensor | None] = [None] * len(trained)
        for part, compute in chunks:
            with torch.enable_grad():
                piece = states[part].detach().requires_grad_()
                sums = compute(piece)
                loss = sum(factors[name] * value for name, value in sums.items())
                own, *others = torch.autograd.grad(loss, [piece, *trained], allow_unused=True)
            total += loss.detach()
            gradient[part] = own
            for index, other in enumerate(others):
                if other is not None:
                    kept = of_trained[index]
                    of_trained[index] = other if kept is None else kept + other
            for name, value in sums.items():
                found[name] += float(value.detach())
        ctx.gradients = (gradient, *of_trained)
        return total

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> Any:
        scaled = [g if g is None else of_loss * g for g in ctx.gradients]
        return None, None, None, *scaled
