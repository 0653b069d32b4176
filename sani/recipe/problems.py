"""Pydantic's validation errors as sentences for the author of a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sani.recipe.settings import Settings
from sani.recipe.versions import DELETED_IN_2, RENAMED_IN_2

NEAR = 0.75  # a key that is written wrong is at least as similar to the right one; ours
NOT_SHOWN = "(not shown)"


def problems_of(error: ValidationError, model: type[Settings]) -> list[str]:
    """Return every problem of a section or a recipe, each once, by its dotted path.

    No value is repeated, since a value may be an identifier that was pasted in by mistake.
    """
    return list(dict.fromkeys(_sentences(error, model)))


def _sentences(error: ValidationError, model: type[Settings]) -> Iterator[str]:
    details = error.errors(include_url=False, include_input=False)
    parents = {problem["loc"][:-1] for problem in details}
    for problem in details:
        if problem["type"] == "too_short" and problem["loc"] in parents:
            continue  # its wrong entries were left out, so it only looks empty
        yield from _sentence(problem, model)


def _sentence(problem: ErrorDetails, model: type[Settings]) -> Iterator[str]:
    location, names = _locate([str(part) for part in problem["loc"]], problem["type"], model)
    path = ".".join(location) or "recipe"
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            *sections, key = location
            # Text that is near no key may be a value whose colon was forgotten.
            near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=NEAR)
            shown = ".".join([*sections, key if near else shown_key(key)])
            yield f"{shown}: unknown key{_did_you_mean(key, names)}"
        case "missing":
            yield f"{path}: missing"
        case "union_tag_invalid":
            expected = [name.strip("' ") for name in context["expected_tags"].split(",")]
            close = difflib.get_close_matches(str(context["tag"]), expected, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            yield f"{path}.kind: expected one of {', '.join(expected)}{hint}"
        case "union_tag_not_found":
            yield f"{path}: expected a section with a kind"
        case "value_error":
            for text in str(context["error"]).split("\n"):
                yield f"{path}: {text}" if location else text
        case _:
            yield f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


# Pydantic puts the member of a plain union that was tried into the path, as if it were a key.
_UNION_MEMBERS = (
    "literal['control']", "constrained-float", "literal['half','all']", "constrained-int",
)  # fmt: skip


def _locate(
    location: Sequence[str], problem: str, model: type[Settings]
) -> tuple[list[str], list[str]]:
    """Return the path as the file has it, and the keys that the section at its end may hold.

    Pydantic puts the tag of a union into the path where the file has no such level. The JSON
    schema tells a tag from a key of the same name.
    """
    schema = _schema(model)
    section = list(_variants(schema, schema))
    *sections, last = location or [""]
    path = []
    for name in sections:
        if name.isdigit():  # an entry of a list
            path.append(name)
            continue
        inner = [node["properties"][name] for node in section if name in node.get("properties", ())]
        tagged = [node for node in section if _tag(node) == name]
        if tagged and not inner:
            section = tagged
            continue
        section = [variant for node in inner for variant in _variants(node, schema)]
        path.append(name if inner else NOT_SHOWN)  # the key of a mapping, such as a label
    names = sorted({key for node in section for key in node.get("properties", ())})
    tags = {_tag(node) for node in section}
    if problem == "extra_forbidden" or last in names or last.isdigit():
        path.append(last)
    elif not (last in tags or last in ("", *_UNION_MEMBERS)):
        path.append(NOT_SHOWN)
    return path, names


def shown_key(key: str) -> str:
    """Return a key as errors show it: itself if any section has it or had it; it may be a value."""
    return key if key.isdigit() or key in _all_keys() else NOT_SHOWN


@cache
def _all_keys() -> frozenset[str]:
    from sani.recipe.recipe import Recipe

    schema = _schema(Recipe)
    nodes = (schema, *schema["$defs"].values())
    keys = {key for node in nodes for key in node.get("properties", ())}
    return frozenset(keys | {name.rsplit(".", 1)[1] for name in (*RENAMED_IN_2, *DELETED_IN_2)})


def _tag(node: Mapping[str, Any]) -> Any:
    """Return the ``kind`` that a schema node stands for; None if it has none."""
    return node.get("properties", {}).get("kind", {}).get("const")


@cache
def _schema(model: type[Settings]) -> dict[str, Any]:
    return model.model_json_schema()


def _variants(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the nodes that a node may stand for, references followed."""
    if "$ref" in node:
        yield from _variants(schema["$defs"][node["$ref"].rsplit("/", 1)[1]], schema)
    for inner in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
        yield from _variants(inner, schema)
    if "items" in node:  # a list: its entries, whatever their numbers
        yield from _variants(node["items"], schema)
    yield node


def _did_you_mean(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
