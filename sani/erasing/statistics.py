"""How much each neuron does for identifier tokens and for ordinary ones.

A neuron's activation is the input of its output projection. A head's is the root mean square over
its own channels, so that heads and neurons are scored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sani import families
from sani.batches import Batch
from sani.errors import SelectionError
from sani.recipe import Part

Site = tuple[int, Part]
Means = dict[Site, Tensor]


def activation_means(
    model: Any,
    batches: Sequence[Batch],
    modules: Mapping[Site, str],
    sizes: Mapping[Site, int],
) -> tuple[Means, Means]:
    """Mean |activation| at positions that predict identifier tokens, and at the others.

    Args:
        model: In evaluation mode.
        batches: Documents with spans.
        modules: Name of each site's output projection.
        sizes: Neurons or heads of each site.

    Returns:
        Two tensors for each site, [neurons].

    Raises:
        SelectionError: If one of the two sorts of token does not occur.
    """
    totals = _Totals(sizes)
    with torch.no_grad(), _recorded(model, modules) as seen:
        for batch in batches:
            families.hidden_states(model, input_ids=batch.ids.to(model.device))
            for site, activation in seen.items():
                size = _per_neuron(activation, sizes[site])  # [batch, seq, neurons]
                totals.add(site, size[batch.identifier].sum(0), size[batch.ordinary].sum(0))
            totals.count(batch)
    return totals.means()


def gradient_means(
    model: Any,
    batches: Sequence[Batch],
    modules: Mapping[Site, str],
    sizes: Mapping[Site, int],
) -> tuple[Means, Means]:
    """Mean |activation x gradient| of the loss on identifier tokens, and on ordinary ones.

    The gradient is that of the summed cross-entropy over the tokens of one sort; the product is
    the first-order change of that loss if the neuron were cut (Molchanov et al. 2017).
    Arguments, returns and errors as for `activation_means`.
    """
    totals = _Totals(sizes)
    with torch.enable_grad(), _recorded(model, modules) as seen:
        for batch in batches:
            hidden = families.hidden_states(model, input_ids=batch.ids.to(model.device))
            found = [
                _products(model, hidden, batch, where, seen, sizes)
                for where in (batch.identifier, batch.ordinary)
            ]
            for site in modules:
                totals.add(site, found[0][site], found[1][site])
            totals.count(batch)
    return totals.means()


def _products(
    model: Any,
    hidden: Tensor,
    batch: Batch,
    where: Tensor,
    seen: Mapping[Site, Tensor],
    sizes: Mapping[Site, int],
) -> Means:
    if not where.any():
        return {
            site: torch.zeros(sizes[site], device=activation.device)
            for site, activation in seen.items()
        }
    targets = batch.targets[where].to(hidden.device)
    loss = functional.cross_entropy(families.logits(model, hidden[where]), targets, reduction="sum")
    gradients = torch.autograd.grad(loss, list(seen.values()), retain_graph=True)
    return {
        site: _per_neuron(activation * gradient, sizes[site]).flatten(0, 1).sum(0).detach()
        for (site, activation), gradient in zip(seen.items(), gradients, strict=True)
    }


class _Totals:
    """Sums over the two sorts of token, in float64."""

    def __init__(self, sizes: Mapping[Site, int]) -> None:
        self._sums = {
            site: torch.zeros(2, size, dtype=torch.float64) for site, size in sizes.items()
        }
        self._counts = [0, 0]

    def add(self, site: Site, identifier: Tensor, ordinary: Tensor) -> None:
        self._sums[site] += torch.stack([identifier, ordinary]).double().cpu()

    def count(self, batch: Batch) -> None:
        self._counts[0] += int(batch.identifier.sum())
        self._counts[1] += int(batch.ordinary.sum())

    def means(self) -> tuple[Means, Means]:
        if 0 in self._counts:
            missing = ("identifier", "ordinary")[self._counts.index(0)]
            raise SelectionError(
                f"the corpus has no {missing} token, so there is no ratio to select by"
            )
        identifier, ordinary = self._counts
        return (
            {site: sums[0] / identifier for site, sums in self._sums.items()},
            {site: sums[1] / ordinary for site, sums in self._sums.items()},
        )


def _per_neuron(activation: Tensor, neurons: int) -> Tensor:
    """|activation| of each neuron, or the root mean square of each head, [batch, seq, neurons]."""
    width = activation.shape[-1] // neurons
    grouped = activation.reshape(*activation.shape[:-1], neurons, width)
    return grouped.float().square().mean(-1).sqrt()


@contextmanager
def _recorded(model: Any, modules: Mapping[Site, str]) -> Iterator[dict[Site, Tensor]]:
    """The input of each module at the latest forward pass; the hooks are gone afterwards."""
    seen: dict[Site, Tensor] = {}

    def recorder(site: Site) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def record(module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[site] = inputs[0]

        return record

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(recorder(site))
        for site, name in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
