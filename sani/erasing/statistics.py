"""Statistics of each neuron, or each weight, on identifier tokens and on ordinary ones.

A neuron's activation is the input of its output projection. A head's is the root mean square over
its own channels, so that heads and neurons are scored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sani.erasing.hooks import (
    Outputs,
    Site,
    all_of,
    by_position,
    neurons_of,
    recorded,
    states,
)
from sani.errors import SelectionError
from sani.models import families
from sani.models.neurons import Layout, Output, Slice
from sani.text.batches import Batch

Means = dict[Site, Tensor]


def activation_means(model: Any, batches: Sequence[Batch], outputs: Outputs) -> tuple[Means, Means]:
    """Compute the mean |activation| at positions that predict identifier tokens, and at others.

    Args:
        model: In evaluation mode.
        batches: Documents with spans.
        outputs: Where each site's activations go in; none of an encoder beside a decoder.

    Returns:
        Two tensors for each site, [neurons].

    Raises:
        SelectionError: If one of the two sorts of token does not occur.
    """
    totals = _Totals(neurons_of(outputs))
    with torch.no_grad(), recorded(model, all_of(outputs)) as seen:
        for batch in batches:
            states(model, batch)
            for site, of_site in outputs.items():
                size = torch.cat(
                    [_per_neuron(by_position(seen[o], batch.ids), o.neurons) for o in of_site],
                    dim=-1,
                )  # [batch, seq, neurons]
                totals.add(site, size[batch.identifier].sum(0), size[batch.ordinary].sum(0))
            totals.count(batch)
    return totals.means()


def gradient_means(model: Any, batches: Sequence[Batch], outputs: Outputs) -> tuple[Means, Means]:
    """Compute the mean |activation x gradient| of the loss on identifier and on ordinary tokens.

    The gradient is that of the summed cross-entropy over the tokens of one sort; the product is
    the first-order change of that loss if the neuron were cut (Molchanov et al. 2017). An encoder
    beside a decoder has a share in that loss too, at every position.
    Arguments, returns and errors as for `activation_means`.
    """
    totals = _Totals(neurons_of(outputs))
    with torch.enable_grad(), recorded(model, all_of(outputs)) as seen:
        for batch in batches:
            hidden = states(model, batch)
            products = [
                _products(model, hidden, batch, where, seen, outputs)
                for where in (batch.identifier, batch.ordinary)
            ]
            for site in outputs:
                totals.add(site, products[0][site], products[1][site])
            totals.count(batch)
    return totals.means()


def channel_means(
    model: Any, batches: Sequence[Batch], outputs: Sequence[Output]
) -> dict[Output, Tensor]:
    """Compute each channel's mean activation over the positions that predict a token, each once.

    In an encoder beside a decoder, over the tokens that it reads, again with each window of text.

    Args:
        model: In evaluation mode.
        batches: Documents, with spans or without.
        outputs: Where the activations go in.

    Returns:
        A tensor for each, [channels], float64.
    """
    sums: dict[Output, Tensor] = {}
    counts = dict.fromkeys(outputs, 0)
    with torch.no_grad(), recorded(model, outputs) as seen:
        for batch in batches:
            states(model, batch)
            for output, activation in seen.items():
                ids, where = batch.ids, batch.identifier | batch.ordinary
                if output.of_source and batch.source is not None and batch.source_seen is not None:
                    ids, where = batch.source, batch.source_seen
                total = by_position(activation, ids)[where].double().sum(0).cpu()
                sums[output] = sums[output] + total if output in sums else total
                counts[output] += int(where.sum())
    if not all(counts.values()):
        raise SelectionError("the corpus has no token, so there is no mean activation")
    return {output: total / counts[output] for output, total in sums.items()}


def fisher_diagonals(
    model: Any, batches: Sequence[Batch], names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute Fisher diagonals of the loss on identifier tokens, and on ordinary ones.

    The empirical Fisher of selective synaptic dampening (Foster et al. 2024, 2308.07707): the mean
    over samples of the squared gradient. A sample is a row of a batch, which is a document, or a
    window of one that is too long; its loss is the mean cross-entropy over its tokens of one sort,
    and a row without any is no sample of that sort. The paper's large set also holds what is to
    be forgotten; here it is the ordinary tokens alone. One forward pass and at most two backward
    passes a document; memory: three times these tensors.

    Args:
        model: In evaluation mode.
        batches: Documents with spans.
        names: Parameters.

    Returns:
        Two tensors for each name, of its shape, in float32 or better.

    Raises:
        SelectionError: If one of the two sorts of token does not occur.
    """
    weights = dict(model.named_parameters())
    tensors = [weights[name] for name in names]
    sums = [[torch.zeros_like(precise(tensor)) for tensor in tensors] for _ in range(2)]
    counts = [0, 0]
    with torch.enable_grad():
        for row in _rows(batches):
            hidden = states(model, row)
            for sort, where in enumerate((row.identifier, row.ordinary)):
                if not where.any():
                    continue
                scores = families.logits(model, hidden[where.to(model.device)])
                targets = row.targets[where].to(model.device)
                loss = functional.cross_entropy(precise(scores), targets)
                # The forward pass serves both sorts: its graph stays until the second is done.
                gradients = torch.autograd.grad(
                    loss, tensors, retain_graph=sort == 0, materialize_grads=True
                )
                for total, gradient in zip(sums[sort], gradients, strict=True):
                    total += gradient.to(total.dtype).square()
                counts[sort] += 1
    if 0 in counts:
        raise _no_token(("identifier", "ordinary")[counts.index(0)])
    identifier, ordinary = (
        {name: total / count for name, total in zip(names, totals, strict=True)}
        for totals, count in zip(sums, counts, strict=True)
    )
    return identifier, ordinary


