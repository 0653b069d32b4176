"""Which neurons to reset: a plan that can be read, reviewed and kept before anything changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sani.checkpoint import Checkpoint
from sani.erasing import hard_concrete
from sani.erasing.attribution import votes
from sani.erasing.statistics import activation_means, fisher_means, gradient_means
from sani.erasing.texts import Texts
from sani.erasing.token_rows import TokenRows, find_token_rows
from sani.errors import SelectionError
from sani.layout import Layout, Slice
from sani.recipe import (
    ActivationRatioSelector,
    AllSelector,
    DampenSettings,
    EraseSettings,
    FisherRatioSelector,
    FractionSelector,
    GradientRatioSelector,
    HardConcreteSelector,
    IntegratedGradientsSelector,
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
    """What an erase will do: the rule, and every neuron it chose.

    Attributes:
        selector, reset, seed, dampen: As asked; ``dampen`` for that reset only.
        entries: The neurons of each layer and part.
        token_rows: Rows of embedding and head, if asked for.
        found: What the selector says beyond scores: of ``hard_concrete``, where the closed neurons
            lie and which label's they are, see `hard_concrete.report`.
    """

    selector: dict[str, Any]
    reset: str
    seed: int
    entries: tuple[PlannedNeurons, ...]
    dampen: dict[str, Any] | None = None
    token_rows: TokenRows | None = None
    found: dict[str, Any] | None = None

    @property
    def num_neurons(self) -> int:
        """Neurons and heads to reset."""
        return sum(len(entry.neurons) for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data; tokens of identifiers are counted, not named."""
        rows = None if self.token_rows is None else self.token_rows.to_json()
        return {**asdict(self), "token_rows": rows}


def plan_erase(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    texts: Texts | None = None,
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons; changes nothing.

    Args:
        checkpoint: The model to choose from.
        settings: Layers, parts, selector and reset.
        texts: The documents, for selectors that look at the model's work on them.
        seed: Of everything that is drawn.

    Raises:
        SelectionError: If a layer does not exist, nothing is chosen, or the selector needs
            documents and there are none.
    """
    layout = layout_of(checkpoint)
    sites: list[Site] = [
        (layer, part) for layer in _layers(settings, layout) for part in settings.parts
    ]
    sizes = {site: layout.num_neurons(site[1], layer=site[0]) for site in sites}
    scores, found = _scores(checkpoint, settings, layout, sites, sizes, texts, seed)
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
    rows = None
    if settings.token_rows:
        if texts is None:
            raise SelectionError("erase.token_rows needs the corpus; give --corpus")
        rows = find_token_rows(checkpoint, texts)
    dampen = (settings.dampen or DampenSettings()) if settings.reset == "dampen" else None
    plan = ErasePlan(
        selector.model_dump(),
        settings.reset,
        seed,
        tuple(entries),
        dampen=None if dampen is None else dampen.model_dump(),
        token_rows=rows,
        found=found,
    )
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
    texts: Texts | None,
    seed: int,
) -> tuple[dict[Site, Tensor], dict[str, Any] | None]:
    """The score of every neuron, and what the selector found beside."""
    selector, model, found = settings.selector, checkpoint.model, None
    if isinstance(selector, AllSelector):
        return {site: torch.zeros(sizes[site]) for site in sites}, None
    if isinstance(selector, RandomSelector):
        chance = generator(seed)
        return {site: torch.rand(sizes[site], generator=chance) for site in sites}, None
    if texts is None:
        raise SelectionError(
            f"selector '{selector.kind}' looks at activations and needs the corpus; "
            "give --corpus, or choose random or all"
        )
    if isinstance(selector, FisherRatioSelector):
        pieces = {site: _own_slices(layout, site, sizes[site]) for site in sites}
        return _finite(_ratio(*fisher_means(model, texts.batches(), pieces))), None
    modules = {site: layout.output_projection(site[1], layer=site[0]) for site in sites}
    match selector:
        case ActivationRatioSelector():
            scores = _ratio(*activation_means(model, texts.batches(), modules, sizes))
        case GradientRatioSelector():
            scores = _ratio(*gradient_means(model, texts.batches(), modules, sizes))
        case IntegratedGradientsSelector():
            asked = texts.drawn_questions(selector.occurrences, seed=seed)
            scores = votes(model, asked, modules, sizes, steps=selector.steps, ratio=selector.vote)
        case HardConcreteSelector():
            learned = hard_concrete.learn_scores(
                model, texts.batches(), modules, sizes, selector, seed=seed
            )
            found = hard_concrete.report(model, texts.batches, texts.labels, modules, learned)
            scores = {site: torch.sigmoid(-score) for site, score in learned.items()}
    return _finite(scores), found


def _finite(scores: dict[Site, Tensor]) -> dict[Site, Tensor]:
    if not all(torch.isfinite(value).all() for value in scores.values()):
        raise SelectionError("a neuron's score is NaN or infinite; check the checkpoint")
    return scores


def _ratio(identifier: dict[Site, Tensor], ordinary: dict[Site, Tensor]) -> dict[Site, Tensor]:
    return {site: identifier[site] / (ordinary[site] + 1e-12) for site in identifier}


def _own_slices(layout: Layout, site: Site, size: int) -> list[list[Slice]]:
    return [layout.slices(site[1], layer=site[0], neurons=[neuron]) for neuron in range(size)]
