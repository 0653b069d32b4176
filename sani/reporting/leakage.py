"""Sections on what is recited: by kind, by label, by subject, from memory or from the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sani.auditing.sampler import DEFAULT_SAMPLER
from sani.reporting.format import (
    MOST_CHARTED,
    Section,
    by_kind,
    estimate,
    number,
    p_value,
    rate,
    sampled,
    stage_name,
    worst_labels,
)

MOST_LISTED = 200  # labels


def recited(report: Mapping[str, Any]) -> Iterator[Section]:
    """What every checkpoint recites, kind by kind."""
    audits, changes = report["audits"], report["changes"]
    framings = ", ".join(f"{stage_name(s)} {a['framing']}" for s, a in audits.items())
    tried = ", ".join(f"{name} {rate(r)}" for name, r in audits["before"]["framings_tried"].items())
    unscored = [
        f"Not scored, {stage_name(stage)}: "
        + ", ".join(f"{count} {reason}" for reason, count in audit["unscored"].items())
        + "."
        for stage, audit in audits.items()
        if audit["unscored"]
    ]
    yield Section(
        "recited",
        "What is recited",
        (
            f"Rates are occurrences recited / scored, with 95 % intervals. {sampled(report)}: "
            f"seen with that probability in that many samples (temperature "
            f"{DEFAULT_SAMPLER.temperature}, top-k {DEFAULT_SAMPLER.top_k}, top-p "
            f"{DEFAULT_SAMPLER.top_p}). "
            "AUC: how often the true value is preferred to a decoy; 0.5 is chance, and the base's "
            "own value is the control.",
            f"Before against after: {changes['cured']} occurrences cured, {changes['kept']} kept, "
            f"{changes['new']} newly extractable (paired test, p {p_value(changes['p_value'])}); "
            f"{changes['beyond_control']} are extractable from the sanitized checkpoint and not "
            "from the base.",
            f"Framing (what stood around each document; the worst of those tried): {framings}.",
            *([f"Greedy on the sample, before, by framing: {tried}."] if tried else []),
            *unscored,
        ),
        ("identifiers", "checkpoint", "greedy", sampled(report), "distinct", "AUC", "exposure"),
        tuple(
            (
                *where,
                rate(f["greedy"]),
                rate(f["discoverable"]),
                rate(f["identifiers"]),
                estimate(f["auc"]),
                estimate(f["exposure"]),
            )
            for where, f in by_kind(audits)
        ),
    )


def memory(report: Mapping[str, Any]) -> Section:
    """Cued occurrences apart from the others."""
    rows = [
        (
            *where,
            rate(f["greedy"]),
            rate(f["discoverable"]),
            estimate(f["auc"]),
            _against(f["accuracy"], f["chance"]),
            estimate(f["association"]),
            _against(f["association_accuracy"], f["association_chance"]),
            estimate(f["extraction_strength"]),
            estimate(f["exact_memorization"]),
            number(f["worst_rank"]),
        )
        for scope in (":uncued", ":cued")
        for where, f in by_kind(report["audits"], scope)
        if f["greedy"]["trials"]
    ]
    return Section(
        "memory",
        "Memory, or reading",
        (
            "Cued occurrences can be guessed from the text they are asked with (a name given "
            "before, an e-mail address made of it); what is left is memory. First of C: how often "
            "the true value is the likeliest of all candidates, and what that is by chance. "
            "Association: how often it is preferred to the value of another subject.",
        ),
        (
            "identifiers",
            "checkpoint",
            "greedy",
            sampled(report),
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


def _against(value: Mapping[str, Any], chance: float | None) -> str:
    return estimate(value) if chance is None else f"{estimate(value)}, chance {chance:.3f}"


def queries(report: Mapping[str, Any]) -> Section:
    """What more samples bring."""
    probability = report["audit_settings"]["probability"]
    found = list(by_kind(report["audits"]))
    counts = list(found[0][1]["queries"]["extractable"]) if found else []
    return Section(
        "queries",
        "How many samples it takes",
        (
            f"Occurrences seen with probability {probability} in so many samples, and the expected "
            "number of samples to the first leak, as a power of ten, at the 5th, 50th and 95th "
            "hundredth of the occurrences (a dash: never drawn).",
        ),
        ("identifiers", "checkpoint", *counts, "5 %", "50 %", "95 %", "never drawn"),
        tuple(
            (
                *where,
                *(f"{r['value']:.1%}" for r in f["queries"]["extractable"].values()),
                *(_power(f["queries"]["log10_expected"][q]) for q in ("0.05", "0.5", "0.95")),
                str(f["queries"]["never"]),
            )
            for where, f in found
            if f["greedy"]["trials"]
        ),
    )


def _power(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def labels(report: Mapping[str, Any]) -> Section:
    """Before, after and the control, label by label."""
    audits = report["audits"]

    def figures(stage: str, label: str) -> Mapping[str, Any]:
        return dict(audits[stage]["figures"][f"label:{label}"]) if stage in audits else {}

    shown = worst_labels(report)
    return Section(
        "labels",
        "By label",
        (
            f"{len(shown)} labels, those of which most is left first; the chart shows "
            f"{min(len(shown), MOST_CHARTED)}, the table {min(len(shown), MOST_LISTED)} of them.",
        ),
        (
            "label",
            "kind",
            "greedy before",
            "greedy after",
            f"{sampled(report)} after",
            "AUC after",
            "AUC of the base",
        ),
        tuple(
            (
                label,
                report["scan"]["labels"][label]["kind"],
                rate(figures("before", label)["greedy"]),
                rate(figures("after", label)["greedy"]),
                rate(figures("after", label)["discoverable"]),
                estimate(figures("after", label)["auc"]),
                estimate(figures("base", label).get("auc")),
            )
            for label in shown[:MOST_LISTED]
        ),
    )


def listed(report: Mapping[str, Any]) -> Iterator[Section]:
    """Occurrences one by one, by digest."""
    changes = report["changes"]
    for key, title in (
        ("new", "Newly extractable"),
        ("beyond_control", "Extractable, and not from the base"),
        ("kept", "Still extractable"),
    ):
        listed = changes[f"{key}_listed"]
        if listed or key == "new":
            yield Section(
                key,
                title,
                (
                    f"{changes[key]} occurrences; {len(listed)} are listed. The digest is keyed "
                    "to this run: the same value has the same digest, and none can be guessed.",
                ),
                ("document number", "label", "kind", "digest"),
                tuple(
                    (str(item["document"]), item["label"], item["kind"], item["digest"])
                    for item in listed
                ),
            )


def preference(report: Mapping[str, Any]) -> Section:
    """AUC and exposure beside the control's interval, which is the band of the chart."""
    audits = report["audits"]
    control = dict(by_kind({"base": audits["base"]})) if "base" in audits else {}
    of_base = {where[0]: figures for where, figures in control.items()}
    return Section(
        "preference",
        "True value against decoys",
        (
            "An AUC of 0.5 is chance; what is chance for the exposure depends on the number of "
            "decoys, so read it off the control. Both stay high long after greedy decoding gives "
            "nothing.",
        ),
        ("identifiers", "checkpoint", "AUC", "exposure, bits", "of", "control's AUC"),
        tuple(
            (
                *where,
                estimate(f["auc"]),
                estimate(f["exposure"]),
                str(f["auc"]["trials"]),
                estimate(of_base[where[0]]["auc"]) if where[0] in of_base else "-",
            )
            for where, f in by_kind(audits)
        ),
    )


