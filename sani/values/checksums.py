"""Check characters: which checksum a number has, and numbers with the right one.

Source: the published rule of each number, by python-stdnum.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module

# python-stdnum's modules, and the first and last of the check characters; the strictest first.
CHECKSUMS: tuple[tuple[str, int, int], ...] = (
    ("iban", 2, 4),
    ("fr.nir", -2, 0),
    ("be.nn", -2, 0),
    ("br.cpf", -2, 0),
    ("no.fodselsnummer", -2, 0),
    ("tr.tckimlik", -2, 0),
    ("in_.aadhaar", -1, 0),
    ("it.codicefiscale", -1, 0),
    ("fi.hetu", -1, 0),
    ("es.nif", -1, 0),
    ("mx.curp", -1, 0),
    ("ch.ssn", -1, 0),
    ("ro.cnp", -1, 0),
    ("pl.pesel", -1, 0),
    ("se.personnummer", -1, 0),
    ("ee.ik", -1, 0),
    ("hr.oib", -1, 0),
    ("de.idnr", -1, 0),
    ("cl.rut", -1, 0),
    ("gb.nhs", -1, 0),
    ("nl.bsn", -1, 0),
    ("pt.nif", -1, 0),
    ("luhn", -1, 0),
)


class Checksum:
    """One checksum of python-stdnum."""

    def __init__(self, module: str, first: int, last: int) -> None:
        """Take the module's name, and where the check characters stand among the characters."""
        self._module = module
        self._place = slice(first, last or None)

    def holds(self, value: str) -> bool:
        """Return whether the value, with or without its separators, is a valid number."""
        valid = self._valid
        bare = "".join(filter(str.isalnum, value))
        return bool(valid(value) or (bare != value and valid(bare)))

    def complete(self, value: str | None) -> str | None:
        """Return the value with the right check characters; None if there are none for it."""
        if value is None:
            return None
        characters = list(value)
        alphanumeric = [place for place, one in enumerate(value) if one.isalnum()]
        places = alphanumeric[self._place]
        for check in itertools.product(
            *(string.digits if value[at].isdigit() else string.ascii_uppercase for at in places)
        ):
            for place, one in zip(places, check, strict=True):
                characters[place] = one.lower() if value[place].islower() else one
            if self.holds(completed := "".join(characters)):
                return completed
        return None

    @cached_property
    def _valid(self) -> Callable[[str], bool]:
        valid: Callable[[str], bool] = import_module(f"stdnum.{self._module}").is_valid
        return valid


def common_checksums(values: Sequence[str]) -> list[Checksum]:
    """Return the checksums that two values or more, and most of them, have; the strictest first.

    Args:
        values: Of one shape; of many, about a hundred are looked at.
    """
    sample = values[:: max(1, len(values) // 100)]
    return [
        checksum
        for checksum in _CHECKSUMS
        if sum(map(checksum.holds, sample)) > max(1, len(sample) / 2)
    ]


_CHECKSUMS = tuple(Checksum(*entry) for entry in CHECKSUMS)
