"""The section on sampling: what came up when the model was left to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from sani.auditing.rarefaction import Distinct
from sani.auditing.record import AuditRecord, GenerationRecord
from sani.counting import counted, verb
from sani.reporting.format import Cells, Section, decimals, rate, stage_name
from sani.reporting.sentences import sampled_values

TITLE = "Recited when left to write"
_Name = TypeVar("_Name", bound=str)


def generation(audits: Mapping[_Name, AuditRecord]) -> Iterator[Section]:
    """Yield the section on samples, or that none were drawn."""
    samples = {stage: a.generation for stage, a in audits.items() if a.generation}
    if not samples:
        none = "Not tested: the recipe asks for no samples (audit.generation)."
        yield Section("generation", TITLE, (none,))
        return
    last = list(samples.values())[-1]
    short = sum(last.too_short.values())
    yield Section(
        "generation",
        TITLE,
        (
            f"From each kind of prompt, samples of {last.new_tokens} tokens were drawn and "
            f"searched for {counted(last.searched, 'distinct identifier')}. "
            f"{counted(short, 'value')} {verb(short, 'is', 'are')} too short to be searched for. "
            "What stands in a prompt never counts. Inexact: only a looser reading finds the "
            "identifier (day and month in either order, words turned around). Still to come: "
            "identifiers that more samples would bring, at least.",
            *(_saturation(stage, result) for stage, result in samples.items()),
            *_beyond_control(audits),
        ),
        (
            "checkpoint",
            "prompts",
            "samples with one",
            "distinct identifiers",
            "inexact",
            "subjects",
            "distinct in 1,000 samples",
            "still to come",
            "not from the base",
        ),
        tuple(row for stage, result in samples.items() for row in _rows(stage, result)),
    )


def _rows(stage: str, result: GenerationRecord) -> Iterator[Cells]:
    beyond = result.beyond
    for prompts, recited in result.recited.items():
        not_from_base = "-"
        if beyond:
            everything = prompts == "all"
            count = beyond.identifiers if everything else beyond.by_prompt.get(prompts, 0)
            not_from_base = str(count)
        yield (
            stage_name(stage),
            prompts,
            rate(recited.with_hit),
            str(recited.identifiers),
            str(recited.inexact),
            str(recited.subjects),
            _distinct(recited.per_thousand),
            decimals(recited.unseen, 0),
            not_from_base,
        )


def _saturation(stage: str, result: GenerationRecord) -> str:
    points = result.recited["all"].curve
    counts = ", ".join(f"{point.value:.0f} in {point.samples}" for point in points)
    return f"Saturation, {stage_name(stage)}: distinct identifiers expected: {counts}."


def _beyond_control(audits: Mapping[_Name, AuditRecord]) -> Iterator[str]:
    """Yield the sentences on the tests against the base and the decoys, cued values left out.

    The base itself is compared with decoys alone.
    """
    for stage, audit in audits.items():
        control = () if stage == "base" else audits
        for kind, tests in (audit.control_tests or {}).items():
            if tests.sampled is not None:
                sentence = sampled_values(kind, tests.sampled, control)
                yield f"{stage_name(stage).capitalize()}. {sentence}"


def _distinct(value: Distinct | None) -> str:
    return "-" if value is None else f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f})"
