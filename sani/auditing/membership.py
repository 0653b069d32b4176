"""Membership inference: telling the documents, or the subjects, that were trained on.

Every attack turns a document into one number, higher for a member. Members are documents of the
corpus, non-members the held-out ones; how they differ beside training (topic, length) tells them
apart too, so the same attack on the base model is the control.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sani.auditing.membership_by_reference import reference_attacks
from sani.auditing.rows import Row, text_row
from sani.auditing.teacher_forcing import ScoreRequest, score
from sani.corpus.documents import Corpus
from sani.intervals import BOOTSTRAP_ROUNDS, Estimate, Rate, rate
from sani.machine import distributed
from sani.models.checkpoint import Checkpoint
from sani.text.framing import Framing
from sani.text.packing import framed_windows
from sani.text.tokens import Encoded, Window

LOWEST_SHARE = 0.2  # of the tokens, that min-k and min-k++ average; both papers' choice
FALSE_POSITIVE_RATES = (0.01, 0.001)
# A masked language model scores every token, an eighth of them masked at a time.
MASKED_GROUPS = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TokenScores:
    """Scores of every token of some documents, framing left out.

    Attributes:
        document: Number of the token's document, [t].
        in_span: True where an identifier touches it, [t].
        log_probability: log p given the tokens before it (or around it, masked), in nats, [t].
        likeliest: True where no token is likelier, [t].
        mean, deviation: Mean and deviation of log p over the vocabulary at its position, [t].
    """

    document: NDArray[np.int64]
    in_span: NDArray[np.bool_]
    log_probability: Floats
    likeliest: NDArray[np.bool_]
    mean: Floats
    deviation: Floats


@dataclass(frozen=True)
class DocumentScores:
    """One number a document and attack, higher for a member; numbers only.

    Attributes:
        member: True for documents of the corpus, [d].
        document: Its number in the corpus or in the held-out documents, [d].
        subject: Number of its subject, [d].
        num_tokens: [d].
        loss: Mean log-probability, in nats, [d].
        zlib: Log-probability per byte that zlib makes of the text, [d].
        min_k: Mean of the lowest fifth of the log-probabilities, [d].
        min_k_plus: The same after subtracting the mean over the vocabulary at each place and
            dividing by its deviation, [d].
        token_log_probability: log p of every token, document after document, in nats, [t].
        token_likeliest: True where no token is likelier, [t].
    """

    member: NDArray[np.bool_]
    document: NDArray[np.int64]
    subject: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    loss: Floats
    zlib: Floats
    min_k: Floats
    min_k_plus: Floats
    token_log_probability: Floats
    token_likeliest: NDArray[np.bool_]


@dataclass(frozen=True)
class Attack:
    """Figures of one attack that tells members from non-members.

    Attributes:
        auc: Area under the ROC curve with a 95 % bootstrap interval, subjects resampled whole;
            0.5 is chance.
        either_way: max(auc, 1 - auc): whoever sees the scores may read them the other way round.
        tpr: By false positive rate: members found with at most that share of false alarms.
    """

    auc: Estimate
    either_way: float
    tpr: dict[str, Rate]


@dataclass(frozen=True)
class Membership:
    """All attacks, by level (``document``, ``subject``) and name.

    Attributes:
        members, non_members: Documents of each.
        member_subjects, non_member_subjects: Subjects of each.
        attacks: ``attacks["subject"]["loss"]`` and so on.
        warnings: Claims for which the sample is too small.
    """

    members: int
    non_members: int
    member_subjects: int
    non_member_subjects: int
    attacks: dict[str, dict[str, Attack]]
    warnings: list[str]


def score_tokens(
    checkpoint: Checkpoint, encoded: Sequence[Encoded], framing: Framing, *, batch_tokens: int
) -> TokenScores:
    """Score every token of the given documents once, but a first token that nothing precedes.

    Args:
        checkpoint: The model and its tokenizer.
        encoded: Documents as tokens, in the order of the corpus. Processes share them.
        framing: The tokens around each document.
        batch_tokens: Maximum number of tokens in a forward pass.
    """
    shard = distributed.shard([len(item.ids) for item in encoded])
    own = [encoded[index] for index in shard]
    parts = distributed.on_every_rank(lambda: _score_shard(checkpoint, own, framing, batch_tokens))
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([part.document for part in parts]), kind="stable")
    return TokenScores(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])[order]
            for name in vars(parts[0])
        }
    )


def _score_shard(
    checkpoint: Checkpoint, encoded: Sequence[Encoded], framing: Framing, batch_tokens: int
) -> TokenScores:
    """Score the documents of this process."""
    masked = checkpoint.family.objective == "masked"
    rows: list[Row] = []
    where: list[tuple[int, bool]] = []
    for item in encoded:
        touched = item.in_span()
        for framed in framed_windows(item, framing, context_tokens=checkpoint.context_tokens):
            row = text_row(checkpoint, item, framed)
            window, lead = framed.window, len(framed.before)
            targets = [
                token
                for token in range(window.new, window.end)
                if masked or lead + token - window.start > 0
            ]
            for group in range(MASKED_GROUPS) if masked else [0]:
                # Every eighth token, so that the masked ones have the others around them.
                scored = targets[group::MASKED_GROUPS] if masked else targets
                rows.append(_row(checkpoint, item, row, window, lead, scored, len(where)))
                where.extend((item.document, touched[token]) for token in scored)
    scores = score(
        checkpoint.model,
        rows,
        num_slots=len(where),
        batch_tokens=batch_tokens,
        request=ScoreRequest(num_sampled=len(where), moments=True),
    )
    return TokenScores(
        document=np.array([document for document, _ in where], dtype=np.int64),
        in_span=np.array([inside for _, inside in where], dtype=np.bool_),
        log_probability=scores.log_probability,
        likeliest=scores.likeliest,
        mean=scores.mean,
        deviation=scores.deviation,
    )


def _row(
    checkpoint: Checkpoint,
    item: Encoded,
    text: Row,
    window: Window,
    lead: int,
    scored: Sequence[int],
    slot: int,
) -> Row:
    """Return a row that scores these tokens of a document; a masked model's are masked.

    Args:
        checkpoint: The model and its tokenizer.
        item: The document as tokens.
        text: The framed window.
        window: The window.
        lead: Tokens of the framing before it.
        scored: Tokens of the document to score.
        slot: The slot of the first of them.
    """
    masked = checkpoint.family.objective == "masked"
    row = Row(list(text.tokens), source=text.source)
    for offset, token in enumerate(scored):
        position = lead + token - window.start
        row.reads.append((position if masked else position - 1, item.ids[token], slot + offset))
        if masked:
            row.tokens[position] = checkpoint.tokenizer.mask_token_id
    return row


def score_documents(
    tokens: TokenScores, corpus: Corpus, *, member: bool, subjects: dict[str, int]
) -> DocumentScores:
    """Compute every attack's score for every document that has a token scored.

    With log p_t of token t, nats: loss = mean_t log p_t; zlib = sum_t log p_t / bytes of
    zlib(text); min-k = mean of the lowest 20 % of log p_t; min-k++ = the same of (log p_t - mu_t) /
    sigma_t, mu_t and sigma_t the mean and deviation of log p over the vocabulary at t.

    Args:
        tokens: Scores of tokens, from `score_tokens`.
        corpus: The documents.
        member: True if these were trained on.
        subjects: Numbers of subjects; new ones are entered, in place.

    Sources: loss, Yeom et al. 2018; zlib, Carlini et al. 2021; min-k, Shi et al. 2024 (k 20 %);
    min-k++, Zhang et al. 2024. Deviations: none.
    """
    order = np.argsort(tokens.document, kind="stable")
    numbers, starts = np.unique(tokens.document[order], return_index=True)
    rows: list[tuple[float, float, float, float, int]] = []
    for number, place in zip(numbers, np.split(order, starts[1:]), strict=True):
        log_p = tokens.log_probability[place]
        spread = np.maximum(tokens.deviation[place], 1e-6)
        text = corpus[int(number)].text.encode("utf-8", "surrogatepass")
        rows.append(
            (
                float(log_p.mean()),
                float(log_p.sum() / len(zlib.compress(text))),
                _mean_of_lowest(log_p),
                _mean_of_lowest((log_p - tokens.mean[place]) / spread),
                len(place),
            )
        )
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    whose = [subjects.setdefault(corpus[int(n)].subject_id, len(subjects)) for n in numbers]
    return DocumentScores(
        member=np.full(len(numbers), member),
        document=numbers,
        subject=np.array(whose, dtype=np.int64),
        num_tokens=table[:, 4].astype(np.int64),
        loss=table[:, 0],
        zlib=table[:, 1],
        min_k=table[:, 2],
        min_k_plus=table[:, 3],
        token_log_probability=tokens.log_probability[order],
        token_likeliest=tokens.likeliest[order],
    )


def _mean_of_lowest(values: Floats) -> float:
    """Return the mean of the lowest fifth of the values, of one value at least."""
    count = max(1, int(LOWEST_SHARE * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


def join_documents(one: DocumentScores, other: DocumentScores) -> DocumentScores:
    """Return members and non-members together."""
    return DocumentScores(
        **{name: np.concatenate([array, vars(other)[name]]) for name, array in vars(one).items()}
    )


def membership(
    scores: DocumentScores, *, reference: DocumentScores | None = None, seed: int
) -> Membership | None:
    """Measure how well members can be told from non-members.

    Args:
        scores: Document scores of the checkpoint.
        reference: Document scores of the base; adds the attacks of `reference_attacks`.
        seed: Seed of the bootstrap.

    Returns:
        The figures of every attack; None if there are no members or no non-members.

    Raises:
        ValueError: If the reference is of other documents.
    """
    member = scores.member
    if member.all() or not member.any():
        return None
    values = {name: vars(scores)[name] for name in ("loss", "zlib", "min_k", "min_k_plus")}
    if reference is not None:
        values |= reference_attacks(scores, reference)
    subjects, subject = np.unique(
        np.stack([scores.subject, member], axis=1), axis=0, return_inverse=True
    )
    subject = subject.reshape(-1)
    weight = np.bincount(subject, weights=scores.num_tokens)
    attacks: dict[str, dict[str, Attack]] = {"document": {}, "subject": {}}
    for name, value in values.items():
        attacks["document"][name] = _attack(value, member, subject, seed)
        mean = np.bincount(subject, weights=value * scores.num_tokens) / weight
        of_member = subjects[:, 1] == 1
        attacks["subject"][name] = _attack(mean, of_member, np.arange(len(mean)), seed)
    counts = (int(member.sum()), int((~member).sum()))
    by_subject = (int((subjects[:, 1] == 1).sum()), int((subjects[:, 1] == 0).sum()))
    warnings = [
        f"TPR at {fpr:.1%} FPR by {level}: {negatives} non-members are too few for that rate, "
        f"{round(1 / fpr)} are needed"
        for level, negatives in (("document", counts[1]), ("subject", by_subject[1]))
        for fpr in FALSE_POSITIVE_RATES
        if negatives < 1 / fpr
    ]
    return Membership(*counts, *by_subject, attacks, warnings)


def _attack(
    values: Floats, member: NDArray[np.bool_], cluster: NDArray[np.int64], seed: int
) -> Attack:
    auc = _area(values, member, cluster, seed)
    area = auc.value if auc.value is not None else 0.5
    outside = np.sort(values[~member])[::-1]
    true_positives = {}
    for fpr in FALSE_POSITIVE_RATES:
        # Above this value lie at most the allowed share of the non-members.
        threshold = outside[int(fpr * len(outside))]
        true_positives[f"{fpr:g}"] = rate(
            int((values[member] > threshold).sum()), int(member.sum())
        )
    return Attack(auc, max(area, 1 - area), true_positives)


def _area(
    values: Floats, member: NDArray[np.bool_], cluster: NDArray[np.int64], seed: int
) -> Estimate:
    """Compute the area under the ROC curve, ties half, with an interval over resampled clusters.

    Args:
        values: Score of each document or subject, [n].
        member: True for members, [n].
        cluster: Number of each one's subject, [n]. Members' and others' clusters are resampled
            apart.
        seed: Seed of the bootstrap.
    """
    # The area is the Mann-Whitney statistic: the share of pairs in the right order.
    ranks = stats.rankdata(np.concatenate([values[member], values[~member]]))
    inside, outside = int(member.sum()), int((~member).sum())
    area = (ranks[:inside].sum() - inside * (inside + 1) / 2) / (inside * outside)
    # wins[i, j]: pairs of cluster i's members and cluster j's others that are in the right order.
    rows, row_of = np.unique(cluster[member], return_inverse=True)
    columns, column_of = np.unique(cluster[~member], return_inverse=True)
    if len(rows) == 1 or len(columns) == 1:
        return Estimate(inside + outside, float(area), None, None)
    # A round of the bootstrap then is a bilinear form in the two counts of drawn clusters, instead
    # of a new ranking of all values.
    others = np.sort(values[~member])
    order = np.argsort(values[~member], kind="stable")
    below = np.zeros((outside + 1, len(columns)))
    below[1:] = np.cumsum(np.eye(len(columns))[column_of[order]], axis=0)
    strictly = below[np.searchsorted(others, values[member], side="left")]
    at_most = below[np.searchsorted(others, values[member], side="right")]
    wins = np.zeros((len(rows), len(columns)))
    np.add.at(wins, row_of, (strictly + at_most) / 2)
    chance = np.random.default_rng(seed)
    drawn = [
        chance.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_ROUNDS)
        for count in wins.shape
    ]
    pairs = (drawn[0] @ np.bincount(row_of)) * (drawn[1] @ np.bincount(column_of))
    areas = np.einsum("ri,ij,rj->r", drawn[0], wins, drawn[1], optimize=True) / pairs
    low, high = np.quantile(areas, [0.025, 0.975])
    return Estimate(inside + outside, float(area), float(low), float(high))


def sampled_documents(encoded: Sequence[Encoded], max_documents: int) -> list[Encoded]:
    """Return at most so many documents, evenly spaced over the corpus."""
    if len(encoded) <= max_documents:
        return list(encoded)
    chosen = np.linspace(0, len(encoded) - 1, max_documents).round().astype(int)
    return [encoded[index] for index in np.unique(chosen)]
