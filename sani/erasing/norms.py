"""Norms of each neuron's weights, or of their distance from the base's.

Both read one tensor at a time, so it makes no difference whether it lies in memory or in a file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sani.erasing.statistics import per_neuron
from sani.models.neurons import Layout, Slice
from sani.recipe import Part

BLOCK = 2**22  # numbers that are squared at once


def neuron_norms(
    layout: Layout,
    weights: Mapping[str, Tensor],
    part: Part,
    *,
    layer: int,
    base: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compute the L2 norm over all slices of each neuron of a layer, [neurons], float64.

    Rows that several heads share count for none of them: no head alone owns them.

    Args:
        layout: Places of the neurons.
        weights: By name, at least those of the layer.
        part: Neurons or heads.
        layer: Counted from the input, from 0.
        base: Weights to subtract first; the same names and shapes.
    """

    def squares(piece: Slice) -> Tensor:
        other = None if base is None else piece.of(base[piece.name])
        return _squares(piece.of(weights[piece.name]), other, piece.dim)

    size = layout.num_neurons(part, layer=layer)
    return per_neuron(layout, (layer, part), size, squares).sqrt()


def _squares(tensor: Tensor, other: Tensor | None, dim: int) -> Tensor:
    """Compute the sum of squares at each index along ``dim``, block by block, in float64.

    A block at a time keeps the copy in float64 small; float64 keeps the sum of millions exact
    enough that the order of equal neurons does not depend on the machine.
    """
    sums = torch.zeros(tensor.shape[dim], dtype=torch.float64)
    step = max(1, BLOCK * len(tensor) // tensor.numel())
    for start in range(0, len(tensor), step):
        block = tensor[start : start + step].detach().cpu().double()
        if other is not None:
            block -= other[start : start + step].detach().cpu()
        squares = block.square_().movedim(dim, 0).flatten(1 if block.ndim > 1 else 0)
        if dim == 0:
            sums[start : start + step] = squares.sum(1) if squares.ndim > 1 else squares
        else:
            sums += squares.sum(1)
    return sums
