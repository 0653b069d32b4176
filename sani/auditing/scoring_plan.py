"""The plan of a scoring: which row of the model's input answers for which occurrence.

`plan_scoring` puts documents into rows and gives every token of every occurrence, and of every
decoy, a slot. After the rows are scored, `ScoringPlan.verdicts` puts the slots together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sani.auditing.cues import SearchedText
from sani.auditing.decoy_tokens import decoy_tokens, swap_tokens
from sani.auditing.metrics import Preference, discoverable, preference
from sani.auditing.occurrences import Occurrences
from sani.auditing.rows import Row, text_row
from sani.auditing.teacher_forcing import Scores
from sani.corpus.documents import Corpus
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.framing import Framing
from sani.text.packing import FramedWindow, framed_windows
from sani.text.tokens import Encoded, Window
from sani.values.decoys import DecoyMaker

TOO_LONG = "longer than half the context"


@dataclass(frozen=True)
class Target:
    """An occurrence's tokens [first, last) of a document.

    Attributes:
        item: The document as tokens.
        span: Number of the span.
        first, last: The tokens.
        before: Tokens before it in its row, framing included.
    """

    item: Encoded
    span: int
    first: int
    last: int
    before: int


@dataclass(frozen=True)
class _PlannedOccurrence:
    """An occurrence and the slots of its tokens; no slots where it cannot be scored."""

    document: int
    span: int
    reason: str
    cued: bool
    slots: slice


@dataclass(frozen=True)
class _Candidate:
    """A decoy, or another subject's value (a swap), in the place of an occurrence.

    Attributes:
        occurrence: Number of the occurrence it is compared with.
        swap: True for another subject's value.
        number: Its number among the decoys, or swaps, of the true value.
        tokens: Its tokens.
        row: The row of text that it belongs to.
        target: The occurrence's tokens in that row.
    """

    occurrence: int
    swap: bool
    number: int
    tokens: list[int]
    row: Row
    target: Target


@dataclass(frozen=True)
class ScoringPlan:
    """Rows to score, and the slots in which each occurrence finds its scores.

    Slots begin with every token of every occurrence; those of the decoys follow, then the swaps.

    Attributes:
        rows: Inputs of the model with their reads.
        num_true_tokens: Slots of occurrences.
        num_sampled_tokens: Slots of occurrences and of decoys.
        num_slots: Slots of occurrences and of candidates.
    """

    rows: list[Row]
    num_true_tokens: int
    num_sampled_tokens: int
    num_slots: int
    _occurrences: list[_PlannedOccurrence]
    _candidates: list[tuple[_Candidate, slice]]

    def verdicts(self, scores: Scores, *, queries: int, probability: float) -> Occurrences:
        """Put the scores of the rows together, occurrence by occurrence.

        Args:
            scores: Scores of `rows`.
            queries: n of the (n, p) verdicts.
            probability: p of the (n, p) verdicts.

        Returns:
            Verdicts in the order of documents and spans.
        """
        planned = self._occurrences
        where = np.array([(p.document, p.span) for p in planned], dtype=np.int64).reshape(-1, 2)
        true = _values(scores, [p.slots for p in planned], queries, probability)
        reason = np.array([p.reason for p in planned], dtype=np.str_)
        scored = reason == ""
        decoys = sorted(
            (pair for pair in self._candidates if not pair[0].swap),
            key=lambda pair: (pair[0].occurrence, pair[0].number),
        )
        decoyed = _values(scores, [slots for _, slots in decoys], queries, probability)
        occurrence_of = np.array([decoy.occurrence for decoy, _ in decoys], dtype=np.int64)
        log_p = np.where(scored, true.log_probability, np.nan)
        among_decoys = self._preference(log_p, scores, swap=False)
        among_swaps = self._preference(log_p, scores, swap=True)
        return Occurrences(
            document=where[:, 0],
            span=where[:, 1],
            reason=reason,
            cued=np.array([p.cued for p in planned], dtype=np.bool_),
            greedy=true.greedy & scored,
            log_probability=log_p,
            sampled=np.where(scored, true.sampled, -np.inf),
            discoverable=true.discoverable & scored,
            num_tokens=np.array([p.slots.stop - p.slots.start for p in planned], dtype=np.int64),
            ranks=np.concatenate([scores.rank[:0], *(scores.rank[p.slots] for p in planned)]),
            auc=among_decoys.auc,
            exposure=among_decoys.exposure,
            first=among_decoys.first,
            chance=among_decoys.chance,
            swap_auc=among_swaps.auc,
            swap_first=among_swaps.first,
            swap_chance=among_swaps.chance,
            num_decoys=np.bincount(occurrence_of, minlength=len(planned)),
            decoy_number=np.array([decoy.number for decoy, _ in decoys], dtype=np.int64),
            decoy_log_probability=decoyed.log_probability,
            decoy_greedy=decoyed.greedy,
            decoy_discoverable=decoyed.discoverable,
        ).in_order()

    def _preference(self, true: NDArray[np.float64], scores: Scores, *, swap: bool) -> Preference:
        """Rank each true value among its decoys, or among its swaps."""
        compared: list[list[float]] = [[] for _ in self._occurrences]
        for candidate, slots in self._candidates:
            if candidate.swap == swap:
                total = float(scores.log_probability[slots].sum())
                compared[candidate.occurrence].append(total)
        return preference(true, [np.array(values) for values in compared])


@dataclass(frozen=True)
class _Values:
    """Scores of whole values, put together from those of their tokens, [values] each."""

    log_probability: NDArray[np.float64]
    sampled: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    discoverable: NDArray[np.bool_]


def _values(scores: Scores, slots_of: Sequence[slice], queries: int, probability: float) -> _Values:
    """Put the scores of tokens together to those of values; a value of no tokens is not given."""
    # The chain rule: log p of a value is the sum over its tokens, each behind the others.
    log_p = np.array([scores.log_probability[slots].sum() for slots in slots_of], dtype=np.float64)
    sampled = np.array([scores.sampled[slots].sum() for slots in slots_of], dtype=np.float64)
    return _Values(
        log_probability=log_p,
        sampled=sampled,
        greedy=np.array([scores.likeliest[slots].all() for slots in slots_of], dtype=np.bool_),
        # A truncated sampler never draws what is below its cut, and a plain one does.
        discoverable=discoverable(
            np.maximum(sampled, log_p), queries=queries, probability=probability
        ),
    )


def plan_scoring(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    *,
    maker: DecoyMaker | None = None,
    jointly: bool = False,
) -> ScoringPlan:
    """Plan the rows that answer for every occurrence of the given documents.

    Arguments as for `sani.auditing.scoring.score_occurrences`.
    """
    planner = _Planner(checkpoint, corpus, framing, settings, maker, jointly)
    for item in encoded:
        planner.add_document(item)
    return planner.finish()


class _Planner:
    """Puts documents into rows, one after the other; used by `plan_scoring` only."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        framing: Framing,
        settings: AuditSettings,
        maker: DecoyMaker | None,
        jointly: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._corpus = corpus
        self._framing = framing
        self._settings = settings
        self._maker = maker
        self._masked = checkpoint.family.objective == "masked"
        self._jointly = jointly
        self._capacity = framing.block or checkpoint.context_tokens
        self._rows: list[Row] = []
        self._occurrences: list[_PlannedOccurrence] = []
        self._candidates: list[_Candidate] = []
        self._num_true_tokens = 0
        # (occurrence, masks) -> the row that answers for every value of so many tokens.
        self._joint_rows: dict[tuple[int, int], Row] = {}

    def add_document(self, item: Encoded) -> None:
        """Put a document's windows into rows, and give each of its occurrences to one of them."""
        waiting = list(enumerate(item.spans))
        text = SearchedText(self._corpus, item)
        for framed in framed_windows(
            item, self._framing, context_tokens=self._checkpoint.context_tokens
        ):
            window = framed.window
            row = self._row_of(item, framed)
            preceding = framed.preceding
            packed = SearchedText(self._corpus, item, preceding) if preceding else text
            # The first window that holds all of an occurrence scores it. Later ones begin later,
            # so they have less context before it.
            here = [pair for pair in waiting if pair[1][1] <= window.end]
            waiting = [pair for pair in waiting if pair[1][1] > window.end]
            for span, (first, last) in here:
                before = len(framed.before) + first - window.start
                if first == last:
                    self._record(item, span, "no token covers it")
                elif first < window.start:
                    longer = "cut by the end of a block" if self._framing.block else TOO_LONG
                    self._record(item, span, longer)
                elif before == 0 and last == first + 1 and not self._masked:
                    self._record(item, span, "nothing stands before its only token")
                else:
                    target = Target(item, span, first, last, before)
                    cued = self._is_cued(text, target, window)
                    if not cued and preceding and self._is_cued(packed, target, window):
                        # That would be no memory; another framing scores it.
                        self._record(item, span, "given away by a document packed before it")
                    elif self._masked:
                        self._add_masked(row, target, cued)
                    else:
                        self._add_causal(row, target, cued)
        for span, _ in waiting:
            self._record(item, span, "document without tokens")

    def finish(self) -> ScoringPlan:
        """Add the reads of the candidates, behind those of the occurrences."""
        slot, candidates = self._num_true_tokens, []
        # Decoys before swaps: slots up to a number are sampled, and swaps are not.
        for candidate in sorted(self._candidates, key=lambda candidate: candidate.swap):
            tokens, target = candidate.tokens, candidate.target
            slots = slice(slot, slot + len(tokens))
            if self._masked:
                self._mask_out(candidate.occurrence, candidate.row, target, tokens, slot)
            else:
                candidate.row.add_branch(target.before - 1, tokens, range(slots.start, slots.stop))
            candidates.append((candidate, slots))
            slot = slots.stop
        num_sampled = max(
            (slots.stop for candidate, slots in candidates if not candidate.swap),
            default=self._num_true_tokens,
        )
        return ScoringPlan(
            self._rows, self._num_true_tokens, num_sampled, slot, self._occurrences, candidates
        )

    def _row_of(self, item: Encoded, framed: FramedWindow) -> Row:
        """Return the row of a window; documents of the same block share one."""
        row = text_row(self._checkpoint, item, framed)
        if self._masked:  # rows are made for each mask
            return row
        last = self._rows[-1] if self._rows and framed.preceding else None
        if last is not None and row.tokens[: len(last.tokens)] == last.tokens:
            last.tokens = row.tokens
            return last
        self._rows.append(row)
        return row

    def _is_cued(self, searched: SearchedText, target: Target, window: Window) -> bool:
        """Return True if the text that the model sees gives the occurrence away."""
        item = target.item
        span = self._corpus[item.document].spans[target.span]
        seen = [(item.starts[window.start], min(span.start, item.starts[target.first]))]
        if self._masked:  # it sees the text behind too
            behind = max(span.end, item.ends[target.last - 1])
            seen.append((behind, item.ends[window.end - 1]))
        return searched.cued(span.start, span.end, seen)

    def _add_causal(self, row: Row, target: Target, cued: bool) -> None:
        """Add an occurrence of a row of text; its candidates branch off that row."""
        # A first token that nothing stands before is given away: it can only make the rest leak.
        given = int(target.before == 0)
        tokens = target.item.ids[target.first + given : target.last]
        occurrence, slot = self._record(
            target.item, target.span, "", num_tokens=len(tokens), cued=cued
        )
        for offset, token in enumerate(tokens):
            position = target.before + given + offset - 1  # predicts the token behind it
            row.reads.append((position, token, slot + offset))
        if given:
            return
        for swap, number, value in self._compared(target):
            if target.before + len(value) - 1 <= self._capacity:
                self._candidates.append(_Candidate(occurrence, swap, number, value, row, target))

    def _add_masked(self, row: Row, target: Target, cued: bool) -> None:
        """Add an occurrence of a masked model: a row for each time that tokens are masked.

        Decoys are scored as the occurrence is, each with as many masks as it has tokens.
        """
        tokens = target.item.ids[target.first : target.last]
        occurrence, slot = self._record(
            target.item, target.span, "", num_tokens=len(tokens), cued=cued
        )
        self._mask_out(occurrence, row, target, tokens, slot)
        for swap, number, value in self._compared(target):
            length = len(row.tokens) - len(tokens) + len(value)
            if length <= self._capacity:
                self._candidates.append(_Candidate(occurrence, swap, number, value, row, target))

    def _mask_out(
        self, occurrence: int, row: Row, target: Target, tokens: Sequence[int], slot: int
    ) -> None:
        """Add rows with ``tokens`` in the identifier's place, masked, read from ``slot`` on."""
        mask = self._checkpoint.tokenizer.mask_token_id
        left = row.tokens[: target.before]
        right = row.tokens[target.before + target.last - target.first :]
        for known in range(1 if self._jointly else len(tokens)):
            masked = self._joint_rows.get((occurrence, len(tokens)))
            if masked is None:
                masks = [mask] * (len(tokens) - known)
                masked = Row([*left, *tokens[:known], *masks, *right])
                self._rows.append(masked)
                if self._jointly:
                    self._joint_rows[occurrence, len(tokens)] = masked
            scored = tokens if self._jointly else tokens[known : known + 1]
            for offset, token in enumerate(scored, start=known):
                masked.reads.append((target.before + offset, token, slot + offset))

    def _record(
        self, item: Encoded, span: int, reason: str, *, num_tokens: int = 0, cued: bool = False
    ) -> tuple[int, int]:
        """Enter an occurrence; return its number and the first of its slots."""
        slots = slice(self._num_true_tokens, self._num_true_tokens + num_tokens)
        self._occurrences.append(_PlannedOccurrence(item.document, span, reason, cued, slots))
        self._num_true_tokens = slots.stop
        return len(self._occurrences) - 1, slots.start

    def _compared(self, target: Target) -> Iterator[tuple[bool, int, list[int]]]:
        """Yield the candidates of an occurrence: (is it a swap?, its number, its tokens)."""
        if self._maker is None:
            return
        place = (self._checkpoint.tokenizer, self._corpus, target.item, target.span, self._maker)
        for number, tokens in decoy_tokens(*place, count=self._settings.decoys):
            yield False, number, tokens
        for number, tokens in swap_tokens(*place, count=self._settings.swaps):
            yield True, number, tokens
