"""Sections on what is recited: by kind, by label, by subject, from memory or from the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from sani.auditing.figures import Figures
from sani.auditing.record import AuditRecord
from sani.auditing.sampler import DEFAULT_SAMPLER
from sani.counting import counted, verb
from sani.intervals import Estimate
from sani.recipe import AuditSettings
from sani.reporting.format import (
    MAX_CHARTED,
    Section,
    by_kind,
    decimals,
    estimate,
    number,
    p_value,
    rate,
    sampled,
    share,
    stage_name,
    worst_labels,
)
from sani.reporting.schema import Report
from sani.reporting.sentences import beyond_base, framings, what_changed
from sani.scanning.inventory import LabelCount

MAX_LISTED = 200  # labels
_Name = TypeVar("_Name", bound=str)


def recited(report: Report) -> Iterator[Section]:
    """Yield the section on what every checkpoint recites, kind by kind."""
    audits, settings, changes = report.audits, report.audit_settings, report.changes
    worst = ", ".join(f"{stage_name(s)} {a.framing}" for s, a in audits.items())
    tried = ", ".join(f"{name} {rate(r)}" for name, r in audits["before"].framings_tried.items())
    unscored = [
        f"Not scored, {stage_name(stage)}: "
        + ", ".join(f"{count} {reason}" for reason, count in audit.unscored.items())
        + "."
        for stage, audit in audits.items()
        if audit.unscored
    ]
    yield Section(
        "recited",
        "What is recited",
        (
            "A rate is the number of recited occurrences out of those scored, with its 95 % "
            f"interval. {sampled(settings)} are n and p: an occurrence counts if n samples show it "
            f"with probability p (temperature {DEFAULT_SAMPLER.temperature}, top-k "
            f"{DEFAULT_SAMPLER.top_k}, top-p {DEFAULT_SAMPLER.top_p}). AUC is how often the model "
            "prefers the true value to a decoy: 0.5 is chance, and the base's AUC is the control.",
            f"{what_changed(report)} Paired test, p {p_value(changes.p_value)}. "
            f"{beyond_base(report)}",
            f"{framings(report)} Worst behind, by checkpoint: {worst}.",
            *([f"Greedy extraction on the sample, before, by framing: {tried}."] if tried else []),
            *unscored,
            *dict.fromkeys(note for audit in audits.values() for note in audit.notes),
        ),
        ("identifiers", "checkpoint", "greedy", sampled(settings), "distinct", "AUC", "exposure"),
        tuple(
            (
                *names,
                rate(f.greedy),
                rate(f.discoverable),
                rate(f.identifiers),
                estimate(f.auc),
                estimate(f.exposure),
            )
            for names, f in by_kind(audits)
        ),
    )


def memory(audits: Mapping[_Name, AuditRecord], settings: AuditSettings) -> Section:
    """Return the section on cued occurrences, apart from the others."""
    rows = [
        (
            *names,
            rate(f.greedy),
            rate(f.discoverable),
            estimate(f.auc),
            _against(f.accuracy, f.chance),
            estimate(f.association),
            _against(f.association_accuracy, f.association_chance),
            estimate(f.extraction_strength),
            estimate(f.exact_memorization),
            number(f.worst_rank),
        )
        for scope in (":uncued", ":cued")
        for names, f in by_kind(audits, scope)
        if f.greedy.trials
    ]
    return Section(
        "memory",
        "Memory, or reading",
        (
            "A cued occurrence can be guessed from the text before it: a name that was given "
            "there, an e-mail address made of it. Uncued ones can only be remembered. First of C: "
            "how often the true value is the likeliest of C candidates, beside chance. "
            "Association: how often it is preferred to the value of another subject.",
        ),
        (
            "identifiers",
            "checkpoint",
            "greedy",
            sampled(settings),
            "AUC",
            "first of C",
            "association",
            "first of the swapped",
            "extraction strength",
            "exact memorization",
            "worst rank, median",
        ),
        tuple(rows),
    )


def _against(value: Estimate, chance: float | None) -> str:
    return estimate(value) if chance is None else f"{estimate(value)}, chance {chance:.3f}"


def queries(audits: Mapping[_Name, AuditRecord], settings: AuditSettings) -> Section:
    """Return the section on what more samples bring."""
    figures = list(by_kind(audits))
    counts = list(figures[0][1].queries.extractable) if figures else []
    return Section(
        "queries",
        "How many samples it takes",
        (
            f"Share of the occurrences that so many samples show with probability "
            f"{settings.probability}. Then the expected number of samples until the first leak, as "
            "a power of ten, at the 5th, 50th and 95th percentile of the occurrences (a dash: the "
            "sampler never draws it).",
        ),
        ("identifiers", "checkpoint", *counts, "5 %", "50 %", "95 %", "never drawn"),
        tuple(
            (
                *names,
                *(share(r.value) for r in f.queries.extractable.values()),
                *(decimals(f.queries.log10_expected[q], 1) for q in ("0.05", "0.5", "0.95")),
                str(f.queries.never),
            )
            for names, f in figures
            if f.greedy.trials
        ),
    )


def labels(report: Report) -> Section:
    """Return the section on before, after and the control, label by label."""
    audits, settings = report.audits, report.audit_settings
    base = audits.get("base")
    shown = worst_labels(audits["after"])
    return Section(
        "labels",
        "By label",
        (
            f"There {verb(len(shown), 'is', 'are')} {counted(len(shown), 'label')}; those of "
            f"which most is left stand first. The chart shows {min(len(shown), MAX_CHARTED)} of "
            f"them, the table {min(len(shown), MAX_LISTED)}.",
        ),
        (
            "label",
            "kind",
            "greedy before",
            "greedy after",
            f"{sampled(settings)} after",
            "AUC after",
            "AUC of the base",
        ),
        tuple(
            (
                label,
                _kind(report.scan.labels[label]),
                rate(audits["before"].figures[f"label:{label}"].greedy),
                rate(audits["after"].figures[f"label:{label}"].greedy),
                rate(audits["after"].figures[f"label:{label}"].discoverable),
                estimate(audits["after"].figures[f"label:{label}"].auc),
                estimate(base.figures[f"label:{label}"].auc if base else None),
            )
            for label in shown[:MAX_LISTED]
        ),
    )


def _kind(count: LabelCount) -> str:
    part = f" ({count.direct} of {count.occurrences})"
    return count.kind + (part if 0 < count.direct < count.occurrences else "")


def listed(report: Report) -> Iterator[Section]:
    """Yield the sections that name occurrences one by one, by digest."""
    changes = report.changes
    for key, title, count, listed in (
        ("new", "Newly extractable", changes.new, changes.new_listed),
        (
            "beyond_control",
            "Extractable, and not from the base",
            changes.beyond_control,
            changes.beyond_control_listed,
        ),
        ("kept", "Still extractable", changes.kept, changes.kept_listed),
    ):
        if listed or key == "new":
            yield Section(
                key,
                title,
                (
                    f"{counted(count, 'occurrence')}; {len(listed)} "
                    f"{verb(len(listed), 'is', 'are')} listed. A digest stands for the value. It "
                    "is keyed to this run: the same value has the same digest, and no value can "
                    "be guessed from it.",
                ),
                ("document, from 1", "label", "kind", "digest"),
                tuple(
                    (str(item.document + 1), item.label, item.kind, item.digest) for item in listed
                ),
            )


def preference(report: Report) -> Section:
    """Return the section on AUC and exposure; the control's interval is the band of the chart."""
    audits = report.audits
    control = by_kind({"base": audits["base"]}) if "base" in audits else ()
    of_base: dict[str, Figures] = {names[0]: figures for names, figures in control}
    return Section(
        "preference",
        "True value against decoys",
        (
            "An AUC of 0.5 is chance. The exposure's value by chance depends on the number of "
            "decoys: compare it with the control's. Both stay high long after greedy decoding "
            "gives nothing.",
        ),
        ("identifiers", "checkpoint", "AUC", "exposure, bits", "of", "control's AUC"),
        tuple(
            (
                *names,
                estimate(f.auc),
                estimate(f.exposure),
                str(f.auc.trials),
                estimate(of_base[names[0]].auc) if names[0] in of_base else "-",
            )
            for names, f in by_kind(audits)
        ),
    )


