"""The record of an audit: what stands of it in a result file, and what the gate judges."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict

from sani.auditing.audit import AuditResult
from sani.auditing.control_tests import ControlTests, Verdicts
from sani.auditing.figures import Figures
from sani.auditing.generation import Beyond, Hits, Recited
from sani.auditing.membership import Membership
from sani.auditing.occurrences import Occurrences
from sani.auditing.utility import Utility
from sani.corpus.documents import Kind
from sani.intervals import Rate
from sani.runfolder import RunFolder


@dataclass(frozen=True)
class GenerationRecord:
    """Record of an audit by generation; fields as in `sani.auditing.generation.GenerationResult`.

    ``beyond`` compares it with the base; None where it was not compared.
    """

    framing: str
    searched: int
    too_short: dict[str, int]
    new_tokens: int
    seconds: float
    recited: dict[str, Recited]
    beyond: Beyond | None = None


@dataclass(frozen=True)
class AuditRecord:
    """The record of one audit; fields as in `sani.auditing.audit.AuditResult`.

    It has every figure and no single occurrence.

    Attributes:
        control_tests: Tests against the base and the decoys by kind of identifier; None where the
            audit was not compared. See `sani.auditing.control_tests`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    framing: str
    framings: tuple[str, ...]
    framings_tried: dict[str, Rate]
    figures: dict[str, Figures]
    jointly: dict[str, Figures] | None
    unscored: dict[str, int]
    without_decoys: int
    utility: Utility | None
    membership: Membership | None
    tokens: int
    seconds: float
    generation: GenerationRecord | None
    control_tests: dict[Kind, ControlTests] | None = None
    notes: list[str] = field(default_factory=list, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class CheckpointAudit(AuditRecord):
    """An audit of a run, in ``audit-STAGE.json``, with the digest of the audited weights."""

    weights_digest: str = field(kw_only=True)


def record_of(result: AuditResult) -> AuditRecord:
    """Return the record of an audit that was just made."""
    generation = result.generation
    return AuditRecord(
        framing=result.framing,
        framings=result.framings,
        framings_tried=result.framings_tried,
        figures=result.figures,
        jointly=result.jointly,
        unscored=result.unscored,
        without_decoys=result.without_decoys,
        utility=result.utility,
        membership=result.membership,
        tokens=result.tokens,
        seconds=result.seconds,
        notes=result.notes,
        generation=None
        if generation is None
        else GenerationRecord(
            framing=generation.framing,
            searched=generation.searched,
            too_short=generation.too_short,
            new_tokens=generation.new_tokens,
            seconds=generation.seconds,
            recited=generation.recited,
        ),
    )


def verdicts_of(result: AuditResult) -> Verdicts:
    """Return the verdicts of an audit one by one, for its control tests."""
    sampled = result.generation.one_by_one if result.generation else None
    return Verdicts(result.occurrences, result.held_out_occurrences, sampled)


def load_verdicts(folder: RunFolder, stage: str) -> Verdicts | None:
    """Return the verdicts that a run kept of one stage's audit; None if there are none."""
    records = folder.load_arrays(f"audit-{stage}", Occurrences)
    if records is None:
        return None
    return Verdicts(
        records,
        folder.load_arrays(f"audit-{stage}-held-out", Occurrences),
        folder.load_arrays(f"audit-{stage}-generation", Hits),
    )
