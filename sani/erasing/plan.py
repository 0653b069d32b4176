"""The plan of an erase: the neurons to reset, to be reviewed and kept before anything changes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from sani.erasing.hooks import Site
from sani.erasing.selector_batches import Texts
from sani.erasing.selectors import Scores, reads_texts, scores_of_texts, scores_of_weights
from sani.erasing.token_rows import TokenRows, find_token_rows
from sani.errors import SelectionError
from sani.models.bases import architecture_difference
from sani.models.checkpoint import Checkpoint
from sani.models.neurons import Layout
from sani.recipe import (
    PARTS,
    AllSelector,
    DampenSettings,
    DriftSelector,
    EraseSettings,
    FractionSelector,
    Part,
    RandomSelector,
)


@dataclass(frozen=True)
class PlannedNeurons:
    """The neurons of one part of one layer.

    Attributes:
        layer: Counted from the input, from 0.
        part: ``mlp`` (neurons) or ``attention`` (heads).
        neurons: Indices to reset, ascending.
        total: Number of neurons or heads in this part of the layer.
        scores: The selector's score of each index, or None where it needs none.
    """

    layer: int
    part: Part
    neurons: tuple[int, ...]
    total: int
    scores: tuple[float, ...] | None


@dataclass(frozen=True)
class ErasePlan:
    """Plan of an erase: the rule, and every neuron that it chose.

    Attributes:
        selector, reset, seed: As in the settings.
        entries: The neurons of each layer and part.
        architecture: `architecture_digest` of the model that it is for; None for any.
        dampen: As in the settings, for that reset only.
        token_rows: Rows of embedding and head, if the settings say so.
        selector_result: More than scores, from ``hard_concrete`` only: in which layers the closed
            neurons lie, and to which label each belongs; see `hard_concrete.report`.
        layers: Number of layers of the model; None if unknown.
        interpolate_to_base: Share of the way to the base's weights that every weight first goes,
            in [0, 1].
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    selector: dict[str, Any]
    reset: str
    seed: int
    entries: tuple[PlannedNeurons, ...]
    architecture: str | None = None
    dampen: DampenSettings | None = None
    token_rows: TokenRows | None = None
    selector_result: dict[str, Any] | None = None
    layers: int | None = None
    interpolate_to_base: float = 0.0

    @property
    def retrains(self) -> bool:
        """Return whether every neuron is the base's again: then repair is retraining."""
        if self.interpolate_to_base == 1:
            return True
        whole = all(len(entry.neurons) == entry.total for entry in self.entries)
        sites = {(entry.layer, entry.part) for entry in self.entries}
        return self.reset == "rewind" and whole and len(sites) == len(PARTS) * (self.layers or -1)

    @property
    def num_neurons(self) -> int:
        """Return the number of neurons and heads to reset."""
        return sum(len(entry.neurons) for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data; tokens of identifiers are counted, not named."""
        rows = None if self.token_rows is None else self.token_rows.to_json()
        dampen = None if self.dampen is None else self.dampen.model_dump()
        return {**asdict(self), "dampen": dampen, "token_rows": rows}


def read_plan(path: Path) -> ErasePlan:
    """Read a plan that ``--dry-run`` printed.

    Raises:
        SelectionError: If it cannot be read, is no plan, has token rows, names no neuron or one
            twice, or does not say what model it is for.
    """
    try:
        text = path.read_bytes()
        data = json.loads(text)
        if isinstance(data, dict) and data.get("token_rows") is not None:
            raise SelectionError(
                f"plan {path} resets token rows, and the tokens are not kept in it, being pieces "
                "of identifiers; give its options instead of --plan"
            )
        plan = TypeAdapter(ErasePlan).validate_json(text, strict=True)
    except ValidationError as error:
        where = [str(part) for part in error.errors(include_input=False)[0]["loc"]]
        known = all(re.fullmatch(r"[a-z_]+|\d+", part) for part in where)
        raise SelectionError(
            f"plan {path}: {'.'.join(where) if known else 'a key'} is missing, unknown or not of "
            "its type; give the JSON that sani erase --dry-run prints"
        ) from None
    except (OSError, ValueError) as error:
        raise SelectionError(
            f"plan {path} cannot be read ({type(error).__name__}); give the JSON that "
            "sani erase --dry-run prints"
        ) from None
    if plan.architecture is None:
        raise SelectionError(f"plan {path} does not say what model it is for; plan again")
    if plan.num_neurons == 0 and not plan.interpolate_to_base:
        raise SelectionError(f"plan {path} names no neuron, so nothing would be erased; plan again")
    sites = [(entry.layer, entry.part) for entry in plan.entries]
    for site, entry in zip(sites, plan.entries, strict=True):
        ascending = list(entry.neurons) == sorted(set(entry.neurons))
        scored = entry.scores is None or len(entry.scores) == len(entry.neurons)
        if not ascending or not scored or sites.count(site) > 1:
            raise SelectionError(
                f"plan {path}, layer {entry.layer}, {entry.part}: expected one entry, its neurons "
                "each once and ascending, with a score each or null for scores"
            )
    return plan


def architecture_digest(layout: Layout) -> str:
    """Return the SHA-256 over the neurons of every layer and the rows that they are made of."""
    state = hashlib.sha256()
    for layer in range(layout.num_layers):
        for part in PARTS:
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
    if not 0 <= plan.interpolate_to_base <= 1:
        raise SelectionError("the plan's interpolate_to_base is out of range, expected 0 to 1")
    if plan.interpolate_to_base and plan.reset in ("mean", "dampen"):
        raise SelectionError("the plan's interpolate_to_base needs reset reinit, zero or rewind")
    if plan.architecture not in (None, architecture_digest(layout)):
        raise SelectionError("the plan was made for a model of another architecture; plan again")
    for entry in plan.entries:
        if not 0 <= entry.layer < layout.num_layers:
            raise SelectionError(
                f"the plan names layer {entry.layer}, expected 0 to {layout.num_layers - 1}"
            )
        size = layout.num_neurons(entry.part, layer=entry.layer)
        if entry.total != size:
            raise SelectionError(
                f"the plan says that layer {entry.layer}, {entry.part}, has {entry.total} neurons; "
                f"it has {size}; plan again"
            )
        if not all(0 <= neuron < size for neuron in entry.neurons):
            raise SelectionError(
                f"the plan names a neuron of layer {entry.layer}, {entry.part}, that is not one of "
                f"its {size}; plan again"
            )


def plan_erase(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    texts: Texts | None = None,
    base: Checkpoint | None = None,
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons; changes nothing.

    Args:
        checkpoint: The model to choose from.
        settings: Layers, parts, selector and reset.
        texts: The documents, for selectors that look at the model's work on them.
        base: The model it was fine-tuned from, for the selector ``drift``.
        seed: Of everything that is drawn.

    Raises:
        SelectionError: If a layer does not exist, nothing is chosen, or the selector needs
            documents or the base and they are missing or do not fit.
    """
    selector = settings.selector
    if base is not None and isinstance(selector, DriftSelector):
        difference = architecture_difference(checkpoint, base)
        if difference:
            raise SelectionError(f"selector 'drift': the base does not fit: {difference}")
    layout = layout_of(checkpoint)
    if reads_texts(selector):
        sizes = sizes_of(settings, layout)
        scores, result = scores_of_texts(
            selector, layout, checkpoint, sizes, texts=texts, seed=seed
        )
        plan = replace(_plan(settings, layout, scores, seed), selector_result=result)
    else:
        weights = dict(checkpoint.model.named_parameters())
        others = dict(base.model.named_parameters()) if base is not None else None
        plan = plan_by_weights(layout, weights, settings, base=others, seed=seed)
    if not settings.token_rows:
        return plan
    if texts is None:
        raise SelectionError("erase.token_rows needs the corpus; give --corpus")
    return replace(plan, token_rows=find_token_rows(checkpoint, texts))


def plan_by_weights(
    layout: Layout,
    weights: Mapping[str, Tensor],
    settings: EraseSettings,
    *,
    base: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons from tensors by name, in memory or in files; no text is read.

    Args:
        layout: Where the neurons stand.
        weights: Of the checkpoint.
        settings: Layers, parts and a selector that reads no texts, without token rows.
        base: Weights of the base, for the selector ``drift``.
        seed: Of the random selector.

    Raises:
        SelectionError: As of `plan_erase`.
    """
    sizes = sizes_of(settings, layout)
    scores = scores_of_weights(settings.selector, layout, weights, sizes, base=base, seed=seed)
    return _plan(settings, layout, scores, seed)


def _plan(settings: EraseSettings, layout: Layout, scores: Scores, seed: int) -> ErasePlan:
    """Return the plan with the neurons of the highest scores."""
    selector = settings.selector
    fraction = 1.0 if isinstance(selector, AllSelector) else selector.fraction
    if isinstance(selector, FractionSelector) and selector.per == "model":
        picked = highest_of_all(scores, fraction=fraction)
    else:
        picked = {
            site: highest(values, count=round(fraction * len(values)))
            for site, values in scores.items()
        }
    entries = []
    for site, values in scores.items():
        chosen = picked[site]
        # The scores of `all` and `random` say nothing about a neuron, so the plan shows none.
        shown = None if isinstance(selector, AllSelector | RandomSelector) else values[chosen]
        entries.append(
            PlannedNeurons(
                layer=site[0],
                part=site[1],
                neurons=tuple(chosen.tolist()),
                total=len(values),
                scores=None if shown is None else tuple(shown.tolist()),
            )
        )
    plan = ErasePlan(
        selector.model_dump(),
        settings.reset,
        seed,
        tuple(entries),
        architecture_digest(layout),
        layers=layout.num_layers,
        dampen=(settings.dampen or DampenSettings()) if settings.reset == "dampen" else None,
        interpolate_to_base=settings.interpolate_to_base,
    )
    number_chosen(settings, {site: len(values) for site, values in scores.items()})
    return plan


def number_chosen(settings: EraseSettings, sizes: Mapping[Site, int]) -> int:
    """Return how many neurons and heads a plan will have, before any is scored.

    Raises:
        SelectionError: If it is none.
    """
    selector = settings.selector
    fraction = 1.0 if isinstance(selector, AllSelector) else selector.fraction
    pools = list(sizes.values())
    if isinstance(selector, FractionSelector) and selector.per == "model":
        pools = [sum(n for site, n in sizes.items() if site[1] == part) for part in settings.parts]
    count = sum(round(fraction * pool) for pool in pools)
    if count == 0 and (pools or not settings.interpolate_to_base):
        raise SelectionError(
            f"selector '{selector.kind}' with fraction {fraction} chose none of {sum(pools)} "
            "neurons; raise the fraction"
        )
    return count


def highest(scores: Tensor, *, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores, ascending; ties go to the lower index.

    Args:
        scores: One per neuron, [n], finite.
        count: At most n.
    """
    # Stable, so that equal scores give the same plan on every machine.
    order = scores.argsort(descending=True, stable=True)
    return order[:count].sort().values


def highest_of_all(scores: dict[Site, Tensor], *, fraction: float) -> dict[Site, Tensor]:
    """Return the `highest` of all MLP neurons of all sites together, and likewise of all heads.

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
    """Return where the neurons of a loaded checkpoint stand."""
    state = checkpoint.model.state_dict()
    return Layout(checkpoint.model.config, {name: tuple(t.shape) for name, t in state.items()})


def sizes_of(settings: EraseSettings, layout: Layout) -> dict[Site, int]:
    """Return the number of neurons or heads of every site to choose from.

    Raises:
        SelectionError: If a layer does not exist.
    """
    sites = [(layer, part) for layer in _layers(settings, layout) for part in settings.parts]
    sizes = {(layer, part): layout.num_neurons(part, layer=layer) for layer, part in sites}
    there = {site: size for site, size in sizes.items() if size}  # linear attention has no heads
    if sizes and not there:
        raise SelectionError(
            f"erase: none of the chosen layers has any of {' or '.join(settings.parts)}; their "
            "linear attention, state space or convolution cannot be erased. Choose other layers"
        )
    return there


def _layers(settings: EraseSettings, layout: Layout) -> list[int]:
    wanted = settings.layers_of(layout.num_layers)
    if not wanted:
        return []
    if wanted[0] < 0:
        raise SelectionError(
            f"erase.last_layers: got {settings.last_layers}, but the model has "
            f"{layout.num_layers} layers"
        )
    wanted = sorted(wanted)
    if wanted[-1] >= layout.num_layers:
        raise SelectionError(
            f"erase.layers: got layer {wanted[-1]}, expected 0 to {layout.num_layers - 1}"
        )
    return wanted
