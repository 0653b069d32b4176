"""The public names of `sani`: one list, served lazily, with every error class in it."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sani
from sani import errors


def imports_for_type_checkers() -> dict[str, str]:
    """Return the names under TYPE_CHECKING in sani/__init__.py, with their modules."""
    tree = ast.parse(Path(sani.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_export_list_is_that_of_the_lazy_table_and_of_the_type_checkers() -> None:
    assert sani.__all__ == sorted(sani._MODULE_OF)
    assert imports_for_type_checkers() == sani._MODULE_OF
    assert dir(sani) == sani.__all__


def test_every_public_name_loads_from_a_module_that_defines_or_exports_it() -> None:
    for name, module in sani._MODULE_OF.items():
        assert getattr(sani, name) is getattr(import_module(module), name)
        assert callable(getattr(sani, name))
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        sani.forget  # noqa: B018


def test_every_error_class_is_public_and_is_a_sani_error() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert len(classes) > 10
    assert classes.keys() <= set(sani.__all__)
    assert all(issubclass(value, sani.SaniError) for value in classes.values())


def test_importing_the_errors_and_settings_loads_no_torch() -> None:
    code = (
        "import sys, sani; sani.SaniError, sani.EraseSettings, sani.load_recipe;"
        "sys.exit(sorted({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stderr == b"", done.stderr


@pytest.mark.parametrize("name", ["audit", "detect", "erase", "repair", "scan", "attack"])
def test_public_functions_take_their_arguments_in_one_order(name: str) -> None:
    """The checkpoint, the corpus, the settings come in this order; all else by name."""
    order = ["checkpoint", "models", "corpus", "settings"]
    parameters = inspect.signature(getattr(sani, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == sorted(positional, key=order.index), positional


def test_no_public_function_ends_in_an_underscore() -> None:
    assert not [name for name in sani.__all__ if name.endswith("_")]
