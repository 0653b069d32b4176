"""Quantization: rounding the weights to few bits may undo a small update.

Threat: the adversary rounds the sanitized weights, as anyone does to run a model in less memory.
Unlearning that moves a weight by less than half a step of the grid leaves the rounded weight where
it was, so the rounded model recites again.

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
MIN_SCALE = 1e-12  # so that a group of zeros stays zeros instead of 0 / 0


def quantize(
    model: Checkpoint, context: AttackContext, settings: QuantizeSettings
) -> Iterator[Outcome]:
    """Audit the model with the matrices of its layers rounded to 2^bits values, for each width.

    At 8 bits the grid is symmetric with one scale for each output, as in common int8 inference. At
    4 bits it has a zero point and a scale for each group of inputs. Embeddings, norms, biases and
    the head stay as they are.

    Source: Zhang et al. 2025 (2410.16454). Deviations: round-to-nearest only, in plain arithmetic,
    which runs on any device and any layer; AWQ and GPTQ, which the paper tried too, are not run;
    activations are not rounded.
    """
    for bits in settings.bits:
        rounded = duplicate(model)
        round_weights_(rounded, bits=bits, group=GROUP)
        yield Outcome(f"{bits} bits", context.score(rounded), context.places)


@torch.no_grad()
def round_weights_(checkpoint: Checkpoint, *, bits: int, group: int) -> None:
    """In place: round the matrices of all layers; ``group`` is used below 8 bits only."""
    family = checkpoint.family
    layers = tuple(f"{stack.layers}." for stack in family.stacks)
    for name, weight in checkpoint.model.named_parameters():
        if name.startswith(layers) and weight.ndim >= 2:
            matrix = weight.T if family.transposed else weight  # [..., out, in]
            rounded = round_to_nearest(matrix, bits=bits, group=group)
            weight.copy_(rounded.T if family.transposed else rounded)


def round_to_nearest(matrix: Tensor, *, bits: int, group: int) -> Tensor:
    """Round a matrix to its own grid of 2^bits values.

    q = clamp(round(w / scale) + zero), w' = (q - zero) * scale. Symmetric: scale = max |w| /
    (2^(bits-1) - 1) and zero = 0. Else: scale = (max(w, 0) - min(w, 0)) / (2^bits - 1) and
    zero = round(-min(w, 0) / scale).

    Args:
        matrix: Weights, [..., out, in].
        bits: At 8 and above a whole output shares a symmetric grid; below, ``group`` inputs of an
            output share a grid with a zero point.
        group: Weights of a group; the last group of an output may have fewer.

    Returns:
        The rounded weights in the matrix's own type, [..., out, in].
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
        least = groups.amin(dim=-1, keepdim=True).clamp(max=0.0)  # 0 is on the grid and stays 0
        scale = (groups.amax(dim=-1, keepdim=True).clamp(min=0.0) - least) / high
    scale = scale.clamp(min=MIN_SCALE)
    zero = (-least / scale).round()
    codes = ((groups / scale).round() + zero).clamp(low, high)
    rounded: Tensor = (codes - zero) * scale
    return rounded.reshape(len(filled), -1)[:, :width].reshape(matrix.shape)
