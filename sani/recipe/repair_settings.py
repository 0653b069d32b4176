"""Settings of the repair stage: the objective and the training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sani.recipe.settings import Settings


class MaskObjective(Settings):
    """No loss at identifier tokens (the paper's repair): teaches nothing there, forgets little."""

    kind: Literal["mask"]


class AnchorObjective(Settings):
    """KL to a distribution that never saw the identifiers, at identifier tokens."""

    kind: Literal["anchor"]
    to: Literal["base", "self", "counterfactual", "decoys"] = Field(
        "base",
        description="base: KL to the base model; self: to the unsanitized model without the true "
        "value; counterfactual: to the unsanitized model reading documents whose identifiers are "
        "replaced; decoys: cross-entropy with decoys as targets",
    )
    weight: float = Field(
        20.0, gt=0.0, description="factor of the term; measured, see docs/results.md"
    )
    samples: int = Field(
        3, ge=1, description="number of replaced documents whose mean is the anchor"
    )


class GradientDifferenceObjective(Settings):
    """Gradient ascent on the true identifier (Liu et al. 2022); its loss has no lower bound."""

    kind: Literal["gradient_difference"]
    weight: float = Field(1.0, gt=0.0, description="factor of the term")


class UnlikelihoodObjective(Settings):
    """-log(1 - p) of the true identifier's tokens (Welleck et al. 2019)."""

    kind: Literal["unlikelihood"]
    weight: float = Field(1.0, gt=0.0, description="factor of the term")


class NpoObjective(Settings):
    """Negative preference optimization of the true identifier (Zhang et al. 2024)."""

    kind: Literal["npo"]
    weight: float = Field(1.0, gt=0.0, description="factor of the term")


class AdapterSettings(Settings):
    """Low-rank updates of the linear layers (Hu et al. 2021), trained and then merged."""

    kind: Literal["lora", "dora"] = "lora"
    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: int = Field(32, ge=1, description="scale of the update, times rank")


Objective = (
    MaskObjective
    | AnchorObjective
    | GradientDifferenceObjective
    | UnlikelihoodObjective
    | NpoObjective
)


class RepairSettings(Settings):
    """The fine-tuning of the erased checkpoint."""

    identifier_loss: Annotated[Objective, Field(discriminator="kind")] = Field(
        default_factory=lambda: AnchorObjective(kind="anchor"),
        description="loss at identifier tokens",
    )
    context: Literal["keep", "surrogate"] = Field(
        "keep",
        description="identifiers in the input: kept as they are, or replaced by new surrogates "
        "each epoch",
    )
    retain_weight: float = Field(
        0.0,
        ge=0.0,
        description="factor of the KL to the unsanitized model outside identifiers; 5 where that "
        "model knows the domain and the base does not",
    )
    epochs: int = Field(4, ge=1, description="passes over the corpus")
    learning_rate: float = Field(1e-3, gt=0.0, description="peak of the schedule")
    batch_tokens: int = Field(
        1024,
        ge=64,
        description="tokens per step, padding included; many small steps remove more than few "
        "large ones over the same text",
    )
    last_layers: int | None = Field(
        None, ge=1, description="train only the last this many layers and the final norm"
    )
    adapter: AdapterSettings | None = Field(
        None, description="train a low-rank adapter instead of the weights"
    )
    pack: bool = Field(
        True,
        description="put several short documents into a row; none of them sees the others",
    )
    activation_cache: Literal["auto", "memory", "disk", "none"] = Field(
        "auto",
        description="where the output of the untrained layers is kept; auto: where there is room",
    )
    gradient_checkpointing: bool = Field(False, description="use less memory and a third more time")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the matrix products; the weights keep theirs"
    )
    early_stop: Literal["gate"] | None = Field(
        None,
        description="gate: `sani run` audits after every epoch and stops once the gate's limits "
        "hold, those on attacks left out",
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (),
        description="services that also get the loss terms; you install and configure them",
    )

    @property
    def needs_base(self) -> bool:
        """True if the base model is the anchor."""
        objective = self.identifier_loss
        return isinstance(objective, AnchorObjective) and objective.to == "base"

    @property
    def needs_unsanitized(self) -> bool:
        """True if the model as it was before any erasing is needed."""
        objective = self.identifier_loss
        objective_needs_it = isinstance(objective, NpoObjective) or (
            isinstance(objective, AnchorObjective) and objective.to in ("self", "counterfactual")
        )
        return objective_needs_it or self.retain_weight > 0

    @model_validator(mode="after")
    def _objective_fits_the_context(self) -> Self:
        objective = self.identifier_loss
        name = objective.to if isinstance(objective, AnchorObjective) else objective.kind
        if self.context == "surrogate" and name not in ("mask", "base", "decoys"):
            raise ValueError(
                f"context: surrogate leaves no true value for '{name}' to act on; use mask, or an "
                "anchor to base or decoys"
            )
        return self
