"""The section on membership: can the corpus be told from documents that were not trained on?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from sani.auditing.membership import Membership
from sani.auditing.record import AuditRecord
from sani.reporting.format import Cells, Section, decimals, estimate, rate, stage_name

ATTACKS = {
    "loss": "loss",
    "reference": "loss minus the base's",
    "error_zone": "error zone (base)",
    "windows": "windows (base)",
    "hard_tokens": "hard tokens (base)",
    "zlib": "zlib",
    "min_k": "min-k 20 %",
    "min_k_plus": "min-k++ 20 %",
}
_Name = TypeVar("_Name", bound=str)


def membership(audits: Mapping[_Name, AuditRecord]) -> Iterator[Section]:
    """Yield the section on membership, or that it was not tested."""
    results = {stage: audit.membership for stage, audit in audits.items() if audit.membership}
    rows = [row for stage, result in results.items() for row in _rows(stage, result)]
    if not rows:
        none = "Not tested: no held-out documents were given."
        yield Section("membership", "Membership", (none,))
        return
    names = list(ATTACKS.values())
    yield Section(
        "membership",
        "Membership",
        (
            "Can documents and subjects of the corpus be told from held-out ones? An AUC of 0.5 is "
            "chance. The base's AUC shows how the two sets differ by themselves, without memory.",
            *(f"{warning}." for warning in list(results.values())[-1].warnings),
        ),
        (
            "level",
            "attack",
            "checkpoint",
            "AUC",
            "either way",
            "TPR at 1 % FPR",
            "TPR at 0.1 % FPR",
        ),
        tuple(sorted(rows, key=lambda row: (row[0], names.index(row[1])))),
    )


def _rows(stage: str, result: Membership) -> Iterator[Cells]:
    one_each = (result.members, result.non_members) == (
        result.member_subjects, result.non_member_subjects,
    )  # fmt: skip
    for level, attacks in result.attacks.items():
        if level == "subject" and one_each:  # the same figures again
            continue
        for name, attack in attacks.items():
            yield (
                level,
                ATTACKS[name],
                stage_name(stage),
                estimate(attack.auc),
                decimals(attack.either_way),
                *(rate(tpr) for tpr in attack.tpr.values()),
            )
