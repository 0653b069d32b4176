"""Settings of one stage by itself, where the caller says only a part of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sani.recipe.erase_settings import EraseSettings
from sani.recipe.load import settings_from
from sani.recipe.repair_settings import RepairSettings

LAST_LAYERS = 3  # ours: the last half of a small model


def complete_erase_settings(
    values: Mapping[str, Any] | None = None, *, in_adapter: bool = False
) -> EraseSettings:
    """Return settings of an erase; what ``values`` leaves out is filled in.

    The default is to reset every neuron of the last `LAST_LAYERS` layers. Inside an adapter the
    reset is ``rewind``, since an adapter can hold nothing but a difference to its base.
    Interpolation alone chooses no layers.

    Args:
        values: Keys of the section, as they would stand in YAML.
        in_adapter: True if the erase stays inside an adapter.

    Raises:
        RecipeError: With every problem, a line each.
    """
    given = dict(values or {})
    only_interpolates = bool(given.get("interpolate_to_base")) and len(given) == 1
    if not (only_interpolates or "last_layers" in given or "layers" in given):
        given["last_layers"] = LAST_LAYERS
    if in_adapter:
        given.setdefault("reset", "rewind")
    return settings_from(EraseSettings, given)


def complete_repair_settings(
    values: Mapping[str, Any] | None = None, *, has_base: bool
) -> RepairSettings:
    """Return settings of a repair; what ``values`` leaves out is filled in.

    The default loss at identifiers is the anchor to the base, or the mask where there is no base.

    Args:
        values: Keys of the section, as they would stand in YAML.
        has_base: True if the public base model is at hand.

    Raises:
        RecipeError: With every problem, a line each.
    """
    given = dict(values or {})
    loss = dict(given.get("identifier_loss") or {})
    loss.setdefault("kind", "anchor" if has_base else "mask")
    return settings_from(RepairSettings, {**given, "identifier_loss": loss})
