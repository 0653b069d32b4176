"""The record of an audit: what stands of it in a result file, and what the gate judges."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from sani.auditing.audit import AuditResult
from sani.auditing.figures import Figures
from sani.auditing.generation import Beyond, Recited
from sani.auditing.membership import Membership
from sani.auditing.utility import Utility
from sani.intervals import Rate


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
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    framing: str
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

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class CheckpointAudit(AuditRecord):
    """An audit of a run, in ``audit-STAGE.json``, with the digest of the audited weights."""

    weights_digest: str


def record_of(result: AuditResult) -> AuditRecord:
    """Return the record of an audit that was just made."""
    generation = result.generation
    return AuditRecord(
        framing=result.framing,
        framings_tried=result.framings_tried,
        figures=result.figures,
        jointly=result.jointly,
        unscored=result.unscored,
        without_decoys=result.without_decoys,
        utility=result.utility,
        membership=result.membership,
        tokens=result.tokens,
        seconds=result.seconds,
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
