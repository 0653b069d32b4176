"""YAML as recipes have it: no key twice, no alias, and 3e-4 is a number.

PyYAML silently keeps the last of two equal keys and reads ``3e-4`` as a text, so a recipe would
mean something else than its author thinks. Aliases of aliases grow without end: 236 bytes became
2.4 GB. It is kept, because it is the common YAML library and two small subclasses mend all three.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sani.errors import RecipeError


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases, and reads 3e-4 as a number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, unless it is an alias of another one."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                problem="an alias (*name) is not read; write its content out",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


class RecipeDumper(yaml.SafeDumper):
    """SafeDumper that puts a text in quotes where `RecipeLoader` would read a number."""


def parse_yaml(text: str, *, source: str) -> Any:
    """Return the content of a YAML text.

    Args:
        text: One YAML document.
        source: Name of the file or option, for the error.

    Raises:
        RecipeError: If it is no YAML; with the line, and without a value of the text.
    """
    try:
        return yaml.load(text, Loader=RecipeLoader)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or "broken syntax")
        raise RecipeError(f"{source}{line}: not valid YAML: {_without_values(problem)}") from None


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads back as the same."""
    return str(yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True))


# PyYAML quotes what it could not read. An alias or a tag may be a value of the corpus and may hold
# quotes itself; a single sign or a '<token>' cannot.
_SIGN = re.compile(r"""(["'])(?:.|<[a-z ]+>)\1""")
_QUOTED = re.compile(r""" ["'].*["']""", re.DOTALL)


def _without_values(problem: str) -> str:
    """Return PyYAML's problem without the quoted text, unless that is a sign."""
    if _QUOTED.search(_SIGN.sub("", problem)):
        return _QUOTED.sub("", problem)
    return problem


def _construct_mapping(loader: RecipeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):  # YAML 1.1: NO would be a label false, 010 a label 8
            raise yaml.constructor.ConstructorError(
                problem="a key must be a word; put numbers, yes, no, on and off in quotes",
                problem_mark=key_node.start_mark,
            )
        if key in keys:
            raise yaml.constructor.ConstructorError(
                problem="a key stands twice", problem_mark=key_node.start_mark
            )
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


RecipeLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
for _side in (RecipeLoader, RecipeDumper):
    # PyYAML follows YAML 1.1, where a float needs a dot; YAML 1.2 and everyone else do not.
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
