"""Every occurrence of every document, scored: which row of the model's input answers for which.

An occurrence is scored once, with as much left context as its window holds. One that cannot be
scored is kept, with the reason; none is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sani.auditing.decoys import DecoyMaker
from sani.auditing.figures import discoverable, discrimination
from sani.auditing.scoring import Row, score
from sani.checkpoint import Checkpoint
from sani.corpus.documents import Corpus
from sani.encoding import Encoded, Framing, Window, windows
from sani.recipe import AuditSettings

CONTEXT_TOKENS = 8
REDRAWN = 8
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Occurrences:
    """Verdicts one by one, in the order of the corpus; numbers only, no values.

    Attributes:
        document: Document number, [n].
        span: Span number within the document, [n].
        reason: Why it could not be scored; empty if it was, [n].
        greedy: Reproduced by greedy decoding, [n].
        discoverable: (n, p)-discoverable, [n].
        log_probability: In nats, NaN if not scored, [n].
        auc: Share of decoys that it beats, NaN without decoys, [n].
        exposure: Bits, NaN without decoys, [n].
    """

    document: NDArray[np.int64]
    span: NDArray[np.int64]
    reason: NDArray[np.str_]
    greedy: NDArray[np.bool_]
    discoverable: NDArray[np.bool_]
    log_probability: NDArray[np.float64]
    auc: NDArray[np.float64]
    exposure: NDArray[np.float64]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Which occurrences were scored, [n]."""
        return np.asarray(self.reason == "")


def score_occurrences(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    *,
    maker: DecoyMaker | None = None,
    on_step: OnStep | None = None,
) -> Occurrences:
    """Verdicts for every occurrence of the given documents under one framing.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: All documents; those to score are chosen by ``encoded``.
        encoded: Documents as tokens of this checkpoint's tokenizer.
        framing: What stands before each.
        settings: Sampler, queries and decoys.
        maker: Makes the decoys; none are scored if None.
        on_step: Called with (batches done, batches in all).

    Returns:
        In the order of documents and spans.

    Raises:
        AuditError: If the model gives NaN or infinity.
    """
    placed = _Rows(checkpoint, corpus, framing, maker, settings.decoys)
    for item in encoded:
        placed.add(item)
    # Slots: first every token of every occurrence, then every token of every decoy.
    scores = score(
        checkpoint.model,
        placed.filled(),
        num_slots=placed.num_true_tokens + placed.num_decoy_tokens,
        batch_tokens=settings.batch_tokens,
        sampler=settings.sampler,
        num_sampled=placed.num_true_tokens,
        on_step=on_step,
    )
    return placed.verdicts(scores.log_probability, scores.sampled, scores.greedy, settings)


