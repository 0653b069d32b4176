"""What models that are not trained say at identifier positions: the anchor's hidden states.

Hidden states and not logits are kept: they are smaller by the ratio of vocabulary to hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sani import families
from sani.batches import Batch
from sani.corpus.documents import Corpus
from sani.encoding import Encoded, Framing, Window, encode, windows
from sani.repairing.frozen import hidden_states
from sani.repairing.surrogates import Surrogates


def states_at(model: Any, batch: Batch, where: Tensor) -> Tensor:
    """The model's last hidden states at chosen positions of a batch, [n, hidden]."""
    with torch.no_grad():
        batch = batch.to(model.device)
        return hidden_states(model, batch)[where.to(model.device)].clone()


def counterfactual_states(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    framing: Framing,
    surrogates: Surrogates,
    *,
    context_tokens: int,
    samples: int,
) -> dict[tuple[int, int], Tensor]:
    """What a model says at each identifier token if every identifier before it is another one.

    The identifier itself begins as in the document: behind its first tokens stands what follows
    them in another person's document. Each window is read once for all identifiers in it: their
    tokens stand behind it, and each sees the text before its identifier and its own beginning.

    Args:
        model: The unsanitized model, in evaluation mode.
        tokenizer: Its tokenizer.
        encoded: The documents, with their identifiers.
        framing: What stands before every document.
        surrogates: Makes the other identifiers.
        context_tokens: The model's longest input.
        samples: Replaced documents for each document.

    Returns:
        For each document and identifier token, [samples, hidden]. Of an identifier longer than
        half the context, the further tokens have the state of the last one that is read.

    Source: ours; a counterfactual teacher, as in Eldan & Russinovich 2023 (2310.02238), who
    replace names by generic ones and train on the prediction.
    """
    found: dict[tuple[int, int], list[Tensor]] = {}
    lead, longest = len(framing.prefix), context_tokens // 2
    for item in encoded:
        values = _values(item)
        room = min(longest, max((len(tokens) for _, tokens in values), default=0))
        for sample in range(samples):
            document, _ = surrogates.document(item.document, round=-1 - sample)
            (other,) = encode(Corpus([document]), tokenizer)
            for window in windows(
                len(other.ids), item=item.document, capacity=max(1, context_tokens - lead - room)
            ):
                row = _Row([*framing.prefix, *other.ids[window.start : window.end]])
                for span, tokens in values:
                    place = _place(other, span, window)
                    if place is not None:
                        row.hang(item, tokens[:longest], behind=lead + place - 1)
                if row.reads:
                    states = row.states(model)
                    for token, position in row.reads:
                        found.setdefault((item.document, token), []).append(states[position])
        for _, tokens in values:
            for token in tokens[longest:]:
                found[item.document, token] = found[item.document, tokens[longest - 1]]
    return {key: torch.stack(states) for key, states in found.items()}


def _values(item: Encoded) -> list[tuple[int, list[int]]]:
    """Each span that is the first to touch a token, with these tokens."""
    values: dict[int, list[int]] = {}
    for token, owner in enumerate(item.owners()):
        if owner >= 0:
            values.setdefault(owner, []).append(token)
    return sorted(values.items())


def _place(other: Encoded, span: int, window: Window) -> int | None:
    """Where in the window the span's surrogate begins, if it is this window's to read."""
    first = other.spans[span][0]
    return first - window.start if window.new <= first < window.end else None


class _Row:
    """A text, and behind it tokens that each see a part of it."""

    def __init__(self, text: list[int]) -> None:
        self._length = len(text)
        self._ids = list(text)
        self._positions = list(range(len(text)))
        self._branches: list[tuple[int, int, int]] = []  # first, one past the last, seen text
        self.reads: list[tuple[int, int]] = []  # (token, position that predicts it)

    def hang(self, item: Encoded, tokens: list[int], *, behind: int) -> None:
        """Hang the tokens of an identifier behind a position of the text; -1 is before it."""
        first = len(self._ids)
        if behind >= 0:
            self.reads.append((tokens[0], behind))
        for depth, (before, token) in enumerate(pairwise(tokens)):
            self._ids.append(item.ids[before])
            self._positions.append(behind + 1 + depth)
            self.reads.append((token, first + depth))
        self._branches.append((first, len(self._ids), behind + 1))

    def states(self, model: Any) -> Tensor:
        """The model's last hidden states, [seq, hidden]."""
        size = len(self._ids)
        sees = torch.ones(size, size, dtype=torch.bool).tril()
        for first, last, seen in self._branches:
            sees[first:last, seen:first] = False
        mask = torch.zeros(size, size).masked_fill(~sees, torch.finfo(model.dtype).min)
        with torch.no_grad():
            hidden = families.hidden_states(
                model,
                input_ids=torch.tensor([self._ids], device=model.device),
                position_ids=torch.tensor([self._positions], device=model.device),
                attention_mask=mask[None, None].to(model.device, model.dtype),
            )
        return hidden[0]
