"""Score every occurrence of every document under one framing, by teacher forcing.

An occurrence is scored once, with as much context as its window holds. One that cannot be scored
stays in the result with the reason; none is dropped. Several processes share the documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sani.auditing.occurrences import COMPARED, Occurrences, join_occurrences
from sani.auditing.sampler import DEFAULT_SAMPLER, Sampler
from sani.auditing.scoring_plan import plan_scoring
from sani.auditing.teacher_forcing import DEFAULT_READER, LogitReader, ScoreRequest, score
from sani.corpus.documents import Corpus
from sani.machine import distributed
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.framing import Framing
from sani.text.tokens import Encoded
from sani.values.decoys import DecoyMaker

# Documents are scored in groups of about this many tokens, so that memory does not grow with the
# corpus; within a group they are sorted by length.
GROUP_TOKENS = 2**16


def score_occurrences(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    *,
    maker: DecoyMaker | None = None,
    jointly: bool = False,
    sampler: Sampler | None = DEFAULT_SAMPLER,
    reader: LogitReader = DEFAULT_READER,
    on_step: OnStep | None = None,
) -> Occurrences:
    """Compute the verdicts for every occurrence of the given documents under one framing.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: All documents; those to score are chosen by ``encoded``.
        encoded: Documents as tokens of this checkpoint's tokenizer, in the order of the corpus.
        framing: The tokens around each document.
        settings: Number of queries and of decoys.
        maker: Makes decoys and swaps; none are scored if None.
        jointly: For a masked language model: mask all tokens of an identifier at once, each scored
            as if the others were not known, instead of one at a time from left to right.
        sampler: Temperature, top-k and top-p of the (n, p) verdicts; None for none of these.
        reader: Source of the logits.
        on_step: Called with (documents done, documents in all).

    Returns:
        Verdicts in the order of documents and spans.

    Raises:
        AuditError: If the model gives NaN or infinity.
    """
    shard = distributed.shard([len(item.ids) for item in encoded])
    own_documents = [encoded[index] for index in shard]

    def score_shard() -> Occurrences:
        parts, done = [], 0
        for group in _groups(own_documents):
            plan = plan_scoring(
                checkpoint, corpus, group, framing, settings, maker=maker, jointly=jointly
            )
            scores = score(
                checkpoint.model,
                plan.rows,
                num_slots=plan.num_slots,
                batch_tokens=settings.batch_tokens,
                # Decoys need no rank, and swaps are compared by log-probability alone.
                request=ScoreRequest(
                    num_ranked=plan.num_true_tokens,
                    num_sampled=plan.num_sampled_tokens,
                    sampler=sampler,
                ),
                reader=reader,
            )
            parts.append(
                plan.verdicts(scores, queries=settings.queries, probability=settings.probability)
            )
            done += len(group)
            if on_step is not None:
                on_step(done, len(own_documents))
        return join_occurrences(parts)

    shards = distributed.on_every_rank(score_shard)
    return shards[0] if len(shards) == 1 else join_occurrences(shards).in_order()


def score_both_ways(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    *,
    maker: DecoyMaker | None = None,
    sampler: Sampler | None = DEFAULT_SAMPLER,
    on_step: OnStep | None = None,
) -> tuple[Occurrences, Occurrences | None]:
    """Score all occurrences; for a masked model, also with all tokens masked jointly.

    Decoys of a masked language model are scored jointly, which takes a pass for each length
    instead of one for each token of each decoy; both results carry those figures.

    Returns:
        The verdicts with tokens masked one at a time (or those of a causal model), and jointly
        (None for a causal model).
    """
    if checkpoint.family.objective != "masked":
        occurrences = score_occurrences(
            checkpoint, corpus, encoded, framing, settings,
            maker=maker, sampler=sampler, on_step=on_step,
        )  # fmt: skip
        return occurrences, None
    jointly = score_occurrences(
        checkpoint, corpus, encoded, framing, settings,
        maker=maker, jointly=True, sampler=sampler,
    )  # fmt: skip
    one_at_a_time = score_occurrences(
        checkpoint, corpus, encoded, framing, settings, sampler=sampler, on_step=on_step
    )
    return replace(one_at_a_time, **{name: getattr(jointly, name) for name in COMPARED}), jointly


def _groups(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Yield consecutive documents of about `GROUP_TOKENS` tokens; one empty group if none."""
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
