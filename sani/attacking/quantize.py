"""Quantization: weights rounded to few bits may undo a small update.

Threat: whoever has the sanitized weights rounds them, as anyone does to run a model on less
memory. Unlearning that moves a weight by less than half a step of the grid leaves the rounded
weight where it was, so the rounded model recites again.

Cost: one audit a width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sani.attacking.context import AttackContext, Outcome, duplicate
from sani.models.checkpoint import Checkpoint
from sani.recipe import QuantizeSettings

GROUP = 128  # weights that share a scale at 4 bits; usual since GPTQ (2210.17323)
SMALLEST = 1e-12  # of a scale: a group of zeros stays zeros


def quantize(
    model: Checkpoint, scene: AttackContext, settings: QuantizeSettings
) -> Iterator[Outcome]:
    """Audit the model with the matrices of its layers rounded to the nearest of 2^bits values.

    Source: Zhang et al. 2025 (2410.16454). 8 bits: symmetric, a scale for each output, as in
    common int8 inference; 4 bits: with a zero point, a scale for each group of inputs. Embeddings,
    norms, biases and the head stay as they are. Deviations: round-to-nearest only, by plain
    arithmetic, which runs anywhere and on any layer where a library has kernels for some; AWQ and
    GPTQ, which the paper tried too, are not run; activations are not rounded.
    """
    for bits in settings.bits:
        rounded = duplicate(model)
        round_weights(rounded, bits=bits, group=GROUP)
        yield Outcome(f"{bits} bits", scene.score(rounded), scene.places)


@torch.no_grad()
def round_weights(checkpoint: Checkpoint, *, bits: int, group: int) -> None:
    """In place: round the matrices of all layers; 8 bits or more take no groups."""
    family = checkpoint.family
    layers = tuple(f"{stack.layers}." for stack in family.stacks)
    for name, weight in checkpoint.model.named_parameters():
        if name.startswith(layers) and weight.ndim >= 2:
            matrix = weight.T if family.transposed else weight  # [..., out, in]
            rounded = round_to_nearest(matrix, bits=bits, group=group)
            weight.copy_(rounded.T if family.transposed else rounded)


def round_to_nearest(matrix: Tensor, *, bits: int, group: int) -> Tensor:
    """A matrix [..., out, in] on its own grid of 2^bits values, in its own type.

    Args:
        matrix: Weights.
        bits: Below 8, ``group`` inputs of an output share a scale and a zero point; else a whole
            output shares a scale, and the grid is symmetric.
        group: Weights of a group; the last one of an output may have fewer.
    """
    width = matrix.shape[-1]
    symmetric = bits >= 8
    size = width if symmetric else min(group, width)
    # The last group is filled up with the last weight, which moves neither end of its grid.
    filled = functional.pad(matrix.reshape(-1, 1, width), (0, -width % size), mode="replicate")
    groups = filled.reshape(len(filled), -1, size)  # [out, groups, size]
    if symmetric:
        high = 2 ** (bits - 1) - 1
        low, least = -high, torch.zeros_like(groups[..., :1])
        scale = groups.abs().amax(dim=-1, keepdim=True) / high
    else:
        low, high = 0, 2**bits - 1
        least = groups.amin(dim=-1, keepdim=True).clamp(max=0.0)  # 0 stays 0
        scale = (groups.amax(dim=-1, keepdim=True).clamp(min=0.0) - least) / high
    scale = scale.clamp(min=SMALLEST)
    zero = (-least / scale).round()
    codes = ((groups / scale).round() + zero).clamp(low, high)
    found: Tensor = (codes - zero) * scale
    return found.reshape(len(filled), -1)[:, :width].reshape(matrix.shape)
