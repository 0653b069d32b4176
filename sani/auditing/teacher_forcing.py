"""Log-probabilities of chosen tokens, in as few forward passes as there are documents.

The text of a row is read once, with a cache of its keys and values. Then its trees are read behind
that cache: each decoy token attends to the text before its identifier and to the decoy tokens above
it, never to the text behind or to another decoy. So decoys share the computation of their prefix.
The vocabulary projection, which costs more than a layer, runs only at the positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sani.auditing.rows import Reads, Row, Tree
from sani.auditing.sampler import Sampler
from sani.auditing.tree_inputs import padded, tree_inputs
from sani.errors import AuditError
from sani.models import families
from sani.models.passes import PassGroup
from sani.models.streaming import run_passes
from sani.text.batches import padded_sources, token_batches

LOGITS_PER_CHUNK = 2**24  # logits held at a time: 64 MiB in float32


@dataclass(frozen=True)
class Scores:
    """The results of all reads, by slot.

    Attributes:
        log_probability: log p(target | tokens before) in nats, [slots].
        sampled: The same under the declared sampler, -inf where it never draws the target; NaN
            for slots that are not sampled, [slots].
        likeliest: True where no token is likelier than the target, so that a tie counts as
            reciting; False for slots that are not sampled, [slots].
        rank: 1 + the number of tokens that are likelier than the target; 0 for slots that are not
            ranked, [slots].
        mean, deviation: Mean and standard deviation of log p over the vocabulary, each token
            weighted by its p, in nats; NaN unless requested, [slots].
    """

    log_probability: NDArray[np.float64]
    sampled: NDArray[np.float64]
    likeliest: NDArray[np.bool_]
    rank: NDArray[np.int64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def empty(cls, num_slots: int) -> Scores:
        """Return scores in which nothing is read yet."""
        unknown = [np.full(num_slots, np.nan) for _ in range(4)]
        rank = np.zeros(num_slots, dtype=np.int64)
        return cls(unknown[0], unknown[1], rank > 0, rank, unknown[2], unknown[3])


@dataclass(frozen=True)
class ScoreRequest:
    """The scores to compute beside the log-probability.

    Attributes:
        num_ranked: Number of slots, from 0, that also get a rank.
        num_sampled: Number of slots, from 0, that also get the log-probability under the sampler
            and are compared with the likeliest token.
        sampler: Temperature, top-k and top-p; None for no sampler.
        moments: True to compute mean and deviation for every slot.
    """

    num_ranked: int = 0
    num_sampled: int = 0
    sampler: Sampler | None = None
    moments: bool = False


DEFAULT_REQUEST = ScoreRequest()


class LogitReader:
    """The source of logits: the model's last layer. An attack may derive another source.

    Attributes:
        branches: True if decoys can be read behind the cached text, where the model allows it.
    """

    branches = True

    def hidden(self, model: Any, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """Return what logits are made from, [batch, seq, any]; see `families.hidden_states`."""
        return families.hidden_states(model, cache=cache, **inputs)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Return finite logits [n, vocab] for some rows [n, any] of what `hidden` returns."""
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
        rows: Inputs. They are batched by length; the result does not depend on the batches.
        num_slots: Size of the result; slots that no row reads stay NaN.
        batch_tokens: Maximum number of tokens in a forward pass, padding included.
        request: Scores to compute beside the log-probability.
        reader: Source of the logits.
        on_step: Called with (batches done, batches in all).

    Raises:
        AuditError: If the model gives NaN or infinity.
    """
    result = Scores.empty(num_slots)
    if not (reader.branches and families.family_of(model.config).branches):
        rows = [plain for row in rows for plain in row.without_trees()]
    batches = token_batches([len(row.tokens) for row in rows], budget=batch_tokens)
    done = 0

    def on_batch() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, len(batches))

    groups = (_Batch(model, [rows[i] for i in b], result, request, reader).passes for b in batches)
    run_passes(model, groups, on_batch)
    return result


class _Batch:
    """One batch: its texts are read, then tree after tree on the cache of their keys and values."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        result: Scores,
        request: ScoreRequest,
        reader: LogitReader,
    ) -> None:
        # Rows with most trees first: the rows that have an n-th tree are the cache's first rows.
        self._rows = sorted(rows, key=lambda row: len(row.trees), reverse=True)
        self._model, self._reader = model, reader
        self._result, self._request = result, request
        self._cache = DynamicCache()  # filled if there are trees

    @property
    def passes(self) -> PassGroup:
        """Passes over the texts, and over the first trees, the second ones, and so on."""
        ids = [row.tokens for row in self._rows]
        passes, tokens = [partial(self._read_texts)], len(ids) * max(map(len, ids))
        for number in range(len(self._rows[0].trees)):
            trees = [row.trees[number] for row in self._rows if number < len(row.trees)]
            tokens += len(trees) * max(len(tree.tokens) for tree in trees)
            passes.append(partial(self._read_trees, trees, number))
        return PassGroup(passes, tokens)

    def _read_texts(self) -> None:
        model, rows = self._model, self._rows
        ids = padded([row.tokens for row in rows])
        inputs: dict[str, Any] = {"input_ids": ids.to(model.device), "attention_mask": None}
        if families.is_masked(model.config):  # reads both ways, so padding must be hidden from it
            lengths = torch.tensor([len(row.tokens) for row in rows])
            seen = torch.arange(ids.shape[1])[None] < lengths[:, None]
            inputs["attention_mask"] = seen.long().to(model.device)
        source, source_seen = padded_sources([row.source for row in rows])
        if source is not None and source_seen is not None:
            inputs["source_ids"] = source.to(model.device)
            inputs["source_seen"] = source_seen.to(model.device)
        cache = self._cache if rows[0].trees else None
        hidden = self._reader.hidden(model, **inputs, cache=cache)  # [batch, seq, hidden]
        self._enter(hidden, [row.reads for row in rows])

    def _read_trees(self, trees: Sequence[Tree], number: int) -> None:
        """Read the trees of one number behind the cache of the texts."""
        length = 1 + max(position for tree in trees for position in tree.levels[0][1])
        last = number == len(self._rows[0].trees) - 1
        hidden = self._reader.hidden(
            self._model,
            **tree_inputs(self._model, trees, text_length=length),
            cache=_PrefixCache(self._cache, rows=len(trees), length=length, last=last),
        )  # [trees, nodes, hidden]
        self._enter(hidden, [tree.reads for tree in trees])

    def _enter(self, hidden: Tensor, reads: Sequence[Reads]) -> None:
        _read(self._model, hidden, reads, self._result, self._request, self._reader)


