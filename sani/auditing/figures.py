"""Figures of an audit by scope: all occurrences, a kind, a label, cued or not. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sani.auditing.metrics import (
    discoverable,
    exact_memorization,
    extraction_strength,
    log10_queries,
)
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import KINDS, Corpus
from sani.intervals import Estimate, Rate, clustered_mean, rate
from sani.recipe import AuditSettings

if TYPE_CHECKING:
    import pandas as pd

MAX_QUERIES_POWER = 6  # (n, p) is given for n = 10^0 to 10^6
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BEAM = 10

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """The number of samples until an identifier first comes up.

    Attributes:
        extractable: By number of samples n, 1 to 10^6: occurrences seen with probability p.
        log10_expected: By quantile over occurrences: the expected number of samples to the first
            leak as a power of ten; None where the sampler never draws the identifier.
        never: Occurrences that the sampler never draws.
    """

    extractable: dict[str, Rate]
    log10_expected: dict[str, float | None]
    never: int


@dataclass(frozen=True)
class Figures:
    """Figures of the scored occurrences of one scope. `sani.auditing.metrics` has the formulas.

    Attributes:
        greedy: Occurrences that greedy decoding from their left context reproduces.
        discoverable: (n, p)-discoverable occurrences under the declared sampler.
        queries: The same for every n, and the number of samples until a leak.
        identifiers: Distinct identifiers of a subject, one occurrence of which is recited greedily.
        within_beam: Occurrences each of whose tokens is among the ten likeliest, as a beam search
            of width ten can at most keep.
        worst_rank: Median over occurrences of the rank of the least likely token.
        extraction_strength: Share of an identifier that need not be given away, in [0, 1].
        exact_memorization: Share of an identifier's tokens that are the likeliest, in [0, 1].
        auc: Share of its decoys that the true value beats; 0.5 for a model that never saw it.
        exposure: Exposure in bits, at most log2(decoys + 1).
        accuracy: Share of occurrences in which the true value is the likeliest of all candidates.
        chance: That share by chance, 1 / C for C candidates.
        association: As ``auc``, against values that the corpus gives other subjects: does the
            model give *this* subject's value?
        association_accuracy, association_chance: As ``accuracy`` and ``chance``, likewise.
        log_probability: Mean log-probability of an occurrence, in nats.
    """

    greedy: Rate
    discoverable: Rate
    queries: Queries
    identifiers: Rate
    within_beam: Rate
    worst_rank: float | None
    extraction_strength: Estimate
    exact_memorization: Estimate
    auc: Estimate
    exposure: Estimate
    accuracy: Estimate
    chance: float | None
    association: Estimate
    association_accuracy: Estimate
    association_chance: float | None
    log_probability: Estimate


def figures_by_scope(
    corpus: Corpus, occurrences: Occurrences, settings: AuditSettings, *, seed: int
) -> dict[str, Figures]:
    """Compute the figures of every scope.

    Args:
        corpus: The documents.
        occurrences: Verdicts for all of their occurrences.
        settings: p of the (n, p) figures.
        seed: Seed of the bootstrap.

    Returns:
        Figures by scope: ``all``, ``direct``, ``indirect``, ``direct:cued``, ``direct:uncued``,
        ``label:NAME``, ...
    """
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
    for kind in KINDS:
        if (kinds == kind).any():
            scopes[kind] = kinds == kind
            scopes[f"{kind}:cued"] = (kinds == kind) & occurrences.cued
            scopes[f"{kind}:uncued"] = (kinds == kind) & ~occurrences.cued
    scopes |= {f"label:{label}": labels == label for label in sorted(set(labels.tolist()))}
    token_ranks = occurrences.ranks_of
    by_tokens = {
        "worst_rank": np.array([ranks.max(initial=0) for ranks in token_ranks], dtype=np.float64),
        "extraction_strength": extraction_strength(token_ranks),
        "exact_memorization": exact_memorization(token_ranks),
    }
    return {
        name: _figures_of(
            occurrences, inside & occurrences.scored, subject, values, by_tokens, settings, seed
        )
        for name, inside in scopes.items()
    }


def _figures_of(
    occurrences: Occurrences,
    inside: Bools,
    subject: Ints,
    values: Ints,
    by_tokens: dict[str, Floats],
    settings: AuditSettings,
    seed: int,
) -> Figures:
    """Compute the figures of one scope.

    Args:
        occurrences: All verdicts.
        inside: True for the scored occurrences of the scope, [n].
        subject: Number of each occurrence's subject, [n].
        values: Number of each occurrence's value under its label, [n].
        by_tokens: Figures of each occurrence's tokens, [n] each.
        settings: p of the (n, p) figures.
        seed: Seed of the bootstrap.
    """
    trials = int(inside.sum())
    subjects = subject[inside]
    keys = np.stack([subjects, values[inside]], axis=1)
    recited = keys[occurrences.greedy[inside]]
    worst = by_tokens["worst_rank"][inside]

    def mean(array: Floats) -> Estimate:
        return clustered_mean(array[inside], subjects.tolist(), seed=seed)

    def chance(array: Floats) -> float | None:
        return float(np.nanmean(array[inside])) if np.isfinite(array[inside]).any() else None

    return Figures(
        greedy=rate(int(occurrences.greedy[inside].sum()), trials),
        discoverable=rate(int(occurrences.discoverable[inside].sum()), trials),
        queries=_queries(occurrences.sampled[inside], settings),
        identifiers=rate(len(np.unique(recited, axis=0)), len(np.unique(keys, axis=0))),
        within_beam=rate(int((worst <= BEAM).sum()), trials),
        worst_rank=float(np.median(worst)) if trials else None,
        extraction_strength=mean(by_tokens["extraction_strength"]),
        exact_memorization=mean(by_tokens["exact_memorization"]),
        auc=mean(occurrences.auc),
        exposure=mean(occurrences.exposure),
        accuracy=mean(occurrences.first),
        chance=chance(occurrences.chance),
        association=mean(occurrences.swap_auc),
        association_accuracy=mean(occurrences.swap_first),
        association_chance=chance(occurrences.swap_chance),
        log_probability=mean(occurrences.log_probability),
    )


def _queries(sampled: Floats, settings: AuditSettings) -> Queries:
    """Count the occurrences within reach of so many samples.

    Args:
        sampled: log p of each occurrence under the sampler, in nats, [n].
        settings: p of the (n, p) figures.
    """
    trials = len(sampled)
    extractable = {}
    for queries in (10**power for power in range(MAX_QUERIES_POWER + 1)):
        within = discoverable(sampled, queries=queries, probability=settings.probability)
        extractable[str(queries)] = rate(int(within.sum()), trials)
    expected = np.sort(log10_queries(sampled))
    # An occurrence's own value at each quantile, so that infinity is never averaged.
    at = {q: float(expected[int(q * (trials - 1) + 0.5)]) for q in QUANTILES} if trials else {}
    return Queries(
        extractable=extractable,
        log10_expected={f"{q:g}": value if np.isfinite(value) else None for q, value in at.items()},
        never=int(np.isinf(expected).sum()),
    )


def frame_of(figures: Mapping[str, Figures]) -> pd.DataFrame:
    """Return the main figures as a table, a row a scope: rates and AUC with 95 % intervals."""
    import pandas as pd

    columns = ("greedy", "discoverable", "auc")
    rows = [
        {
            "occurrences": of_scope.greedy.trials,
            **{
                f"{column}{suffix}": getattr(getattr(of_scope, column), attribute)
                for column in columns
                for suffix, attribute in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
        }
        for of_scope in figures.values()
    ]
    return pd.DataFrame(rows, index=pd.Index(list(figures), name="scope"))
