"""Result files of erase, repair, rungs and rounds: the fields that a report reads.

Other fields of a file are passed by. Audits, the scan and the attacks have types of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sani.auditing.record import AuditRecord
from sani.gate import Check
from sani.recipe import Rung, Selector
from sani.reporting.schema import ClosedNeurons, TokenRows


@dataclass(frozen=True)
class PlannedEntry:
    """The neurons or heads to reset in one part of one layer, of ``total``."""

    layer: int
    part: str
    neurons: list[int]
    total: int


@dataclass(frozen=True)
class SelectorResultFile:
    """``plan.selector_result`` of ``erase.json``, without its list of neurons."""

    layers: list[ClosedNeurons]
    labels: dict[str, float]


@dataclass(frozen=True)
class PlanFile:
    """``plan`` of ``erase.json``; see `sani.erasing.plan.ErasePlan`."""

    selector: Selector
    reset: str
    seed: int
    entries: list[PlannedEntry]
    interpolate_to_base: float = 0.0
    token_rows: TokenRows | None = None
    selector_result: SelectorResultFile | None = None


@dataclass(frozen=True)
class EraseFile:
    """``erase.json``; see `sani.erasing.erase.EraseResult`."""

    plan: PlanFile
    changed_parameters: int
    fraction: float
    seconds: float
    retrains: bool = False


@dataclass(frozen=True)
class RepairFile:
    """``repair.json``; see `sani.repairing.repair.RepairResult`."""

    steps: int
    tokens: int
    seconds: float
    trained_fraction: float
    curve: list[dict[str, float]]
    by_epoch: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RungFile:
    """``rung-N.json``, one attempt of an escalation."""

    name: str
    settings: Rung
    repair: RepairFile | None
    audit: AuditRecord | None
    attack: dict[str, object] | None
    checks: list[Check]
    holds: bool
    failed: str | None
    seconds: float
    tokens: int


@dataclass(frozen=True)
class EscalationFile:
    """``escalation.json``; ``tried`` counts the rungs, ``best`` counts from 1."""

    rule: str
    tried: int
    best: int
    stopped: Literal["holds", "budget", "ladder"]
    not_tried: list[str]
    seconds: float
    tokens: int


@dataclass(frozen=True)
class RoundFile:
    """``round-N.json``; ``targeted`` and ``remaining`` as in `sani.reporting.schema.Round`."""

    targeted: int
    remaining: int
    erase: EraseFile | None
    repair: RepairFile | None
    audit: AuditRecord
    seconds: float


@dataclass(frozen=True)
class RoundsFile:
    """``rounds.json``: how many rounds there were, of at most how many."""

    max_rounds: int
    rounds: int
