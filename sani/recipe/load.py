"""Recipes and single sections, read from YAML or from plain values, and written back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sani.errors import RecipeError
from sani.recipe.problems import problems_of, shown_key
from sani.recipe.recipe import Recipe
from sani.recipe.settings import Settings
from sani.recipe.versions import version_1_refusal
from sani.recipe.yaml_text import dump_yaml, parse_yaml

_S = TypeVar("_S", bound=Settings)


def load_recipe(path: Path | str, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file; paths in it are relative to the working directory.
        overrides: ``section.key=value`` each, the value in YAML. An override wins over the file,
            the file over the defaults.

    Raises:
        RecipeError: With every problem, a line each, by dotted path.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        name = type(error).__name__
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({name})") from None
    return parse_recipe(text, source=str(path), overrides=overrides)


def parse_recipe(text: str, *, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe's text; arguments and errors as for `load_recipe`.

    Args:
        text: The recipe as YAML.
        source: What errors call it.
        overrides: As for `load_recipe`.
    """
    data = parse_yaml(text, source=source)
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: expected a mapping of sections, got {_type_name(data)}")
    for override in overrides:
        _override(data, override)
    if data.get("version") == 1:
        raise RecipeError(f"{source}: {version_1_refusal()}")
    return _validate(data, Recipe, source=source)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe with every default filled in, as YAML that `load_recipe` reads back."""
    return dump_yaml(recipe.model_dump(mode="json"))


def settings_from(section: type[_S], values: Mapping[str, Any]) -> _S:
    """Return one section of a recipe from plain values, checked by the recipe's own rules.

    Args:
        section: Such as `EraseSettings`.
        values: As they would stand in YAML.

    Raises:
        RecipeError: With every problem, a line each.
    """
    return _validate(dict(values), section, source="options")


def _override(data: dict[str, Any], override: str) -> None:
    """Set one key of a parsed recipe, in place."""
    key, equals, text = override.partition("=")
    *sections, last = key.split(".")
    if not equals or not all([*sections, last]):
        raise RecipeError("--set: expected section.key=value, as in --set repair.epochs=2")
    shown = ".".join(map(shown_key, key.split(".")))
    for section in sections:
        inner = data.setdefault(section, {})
        if inner is None:
            inner = data[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {shown}: '{shown_key(section)}' is a value, not a section")
        data = inner
    data[last] = parse_yaml(text, source=f"--set {shown}")


def _validate(data: dict[str, Any], model: type[_S], *, source: str) -> _S:
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RecipeError(
            f"{source}: dates, infinities and other YAML extras have no place in a recipe; "
            "put such a value in quotes"
        ) from None
    try:
        # From JSON, strict mode takes strings for paths and lists for tuples, and nothing looser.
        return model.model_validate_json(text)
    except ValidationError as error:
        raise RecipeError(f"{source}: " + f"\n{source}: ".join(problems_of(error, model))) from None


def _type_name(data: object) -> str:
    names = {"NoneType": "an empty file", "list": "a list"}
    return names.get(type(data).__name__, "a single value")
