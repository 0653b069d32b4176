"""Questions of regulators and reviewers, and the figures of a run that answer them.

The questions are data, in ``questions.yaml``; ``docs/evidence.md`` is written from it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from sani.attacking.result import BASE, SANITIZED, ModelFigures
from sani.auditing.candidate_tests import LargestTest
from sani.auditing.control_tests import ControlTests
from sani.auditing.figures import Figures
from sani.corpus.documents import Kind
from sani.reporting.format import (
    Section,
    beyond_control,
    decimals,
    estimate,
    number,
    rate,
    share,
    subjects_at_risk,
)
from sani.reporting.schema import Report

NOT_MEASURED = "not measured"
FigureName = Literal[
    "greedy_beyond_control", "discoverable_beyond_control", "auc_to_base", "subjects_at_risk",
    "largest_subject", "labels_at_risk", "association", "generation", "membership", "relearn",
    "quantize", "prompting", "layers", "neighbours", "guidance", "scan_recall", "erase",
    "after_erase", "repair", "utility", "gate", "positive_control", "provenance",
]  # fmt: skip
SourceName = Literal["edpb", "cnil", "hipaa", "reviews"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Source(_Part):
    """Document or group that asks, by a short name and a reference."""

    name: str
    reference: str


class Question(_Part):
    """One question: who asks, the figures that answer it, and what they leave open."""

    source: SourceName
    question: str
    figures: list[FigureName]
    not_answered: str


class Questions(_Part):
    """Content of ``questions.yaml``."""

    sources: dict[SourceName, Source]
    questions: list[Question]

    @model_validator(mode="after")
    def _every_source_is_described(self) -> Questions:
        missing = {question.source for question in self.questions} - self.sources.keys()
        if missing:
            raise ValueError(f"sources that are not described: {', '.join(sorted(missing))}")
        return self


@dataclass(frozen=True)
class RunFigure:
    """A figure of a run.

    Attributes:
        title: Its name in the table.
        value: Returns it as text; None where the run did not measure it.
    """

    title: str
    value: Callable[[Report], str | None]


@cache
def questions() -> Questions:
    """Return the questions and their sources."""
    text = files("sani.reporting").joinpath("questions.yaml").read_text(encoding="utf-8")
    return Questions.model_validate(yaml.safe_load(text))


def evidence(report: Report) -> Section:
    """Return the section with every question and what this run measured of it."""
    table = questions()
    return Section(
        "evidence",
        "Evidence",
        (
            "Each question is in our words. A figure is evidence for the person who decides; none "
            "decides by itself. Figures are of the sanitized checkpoint and of the kinds that the "
            "gate judges.",
        ),
        ("question", "who asks", "in this run", "what that does not answer"),
        tuple(
            (
                question.question,
                table.sources[question.source].name,
                "; ".join(_answers(question, report)) or NOT_MEASURED,
                question.not_answered,
            )
            for question in table.questions
        ),
    )


def _answers(question: Question, report: Report) -> Iterator[str]:
    for name in question.figures:
        figure = FIGURES[name]
        yield f"{figure.title}: {figure.value(report) or NOT_MEASURED}"


# ---- one function a figure -------------------------------------------------------------------


def _of_tests(cell: Callable[[ControlTests], str | None]) -> Callable[[Report], str | None]:
    """Return a figure of the tests against the control, by judged kind."""

    def value(report: Report) -> str | None:
        tests = report.audits["after"].control_tests or {}
        return _by_kind(report, lambda kind: cell(tests[kind]) if kind in tests else None)

    return value


def _of_figures(cell: Callable[[Figures], str]) -> Callable[[Report], str | None]:
    """Return a figure of the audit, by judged kind."""

    def value(report: Report) -> str | None:
        figures = report.audits["after"].figures
        return _by_kind(report, lambda kind: cell(figures[kind]) if kind in figures else None)

    return value


def _by_kind(report: Report, cell: Callable[[Kind], str | None]) -> str | None:
    """Return a figure of every judged kind; None if one of them has none: a part is no answer."""
    cells = {kind: cell(kind) for kind in report.gate_settings.kinds}
    if not all(text and text != "-" for text in cells.values()):
        return None
    return ", ".join(f"{kind} {text}" for kind, text in cells.items())


def _largest(test: LargestTest) -> str | None:
    if test.largest is None or test.limit is None:
        return None
    return f"{test.largest:.3g} (limit {test.limit:.3g}; {test.above} of {test.tested} above)"


def _generation(report: Report) -> str | None:
    record = report.audits["after"].generation
    if record is None:
        return None
    recited = record.recited["all"]  # of all kinds of prompts
    beyond = f", {record.beyond.identifiers} not from the base" if record.beyond else ""
    return f"{recited.identifiers} identifiers in {recited.samples} samples{beyond}"


def _membership(report: Report) -> str | None:
    membership = report.audits["after"].membership
    if membership is None:
        return None
    worst = {
        level: max(attack.either_way for attack in attacks.values())
        for level, attacks in membership.attacks.items()
        if attacks
    }
    return ", ".join(f"{level} {value:.3f}" for level, value in worst.items()) or None


def _attack(name: str) -> Callable[[Report], str | None]:
    """Return the (n, p) rate, or AUC, of an attack's strongest variant, beside the base's."""

    def value(report: Report) -> str | None:
        rows = (report.attacks.attacks if report.attacks else {}).get(name, {}).items()
        run = [(v, r.models) for v, r in rows if SANITIZED in r.models]
        run = [(variant, models) for variant, models in run if not models[SANITIZED].not_run]
        if not run:
            return None
        variant, models = max(run, key=lambda each: _strength(each[1][SANITIZED]))
        base = models.get(BASE)
        control = f"; base {_shown(base)}" if base and not base.not_run else ""
        left_out = f"; not run: {len(rows) - len(run)}" if len(rows) > len(run) else ""
        return f"{_shown(models[SANITIZED])} by {variant}{control}{left_out}"

    return value


def _strength(figures: ModelFigures) -> tuple[float, float]:
    discoverable = figures.discoverable.value if figures.discoverable else None
    return (discoverable or 0.0, (figures.auc.value if figures.auc else None) or 0.0)


def _shown(figures: ModelFigures) -> str:
    if figures.discoverable and figures.discoverable.value is not None:
        return f"(n, p) {rate(figures.discoverable)}"
    return f"AUC {estimate(figures.auc)}"


def _scan_recall(report: Report) -> str | None:
    quality = report.scan.quality
    return rate(quality.recall) if quality and quality.recall.value is not None else None


def _erase(report: Report) -> str | None:
    erase = report.erase
    return f"{erase.changed_parameters} parameters, {share(erase.fraction)}" if erase else None


def _after_erase(report: Report) -> str | None:
    if "erased" not in report.audits:
        return None
    figures = report.audits["erased"].figures
    return _by_kind(report, lambda kind: rate(figures[kind].greedy) if kind in figures else None)


def _repair(report: Report) -> str | None:
    repair = report.repair
    return f"{repair.steps} steps over {repair.tokens} tokens" if repair else None


def _utility(report: Report) -> str | None:
    before, after = report.audits["before"].utility, report.audits["after"].utility
    if before is None or after is None:
        return None
    return f"{decimals(after.perplexity)} (before {decimals(before.perplexity)})"


def _gate(report: Report) -> str | None:
    checks = report.gate.checks
    if not checks:
        return None
    met = sum(check.holds for check in checks)
    weaker = f", {len(report.gate.weaker)} weaker than the defaults" if report.gate.weaker else ""
    return f"{met} of {len(checks)} limits met{weaker}"


def _positive_control(report: Report) -> str | None:
    checks = [c for c in report.gate.checks if c.name.startswith("positive_control")]
    if not checks or any(check.measured is None for check in checks):
        return None
    return ", ".join(f"{number(c.measured)} (at least {number(c.limit)})" for c in checks)


def _provenance(report: Report) -> str:
    made = report.provenance
    return f"seed {made.seed}, sani {made.versions['sani-llm']}, recipe {made.recipe_digest}"


FIGURES: dict[FigureName, RunFigure] = {
    "greedy_beyond_control": RunFigure(
        "values recited beyond control", _of_tests(lambda tests: beyond_control(tests.greedy))
    ),
    "discoverable_beyond_control": RunFigure(
        "(n, p) values beyond control", _of_tests(lambda tests: beyond_control(tests.discoverable))
    ),
    "auc_to_base": RunFigure("AUC to base", _of_tests(lambda tests: estimate(tests.auc_to_base))),
    "subjects_at_risk": RunFigure("subjects at risk", _of_tests(subjects_at_risk)),
    "largest_subject": RunFigure(
        "largest of all subjects", _of_tests(lambda tests: _largest(tests.subjects))
    ),
    "labels_at_risk": RunFigure(
        "largest of all labels", _of_tests(lambda tests: _largest(tests.labels))
    ),
    "association": RunFigure(
        "AUC against other subjects' values",
        _of_figures(lambda figures: estimate(figures.association)),
    ),
    "generation": RunFigure("recited when left to write", _generation),
    "membership": RunFigure("membership, largest AUC either way", _membership),
    "relearn": RunFigure("relearning", _attack("relearn")),
    "quantize": RunFigure("quantization", _attack("quantize")),
    "prompting": RunFigure("other prompts", _attack("prompting")),
    "layers": RunFigure("inner layers", _attack("layers")),
    "neighbours": RunFigure("near copies", _attack("neighbours")),
    "guidance": RunFigure("guidance by the unsanitized checkpoint", _attack("guidance")),
    "scan_recall": RunFigure("recall of the scan", _scan_recall),
    "erase": RunFigure("changed by the erase", _erase),
    "after_erase": RunFigure("recited greedily after the erase", _after_erase),
    "repair": RunFigure("repair", _repair),
    "utility": RunFigure("held-out perplexity", _utility),
    "gate": RunFigure("gate", _gate),
    "positive_control": RunFigure("positive control", _positive_control),
    "provenance": RunFigure("provenance", _provenance),
}
