"""The shape of the code: what may import what, how long things may be, and where they are."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import sani

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sani"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "datasets", "scipy", "numpy", "pandas", "peft", "matplotlib"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """Return the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


# ---- imports ---------------------------------------------------------------------------------


def import_nodes(
    nodes: Iterable[ast.AST], *, in_functions: bool
) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements that run: those for type checkers alone are left out."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from import_nodes(node.orelse, in_functions=in_functions)
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from import_nodes(ast.iter_child_nodes(node), in_functions=in_functions)


def imports_of(path: Path, *, in_functions: bool) -> set[str]:
    """Return the names that a file imports: modules, and names taken from them."""
    names = set()
    for node in import_nodes(tree_of(path).body, in_functions=in_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def graph(*, in_functions: bool) -> dict[str, set[str]]:
    """Return the modules of sani that each of its modules imports.

    `sani` itself is left out: what it serves lazily, it imports when it is asked, and importing a
    module of a package runs the package's __init__, which is a node of its own.
    """
    edges = {}
    for name, path in MODULES.items():
        edges[name] = (imports_of(path, in_functions=in_functions) & MODULES.keys()) - {name}
    return {name: targets - {"sani"} for name, targets in edges.items() if name != "sani"}


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the modules that import each other, directly or by others (Tarjan's components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            component = [stack.pop()]
            while component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1 or name in edges.get(name, ()):
                components.append(sorted(component))

    for name in edges:
        if name not in number:
            visit(name)
    return components


def test_a_cycle_of_imports_is_seen() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    import c\n"
    tree = ast.parse(source)
    for in_functions, names in ((False, ["b"]), (True, ["b", "c"])):
        nodes = import_nodes(tree.body, in_functions=in_functions)
        assert [alias.name for node in nodes for alias in node.names] == names


def test_the_import_graph_has_no_cycle() -> None:
    assert len(MODULES) > 90
    assert cycles(graph(in_functions=False)) == []


def test_it_has_none_with_the_imports_inside_functions_either() -> None:
    """They are there for the time that a command takes to start, not to hide a cycle."""
    assert cycles(graph(in_functions=True)) == []


def test_nothing_but_the_command_line_imports_the_pipeline() -> None:
    importing = {
        name
        for name, targets in graph(in_functions=True).items()
        if any(target.startswith("sani.pipeline") for target in targets)
    }
    assert importing
    assert {
        name for name in importing if not name.startswith(("sani.pipeline", "sani.cli"))
    } == set()


def test_importing_sani_and_its_help_load_no_heavy_library() -> None:
    """In a fresh process, since this one has loaded all of them."""
    code = (
        "import sys, sani\n"
        f"heavy = {HEAVY!r}\n"
        "after_import = heavy & set(sys.modules)\n"
        "from sani.cli.main import main\n"
        "code = main(['--help'])\n"
        "sys.exit(f'{after_import} {code} {heavy & set(sys.modules)}' "
        "if after_import or code or heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"repair" in done.stdout


def is_test_module(module: str) -> bool:
    """Return True for a module of tests or fixtures, which pytest alone imports."""
    last = module.split(".")[-1]
    return module.startswith("tests.") and (last == "conftest" or last.startswith("test_"))


def test_no_test_module_imports_another() -> None:
    assert is_test_module("tests.models.test_families")
    assert not is_test_module("tests.support.words")
    importing = {
        (str(path.relative_to(ROOT)), module)
        for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
        for module in imports_of(path, in_functions=True)
        if is_test_module(module)
    }
    assert importing == set()


# ---- names and sizes -------------------------------------------------------------------------


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def is_command(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True for a command's function, whose options are its parameters: Typer reads them."""
    return path.parent.name == "cli" and any("Option" in ast.unparse(a) for a in node.args.args)


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {module_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_longer_than_80_lines_or_has_more_than_10_parameters() -> None:
    too_large = {}
    for path, node in functions():
        if is_command(path, node):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        if lines > 80 or len(parameters) > 10:
            too_large[f"{module_of(path)}.{node.name}"] = (lines, len(parameters))
    assert too_large == {}


def test_docstrings_do_not_begin_with_a_question_word() -> None:
    first = re.compile(r"(What|Whether|Of|How|Who|Where|Which|Why|When|If)\b")
    assert first.match("What a full disk is told to the user as.")
    assert not first.match("Return the error shown when the disk is full.")
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = [
        f"{module_of(path)}:{getattr(node, 'lineno', 1)}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, described) and first.match(ast.get_docstring(node) or "")
    ]
    assert wrong == []


def test_no_module_is_called_utils() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [name for name in MODULES if vague & set(name.split("."))] == []


def test_no_package_has_the_name_of_a_function_that_sani_serves() -> None:
    """A submodule of that name, once imported, would take the function's place."""
    served = {name for name in sani.__all__ if name.islower()}
    assert {"audit", "erase", "repair", "run", "scan"} <= served
    assert served & {path.stem for path in PACKAGE.iterdir()} == set()


def folders(root: Path) -> set[str]:
    """Return the folders of a tree that hold Python files, as paths from its root."""
    return {str(path.parent.relative_to(root)) for path in root.rglob("*.py")}


def test_the_folders_of_the_tests_mirror_those_of_sani() -> None:
    assert folders(ROOT / "tests") - {"support", "docs"} == folders(PACKAGE)
