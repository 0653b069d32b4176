"""Text tables with a header: values separated by commas, semicolons, tabs or vertical bars.

They are read with the standard library, since a shape that is slightly off must be an error that
names its line: the CSV reader of the ``datasets`` library turns a short row into one without spans,
a long row into one shifted by a column, and the id 007 into 7. The separator is settled by the
header: it is the one that yields the most names of columns that sani reads. ``csv.Sniffer`` counts
characters instead, and free text holds any of them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sani.corpus.columns import check_header, names_to_read, parsed_cells
from sani.corpus.lines import read_lines
from sani.corpus.reading import MIB, Reading
from sani.corpus.records import RecordError, Rows

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_EXCEL_SEPARATOR = re.compile(r'"?sep=(?P<separator>[,;\t|])"?\s*')  # a line that Excel reads
_JOINED = (
    "cells in quotes that hold a line break and a tab; if this file does not quote its cells, "
    "records became one there"
)
_LONGEST_FIELD = 2**31 - 1


def read_csv(path: Path, reading: Reading) -> Rows:
    """Read separated values with a header; ``spans`` is a JSON list in a cell.

    A cell may hold line breaks within quotes; a record is named by the line it starts on.
    """
    # The limit is one for the whole process; the standard 128 KiB is too short for a long note.
    before = csv.field_size_limit(min(reading.limits.line * MIB, _LONGEST_FIELD))
    reader, skipped = None, 0
    try:
        lines = read_lines(path, reading)
        first = next(lines, "")
        excel = _EXCEL_SEPARATOR.fullmatch(first)
        if excel is not None:
            first, skipped = next(lines, ""), 1
        separator = excel["separator"] if excel is not None else _separator(first, reading)
        name = _SEPARATORS[separator]
        if separator != ("\t" if ".tsv" in (s.lower() for s in path.suffixes) else ","):
            reading.notes.say(f"its cells are separated by the {name}, as its header shows")
        reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)
        yield from _rows(reader, name, reading, skipped=skipped)
    except csv.Error as error:
        where = f"line {reader.line_num + skipped}" if reader else ""
        message = "the quoting is broken; double a quote within quotes and close every quote"
        if "field limit" in str(error):
            message = (
                f"a cell is longer than {reading.limits.line} MiB; is a quote never closed? "
                "corpus.max_line_mib in the recipe raises the limit"
            )
        yield where, RecordError(message)
    except RecordError as problem:
        yield f"line {reader.line_num + skipped + 1 if reader else 1}", problem
    finally:
        csv.field_size_limit(before)


def _separator(line: str, reading: Reading) -> str:
    """Return the separator of a header: the one that yields most names of columns that are read."""
    wanted = {name.strip().casefold() for name in names_to_read(reading.columns)}

    def merit(separator: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([line], delimiter=separator), [])
        except csv.Error:
            return -1, 0
        return sum(name.strip().casefold() in wanted for name in names), len(names)

    return max(_SEPARATORS, key=merit)  # the first of equals is the comma


def _rows(reader: Any, separator: str, reading: Reading, *, skipped: int) -> Rows:
    """Yield records below the header, each with as many cells as the header has."""
    header: list[str] = next(reader, [])
    try:
        is_usual = separator == _SEPARATORS[","]
        what = "the header" if is_usual else f"the header, whose separator is the {separator},"
        check_header(header, what, reading)
    except RecordError as problem:
        yield f"line {1 + skipped}", problem
        return
    for where, cells in _numbered(reader, skipped):
        if len(cells) != len(header):
            message = (
                f"it has {len(cells)} cells and the header {len(header)}; "
                f"put quotes around a cell that holds a {separator} or a line break"
            )
            yield where, RecordError(message)
        else:
            if separator == _SEPARATORS["\t"]:
                joined = sum("\n" in cell and "\t" in cell for cell in cells)
                reading.notes.count(_JOINED, joined)
            yield where, parsed_cells(dict(zip(header, cells, strict=True)), reading.columns)


def _numbered(reader: Any, skipped: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the line on which each record starts, and its cells; blank lines are skipped."""
    start = reader.line_num + 1
    for cells in reader:
        where, start = f"line {start + skipped}", reader.line_num + 1
        if cells:
            yield where, cells
