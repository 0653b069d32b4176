"""Settings of the erase stage: the selector of neurons and their new values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sani.recipe.settings import Fraction, Part, Settings, has_duplicates


class FractionSelector(Settings):
    """Base of the selectors that take a share of the neurons, those with the highest score."""

    fraction: Fraction = Field(description="share of the neurons to reset")
    per: Literal["layer", "model"] = Field(
        "layer",
        description="layer: that share of each layer's neurons; model: of all chosen layers' "
        "together",
    )


class RandomSelector(FractionSelector):
    """Neurons drawn at random: the control arm, and nearest to the paper with fraction 0.5."""

    kind: Literal["random"]


class AllSelector(Settings):
    """Every neuron of the chosen layers."""

    kind: Literal["all"]


class MagnitudeSelector(FractionSelector):
    """Neurons with the largest weights: the L2 norm over all slices of a neuron.

    Pruning takes the smallest, because it wants to change nothing.
    """

    kind: Literal["magnitude"]


class DriftSelector(FractionSelector):
    """Neurons that fine-tuning moved farthest: the L2 norm of their difference to the base's.

    What the checkpoint learned since the base must stand in these differences.
    """

    kind: Literal["drift"]


class ActivationRatioSelector(FractionSelector):
    """Neurons that fire more on identifier tokens than on ordinary ones."""

    kind: Literal["activation_ratio"]


class GradientRatioSelector(FractionSelector):
    """Neurons whose |activation x gradient| is larger on identifier tokens than on others."""

    kind: Literal["gradient_ratio"]


class FisherRatioSelector(FractionSelector):
    """Neurons whose weights have a larger Fisher diagonal for identifiers than for ordinary text.

    Source: Foster et al. 2024 (2308.07707). Deviation: per neuron instead of per weight.
    """

    kind: Literal["fisher_ratio"]


class IntegratedGradientsSelector(FractionSelector):
    """Neurons with most votes by their share in P(identifier), a vote per occurrence.

    Source: DEPN, Wu et al. 2023 (2310.20138).
    """

    kind: Literal["integrated_gradients"]
    steps: int = Field(20, ge=1, description="m, number of points on the path from 0; paper's")
    occurrences: int = Field(
        200, ge=1, description="maximum number of occurrences that vote; drawn at random"
    )


class HardConcreteSelector(FractionSelector):
    """Neurons that learned masks close, so that identifiers fail and other text does not.

    Source: Chen et al. 2024 (2405.10989).
    """

    kind: Literal["hard_concrete"]
    steps: int = Field(400, ge=1, description="training steps of the masks, a batch each; ours")
    learning_rate: float = Field(0.1, gt=0.0, description="Adam's, constant; ours")
    adversary: float = Field(1.0, gt=0.0, description="weight of the loss at identifiers; ours")


Selector = Annotated[
    RandomSelector
    | AllSelector
    | MagnitudeSelector
    | DriftSelector
    | ActivationRatioSelector
    | GradientRatioSelector
    | FisherRatioSelector
    | IntegratedGradientsSelector
    | HardConcreteSelector,
    Field(discriminator="kind"),
]


class DampenSettings(Settings):
    """Selective synaptic dampening of the selected neurons' weights (Foster et al. 2024)."""

    above: float = Field(
        10.0,
        gt=0.0,
        description="alpha: dampen a weight if its Fisher diagonal for identifiers is at least "
        "this many times that for ordinary text",
    )
    scale: float = Field(
        1.0, ge=0.0, description="lambda: factor of the ratio of the two; the result is at most 1"
    )


class EraseSettings(Settings):
    """The neurons that are reset, and their new values."""

    interpolate_to_base: Fraction = Field(
        0.0,
        description="first move every weight, embeddings and norms too, this share of the way to "
        "the base's; 1 is the base itself",
    )
    last_layers: Annotated[int, Field(ge=1)] | Literal["half", "all"] | None = Field(
        None, description="reset in the last this many layers, the last half (rounded up), or all"
    )
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="or in these layers, counted from the input, from 0"
    )
    parts: tuple[Part, ...] = Field(
        ("mlp", "attention"), min_length=1, description="parts of a layer whose neurons are reset"
    )
    selector: Selector = Field(
        default_factory=lambda: AllSelector(kind="all"), description="choice of the neurons"
    )
    reset: Literal["reinit", "zero", "rewind", "mean", "dampen"] = Field(
        "reinit",
        description="new values. reinit: the model's own initialization; zero; rewind: the base's "
        "weights; mean: zero, with the mean activation in the next bias; dampen: by the Fisher "
        "ratio",
    )
    dampen: DampenSettings | None = Field(None, description="settings of reset dampen")
    token_rows: bool = Field(
        False,
        description="also reset the embedding and head rows of tokens that occur only in "
        "identifiers. Warning: with any reset but rewind, these rows are recognisable in the "
        "released weights",
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        num_choices = (self.last_layers is not None) + (self.layers is not None)
        if num_choices > 1 or (num_choices == 0 and not self.interpolate_to_base):
            raise ValueError("give exactly one of last_layers and layers")
        if num_choices == 0 and (self.selector.kind != "all" or self.token_rows):
            raise ValueError("a selector and token_rows need last_layers or layers")
        if self.layers is not None and (min(self.layers) < 0 or has_duplicates(self.layers)):
            raise ValueError("layers must be distinct numbers from 0 upwards")
        if has_duplicates(self.parts):
            raise ValueError("parts must be distinct")
        if self.dampen is not None and self.reset != "dampen":
            raise ValueError("dampen has settings of reset dampen; set reset: dampen or remove it")
        if self.token_rows and self.reset in ("mean", "dampen"):
            raise ValueError("token_rows needs reset reinit, zero or rewind")
        if self.interpolate_to_base and self.reset in ("mean", "dampen"):
            raise ValueError("interpolate_to_base needs reset reinit, zero or rewind")
        return self

    @property
    def needs_base(self) -> bool:
        """True if the base's weights are needed."""
        return (
            self.reset == "rewind" or self.selector.kind == "drift" or self.interpolate_to_base > 0
        )

    @property
    def chooses_layers(self) -> bool:
        """True if neurons are reset, and not only weights moved to the base's."""
        return self.last_layers is not None or self.layers is not None

    def layers_of(self, num_layers: int) -> Sequence[int]:
        """Return the chosen layers of a model with ``num_layers``.

        Numbers below 0 stand for layers that the model lacks; the caller refuses them.
        """
        if self.layers is not None:
            return self.layers
        by_name = {"half": -(-num_layers // 2), "all": num_layers}
        last = by_name.get(str(self.last_layers), self.last_layers)
        return range(num_layers - int(last or 0), num_layers)
