"""Log-probabilities of chosen tokens in as few forward passes as there are documents.

A *row* is one input: a framed window of a document, and behind it the tokens of decoys as a tree.
Each decoy token attends to the text before its identifier and to the decoy tokens above it, never
to the text behind or to another decoy, so decoys share their prefix's computation and one pass
answers for the document and for all its decoys. The vocabulary projection runs only at the
positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sani import families
from sani.errors import AuditError
from sani.recipe import SamplerSettings
from sani.runtime import token_batches

LOGITS_PER_CHUNK = 2**24


@dataclass
class Row:
    """One input of the model, and what is read off it.

    Attributes:
        tokens: Token ids; the text first, then the nodes of decoys.
        parents: Position in the row that each token follows; -1 for the first.
        reads: (position, target, slot): at ``position``, how likely is ``target``? The answer
            goes to ``slot``.
    """

    tokens: list[int]
    parents: list[int]
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    text_length: int = 0
    _nodes: dict[tuple[int, int], int] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_text(cls, tokens: Sequence[int]) -> Row:
        """A row of plain text without decoys."""
        return cls(list(tokens), list(range(-1, len(tokens) - 1)), [], len(tokens))

    def add_branch(self, position: int, tokens: Sequence[int], slots: Sequence[int]) -> None:
        """Read the sequence ``tokens`` as a continuation of the text up to ``position``.

        Tokens that another branch at the same position starts with are shared.
        """
        at = position
        for depth, (token, slot) in enumerate(zip(tokens, slots, strict=True)):
            self.reads.append((at, token, slot))
            if depth + 1 < len(tokens):
                at = self._child(at, token)

    def _child(self, parent: int, token: int) -> int:
        index = self._nodes.setdefault((parent, token), len(self.tokens))
        if index == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return index


@dataclass(frozen=True)
class Scores:
    """What was read, by slot.

    Attributes:
        log_probability: log p(target | what stands before) in nats, [slots].
        sampled: The same under the declared sampler, -inf where it never draws the target; NaN
            for slots it was not asked for, [slots].
        greedy: Whether no token is likelier than the target; a tie counts as reciting, [slots].
    """

    log_probability: NDArray[np.float64]
    sampled: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@torch.no_grad()
def score(
    model: Any,
    rows: Sequence[Row],
    *,
    num_slots: int,
    batch_tokens: int,
    sampler: SamplerSettings | None = None,
    num_sampled: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Scores:
    """Answer every read of every row.

    Args:
        model: A causal language model in evaluation mode.
        rows: Inputs; they are batched by length, and the result does not depend on how.
        num_slots: Size of the result; slots that no row reads stay NaN.
        batch_tokens: Most tokens of a forward pass, padding included.
        sampler: Sampler for the slots below ``num_sampled``.
        num_sampled: How many slots, from 0, are also asked for under the sampler.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If the model gives NaN or infinity.
    """
    result = Scores(
        np.full(num_slots, np.nan), np.full(num_slots, np.nan), np.zeros(num_slots, dtype=np.bool_)
    )
    batches = token_batches([len(row.tokens) for row in rows], budget=batch_tokens)
    for done, batch in enumerate(batches, start=1):
        _score_batch(model, [rows[index] for index in batch], result, sampler, num_sampled)
        if on_step is not None:
            on_step(done, len(batches))
    return result


def _score_batch(
    model: Any,
    rows: Sequence[Row],
    result: Scores,
    sampler: SamplerSettings | None,
    num_sampled: int,
) -> None:
    where = [(number, position) for number, row in enumerate(rows) for position, _, _ in row.reads]
    if not where:
        return
    hidden = families.hidden_states(model, **_inputs(rows, model.device))  # [batch, seq, hidden]
    places = torch.tensor(where, device=hidden.device)
    targets = torch.tensor(
        [target for row in rows for _, target, _ in row.reads], device=hidden.device
    )
    slots = np.array([slot for row in rows for _, _, slot in row.reads])
    chunk = max(1, LOGITS_PER_CHUNK // model.config.vocab_size)
    for first in range(0, len(slots), chunk):
        piece = slice(first, first + chunk)
        logits = families.logits(model, hidden[places[piece, 0], places[piece, 1]]).float()
        true = logits.gather(1, targets[piece, None])  # [n, 1]
        log_probability = (true - logits.logsumexp(dim=1, keepdim=True)).squeeze(1)
        if not torch.isfinite(log_probability).all():
            raise AuditError(
                "the model gives NaN or infinite logits on this corpus; nothing can be said of "
                "what it recites. Check how it was trained and saved"
            )
        at = slots[piece]
        result.log_probability[at] = log_probability.double().cpu().numpy()
        result.greedy[at] = (true.squeeze(1) >= logits.amax(dim=1)).cpu().numpy()
        asked = at < num_sampled
        if sampler is not None and asked.any():
            rows_asked = torch.from_numpy(asked).to(logits.device)
            sampled = sampled_log_probability(
                logits[rows_asked], targets[piece][rows_asked], sampler
            )
            if sampled.isnan().any():
                raise AuditError("the sampler gives NaN; change audit.sampler")
            result.sampled[at[asked]] = sampled.double().cpu().numpy()


def sampled_log_probability(logits: Tensor, targets: Tensor, sampler: SamplerSettings) -> Tensor:
    """Log-probability under temperature, then top-k, then top-p, in nats; -inf if cut off.

    The order is that of ``transformers`` generation. Ties at the k-th place are all kept, which
    can only overstate extraction.

    Args:
        logits: [n, vocab].
        targets: [n].
        sampler: Temperature, top-k and top-p.

    Returns:
        [n].
    """
    logits = logits / sampler.temperature
    if 0 < sampler.top_k < logits.shape[1]:
        floor = logits.topk(sampler.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if sampler.top_p < 1.0:
        ordered, order = logits.sort(dim=1, descending=True)
        probability = ordered.softmax(dim=1)
        before = probability.cumsum(dim=1) - probability
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampler.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    true = logits.gather(1, targets[:, None])
    return (true - logits.logsumexp(dim=1, keepdim=True)).squeeze(1)


def _inputs(rows: Sequence[Row], device: torch.device) -> dict[str, Tensor | None]:
    """Padded inputs; without decoys the plain causal mask serves, since padding stands behind."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
    if all(row.text_length == len(row.tokens) for row in rows):
        return {"input_ids": ids.to(device), "attention_mask": None}
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)  # [batch, seq, seq]
    for number, row in enumerate(rows):
        text = row.text_length
        positions[number, :text] = torch.arange(text)
        sees[number, :text, :text] = torch.ones(text, text, dtype=torch.bool).tril()
        for index in range(text, len(row.tokens)):
            parent = row.parents[index]
            positions[number, index] = positions[number, parent] + 1
            sees[number, index] |= sees[number, parent]
    return {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        # Added to the scores: a mask of booleans would be added as 0 and 1 by eager attention.
        "attention_mask": torch.where(sees, 0.0, torch.finfo(torch.float32).min)[:, None].to(
            device
        ),
    }
