"""Every occurrence of every document, scored: which row of the model's input answers for which.

An occurrence is scored once, with as much context as its window holds. One that cannot be scored
is kept, with the reason; none is dropped. Ranks share the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sani.auditing.cues import CueFinder
from sani.auditing.metrics import Preference, discoverable, preference
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.auditing.teacher_forcing import (
    DEFAULT_READER,
    LogitReader,
    Row,
    ScoreRequest,
    Scores,
    score,
)
from sani.corpus.documents import Corpus
from sani.machine import distributed
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.tokens import Encoded, Framing, Window, windows
from sani.values.decoys import DecoyMaker

CONTEXT_TOKENS = 8
REDRAWN = 8
# Documents are scored in groups of about this many tokens, so that memory does not grow with the
# corpus; within a group they are sorted by length.
GROUP_TOKENS = 2**16


@dataclass(frozen=True)
class Occurrences:
    """Verdicts one by one, in the order of the corpus; numbers only, no values.

    Attributes:
        document: Document number, [n].
        span: Span number within the document, [n].
        reason: Why it could not be scored; empty if it was, [n].
        cued: Whether the text it is asked with gives it away, see `cues`, [n].
        greedy: Reproduced by greedy decoding, [n].
        log_probability: In nats, NaN if not scored, [n].
        sampled: The same under the declared sampler, -inf if it never draws it, [n].
        discoverable: (n, p)-discoverable, [n].
        num_tokens: Tokens scored, 0 if none, [n].
        ranks: Rank of every token scored, 1 for the likeliest, [sum of num_tokens].
        auc: Share of decoys that it beats, NaN without decoys, [n].
        exposure: Bits, NaN without decoys, [n].
        first, chance: Whether it beats all its decoys, and what that is by chance, [n].
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
        """Which occurrences were scored, [n]."""
        return np.asarray(self.reason == "")

    @property
    def ranks_of(self) -> list[NDArray[np.int64]]:
        """The ranks of each occurrence's tokens, n arrays."""
        return np.split(self.ranks, np.cumsum(self.num_tokens)[:-1])


def score_occurrences(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    *,
    maker: DecoyMaker | None = None,
    jointly: bool = False,
    sampler: Sampler = DEFAULT_SAMPLER,
    reader: LogitReader = DEFAULT_READER,
    on_step: OnStep | None = None,
) -> Occurrences:
    """Verdicts for every occurrence of the given documents under one framing.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: All documents; those to score are chosen by ``encoded``.
        encoded: Documents as tokens of this checkpoint's tokenizer, in the order of the corpus.
        framing: What stands around each.
        settings: Queries and decoys.
        maker: Makes decoys and swaps; none are scored if None.
        jointly: For a masked language model: all tokens of an identifier at once, each as if the
            others were not known, instead of one at a time from left to right.
        sampler: How the adversary draws, for the (n, p) verdicts.
        reader: Source of the logits.
        on_step: Called with (documents done, documents in all).

    Returns:
        In the order of documents and spans.

    Raises:
        AuditError: If the model gives NaN or infinity.
    """
    mine = [encoded[index] for index in distributed.shard([len(item.ids) for item in encoded])]
    found = distributed.on_every_rank(
        lambda: _score_share(
            checkpoint, corpus, mine, framing, settings, maker, jointly, sampler, reader, on_step
        )
    )
    return found[0] if len(found) == 1 else _in_order(_joined(found))


def _score_share(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    maker: DecoyMaker | None,
    jointly: bool,
    sampler: Sampler,
    reader: LogitReader,
    on_step: OnStep | None,
) -> Occurrences:
    """What `score_occurrences` gives for the documents of this rank."""
    masked = checkpoint.family.objective == "masked"
    found, done = [], 0
    for group in _groups(encoded):
        placed = _Rows(checkpoint, corpus, framing, maker, settings, masked, jointly)
        for item in group:
            placed.add(item)
        rows = placed.filled()
        # Slots: first every token of every occurrence, then every token of every decoy.
        scores = score(
            checkpoint.model,
            rows,
            num_slots=placed.num_slots,
            batch_tokens=settings.batch_tokens,
            request=ScoreRequest(num_ranked=placed.num_true_tokens, sampler=sampler),
            reader=reader,
        )
        found.append(placed.verdicts(scores))
        done += len(group)
        if on_step is not None:
            on_step(done, len(encoded))
    return _joined(found)


