"""Documents as they stand in the model's input: alone, or packed behind one another into blocks.

Most training scripts join all documents and cut the result into blocks of one length. Then a
document begins anywhere in a block, behind the end of another one, and is cut where a block ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from sani.text.framing import Framing
from sani.text.tokens import Encoded, Window, windows


@dataclass(frozen=True)
class FramedWindow:
    """A window of a document with the tokens around it.

    Attributes:
        window: The tokens of the document.
        before: Token ids before them.
        behind: Token ids behind them.
        preceding: Documents of which a part stands in ``before``, each with the first token of
            that part, in the order of the corpus.
    """

    window: Window
    before: tuple[int, ...]
    behind: tuple[int, ...] = ()
    preceding: tuple[tuple[Encoded, int], ...] = ()

    def tokens(self, item: Encoded) -> list[int]:
        """Return the input of the model."""
        return [*self.before, *item.ids[self.window.start : self.window.end], *self.behind]


def framed_windows(item: Encoded, framing: Framing, *, context_tokens: int) -> list[FramedWindow]:
    """Return the windows of a document that, framed, fit the model; none if it has no token."""
    if not item.ids:
        return []
    if framing.block:
        return _packed_windows(item, framing)
    capacity = framing.capacity(context_tokens)
    return [
        FramedWindow(window, framing.prefix, framing.suffix)
        for window in windows(len(item.ids), item=item.document, capacity=capacity)
    ]


def _packed_windows(item: Encoded, framing: Framing) -> list[FramedWindow]:
    """Cut a document where the blocks of the packed corpus end.

    The corpus is its documents in their order, with the framing's prefix between two of them.
    """
    begin = item.tokens_before + item.document * len(framing.prefix)
    if item.document and item.previous is None:  # cut out of its document, it begins a block
        begin = framing.offset
    cut = []
    start = 0
    while start < len(item.ids):
        into_block = (begin + start - framing.offset) % framing.block
        end = min(len(item.ids), start + framing.block - into_block)
        window = Window(item.document, start, end, start)
        before, preceding = _before(item, framing, into_block) if start == 0 else ((), ())
        cut.append(FramedWindow(window, before, preceding=preceding))
        start = end
    return cut


def _before(
    item: Encoded, framing: Framing, length: int
) -> tuple[tuple[int, ...], tuple[tuple[Encoded, int], ...]]:
    """Return up to ``length`` tokens before a document, and the documents they are of."""
    tokens: list[int] = []
    preceding: list[tuple[Encoded, int]] = []
    previous = item.previous
    while previous is not None and len(tokens) < length:
        tokens = [*framing.prefix, *tokens]
        first = max(0, len(previous.ids) - (length - len(tokens)))
        if first < len(previous.ids):
            preceding.append((previous, first))
            tokens = [*previous.ids[first:], *tokens]
        previous = previous.previous
    return tuple(tokens[max(0, len(tokens) - length) :]), tuple(reversed(preceding))
