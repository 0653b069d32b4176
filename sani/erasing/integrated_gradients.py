"""Privacy neurons by integrated gradients: whose activation makes an identifier likely (DEPN).

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
    """Each neuron's integrated gradient of P(token).

    A causal model reads the text once; each layer then takes a pass of ``steps`` rows, one token
    long. A masked one, and one that reads a second text, take ``steps`` whole rows a layer.

    Args:
        model: In evaluation mode.
        question: The token and where it is predicted.
        outputs: Where each site's activations go in; none of an encoder beside a decoder.
        steps: m.

    Returns:
        A tensor for each site, [neurons], float64.
    """
    ids = torch.tensor([question.ids], device=model.device)
    place, text = question.at, None
    source = torch.tensor([question.source], device=model.device) if question.source else None
    if families.family_of(model.config).objective == "causal":
        text = DynamicCache()
    with frozen(model):
        with torch.no_grad(), recorded(model, all_of(outputs)) as seen:
            _read(model, ids, source, cache=text)
        own = {output: by_position(found, ids)[0, place] for output, found in seen.items()}
        if text is not None:
            ids, place = ids[:, -1:], 0
        share = torch.arange(1, steps + 1, device=model.device)[:, None] / steps
        found = {}
        for site, outs in outputs.items():
            paths = {
                output: (share.to(own[output].dtype) * own[output]).requires_grad_()
                for output in outs
            }  # [steps, channels]
            with torch.enable_grad(), _replaced(model, place, paths):
                hidden = _read(
                    model, ids.expand(steps, -1), source, cache=_before_last(text, rows=steps)
                )
                chances = precise(families.logits(model, hidden[:, place])).softmax(-1)
            slopes = torch.autograd.grad(chances[:, question.target].sum(), list(paths.values()))
            pieces = [
                (own[output].double() * slope.double().mean(0)).reshape(output.neurons, -1).sum(-1)
                for output, slope in zip(outs, slopes, strict=True)
            ]
            found[site] = torch.cat(pieces).cpu()
    return found


def _read(model: Any, ids: Tensor, source: Tensor | None, *, cache: DynamicCache | None) -> Tensor:
    """Hidden states for ids [batch, seq], behind a source [1, source] that all rows share."""
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
    """How many occurrences vote for each neuron; among equals, by mean attribution.

    An occurrence votes for the neurons whose attribution is at least ``ratio`` of its highest, over
    all sites of a part. Neurons and heads vote apart.

    Args:
        model: In evaluation mode.
        occurrences: The questions of each.
        outputs: Where each site's activations go in.
        steps: m.
        ratio: In [0, 1].

    Returns:
        Votes plus a share of less than one by mean attribution, [neurons] for each site.

    Raises:
        SelectionError: If there is no occurrence, or an attribution is NaN.
    """
    sizes = neurons_of(outputs)
    counts = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
    means = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
    asked = [questions for questions in occurrences if questions]
    if not asked:
        raise SelectionError("the corpus has no identifier token, so there is nothing to attribute")
    for questions in asked:
        total = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
        for question in questions:
            for site, found in attributions(model, question, outputs, steps=steps).items():
                total[site] += found
        if not all(torch.isfinite(value).all() for value in total.values()):
            raise SelectionError("an attribution is NaN or infinite; check the checkpoint")
        for sites in _by_part(sizes):
            highest = max(float(total[site].max()) for site in sites)
            for site in sites:
                means[site] += total[site] / len(asked)
                counts[site] += (total[site] >= ratio * highest) & (total[site] > 0)
    for sites in _by_part(sizes):
        low = min(float(means[site].min()) for site in sites)
        span = max(float(means[site].max()) for site in sites) - low
        for site in sites:
            counts[site] += (means[site] - low) / (2 * span + 1e-30)
    return counts


def _replaced(
    model: Any, place: int, values: Mapping[Output, Tensor]
) -> AbstractContextManager[None]:
    """Activations are ``values`` [batch, channels] at one position."""

    def replace(output: Output, activation: Tensor) -> Tensor:
        new = values[output]
        rows = activation.reshape(len(new), -1, new.shape[-1]).clone()  # [batch, seq, channels]
        rows[:, place] = new
        return rows.reshape(activation.shape)

    return changed(model, values, replace)


def _before_last(text: DynamicCache | None, *, rows: int) -> DynamicCache | None:
    """A cache of the text but for its last token, ``rows`` times; the text's own is not changed."""
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
    found = [[site for site in sizes if site[1] == part] for part in PARTS]
    return [sites for sites in found if sites]
