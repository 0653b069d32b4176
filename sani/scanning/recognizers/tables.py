"""Tables of what the scan recognizes by pattern, read from the YAML files beside this module.

``common.yaml`` has the pieces that expressions are made of and what may follow a heading of each
kind; ``expressions.yaml`` what stands on its own in any language; a file for each language its
headings, words and expressions. All files are used for every text, whatever its language: notes
mix them. Every recognizer names its source and has a sentence in which it finds something and one
in which it does not; a test runs both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import regex
import yaml

from sani.text.folding import fold_text
from sani.values.dates import MORE_MONTH_NAMES, month_names
from sani.values.names import listed_names

LANGUAGES = ("en", "es", "de", "fr", "it", "pt", "nl")
_PIECE = regex.compile(r"\{([a-z_]+)\}")
# What a scanner reads for what: OCR of a heading.
_MISREAD = (("m", "rn"), ("l", "1"), ("i", "1"), ("o", "0"))
_MISREAD_KINDS = ("name", "named_patient", "mrn")


@dataclass(frozen=True)
class Heading:
    """A kind of headings in one language, and what follows them.

    Attributes:
        kind: Its name in ``common.yaml``.
        label, score: Of what follows.
        after: The headings, as people write them.
        value: An expression for the separator and the group ``value``.
        check: The name of a rule in `matches`; empty for none.
        heading: The label of the heading itself, where it tells something.
        finds, passes: A sentence with a <marked> value, and one without any.
    """

    kind: str
    label: str
    score: float
    after: tuple[str, ...]
    value: str
    check: str
    heading: str | None
    finds: str
    passes: str


@dataclass(frozen=True)
class Expression:
    """An expression that stands on its own.

    Attributes:
        name, label, score: Of the recognizer and its findings.
        expression: With its pieces put in; the group ``value`` is what is marked, if there is one.
        ignore_case: Whether case does not count.
        check: The name of a rule in `matches`; empty for none.
        needs: What a text without a match lacks; empty if nothing is known.
        near: Folded words one of which stands in every match, or beside it; empty if none is known.
        source: Where it comes from.
        finds, passes: A sentence with a <marked> value, and one without any.
    """

    name: str
    label: str
    score: float
    expression: str
    ignore_case: bool
    check: str
    needs: str
    near: tuple[str, ...]
    source: str
    finds: str
    passes: str


@cache
def read_table(name: str) -> Any:
    """Read a YAML file that stands beside this module."""
    folder = files("sani.scanning.recognizers")
    return yaml.safe_load(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def common() -> Any:
    """Return the table that all languages share."""
    return read_table("common")


@cache
def headings() -> tuple[Heading, ...]:
    """Return the headings of every language."""
    kinds, separators, pieces = (common()[part] for part in ("kinds", "separators", "pieces"))
    rows = []
    for language in LANGUAGES:
        for name, row in read_table(language)["headings"].items():
            kind = kinds[name]
            value = expand(pieces[kind["value"]])
            rows.append(
                Heading(
                    kind=name,
                    label=kind["label"],
                    score=kind["score"],
                    after=tuple(map(str, row["after"])),
                    value=f"{separators[kind['separator']]}(?P<value>{value})",
                    check=kind.get("check", ""),
                    heading=kind.get("heading"),
                    finds=row["finds"],
                    passes=row["passes"],
                )
            )
    return tuple(rows)


@cache
def expressions() -> tuple[Expression, ...]:
    """Return the expressions of every language."""
    tables = [read_table(name)["patterns"] for name in ("expressions", *LANGUAGES)]
    return tuple(
        Expression(
            name=row["name"],
            label=row["label"],
            score=row["score"],
            expression=expand(row["expression"]),
            ignore_case=row.get("ignore_case", False),
            check=row.get("check", ""),
            needs=row.get("needs", ""),
            near=tuple(
                fold_text(word)
                for name in row.get("near", ())
                for word in sorted(_word_lists().get(name, {name}))
            ),
            source=row["source"],
            finds=row["finds"],
            passes=row["passes"],
        )
        for rows in tables
        for row in rows
    )


def folded_headings(heading: Heading) -> Iterator[str]:
    """Yield how the headings of a kind stand in folded text: as written, dotted, misread."""
    for written in heading.after:
        folded = fold_text(written)
        yield folded
        if folded.isalpha() and len(folded) <= 4:  # n.h.c.
            yield ".".join(folded)
        if heading.kind in _MISREAD_KINDS and len(folded) > 3:
            yield from (folded.replace(*one) for one in _MISREAD if one[0] in folded)


def expand(expression: str) -> str:
    """Put its pieces into an expression; what stands in braces otherwise stays."""
    pieces = _pieces()
    while any(match[1] in pieces for match in _PIECE.finditer(expression)):
        expression = _PIECE.sub(lambda match: pieces.get(match[1], match[0]), expression)
    return expression


@cache
def _word_lists() -> dict[str, set[str]]:
    """Return the words of all languages by the name of their list, months among them."""
    languages = common()["month_languages"]
    names = [(way, name) for one in languages for (way, _), name in month_names(one).items()]
    lists = {
        "months": {name for _, name in names} | set(MORE_MONTH_NAMES),
        "long_months": {name for way, name in names if way.endswith("wide")}
        | {name for name in MORE_MONTH_NAMES if len(name) > 4},
    }
    for language in LANGUAGES:
        for name, words in read_table(language)["words"].items():
            lists.setdefault(name, set()).update(words)
    return lists


@cache
def _pieces() -> dict[str, str]:
    data, lists = common(), _word_lists()
    months = {
        piece: _alternatives(map(regex.escape, _with_bare(lists[name])))
        for piece, name in (("month", "months"), ("month_long", "long_months"))
    }
    particles = [*data["particle_phrases"], *data["particles"]]
    return {
        **data["pieces"],
        **{name: _alternatives(words) for name, words in lists.items()},
        **months,
        "particle": "(?:" + "|".join(particles) + ")",
    }


def _with_bare(names: set[str]) -> set[str]:
    """Return names, and those without their accents: people type fevrier."""
    return names | {fold_text(name) for name in names}


def _alternatives(words: Iterable[str]) -> str:
    """Return an expression for one of the words, the longest first."""
    return "(?:" + "|".join(sorted(set(words), key=lambda word: (-len(word), word))) + ")"


@cache
def given_names() -> frozenset[str]:
    """Return the given names that Faker lists, folded."""
    return listed_names(tuple(common()["name_locales"]))[0]


@cache
def surnames() -> frozenset[str]:
    """Return the surnames that Faker lists and that are no given names, folded."""
    return listed_names(tuple(common()["name_locales"]))[1]


@cache
def ordinary_words() -> frozenset[str]:
    """Return the words of the languages that are no names by themselves, folded."""
    return frozenset(
        fold_text(word)
        for language in LANGUAGES
        for word in map(str, read_table(language)["ordinary"])
    )


@cache
def heading_words(choose: Callable[[Heading], bool] | None = None) -> frozenset[str]:
    """Return every heading, folded, or those of the kinds that are chosen."""
    return frozenset(
        fold_text(word) for row in headings() if choose is None or choose(row) for word in row.after
    )
