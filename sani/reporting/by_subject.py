"""How leakage is spread: over subjects, and occurrence by occurrence against the control.

Counts only: what 100,000 occurrences say fits a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sani.auditing.compare import extracted
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import KINDS, Corpus

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CLASSES = {"none": 0, "1": 1, "2": 2, "3 to 5": 5, "6 to 10": 10, "more": None}
MOST_LISTED = 10
BINS = 28
LEAST_SHARE = 0.01  # of the log-probabilities are off the picture's lower end, at most
NOTABLE_NATS = 5.0


def by_subject(
    verdicts: Mapping[str, Occurrences], corpus: Corpus, digest: Callable[[str], str]
) -> dict[str, Any]:
    """Subjects by how much of them can be extracted, and the worst ten.

    Args:
        verdicts: Of the same occurrences, by stage; has ``after``.
        corpus: The documents they are of.
        digest: Keyed digest of a text, to name a subject by.

    Returns:
        ``classes``, the names of the classes of subjects, and by kind, where it occurs:
        ``distribution`` (subjects in each class, by stage) and ``worst``.
    """
    after = verdicts["after"]
    names, of_document = np.unique([d.subject_id for d in corpus], return_inverse=True)
    subject = of_document[after.document]
    edges = [most for most in CLASSES.values() if most is not None]
    found = {}
    for kind, inside in _kinds(after, corpus).items():
        total = _per_subject(inside, subject, len(names))
        given = {
            stage: _per_subject(inside & verdict.scored & extracted(verdict), subject, len(names))
            for stage, verdict in verdicts.items()
        }
        known = inside & np.isfinite(after.auc)
        decoyed = _per_subject(known, subject, len(names))
        beaten = np.bincount(subject[known], weights=after.auc[known], minlength=len(names))
        auc = np.divide(beaten, decoyed, out=np.full(len(names), np.nan), where=decoyed > 0)
        order = np.lexsort((np.arange(len(names)), -given["before"], -_or_0(auc), -given["after"]))
        has_some = total > 0
        found[kind] = {
            "distribution": {
                stage: np.bincount(
                    np.searchsorted(edges, counts[has_some]), minlength=len(CLASSES)
                ).tolist()
                for stage, counts in given.items()
            },
            "worst": [
                {
                    "digest": digest(f"subject\x00{names[index]}"),
                    "occurrences": int(total[index]),
                    "extractable": {stage: int(counts[index]) for stage, counts in given.items()},
                    "auc": float(auc[index]) if decoyed[index] else None,
                }
                for index in order[has_some[order]][:MOST_LISTED]
            ],
        }
    return {"classes": list(CLASSES), "kinds": found}


def against_control(verdicts: Mapping[str, Occurrences], corpus: Corpus) -> dict[str, Any]:
    """Occurrences binned by log-probability under each checkpoint and under the control.

    Bins are equal in the square root of the surprise, since a nat matters most where a value is
    likely.

    Args:
        verdicts: Of the same occurrences, by stage; the control is ``base``, or ``before`` where
            there is none.
        corpus: The documents they are of.

    Returns:
        ``against`` (the stage on the horizontal axis), ``low`` (lower end of both axes, nats),
        ``bins``, and by kind and stage the occupied ``cells`` as [column, row, occurrences] with
        what a reader would ask of them.
    """
    against = "base" if "base" in verdicts else "before"
    control = verdicts[against]
    scored = np.concatenate([v.log_probability[v.scored] for v in verdicts.values()])
    low = -10.0 * float(np.ceil(-np.quantile(scored, LEAST_SHARE) / 10)) or -10.0
    return {
        "against": against,
        "low": low,
        "bins": BINS,
        "kinds": {
            kind: {
                stage: _cells(control, verdict, inside & control.scored & verdict.scored, low)
                for stage, verdict in verdicts.items()
                if stage != against
            }
            for kind, inside in _kinds(control, corpus).items()
        },
    }


def _cells(control: Occurrences, found: Occurrences, inside: Bools, low: float) -> dict[str, Any]:
    x, y = control.log_probability[inside], found.log_probability[inside]
    places, counts = np.unique(
        np.stack([_bin(x, low), _bin(y, low)], axis=1), axis=0, return_counts=True
    )
    return {
        "occurrences": len(x),
        "median": float(np.median(y)) if len(y) else None,
        "median_against": float(np.median(x)) if len(x) else None,
        "above": int((y - x > NOTABLE_NATS).sum()),
        "below": int((x - y > NOTABLE_NATS).sum()),
        "cells": np.column_stack([places, counts]).tolist(),
    }


def _bin(log_probability: Floats, low: float) -> NDArray[np.int64]:
    """From 0 at the lower end to BINS - 1 at 0 nats."""
    share = 1 - np.sqrt(np.clip(log_probability / low, 0.0, 1.0))
    return np.minimum((share * BINS).astype(np.int64), BINS - 1)


def _kinds(verdicts: Occurrences, corpus: Corpus) -> dict[str, Bools]:
    """Which occurrences are of each kind that occurs."""
    pairs = zip(verdicts.document.tolist(), verdicts.span.tolist(), strict=True)
    kinds = np.array([corpus[document].spans[span].kind for document, span in pairs])
    return {kind: kinds == kind for kind in KINDS if (kinds == kind).any()}


def _per_subject(inside: Bools, subject: NDArray[np.int64], subjects: int) -> NDArray[np.int64]:
    return np.bincount(subject[inside], minlength=subjects)


def _or_0(values: Floats) -> Floats:
    return np.nan_to_num(values, nan=0.0)
