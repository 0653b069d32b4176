"""Log-probabilities of chosen tokens in as few forward passes as there are documents.

A *row* is one input: a framed window of a document, and the tokens of decoys that branch off it as
trees. The text is read once, with a cache of its keys and values; then the trees, where each decoy
token attends to the text before its identifier and to the decoy tokens above it, never to the text
behind or to another decoy. So decoys share their prefix's computation. The vocabulary projection
runs only at the positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sani.auditing.sampler import Sampler
from sani.errors import AuditError
from sani.machine.device import token_batches
from sani.models import families
from sani.text.batches import padded_sources

LOGITS_PER_CHUNK = 2**24
SMALLEST_TREE = 64


Reads = list[tuple[int, int, int]]


@dataclass
class Tree:
    """Tokens of decoys behind a text, read in one pass.

    Attributes:
        tokens: One a node.
        reads: (node, target, slot): behind ``node``, how likely is ``target``?
        levels: From the text outwards: nodes of one depth, and the position in the text (first
            level) or the node (further ones) that each of them follows.
    """

    tokens: list[int] = field(default_factory=list)
    reads: Reads = field(default_factory=list)
    levels: list[tuple[list[int], list[int]]] = field(default_factory=list)
    _nodes: dict[tuple[int, int, int], int] = field(default_factory=dict, init=False, repr=False)

    def child(self, parent: int, token: int, *, depth: int) -> int:
        """The node for this token below that parent; a new one, or one that is there already."""
        index = self._nodes.setdefault((depth, parent, token), len(self.tokens))
        if index == len(self.tokens):
            self.tokens.append(token)
            if depth == len(self.levels):
                self.levels.append(([], []))
            nodes, parents = self.levels[depth]
            nodes.append(index)
            parents.append(parent)
        return index


@dataclass
class Row:
    """One input of the model, and what is read off it.

    Attributes:
        tokens: Token ids of the text.
        reads: (position, target, slot): at ``position``, how likely is ``target``? The answer
            goes to ``slot``.
        trees: What else could stand behind its positions.
        source: Token ids of what an encoder reads, where there is one.
    """

    tokens: list[int]
    reads: Reads = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    source: Sequence[int] = ()

    def add_branch(self, position: int, tokens: Sequence[int], slots: Sequence[int]) -> None:
        """Read the sequence ``tokens`` as a continuation of the text up to ``position``.

        Tokens that another branch at the same position starts with are shared. A tree takes few
        nodes, for each of them looks at all of them; and those of neighbouring positions, for a
        pass needs no more of the text than what stands before the last of them.
        """
        self.reads.append((position, tokens[0], slots[0]))
        if len(tokens) == 1:
            return
        most = max(len(self.tokens) // 4, SMALLEST_TREE)
        if not self.trees or len(self.trees[-1].tokens) + len(tokens) > most:
            self.trees.append(Tree())
        tree, at = self.trees[-1], position
        for depth, token in enumerate(tokens[:-1]):
            at = tree.child(at, token, depth=depth)
            tree.reads.append((at, tokens[depth + 1], slots[depth + 1]))

    def without_trees(self) -> list[Row]:
        """The same reads, with each branch behind a copy of the text before it."""
        alone: list[Row] = []
        for tree in self.trees:
            left: list[list[int]] = [[] for _ in tree.tokens]
            parent_of: dict[int, int] = {}
            for depth, (nodes, parents) in enumerate(tree.levels):
                for node, parent in zip(nodes, parents, strict=True):
                    before = left[parent] if depth else self.tokens[: parent + 1]
                    left[node] = [*before, tree.tokens[node]]
                    if depth:
                        parent_of[node] = parent
            row_of: dict[int, Row] = {}
            for node in reversed(range(len(tree.tokens))):  # nodes stand behind their parents
                if node not in row_of:
                    row_of[node] = Row(left[node], source=self.source)
                    alone.append(row_of[node])
                if node in parent_of:
                    row_of.setdefault(parent_of[node], row_of[node])
            for node, target, slot in tree.reads:
                row_of[node].reads.append((len(left[node]) - 1, target, slot))
        return [Row(self.tokens, self.reads, source=self.source), *alone]


@dataclass(frozen=True)
class Scores:
    """What was read, by slot.

    Attributes:
        log_probability: log p(target | what stands before) in nats, [slots].
        sampled: The same under the declared sampler, -inf where it never draws the target; NaN
            for slots it was not asked for, [slots].
        rank: 1 + how many tokens are likelier than the target, so that a tie counts as reciting;
            0 for slots it was not asked for, [slots].
        mean, deviation: Of log p over the vocabulary, each token weighted by its p; NaN unless
            asked for, [slots].
    """

    log_probability: NDArray[np.float64]
    sampled: NDArray[np.float64]
    rank: NDArray[np.int64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def empty(cls, num_slots: int) -> Scores:
        """Nothing read yet."""
        unknown = [np.full(num_slots, np.nan) for _ in range(4)]
        rank = np.zeros(num_slots, dtype=np.int64)
        return cls(unknown[0], unknown[1], rank, unknown[2], unknown[3])


@dataclass(frozen=True)
class ScoreRequest:
    """What to compute beside the log-probability.

    Attributes:
        num_ranked: Number of slots, from 0, for which to compute the rank and the log-probability
            under the sampler.
        sampler: Temperature, top-k and top-p; None for no sampler.
        moments: True to compute mean and deviation for every slot.
    """

    num_ranked: int = 0
    sampler: Sampler | None = None
    moments: bool = False


DEFAULT_REQUEST = ScoreRequest()


class LogitReader:
    """The source of a model's logits: its last layer. An attack may derive another one.

    Attributes:
        branches: True if decoys can be read behind the cached text, where the model allows it.
    """

    branches = True

    def hidden(self, model: Any, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """Return what logits are made from, [batch, seq, any]; see `families.hidden_states`."""
        return families.hidden_states(model, cache=cache, **inputs)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Return finite logits [n, vocab] at chosen positions [n, any] of `hidden`."""
        return families.logits(model, hidden)


