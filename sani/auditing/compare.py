"""Audits of one corpus in turn, occurrence by occurrence: cured, kept, newly extractable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sani.auditing.generation import Hits, beyond
from sani.auditing.identifier_index import Identifier
from sani.auditing.membership import DocumentScores, membership
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

    def to_json(self) -> dict[str, Any]:
        """The counts, and the p of the paired test."""
        counts = {name: int(array.sum()) for name, array in vars(self).items()}
        return {**counts, "p_value": paired_test(counts["cured"], counts["new"])}


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
    was, now = extracted(before), extracted(after)
    return Change(cured=both & was & ~now, kept=both & was & now, new=both & ~was & now)


def paired_test(cured: int, new: int) -> float | None:
    """Two-sided p of as uneven a split of the changed occurrences by chance; None for no change.

    Source: McNemar 1947, exact (binomial). It takes occurrences as independent, which several of
    one subject are not: read it as the least that a difference must show.
    """
    if cured + new == 0:
        return None
    return float(stats.binomtest(new, cured + new, 0.5).pvalue)


def onion(rounds: Sequence[Occurrences]) -> list[dict[str, Any]]:
    """Round by round: what it cured, kept and brought up, and what had never come up before.

    Removing the most extractable identifiers exposes others (Borkar 2023, the privacy onion).

    Args:
        rounds: Audits of one corpus in the order in which the model was changed.

    Returns:
        One entry for each round after the first: the counts of `Change`, the paired test, and
        ``first_seen``, newly extractable occurrences that no earlier round gave.
    """
    found = []
    ever = extracted(rounds[0])
    for earlier, later in pairwise(rounds):
        change = compare(earlier, later)
        found.append({**change.to_json(), "first_seen": int((change.new & ~ever).sum())})
        ever = ever | extracted(later)
    return found


def beyond_control(after: Occurrences, control: Occurrences) -> Bools:
    """Which occurrences the sanitized model gives and the base does not, [n]."""
    return after.scored & extracted(after) & ~extracted(control)


def compare_audits(
    audits: Mapping[str, dict[str, Any]],
    verdicts: Mapping[str, Occurrences],
    documents: Mapping[str, DocumentScores],
    generated: Mapping[str, Hits],
    identifiers: Sequence[Identifier],
    *,
    rounds: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """What audits of several checkpoints say together.

    Args:
        audits: `AuditResult.to_json` of each by name; ``base`` is the control.
        verdicts: Their single verdicts.
        documents: Their membership scores; may be empty.
        generated: What sampling from them brought up; may be empty.
        identifiers: Those that sampling was searched for, by number.
        rounds: Names in the order in which the model was changed; those not audited are passed by.
        seed: Of the bootstrap.

    Returns:
        ``audits``, with membership inference that also looks at the base's loss and with what
        sampling brought up ``beyond`` the base, and ``onion``.
    """
    reference = documents.get("base")
    found = {}
    for name, data in audits.items():
        known = None
        if name in documents:
            other = None if name == "base" else reference  # the base against itself says nothing
            known = membership(documents[name], reference=other, seed=seed)
        found[name] = {**data, "membership": asdict(known) if known else None}
        if name != "base" and name in generated and "base" in generated:
            more = beyond(generated[name], generated["base"], identifiers)
            found[name]["generation"] = {**data["generation"], "beyond": asdict(more)}
    names = [name for name in rounds if name in verdicts]
    steps = zip(pairwise(names), onion([verdicts[name] for name in names]), strict=True)
    return {
        "audits": found,
        "onion": [{"from": one, "to": other, **step} for (one, other), step in steps],
    }


def compare_pretraining(
    audits: Mapping[str, dict[str, Any]], verdicts: Mapping[str, Occurrences]
) -> dict[str, Any]:
    """Audits of documents that were never fine-tuned on, and what changed since the base."""
    base = verdicts.get("base")
    changes = {
        name: compare(base, found).to_json()
        for name, found in verdicts.items()
        if base is not None and name != "base"
    }
    return {"audits": dict(audits), "changes": changes}


def extracted(audit: Occurrences) -> Bools:
    """Which occurrences are greedily recited or (n, p)-discoverable, [n]."""
    return np.asarray(audit.greedy | audit.discoverable)
