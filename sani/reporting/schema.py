"""The shape of ``report.json``: every field, its type, and nothing else.

``report.schema.json`` beside this module is written from it (``python -m sani.reporting.schema``).
The version goes up when a field is renamed, removed or means something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sani.atomic import write_text
from sani.attacking.result import AttackResult
from sani.auditing.compare import ChangeCounts, OnionStep
from sani.auditing.record import CheckpointAudit
from sani.auditing.unlearning_depth import UnlearningDepth
from sani.corpus.documents import Kind
from sani.gate import Check
from sani.gate.advice import Advice
from sani.intervals import Estimate, Rate
from sani.recipe import AuditSettings, EraseSettings, GateSettings, RepairSettings, Selector
from sani.reporting.at_risk import NamedAtRisk
from sani.scanning.record import ScanRecord

SCHEMA_VERSION = 9
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
Stage = Literal["base", "before", "erased", "after"]


class Part(BaseModel):
    """Base of all parts: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True)


class Gate(Part):
    """The verdict, and each limit; ``weaker`` names settings that are weaker than the defaults."""

    holds: bool
    weaker: list[str]
    checks: list[Check]


class RippleCount(Part):
    """Occurrences of a label; `sani.reporting.ripple.ripples`."""

    new: int
    near: int
    distance: float | None


class Ripple(Part):
    """Occurrences that a stage made newly extractable, by label."""

    source: str = Field(alias="from", pattern=r"^(before|erased|round-\d+|after)$")
    to: Annotated[str, Field(pattern=r"^(before|erased|round-\d+|after)$")]
    labels: dict[str, RippleCount]


class Pretraining(Part):
    """Audits of documents that only the base may have seen, and what changed since the base."""

    audits: dict[Stage, CheckpointAudit]
    changes: dict[Stage, ChangeCounts]


class Named(Part):
    """An occurrence, by the digest of its value; documents are counted from 0."""

    document: int
    label: str
    kind: Kind
    digest: str


class Changes(Part):
    """Before against after, occurrence by occurrence."""

    cured: int
    kept: int
    new: int
    p_value: float | None
    beyond_control: int
    beyond_control_listed: list[Named]
    kept_listed: list[Named]
    new_listed: list[Named]


class Subject(Part):
    """One subject, by digest."""

    digest: str
    occurrences: int
    extractable: dict[Stage, int]
    auc: float | None


class SubjectsOfKind(Part):
    """Subjects in each class, by stage, and the worst ten."""

    distribution: dict[Stage, list[int]]
    worst: list[Subject]


class Subjects(Part):
    """`sani.reporting.by_subject.by_subject`."""

    classes: list[str]
    kinds: dict[Kind, SubjectsOfKind]


class Cells(Part):
    """Binned log-probabilities: column, row, occurrences."""

    occurrences: int
    median: float | None
    median_against: float | None
    above: int
    below: int
    cells: list[tuple[int, int, int]]


class LogProbScatter(Part):
    """`sani.reporting.by_subject.against_control`."""

    against: Stage
    low: float
    bins: int
    kinds: dict[Kind, dict[Stage, Cells]]


class Entry(Part):
    """Neurons reset in one part of one layer; ``map`` has the share of each stretch of it."""

    layer: int
    part: str
    neurons: int
    total: int
    map: list[float]


class ClosedNeurons(Part):
    """Neurons or heads of one part of one layer that the selector ``hard_concrete`` closed."""

    layer: int
    part: str
    closed: int
    total: int
    specific: dict[str, int]


class SelectorResult(Part):
    """Result of a selector beyond its scores; ``labels``: rise of each label's loss, in nats."""

    layers: list[ClosedNeurons]
    labels: dict[str, float]


class TokenRows(Part):
    """Rows of embedding and head that were reset."""

    rows: int
    total: int
    tensors: list[str]
    tied: bool


class Plan(Part):
    """The rule of the erase and what it chose."""

    selector: Selector
    reset: str
    seed: int
    interpolate_to_base: float
    entries: list[Entry]
    token_rows: TokenRows | None
    selector_result: SelectorResult | None


