"""Sections on the evidence: the first screen, what was not tested, and the threat model.

It says "evidence for", never that something complies or is anonymous: that is for a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sani.auditing.control_tests import ControlTests
from sani.auditing.figures import Figures
from sani.auditing.record import CheckpointAudit
from sani.corpus.documents import Kind
from sani.reporting.attacks import guidance, whether_tested
from sani.reporting.format import (
    KIND_NAMES,
    Cells,
    Section,
    beyond_control,
    decimals,
    estimate,
    rate,
    sampled,
    stage_name,
    subjects_at_risk,
)
from sani.reporting.schema import Report
from sani.scanning.inventory import labels_in_words, understated_in_words

ONLY_CHECKED = (
    "Only checked: this run changed nothing. The checkpoint before is the unsanitized one that the "
    "recipe names, so that there is something to find."
)


def summary(report: Report) -> Section:
    """Return the figures that decide: control, before and after, a column each."""
    audits = {stage: audit for stage, audit in report.audits.items() if stage != "erased"}
    n_and_p = sampled(report.audit_settings)
    return Section(
        "summary",
        "Before, after, and the control",
        (
            "A rate is the number of recited occurrences out of those scored, with its 95 % "
            f"interval. {n_and_p}: so many samples show the occurrence with that probability. An "
            "AUC of 0.5 is chance. "
            + (
                "The base model, which never saw the records, is the control: what it gives too is "
                "no memory. Its own subjects at risk are those whose values it prefers to decoys, "
                "as it may where it knows this kind of text; no limit looks at them."
                if "base" in audits
                else "There is no control: no base model was given, so memory cannot be told from "
                "what anyone could guess."
            ),
            *(() if report.erase or report.repair else (ONLY_CHECKED,)),
        ),
        ("figure", *(stage_name(stage) for stage in audits)),
        (
            *_test_rows(list(audits.values()), report.gate_settings.kinds),
            *_figure_rows(list(audits.values()), n_and_p),
            *_utility_rows(list(audits.values())),
        ),
    )


def _test_rows(audits: list[CheckpointAudit], kinds: tuple[Kind, ...]) -> Iterator[Cells]:
    """Yield the rows of the tests against the control, for the kinds that are judged."""
    lines: tuple[tuple[str, Callable[[ControlTests], str]], ...] = (
        ("subjects at risk", subjects_at_risk),
        ("recited beyond control", lambda tests: beyond_control(tests.greedy)),
        ("(n, p) beyond control", lambda tests: beyond_control(tests.discoverable)),
        ("AUC to base", lambda tests: estimate(tests.auc_to_base)),
    )
    for kind in (kind for kind in KIND_NAMES if kind in kinds):
        of_kind = [(audit.control_tests or {}).get(kind) for audit in audits]
        if any(of_kind):
            for title, cell in lines:
                cells = [cell(tests) if tests else "-" for tests in of_kind]
                yield (f"{kind}: {title}", *cells)
        samples = [tests.sampled if tests else None for tests in of_kind]
        if any(samples):
            cells = [beyond_control(test) if test else "-" for test in samples]
            yield (f"{kind}: written by itself beyond control", *cells)


def _figure_rows(audits: list[CheckpointAudit], n_and_p: str) -> Iterator[Cells]:
    after = audits[-1]
    lines: tuple[tuple[str, bool, Callable[[Figures], str]], ...] = (
        ("recited greedily", False, lambda figures: rate(figures.greedy)),
        (f"seen in {n_and_p}", False, lambda figures: rate(figures.discoverable)),
        ("recited greedily, masked jointly", True, lambda figures: rate(figures.greedy)),
        (f"seen in {n_and_p}, masked jointly", True, lambda figures: rate(figures.discoverable)),
        ("AUC against decoys", False, lambda figures: estimate(figures.auc)),
    )
    for kind in KIND_NAMES:
        if kind not in after.figures:
            continue
        for title, jointly, cell in lines:
            if jointly and not after.jointly:
                continue
            by_scope = [(a.jointly if jointly else a.figures) or {} for a in audits]
            cells = [cell(scopes[kind]) if kind in scopes else "-" for scopes in by_scope]
            yield (f"{kind}: {title}", *cells)


def _utility_rows(audits: list[CheckpointAudit]) -> Iterator[Cells]:
    if any(audit.utility for audit in audits):
        utilities = [audit.utility for audit in audits]
        perplexities = [decimals(u.perplexity if u else None) for u in utilities]
        yield ("utility: perplexity", *perplexities)
        accuracies = [decimals(u.accuracy if u else None) for u in utilities]
        yield ("utility: next-token accuracy", *accuracies)


def untested(report: Report) -> tuple[str, ...]:
    """Return what this run says nothing about, one line each."""
    kinds, limit = report.gate_settings.kinds, report.corpus_limit
    lines = [
        *report.not_tested,
        *(
            f"{kind} identifiers ({labels_in_words(report.scan.labels, [kind]) or 'none'}): "
            "measured, but the gate sets no limit for them"
            for kind in KIND_NAMES
            if kind not in kinds
        ),
    ]
    if report.scan.understated and "indirect" not in kinds:
        lines.append(understated_in_words(report.scan.understated))
    if (report.recipe.get("scan") or {}).get("allow"):
        lines.append("values that the list of scan.allow names: the scan does not mark them")
    if report.without_limit:
        lines.append(f"limits that the recipe leaves out: {', '.join(report.without_limit)}")
    lines += [f"measured, but not judged: {line}" for line in guidance(report.attacks)]
    if limit:
        lines.append(f"documents after the first {limit} of the corpus (corpus.limit)")
    return tuple(lines)


def threats(report: Report) -> Section:
    """Return the section on who is assumed to try what, and what this run tried of it."""
    audits = report.audits.values()
    membership = any(audit.membership for audit in audits)
    generation = any(audit.generation for audit in audits)
    attacks = report.attacks
    return Section(
        "threats",
        "Threat model and limits",
        (
            "Whoever holds the sanitized weights can do with them whatever they like, for as long "
            "as they like. The table says which of it this run tried.",
            "A rate of zero is a rate of zero among the occurrences tried, under the prompts and "
            "the sampler tried. Nothing here is a proof, and no differential privacy is claimed. "
            "The unsanitized checkpoint must never be released: the two together point at what was "
            "removed.",
        ),
        ("the adversary", "in this run"),
        (
            ("knows the text around an identifier word for word, decodes greedily", "tested"),
            (
                f"samples {report.audit_settings.queries} times behind that text",
                "tested, in closed form",
            ),
            (
                "picks the true value out of a list of candidates",
                _tested(report.audit_settings.decoys > 0),
            ),
            ("asks whether a document or a person was in the training data", _tested(membership)),
            ("lets the model write from nothing, headings or openings", _tested(generation)),
            ("fine-tunes the model until it remembers", whether_tested(attacks, "relearn")),
            ("quantizes the model", whether_tested(attacks, "quantize")),
            ("prunes the model", "not tested"),
            ("holds the unsanitized checkpoint too", whether_tested(attacks, "guidance")),
            ("writes prompts made to bring identifiers up", whether_tested(attacks, "prompting")),
            ("reads inside the model: lower layers", whether_tested(attacks, "layers")),
            ("holds near copies of the documents", whether_tested(attacks, "neighbours")),
        ),
    )


def _tested(tested: bool) -> str:
    return "tested" if tested else "not tested"
