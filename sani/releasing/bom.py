"""The bill of materials of a released checkpoint: CycloneDX 1.7, with a model card.

Models it was made from are named by the digest of their weights alone: a path or a name may be a
person's. The same report gives the same bytes.

Deviation: `cyclonedx-python-lib` 11 has no model card, so its fields are added to what the library
writes; they are those of the specification.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from sani.auditing.record import CheckpointAudit
from sani.counting import counted
from sani.intervals import Estimate, Rate
from sani.reporting.card import METRICS, NAME, task
from sani.reporting.evidence import untested
from sani.reporting.format import KIND_NAMES, stage_name
from sani.reporting.schema import Report

BOM = "bom.json"
SCHEMA = SchemaVersion.V1_7
DIGEST = "SHA-256 over every tensor's name, type, shape and bytes; manifest.json has that of files"
PEDIGREE = "The unsanitized checkpoint must never be released. sani audited all of them."
_SPACE = UUID("6f1d2f9e-5c0b-4a55-9a43-6f1b8f1c6a10")  # of serial numbers; drawn once


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, validate_by_name=True
    )


class Interval(_Part):
    """A 95 % interval; numbers are text in CycloneDX."""

    lower_bound: str
    upper_bound: str


class Metric(_Part):
    """One figure of one checkpoint; without an interval where the report has none."""

    type: str
    value: str
    slice: str
    confidence_interval: Interval | None = None


class Parameters(_Part):
    """The task of the model, in the words of the Hub."""

    task: str


class Analysis(_Part):
    """The figures of the audit."""

    performance_metrics: list[Metric]


class Considerations(_Part):
    """Sentences on what the run says nothing about."""

    technical_limitations: list[str]


class ModelCard(_Part):
    """``modelCard`` of a component."""

    model_parameters: Parameters
    quantitative_analysis: Analysis
    considerations: Considerations


def bom(report: Report) -> str:
    """Return ``bom.json`` of the sanitized checkpoint that a report is about."""
    after = report.audits["after"]
    sources = {"unsanitized": report.audits["before"], "base": report.audits.get("base")}
    model = _model(NAME, after)
    model.pedigree = Pedigree(
        ancestors=[_model(name, audit) for name, audit in sources.items() if audit],
        notes=PEDIGREE,
    )
    if report.source_card.license:
        model.licenses.add(DisjunctiveLicense(name=report.source_card.license))
    version = report.provenance.versions["sani-llm"]
    sani = Component(name="sani", version=version, type=ComponentType.APPLICATION, bom_ref="sani")
    document = Bom(
        serial_number=uuid5(_SPACE, f"{after.weights_digest} {report.provenance.recipe_digest}"),
        metadata=BomMetaData(tools=ToolRepository(components=[sani]), component=model),
    )
    document.metadata.timestamp = None  # type: ignore[assignment]  # optional in CycloneDX
    data = json.loads(make_outputter(document, OutputFormat.JSON, SCHEMA).output_as_string())
    card = ModelCard(
        model_parameters=Parameters(task=task(report)),
        quantitative_analysis=Analysis(performance_metrics=list(_metrics(report))),
        considerations=Considerations(technical_limitations=list(untested(report))),
    )
    data["metadata"]["component"]["modelCard"] = card.model_dump(by_alias=True, exclude_none=True)
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _model(name: str, audit: CheckpointAudit) -> Component:
    """Return a model as a component that only its digest names."""
    return Component(
        name=name,
        bom_ref=name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=audit.weights_digest)],
        properties=[Property(name="sani:digest", value=DIGEST)],
    )


def _metrics(report: Report) -> Iterator[Metric]:
    """Yield the figures of the sanitized checkpoint, and those of the base, its control."""
    for stage in ("after", "base"):
        if stage in report.audits:
            yield from _metrics_of(report.audits[stage], stage_name(stage))


def _metrics_of(audit: CheckpointAudit, stage: str) -> Iterator[Metric]:
    for kind in KIND_NAMES:
        part = f"{kind} identifiers, {stage}"
        for figures, form in ((audit.figures, ""), (audit.jointly or {}, ", masked jointly")):
            if kind in figures:
                yield from _metric(METRICS["greedy"] + form, part, figures[kind].greedy)
                yield from _metric(METRICS["discoverable"] + form, part, figures[kind].discoverable)
        tests = (audit.control_tests or {}).get(kind)
        if tests:
            yield from _metric("AUC to base", part, tests.auc_to_base)
            subjects = tests.subjects.tested + tests.untested
            risk = f"{part}, of {counted(subjects, 'subject')}"
            yield Metric(type="subjects at risk", value=str(tests.at_risk), slice=risk)
    if audit.utility:
        value = f"{audit.utility.perplexity:.6g}"
        part = f"held-out documents, {stage}"
        yield Metric(type="perplexity outside identifiers", value=value, slice=part)


def _metric(name: str, part: str, figure: Rate | Estimate) -> Iterator[Metric]:
    """Yield a figure with its 95 % interval; nothing where nothing was scored."""
    if figure.value is None:
        return
    interval = None
    if figure.low is not None and figure.high is not None:
        interval = Interval(lower_bound=f"{figure.low:.6g}", upper_bound=f"{figure.high:.6g}")
    yield Metric(type=name, value=f"{figure.value:.6g}", slice=part, confidence_interval=interval)
