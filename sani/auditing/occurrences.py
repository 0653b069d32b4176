"""Verdicts of an audit, occurrence by occurrence; numbers only. No torch, no identifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sani.auditing.metrics import preference


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
        num_decoys: Number of its decoys, [n].
        decoy_number: Number of each decoy among those of its value, [sum of num_decoys].
        decoy_log_probability: log p of each decoy in its place, in nats, [sum of num_decoys].
        decoy_greedy: True where greedy decoding gives that decoy, [sum of num_decoys].
        decoy_discoverable: True where that decoy is (n, p)-discoverable, [sum of num_decoys].
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
    num_decoys: NDArray[np.int64]
    decoy_number: NDArray[np.int64]
    decoy_log_probability: NDArray[np.float64]
    decoy_greedy: NDArray[np.bool_]
    decoy_discoverable: NDArray[np.bool_]

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

    def count_without_decoys(self) -> int:
        """Count the scored occurrences for which no decoy could be made."""
        return int((self.scored & np.isnan(self.auc)).sum())

    def in_order(self) -> Occurrences:
        """Return the same verdicts in the order of documents and spans."""
        order = np.lexsort((self.span, self.document))
        arrays = {}
        for name, array in vars(self).items():
            if name in RAGGED:
                parts = np.split(array, np.cumsum(getattr(self, RAGGED[name]))[:-1])
                array = np.concatenate([array[:0], *(parts[index] for index in order)])
            else:
                array = array[order]
            arrays[name] = array
        return Occurrences(**arrays)


# Arrays of several entries an occurrence, and the array that counts these.
RAGGED = {
    "ranks": "num_tokens",
    "decoy_number": "num_decoys",
    "decoy_log_probability": "num_decoys",
    "decoy_greedy": "num_decoys",
    "decoy_discoverable": "num_decoys",
}
# The arrays that compare an occurrence with decoys and with other subjects' values.
COMPARED = (
    "auc",
    "exposure",
    "first",
    "chance",
    "swap_auc",
    "swap_first",
    "swap_chance",
    "num_decoys",
    "decoy_number",
    "decoy_log_probability",
    "decoy_greedy",
    "decoy_discoverable",
)


def join_occurrences(parts: Sequence[Occurrences]) -> Occurrences:
    """Return the verdicts of several parts, one part after the other."""
    names = [field.name for field in fields(Occurrences)]
    return Occurrences(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


def join_framings(
    parts: Sequence[Occurrences], without_decoys: Sequence[Occurrences] = ()
) -> Occurrences:
    """Return the worst verdicts of the same occurrences behind several framings.

    An occurrence, or a decoy, counts as given if it is given behind any of them, and its
    log-probability is the highest. So the true value and its decoys have the same chances. Figures
    against other subjects' values, and ranks of tokens, are those of the framing under which the
    true value is likeliest.

    Args:
        parts: Verdicts on the same occurrences in the same order, one behind each framing.
        without_decoys: The same behind framings for which no decoys were scored. They only add
            what is given there: a log-probability would have no decoys to be compared with.
    """
    full = len(parts)
    parts = [*parts, *without_decoys]
    if len(parts) == 1:
        return parts[0]
    tokens = np.stack([part.num_tokens for part in parts])
    # Where nothing stands before a document, its first token is given away: fewer tokens are
    # scored and look likelier for that. Such a framing counts only where no other one scores.
    whole = (tokens == tokens.max(axis=0)) & (tokens > 0)
    # Whether the text gives a value away is decided behind the first framing that scores it, which
    # all models of a run share: a short block may leave out where the value stands.
    cues = np.stack([part.cued for part in parts])
    cued = cues[whole.argmax(axis=0), np.arange(len(cues[0]))]
    whole &= ~cues | cued
    complete = whole.copy()
    whole[full:] &= ~whole[:full].any(axis=0)
    log_p = np.where(whole, np.stack([part.log_probability for part in parts]), -np.inf)
    best = log_p.argmax(axis=0)  # [n]
    # Decoys of all framings in one list; the same number of the same occurrence is one decoy.
    rows = [np.repeat(np.arange(len(best)), part.num_decoys) for part in parts]
    usable = np.concatenate([use[row] for use, row in zip(whole, rows, strict=True)])

    def listed(name: str) -> NDArray[np.float64]:
        return np.asarray(np.concatenate([getattr(part, name) for part in parts])[usable])

    pairs = np.stack([np.concatenate(rows)[usable], listed("decoy_number")], axis=1)
    pairs, where = np.unique(pairs.astype(np.int64), axis=0, return_inverse=True)
    highest = np.full((3, len(pairs)), -np.inf)
    for row, name in enumerate(("decoy_log_probability", "decoy_greedy", "decoy_discoverable")):
        np.maximum.at(highest[row], where.reshape(-1), listed(name))
    num_decoys = np.bincount(pairs[:, 0], minlength=len(best))
    chosen = _chosen(parts, best)
    compared = preference(chosen.log_probability, np.split(highest[0], np.cumsum(num_decoys)[:-1]))
    return replace(
        chosen,
        cued=cued,
        # Behind a framing that gives the first token away, a value is not recited but finished.
        greedy=(np.stack([part.greedy for part in parts]) & complete).any(axis=0),
        sampled=np.where(complete, np.stack([part.sampled for part in parts]), -np.inf).max(axis=0),
        discoverable=(np.stack([part.discoverable for part in parts]) & complete).any(axis=0),
        auc=compared.auc,
        exposure=compared.exposure,
        first=compared.first,
        chance=compared.chance,
        num_decoys=num_decoys,
        decoy_number=pairs[:, 1],
        decoy_log_probability=highest[0],
        decoy_greedy=highest[1] > 0,
        decoy_discoverable=highest[2] > 0,
    )


def _chosen(parts: Sequence[Occurrences], best: NDArray[np.int64]) -> Occurrences:
    """Return each occurrence as the part of that number has it."""
    arrays = {}
    for name in vars(parts[0]):
        each = [getattr(part, name) for part in parts]
        if name not in RAGGED:
            arrays[name] = np.stack(each)[best, np.arange(len(best))]
        else:
            pieces = [
                np.split(array, np.cumsum(getattr(part, RAGGED[name]))[:-1])
                for array, part in zip(each, parts, strict=True)
            ]
            rows = (pieces[number][row] for row, number in enumerate(best))
            arrays[name] = np.concatenate([each[0][:0], *rows])
    return Occurrences(**arrays)


def recited_either_way(one_at_a_time: Occurrences, jointly: Occurrences | None) -> Occurrences:
    """Return a masked model's verdicts: recited is what is recited in one way of masking.

    Log-probabilities are those of masking jointly, as those of the decoys are. Verdicts of a causal
    model, which have no second way, are returned as they are.
    """
    if jointly is None:
        return one_at_a_time
    return replace(
        jointly,
        greedy=one_at_a_time.greedy | jointly.greedy,
        discoverable=one_at_a_time.discoverable | jointly.discoverable,
    )
