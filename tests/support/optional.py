"""Values that may be None by their type, and must not be in a test."""

from typing import TypeVar

Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    """Return the value; fail the test if it is None."""
    assert value is not None
    return value
