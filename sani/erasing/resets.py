"""The resets that run the model: the mean activation in the next bias, and dampening."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

import torch
from torch import Tensor

from sani.erasing.hooks import all_of, outputs_of
from sani.erasing.plan import ErasePlan, layout_of
from sani.erasing.selector_batches import Texts
from sani.erasing.statistics import channel_means, fisher_diagonals
from sani.errors import SelectionError
from sani.models.checkpoint import Checkpoint
from sani.models.neurons import Output, Slice
from sani.recipe import DampenSettings

Dampening = Callable[[Slice, Tensor], Tensor]


def folded_biases(
    checkpoint: Checkpoint, plan: ErasePlan, *, texts: Texts | None
) -> dict[str, Tensor]:
    """Compute biases of output projections with the mean activation of a plan's neurons in them.

    The means are over the positions that predict a token, of the model as it is. Once the neurons
    are zeroed, the model gives what it gave with their activation held at its mean.

    Args:
        checkpoint: The model, not changed.
        plan: Neurons to reset.
        texts: The documents.

    Returns:
        New values by parameter name.

    Raises:
        SelectionError: If an output projection has no bias, or the documents are missing.
    """
    layout, weights = layout_of(checkpoint), dict(checkpoint.model.named_parameters())
    sites = [(entry.layer, entry.part) for entry in plan.entries if entry.neurons]
    outputs = all_of(outputs_of(layout, sites))
    check_biases(outputs, weights)
    by_output = channel_means(checkpoint.model, _needed(texts, plan).batches(), outputs)
    means = {f"{output.name}.weight": (output.name, mean) for output, mean in by_output.items()}
    biases: dict[str, Tensor] = {}
    for entry in plan.entries:
        for piece in layout.slices(entry.part, layer=entry.layer, neurons=entry.neurons):
            if piece.name not in means:
                continue
            module, mean = means[piece.name]
            # In float64: thousands of columns are summed, and the sum is rounded once, at the end.
            weight = weights[piece.name].detach().double().cpu()
            columns = weight.index_select(piece.dim, piece.index)
            added = torch.tensordot(mean[piece.index], columns, dims=([0], [piece.dim]))
            bias = weights[f"{module}.bias"].detach()
            biases[f"{module}.bias"] = (bias.double().cpu() + added).to(bias)
    return biases


def check_biases(outputs: Iterable[Output], names: Container[str]) -> None:
    """Refuse reset ``mean`` where an output projection has no bias.

    Args:
        outputs: Output projections.
        names: Names of the model's parameters.

    Raises:
        SelectionError: If one has none.
    """
    for output in outputs:
        if f"{output.name}.bias" not in names:
            raise SelectionError(
                f"reset 'mean' puts the mean activation into the bias of '{output.name}', which "
                "this model lacks (GPT-2 has such biases, most Llama-like models do not); choose "
                "zero, rewind or reinit"
            )


def dampening(checkpoint: Checkpoint, plan: ErasePlan, *, texts: Texts | None) -> Dampening:
    """Return the selective synaptic dampening of a plan's neurons (Foster et al. 2024).

    A weight is multiplied by min(scale * ordinary / identifier, 1) where identifier > above *
    ordinary, the two being its Fisher diagonals; see `fisher_diagonals` for what a sample is. The
    paper dampens every weight of the model, this one those of the chosen neurons.

    Args:
        checkpoint: The model, not changed.
        plan: Neurons to reset.
        texts: The documents.

    Returns:
        A function from a slice and its values to its new values.

    Raises:
        SelectionError: If the documents are missing, or a Fisher diagonal is NaN or infinite.
    """
    layout, rule = layout_of(checkpoint), plan.dampen or DampenSettings()
    names = sorted(
        {
            piece.name
            for entry in plan.entries
            for piece in layout.slices(entry.part, layer=entry.layer, neurons=entry.neurons)
        }
    )
    identifier, ordinary = fisher_diagonals(checkpoint.model, _needed(texts, plan).batches(), names)
    tensors = [*identifier.values(), *ordinary.values()]
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise SelectionError("a weight's Fisher diagonal is NaN or infinite; check the checkpoint")

    def dampen(piece: Slice, values: Tensor) -> Tensor:
        index = piece.index.to(values.device)
        of_identifiers, of_text = (
            piece.of(diagonals[piece.name]).index_select(piece.dim, index)
            for diagonals in (identifier, ordinary)
        )
        # Where both are 0 the factor is NaN, and the condition is false: the weight stays.
        factor = (rule.scale * of_text / of_identifiers).clamp(max=1)
        return torch.where(
            of_identifiers > rule.above * of_text, values * factor.to(values), values
        )

    return dampen


def _needed(texts: Texts | None, plan: ErasePlan) -> Texts:
    if texts is None:
        raise SelectionError(
            f"reset '{plan.reset}' needs the corpus; give --corpus, or choose zero"
        )
    return texts
