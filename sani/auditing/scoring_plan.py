"""The plan of a scoring: which row of the model's input answers for which occurrence.

`plan_scoring` puts documents into rows and gives every token of every occurrence, and of every
decoy, a slot. After the rows are scored, `ScoringPlan.verdicts` puts the slots together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sani.auditing.cues import CueFinder
from sani.auditing.decoy_tokens import decoy_tokens, swap_tokens
from sani.auditing.metrics import Preference, discoverable, preference
from sani.auditing.occurrences import Occurrences
from sani.auditing.rows import Row, document_windows, text_row
from sani.auditing.teacher_forcing import Scores
from sani.corpus.documents import Corpus
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.framing import Framing
from sani.text.tokens import Encoded, Window
from sani.values.decoys import DecoyMaker


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
        tokens: Its tokens.
        row: The row of text that it belongs to.
        target: The occurrence's tokens in that row.
    """

    occurrence: int
    swap: bool
    tokens: list[int]
    row: Row
    target: Target


@dataclass(frozen=True)
class ScoringPlan:
    """Rows to score, and the slots in which each occurrence finds its scores.

    Slots begin with every token of every occurrence; every token of every candidate follows.

    Attributes:
        rows: Inputs of the model with their reads.
        num_true_tokens: Slots of occurrences.
        num_slots: Slots of occurrences and of candidates.
    """

    rows: list[Row]
    num_true_tokens: int
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
        order = np.lexsort((where[:, 1], where[:, 0]))
        reason = np.array([p.reason for p in planned], dtype=np.str_)
        scored = reason == ""
        true, sampled = np.full(len(planned), np.nan), np.full(len(planned), -np.inf)
        greedy = np.zeros(len(planned), dtype=np.bool_)
        for index in np.flatnonzero(scored):
            tokens = planned[index].slots
            # The chain rule: log p of a value is the sum over its tokens, each behind the others.
            true[index] = scores.log_probability[tokens].sum()
            sampled[index] = scores.sampled[tokens].sum()
            greedy[index] = (scores.rank[tokens] == 1).all()
        within = discoverable(sampled, queries=queries, probability=probability)
        decoys = self._preference(true, scores, swap=False)
        swaps = self._preference(true, scores, swap=True)
        slots = [planned[index].slots for index in order]
        return Occurrences(
            document=where[order, 0],
            span=where[order, 1],
            reason=reason[order],
            cued=np.array([p.cued for p in planned], dtype=np.bool_)[order],
            greedy=greedy[order],
            log_probability=true[order],
            sampled=sampled[order],
            discoverable=(within & scored)[order],
            num_tokens=np.array([s.stop - s.start for s in slots], dtype=np.int64),
            ranks=np.concatenate([scores.rank[:0], *(scores.rank[s] for s in slots)]),
            auc=decoys.auc[order],
            exposure=decoys.exposure[order],
            first=decoys.first[order],
            chance=decoys.chance[order],
            swap_auc=swaps.auc[order],
            swap_first=swaps.first[order],
            swap_chance=swaps.chance[order],
        )

    def _preference(self, true: NDArray[np.float64], scores: Scores, *, swap: bool) -> Preference:
        """Rank each true value among its decoys, or among its swaps."""
        compared: list[list[float]] = [[] for _ in self._occurrences]
        for candidate, slots in self._candidates:
            if candidate.swap == swap:
                total = float(scores.log_probability[slots].sum())
                compared[candidate.occurrence].append(total)
        return preference(true, [np.array(values) for values in compared])


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
        self._capacity = checkpoint.context_tokens
        self._rows: list[Row] = []
        self._occurrences: list[_PlannedOccurrence] = []
        self._candidates: list[_Candidate] = []
        self._num_true_tokens = 0
        # (occurrence, masks) -> the row that answers for every value of so many tokens.
        self._joint_rows: dict[tuple[int, int], Row] = {}

    def add_document(self, item: Encoded) -> None:
        """Put a document's windows into rows, and give each of its occurrences to one of them."""
        framing, waiting = self._framing, list(enumerate(item.spans))
        document = self._corpus[item.document]
        # The text that an encoder reads is before the model's eyes all the time.
        cues = CueFinder(f"{document.text}\n{document.source_text or ''}")
        for window in document_windows(self._checkpoint, item, framing):
            row = text_row(self._checkpoint, item, window, framing)
            if not self._masked:
                self._rows.append(row)
            # The first window that holds all of an occurrence scores it. Later ones begin later,
            # so they have less context before it.
            here = [pair for pair in waiting if pair[1][1] <= window.end]
            waiting = [pair for pair in waiting if pair[1][1] > window.end]
            for span, (first, last) in here:
                before = len(framing.prefix) + first - window.start
                if first == last:
                    self._record(item, span, "no token covers it")
                elif first < window.start:
                    self._record(item, span, "longer than half the context")
                elif before == 0 and last == first + 1 and not self._masked:
                    self._record(item, span, "nothing stands before its only token")
                else:
                    target = Target(item, span, first, last, before)
                    cued = self._is_cued(cues, target, window)
                    if self._masked:
                        self._add_masked(row, target, cued)
                    else:
                        self._add_causal(row, target, cued)
        for span, _ in waiting:
            self._record(item, span, "document without tokens")

    def finish(self) -> ScoringPlan:
        """Add the reads of the candidates, behind those of the occurrences."""
        slot, candidates = self._num_true_tokens, []
        for candidate in self._candidates:
            tokens, target = candidate.tokens, candidate.target
            slots = slice(slot, slot + len(tokens))
            if self._masked:
                self._mask_out(candidate.occurrence, candidate.row, target, tokens, slot)
            else:
                candidate.row.add_branch(target.before - 1, tokens, range(slots.start, slots.stop))
            candidates.append((candidate, slots))
            slot = slots.stop
        return ScoringPlan(self._rows, self._num_true_tokens, slot, self._occurrences, candidates)

    def _is_cued(self, cues: CueFinder, target: Target, window: Window) -> bool:
        """Return True if the text that the model sees gives the occurrence away."""
        item, document = target.item, self._corpus[target.item.document]
        span = document.spans[target.span]
        seen = [(item.starts[window.start], min(span.start, item.starts[target.first]))]
        if self._masked:  # it sees the text behind too
            behind = max(span.end, item.ends[target.last - 1])
            seen.append((behind, item.ends[window.end - 1]))
        if document.source_text is not None:
            begin = len(document.text) + 1
            seen.append((begin, begin + len(document.source_text)))
        return cues.cued(span.start, span.end, seen)

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
        for swap, candidate in self._compared(target):
            if target.before + len(candidate) - 1 <= self._capacity:
                self._candidates.append(_Candidate(occurrence, swap, candidate, row, target))

    def _add_masked(self, row: Row, target: Target, cued: bool) -> None:
        """Add an occurrence of a masked model: a row for each time that tokens are masked.

        Decoys are scored as the occurrence is, each with as many masks as it has tokens.
        """
        tokens = target.item.ids[target.first : target.last]
        occurrence, slot = self._record(
            target.item, target.span, "", num_tokens=len(tokens), cued=cued
        )
        self._mask_out(occurrence, row, target, tokens, slot)
        for swap, candidate in self._compared(target):
            length = len(row.tokens) - len(tokens) + len(candidate)
            if length <= self._capacity:
                self._candidates.append(_Candidate(occurrence, swap, candidate, row, target))

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

    def _compared(self, target: Target) -> Iterator[tuple[bool, list[int]]]:
        """Yield the candidates of an occurrence: (is it another subject's value?, its tokens)."""
        if self._maker is None:
            return
        place = (self._checkpoint.tokenizer, self._corpus, target.item, target.span, self._maker)
        for tokens in decoy_tokens(*place, count=self._settings.decoys):
            yield False, tokens
        for tokens in swap_tokens(*place, count=self._settings.swaps):
            yield True, tokens
