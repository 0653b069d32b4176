"""Audit one checkpoint on one corpus: what it recites, exactly, from forward passes alone.

Greedy decoding reproduces an identifier from its left context if and only if the likeliest token
equals the identifier's token at each of its positions, so one pass over a document answers for
every occurrence in it. What stands before a document in training is often unknown and the wrong
guess hides leaks: every plausible framing is tried on a sample, and the worst is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sani.auditing.decoys import DecoyMaker
from sani.auditing.figures import (
    Estimate,
    clustered_mean,
)
from sani.auditing.occurrences import (
    Occurrences,
    OnStep,
    document_windows,
    score_occurrences,
    text_row,
)
from sani.auditing.scoring import score
from sani.checkpoint import Checkpoint
from sani.corpus.documents import KINDS, Corpus
from sani.encoding import Encoded, Framing, encode, framing_named, framings
from sani.errors import AuditError
from sani.rates import Rate, rate
from sani.recipe import AuditSettings

FRAMING_OCCURRENCES = 300
FRAMING_DOCUMENTS = 8


@dataclass(frozen=True)
class Figures:
    """What is recited within one scope (all, a kind, or a label).

    Attributes:
        greedy: Occurrences that greedy decoding from their left context reproduces.
        discoverable: (n, p)-discoverable occurrences under the declared sampler.
        identifiers: Distinct identifiers of a subject of which an occurrence is recited greedily.
        auc: How often the true value is preferred to a decoy; 0.5 for a model that never saw it.
        exposure: Bits, at most log2(decoys + 1).
        log_probability: Mean log-probability of an occurrence, in nats.
    """

    greedy: Rate
    discoverable: Rate
    identifiers: Rate
    auc: Estimate
    exposure: Estimate
    log_probability: Estimate


@dataclass(frozen=True)
class Utility:
    """Skill on held-out documents, on tokens outside spans."""

    tokens: int
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class AuditResult:
    """Everything an audit found.

    Attributes:
        framing: What stood before each document: the worst of those tried.
        framings_tried: Greedy extraction on the sample, by framing.
        figures: By scope: ``all``, ``direct``, ``indirect``, ``label:NAME``, ...
        unscored: Occurrences that could not be scored, by reason.
        without_decoys: Scored occurrences for which no decoy was to be had.
        utility: Skill on held-out documents; None if there are none.
        tokens: Tokens of the corpus.
        seconds: Wall time.
        occurrences: Verdicts one by one.
    """

    framing: str
    framings_tried: dict[str, Rate]
    figures: dict[str, Figures]
    unscored: dict[str, int]
    without_decoys: int
    utility: Utility | None
    tokens: int
    seconds: float
    occurrences: Occurrences = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the single verdicts, as plain data."""
        data = {
            name: getattr(self, name)
            for name in ("framing", "unscored", "without_decoys", "tokens", "seconds")
        }
        data["framings_tried"] = {k: asdict(v) for k, v in self.framings_tried.items()}
        data["figures"] = {k: asdict(v) for k, v in self.figures.items()}
        data["utility"] = asdict(self.utility) if self.utility else None
        return data


