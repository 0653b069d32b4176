"""Types of the functions that long work calls to say how far it is."""

from collections.abc import Callable

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

OnNamedStep = Callable[[str, int, int], None]
"""Called with (name of the work, steps done, steps in all)."""