def _groups(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Consecutive documents of about `GROUP_TOKENS` tokens; one empty group if there are none."""
    group: list[Encoded] = []
    tokens = 0
    for item in encoded:
        group.append(item)
        tokens += len(item.ids)
        if tokens >= GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group or not encoded:
        yield group


def _joined(found: Sequence[Occurrences]) -> Occurrences:
    names = [field.name for field in fields(Occurrences)]
    return Occurrences(
        **{name: np.concatenate([getattr(part, name) for part in found]) for name in names}
    )


def _in_order(found: Occurrences) -> Occurrences:
    """The same in the order of documents and spans."""
    order = np.lexsort((found.span, found.document))
    ranks_of = found.ranks_of
    tokens = [found.ranks[:0], *(ranks_of[index] for index in order)]
    arrays = {name: array[order] for name, array in vars(found).items() if name != "ranks"}
    return Occurrences(**arrays, ranks=np.concatenate(tokens))


class _Rows:
    """Which row answers for which occurrence: fills rows, then reads the answers back."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        framing: Framing,
        maker: DecoyMaker | None,
        settings: AuditSettings,
        masked: bool,
        jointly: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._corpus = corpus
        self._framing = framing
        self._maker = maker
        self._settings = settings
        self._masked = masked
        self._jointly = jointly
        self._capacity = checkpoint.context_tokens
        self._where: list[tuple[int, int]] = []
        self._reasons: list[str] = []
        self._cued: list[bool] = []
        self._slots: list[tuple[int, int]] = []
        self.num_true_tokens = 0
        self._rows: list[Row] = []
        self._candidates: list[_Candidate] = []
        self._candidate_slots: list[tuple[_Candidate, int, int]] = []
        # (occurrence, masks) -> the row that answers for every value of so many tokens.
        self._joint_rows: dict[tuple[int, int], Row] = {}

    @property
    def num_slots(self) -> int:
        """Tokens of occurrences and of what they are compared with."""
        return self.num_true_tokens + sum(len(item.tokens) for item in self._candidates)

    def add(self, item: Encoded) -> None:
        """Put a document's windows into rows and give each of its occurrences to one of them."""
        framing, waiting = self._framing, list(enumerate(item.spans))
        document = self._corpus[item.document]
        # What an encoder reads is before the model's eyes all the time.
        cues = CueFinder(f"{document.text}\n{document.source_text or ''}")
        for window in document_windows(self._checkpoint, item, framing):
            row = text_row(self._checkpoint, item, window, framing)
            number = len(self._rows)
            if not self._masked:
                self._rows.append(row)
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
                    tokens = _Tokens(item, span, first, last, before)
                    cued = self._is_cued(cues, tokens, window)
                    if self._masked:
                        self._add_masked(row, tokens, cued)
                    else:
                        self._add_causal(number, tokens, cued)
        for span, _ in waiting:
            self._record(item, span, "document without tokens")

    def _is_cued(self, cues: CueFinder, at: _Tokens, window: Window) -> bool:
        document = self._corpus[at.item.document]
        span = document.spans[at.span]
        seen = [(at.item.starts[window.start], min(span.start, at.item.starts[at.first]))]
        if self._masked:
            behind = max(span.end, at.item.ends[at.last - 1])
            seen.append((behind, at.item.ends[window.end - 1]))
        if document.source_text is not None:
            begin = len(document.text) + 1
            seen.append((begin, begin + len(document.source_text)))
        return cues.cued(span.start, span.end, seen)

    def _add_causal(self, number: int, at: _Tokens, cued: bool) -> None:
        """An occurrence in a row of text; what it is compared with branches off that row."""
        # A first token that nothing stands before is given away: it can only make the rest leak.
        given = int(at.before == 0)
        tokens = at.item.ids[at.first + given : at.last]
        occurrence, slot = self._record(at.item, at.span, "", num_tokens=len(tokens), cued=cued)
        for offset, token in enumerate(tokens):
            position = at.before + given + offset - 1
            self._rows[number].reads.append((position, token, slot + offset))
        if given:
            return
        for swap, candidate in self._compared(at):
            if at.before + len(candidate) - 1 <= self._capacity:
                self._candidates.append(
                    _Candidate(occurrence, swap, candidate, number, at.before - 1)
                )

    def _add_masked(self, row: Row, at: _Tokens, cued: bool) -> None:
        """An occurrence of a masked language model: a row for each time that tokens are masked.

        Decoys are scored as the occurrence is, each with as many masks as it has tokens.
        """
        tokens = at.item.ids[at.first : at.last]
        occurrence, slot = self._record(at.item, at.span, "", num_tokens=len(tokens), cued=cued)
        self._mask_out(occurrence, row, at, tokens, slot)
        for swap, candidate in self._compared(at):
            if len(row.tokens) - len(tokens) + len(candidate) <= self._capacity:
                self._candidates.append(
                    _Candidate(occurrence, swap, candidate, -1, -1, masked=(row, at))
                )

    def _mask_out(
        self, occurrence: int, row: Row, at: _Tokens, tokens: Sequence[int], slot: int
    ) -> None:
        """Rows with ``tokens`` in the identifier's place, masked; answers from ``slot`` on."""
        mask = self._checkpoint.tokenizer.mask_token_id
        left = row.tokens[: at.before]
        right = row.tokens[at.before + at.last - at.first :]
        for known in range(1 if self._jointly else len(tokens)):
            masked = self._joint_rows.get((occurrence, len(tokens)))
            if masked is None:
                masks = [mask] * (len(tokens) - known)
                masked = Row([*left, *tokens[:known], *masks, *right])
                self._rows.append(masked)
                if self._jointly:
                    self._joint_rows[occurrence, len(tokens)] = masked
            asked = tokens if self._jointly else tokens[known : known + 1]
            for offset, token in enumerate(asked, start=known):
                masked.reads.append((at.before + offset, token, slot + offset))

    def _record(
        self, item: Encoded, span: int, reason: str, *, num_tokens: int = 0, cued: bool = False
    ) -> tuple[int, int]:
        """Enter an occurrence; its number and the first of the slots it gets."""
        self._where.append((item.document, span))
        self._reasons.append(reason)
        self._cued.append(cued)
        self._slots.append((self.num_true_tokens, self.num_true_tokens + num_tokens))
        self.num_true_tokens += num_tokens
        return len(self._where) - 1, self._slots[-1][0]

    def _compared(self, at: _Tokens) -> Iterator[tuple[bool, list[int]]]:
        """What an occurrence is compared with: (is it another subject's value?, its tokens)."""
        if self._maker is None:
            return
        maker, document = self._maker, self._corpus[at.item.document]
        where = document.spans[at.span]
        value = document.value(where)

        def decoys(count: int) -> list[str]:
            return maker.decoys(where.label, value, count=count)

        def swaps(count: int) -> list[str]:
            return maker.swaps(where.label, value, document.subject_id, count=count)

        for swap, draw, count in (
            (False, decoys, self._settings.decoys),
            (True, swaps, self._settings.swaps),
        ):
            for tokens in self._in_place(at, draw, count):
                yield swap, tokens

    def _in_place(
        self, at: _Tokens, draw: Callable[[int], list[str]], count: int
    ) -> list[list[int]]:
        """Each value as the tokens it would have in this document, between the same neighbours.

        A value that would merge with the token before it cannot follow the context as it stands:
        it is left out, and more are drawn where that leaves too few.
        """
        item, document = at.item, self._corpus[at.item.document]
        where = document.spans[at.span]
        lead = max(0, at.first - CONTEXT_TOKENS)
        begin = item.ends[lead - 1] if lead else 0
        head = document.text[begin : where.start]
        tail = document.text[where.end : item.ends[at.last - 1]]
        # The identifier's first token may start before the span: what stands before it is context.
        context_end = (item.ends[at.first - 1] if at.first else 0) - begin
        found: list[list[int]] = []
        for drawn in (count, REDRAWN * count):
            values = draw(drawn) if count else []
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
                follows = not at.first or (
                    known > 0
                    and offsets[known - 1][1] == context_end
                    and ids[known - 1] == item.ids[at.first - 1]
                )
                if follows and known < len(ids):
                    found.append(ids[known:])
            if len(found) >= count:
                break
        return found[:count]

    def filled(self) -> list[Row]:
        """The rows, with what occurrences are compared with in its place."""
        slot = self.num_true_tokens
        for candidate in self._candidates:
            tokens = candidate.tokens
            self._candidate_slots.append((candidate, slot, slot + len(tokens)))
            if candidate.masked is not None:
                self._mask_out(candidate.occurrence, *candidate.masked, tokens, slot)
            else:
                row = self._rows[candidate.row]
                row.add_branch(candidate.position, tokens, range(slot, slot + len(tokens)))
            slot += len(tokens)
        return self._rows

    def verdicts(self, scores: Scores) -> Occurrences:
        """Put the answers together, occurrence by occurrence, in the order of the corpus."""
        where = np.array(self._where, dtype=np.int64).reshape(-1, 2)
        order = np.lexsort((where[:, 1], where[:, 0]))
        reason = np.array(self._reasons, dtype=np.str_)
        scored = reason == ""
        true, sampled = np.full(len(reason), np.nan), np.full(len(reason), -np.inf)
        greedy = np.zeros(len(reason), dtype=np.bool_)
        for index in np.flatnonzero(scored):
            tokens = slice(*self._slots[index])
            true[index] = scores.log_probability[tokens].sum()
            sampled[index] = scores.sampled[tokens].sum()
            greedy[index] = (scores.rank[tokens] == 1).all()
        found = discoverable(
            sampled, queries=self._settings.queries, probability=self._settings.probability
        )
        decoys = self._preference(true, scores, swap=False)
        swaps = self._preference(true, scores, swap=True)
        slots = [slice(*self._slots[index]) for index in order]
        return Occurrences(
            document=where[order, 0],
            span=where[order, 1],
            reason=reason[order],
            cued=np.array(self._cued, dtype=np.bool_)[order],
            greedy=greedy[order],
            log_probability=true[order],
            sampled=sampled[order],
            discoverable=(found & scored)[order],
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
        compared: list[list[float]] = [[] for _ in self._where]
        for candidate, start, end in self._candidate_slots:
            if candidate.swap == swap:
                total = float(scores.log_probability[start:end].sum())
                compared[candidate.occurrence].append(total)
        return preference(true, [np.array(values) for values in compared])


@dataclass(frozen=True)
class _Tokens:
    """An occurrence's tokens [first, last) of a document, with ``before`` tokens in their row."""

    item: Encoded
    span: int
    first: int
    last: int
    before: int


@dataclass(frozen=True)
class _Candidate:
    """A decoy or another subject's value, and where it is scored."""

    occurrence: int
    swap: bool
    tokens: list[int]
    row: int
    position: int
    masked: tuple[Row, _Tokens] | None = None


def document_windows(checkpoint: Checkpoint, item: Encoded, framing: Framing) -> list[Window]:
    """The windows of a document that, framed, fit the model; none for one without tokens."""
    capacity = checkpoint.context_tokens - len(framing.prefix) - len(framing.suffix)
    return windows(len(item.ids), item=item.document, capacity=capacity) if item.ids else []


def text_row(checkpoint: Checkpoint, item: Encoded, window: Window, framing: Framing) -> Row:
    """A framed window as an input of the model."""
    tokens = [*framing.prefix, *item.ids[window.start : window.end], *framing.suffix]
    return Row(tokens, source=item.source_within(checkpoint.context_tokens))
