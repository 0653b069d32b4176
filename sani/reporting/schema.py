"""The shape of ``report.json``: every field, its type, and nothing else.

``report.schema.json`` beside this module is written from it (``python -m sani.reporting.schema``).
The version goes up when a field is renamed, removed or means something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sani.atomic import write_text
from sani.auditing.figures import Figures
from sani.auditing.generation import Beyond, Recited
from sani.auditing.membership import Membership
from sani.auditing.utility import Utility
from sani.corpus.documents import Kind
from sani.errors import RunError
from sani.gate import Check
from sani.intervals import Estimate, Rate
from sani.recipe import AuditSettings, GateSettings
from sani.scanning.inventory import LabelCount

SCHEMA_VERSION = 6
PLACE = Path(__file__).with_name("report.schema.json")
Stage = Literal["base", "before", "erased", "after"]
Step = Annotated[str, Field(pattern=r"^(before|erased|round-\d+|after)$")]
Counts = dict[str, int]


class Part(BaseModel):
    """Base of all parts: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Gate(Part):
    """The verdict, and each limit."""

    holds: bool
    checks: list[Check]


class Tally(Part):
    """Entities or characters compared with gold ones."""

    gold: int
    predicted: int
    gold_matched: int
    predicted_matched: int
    precision: float | None
    recall: float | None
    f1: float | None


class Covered(Part):
    """Share of a label's gold characters that any found span covers."""

    recall: float | None


class LabelScores(Part):
    """One label of the scan's evaluation."""

    strict: Tally
    overlapping: Tally
    characters: Tally
    covered: Covered


class Quality(Part):
    """How good the scan is, estimated on gold documents."""

    documents: int
    recall: Rate
    recall_char_direct: float | None
    precision_char: float | None
    recall_char: float | None
    missed_per_document: float | None
    missed: Counts
    labels: dict[str, LabelScores]


class Scan(Part):
    """What the corpus marks."""

    documents: int
    subjects: int
    occurrences: int
    documents_without_spans: int
    unmarked: int
    sources: Counts
    labels: dict[str, LabelCount]
    quality: Quality | None
    digest: str


class Generation(Part):
    """What sampling brought up."""

    framing: str
    searched: int
    too_short: Counts
    new_tokens: int
    seconds: float
    recited: dict[str, Recited]
    beyond: Beyond | None = None


class Audit(Part):
    """What one checkpoint recites; `sani.auditing.audit.AuditResult` says what each field means."""

    framing: str
    framings_tried: dict[str, Rate]
    figures: dict[str, Figures]
    jointly: dict[str, Figures] | None
    unscored: Counts
    without_decoys: int
    utility: Utility | None
    membership: Membership | None
    tokens: int
    seconds: float
    generation: Generation | None
    weights_digest: str


class Change(Part):
    """What became of occurrences between two checkpoints, with the paired test's p."""

    cured: int
    kept: int
    new: int
    p_value: float | None


class OnionStep(Change):
    """One stage; `sani.auditing.compare.onion`."""

    source: Step = Field(alias="from")
    to: Step
    first_seen: int


class RippleCount(Part):
    """Occurrences of a label; `sani.reporting.ripple.ripples`."""

    new: int
    near: int
    distance: float | None


class Ripple(Part):
    """What a stage made newly extractable, by label."""

    source: Step = Field(alias="from")
    to: Step
    labels: dict[str, RippleCount]


class Pretraining(Part):
    """Audits of documents that only the base may have seen."""

    audits: dict[Stage, Audit]
    changes: dict[Stage, Change]


class Named(Part):
    """An occurrence, by the digest of its value."""

    document: int
    label: str
    kind: Kind
    digest: str


class Changes(Change):
    """Before against after, occurrence by occurrence."""

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


class Picture(Part):
    """`sani.reporting.by_subject.against_control`."""

    against: Stage
    low: float
    bins: int
    kinds: dict[Kind, dict[Stage, Cells]]


class Entry(Part):
    """What was reset in one part of one layer; ``map`` has the share of each stretch of it."""

    layer: int
    part: str
    neurons: int
    of: int
    map: list[float]


class Plan(Part):
    """The rule of the erase and what it chose."""

    selector: dict[str, Any]
    reset: str
    seed: int
    interpolate_to_base: float
    entries: list[Entry]
    token_rows: dict[str, Any] | None
    found: dict[str, Any] | None


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
    """What decides, of one kind of identifiers, masked jointly."""

    greedy: Rate
    discoverable: Rate


class RungFigures(RungRates):
    """What decides, of one kind of identifiers."""

    auc: Estimate


class TriedRung(Part):
    """One attempt of an escalation; ``by_epoch`` as in the repair."""

    name: str
    settings: dict[str, Any]
    figures: dict[Kind, RungFigures]
    jointly: dict[Kind, RungRates] | None = None
    perplexity: float | None
    checks: list[Check]
    holds: bool
    failed: str | None
    attacked: bool
    steps: int | None
    by_epoch: list[dict[str, float]]
    seconds: float
    tokens: int


class Escalation(Part):
    """What was tried, from the cheapest up; ``best`` counts from 1."""

    rule: str
    best: int
    stopped: Literal["holds", "budget", "ladder"]
    not_tried: list[str]
    seconds: float
    tokens: int
    rungs: list[TriedRung]


class Round(Part):
    """One round: what its selector looked at, what it did, and what it left."""

    looked_at: int
    neurons: int
    figures: dict[Kind, RungFigures]
    jointly: dict[Kind, RungRates] | None = None
    perplexity: float | None
    left: int
    tokens: int
    seconds: float


class Rounds(Part):
    """Rounds of erase and repair; ``left`` of the last is what is still beyond the base."""

    asked: int
    made: list[Round]
    seconds: float
    tokens: int


class SourceCard(Part):
    """What the cards of the checkpoint and of its base say of themselves."""

    base_model: str | None
    license: str | None
    license_name: str | None
    license_link: str | None
    language: list[str]


class Provenance(Part):
    """Seed, versions, digests keyed to the run."""

    seed: int
    python: str
    versions: dict[str, str]
    recipe_digest: str
    corpus_digest: str


class Report(Part):
    """``report.json``."""

    schema_version: Literal[6]
    gate: Gate
    scan: Scan
    audits: dict[Stage, Audit]
    onion: list[OnionStep]
    pretraining: Pretraining
    changes: Changes
    ripples: list[Ripple]
    attacks: dict[str, Any] | None
    subjects: Subjects
    picture: Picture
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
    provenance: Provenance


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        RunError: If there is none, or it is not of this version's shape.
    """
    place = folder / "report.json"
    try:
        text = place.read_text(encoding="utf-8")
        data: dict[str, Any] = json.loads(text)
        version = data.get("schema_version")
    except FileNotFoundError:
        raise RunError(f"{folder} holds no report.json; finish the run with --resume") from None
    except (OSError, ValueError, AttributeError):
        raise RunError(f"{place} cannot be read as JSON; make it again with --resume") from None
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{place} has schema_version {version!r:.20}, this sani reads {SCHEMA_VERSION}; make "
            "it again with sani run --resume"
        )
    try:
        Report.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise RunError(
            f"{place}: {error.error_count()} fields do not fit the schema, the first is {where}; "
            "make it again with sani run --resume"
        ) from None
    return data


if __name__ == "__main__":
    write_text(PLACE, json.dumps(json_schema(), indent=1) + "\n")
