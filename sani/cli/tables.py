"""The widths of lines and of a table's columns: no word is broken at any width of the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Column, Table

FRAME = 3  # columns of the terminal for a column's blanks and its line; one line more at the end
_COMMAND = "Next: sani "  # a line break in a command would run its first half


def fitted(text: str, width: int) -> str:
    """Return a text whose lines are broken between words; a terminal would break the words.

    A long word, such as a path, stays whole. So does a command to copy.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        parts = [] if line.startswith(_COMMAND) else textwrap.wrap(
            line, width, subsequent_indent=indent, expand_tabs=False, replace_whitespace=False,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        lines += parts or [line]
    return "\n".join(lines)


def table_of(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Table | str:
    """Return a table for a terminal of so many columns; lines where no table fits."""
    widths = column_widths(head, rows, width)
    if widths is None:
        return f"{title}\n{as_records(head, rows)}"
    columns = (Column(name, width=size) for name, size in zip(head, widths, strict=True))
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def column_widths(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[int] | None:
    """Return the width of each column, at least that of its longest word.

    The widest column gives way first.

    Args:
        head: Names of the columns.
        rows: Their cells.
        width: Columns of the terminal.

    Returns:
        Widths in columns of the terminal; None where even the longest words do not fit.
    """
    cells = list(zip(head, *rows, strict=True))
    widths = [max(_longest(cell.splitlines()) for cell in column) for column in cells]
    least = [max(_longest(cell.split()) for cell in column) for column in cells]
    available = width - FRAME * len(widths) - 1
    if sum(least) > available:
        return None
    while sum(widths) > available:
        loose = [at for at, size in enumerate(widths) if size > least[at]]
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def as_records(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, a line a cell and a blank line between rows, for narrow terminals."""
    return "\n\n".join(
        "\n".join(f"{name}: {cell}" for name, cell in zip(head, row, strict=True)) for row in rows
    )


def _longest(parts: Sequence[str]) -> int:
    return max(map(cell_len, parts), default=0)
