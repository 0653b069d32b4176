"""One reading of a corpus: its limits, the names of its columns, and notes on what was not read.

Rule: every record of the input is read, or named in an error, or counted in a note. A note is a
sentence for the user. It holds counts and names of fields, and never a value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_NUM_FIELDS_SHOWN = 12
FIELD_NAMES = ", with the number of records: "  # stands before the names in a note
_FIELD_TO_SHOW = re.compile(r"(?!.*\d{4})[A-Za-z_][A-Za-z0-9_.-]{0,31}")


@dataclass(frozen=True)
class SizeLimits:
    """Sizes beyond which a file is refused: a small compressed file may hold a huge one.

    Attributes:
        line: Longest line, or cell over several lines, in MiB.
        decompressed: Largest content of a file that is compressed, in MiB.
    """

    line: int = 64
    decompressed: int = 4096


DEFAULT_LIMITS = SizeLimits()
MIB = 2**20


class Notes:
    """Notes on what was not read, or was read in another way than its name or header says."""

    def __init__(self) -> None:
        self._facts: dict[str, None] = {}
        self._counts: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()

    def say(self, fact: str) -> None:
        """Note a fact about the whole file, once."""
        self._facts[fact] = None

    def count(self, what: str, number: int = 1) -> None:
        """Count more of what a note says."""
        if number:
            self._counts[what] += number

    def leave_out(self, name: str, number: int = 1) -> None:
        """Count records with a field that is not read."""
        self._fields[name if _FIELD_TO_SHOW.fullmatch(name) else ""] += number

    @property
    def has_fields(self) -> bool:
        """True if a record has a field that is not read."""
        return bool(self._fields)

    def lines(self) -> tuple[str, ...]:
        """Return all notes; a field whose name may be a value is counted and not named."""
        lines = [*self._facts, *(f"{what}: {number}" for what, number in self._counts.items())]
        named = [(name, number) for name, number in sorted(self._fields.items()) if name]
        shown = [f"{name} ({number})" for name, number in named[:_NUM_FIELDS_SHOWN]]
        if len(named) > len(shown):
            shown.append(f"and {len(named) - len(shown)} more")
        if self._fields[""]:
            shown.append(f"with another name ({self._fields['']})")
        if shown:
            lines.append(f"fields that are not read{FIELD_NAMES}{', '.join(shown)}")
        return tuple(lines)


@dataclass(frozen=True)
class Reading:
    """One reading of a file or a folder.

    Attributes:
        limits: Sizes beyond which a file is refused.
        columns: Name of a field of sani -> its name in the corpus, where that is another one.
        notes: Where the readers note what they did not read.
    """

    limits: SizeLimits = DEFAULT_LIMITS
    columns: Mapping[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