class _PrefixCache(DynamicCache):
    """The first positions of the first texts of a cache; keys read behind them are not stored.

    A `DynamicCache` would append the tree's keys, and the next tree would read behind them.
    """

    def __init__(self, texts: DynamicCache, *, rows: int, length: int, last: bool) -> None:
        """Take the cache; if ``last``, each of its layers is dropped as soon as it is read."""
        super().__init__()
        self._texts: Any = texts
        self._rows, self._length, self._last = rows, length, last

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the text's keys and values with the new ones behind, [rows, heads, seq, size]."""
        layer = self._texts.layers[layer_idx]
        keys, values = (
            torch.cat([stored[: self._rows, :, : self._length], new], dim=2)
            for stored, new in ((layer.keys, key_states), (layer.values, value_states))
        )
        if self._last:
            layer.keys = layer.values = None
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions of the text."""
        return self._length


def _read(
    model: Any,
    hidden: Tensor,
    reads_of: Sequence[Reads],
    result: Scores,
    request: ScoreRequest,
    reader: LogitReader,
) -> None:
    """Enter the reads of every row, with one projection for each position that is read.

    Args:
        model: The model.
        hidden: Hidden states, [batch, seq, hidden].
        reads_of: Reads of each row, [batch].
        result: Entered into, in place.
        request: Scores to compute beside the log-probability.
        reader: Source of the logits.
    """
    reads = sorted(
        (number, position, target, slot)
        for number, reads in enumerate(reads_of)
        for position, target, slot in reads
    )
    if not reads:
        return
    table = np.array(reads)
    # Many reads ask at one position (an identifier and all its decoys): project it once.
    positions, position_of = np.unique(table[:, :2], axis=0, return_inverse=True)
    position_of = position_of.reshape(-1)
    where = torch.from_numpy(positions).to(hidden.device)
    targets = torch.from_numpy(table[:, 2]).to(hidden.device)
    slots = table[:, 3]
    chunk = max(1, LOGITS_PER_CHUNK // families.text_config(model.config).vocab_size)
    for first in range(0, len(positions), chunk):
        begin, end = np.searchsorted(position_of, [first, first + chunk])
        part = where[first : first + chunk]
        # float32 even if an attacked copy computes in less: a normalizer sums a whole vocabulary.
        logits = reader.logits(model, hidden[part[:, 0], part[:, 1]]).float()
        local = torch.from_numpy(position_of[begin:end] - first).to(hidden.device)
        _read_logits(logits, local, targets[begin:end], slots[begin:end], result, request)


def _read_logits(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    slots: NDArray[np.int64],
    result: Scores,
    request: ScoreRequest,
) -> None:
    """Enter the scores of some reads.

    Args:
        logits: Logits at each position, [positions, vocab].
        rows: Row of the logits in which each target is read, [reads].
        targets: Target token of each read, [reads].
        slots: Slot of each read, [reads].
        result: Entered into, in place.
        request: Scores to compute beside the log-probability.
    """
    # One logsumexp a position instead of a log_softmax over the vocabulary for each read.
    normalizer = logits.logsumexp(dim=1)  # [positions]
    true = logits[rows, targets]  # [reads]
    log_probability = true - normalizer[rows]
    if not torch.isfinite(log_probability).all():
        raise AuditError(
            "the model gives NaN or infinite logits on this corpus; nothing can be said of "
            "what it recites. Check how it was trained and saved"
        )
    # float64 from here on: the log-probabilities of a long value's tokens are summed.
    result.log_probability[slots] = log_probability.double().cpu().numpy()
    if request.moments:
        # E[log p] and E[(log p)^2] - E[log p]^2 under p, in place: [positions, vocab] is large. The
        # difference of two close numbers may come out just below 0.
        log_p = logits - normalizer[:, None]
        weighted = log_p.exp().mul_(log_p)
        mean = weighted.sum(dim=1)
        square = weighted.mul_(log_p).sum(dim=1)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        result.mean[slots] = mean[rows].double().cpu().numpy()
        result.deviation[slots] = deviation[rows].double().cpu().numpy()
    # Only likelier tokens count. A tie is broken by the order of the vocabulary in one library and
    # by rounding in another, so a tie counts as reciting: that overstates rather than hides.
    ranked = slots < request.num_ranked
    if ranked.any():
        chosen = torch.from_numpy(ranked).to(logits.device)
        likelier = logits[rows[chosen]] > true[chosen, None]
        result.rank[slots[ranked]] = 1 + likelier.sum(dim=1).cpu().numpy()
    sampled = slots < request.num_sampled
    if sampled.any():
        chosen = torch.from_numpy(sampled).to(logits.device)
        # A value and its decoys ask at one position: sort its vocabulary once, not once a read.
        asked, row = rows[chosen].unique(return_inverse=True)
        logits, targets = logits[asked], targets[chosen]
        highest = logits.amax(dim=1)
        result.likeliest[slots[sampled]] = (true[chosen] >= highest[row]).cpu().numpy()
        if request.sampler is not None:
            log_p = sampled_log_probability(logits, row, targets, request.sampler)
            if log_p.isnan().any():
                raise AuditError("the model gives NaN under the sampler; check the checkpoint")
            result.sampled[slots[sampled]] = log_p.double().cpu().numpy()


def sampled_log_probability(
    logits: Tensor, rows: Tensor, targets: Tensor, sampler: Sampler
) -> Tensor:
    """Compute log-probabilities under temperature, then top-k, then top-p.

    The order is that of ``transformers`` generation. Ties at the k-th place are all kept, which
    can only overstate extraction.

    Args:
        logits: Logits at each position, [positions, vocab].
        rows: Row of the logits in which each target is read, [n].
        targets: Target tokens, [n].
        sampler: Temperature, top-k and top-p.

    Returns:
        Log-probability of each target in nats; -inf where the sampler never draws it, [n].
    """
    if sampler.temperature != 1.0:
        logits = logits / sampler.temperature
    # Top-k is the same before and after a temperature, top-p is not: it looks at probabilities.
    if 0 < sampler.top_k < logits.shape[1]:
        kept = logits.topk(sampler.top_k + 1, dim=1).values  # [positions, k + 1], the highest first
        kept, below = kept[:, :-1], kept[:, -1:]
        floor = kept[:, -1:]
        if sampler.top_p >= 1.0 and not (below == floor).any():
            # Without a tie at the k-th place the normalizer is that of the k kept logits: no
            # further pass over the vocabulary.
            chosen = logits[rows, targets]
            log_p = chosen - kept.logsumexp(dim=1)[rows]
            return log_p.masked_fill(chosen < floor[rows, 0], -torch.inf)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if sampler.top_p < 1.0:
        ordered, order = logits.sort(dim=1, descending=True)
        probability = ordered.softmax(dim=1)
        # Mass before a token, not with it: the token that crosses top_p is still drawn.
        before = probability.cumsum(dim=1) - probability
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampler.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    # Renormalized over the tokens that are left.
    return logits[rows, targets] - logits.logsumexp(dim=1)[rows]
