"""Each selector's score of every neuron: the higher, the sooner it is reset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sani.erasing import hard_concrete
from sani.erasing.hooks import Site, outputs_of
from sani.erasing.integrated_gradients import VOTE_RATIO, votes
from sani.erasing.norms import neuron_norms
from sani.erasing.selector_batches import Texts
from sani.erasing.statistics import activation_means, fisher_means, gradient_means
from sani.errors import SelectionError
from sani.machine.device import generator
from sani.models.checkpoint import Checkpoint
from sani.models.neurons import Layout
from sani.recipe import (
    ActivationRatioSelector,
    AllSelector,
    DriftSelector,
    FisherRatioSelector,
    GradientRatioSelector,
    HardConcreteSelector,
    IntegratedGradientsSelector,
    MagnitudeSelector,
    RandomSelector,
    Selector,
)

Scores = dict[Site, Tensor]


def reads_texts(selector: Selector) -> bool:
    """Return whether a selector runs the model; if not, weights are enough, wherever they lie."""
    return not isinstance(
        selector, AllSelector | RandomSelector | MagnitudeSelector | DriftSelector
    )


def check_layers(selector: Selector, layout: Layout, sites: Iterable[Site]) -> None:
    """Refuse a selector that looks where tokens are predicted, in layers where none are.

    Args:
        selector: Any of them.
        layout: Places of the neurons.
        sites: Layers and parts to choose from.

    Raises:
        SelectionError: If it does, and a layer is of an encoder beside a decoder.
    """
    if not isinstance(selector, ActivationRatioSelector | IntegratedGradientsSelector):
        return
    layer = min((layer for layer, _ in sites), default=layout.num_layers)
    if layer < layout.source_layers:
        raise SelectionError(
            f"selector '{selector.kind}' looks where identifiers are predicted, and layer "
            f"{layer} is the encoder's, which predicts none; choose layers of the decoder "
            f"({layout.source_layers} to {layout.num_layers - 1}), or gradient_ratio, "
            "fisher_ratio or hard_concrete"
        )


def scores_of_weights(
    selector: Selector,
    layout: Layout,
    weights: Mapping[str, Tensor],
    sizes: Mapping[Site, int],
    *,
    base: Mapping[str, Tensor] | None,
    seed: int,
) -> Scores:
    """Score the neurons of each site, [neurons], by a selector that needs no text.

    Args:
        selector: One for which `reads_texts` is false.
        layout: Where the neurons stand.
        weights: Of the checkpoint; read one at a time.
        sizes: Neurons or heads of each site.
        base: Weights of the base, for ``drift``.
        seed: Seed of every random draw.

    Raises:
        SelectionError: If the base is missing or has the same weights, or a score is NaN or
            infinite.
    """
    if isinstance(selector, AllSelector):
        return {site: torch.zeros(size) for site, size in sizes.items()}
    if isinstance(selector, RandomSelector):
        chance = generator(seed)
        return {site: torch.rand(size, generator=chance) for site, size in sizes.items()}
    other = base if isinstance(selector, DriftSelector) else None
    if isinstance(selector, DriftSelector) and other is None:
        raise SelectionError("selector 'drift' needs the base model; give it, or use magnitude")
    scores = _finite(
        {
            (layer, part): neuron_norms(layout, weights, part, layer=layer, base=other)
            for layer, part in sizes
        }
    )
    if other is not None and not any(values.any() for values in scores.values()):
        raise SelectionError(
            "selector 'drift': the base has the same weights, so no neuron moved; give the public "
            "model that the checkpoint was fine-tuned from"
        )
    return scores


def scores_of_texts(
    selector: Selector,
    layout: Layout,
    checkpoint: Checkpoint,
    sizes: Mapping[Site, int],
    *,
    texts: Texts | None,
    seed: int,
) -> tuple[Scores, dict[str, Any] | None]:
    """Score neurons by a selector that runs the model on the documents.

    Args:
        selector: One for which `reads_texts` is true.
        layout: Where the neurons stand.
        checkpoint: The model.
        sizes: Neurons or heads of each site.
        texts: The documents.
        seed: Seed of every random draw.

    Returns:
        Scores [neurons] of each site; and what ``hard_concrete`` tells beside them, else None.

    Raises:
        SelectionError: If the documents are missing, a score is NaN or infinite, or as of
            `check_layers`.
    """
    if texts is None:
        raise SelectionError(
            f"selector '{selector.kind}' looks at activations and needs the corpus; "
            "give --corpus, or choose random or all"
        )
    model, selector_result = checkpoint.model, None
    if isinstance(selector, FisherRatioSelector):
        return _finite(_ratio(*fisher_means(model, texts.batches(), layout, sizes))), None
    check_layers(selector, layout, sizes)
    outputs = outputs_of(layout, sizes)
    match selector:
        case ActivationRatioSelector():
            scores = _ratio(*activation_means(model, texts.batches(), outputs))
        case GradientRatioSelector():
            scores = _ratio(*gradient_means(model, texts.batches(), outputs))
        case IntegratedGradientsSelector():
            questions = texts.drawn_questions(selector.occurrences, seed=seed)
            scores = votes(model, questions, outputs, steps=selector.steps, ratio=VOTE_RATIO)
        case HardConcreteSelector():
            learned = hard_concrete.learn_scores(
                model, texts.batches(), outputs, selector, seed=seed
            )
            selector_result = hard_concrete.report(
                model, texts.batches, texts.labels, outputs, learned
            )
            # The lower a mask's score, the sooner its neuron is reset.
            scores = {site: torch.sigmoid(-score) for site, score in learned.items()}
    return _finite(scores), selector_result


def _finite(scores: Scores) -> Scores:
    if not all(torch.isfinite(value).all() for value in scores.values()):
        raise SelectionError("a neuron's score is NaN or infinite; check the checkpoint")
    return scores


def _ratio(identifier: Scores, ordinary: Scores) -> Scores:
    # A neuron that is silent on ordinary tokens gets a high score, not an infinite one.
    return {site: identifier[site] / (ordinary[site] + 1e-12) for site in identifier}
