"""The base of every section of a recipe, and the value types that several sections share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Part = Literal["mlp", "attention"]
PARTS: tuple[Part, ...] = get_args(Part)
PlacementChoice = Literal["auto", "memory", "stream"]  # of a model's weights
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    """Base of every section. Values are checked strictly and frozen; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


def has_duplicates(values: Sequence[object]) -> bool:
    """Return True if a value stands twice."""
    return len(set(values)) != len(values)
