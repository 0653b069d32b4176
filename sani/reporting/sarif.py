"""SARIF 2.1.0 of a report, for code scanning: the limits that are not met and who is at risk.

A result for each limit that is not met, each label and each subject at risk, and each limit that is
weaker than the default. Nothing in it is a value or a name: a subject is its keyed digest.

Source: SARIF 2.1.0, OASIS, errata 01. Deviation: the records are no source files, so every result
has the same place, the resolved recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

from sarif_pydantic import (
    ArtifactLocation,
    Level,
    Location,
    Message,
    PhysicalLocation,
    Region,
    ReportingDescriptor,
    Result,
    Run,
    Sarif,
    Tool,
    ToolDriver,
)

from sani.corpus.documents import Kind
from sani.reporting.at_risk import NamedAtRisk
from sani.reporting.format import KIND_NAMES
from sani.reporting.junit import measured_and_allowed
from sani.reporting.schema import Report
from sani.runfolder import RECIPE

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
# The only fingerprint that GitHub's code scanning matches results of two runs by.
FINGERPRINT = "primaryLocationLineHash"
LIMIT, WEAKER = "limit-not-met", "limit-weaker-than-default"
LABEL, SUBJECT = "label-at-risk", "subject-at-risk"  # the latter with its kind behind it
RULES = {
    LIMIT: "A limit of the gate is not met.",
    WEAKER: "A limit of the gate is weaker than its default.",
    LABEL: "Its values stand out from the control by more than chance allows.",
    **{f"{SUBJECT}.{kind}": "Their values stand out from the control." for kind in KIND_NAMES},
}
NAMES = "private/at-risk.json of the run has the names behind the digests."
_LITERAL = str.maketrans({sign: f"\\{sign}" for sign in "\\[]"} | {"{": "{{", "}": "}}"})


def sarif(report: Report) -> str:
    """Return a SARIF log; it has an error if the gate does not hold."""
    results = [*_limits(report), *_weaker(report)]
    for kind in KIND_NAMES:
        results += _at_risk(report, kind)
    driver = ToolDriver(
        name="sani",
        version=report.provenance.versions["sani-llm"],
        rules=[
            ReportingDescriptor(id=rule, short_description=Message(text=text))
            for rule, text in RULES.items()
        ],
    )
    run = Run(tool=Tool(driver=driver), results=results)
    log = Sarif(schema_uri=SCHEMA, runs=[run])
    return log.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"


def _limits(report: Report) -> Iterator[Result]:
    """Yield a result for each limit that is not met; one at least if the gate does not hold."""
    failed = [check for check in report.gate.checks if not check.holds]
    for check in failed:
        text = f"{check.name}: {check.reason} {measured_and_allowed(check)}"
        yield _result(LIMIT, Level.ERROR, text, fingerprint=check.name)
    if not (failed or report.gate.holds):
        yield _result(LIMIT, Level.ERROR, "No limit was checked.", fingerprint="no check")


def _weaker(report: Report) -> Iterator[Result]:
    for phrase in report.gate.weaker:
        yield _result(WEAKER, Level.WARNING, f"{phrase}.", fingerprint=phrase.split()[0])


def _at_risk(report: Report, kind: Kind) -> Iterator[Result]:
    """Yield a result for each label and each subject at risk; a note if the kind is not judged."""
    tests = (report.audits["after"].control_tests or {}).get(kind)
    listed = report.at_risk.get(kind, NamedAtRisk([], []))
    level = Level.ERROR if kind in report.gate_settings.kinds else Level.NOTE
    for label in listed.labels:
        text = f"Label {label} ({kind}) is at risk. {RULES[LABEL]}"
        yield _result(LABEL, level, text, fingerprint=f"{kind} {label}")
    rule = f"{SUBJECT}.{kind}"
    for digest in listed.subjects:
        text = f"Subject {digest} ({kind}) is at risk. {RULES[rule]} {NAMES}"
        yield _result(rule, level, text, fingerprint=digest)
    more = tests.at_risk - len(listed.subjects) if tests else 0
    if more > 0:
        text = f"{more} more subjects ({kind}) are at risk. {NAMES}"
        yield _result(rule, level, text, fingerprint="more")


def _result(rule: str, level: Level, text: str, *, fingerprint: str) -> Result:
    """Return a result; signs of its text that SARIF gives a meaning are made literal."""
    place = PhysicalLocation(
        artifact_location=ArtifactLocation(uri=RECIPE), region=Region(start_line=1)
    )
    return Result(
        rule_id=rule,
        level=level,
        message=Message(text=text.translate(_LITERAL)),
        locations=[Location(physical_location=place)],
        partial_fingerprints={FINGERPRINT: fingerprint},
    )
