"""Documents as training batches: which tokens carry ordinary loss and which stand in identifiers.

The rule is the audit's: a token that overlaps a span by one character or more is an identifier's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sani.encoding import Encoded, Framing, windows
from sani.runtime import token_batches


@dataclass(frozen=True)
class Batch:
    """One step's documents, padded to the longest.

    Attributes:
        ids: Token ids, [batch, seq].
        targets: The token that follows each position, [batch, seq].
        ordinary: Positions whose target is ordinary text, [batch, seq], bool.
        identifier: Positions whose target stands in an identifier, [batch, seq], bool.
    """

    ids: Tensor
    targets: Tensor
    ordinary: Tensor
    identifier: Tensor


def make_batches(
    encoded: Sequence[Encoded], framing: Framing, *, context_tokens: int, batch_tokens: int
) -> list[Batch]:
    """Batches of documents of similar length; every token is the target of one position.

    Args:
        encoded: Documents; those longer than the context are cut into overlapping windows, whose
            overlap is context only.
        framing: What stands before every document.
        context_tokens: The model's longest input.
        batch_tokens: Most tokens of a batch, padding included.
    """
    rows: list[tuple[list[int], list[bool], list[bool]]] = []
    lead = len(framing.prefix)
    for item in encoded:
        touched = item.in_span()
        for window in windows(len(item.ids), item=item.document, capacity=context_tokens - lead):
            ids = [*framing.prefix, *item.ids[window.start : window.end]]
            new = [False] * lead + [t >= window.new for t in range(window.start, window.end)]
            inside = [False] * lead + touched[window.start : window.end]
            if len(ids) > 1:
                rows.append((ids, new, inside))
    batches = token_batches([len(ids) for ids, _, _ in rows], budget=batch_tokens)
    return [_pad([rows[index] for index in batch]) for batch in batches]


def _pad(rows: Sequence[tuple[list[int], list[bool], list[bool]]]) -> Batch:
    longest = max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    new = torch.zeros(len(rows), longest, dtype=torch.bool)
    inside = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (tokens, row_new, row_inside) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        new[number, : len(tokens)] = torch.tensor(row_new)
        inside[number, : len(tokens)] = torch.tensor(row_inside)
    # Position t predicts token t + 1; the last position predicts nothing.
    new, inside = new.roll(-1, dims=1), inside.roll(-1, dims=1)
    new[:, -1] = False
    return Batch(ids, ids.roll(-1, dims=1), new & ~inside, new & inside)
