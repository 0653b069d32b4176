"""Which neurons to reset: a plan that can be read, reviewed and kept before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sani.batches import Batch
from sani.checkpoint import Checkpoint
from sani.erasing.statistics import activation_means, gradient_means
from sani.errors import SelectionError
from sani.families import is_masked
from sani.layout import Layout
from sani.recipe import (
    ActivationRatioSelector,
    AllSelector,
    EraseSettings,
    FractionSelector,
    GradientRatioSelector,
    Part,
    RandomSelector,
)
from sani.runtime import generator

Site = tuple[int, Part]


@dataclass(frozen=True)
class PlannedNeurons:
    """The neurons of one part of one layer.

    Attributes:
        layer: Counted from the input, from 0.
        part: ``mlp`` (neurons) or ``attention`` (heads).
        neurons: Indices to reset, ascending.
        of: How many there are.
        scores: The selector's score of each index, or None where it needs none.
    """

    layer: int
    part: Part
    neurons: tuple[int, ...]
    of: int
    scores: tuple[float, ...] | None


@dataclass(frozen=True)
class ErasePlan:
    """What an erase will do: the rule, and every neuron it chose."""

    selector: dict[str, Any]
    reset: str
    seed: int
    entries: tuple[PlannedNeurons, ...]

    @property
    def num_neurons(self) -> int:
        """Neurons and heads to reset."""
        return sum(len(entry.neurons) for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)


def plan_erase(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    batches: Callable[[], Sequence[Batch]] | None = None,
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons; changes nothing.

    Args:
        checkpoint: The model to choose from.
        settings: Layers, parts and selector.
        batches: Makes the documents as batches, for selectors that look at activations.
        seed: Of the random selector.

    Raises:
        SelectionError: If a layer does not exist, nothing is chosen, or the selector needs
            documents and there are none.
    """
    layout = layout_of(checkpoint)
    sites: list[Site] = [
        (layer, part) for layer in _layers(settings, layout) for part in settings.parts
    ]
    sizes = {site: layout.num_neurons(site[1], layer=site[0]) for site in sites}
    scores = _scores(checkpoint, settings, layout, sites, sizes, batches, seed)
    selector = settings.selector
    fraction = 1.0 if isinstance(selector, AllSelector) else selector.fraction
    over_all = isinstance(selector, FractionSelector) and selector.per == "model"
    picked = highest_of_all(scores, fraction=fraction) if over_all else None
    entries = []
    for site in sites:
        if picked is not None:
            chosen = picked[site]
        else:
            chosen = highest(scores[site], count=round(fraction * sizes[site]))
        kept = None if isinstance(selector, AllSelector | RandomSelector) else scores[site][chosen]
        entries.append(
            PlannedNeurons(
                layer=site[0],
                part=site[1],
                neurons=tuple(chosen.tolist()),
                of=sizes[site],
                scores=None if kept is None else tuple(kept.tolist()),
            )
        )
    plan = ErasePlan(selector.model_dump(), settings.reset, seed, tuple(entries))
    if plan.num_neurons == 0:
        raise SelectionError(
            f"selector '{selector.kind}' with fraction {fraction} chose none of "
            f"{sum(sizes.values())} neurons; raise the fraction"
        )
    return plan


def highest(scores: Tensor, *, count: int) -> Tensor:
    """Indices of the ``count`` highest scores, ascending; ties go to the lower index.

    Args:
        scores: One per neuron, [n], finite.
        count: At most n.
    """
    order = scores.argsort(descending=True, stable=True)
    return order[:count].sort().values


def highest_of_all(scores: dict[Site, Tensor], *, fraction: float) -> dict[Site, Tensor]:
    """As `highest`, of all MLP neurons of all sites together, and likewise of all heads.

    Neurons are not weighed against heads: there are far fewer heads, and each is far larger.

    Args:
        scores: One per neuron of each site.
        fraction: Share of all neurons of a part, over the sites, to choose.
    """
    chosen: dict[Site, Tensor] = {}
    for part in {part for _, part in scores}:
        sites = [site for site in scores if site[1] == part]
        everything = torch.cat([scores[site] for site in sites])
        picked = torch.zeros(len(everything), dtype=torch.bool)
        picked[highest(everything, count=round(fraction * len(everything)))] = True
        parts = torch.split(picked, [len(scores[site]) for site in sites])
        chosen |= {site: mask.nonzero().flatten() for site, mask in zip(sites, parts, strict=True)}
    return chosen


def layout_of(checkpoint: Checkpoint) -> Layout:
    """Where the neurons of a loaded checkpoint stand."""
    state = checkpoint.model.state_dict()
    return Layout(checkpoint.model.config, {name: tuple(t.shape) for name, t in state.items()})


def _layers(settings: EraseSettings, layout: Layout) -> list[int]:
    if settings.layers is not None:
        wanted = sorted(settings.layers)
        if wanted[-1] >= layout.num_layers:
            raise SelectionError(
                f"erase.layers: got layer {wanted[-1]}, expected 0 to {layout.num_layers - 1}"
            )
        return wanted
    last = settings.last_layers or 0
    if last > layout.num_layers:
        raise SelectionError(
            f"erase.last_layers: got {last}, but the model has {layout.num_layers} layers"
        )
    return list(range(layout.num_layers - last, layout.num_layers))


def _scores(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    layout: Layout,
    sites: Sequence[Site],
    sizes: dict[Site, int],
    batches: Callable[[], Sequence[Batch]] | None,
    seed: int,
) -> dict[Site, Tensor]:
    match settings.selector:
        case AllSelector():
            return {site: torch.zeros(sizes[site]) for site in sites}
        case RandomSelector():
            chance = generator(seed)
            return {site: torch.rand(sizes[site], generator=chance) for site in sites}
        case ActivationRatioSelector():
            measure = activation_means
        case GradientRatioSelector():
            measure = gradient_means
    if batches is None:
        raise SelectionError(
            f"selector '{settings.selector.kind}' looks at activations and needs the corpus; "
            "give --corpus, or choose random or all"
        )
    if is_masked(checkpoint.model.config):
        raise SelectionError(
            f"selector '{settings.selector.kind}' reads activations where the next token is "
            "predicted, not those of a masked language model; choose random or all"
        )
    identifier, ordinary = measure(
        checkpoint.model, batches(), {site: layout.output_projection(site[1], layer=site[0])
                                      for site in sites}, sizes,
    )  # fmt: skip
    scores = {site: identifier[site] / (ordinary[site] + 1e-12) for site in sites}
    if not all(torch.isfinite(value).all() for value in scores.values()):
        raise SelectionError("a neuron's score is NaN or infinite; check the checkpoint")
    return scores