def _rows(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield batches of one row each."""
    for batch in batches:
        for number in range(len(batch.ids)):
            yield batch.rows(slice(number, number + 1))


def fisher_means(
    model: Any, batches: Sequence[Batch], layout: Layout, sizes: Mapping[Site, int]
) -> tuple[Means, Means]:
    """Compute sums of `fisher_diagonals` over the weights of each neuron; errors as there.

    Args:
        model: In evaluation mode.
        batches: Documents with spans.
        layout: Places of the neurons. A key and value head that several heads share is none of
            theirs.
        sizes: Neurons or heads of each site.

    Returns:
        For identifier tokens and for ordinary ones, a tensor for each site, [neurons].
    """
    names = {piece.name for layer, part in sizes for piece, _ in layout.owned(part, layer=layer)}
    identifier, ordinary = (
        {
            site: per_neuron(layout, site, size, partial(_along, diagonals))
            for site, size in sizes.items()
        }
        for diagonals in fisher_diagonals(model, batches, sorted(names))
    )
    return identifier, ordinary


def per_neuron(
    layout: Layout, site: Site, size: int, sums_along: Callable[[Slice], Tensor]
) -> Tensor:
    """Add up a measure of each number of a layer's tensors over what is each neuron's alone.

    Args:
        layout: Places of the neurons.
        site: The layer and part.
        size: Its neurons or heads.
        sums_along: Sums over a slice's tensor at each index along its dimension, float64; called
            once for each tensor, dimension and expert.

    Returns:
        [neurons], float64.
    """
    sums = torch.zeros(size, dtype=torch.float64)
    along: dict[tuple[str, int, int | None], Tensor] = {}
    for piece, owners in layout.owned(site[1], layer=site[0]):
        key = piece.name, piece.dim, piece.expert
        if key not in along:
            along[key] = sums_along(piece)
        sums.index_add_(0, owners, along[key][piece.index])
    return sums


def _along(diagonals: Mapping[str, Tensor], piece: Slice) -> Tensor:
    """Sum a slice's tensor at each index along the slice's dimension, float64."""
    whole = piece.of(diagonals[piece.name]).double().cpu()
    return whole.movedim(piece.dim, 0).flatten(1).sum(1) if whole.ndim > 1 else whole


def _products(
    model: Any,
    hidden: Tensor,
    batch: Batch,
    where: Tensor,
    seen: Mapping[Output, Tensor],
    outputs: Outputs,
) -> Means:
    """Sum |activation x gradient| over all positions, of the loss on the tokens ``where``."""
    if not where.any():
        return {site: torch.zeros(size) for site, size in neurons_of(outputs).items()}
    targets = batch.targets[where].to(hidden.device)
    loss = functional.cross_entropy(families.logits(model, hidden[where]), targets, reduction="sum")
    gradients = torch.autograd.grad(loss, list(seen.values()), retain_graph=True)
    products = {
        output: _per_neuron(activation * gradient, output.neurons).flatten(0, -2).sum(0).detach()
        for (output, activation), gradient in zip(seen.items(), gradients, strict=True)
    }
    return {site: torch.cat([products[o] for o in part]).cpu() for site, part in outputs.items()}


class _Totals:
    """Sums over the two sorts of token, in float64: a corpus has too many for float32."""

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
            raise _no_token(("identifier", "ordinary")[self._counts.index(0)])
        identifier, ordinary = self._counts
        return (
            {site: sums[0] / identifier for site, sums in self._sums.items()},
            {site: sums[1] / ordinary for site, sums in self._sums.items()},
        )


def _no_token(sort: str) -> SelectionError:
    return SelectionError(f"the corpus has no {sort} token, so there is no ratio to select by")


def _per_neuron(activation: Tensor, neurons: int) -> Tensor:
    """Compute each neuron's |activation|, or each head's root mean square, [..., neurons]."""
    width = activation.shape[-1] // neurons
    grouped = activation.reshape(*activation.shape[:-1], neurons, width)
    return grouped.float().square().mean(-1).sqrt()


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in its own type where that is better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Within, no parameter takes a gradient, so a backward pass goes no deeper than it must."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
