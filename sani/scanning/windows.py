"""Windows: a long text is looked at in pieces that overlap, so that cost grows with its length.

Each window has a core, and the cores tile the text. A finding belongs to the window in whose core
it starts; the margin around the core lets it end beyond, and shows what stands before it. One that
is longer than the margin is cut there, and the next window has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sani.corpus.documents import Span

WINDOW = 5_000
MARGIN = 400


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a text.

    Attributes:
        text: The stretch, margins included.
        offset: Where it starts in the whole text.
        core: Start and end of its core, counted in the stretch.
    """

    text: str
    offset: int
    core: tuple[int, int]

    def owns(self, start: int) -> bool:
        """Return whether a finding that starts here in the stretch belongs to this window."""
        return self.core[0] <= start < self.core[1]

    def share(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the part of a finding in the stretch that is this window's; None if none is.

        All of it if it starts in the core. Of one that starts before, what reaches into the core:
        the window before may have seen only the beginning of it.
        """
        if start >= self.core[1] or end <= self.core[0]:
            return None
        return max(start, self.core[0]), end


def windows(text: str, *, size: int = WINDOW, margin: int = MARGIN) -> Iterator[Window]:
    """Cut a text into windows, one if it is short; cores end at a blank where there is one.

    Args:
        text: Any text; an empty one has no window.
        size: Most characters of a core.
        margin: Most characters on either side of it.
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            blank = max(text.rfind(mark, start + size // 2, end) for mark in "\n ")
            end = blank + 1 if blank > 0 else end
        first, last = max(0, start - margin), min(len(text), end + margin)
        yield Window(text[first:last], first, (start - first, end - first))
        start = end


def moved(span: Span, by: int) -> Span:
    """Return a span of a stretch, counted in the whole text."""
    return replace(span, start=span.start + by, end=span.end + by) if by else span
