"""Subjects at risk by keyed digest, and labels at risk, for the report; never a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from sani.auditing.control_tests import AtRisk
from sani.corpus.documents import Kind

MAX_SUBJECTS = 1000  # of a kind; code scanning shows 5,000 results of a file


@dataclass(frozen=True)
class NamedAtRisk:
    """The subjects and the labels of one kind that are at risk in the sanitized checkpoint.

    Attributes:
        subjects: Keyed digests of the subjects, the highest first; at most `MAX_SUBJECTS`.
        labels: The labels above the limit, the highest first.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    subjects: list[str]
    labels: list[str]


def named_at_risk(
    at_risk: Mapping[Kind, AtRisk], digest: Callable[[str], str]
) -> dict[Kind, NamedAtRisk]:
    """Return who is at risk: digests instead of names.

    Args:
        at_risk: Who is at risk, by kind.
        digest: Returns the keyed digest of a subject's name.
    """
    return {
        kind: NamedAtRisk(
            subjects=[digest(name) for name in risk.everyone()[:MAX_SUBJECTS]],
            labels=risk.labels,
        )
        for kind, risk in at_risk.items()
    }
