"""Options: their defaults are the library's, and they stand in groups where there are many."""

from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from typer.core import TyperGroup

from sani.cli.main import app
from sani.recipe import (
    AnchorObjective,
    AuditSettings,
    EraseSettings,
    FractionSelector,
    NpoObjective,
    RepairSettings,
    ScanSettings,
    complete_erase_settings,
    complete_repair_settings,
)


def options_of(command: str) -> dict[str, Any]:
    """Return the options of a command by their name in the function."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {parameter.name or "": parameter for parameter in group.commands[command].params}


def default_of(model: type[BaseModel], key: str) -> object:
    return model.model_fields[key].get_default(call_default_factory=True)


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("scan", "num_proc", default_of(ScanSettings, "num_proc")),
        ("audit", "decoys", default_of(AuditSettings, "decoys")),
        ("audit", "swaps", default_of(AuditSettings, "swaps")),
        ("erase", "last_layers", complete_erase_settings().last_layers),
        ("erase", "selector", complete_erase_settings().selector.kind),
        ("erase", "per", default_of(FractionSelector, "per")),
        (
            "erase",
            "reset",
            f"{complete_erase_settings().reset}; in an adapter: "
            f"{complete_erase_settings(in_adapter=True).reset}",
        ),
        (
            "repair",
            "identifier_loss",
            f"{complete_repair_settings(has_base=True).identifier_loss.kind}; without --base: "
            f"{complete_repair_settings(has_base=False).identifier_loss.kind}",
        ),
        ("repair", "to", default_of(AnchorObjective, "to")),
        (
            "repair",
            "weight",
            f"anchor: {default_of(AnchorObjective, 'weight')}; others: "
            f"{default_of(NpoObjective, 'weight')}",
        ),
        ("repair", "epochs", default_of(RepairSettings, "epochs")),
        ("repair", "learning_rate", default_of(RepairSettings, "learning_rate")),
    ],
)
def test_the_default_in_the_help_is_that_of_the_library(
    command: str, option: str, default: object
) -> None:
    parameter = options_of(command)[option]
    assert parameter.default is None, "the library decides"
    assert parameter.show_default == str(default)


@pytest.mark.parametrize("command", ["scan", "audit", "erase", "repair", "attack"])
def test_more_than_ten_options_stand_in_groups(command: str) -> None:
    options = options_of(command)
    grouped = [o for o in options.values() if getattr(o, "rich_help_panel", None)]
    assert len(options) > 10
    assert len(options) - len(grouped) <= 5


def test_an_erase_by_itself_resets_the_last_layers_unless_it_only_interpolates() -> None:
    assert complete_erase_settings() == EraseSettings(last_layers=3)
    assert complete_erase_settings({"layers": [0]}).last_layers is None
    only = complete_erase_settings({"interpolate_to_base": 0.5})
    assert (only.last_layers, only.layers) == (None, None)
    more = complete_erase_settings({"interpolate_to_base": 0.5, "parts": ["mlp"]})
    assert more.last_layers == 3
