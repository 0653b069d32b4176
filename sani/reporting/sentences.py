"""Sentences of the report that say what a run showed, made from typed figures."""

from __future__ import annotations

from collections.abc import Container

from sani.auditing.sampled_test import SampledTest
from sani.auditing.unlearning_depth import UnlearningDepth
from sani.corpus.documents import Kind
from sani.counting import counted, verb
from sani.reporting.format import KIND_NAMES
from sani.reporting.schema import Erase, Report


def verdict(report: Report) -> str:
    """Return the verdict: whether the limits hold, who is at risk, and which limits are weak."""
    gate = report.gate
    if not gate.holds:
        first = (
            "At least one limit of the recipe is not met. Do not share this checkpoint on the "
            "strength of this run."
        )
    elif gate.weaker:
        first = (
            "Every limit of the recipe is met, with limits weaker than the defaults: "
            f"{'; '.join(gate.weaker)}. This is weaker evidence than the defaults ask for."
        )
    else:
        first = (
            "Every limit of the recipe is met on the documents and identifiers given. This is "
            "evidence for the person who decides, not the decision."
        )
    return " ".join(
        [first, *filter(None, [doubt(report)]), *at_risk(report), *written_by_itself(report)]
    )


def doubt(report: Report) -> str:
    """Return which limits hold that the records do not settle; nothing if there is none."""
    if not report.advice.unsettled:
        return ""
    parts = [
        f"{counted(number, 'occurrence')} {verb(number, 'does', 'do')} not settle {name}"
        for name, number in report.advice.unsettled.items()
    ]
    return f"{'; '.join(parts)}: the limit lies within the 95 % interval."


def at_risk(report: Report) -> list[str]:
    """Return how many subjects stand out in the sanitized checkpoint, a sentence a judged kind."""
    tests = report.audits["after"].control_tests or {}
    sentences = []
    for kind in _in_order(report.gate_settings.kinds):
        if kind not in tests:
            sentences.append(f"Subjects at risk ({kind}): not tested.")
            continue
        subjects = tests[kind].subjects.tested + tests[kind].untested
        sentences.append(f"Subjects at risk ({kind}): {tests[kind].at_risk} of {subjects}.")
        if tests[kind].untested:
            have = verb(tests[kind].untested, "has", "have")
            sentences.append(f"{tests[kind].untested} of them {have} no decoys to be tested with.")
        if tests[kind].without_control:
            sentences.append(
                f"The base seems to know {tests[kind].without_control} of them: it is no control "
                "for these, and they were compared with decoys alone."
            )
    return sentences


def written_by_itself(report: Report) -> list[str]:
    """Return what the sanitized checkpoint writes by itself, by judged kind; none if not sampled.

    What was not sampled stands among what was not tested.
    """
    after, before = report.audits["after"], report.audits["before"]
    if after.generation is None:
        return []
    tests = after.control_tests or {}
    sentences = [
        sampled_values(kind, tests[kind].sampled if kind in tests else None, report.audits)
        for kind in _in_order(report.gate_settings.kinds)
    ]
    if not (before.generation and before.generation.recited["all"].identifiers):
        sentences.append(
            "As many samples of the unsanitized checkpoint bring up none, so this says little."
        )
    return sentences


def sampled_values(kind: Kind, test: SampledTest | None, audits: Container[str]) -> str:
    """Return how many values of a kind a checkpoint writes by itself, and what chance allows.

    Args:
        kind: The kind of identifiers.
        test: The test; None where there was none.
        audits: Names of the audits; with the base among them, it is the control.
    """
    if test is None:
        return f"Written by itself ({kind}): not tested."
    control = "and not by the base" if "base" in audits else "(there is no base to compare with)"
    hidden = (
        f" {test.unlikely} of them {verb(test.unlikely, 'is', 'are')} no guess; chance allows "
        f"{test.unlikely_limit} of such."
        if test.count <= test.limit and test.exceeded
        else ""
    )
    return (
        f"Written by itself ({kind}): {test.count} of {counted(test.searched, 'value')} in "
        f"{counted(test.samples, 'sample')}, {control}; chance allows {test.limit}.{hidden}"
    )


def depth_in_words(depth: UnlearningDepth) -> str:
    """Return the unlearning depth, with its interval if there is one, and what has no score."""
    if depth.depth.value is None:
        return (
            f"None of {counted(depth.occurrences, 'occurrence')} has a score: no layer of the "
            "base lacks anything of them."
        )
    interval = ""
    if depth.depth.low is not None and depth.depth.high is not None:
        interval = f" ({depth.depth.low:.3f} to {depth.depth.high:.3f})"
    skipped = (
        f" {counted(depth.without_gap, 'occurrence')} {verb(depth.without_gap, 'has', 'have')} no "
        f"score: no layer of the base lacks anything of {verb(depth.without_gap, 'it', 'them')}."
        if depth.without_gap
        else ""
    )
    return (
        f"Unlearning depth: {depth.depth.value:.3f}{interval}, over "
        f"{counted(depth.depth.trials, 'occurrence')}.{skipped}"
    )


def _in_order(kinds: tuple[Kind, ...]) -> list[Kind]:
    return [kind for kind in KIND_NAMES if kind in kinds]


def what_changed(report: Report) -> str:
    """Return what became of the occurrences between before and after."""
    changes = report.changes
    return (
        f"{counted(changes.cured, 'occurrence')} cured, {changes.kept} kept, and {changes.new} "
        f"that the unsanitized checkpoint did not give {verb(changes.new, 'is', 'are')} given now."
    )


def beyond_base(report: Report) -> str:
    """Return how many occurrences the sanitized checkpoint gives and the base does not."""
    if "base" not in report.audits:
        left = report.changes.kept + report.changes.new
        return (
            f"{counted(left, 'occurrence')} {verb(left, 'is', 'are')} extractable from the "
            "sanitized checkpoint. No base was given, so nobody knows how many of these anyone "
            "could guess."
        )
    beyond = report.changes.beyond_control
    return (
        f"{counted(beyond, 'occurrence')} {verb(beyond, 'is', 'are')} extractable from the "
        "sanitized checkpoint, greedily or in samples, and in neither way from the base: of either "
        "kind, cued ones too. The gate compares each way by itself, so it may count more."
    )


def framings(report: Report) -> str:
    """Return what stood around the documents, and how it was chosen."""
    after = report.audits["after"]
    names = ", ".join(after.framings)
    if report.audit_settings.framing != "auto":
        return f"The recipe fixes what stood around each document: {names}. No other was tried."
    tried = ", ".join(after.framings_tried)
    return (
        f"Every document of the sanitized checkpoint was read behind {names}; an occurrence counts "
        f"if it is recited behind any of them. Tried on a sample with every subject: {tried}."
    )


def what_was_reset(erase: Erase) -> str:
    """Return what the erase changed: neurons, all weights towards the base, or both."""
    plan = erase.plan
    share = f"{erase.changed_parameters} parameters ({100 * erase.fraction:.1f} %) changed"
    reset = f"neurons chosen by {plan.selector.kind} were reset ({plan.reset}, seed {plan.seed})"
    if plan.entries and plan.interpolate_to_base:
        return (
            f"{share}: all weights moved towards the base's, and {reset}. erase.json names every "
            "neuron."
        )
    if plan.entries:
        return f"{share}: {reset}. erase.json names every neuron."
    if plan.interpolate_to_base:
        return f"{share}: all weights moved towards the base's. No neuron was reset."
    return f"{share}. No neuron was reset."
