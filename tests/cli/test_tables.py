"""Tables of the terminal: no word is broken at any width, and no cell is lost."""

import io
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sani.cli.tables import FRAME, as_records, column_widths, table_of

HEAD = ["identifiers", "checkpoint", "greedy", "(1000, 0.5)", "AUC", "first of its decoys"]
ROW = ["direct, uncued", "base (control)", "57.1% (36/63; 44.9 to 68.6%)", "0.0%", "1.000", "0.04"]

words = st.lists(st.text("abc", min_size=1, max_size=9), max_size=5).map(" ".join)


@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.tuples(*[words] * n), min_size=1)),
    st.integers(5, 90),
)
def test_columns_hold_their_longest_word_and_fit(table: Any, width: int) -> None:
    head, *rows = table
    widths = column_widths(head, rows, width)
    least = [
        max((len(w) for cell in column for w in cell.split()), default=0)
        for column in zip(*table, strict=True)
    ]
    if widths is None:
        assert sum(least) + FRAME * len(head) + 1 > width
    else:
        assert all(size >= small for size, small in zip(widths, least, strict=True))
        assert sum(widths) + FRAME * len(head) + 1 <= width


def test_at_80_columns_every_word_stands_whole() -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=80, markup=False, highlight=False)
    console.print(table_of("A table", HEAD, [ROW, ROW], console.width))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) == 80
    for text in (*HEAD, *ROW):
        for word in text.split():
            assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", printed.getvalue()), word


def test_a_table_that_fits_nowhere_is_printed_as_lines() -> None:
    assert column_widths(HEAD, [ROW], 30) is None
    text = as_records(HEAD, [ROW, ROW])
    assert text.splitlines()[0] == "identifiers: direct, uncued"
    assert text.count("\n\n") == 1
    assert table_of("A table", HEAD, [ROW, ROW], 30) == f"A table\n{text}"
