"""The labels of the scan: what each is called elsewhere, its kind, and the HIPAA categories.

All of it is data, in ``labels.yaml``. Of a date and of an age, the value decides the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml

from sani.corpus.documents import Kind
from sani.values.ages import is_over_89
from sani.values.dates import names_a_day


@dataclass(frozen=True)
class HipaaCategory:
    """One of the 18 identifiers of HIPAA Safe Harbor.

    Attributes:
        letter: A to R, as 45 CFR 164.514(b)(2)(i) counts them.
        name: In the rule's words, shortened.
        labels: Labels of the scan that cover it; none if it is not covered.
        needs_ner: Whether it is found only where an engine for names is given.
        not_covered: Why it is not covered; empty if it is.
    """

    letter: str
    name: str
    labels: tuple[str, ...]
    needs_ner: bool
    not_covered: str


def scan_label(name: str) -> str:
    """Return the scan's label for that of another tool or corpus; an unknown one stays.

    Prefixes of tagging schemes are dropped (`bare_label`).
    """
    name = bare_label(name)
    return _synonyms().get(name.upper(), name)


def bare_label(name: str) -> str:
    """Return a label without a tag's prefix: ``B-``, ``I-``, ``E-``, ``S-``, ``L-``, ``U-``."""
    return name[2:] if name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") else name


# What the parts of the scan call themselves.
SOURCES = ("annotation", "term", "ner", "pattern", "structure", "propagation", "k-anonymity")


def scan_labels() -> tuple[str, ...]:
    """Return every label of the scan, in the order of the table."""
    return tuple(_table()["labels"])


def is_public_name(name: str) -> bool:
    """Return whether a label or a source is one that the scan knows without any corpus.

    A detector may take the heading ``MRN`` for a name; as a label it tells nothing even so.
    """
    return name.upper() in _synonyms() or name in SOURCES


def kind_by_value(label: str, value: str) -> Kind | None:
    """Return the kind of a value whose label alone does not decide it: a date, or an age.

    A date that names a day of a month is direct, and so is an age above 89; any other date or age
    is indirect. This is the one place of that rule, whoever marked the value.

    Args:
        label: In the words of any corpus or tool that ``labels.yaml`` knows.
        value: What it marks.

    Returns:
        The kind; None for every other label.
    """
    condition = direct_if(scan_label(label))
    if condition is None:
        return None
    return "direct" if _CONDITIONS[condition](value) else "indirect"


def kind_of(label: str, value: str) -> Kind:
    """Return the kind of a value under a label of the scan; an unknown label is direct."""
    return kind_by_value(label, value) or kind_of_label(label)


def kind_of_label(label: str) -> Kind:
    """Return the kind of a label of the scan, of most values where `direct_if` names others."""
    row = _table()["labels"].get(label)
    return cast(Kind, row["kind"]) if row else "direct"


def direct_if(label: str) -> str | None:
    """Return which values of an indirect label of the scan are direct: ``a_day``, ``over_89``."""
    row = _table()["labels"].get(label, {})
    return cast(str | None, row.get("direct_if"))


_CONDITIONS: dict[str, Callable[[str], bool]] = {"a_day": names_a_day, "over_89": is_over_89}


def hipaa_categories() -> tuple[HipaaCategory, ...]:
    """Return the 18 categories of Safe Harbor, each with its labels or why it is not covered."""
    return tuple(
        HipaaCategory(
            letter=letter,
            name=row["name"],
            labels=tuple(row.get("labels", ())),
            needs_ner=row.get("ner", False),
            not_covered=row.get("not_covered", ""),
        )
        for letter, row in _table()["hipaa"].items()
    )


@cache
def read_data(name: str) -> Any:
    """Read a YAML file that stands beside this module."""
    return yaml.safe_load(files("sani.scanning").joinpath(name).read_text(encoding="utf-8"))


@cache
def _table() -> dict[str, Any]:
    return cast(dict[str, Any], read_data("labels.yaml"))


@cache
def _synonyms() -> dict[str, str]:
    """Return every name of every label, its own included."""
    rows = _table()["labels"].items()
    return {name: label for label, row in rows for name in (label, *row["also"])}
