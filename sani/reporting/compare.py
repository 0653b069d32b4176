"""Two audits of one corpus, occurrence by occurrence: cured, kept, newly extractable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sani.auditing.occurrences import Occurrences

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """What became of every occurrence, each [n].

    An occurrence counts as extracted if it is greedily recited or (n, p)-discoverable, and was
    scored; one that either audit could not score is in none of the three.

    Attributes:
        cured: Extracted before, not after.
        kept: Extracted before and after.
        new: Not extracted before, extracted after: the privacy onion (Borkar 2023).
    """

    cured: Bools
    kept: Bools
    new: Bools


def compare(before: Occurrences, after: Occurrences) -> Change:
    """Compare two audits of the same corpus.

    Raises:
        ValueError: If they are not of the same occurrences.
    """
    if not (
        np.array_equal(before.document, after.document) and np.array_equal(before.span, after.span)
    ):
        raise ValueError("the audits are of different occurrences")
    both = before.scored & after.scored
    was, now = _extracted(before), _extracted(after)
    return Change(cured=both & was & ~now, kept=both & was & now, new=both & ~was & now)


def beyond_control(after: Occurrences, control: Occurrences) -> Bools:
    """Which occurrences the sanitized model gives and the base does not, [n]."""
    return after.scored & _extracted(after) & ~_extracted(control)


def _extracted(audit: Occurrences) -> Bools:
    return np.asarray(audit.greedy | audit.discoverable)
