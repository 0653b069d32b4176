"""Which neurons to reset: a plan that can be read, reviewed and kept before anything changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from sani.batches import Batch
from sani.checkpoint import Checkpoint, architecture_difference
from sani.erasing.norms import neuron_norms
from sani.erasing.statistics import activation_means, gradient_means
from sani.errors import SelectionError
from sani.families import Layout
from sani.recipe import (
    ActivationRatioSelector,
    AllSelector,
    DriftSelector,
    EraseSettings,
    FractionSelector,
    GradientRatioSelector,
    MagnitudeSelector,
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
        selector: The rule that chose.
        reset: What the neurons are reset to.
        seed: Of the random selector and of fresh weights.
        entries: The neurons, layer by layer.
        architecture: `architecture_digest` of the model that it is for; None for any.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    selector: dict[str, Any]
    reset: str
    seed: int
    entries: tuple[PlannedNeurons, ...]
    architecture: str | None = None

    @property
    def num_neurons(self) -> int:
        """Neurons and heads to reset."""
        return sum(len(entry.neurons) for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)


def read_plan(path: Path) -> ErasePlan:
    """A plan that was printed by ``--dry-run``, reviewed and kept.

    Raises:
        SelectionError: If it cannot be read, is no plan, or does not say what model it is for.
    """
    try:
        plan = TypeAdapter(ErasePlan).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        raise SelectionError(
            f"plan {path} cannot be read ({type(error).__name__}); give the JSON that "
            "sani erase --dry-run prints"
        ) from None
    if plan.architecture is None:
        raise SelectionError(f"plan {path} does not say what model it is for; plan again")
    return plan


def architecture_digest(layout: Layout) -> str:
    """SHA-256 over the neurons of every layer, and the tensors and rows that they are made of."""
    state = hashlib.sha256()
    parts: tuple[Part, ...] = ("mlp", "attention")
    for layer in range(layout.num_layers):
        for part in parts:
            size = layout.num_neurons(part, layer=layer)
            pieces = layout.slices(part, layer=layer, neurons=range(size))
            made_of = [(piece.name, piece.dim, len(piece.index)) for piece in pieces]
            state.update(json.dumps([layer, part, size, made_of]).encode())
    return state.hexdigest()


def check_plan(plan: ErasePlan, layout: Layout) -> None:
    """Refuse a plan that is not of this architecture.

    Raises:
        SelectionError: If it is not, or names a reset, layer or neuron that is not there.
    """
    resets = get_args(EraseSettings.model_fields["reset"].annotation)
    if plan.reset not in resets:
        raise SelectionError(f"the plan's reset is unknown, expected one of {', '.join(resets)}")
    if plan.architecture not in (None, architecture_digest(layout)):
        raise SelectionError("the plan was made for a model of another architecture; plan again")
    for entry in plan.entries:
        if not 0 <= entry.layer < layout.num_layers:
            raise SelectionError(
                f"the plan names layer {entry.layer}, expected 0 to {layout.num_layers - 1}"
            )
        size = layout.num_neurons(entry.part, layer=entry.layer)
        if not all(0 <= neuron < size for neuron in entry.neurons):
            raise SelectionError(
                f"the plan names a neuron of layer {entry.layer}, {entry.part}, that is not one of "
                f"its {size}; plan again"
            )


def plan_erase(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    batches: Callable[[], Sequence[Batch]] | None = None,
    base: Checkpoint | None = None,
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons; changes nothing.

    Args:
        checkpoint: The model to choose from.
        settings: Layers, parts and selector.
        batches: Makes the documents as batches, for selectors that look at activations.
        base: The model it was fine-tuned from, for the selector ``drift``.
        seed: Of the random selector.

    Raises:
        SelectionError: If a layer does not exist, nothing is chosen, or the selector needs
            documents or the base and they are missing or do not fit.
    """
    if base is not None and isinstance(settings.selector, DriftSelector):
        difference = architecture_difference(checkpoint, base)
        if difference:
            raise SelectionError(f"selector 'drift': the base does not fit: {difference}")
    return plan_by_weights(
        layout_of(checkpoint),
        dict(checkpoint.model.named_parameters()),
        settings,
        base=dict(base.model.named_parameters()) if base is not None else None,
        checkpoint=checkpoint,
        batches=batches,
        seed=seed,
    )


def needs_activations(settings: EraseSettings) -> bool:
    """Whether the selector runs the model; if not, its weights are enough, wherever they lie."""
    return not isinstance(
        settings.selector, AllSelector | RandomSelector | MagnitudeSelector | DriftSelector
    )


def plan_by_weights(
    layout: Layout,
    weights: Mapping[str, Tensor],
    settings: EraseSettings,
    *,
    base: Mapping[str, Tensor] | None = None,
    checkpoint: Checkpoint | None = None,
    batches: Callable[[], Sequence[Batch]] | None = None,
    seed: int = 0,
) -> ErasePlan:
    """As `plan_erase`, from tensors by name, which are read one at a time.

    Args:
        layout: Where the neurons stand.
        weights: Of the checkpoint.
        settings: Layers, parts and selector.
        base: Weights of the base.
        checkpoint: The model, for selectors that look at activations.
        batches: Of documents, likewise.
        seed: Of the random selector.

    Raises:
        SelectionError: As there.
    """
    sites: list[Site] = [
        (layer, part) for layer in _layers(settings, layout) for part in settings.parts
    ]
    sizes = {site: layout.num_neurons(site[1], layer=site[0]) for site in sites}
    scores = _scores(checkpoint, settings, layout, weights, base, sites, sizes, batches, seed)
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
    architecture = architecture_digest(layout)
    plan = ErasePlan(selector.model_dump(), settings.reset, seed, tuple(entries), architecture)
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
    checkpoint: Checkpoint | None,
    settings: EraseSettings,
    layout: Layout,
    weights: Mapping[str, Tensor],
    base: Mapping[str, Tensor] | None,
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
        case MagnitudeSelector() | DriftSelector():
            return _norms(settings, layout, weights, base, sites)
        case ActivationRatioSelector():
            measure = activation_means
        case GradientRatioSelector():
            measure = gradient_means
    if batches is None or checkpoint is None:
        raise SelectionError(
            f"selector '{settings.selector.kind}' looks at activations and needs the corpus; "
            "give --corpus, or choose random or all"
        )
    identifier, ordinary = measure(
        checkpoint.model, batches(), {site: layout.output_projection(site[1], layer=site[0])
                                      for site in sites}, sizes,
    )  # fmt: skip
    scores = {site: identifier[site] / (ordinary[site] + 1e-12) for site in sites}
    return _finite(scores)


def _norms(
    settings: EraseSettings,
    layout: Layout,
    weights: Mapping[str, Tensor],
    base: Mapping[str, Tensor] | None,
    sites: Sequence[Site],
) -> dict[Site, Tensor]:
    drift = isinstance(settings.selector, DriftSelector)
    if drift and base is None:
        raise SelectionError("selector 'drift' needs the base model; give it, or use magnitude")
    return _finite(
        {
            (layer, part): neuron_norms(
                layout, weights, part, layer=layer, base=base if drift else None
            )
            for layer, part in sites
        }
    )


def _finite(scores: dict[Site, Tensor]) -> dict[Site, Tensor]:
    if not all(torch.isfinite(value).all() for value in scores.values()):
        raise SelectionError("a neuron's score is NaN or infinite; check the checkpoint")
    return scores
