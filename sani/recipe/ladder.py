"""Escalation: the rungs of settings that are tried one after another, and the default ladder."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from sani.recipe.erase_settings import EraseSettings, RandomSelector
from sani.recipe.repair_settings import AnchorObjective, MaskObjective, RepairSettings
from sani.recipe.settings import Settings

STRONGER = 4.0  # ours: factor of the objective's weight on the rungs that are called stronger


class Rung(Settings):
    """One attempt of an escalation: a recipe with these sections, on the same checkpoint."""

    name: str | None = Field(
        None, pattern=r"^\w[\w ,.-]{0,49}$", description="name in the report; rung N if null"
    )
    erase: EraseSettings | None = Field(None, description="as in a recipe")
    repair: RepairSettings = Field(
        default_factory=RepairSettings,
        description="as in a recipe; keys that are left out are those of the recipe's own repair",
    )


class EscalationSettings(Settings):
    """The rungs, cheapest first, and the budget. The first rung is always tried."""

    seconds: float | None = Field(
        None, gt=0.0, description="no rung begins once the rungs before took so many seconds"
    )
    tokens: int | None = Field(
        None, ge=1, description="no rung begins once the rungs before trained on so many tokens"
    )
    ladder: tuple[Rung, ...] | None = Field(
        None, description="rungs from the cheapest up; the default ladder if null"
    )

    @model_validator(mode="after")
    def _has_a_rung(self) -> Self:
        if self.ladder == ():
            raise ValueError("ladder is empty; leave it out for the default one")
        return self


def default_ladder(
    repair: RepairSettings | None, *, base: bool, in_adapter: bool = False
) -> tuple[Rung, ...]:
    """Return the rungs that are tried where a recipe does not list its own.

    These are the last layer alone, the last half, and the last half with a stronger objective.
    With a base follow every weight nine tenths of the way back to it, and all the way, which is
    retraining. Half way is not enough: it leaves people who stand out by the log-ratio to the base.
    Without a base follows half of the neurons of every layer. The choice is ours.

    Args:
        repair: The recipe's own section. Its objective and all other keys hold for every rung that
            does not set them.
        base: True if there is a base model.
        in_adapter: True if an adapter stays one, whose neurons can only become the base's again.
    """
    given = repair or RepairSettings()
    objective = given.identifier_loss
    if "identifier_loss" not in given.model_fields_set:
        objective = AnchorObjective(kind="anchor", to="base" if base else "counterfactual")
    usual = given.model_copy(update={"identifier_loss": objective})
    strong = usual
    if not isinstance(objective, MaskObjective):
        heavier = objective.model_copy(update={"weight": STRONGER * objective.weight})
        strong = usual.model_copy(update={"identifier_loss": heavier})
    reset: Literal["rewind", "reinit"] = "rewind" if in_adapter else "reinit"
    last_half = EraseSettings(last_layers="half", reset=reset)
    rungs = [
        Rung(
            name="last layer",
            erase=EraseSettings(last_layers=1, reset=reset),
            repair=usual.model_copy(update={"last_layers": 1}),
        ),
        Rung(name="last half", erase=last_half, repair=usual),
    ]
    if strong is not usual:
        rungs.append(Rung(name="last half, stronger", erase=last_half, repair=strong))
    if not base:
        random_half = RandomSelector(kind="random", fraction=0.5)
        half_of_all = EraseSettings(last_layers="all", selector=random_half)
        return (*rungs, Rung(name="half of every layer", erase=half_of_all, repair=strong))
    # Retraining starts from the base itself, so nothing may hold on to the unsanitized model.
    retraining = usual.model_copy(
        update={
            "identifier_loss": MaskObjective(kind="mask"),
            "retain_weight": 0.0,
            "adapter": None,
            "last_layers": None,
        }
    )
    return (
        *rungs,
        Rung(
            name="nine tenths to the base",
            erase=EraseSettings(interpolate_to_base=0.9),
            repair=strong,
        ),
        Rung(name="retraining", erase=EraseSettings(interpolate_to_base=1.0), repair=retraining),
    )


def complete_rung(rung: Rung, number: int, repair: RepairSettings | None) -> Rung:
    """Return a rung with its name, and with the recipe's repair wherever its own sets nothing.

    Raises:
        ValueError: If the two together break a rule of `RepairSettings`.
    """
    set_here = {key: getattr(rung.repair, key) for key in rung.repair.model_fields_set}
    merged = (repair or RepairSettings()).model_copy(update=set_here)
    try:
        merged = RepairSettings.model_validate(merged.model_dump())
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"ladder, rung {number}: {text}") from None
    return rung.model_copy(update={"name": rung.name or f"rung {number}", "repair": merged})
