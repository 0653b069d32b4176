"""Verdicts of an audit, occurrence by occurrence; numbers only. No torch, no identifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Occurrences:
    """Verdicts one by one, in the order of documents and spans.

    Attributes:
        document: Document number, [n].
        span: Span number within the document, [n].
        reason: The reason why it could not be scored; empty if it was, [n].
        cued: True where the text it is asked with gives it away, see `cues`, [n].
        greedy: True where greedy decoding from its left context reproduces it, [n].
        log_probability: log p in nats, NaN if not scored, [n].
        sampled: The same under the declared sampler, -inf if it is never drawn or not scored, [n].
        discoverable: True where it is (n, p)-discoverable, [n].
        num_tokens: Tokens scored, 0 if none, [n].
        ranks: Rank of every token scored, 1 for the likeliest, [sum of num_tokens].
        auc: Share of its decoys that it beats, ties half, NaN without decoys, [n].
        exposure: Exposure in bits, NaN without decoys, [n].
        first, chance: Share of the first place among its decoys, and that share by chance, [n].
        swap_auc, swap_first, swap_chance: The same against other subjects' values, [n].
    """

    document: NDArray[np.int64]
    span: NDArray[np.int64]
    reason: NDArray[np.str_]
    cued: NDArray[np.bool_]
    greedy: NDArray[np.bool_]
    log_probability: NDArray[np.float64]
    sampled: NDArray[np.float64]
    discoverable: NDArray[np.bool_]
    num_tokens: NDArray[np.int64]
    ranks: NDArray[np.int64]
    auc: NDArray[np.float64]
    exposure: NDArray[np.float64]
    first: NDArray[np.float64]
    chance: NDArray[np.float64]
    swap_auc: NDArray[np.float64]
    swap_first: NDArray[np.float64]
    swap_chance: NDArray[np.float64]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """True for the occurrences that were scored, [n]."""
        return np.asarray(self.reason == "")

    @property
    def ranks_of(self) -> list[NDArray[np.int64]]:
        """The ranks of each occurrence's tokens, n arrays."""
        return np.split(self.ranks, np.cumsum(self.num_tokens)[:-1])

    def count_unscored(self) -> dict[str, int]:
        """Count the occurrences that could not be scored, by reason."""
        reasons = self.reason[~self.scored]
        return {str(reason): int((reasons == reason).sum()) for reason in np.unique(reasons)}

    def in_order(self) -> Occurrences:
        """Return the same verdicts in the order of documents and spans."""
        order = np.lexsort((self.span, self.document))
        ranks_of = self.ranks_of
        ranks = np.concatenate([self.ranks[:0], *(ranks_of[index] for index in order)])
        arrays = {name: array[order] for name, array in vars(self).items() if name != "ranks"}
        return Occurrences(**arrays, ranks=ranks)


# The figures that compare an occurrence with decoys and with other subjects' values.
COMPARED = ("auc", "exposure", "first", "chance", "swap_auc", "swap_first", "swap_chance")


def join_occurrences(parts: Sequence[Occurrences]) -> Occurrences:
    """Return the verdicts of several parts, one part after the other."""
    names = [field.name for field in fields(Occurrences)]
    return Occurrences(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


def recited_either_way(one_at_a_time: Occurrences, jointly: Occurrences) -> Occurrences:
    """Return a masked model's verdicts: recited is what is recited in one way of masking."""
    return replace(
        one_at_a_time,
        greedy=one_at_a_time.greedy | jointly.greedy,
        discoverable=one_at_a_time.discoverable | jointly.discoverable,
    )
