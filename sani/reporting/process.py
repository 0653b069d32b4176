"""Sections on what was done: utility, scan, erase, repair, what it cost, where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from sani.counting import counted, verb
from sani.reporting.format import Cells, Section, decimals, number, rate, share, stage_name
from sani.reporting.schema import Erase, Repair, Report, SelectorResult, TokenRows
from sani.reporting.sentences import what_was_reset
from sani.scanning.inventory import subjects_in_words
from sani.scanning.record import ScanQuality

NO_FIGURE = ("epoch", "holds")  # keys of a look that are no figure of the gate


class PlanSummary(Protocol):
    """The parts of an erase plan that a sentence is about; of a plan and of a report's plan."""

    @property
    def reset(self) -> str:
        """The new value of the neurons."""

    @property
    def interpolate_to_base(self) -> float:
        """Return how far every weight first goes to the base's, in [0, 1]."""


def utility(report: Report) -> Section:
    """Return the section on the skill of each checkpoint."""
    rows = [
        (
            stage_name(stage),
            decimals(audit.utility.perplexity),
            decimals(audit.utility.accuracy),
            str(audit.utility.tokens),
        )
        for stage, audit in report.audits.items()
        if audit.utility
    ]
    return Section(
        "utility",
        "Utility, on held-out documents outside identifiers",
        () if rows else ("Not measured: no held-out documents were given.",),
        ("checkpoint", "perplexity", "next-token accuracy", "tokens"),
        tuple(rows),
    )


def scan(report: Report) -> Section:
    """Return the section on what the corpus marks, and on what it may have missed."""
    scan, quality = report.scan, report.scan.quality
    sources = ", ".join(f"{source} {count}" for source, count in scan.sources.items())
    none = scan.documents_without_spans
    of_subjects = subjects_in_words(scan.documents, scan.subjects, scan.without_subject_id)
    return Section(
        "scan",
        "What was looked for",
        (
            f"{of_subjects}. There {verb(scan.occurrences, 'is', 'are')} "
            f"{counted(scan.occurrences, 'occurrence')} of identifiers. "
            f"{counted(none, 'document')} {verb(none, 'marks', 'mark')} none. At "
            f"{counted(scan.unmarked, 'place')} a marked direct identifier of the same subject "
            f"stands unmarked. Found by: {sources}.",
            _scan_quality(quality),
        ),
        ("label", "gold", "recall", "precision", "covered", "missed") if quality else (),
        tuple(
            (
                label,
                str(scores.strict.gold),
                share(scores.strict.recall),
                share(scores.strict.precision),
                share(scores.covered.recall),
                str(quality.missed.get(label, 0)),
            )
            for label, scores in quality.labels.items()
        )
        if quality
        else (),
    )


def _scan_quality(quality: ScanQuality | None) -> str:
    if quality is None:
        return (
            "Estimated recall of the scan: unknown (no gold sample was given). Identifiers that it "
            "missed were trained on as ordinary text."
        )
    return (
        f"Estimated recall of the scan: {rate(quality.recall)} of the direct identifiers in "
        f"{quality.documents} gold documents were found whole, "
        f"{decimals(quality.missed_per_document, 2)} were missed per document, and "
        f"{share(quality.recall_char_direct)} of their characters were found. Estimated "
        f"precision: {rate(quality.precision)} of the places that it marks hold an identifier, at "
        "least in part."
    )


