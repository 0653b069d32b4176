"""Counts in words: one thing has its noun and verb in the singular."""

import pytest

from sani.counting import counted, verb


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 values are"), (1, "1 value is"), (2, "2 values are")]
)
def test_one_thing_has_the_singular(number: int, words: str) -> None:
    assert f"{counted(number, 'value')} {verb(number, 'is', 'are')}" == words


def test_a_plural_may_be_given() -> None:
    assert [counted(number, "entry", "entries") for number in (1, 3)] == ["1 entry", "3 entries"]
