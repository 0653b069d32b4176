"""The shape of the code: what may import what, and where things stand."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_test_module(module: str) -> bool:
    """Whether it holds tests or fixtures, which pytest alone imports."""
    last = module.split(".")[-1]
    return module.startswith("tests.") and (last == "conftest" or last.startswith("test_"))


def test_no_test_module_imports_another() -> None:
    assert is_test_module("tests.models.test_families")
    assert not is_test_module("tests.support.words")
    importing = {
        (str(path.relative_to(ROOT)), module)
        for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
        for module in imports_of(path)
        if is_test_module(module)
    }
    assert importing == set()
