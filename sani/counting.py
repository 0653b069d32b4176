"""Counts in words: a number with its noun, and the verb that goes with it."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: "1 value", "2 values".

    Args:
        number: How many there are.
        noun: The noun for one of them.
        plural: The noun for all other numbers; with an s behind the noun if empty.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def verb(number: int, singular: str, plural: str) -> str:
    """Return the form of a verb for so many things: "is" for one, "are" for all other numbers."""
    return singular if number == 1 else plural
