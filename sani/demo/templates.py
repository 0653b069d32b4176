"""The texts of the invented clinic, from ``clinic.yaml`` beside this file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

import yaml

Choices = dict[str, tuple[str, ...]]


class Problem(NamedTuple):
    """A reason to see a doctor, in noun phrases that fit the sentences.

    Attributes:
        diagnosis: Its name.
        site: The part of the body.
        test: What is done to confirm it.
        symptoms: Choices, as are the following.
        findings: Of the examination.
        results: Of the test.
        regimens: Each a drug and its dose.
    """

    diagnosis: str
    site: str
    test: str
    symptoms: tuple[str, ...]
    findings: tuple[str, ...]
    results: tuple[str, ...]
    regimens: tuple[tuple[str, str], ...]


def _choices(lists: dict[str, list[str]]) -> Choices:
    return {name: tuple(choices) for name, choices in lists.items()}


def _problem(fields: dict[str, Any]) -> Problem:
    return Problem(
        diagnosis=fields["diagnosis"],
        site=fields["site"],
        test=fields["test"],
        symptoms=tuple(fields["symptoms"]),
        findings=tuple(fields["findings"]),
        results=tuple(fields["results"]),
        regimens=tuple((regimen["drug"], regimen["dose"]) for regimen in fields["regimens"]),
    )


_TEXTS = yaml.safe_load(files("sani.demo").joinpath("clinic.yaml").read_text(encoding="utf-8"))

SENTENCES = _choices(_TEXTS["sentences"])
LAYOUTS = tuple(_TEXTS["layouts"])
PROBLEMS = tuple(_problem(fields) for fields in _TEXTS["problems"])
PROSE_SLOTS = _choices(_TEXTS["prose"])
NUMBER_SLOTS = {slot: (low, high) for slot, (low, high) in _TEXTS["numbers"].items()}
PRONOUN_SLOTS: dict[str, dict[str, str]] = _TEXTS["pronouns"]
# All of it as one text: no surname may be part of it, or it would stand in notes outside any span.
PROSE = repr((SENTENCES, LAYOUTS, PROBLEMS, PROSE_SLOTS, PRONOUN_SLOTS)).lower()
