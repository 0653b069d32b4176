"""Privacy neurons by integrated gradients: they make an identifier likely (DEPN).

Wu et al. 2023 (2310.20138). For a token y of an identifier, read where activation b of a neuron
is scaled from 0 to b in m steps: Att = b/m * sum over j of dP(y)/db at (j/m) b, summed over the
identifier's tokens. As in the authors' code, the neurons of one layer are scaled together, and
only at the position that predicts y; so the attributions of a layer sum, for large m, to what
P(y) loses when the whole layer is silent there. A head's is the sum over its channels: the paper
has no heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sani.erasing.hooks import (
    Outputs,
    Site,
    all_of,
    by_position,
    changed,
    neurons_of,
    recorded,
)
from sani.erasing.selector_batches import Question
from sani.erasing.statistics import Means, frozen, precise
from sani.errors import SelectionError
from sani.models import families
from sani.models.neurons import Output
from sani.recipe import PARTS

# DEPN (2310.20138): an occurrence votes for neurons with this share of its highest attribution.
VOTE_RATIO = 0.1


def attributions(model: Any, question: Question, outputs: Outputs, *, steps: int) -> Means:
    """Compute each neuron's integrated gradient of P(token).

    A causal model reads the text once; each layer then takes a pass of ``steps`` rows, one token
    long. A masked one, one that reads a second text, and one whose layers keep a state take
    ``steps`` whole rows a layer.

    Args:
        model: In evaluation mode.
        question: The token and where it is predicted.
        outputs: Where each site's activations go in; none of an encoder beside a decoder.
        steps: Number of steps from 0 to the activation (m).

    Returns:
        A tensor for each site, [neurons], float64.
    """
    ids = torch.tensor([question.ids], device=model.device)
    position, text = question.at, None
    source = torch.tensor([question.source], device=model.device) if question.source else None
    family = families.family_of(model.config)
    if family.objective == "causal" and family.cached:
        text = DynamicCache()
    with frozen(model):
        with torch.no_grad(), recorded(model, all_of(outputs)) as seen:
            _read(model, ids, source, cache=text)
        values = {
            output: by_position(activation, ids)[0, position] for output, activation in seen.items()
        }  # [channels]
        if text is not None:  # what stands before is in the cache
            ids, position = ids[:, -1:], 0
        share = torch.arange(1, steps + 1, device=model.device)[:, None] / steps
        result = {}
        for site, of_site in outputs.items():
            paths = {
                output: (share.to(values[output].dtype) * values[output]).requires_grad_()
                for output in of_site
            }  # [steps, channels]
            with torch.enable_grad(), _replaced(model, position, paths):
                hidden = _read(
                    model, ids.expand(steps, -1), source, cache=_before_last(text, rows=steps)
                )
                chances = precise(families.logits(model, hidden[:, position])).softmax(-1)
            # Rows do not see each other, so the gradient of the sum is that of each step's chance.
            slopes = torch.autograd.grad(chances[:, question.target].sum(), list(paths.values()))
            # In float64: many small terms of both signs are summed.
            pieces = [
                (values[output].double() * slope.double().mean(0))
                .reshape(output.neurons, -1)
                .sum(-1)
                for output, slope in zip(of_site, slopes, strict=True)
            ]
            result[site] = torch.cat(pieces).cpu()
    return result


def _read(model: Any, ids: Tensor, source: Tensor | None, *, cache: DynamicCache | None) -> Tensor:
    """Compute hidden states for ids [batch, seq], behind a source [1, source] that rows share."""
    if source is None:
        return families.hidden_states(model, input_ids=ids, cache=cache)
    source = source.expand(len(ids), -1)
    seen = torch.ones_like(source, dtype=torch.bool)
    return families.hidden_states(model, input_ids=ids, source_ids=source, source_seen=seen)


def votes(
    model: Any,
    occurrences: Sequence[Sequence[Question]],
    outputs: Outputs,
    *,
    steps: int,
    ratio: float,
) -> Means:
    """Count the occurrences that vote for each neuron; among equals, by mean attribution.

    An occurrence votes for the neurons whose attribution is at least ``ratio`` of its highest, over
    all sites of a part. Neurons and heads vote apart.

    Args:
        model: In evaluation mode.
        occurrences: The questions of each.
        outputs: Where each site's activations go in.
        steps: Number of steps from 0 to the activation (m).
        ratio: In [0, 1].

    Returns:
        Votes plus a share of less than one by mean attribution, [neurons] for each site.

    Raises:
        SelectionError: If there is no occurrence, or an attribution is NaN.
    """
    sizes = neurons_of(outputs)
    counts = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
    means = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
    with_questions = [questions for questions in occurrences if questions]
    if not with_questions:
        raise SelectionError("the corpus has no identifier token, so there is nothing to attribute")
    for questions in with_questions:
        total = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
        for question in questions:
            for site, values in attributions(model, question, outputs, steps=steps).items():
                total[site] += values
        if not all(torch.isfinite(value).all() for value in total.values()):
            raise SelectionError("an attribution is NaN or infinite; check the checkpoint")
        for sites in _by_part(sizes):
            highest = max(float(total[site].max()) for site in sites)
            for site in sites:
                means[site] += total[site] / len(with_questions)
                counts[site] += (total[site] >= ratio * highest) & (total[site] > 0)
    for sites in _by_part(sizes):
        low = min(float(means[site].min()) for site in sites)
        span = max(float(means[site].max()) for site in sites) - low
        for site in sites:  # less than one vote, and finite where all means are equal
            counts[site] += (means[site] - low) / (2 * span + 1e-30)
    return counts


def _replaced(
    model: Any, position: int, values: Mapping[Output, Tensor]
) -> AbstractContextManager[None]:
    """Within, activations are ``values`` [batch, channels] at one position."""

    def replace(output: Output, activation: Tensor) -> Tensor:
        new = values[output]
        rows = activation.reshape(len(new), -1, new.shape[-1]).clone()  # [batch, seq, channels]
        rows[:, position] = new
        return rows.reshape(activation.shape)

    return changed(model, values, replace)


def _before_last(text: DynamicCache | None, *, rows: int) -> DynamicCache | None:
    """Return a cache of the text but for its last token, ``rows`` times; views, nothing copied."""
    if text is None:
        return None
    layers: Any = text.layers
    return DynamicCache(
        [
            tuple(tensor[..., :-1, :].expand(rows, -1, -1, -1) for tensor in (one.keys, one.values))
            for one in layers
        ]
    )


def _by_part(sizes: Mapping[Site, int]) -> list[list[Site]]:
    by_part = [[site for site in sizes if site[1] == part] for part in PARTS]
    return [sites for sites in by_part if sites]