class _Rows:
    """Which row answers for which occurrence: fills rows, then reads the answers back."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        framing: Framing,
        maker: DecoyMaker | None,
        num_decoys: int,
    ) -> None:
        self._checkpoint = checkpoint
        self._corpus = corpus
        self._framing = framing
        self._maker = maker
        self._num_decoys = num_decoys
        self._where: list[tuple[int, int]] = []
        self._reasons: list[str] = []
        self._slots: list[tuple[int, int]] = []
        self.num_true_tokens = 0
        self._rows: list[Row] = []
        # (row, position, decoy tokens, occurrence)
        self._branches: list[tuple[int, int, list[int], int]] = []
        self.num_decoy_tokens = 0
        self._decoy_slots: list[tuple[int, int, int]] = []

    def add(self, item: Encoded) -> None:
        """Put a document's windows into rows and give each of its occurrences to one of them."""
        framing, waiting = self._framing, list(enumerate(item.spans))
        cut = document_windows(self._checkpoint, item, framing)
        for window in cut:
            row, number = text_row(item, window, framing), len(self._rows)
            self._rows.append(row)
            here = [pair for pair in waiting if pair[1][1] <= window.end]
            waiting = [pair for pair in waiting if pair[1][1] > window.end]
            for span, (first, last) in here:
                if first == last:
                    self._record(item, span, "no token covers it", 0)
                elif first < window.start:
                    self._record(item, span, "longer than half the context", 0)
                else:
                    before = len(framing.prefix) + first - window.start
                    self._add_occurrence(item, number, span, first, last, before)
        for span, _ in waiting:
            self._record(item, span, "document without tokens", 0)

    def _add_occurrence(
        self, item: Encoded, number: int, span: int, first: int, last: int, before: int
    ) -> None:
        """One occurrence: its tokens' reads, and its decoys; ``before`` tokens stand in front."""
        # A first token that nothing stands before is given away: it can only make the rest leak.
        given = before == 0
        if given and last - first == 1:
            self._record(item, span, "nothing stands before its only token", 0)
            return
        tokens = item.ids[first + given : last]
        occurrence, slot = self._record(item, span, "", len(tokens))
        for offset, token in enumerate(tokens):
            at = before + given + offset - 1
            self._rows[number].reads.append((at, token, slot + offset))
        if self._maker is not None and not given:
            for decoy in self._decoy_tokens(item, span, first, last):
                if before + len(decoy) - 1 <= self._checkpoint.context_tokens:
                    self._branches.append((number, before - 1, decoy, occurrence))
                    self.num_decoy_tokens += len(decoy)

    def _record(self, item: Encoded, span: int, reason: str, tokens: int) -> tuple[int, int]:
        """Enter an occurrence; its number and the first of the ``tokens`` slots it gets."""
        self._where.append((item.document, span))
        self._reasons.append(reason)
        self._slots.append((self.num_true_tokens, self.num_true_tokens + tokens))
        self.num_true_tokens += tokens
        return len(self._where) - 1, self._slots[-1][0]

    def _decoy_tokens(self, item: Encoded, span: int, first: int, last: int) -> list[list[int]]:
        """Each decoy as the tokens it would have in this document, between the same neighbours.

        A decoy that would merge with the token before it cannot follow the context as it stands:
        it is left out, and more are drawn where that leaves too few.
        """
        if self._maker is None:
            return []
        document = self._corpus[item.document]
        where = document.spans[span]
        lead = max(0, first - CONTEXT_TOKENS)
        begin = item.ends[lead - 1] if lead else 0
        head = document.text[begin : where.start]
        tail = document.text[where.end : item.ends[last - 1]]
        # The identifier's first token may start before the span: what stands before it is context.
        context_end = (item.ends[first - 1] if first else 0) - begin
        found: list[list[int]] = []
        for count in (self._num_decoys, REDRAWN * self._num_decoys):
            values = self._maker.decoys(where.label, document.value(where), count=count)
            if not values:
                return []
            encodings = self._checkpoint.tokenizer(
                [head + value + tail for value in values],
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            found = []
            for ids, offsets in zip(
                encodings["input_ids"], encodings["offset_mapping"], strict=True
            ):
                known = sum(end <= context_end for _, end in offsets)
                follows = not first or (
                    known > 0
                    and offsets[known - 1][1] == context_end
                    and ids[known - 1] == item.ids[first - 1]
                )
                if follows and known < len(ids):
                    found.append(ids[known:])
            if len(found) >= self._num_decoys:
                break
        return found[: self._num_decoys]

    def filled(self) -> list[Row]:
        """The rows, with decoys behind the text; a crowded row is read again for the rest."""
        slot = self.num_true_tokens
        rows = list(self._rows)
        current: dict[int, Row] = {}
        for number, position, tokens, occurrence in self._branches:
            row = current.get(number, self._rows[number])
            if len(row.tokens) + len(tokens) > max(2 * row.text_length, row.text_length + 512):
                row = Row.of_text(row.tokens[: row.text_length])
                rows.append(row)
            current[number] = row
            row.add_branch(position, tokens, range(slot, slot + len(tokens)))
            self._decoy_slots.append((occurrence, slot, slot + len(tokens)))
            slot += len(tokens)
        return rows

    def verdicts(
        self,
        log_probability: NDArray[np.float64],
        sampled: NDArray[np.float64],
        greedy: NDArray[np.bool_],
        settings: AuditSettings,
    ) -> Occurrences:
        """Put the answers together, occurrence by occurrence."""
        reason = np.array(self._reasons, dtype=np.str_)
        scored = reason == ""
        true, drawn = np.full(len(reason), np.nan), np.full(len(reason), -np.inf)
        recited = np.zeros(len(reason), dtype=np.bool_)
        for index in np.flatnonzero(scored):
            tokens = slice(*self._slots[index])
            true[index] = log_probability[tokens].sum()
            drawn[index] = sampled[tokens].sum()
            recited[index] = greedy[tokens].all()
        decoys: list[list[float]] = [[] for _ in self._where]
        for occurrence, start, end in self._decoy_slots:
            decoys[occurrence].append(float(log_probability[start:end].sum()))
        auc, exposure = discrimination(true, [np.array(values) for values in decoys])
        where = np.array(self._where, dtype=np.int64).reshape(-1, 2)
        found = discoverable(drawn, queries=settings.queries, probability=settings.probability)
        order = np.lexsort((where[:, 1], where[:, 0]))
        return Occurrences(
            document=where[order, 0],
            span=where[order, 1],
            reason=reason[order],
            greedy=recited[order],
            discoverable=(found & scored)[order],
            log_probability=true[order],
            auc=auc[order],
            exposure=exposure[order],
        )


def document_windows(checkpoint: Checkpoint, item: Encoded, framing: Framing) -> list[Window]:
    """The windows of a document that, framed, fit the model; none for one without tokens."""
    capacity = checkpoint.context_tokens - len(framing.prefix)
    return windows(len(item.ids), item=item.document, capacity=capacity) if item.ids else []


def text_row(item: Encoded, window: Window, framing: Framing) -> Row:
    """A framed window as an input of the model."""
    return Row.of_text([*framing.prefix, *item.ids[window.start : window.end]])