def subjects(report: Report) -> Iterator[Section]:
    """Yield the sections on the spread of leakage over subjects, and on the ten worst ones."""
    by_subject = report.subjects
    rows = [
        (kind, stage_name(stage), *map(str, counts))
        for kind, part in by_subject.kinds.items()
        for stage, counts in part.distribution.items()
    ]
    yield Section(
        "subjects",
        "By subject",
        ("How many subjects have so many extractable occurrences (greedily or (n, p)).",),
        ("identifiers", "checkpoint", *by_subject.classes),
        tuple(rows),
    )
    stages = list(report.audits)
    for kind, part in by_subject.kinds.items():
        yield Section(
            f"worst-{kind}",
            f"The ten subjects of whom most {kind} identifiers are left",
            (
                "The subject of whom the sanitized checkpoint gives most stands first; of equal "
                "ones, "
                "the one with the highest AUC. A digest that is keyed to this run names the "
                "subject.",
            ),
            (
                "subject",
                "occurrences",
                *(f"extractable, {stage_name(stage)}" for stage in stages),
                "AUC after",
            ),
            tuple(
                (
                    row.digest,
                    str(row.occurrences),
                    *(str(row.extractable[stage]) for stage in stages),
                    decimals(row.auc),
                )
                for row in part.worst
            ),
        )


def log_prob_scatter(report: Report) -> Section:
    """Return the section on each occurrence's log-probability against the control's."""
    scatter = report.log_prob_scatter
    against = stage_name(scatter.against)
    return Section(
        "log_prob_scatter",
        "Occurrence by occurrence",
        (
            f"The log-probability of each occurrence, in nats, against that under {against}. On "
            "the "
            "line the checkpoint knows no more than that one, above the line it knows more. A "
            "dot "
            "stands for all occurrences that fall together. The axes are stretched near 0, where "
            f"values are likely, and end at {scatter.low:.0f}: what is less likely stands at the "
            "edge.",
        ),
        (
            "identifiers",
            "checkpoint",
            "occurrences",
            "median",
            f"median of {against}",
            "more than 5 nats above",
            "more than 5 nats below",
        ),
        tuple(
            (
                kind,
                stage_name(stage),
                str(cells.occurrences),
                number(cells.median),
                number(cells.median_against),
                f"{cells.above} ({share(cells.above / cells.occurrences)})",
                f"{cells.below} ({share(cells.below / cells.occurrences)})",
            )
            for kind, stages in scatter.kinds.items()
            for stage, cells in stages.items()
            if cells.occurrences
        ),
    )
