"""The pages agree with the code: generated parts, names, links, and the length of the README."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from sani.corpus.records import to_document
from sani.recipe import Recipe
from tests.support.pages import (
    ROOT,
    blocks,
    mentioned_commands,
    options_of,
    pages,
    without_blocks,
)

PAGES = pages()
SECTIONS = tuple(Recipe.model_fields)
FILES = (".json", ".yaml", ".html", ".md", ".py", ".sig", ".safetensors")


@cache
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_code_gives() -> None:
    for path, text in generator().generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make docs`"


def test_a_page_without_its_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: x -->\n\nold\n\n<!-- end of generated: x -->\n")
    assert "new" in generator().between_markers(page, "x", "new\n")
    with pytest.raises(ValueError, match="markers 'y'"):
        generator().between_markers(page, "y", "new\n")


def test_the_readme_is_short() -> None:
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1300


def recipe_paths(node: Any, models: dict[str, Any], path: str = "") -> set[str]:
    """Every dotted key of the recipe; of lists and kinds, those of all."""
    if "$ref" in node:
        return recipe_paths(models[node["$ref"].rsplit("/", 1)[1]], models, path)
    found = {path} if path else set()
    inner = [*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items", {})]
    for variant in inner:
        found |= recipe_paths(variant, models, path) if variant else set()
    for key, field in node.get("properties", {}).items():
        found |= recipe_paths(field, models, f"{path}.{key}" if path else key)
    return found


@cache
def known_recipe_paths() -> set[str]:
    schema = Recipe.model_json_schema()
    return recipe_paths(schema, schema["$defs"])


@cache
def source() -> str:
    """All text of the code, in which every name of the documentation must stand."""
    files = [
        path
        for folder in ("sani", "recipes", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".json", ".jinja") and "docs" not in path.parts
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(files))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_code_type_is_there(page: str) -> None:
    """Recipe keys, options, files, modules, and names with an underscore."""
    text = without_blocks(PAGES[page])
    text = re.sub(r"<!-- generated: tree -->.*?<!-- end", "", text, flags=re.DOTALL)
    unknown = []
    for code in re.findall(r"`([^`\n]+)`", text):
        word = re.split(r"[:=\s(\[]", code)[0]
        path = re.fullmatch(rf"({'|'.join(SECTIONS)})(\.[a-z_]+)+", word)
        if path and not word.endswith(FILES) and word not in known_recipe_paths():
            unknown.append(code)
        if re.fullmatch(r"(sani|recipes|tests|benchmarks|docs)/[\w./-]+", word):
            unknown += [] if (ROOT / word).exists() else [code]
        if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", word) and word not in source():
            unknown.append(code)
    known = set().union(*map(options_of, ("run", "scan", "audit", "erase", "repair", "report")))
    known |= set().union(
        *map(options_of, ("attack", "sample", "init", "verify", "sign", "env", "review"))
    )
    for option in re.findall(r"(?<!`)`(--[a-z-]+)", text):
        if option not in known and f'"{option}"' not in source():
            unknown.append(option)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES)
def test_every_option_of_a_mentioned_command_is_there(page: str) -> None:
    for words in mentioned_commands(PAGES[page]):
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= options_of(words[1]), " ".join(words)


def test_every_recipe_in_a_page_is_valid() -> None:
    minimal = {
        "version": get_args(Recipe.model_fields["version"].annotation)[0],
        "model": {"path": "m", "base": "b"},
        "corpus": {"path": "c", "held_out": "h"},
        "repair": {},
    }
    found = 0
    for text in PAGES.values():
        for _, block in blocks(text, "yaml"):
            data = yaml.safe_load(block)
            if set(data) <= set(SECTIONS) and not block.startswith("#"):
                found += 1
                Recipe.model_validate_json(json.dumps({**minimal, **data}))
    assert found


def test_every_document_in_a_page_is_valid() -> None:
    found = [block for text in PAGES.values() for _, block in blocks(text, "json")]
    assert found
    for block in found:
        assert to_document(json.loads(block), kinds={}).spans


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES["README.md"])
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_site_builds_without_warnings_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stderr) == (0, "")
    built_pages = sorted(tmp_path.rglob("*.html"))
    assert len(built_pages) >= len(PAGES)
    loads = (
        r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)'
        r'|<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)'
    )
    for page in built_pages:
        assert re.findall(loads, page.read_text(encoding="utf-8")) == []