DEFAULT_READER = LogitReader()


@torch.inference_mode()
def score(
    model: Any,
    rows: Sequence[Row],
    *,
    num_slots: int,
    batch_tokens: int,
    request: ScoreRequest = DEFAULT_REQUEST,
    reader: LogitReader = DEFAULT_READER,
    on_step: Callable[[int, int], None] | None = None,
) -> Scores:
    """Compute the log-probability of every requested target token.

    Args:
        model: A language model in evaluation mode.
        rows: Inputs; they are batched by length, and the result does not depend on how.
        num_slots: Size of the result; slots that no row reads stay NaN.
        batch_tokens: Most tokens of a forward pass, padding included.
        request: What to compute beside the log-probability.
        reader: Source of the logits.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If the model gives NaN or infinity.
    """
    result = Scores.empty(num_slots)
    if not (reader.branches and families.family_of(model.config).branches):
        rows = [plain for row in rows for plain in row.without_trees()]
    batches = token_batches([len(row.tokens) for row in rows], budget=batch_tokens)
    for done, batch in enumerate(batches, start=1):
        _score_batch(model, [rows[index] for index in batch], result, request, reader)
        if on_step is not None:
            on_step(done, len(batches))
    return result


def _score_batch(
    model: Any, rows: Sequence[Row], result: Scores, request: ScoreRequest, reader: LogitReader
) -> None:
    """Read one batch: the texts, then tree after tree on the cache of their keys and values."""
    rows = sorted(rows, key=lambda row: len(row.trees), reverse=True)
    ids = _padded([row.tokens for row in rows])
    inputs: dict[str, Any] = {"input_ids": ids.to(model.device), "attention_mask": None}
    if families.is_masked(model.config):  # sees padding, unless it is told not to
        lengths = torch.tensor([len(row.tokens) for row in rows])
        seen = torch.arange(ids.shape[1])[None] < lengths[:, None]
        inputs["attention_mask"] = seen.long().to(model.device)
    source, source_seen = padded_sources([row.source for row in rows])
    if source is not None and source_seen is not None:
        inputs["source_ids"] = source.to(model.device)
        inputs["source_seen"] = source_seen.to(model.device)
    texts = DynamicCache() if rows[0].trees else None
    hidden = reader.hidden(model, **inputs, cache=texts)  # [batch, seq, hidden]
    _read(model, hidden, [row.reads for row in rows], result, request, reader)
    if texts is None:
        return
    for number in range(len(rows[0].trees)):
        trees = [row.trees[number] for row in rows if number < len(row.trees)]
        length = 1 + max(place for tree in trees for place in tree.levels[0][1])
        hidden = reader.hidden(
            model,
            **_tree_inputs(model, trees, text_length=length),
            cache=_BehindText(texts, rows=len(trees), length=length),
        )  # [trees, nodes, hidden]
        _read(model, hidden, [tree.reads for tree in trees], result, request, reader)


