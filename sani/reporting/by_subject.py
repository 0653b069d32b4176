"""Leakage by subject, and occurrence by occurrence against the control.

Counts only: what 100,000 occurrences say fits a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from sani.auditing.compare import extracted
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import KINDS, Corpus, Kind
from sani.reporting.schema import (
    Cells,
    LogProbScatter,
    Stage,
    Subject,
    Subjects,
    SubjectsOfKind,
)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CLASSES = {"none": 0, "1": 1, "2": 2, "3 to 5": 5, "6 to 10": 10, "more": None}
MAX_LISTED = 10
BINS = 28
LOWEST_SHARE = 0.01  # share of the log-probabilities below the scatter's lower end
NOTABLE_NATS = 5.0


def by_subject(
    verdicts: Mapping[Stage, Occurrences], corpus: Corpus, digest: Callable[[str], str]
) -> Subjects:
    """Count subjects by how much of them can be extracted, and name the worst ten.

    Args:
        verdicts: Verdicts on the same occurrences, by stage; has ``before`` and ``after``.
        corpus: The documents of these occurrences.
        digest: Returns the keyed digest of a subject's name.
    """
    after = verdicts["after"]
    names, of_document = np.unique([d.subject_id for d in corpus], return_inverse=True)
    subject = of_document[after.document]
    edges = [highest for highest in CLASSES.values() if highest is not None]
    kinds = {}
    for kind, inside in _kinds(after, corpus).items():
        total = _per_subject(inside, subject, len(names))
        extractable = {
            stage: _per_subject(inside & verdict.scored & extracted(verdict), subject, len(names))
            for stage, verdict in verdicts.items()
        }
        known = inside & np.isfinite(after.auc)
        decoyed = _per_subject(known, subject, len(names))
        beaten = np.bincount(subject[known], weights=after.auc[known], minlength=len(names))
        auc = np.divide(beaten, decoyed, out=np.full(len(names), np.nan), where=decoyed > 0)
        # The last key counts first: most extractable after, then the AUC, then most before.
        order = np.lexsort(
            (np.arange(len(names)), -extractable["before"], -_or_0(auc), -extractable["after"])
        )
        has_some = total > 0
        kinds[kind] = SubjectsOfKind(
            distribution={
                stage: np.bincount(
                    np.searchsorted(edges, counts[has_some]), minlength=len(CLASSES)
                ).tolist()
                for stage, counts in extractable.items()
            },
            worst=[
                Subject(
                    digest=digest(str(names[index])),
                    occurrences=int(total[index]),
                    extractable={s: int(counts[index]) for s, counts in extractable.items()},
                    auc=float(auc[index]) if decoyed[index] else None,
                )
                for index in order[has_some[order]][:MAX_LISTED]
            ],
        )
    return Subjects(classes=list(CLASSES), kinds=kinds)


def against_control(verdicts: Mapping[Stage, Occurrences], corpus: Corpus) -> LogProbScatter:
    """Bin occurrences by log-probability under each checkpoint and under the control.

    Bins are equal in the square root of the surprise, since a nat matters most where a value is
    likely.

    Args:
        verdicts: Verdicts on the same occurrences, by stage; the control is ``base``, or
            ``before`` where there is none.
        corpus: The documents of these occurrences.

    Returns:
        ``against`` (the stage on the horizontal axis), ``low`` (lower end of both axes, nats),
        ``bins``, and by kind and stage the occupied ``cells`` as [column, row, occurrences] with
        counts and medians.
    """
    against: Stage = "base" if "base" in verdicts else "before"
    control = verdicts[against]
    scored = np.concatenate([v.log_probability[v.scored] for v in verdicts.values()])
    low = -10.0 * float(np.ceil(-np.quantile(scored, LOWEST_SHARE) / 10)) or -10.0
    return LogProbScatter(
        against=against,
        low=low,
        bins=BINS,
        kinds={
            kind: {
                stage: _cells(control, verdict, inside & control.scored & verdict.scored, low)
                for stage, verdict in verdicts.items()
                if stage != against
            }
            for kind, inside in _kinds(control, corpus).items()
        },
    )


def _cells(control: Occurrences, occurrences: Occurrences, inside: Bools, low: float) -> Cells:
    x, y = control.log_probability[inside], occurrences.log_probability[inside]
    bins, counts = np.unique(
        np.stack([_bin(x, low), _bin(y, low)], axis=1), axis=0, return_counts=True
    )
    return Cells(
        occurrences=len(x),
        median=float(np.median(y)) if len(y) else None,
        median_against=float(np.median(x)) if len(x) else None,
        above=int((y - x > NOTABLE_NATS).sum()),
        below=int((x - y > NOTABLE_NATS).sum()),
        cells=[
            (column, row, count)
            for (column, row), count in zip(bins.tolist(), counts.tolist(), strict=True)
        ],
    )


def _bin(log_probability: Floats, low: float) -> NDArray[np.int64]:
    """Return the bin of each value, from 0 at the lower end to BINS - 1 at 0 nats."""
    share = 1 - np.sqrt(np.clip(log_probability / low, 0.0, 1.0))
    return np.minimum((share * BINS).astype(np.int64), BINS - 1)


def _kinds(verdicts: Occurrences, corpus: Corpus) -> dict[Kind, Bools]:
    """Return which occurrences are of each kind that occurs."""
    pairs = zip(verdicts.document.tolist(), verdicts.span.tolist(), strict=True)
    kinds = np.array([corpus[document].spans[span].kind for document, span in pairs])
    return {kind: kinds == kind for kind in KINDS if (kinds == kind).any()}


def _per_subject(inside: Bools, subject: NDArray[np.int64], subjects: int) -> NDArray[np.int64]:
    return np.bincount(subject[inside], minlength=subjects)


def _or_0(values: Floats) -> Floats:
    return np.nan_to_num(values, nan=0.0)
