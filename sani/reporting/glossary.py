"""The words of the report: each is explained once, and where a section uses it, it leads there."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import yaml
from markupsafe import Markup, escape
from pydantic import BaseModel, TypeAdapter

# Words of everyday reports lead nowhere: a link on each of them would be noise.
PLAIN = {"document", "subject", "identifier", "occurrence", "base", "reset", "gate", "round"}


class Word(BaseModel):
    """A word of the glossary.

    Attributes:
        meaning: One phrase.
        also: Regular expression of other forms of the word.
    """

    meaning: str
    also: str | None = None


@cache
def glossary() -> dict[str, Word]:
    """Return every word, in the order in which they build on each other."""
    text = files("sani.reporting").joinpath("glossary.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Word]).validate_python(yaml.safe_load(text))


@cache
def _forms() -> re.Pattern[str]:
    """Return an expression of all forms of all words; each word is a group, the longest first."""
    words = sorted(enumerate(glossary().items()), key=lambda item: -len(item[1][0]))
    groups = (
        f"(?P<w{number}>{f'{word.also}|' if word.also else ''}{re.escape(name)})"
        for number, (name, word) in words
        if name not in PLAIN
    )
    return re.compile(rf"(?<![\w-])(?:{'|'.join(groups)})(?![\w-])", re.IGNORECASE)


def anchor_of(name: str) -> str:
    """Return the id of a word's entry on the page."""
    return f"word-{list(glossary()).index(name)}"


class Links:
    """Links from the words of a page to their entries: in each section the first use of a word."""

    def __init__(self) -> None:
        """Begin a page."""
        self.used: dict[str, Word] = {}
        self._in_section: set[str] = set()

    def section(self) -> str:
        """Begin a section, where every word leads to its entry once again; return nothing."""
        self._in_section.clear()
        return ""

    def linked(self, text: str) -> Markup:
        """Return a text with links, escaped."""
        names, parts, end = list(glossary()), [], 0
        for match in _forms().finditer(text):
            name = names[int(str(match.lastgroup)[1:])]
            if name in self._in_section:
                continue
            self._in_section.add(name)
            self.used[name] = glossary()[name]
            link = Markup('<a class="word" href="#{}">{}</a>').format(anchor_of(name), match[0])
            parts += [escape(text[end : match.start()]), link]
            end = match.end()
        return Markup("").join([*parts, escape(text[end:])])

    def entries(self) -> list[tuple[str, str, str]]:
        """Return (id, word, meaning) of each word that leads here, by the alphabet."""
        names = sorted(self.used, key=str.lower)
        return [(anchor_of(name), name, self.used[name].meaning.replace("`", "")) for name in names]
