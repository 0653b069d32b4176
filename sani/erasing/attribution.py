"""Privacy neurons by integrated gradients: whose activation makes an identifier likely (DEPN).

Wu et al. 2023 (2310.20138). For a token y of an identifier, read where activation b of a neuron
is scaled from 0 to b in m steps: Att = b/m * sum over j of dP(y)/db at (j/m) b, summed over the
identifier's tokens. As in the authors' code, the neurons of one layer are scaled together, and
only at the position that predicts y; so the attributions of a layer sum, for large m, to what
P(y) loses when the whole layer is silent there. A head's is the sum over its channels: the paper
has no heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sani import families
from sani.erasing.statistics import Means, Site, by_position, frozen, precise, recorded
from sani.erasing.texts import Question
from sani.errors import SelectionError
from sani.recipe import PARTS


def attributions(
    model: Any,
    question: Question,
    modules: Mapping[Site, str],
    sizes: Mapping[Site, int],
    *,
    steps: int,
) -> Means:
    """Each neuron's integrated gradient of P(token).

    A causal model reads the text once; each layer then takes a pass of ``steps`` rows, one token
    long. A masked one takes ``steps`` whole rows a layer.

    Args:
        model: In evaluation mode.
        question: The token and where it is predicted.
        modules: Name of each site's output projection.
        sizes: Neurons or heads of each site.
        steps: m.

    Returns:
        A tensor for each site, [neurons], float64.
    """
    ids = torch.tensor([question.ids], device=model.device)
    place, text = question.at, None
    with frozen(model):
        with torch.no_grad(), recorded(model, modules) as seen:
            if families.is_masked(model.config):
                families.hidden_states(model, input_ids=ids)
            else:
                text = DynamicCache()
                families.hidden_states(model, input_ids=ids, cache=text)
        own = {site: by_position(found, ids)[0, place] for site, found in seen.items()}
        if text is not None:
            ids, place = ids[:, -1:], 0
        share = torch.arange(1, steps + 1, device=model.device)[:, None] / steps
        found = {}
        for site, activation in own.items():
            path = (share.to(activation.dtype) * activation).requires_grad_()  # [steps, channels]
            with torch.enable_grad(), _replaced(model, modules[site], place, path):
                hidden = families.hidden_states(
                    model, input_ids=ids.expand(steps, -1), cache=_before_last(text, rows=steps)
                )
                chances = precise(families.logits(model, hidden[:, place])).softmax(-1)
            (slope,) = torch.autograd.grad(chances[:, question.target].sum(), path)
            attribution = activation.double() * slope.double().mean(0)
            found[site] = attribution.reshape(sizes[site], -1).sum(-1).cpu()
    return found


def votes(
    model: Any,
    occurrences: Sequence[Sequence[Question]],
    modules: Mapping[Site, str],
    sizes: Mapping[Site, int],
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
        modules: Name of each site's output projection.
        sizes: Neurons or heads of each site.
        steps: m.
        ratio: In [0, 1].

    Returns:
        Votes plus a share of less than one by mean attribution, [neurons] for each site.

    Raises:
        SelectionError: If there is no occurrence, or an attribution is NaN.
    """
    counts = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
    means = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
    asked = [questions for questions in occurrences if questions]
    if not asked:
        raise SelectionError("the corpus has no identifier token, so there is nothing to attribute")
    for questions in asked:
        total = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
        for question in questions:
            for site, found in attributions(model, question, modules, sizes, steps=steps).items():
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


@contextmanager
def _replaced(model: Any, name: str, place: int, values: Tensor) -> Iterator[None]:
    """The input of a module is ``values`` [batch, channels] at one position."""

    def replace(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = (
            inputs[0].reshape(len(values), -1, values.shape[-1]).clone()
        )  # [batch, seq, channels]
        rows[:, place] = values
        return (rows.reshape(inputs[0].shape), *inputs[1:])

    handle = model.get_submodule(name).register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


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
