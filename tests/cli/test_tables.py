"""Tables of the terminal: no word is broken at any width, and no cell is lost."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sani.cli.tables import FRAME, as_records, column_widths, fitted, table_of

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


@given(st.lists(words), st.integers(2, 40), st.sampled_from(["", "- ", "  "]))
def test_lines_end_between_words_and_no_word_is_lost(
    lines: list[str], width: int, indent: str
) -> None:
    text = "\n".join(indent + line for line in lines)
    printed = fitted(text, width)
    assert printed.split() == text.split()
    for line in printed.split("\n"):
        assert len(line) <= width or len(line.split()) <= 1 + bool(indent.strip())


def test_a_line_that_is_too_long_is_broken_and_a_command_is_not() -> None:
    sentence = "The scan missed five of sixteen addresses."
    assert fitted(sentence, 21) == "The scan missed five\nof sixteen addresses."
    assert fitted(f"  {sentence}", 23) == "  The scan missed five\n  of sixteen addresses."
    command = "Next: sani run recipe.yaml --check"
    assert fitted(command, 20) == command
    assert fitted("one  two\n\nthree", 80) == "one  two\n\nthree"


def test_a_terminal_gets_whole_words_and_a_pipe_whole_lines() -> None:
    """Run `sani` in a pseudo-terminal of 40 columns, and in a pipe."""
    code = (
        "from sani.cli import console; console.show('abcdefg ' * 9); console.show_json(['a ' * 60])"
    )
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-c", code]
    subprocess.run(words, stdout=child, env=environment, check=True)
    os.close(child)
    lines = os.read(parent, 10_000).decode().replace("\r\n", "\n").split("\n")
    os.close(parent)
    assert [line.strip() for line in lines[:2]] == [
        "abcdefg " * 4 + "abcdefg",
        "abcdefg " * 3 + "abcdefg",
    ]
    assert json.loads("\n".join(lines[2:])) == ["a " * 60]
    piped = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert piped.split("\n")[0] == "abcdefg " * 9
