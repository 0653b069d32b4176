"""Documents as training batches: which tokens carry ordinary loss and which stand in identifiers.

The rule is the audit's: a token that overlaps a span by one character or more is an identifier's.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sani.text.framing import Framing
from sani.text.tokens import Encoded, windows


@dataclass(frozen=True)
class Batch:
    """One step's documents, padded to the longest row.

    Attributes:
        ids: Token ids, [batch, seq].
        targets: The token that each position predicts, [batch, seq]: the one that follows, or the
            one that is masked there.
        ordinary: Positions whose target is ordinary text, [batch, seq], bool.
        identifier: Positions whose target stands in an identifier, [batch, seq], bool.
        occurrences: For each identifier position, in reading order, [n, 4]: window, document,
            span and token of its target. Where spans overlap, the first.
        positions: Place of each token in its window, [batch, seq], where a row holds several;
            None where each holds one. Attention does not cross where it starts again.
        seen: Positions that are no padding, [batch, seq], bool; None where a model sees only what
            stands before, which padding never does.
        source, source_seen: What an encoder reads, [batch, source], and which of it is no padding;
            None where there is no encoder.
    """

    ids: Tensor
    targets: Tensor
    ordinary: Tensor
    identifier: Tensor
    occurrences: Tensor
    positions: Tensor | None = None
    seen: Tensor | None = None
    source: Tensor | None = None
    source_seen: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        parts: dict[str, Any] = {
            name: None if part is None else part.to(device) for name, part in vars(self).items()
        }
        return Batch(**parts)

    def rows(self, chosen: slice) -> Batch:
        """Return the batch of some of the rows."""
        parts: dict[str, Any] = {
            name: None if part is None else part[chosen]
            for name, part in vars(self).items()
            if name != "occurrences"
        }
        before = int(self.identifier[: chosen.start].sum())
        within = int(parts["identifier"].sum())
        return Batch(**parts, occurrences=self.occurrences[before : before + within])


@dataclass(frozen=True)
class Row:
    """One window of a document: its tokens, and what each position predicts, if anything."""

    ids: list[int]
    targets: list[int]
    ordinary: list[bool]
    identifier: list[tuple[int, int, int, int] | None]
    source: Sequence[int] = ()


def make_batches(
    encoded: Sequence[Encoded],
    framing: Framing,
    *,
    context_tokens: int,
    batch_tokens: int,
    pack: bool = False,
) -> list[Batch]:
    """Put documents of similar length into batches; every token is the target of one position.

    Args:
        encoded: Documents; those longer than the context are cut into overlapping windows, whose
            overlap is context only.
        framing: What stands before every document.
        context_tokens: The model's longest input.
        batch_tokens: Most tokens of a batch, padding included.
        pack: Put short documents into one row, as far as the longest is long.
    """
    rows = _rows(encoded, framing, context_tokens)
    lengths = [len(row.ids) for row in rows]
    groups = _packed(lengths) if pack else [[number] for number in range(len(rows))]
    sizes = [sum(lengths[number] for number in group) for group in groups]
    batches = token_batches(sizes, budget=batch_tokens)
    return [
        padded([[rows[number] for number in groups[index]] for index in batch]) for batch in batches
    ]


def _rows(encoded: Sequence[Encoded], framing: Framing, context_tokens: int) -> list[Row]:
    rows: list[Row] = []
    lead, capacity = len(framing.prefix), framing.capacity(context_tokens)
    for item in encoded:
        owner = item.owners()
        for window in windows(len(item.ids), item=item.document, capacity=capacity):
            ids = [*framing.prefix, *item.ids[window.start : window.end]]
            # Position t predicts token t + 1; the last position predicts nothing.
            targets = range(window.start - lead + 1, window.end + 1)
            scored = [window.new <= token < window.end and token >= 0 for token in targets]
            if len(ids) > 1:
                identifier = [
                    (len(rows), item.document, owner[token], token)
                    if new and owner[token] >= 0
                    else None
                    for token, new in zip(targets, scored, strict=True)
                ]
                ordinary = [
                    new and place is None for new, place in zip(scored, identifier, strict=True)
                ]
                source = item.source_within(context_tokens)
                rows.append(Row(ids, [*ids[1:], 0], ordinary, identifier, source))
    return rows


def token_batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Group items into batches of at most ``budget`` tokens, padding included.

    Items are sorted by length, longest first, so that little is padding and the largest batch
    comes first: memory that suffices for it suffices for all. An item longer than the budget is
    a batch of its own.

    Args:
        lengths: Tokens of each item.
        budget: Most tokens of a batch, counted as items times the longest item.

    Returns:
        Indices into ``lengths``, each exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        current = batches[-1] if batches else None
        if current is None or lengths[current[0]] * (len(current) + 1) > budget:
            batches.append([index])
        else:
            current.append(index)
    return batches


def _packed(lengths: Sequence[int]) -> list[list[int]]:
    """Group the lengths into sums of at most the greatest one: best fit, longest first."""
    capacity = max(lengths, default=0)
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, group), least first
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(room, (lengths[index], -1))
        if place < len(room):
            left, group = room.pop(place)
            groups[group].append(index)
        else:
            left, group = capacity, len(groups)
            groups.append([index])
        insort(room, (left - lengths[index], group))
    return groups


def padded(groups: Sequence[Sequence[Row]], *, both_sides: bool = False) -> Batch:
    """Pad rows, each a group of windows, to one batch.

    Args:
        groups: The windows of each row; each group is put side by side.
        both_sides: The model also sees what stands behind, so it is told what is padding.
    """
    shape = (len(groups), max(sum(len(row.ids) for row in group) for group in groups))
    ids, targets = torch.zeros(2, *shape, dtype=torch.long)
    ordinary, identifier = torch.zeros(2, *shape, dtype=torch.bool)
    seen = torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros(shape, dtype=torch.long)
    occurrences = []
    for number, group in enumerate(groups):
        end = 0
        for row in group:
            place = (number, slice(end, end := end + len(row.ids)))
            ids[place] = torch.tensor(row.ids)
            targets[place] = torch.tensor(row.targets)
            ordinary[place] = torch.tensor(row.ordinary)
            identifier[place] = torch.tensor(
                [occurrence is not None for occurrence in row.identifier]
            )
            positions[place] = torch.arange(len(row.ids))
            seen[place] = True
            occurrences += [occurrence for occurrence in row.identifier if occurrence is not None]
    return Batch(
        ids,
        targets,
        ordinary,
        identifier,
        torch.tensor(occurrences, dtype=torch.long).reshape(-1, 4),
        positions if any(len(group) > 1 for group in groups) else None,
        seen if both_sides else None,
        *padded_sources([row.source for (row, *_) in groups]),
    )


def padded_sources(sources: Sequence[Sequence[int]]) -> tuple[Tensor | None, Tensor | None]:
    """Pad what an encoder reads, [batch, source], with its mask; None if all is empty."""
    if not any(sources):
        return None, None
    ids = torch.zeros(len(sources), max(map(len, sources)), dtype=torch.long)
    seen = torch.zeros(ids.shape, dtype=torch.bool)
    for number, source in enumerate(sources):
        ids[number, : len(source)] = torch.tensor(source)
        seen[number, : len(source)] = True
    return ids, seen
