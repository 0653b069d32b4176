"""People who were never in the records: a second control beside the decoys.

Decoys are no exact match for real names and places, so a model prefers true values a little even
of people whom it never read. Limits follow that, within bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sani.auditing.candidates import CandidateTable, labelled_values
from sani.auditing.occurrences import Occurrences
from sani.auditing.permutation import Floats, Groups
from sani.corpus.documents import Corpus, Kind
from sani.intervals import Estimate

# Real names and places are no exact match for decoys, so models prefer those of people they never
# read, too: by .02 of the AUC in MEDDOCAN. Held-out people whom a model prefers by more than this
# look as if it had read them: they are no control. Ours.
MAX_HELD_OUT_AUC = 0.6
MAX_BIAS = 0.15  # of a label: more than this would hide a label that is known whole; ours
MAX_SPREAD = 1.3  # a few held-out people who were read must not widen the limit of all; ours
PRIOR_VALUES = 20  # held-out values of a label before its bias counts half; ours
PRIOR_SUBJECTS = 20  # held-out subjects before their spread counts half; ours


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents, and their occurrences under a model and under its control."""

    corpus: Corpus
    audit: Occurrences
    control: Occurrences | None


def people_never_read(
    corpus: Corpus, held_out: HeldOut | None, kind: Kind, seed: int
) -> tuple[CandidateTable | None, Estimate | None]:
    """Return held-out people as a control, and how far the model prefers their true values.

    They are no control, hence None, where none has an identifier with decoys, or where the model
    seems to have read them.
    """
    if held_out is None:
        return None, None
    # A value that stands in the records too, as a doctor's name, may be known from there.
    outside = CandidateTable.of(
        held_out.corpus,
        held_out.audit,
        held_out.control,
        kind,
        without_values=labelled_values(corpus),
    )
    if not outside.ranked.any():
        return None, None
    auc = outside.auc(np.ones(len(outside.keys), dtype=np.bool_), seed)
    usable = auc.value is not None and auc.value <= MAX_HELD_OUT_AUC
    return outside if usable else None, auc


def label_bias(outside: CandidateTable | None, labels: Sequence[str]) -> tuple[Floats, Floats]:
    """Estimate how far true values beat decoys in documents that the model never read.

    Returns:
        The bias of each label, in [0, `MAX_BIAS`], and the number of held-out values behind it,
        [labels] each. A few values say little, so the estimate is drawn towards 0.
    """
    bias, values = np.zeros(len(labels)), np.zeros(len(labels))
    if outside is not None:
        for number, label in enumerate(labels):
            inside = outside.ranked & (outside.labels == label)
            values[number] = len(np.unique(outside.keys[inside]))
            if inside.any():
                excess = float(outside.share[inside].mean()) - 0.5
                bias[number] = excess * values[number] / (values[number] + PRIOR_VALUES)
    return np.clip(bias, 0.0, MAX_BIAS), values


def subject_spread(outside: CandidateTable | None) -> float:
    """Estimate how much wider held-out people spread than decoys say; at least 1."""
    if outside is None or not outside.ranked.any():
        return 1.0
    ranked = outside.ranked
    _, subjects = np.unique(outside.subjects[ranked], return_inverse=True)
    groups = Groups.of(outside.all_shares[ranked], outside.keys[ranked], subjects)
    # Around the mean of each label: the decoys are made of pieces of the records, so a model that
    # recites these prefers them to the values of other people. That is no reason for wide limits.
    _, labels = np.unique(outside.labels[ranked], return_inverse=True)
    means = np.bincount(labels, weights=outside.share[ranked]) / np.bincount(labels)
    squares = groups.statistic(outside.share[ranked] - means[labels] + 0.5) ** 2
    variance = (squares.sum() + PRIOR_SUBJECTS) / (len(squares) + PRIOR_SUBJECTS)
    return float(np.clip(np.sqrt(variance), 1.0, MAX_SPREAD))