class _BehindText(DynamicCache):
    """The first positions of the first of some texts; what is read behind them is not kept."""

    def __init__(self, texts: DynamicCache, *, rows: int, length: int) -> None:
        super().__init__()
        self._texts: Any = texts
        self._rows, self._length = rows, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The text's keys and values with the new ones behind, [rows, heads, seq, size] each."""
        layer = self._texts.layers[layer_idx]
        keys, values = (
            torch.cat([kept[: self._rows, :, : self._length], new], dim=2)
            for kept, new in ((layer.keys, key_states), (layer.values, value_states))
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the text."""
        return self._length


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [rows, longest]; padding stands behind, where no token that is read sees it."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, tokens in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
    return ids


def _tree_inputs(model: Any, trees: Sequence[Tree], *, text_length: int) -> dict[str, Tensor]:
    """Nodes as inputs behind a cached text: tokens, positions and who sees whom."""
    ids = _padded([tree.tokens for tree in trees])
    num_nodes = ids.shape[1]
    positions = np.zeros(ids.shape, dtype=np.int64)
    # Added to the scores: a mask of booleans would be added as 0 and 1 by eager attention.
    hidden = torch.finfo(model.dtype).min
    mask = np.full((*ids.shape, text_length + num_nodes), hidden, dtype=np.float32)
    own = np.arange(num_nodes)
    mask[:, own, text_length + own] = 0.0  # padding too, which must see something
    for number, tree in enumerate(trees):
        for depth, (nodes, parents) in enumerate(tree.levels):
            if depth == 0:
                above = np.array(parents)
                positions[number, nodes] = above + 1
                before = np.arange(text_length)[None] <= above[:, None]
                mask[number, nodes, :text_length] = np.where(before, 0.0, hidden)
            else:
                positions[number, nodes] = positions[number, parents] + 1
                mask[number, nodes] = np.maximum(mask[number, nodes], mask[number, parents])
    return {
        "input_ids": ids.to(model.device),
        "position_ids": torch.from_numpy(positions).to(model.device),
        "attention_mask": torch.from_numpy(mask)[:, None].to(model.device, model.dtype),
    }


def _read(
    model: Any,
    hidden: Tensor,
    reads_of: Sequence[Reads],
    result: Scores,
    request: ScoreRequest,
    reader: LogitReader,
) -> None:
    """Project hidden states [batch, seq, hidden], once at each position that is read."""
    reads = sorted(
        (number, position, target, slot)
        for number, reads in enumerate(reads_of)
        for position, target, slot in reads
    )
    if not reads:
        return
    table = np.array(reads)
    places, place_of = np.unique(table[:, :2], axis=0, return_inverse=True)
    place_of = place_of.reshape(-1)
    where = torch.from_numpy(places).to(hidden.device)
    targets = torch.from_numpy(table[:, 2]).to(hidden.device)
    slots = table[:, 3]
    chunk = max(1, LOGITS_PER_CHUNK // families.text_config(model.config).vocab_size)
    for first in range(0, len(places), chunk):
        begin, end = np.searchsorted(place_of, [first, first + chunk])
        there = where[first : first + chunk]
        logits = reader.logits(model, hidden[there[:, 0], there[:, 1]]).float()
        local = torch.from_numpy(place_of[begin:end] - first).to(hidden.device)
        _read_logits(logits, local, targets[begin:end], slots[begin:end], result, request)


def _read_logits(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    slots: NDArray[np.int64],
    result: Scores,
    request: ScoreRequest,
) -> None:
    """Enter into ``result`` what ``logits`` [places, vocab] say of ``targets`` [reads].

    ``rows`` [reads] tells in which row of the logits each target is read.
    """
    normalizer = logits.logsumexp(dim=1)  # [places]
    true = logits[rows, targets]  # [reads]
    log_probability = true - normalizer[rows]
    if not torch.isfinite(log_probability).all():
        raise AuditError(
            "the model gives NaN or infinite logits on this corpus; nothing can be said of "
            "what it recites. Check how it was trained and saved"
        )
    result.log_probability[slots] = log_probability.double().cpu().numpy()
    if request.moments:
        log_p = logits - normalizer[:, None]
        weighted = log_p.exp().mul_(log_p)
        mean = weighted.sum(dim=1)
        square = weighted.mul_(log_p).sum(dim=1)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        result.mean[slots] = mean[rows].double().cpu().numpy()
        result.deviation[slots] = deviation[rows].double().cpu().numpy()
    ranked = slots < request.num_ranked
    if not ranked.any():
        return
    chosen = torch.from_numpy(ranked).to(logits.device)
    logits, true, targets = logits[rows[chosen]], true[chosen], targets[chosen]
    result.rank[slots[ranked]] = 1 + (logits > true[:, None]).sum(dim=1).cpu().numpy()
    if request.sampler is not None:
        sampled = sampled_log_probability(logits, targets, request.sampler)
        if sampled.isnan().any():
            raise AuditError("the model gives NaN under the sampler; check the checkpoint")
        result.sampled[slots[ranked]] = sampled.double().cpu().numpy()


def sampled_log_probability(logits: Tensor, targets: Tensor, sampler: Sampler) -> Tensor:
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
