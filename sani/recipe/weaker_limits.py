"""Limits, audits and attacks that ask for less than the defaults do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sani.recipe.attack_settings import AttackSettings
from sani.recipe.sections import AuditSettings, GateSettings

LOWER_LIMITS = ("scan_recall",)  # settings whose smaller value asks for less
# Also null where nothing was sampled; `weaker_audit` knows if something was.
OF_SAMPLES = "sampled_beyond_control"


def weaker_limits(settings: Mapping[str, Any]) -> list[str]:
    """Return each limit that is weaker than its default, a phrase each, in the recipe's order.

    A limit is weaker if it is switched off, if fewer kinds are judged, if a fraction above 0 stands
    in the place of the control, or if its number is on the lenient side of the default.

    Args:
        settings: The section ``gate`` of a recipe, as plain data. A key that it lacks, as in the
            file of another version, counts as switched off.
    """
    phrases = []
    for name, default in GateSettings().model_dump(mode="json").items():
        value = settings.get(name)
        if name == OF_SAMPLES and value is None:
            continue
        if _is_weaker(name, value, default):
            phrases.append(f"{name} is {_in_words(value)}, by default {_in_words(default)}")
    return phrases


def weaker_audit(settings: AuditSettings, gate: GateSettings) -> list[str]:
    """Return each setting of the audit by which it finds less than by default, a phrase each.

    So is what it samples and the gate does not judge.
    """
    usual = AuditSettings()
    weaker = {
        "framing": settings.framing != usual.framing,
        "queries": settings.queries < usual.queries,
        "probability": settings.probability > usual.probability,
        "decoys": settings.decoys < usual.decoys,
    }
    unjudged = settings.generation is not None and gate.sampled_beyond_control is None
    limit = _in_words(GateSettings().sampled_beyond_control)
    return [
        *([f"{OF_SAMPLES} is no limit, by default {limit}"] if unjudged else []),
        *(
            f"audit.{name} is {getattr(settings, name)}, by default {getattr(usual, name)}"
            for name in weaker
            if weaker[name]
        ),
    ]


def weaker_attacks(settings: AttackSettings | None, gate: GateSettings) -> list[str]:
    """Return each setting of a judged attack by which it tries less than by default.

    That is a smaller number, or a list that lacks one of the default's members.
    """
    if settings is None or not gate.judges_attacks:
        return []
    phrases = []
    for name, of_attack in settings:
        usual = getattr(AttackSettings(), name)
        pairs = (
            [(f"attack.{name}.{key}", value, getattr(usual, key)) for key, value in of_attack]
            if isinstance(of_attack, BaseModel)
            else [(f"attack.{name}", of_attack, usual)]
        )
        for key, value, default in pairs:
            fewer = isinstance(default, int | float) and value < default
            if fewer or (isinstance(default, tuple) and not set(default) <= set(value)):
                shown, by_default = (
                    ", ".join(map(str, each)) if isinstance(each, tuple) else str(each)
                    for each in (value, default)
                )
                phrases.append(f"{key} is {shown}, by default {by_default}")
    return phrases


def _is_weaker(name: str, value: Any, default: Any) -> bool:
    if value == default or default is None:
        return False
    if value is None:
        return True
    if isinstance(default, list):
        return not (isinstance(value, list) and set(default) <= set(value))
    if isinstance(default, bool):
        return not value
    if not isinstance(value, int | float):
        return True
    if not isinstance(default, int | float):  # of the control: only 0 is at least as strict
        return value > 0
    return value < default if name in LOWER_LIMITS else value > default


def _in_words(value: Any) -> str:
    if value is None:
        return "no limit"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