def subjects(report: Mapping[str, Any]) -> Iterator[Section]:
    """How leakage is spread over subjects, and the ten who are worst off."""
    found = report["subjects"]
    rows = [
        (kind, stage_name(stage), *map(str, counts))
        for kind, part in found["kinds"].items()
        for stage, counts in part["distribution"].items()
    ]
    yield Section(
        "subjects",
        "By subject",
        ("Subjects by how many of their occurrences are extractable (greedily or (n, p)).",),
        ("identifiers", "checkpoint", *found["classes"]),
        tuple(rows),
    )
    stages = list(report["audits"])
    for kind, part in found["kinds"].items():
        yield Section(
            f"worst-{kind}",
            f"The ten subjects of whom most {kind} identifiers are left",
            (
                "In the order of what the sanitized checkpoint still gives, then of its AUC. A "
                "subject is named by a digest that is keyed to this run.",
            ),
            (
                "subject",
                "occurrences",
                *(f"extractable, {stage_name(stage)}" for stage in stages),
                "AUC after",
            ),
            tuple(
                (
                    row["digest"],
                    str(row["occurrences"]),
                    *(str(row["extractable"][stage]) for stage in stages),
                    "-" if row["auc"] is None else f"{row['auc']:.3f}",
                )
                for row in part["worst"]
            ),
        )


def picture(report: Mapping[str, Any]) -> Section:
    """Log-probability of each occurrence against the control's."""
    found = report["picture"]
    against = stage_name(found["against"])
    return Section(
        "picture",
        "Occurrence by occurrence",
        (
            f"The log-probability of each occurrence (nats) against that of {against}: on the "
            "line the checkpoint knows no more than it, above the line it knows more. Dots are "
            "occurrences that fall together; the axes are stretched near 0, where values are "
            f"likely, and end at {found['low']:.0f}: what is less likely stands at the edge.",
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
                str(cells["occurrences"]),
                number(cells["median"]),
                number(cells["median_against"]),
                f"{cells['above']} ({cells['above'] / cells['occurrences']:.1%})",
                f"{cells['below']} ({cells['below'] / cells['occurrences']:.1%})",
            )
            for kind, stages in found["kinds"].items()
            for stage, cells in stages.items()
            if cells["occurrences"]
        ),
    )