class Erase(Part):
    """The first stage; ``retrains``: every layer is the base's again."""

    plan: Plan
    retrains: bool
    changed_parameters: int
    fraction: float
    seconds: float


class Repair(Part):
    """The second stage; losses of the curve in nats, notes as sentences without their full stop."""

    steps: int
    tokens: int
    seconds: float
    trained_fraction: float
    by_epoch: list[dict[str, float]]
    curve: list[dict[str, float]]
    notes: list[str]


class RungRates(Part):
    """Rates that decide, for one kind of identifiers, masked jointly."""

    greedy: Rate
    discoverable: Rate


class RungFigures(RungRates):
    """Figures that decide, for one kind of identifiers."""

    auc: Estimate


class Measured(Part):
    """Figures of one audit that decide; ``jointly`` for a masked language model only."""

    figures: dict[Kind, RungFigures]
    jointly: dict[Kind, RungRates] | None = None
    perplexity: float | None


class RungSettings(Part):
    """The settings of one attempt."""

    erase: EraseSettings | None
    repair: RepairSettings


class TriedRung(Measured):
    """One attempt of an escalation; ``by_epoch`` as in the repair."""

    name: str
    settings: RungSettings
    checks: list[Check]
    holds: bool
    failed: str | None
    attacked: bool
    steps: int | None
    by_epoch: list[dict[str, float]]
    seconds: float
    tokens: int


class Escalation(Part):
    """The rungs that were tried, from the cheapest up; ``best`` counts from 1."""

    rule: str
    best: int
    stopped: Literal["holds", "budget", "ladder"]
    not_tried: list[str]
    seconds: float
    tokens: int
    rungs: list[TriedRung]


class Round(Measured):
    """One round.

    ``targeted`` occurrences were marked for its selector, ``remaining`` ones are extractable after
    it and not from the base.
    """

    targeted: int
    neurons: int
    remaining: int
    tokens: int
    seconds: float


class Rounds(Part):
    """Rounds of erase and repair."""

    max_rounds: int
    rounds: list[Round]
    seconds: float
    tokens: int


class SourceCard(Part):
    """Metadata of the model cards of the checkpoint and of its base."""

    base_model: str | None
    license: str | None
    license_name: str | None
    license_link: str | None
    language: list[str]


class Provenance(Part):
    """Identity of the run: names of folders and files, UTC date of the last audit, versions.

    Digests of recipe and corpus are keyed to the run; ``seconds`` is the time of all stages.
    """

    model: str
    base: str | None
    corpus: str
    date: str
    seconds: float
    machine: str
    command: str
    seed: int
    python: str
    versions: dict[str, str]
    recipe_digest: str
    corpus_digest: str


class MemoryUse(Part):
    """Placement of the weights, and the peak of each stage in resident bytes."""

    placement: Literal["memory", "stream"]
    peaks: dict[str, int]


class Report(Part):
    """``report.json``. ``recipe`` is shown key by key, without the paths in it.

    ``memory`` is of the process that ended the run.
    """

    schema_version: Literal[9]
    gate: Gate
    advice: Advice
    scan: ScanRecord
    audits: dict[Stage, CheckpointAudit]
    onion: list[OnionStep]
    pretraining: Pretraining
    changes: Changes
    ripples: list[Ripple]
    attacks: AttackResult | None
    at_risk: dict[Kind, NamedAtRisk]
    unlearning_depth: UnlearningDepth | None = None
    subjects: Subjects
    log_prob_scatter: LogProbScatter
    escalation: Escalation | None
    rounds: Rounds | None
    erase: Erase | None
    repair: Repair | None
    audit_settings: AuditSettings
    gate_settings: GateSettings
    without_limit: list[str]
    corpus_limit: int | None
    recipe: dict[str, Any]
    source_card: SourceCard
    not_tested: list[str]
    memory: MemoryUse | None = None
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, as ``report.json`` holds it."""
        return self.model_dump(mode="json", by_alias=True)

    def text(self) -> str:
        """Return the text of ``report.json``."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
        return text + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    write_text(SCHEMA_FILE, json.dumps(json_schema(), indent=1) + "\n")