def audit(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: AuditSettings | None = None,
    *,
    held_out: Corpus | None = None,
    utility_framing: str | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> AuditResult:
    """Audit a causal language model on the documents it may have been trained on.

    Run it on the base model too, with the same arguments: the excess over it was memorized.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: Documents with spans.
        settings: What is measured; the defaults if None.
        held_out: Documents it was not trained on, for utility.
        utility_framing: What stands before a held-out document, by name; the framing found worst
            if None. Give all checkpoints the same one, or their utilities do not compare.
        seed: Of the decoys and the bootstrap.
        on_step: Called with (batches done, batches in all) of the main pass.

    Raises:
        AuditError: If there is no occurrence, none can be scored, or the model gives NaN.

    Source: discoverable extraction, Carlini et al. 2022 (2202.07646), by teacher forcing;
    (n, p), Hayes et al. 2024; exposure, Carlini et al. 2019. Deviations: the prefix is the whole
    left context instead of 50 tokens; a token that overlaps a span by a character belongs to the
    identifier, so its other characters must be reproduced too.
    """
    settings = settings or AuditSettings()
    started = time.perf_counter()
    if corpus.num_spans == 0:
        raise AuditError(
            f"none of the {len(corpus)} documents has a span: there is nothing to audit, which is "
            "not the same as clean. Annotate the corpus or check its format"
        )
    encoded = encode(corpus, checkpoint.tokenizer)
    framing, tried = _worst_framing(checkpoint, corpus, encoded, settings)
    maker = DecoyMaker([corpus, *([held_out] if held_out else [])], seed=seed)
    occurrences = score_occurrences(
        checkpoint, corpus, encoded, framing, settings, maker=maker, on_step=on_step
    )
    if not occurrences.scored.any():
        raise AuditError(
            f"none of the {corpus.num_spans} occurrences can be scored (by reason: "
            f"{_counts(occurrences)}); nothing can be said of what the model recites"
        )
    return AuditResult(
        framing=framing.name,
        framings_tried=tried,
        figures=_figures(corpus, occurrences, seed=seed),
        unscored=_counts(occurrences),
        without_decoys=int((occurrences.scored & np.isnan(occurrences.auc)).sum()),
        utility=measure_utility(
            checkpoint,
            held_out,
            framing_named(utility_framing or framing.name, checkpoint.tokenizer),
            settings,
        )
        if held_out
        else None,
        tokens=sum(len(item.ids) for item in encoded),
        seconds=time.perf_counter() - started,
        occurrences=occurrences,
    )


def measure_utility(
    checkpoint: Checkpoint, held_out: Corpus, framing: Framing, settings: AuditSettings
) -> Utility:
    """Perplexity and next-token accuracy on tokens that no identifier touches.

    Raises:
        AuditError: If the held-out documents have no such token.
    """
    rows, slots = [], 0
    for item in encode(held_out, checkpoint.tokenizer):
        touched = item.in_span()
        for window in document_windows(checkpoint, item, framing):
            row = text_row(item, window, framing)
            for token in range(window.new, window.end):
                position = len(framing.prefix) + token - window.start - 1
                if position >= 0 and not touched[token]:
                    row.reads.append((position, item.ids[token], slots))
                    slots += 1
            rows.append(row)
    if slots == 0:
        raise AuditError(
            "the held-out documents have no token outside spans; utility cannot be measured"
        )
    scores = score(checkpoint.model, rows, num_slots=slots, batch_tokens=settings.batch_tokens)
    return Utility(
        tokens=slots,
        perplexity=float(np.exp(-scores.log_probability.mean())),
        accuracy=float(scores.greedy.mean()),
    )


def _worst_framing(
    checkpoint: Checkpoint, corpus: Corpus, encoded: Sequence[Encoded], settings: AuditSettings
) -> tuple[Framing, dict[str, Rate]]:
    """The framing under which a sample of documents leaks most, and what each gave."""
    if settings.framing != "auto":
        return framing_named(settings.framing, checkpoint.tokenizer), {}
    with_spans = [item for item in encoded if item.spans]
    num_occurrences = sum(len(item.spans) for item in with_spans)
    step = min(num_occurrences // FRAMING_OCCURRENCES, len(with_spans) // FRAMING_DOCUMENTS)
    sample = with_spans[:: max(1, step)]
    # Where nothing stands before a document, its first token is given away and counts for nothing:
    # an identifier that starts there would look likelier under `none` for that alone.
    whole = np.array([first > 0 for item in sample for first, _ in item.spans])
    best: tuple[float, float] | None = None
    tried: dict[str, Rate] = {}
    chosen = framings(checkpoint.tokenizer)[0]
    for framing in framings(checkpoint.tokenizer):
        found = score_occurrences(checkpoint, corpus, sample, framing, settings)
        scored = found.scored
        tried[framing.name] = rate(int(found.greedy[scored].sum()), int(scored.sum()))
        if scored.any():
            compared = found.log_probability[scored & whole]
            mean = float(compared.mean()) if len(compared) else -np.inf
            key = (float(found.greedy.sum()), mean)
            if best is None or key > best:
                best, chosen = key, framing
    return chosen, tried


def _counts(occurrences: Occurrences) -> dict[str, int]:
    reasons = occurrences.reason[~occurrences.scored]
    return {str(reason): int((reasons == reason).sum()) for reason in np.unique(reasons)}


def _figures(corpus: Corpus, occurrences: Occurrences, *, seed: int) -> dict[str, Figures]:
    pairs = zip(occurrences.document, occurrences.span, strict=True)
    spans = [corpus[document].spans[span] for document, span in pairs]
    kinds = np.array([span.kind for span in spans])
    labels = np.array([span.label for span in spans])
    subjects = {name: number for number, name in enumerate(sorted({d.subject_id for d in corpus}))}
    subject = np.array([subjects[corpus[d].subject_id] for d in occurrences.document])
    numbers: dict[tuple[str, str], int] = {}
    values = np.array(
        [
            numbers.setdefault((span.label, corpus[document].value(span)), len(numbers))
            for document, span in zip(occurrences.document, spans, strict=True)
        ]
    )
    scopes = {"all": np.ones(len(spans), dtype=np.bool_)}
    scopes |= {kind: kinds == kind for kind in KINDS if (kinds == kind).any()}
    scopes |= {f"label:{label}": labels == label for label in sorted(set(labels.tolist()))}
    return {
        name: _figures_of(occurrences, inside & occurrences.scored, subject, values, seed)
        for name, inside in scopes.items()
    }


def _figures_of(
    occurrences: Occurrences,
    inside: NDArray[np.bool_],
    subject: NDArray[np.int64],
    values: NDArray[np.int64],
    seed: int,
) -> Figures:
    trials = int(inside.sum())
    whose = subject[inside]
    keys = np.stack([whose, values[inside]], axis=1)
    recited = keys[occurrences.greedy[inside]]
    return Figures(
        greedy=rate(int(occurrences.greedy[inside].sum()), trials),
        discoverable=rate(int(occurrences.discoverable[inside].sum()), trials),
        identifiers=rate(len(np.unique(recited, axis=0)), len(np.unique(keys, axis=0))),
        auc=clustered_mean(occurrences.auc[inside], whose.tolist(), seed=seed),
        exposure=clustered_mean(occurrences.exposure[inside], whose.tolist(), seed=seed),
        log_probability=clustered_mean(
            occurrences.log_probability[inside], whose.tolist(), seed=seed
        ),
    )
