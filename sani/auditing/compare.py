"""Audits of one corpus in turn, occurrence by occurrence: cured, kept, newly extractable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from sani.auditing.control_tests import (
    ControlTests,
    Verdicts,
    control_tests_by_kind,
    subjects_known_by,
)
from sani.auditing.generation import Hits, beyond
from sani.auditing.identifier_index import Identifier
from sani.auditing.membership import DocumentScores, membership
from sani.auditing.occurrences import Occurrences
from sani.auditing.record import AuditRecord
from sani.corpus.documents import Corpus, Kind
from sani.recipe import AuditSettings

Bools = NDArray[np.bool_]
Step = Annotated[str, Field(pattern=r"^(before|erased|round-\d+|round \d+|model|after)$")]
_Name = TypeVar("_Name", bound=str)
_Audit = TypeVar("_Audit", bound=AuditRecord)


@dataclass(frozen=True)
class ChangeCounts:
    """Numbers of occurrences that were cured, kept and are new, and the paired test's p."""

    cured: int
    kept: int
    new: int
    p_value: float | None


class OnionStep(BaseModel):
    """One stage's step from one checkpoint to the next: occurrences cured, kept and brought up.

    ``first_seen`` counts newly extractable occurrences that no earlier checkpoint gave.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True)

    source: Step = Field(alias="from")
    to: Step
    cured: int
    kept: int
    new: int
    p_value: float | None
    first_seen: int


@dataclass(frozen=True)
class Change:
    """The change of every occurrence between two audits, each [n].

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

    def counts(self) -> ChangeCounts:
        """Return the counts, and the p of the paired test."""
        cured, kept, new = (int(array.sum()) for array in (self.cured, self.kept, self.new))
        return ChangeCounts(cured, kept, new, paired_test(cured, new))


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
    """Return the two-sided p of so uneven a split of the changed occurrences; None for no change.

    Source: McNemar 1947, exact (binomial). It takes occurrences as independent. Several of one
    subject are not, so a large p is a reason for doubt and a small one is no proof.
    """
    if cured + new == 0:
        return None
    return float(stats.binomtest(new, cured + new, 0.5).pvalue)


def onion(names: Sequence[str], verdicts: Mapping[str, Occurrences]) -> list[OnionStep]:
    """Compare each audit with the one before it, and with all before it.

    Removing the most extractable identifiers exposes others (Borkar 2023, the privacy onion).

    Args:
        names: Audits of one corpus in the order in which the model was changed.
        verdicts: Occurrences by name of the audit; names that are missing here are skipped.

    Returns:
        One step for each audit after the first.
    """
    known = [name for name in names if name in verdicts]
    steps: list[OnionStep] = []
    for number, (earlier, later) in enumerate(pairwise(known), start=1):
        change = compare(verdicts[earlier], verdicts[later])
        ever = np.any([extracted(verdicts[name]) for name in known[:number]], axis=0)
        counts = change.counts()
        steps.append(
            OnionStep(
                source=earlier,
                to=later,
                cured=counts.cured,
                kept=counts.kept,
                new=counts.new,
                p_value=counts.p_value,
                first_seen=int((change.new & ~ever).sum()),
            )
        )
    return steps


@dataclass(frozen=True)
class Corpora:
    """The documents that were audited: the records, and held-out documents if there are any."""

    records: Corpus
    held_out: Corpus | None


def beyond_control(after: Occurrences, control: Occurrences) -> Bools:
    """Return which occurrences the sanitized model gives and the base does not, [n]."""
    return after.scored & extracted(after) & ~extracted(control)


def compare_audits(
    audits: Mapping[_Name, _Audit],
    verdicts: Mapping[_Name, Verdicts],
    corpora: Corpora,
    documents: Mapping[_Name, DocumentScores],
    generated: Mapping[_Name, Hits],
    identifiers: Sequence[Identifier],
    *,
    seed: int,
) -> dict[_Name, _Audit]:
    """Add to each audit what only a comparison with the base can tell.

    Args:
        audits: Audits by name; ``base`` is the control.
        verdicts: Their verdicts one by one.
        corpora: The documents of these verdicts.
        documents: Their membership scores; may be empty.
        generated: What sampling from them brought up; may be empty.
        identifiers: Those that sampling was searched for, by number.
        seed: Seed of the bootstrap.

    Returns:
        The audits, with their control tests, with membership inference that also looks at the
        base's loss, and with what sampling brought up ``beyond`` the base.
    """
    by_name: dict[str, DocumentScores] = {str(name): each for name, each in documents.items()}
    samples: dict[str, Hits] = {str(name): each for name, each in generated.items()}
    tests = _control_tests(verdicts, corpora, seed=seed)
    compared = {}
    for name, audit in audits.items():
        scores, hits, generation = by_name.get(name), samples.get(name), audit.generation
        # The base's own loss as reference for itself says nothing.
        reference = None if name == "base" else by_name.get("base")
        attacks = membership(scores, reference=reference, seed=seed) if scores else None
        if generation and hits is not None and name != "base" and "base" in samples:
            generation = replace(generation, beyond=beyond(hits, samples["base"], identifiers))
        compared[name] = replace(
            audit,
            membership=attacks,
            generation=generation,
            control_tests=tests.get(str(name)),
        )
    return compared


def _control_tests(
    verdicts: Mapping[_Name, Verdicts], corpora: Corpora, *, seed: int
) -> dict[str, dict[Kind, ControlTests]]:
    """Test each audit against the base, and the base itself against decoys alone.

    Without a base, all are tested against decoys alone.
    """
    base = next((each for name, each in verdicts.items() if name == "base"), None)
    known = subjects_known_by(corpora.records, base, held_out=corpora.held_out, seed=seed)
    tests = {}
    for name, each in verdicts.items():
        is_base = name == "base"
        by_kind = control_tests_by_kind(
            corpora.records,
            each,
            None if is_base else base,
            held_out=corpora.held_out,
            known={} if is_base else known,
            seed=seed,
        )
        tests[str(name)] = {kind: result for kind, (result, _) in by_kind.items()}
    return tests


def changes_since_base(verdicts: Mapping[_Name, Occurrences]) -> dict[_Name, ChangeCounts]:
    """Compare audits of documents that were never fine-tuned on with the base's audit."""
    base = next((each for name, each in verdicts.items() if name == "base"), None)
    return {
        name: compare(base, occurrences).counts()
        for name, occurrences in verdicts.items()
        if base is not None and name != "base"
    }


class ComparedPretraining(BaseModel):
    """Audits of documents that only the base may have seen, and what changed since the base."""

    audits: dict[str, AuditRecord]
    changes: dict[str, ChangeCounts]


class AuditComparison(BaseModel):
    """Audits of several checkpoints side by side, as `sani audit` shows them."""

    audit_settings: AuditSettings
    audits: dict[str, AuditRecord]
    onion: list[OnionStep]
    pretraining: ComparedPretraining

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return self.model_dump(mode="json", by_alias=True)


def extracted(audit: Occurrences) -> Bools:
    """Return which occurrences are greedily recited or (n, p)-discoverable, [n]."""
    return np.asarray(audit.greedy | audit.discoverable)