def changes(erase: Erase | None, repair: Repair | None) -> Iterator[Section]:
    """Yield the sections on what was erased and on how the repair went."""
    if erase:
        plan = erase.plan
        yield Section(
            "erase",
            "What was erased",
            (
                what_was_reset(erase),
                *((interpolate_to_base(plan),) if plan.interpolate_to_base else ()),
                *token_rows(plan, plan.token_rows),
                *((retrains(plan),) if erase.retrains else ()),
            ),
            ("layer", "part", "neurons or heads reset", "of", "share"),
            tuple(
                (
                    str(entry.layer),
                    entry.part,
                    str(entry.neurons),
                    str(entry.total),
                    share(entry.neurons / entry.total),
                )
                for entry in plan.entries
            ),
        )
        if plan.selector_result:
            yield _privacy_neurons(plan.selector_result)
    if repair:
        curve = repair.curve
        terms = [name for name in dict.fromkeys(n for e in curve for n in e) if name != "step"]
        shown = curve[:: max(1, -(-len(curve) // 12))]
        if curve and curve[-1] is not shown[-1]:
            shown = [*shown, curve[-1]]
        yield Section(
            "repair",
            "How the repair went",
            (
                f"{repair.steps} steps over {repair.tokens} tokens in "
                f"{repair.seconds:.0f} s; {100 * repair.trained_fraction:.1f} % of the "
                "parameters were trained. Loss in nats; repair.json has every step.",
                *(f"Note: {note}." for note in repair.notes),
            ),
            ("step", *terms),
            tuple(
                (
                    f"{entry['step']:.0f}",
                    *(number(entry[term]) if term in entry else "-" for term in terms),
                )
                for entry in shown
            ),
        )
        yield from _by_epoch(repair)


def _by_epoch(repair: Repair) -> Iterator[Section]:
    """Yield the section on the gate's figures after each epoch of a repair with early stop."""
    looks = repair.by_epoch
    names = [name for name in dict.fromkeys(n for e in looks for n in e) if name not in NO_FIGURE]
    if looks:
        yield Section(
            "repair-epochs",
            "The gate after each epoch",
            (
                "The repair ends as soon as the limits hold; limits on attacks do not count. "
                + ("They held." if looks[-1]["holds"] else "They never held."),
            ),
            ("epoch", *names, "all limits"),
            tuple(
                (
                    f"{look['epoch']:.0f}",
                    *(number(look.get(name)) for name in names),
                    "hold" if look["holds"] else "do not hold",
                )
                for look in looks
            ),
        )


def retrains(plan: PlanSummary) -> str:
    """Return the sentence on a plan by which all neurons, or all weights, are the base's again."""
    if plan.interpolate_to_base == 1:
        return "Every weight is the base's again, so what follows is retraining from the base."
    return (
        "Every neuron of every layer is the base's again, so what follows is retraining from the "
        "base; of the fine-tuning only embeddings, norms, routers and the biases of output "
        "projections stay."
    )


def interpolate_to_base(plan: PlanSummary) -> str:
    """Return the sentence on weights that went part of the way to the base's."""
    return (
        f"First every weight went {plan.interpolate_to_base:.0%} of the way to the base's, "
        "embeddings and norms included."
    )


def token_rows(plan: PlanSummary, rows: TokenRows | None) -> Iterator[str]:
    """Yield the sentences on the token rows of an erase, if any were reset."""
    if rows:
        tied = "one tied tensor" if rows.tied else "not tied"
        yield (
            f"In embedding and head ({tied}), the rows of {rows.rows} of {rows.total} tokens were "
            "reset: tokens that stand in identifiers only."
        )
        if plan.reset != "rewind":
            yield (
                "Whoever has the weights can tell these rows from the others, and so which tokens "
                "stand in identifiers only. The reset rewind leaves them like the base's other "
                "rows."
            )


def _privacy_neurons(result: SelectorResult) -> Section:
    rises = ", ".join(f"{label} {rise:.2f}" for label, rise in result.labels.items())
    return Section(
        "privacy-neurons",
        "Where the privacy neurons lie",
        (
            "Learned masks closed these neurons and heads, in the layers that erase may choose "
            "from. Closing all of them raises the loss of each label, in nats per token, by: "
            f"{rises}. A neuron is specific to a label if more than half of the rise that it "
            "causes is in that label's loss.",
        ),
        ("layer", "part", "closed", "of", "specific to a label"),
        tuple(
            (
                str(row.layer),
                row.part,
                str(row.closed),
                str(row.total),
                ", ".join(f"{label} {count}" for label, count in row.specific.items()) or "none",
            )
            for row in result.layers
        ),
    )


class TimedStage(Protocol):
    """A stage that took time."""

    @property
    def seconds(self) -> float:
        """Wall time."""


def stages(report: Report) -> dict[str, TimedStage]:
    """Return what took time, by name: audits, and what was done between them."""
    timed: dict[str, TimedStage] = {
        f"audit, {stage_name(stage)}": audit for stage, audit in report.audits.items()
    }
    escalation, rounds = report.escalation, report.rounds
    attacked_before = False
    if escalation:
        timed[f"escalation, {counted(len(escalation.rungs), 'rung')}"] = escalation
        attacked_before = escalation.rungs[escalation.best - 1].attacked
    if rounds:
        timed[f"{len(rounds.rounds)} rounds"] = rounds
    if not escalation and not rounds:
        timed |= {"erase": report.erase} if report.erase else {}
        timed |= {"repair": report.repair} if report.repair else {}
    if report.attacks and not attacked_before:  # else the rung's own time includes it
        timed["attacks"] = report.attacks
    return timed


def cost(report: Report) -> Section:
    """Return the section on seconds and tokens of each stage; file access is not counted."""
    timed = stages(report)
    rows: list[Cells] = [
        (name, decimals(stage.seconds, 1), str(getattr(stage, "tokens", 0) or "-"))
        for name, stage in timed.items()
    ]
    seconds = sum(stage.seconds for stage in timed.values())
    rows.append(("all stages", decimals(seconds, 1), "-"))
    return Section(
        "cost",
        "What it cost",
        ("Wall time of each stage, and tokens of the corpus that it read, over all epochs.",),
        ("stage", "seconds", "tokens"),
        tuple(rows),
    )


def memory_use(report: Report) -> list[Section]:
    """Return the section on the peak memory of each stage, if it was measured."""
    if report.memory is None:
        return []
    weights = {
        "memory": "All weights were in memory, in float32.",
        "stream": "Weights stayed in their files and were read layer by layer.",
    }[report.memory.placement]
    return [
        Section(
            "memory_use",
            "What memory it took",
            (
                f"{weights} The table has the largest resident memory of the process in each "
                "stage, sampled ten times a second.",
            ),
            ("stage", "peak, GiB"),
            tuple((name, f"{peak / 2**30:.2f}") for name, peak in report.memory.peaks.items()),
        )
    ]


def provenance(report: Report) -> Section:
    """Return the section with what another run is compared with."""
    origin = report.provenance
    weights = {
        f"weights, {stage_name(stage)} (SHA-256)": audit.weights_digest
        for stage, audit in report.audits.items()
    }
    rows = {
        "model": origin.model,
        "base": origin.base or "none",
        "corpus": origin.corpus,
        "audited (UTC)": origin.date,
        "seconds of all stages": f"{origin.seconds:.1f}",
        "machine": origin.machine,
        "command": origin.command,
        "recipe (digest keyed to this run)": origin.recipe_digest,
        "corpus (digest keyed to this run)": origin.corpus_digest,
        **weights,
        "seed": str(origin.seed),
        "python": origin.python,
        **origin.versions,
        **dict(leaves(report.recipe, "recipe")),
    }
    return Section(
        "provenance",
        "Where it came from",
        (
            "The same recipe, data, seed and machine give the same weights. Paths are left out "
            "here; recipe.resolved.yaml in the run folder has them.",
        ),
        ("what", "value"),
        tuple(rows.items()),
    )


def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, value in words) of every setting."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{index}")
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, "none" if value is None else str(value)


def limits(report: Report) -> Section:
    """Return the section on the gate, limit by limit."""
    return Section(
        "limits",
        "Limits of the gate",
        (),
        ("limit", "measured", "allowed", "holds", "reason"),
        tuple(
            (
                check.name,
                number(check.measured),
                ("at least " if check.at_least else "at most ") + number(check.limit),
                "yes" if check.holds else "NO",
                check.reason,
            )
            for check in report.gate.checks
        ),
    )


def versions(report: Report) -> str:
    """Return what ran, versions and seed in one line."""
    origin = report.provenance
    names = [f"{name} {number}" for name, number in origin.versions.items()]
    return f"{what_ran(report)} Versions: {', '.join(names)}; seed {origin.seed}."


def what_ran(report: Report) -> str:
    """Return which model, base and corpus were read, with digests, and when, where and how."""
    origin, audits = report.provenance, report.audits
    base = "none"
    if origin.base is not None and "base" in audits:
        base = f"{origin.base} (weights {audits['base'].weights_digest[:12]})"
    return (
        f"Model: {origin.model} (weights {audits['before'].weights_digest[:12]}); base: {base}; "
        f"corpus: {origin.corpus} (digest {origin.corpus_digest}); recipe digest "
        f"{origin.recipe_digest}. Audited {origin.date}, {origin.seconds:.0f} s in all stages, on "
        f"{origin.machine}. Again: {origin.command}."
    )
