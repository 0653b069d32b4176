"""The documentation as the tests read it: pages, their fenced blocks, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import yaml

from sani.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
SANI: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def site_settings() -> dict[str, Any]:
    """Return mkdocs.yml as a mapping."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return settings


def pages() -> dict[str, str]:
    """Return the text of README.md and of every page of docs/, in the order of the site."""
    paths = [ROOT / "README.md"]
    for entry in site_settings()["nav"]:
        below = next(iter(entry.values())) if isinstance(entry, dict) else entry
        paths += [ROOT / "docs" / name for name in ([below] if isinstance(below, str) else below)]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Return language and content of a page's fenced blocks, in order; all if none is named."""
    return [block for block in _FENCED.findall(text) if not languages or block[0] in languages]


def without_blocks(text: str) -> str:
    """Return a page's text without its fenced blocks."""
    return _FENCED.sub("", text)


@dataclass(frozen=True)
class Command:
    """One command line of a page, without what stands behind #."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def commands(block: str) -> list[Command]:
    """Return the command lines of a console block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [
        Command(tuple(shlex.split(line[2:], comments=True)))
        for line in lines
        if line.startswith("$ ")
    ]


def options_of(command: str) -> set[str]:
    """Return the options of a command of sani."""
    found = {name for parameter in SANI[command].params for name in parameter.opts}
    return {name for name in found if name.startswith("-")} | {"--help"}


def mentioned_commands(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command of sani in inline code and in bash blocks of a page."""
    inline = re.findall(r"`(sani [^`]+)`", without_blocks(text))
    shell = "\n".join(content for _, content in blocks(text, "bash")).replace("\\\n", " ")
    for line in [*inline, *re.findall(r"\bsani (?=run|erase|audit|attack).*", shell)]:
        words = re.sub(r"\.\.\.|\|\||['>].*", "", line).split()
        if len(words) > 1 and words[1] in SANI:
            yield tuple(words)
