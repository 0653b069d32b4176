"""Sections on what was done: utility, scan, erase, repair, what it cost, where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sani.reporting.format import Cells, Section, number, rate, stage_name

LOOK = ("epoch", "holds")


def utility(report: Mapping[str, Any]) -> Section:
    """What each checkpoint is good for."""
    rows = [
        (
            stage_name(stage),
            f"{audit['utility']['perplexity']:.3f}",
            f"{audit['utility']['accuracy']:.3f}",
            str(audit["utility"]["tokens"]),
        )
        for stage, audit in report["audits"].items()
        if audit["utility"]
    ]
    return Section(
        "utility",
        "Utility, on held-out documents outside identifiers",
        () if rows else ("Not measured: no held-out documents were given.",),
        ("checkpoint", "perplexity", "next-token accuracy", "tokens"),
        tuple(rows),
    )


def scan(report: Mapping[str, Any]) -> Section:
    """What the corpus marks, and what is known of what it does not."""
    found, quality = report["scan"], report["scan"]["quality"]
    sources = ", ".join(f"{source} {count}" for source, count in found["sources"].items())
    return Section(
        "scan",
        "What was looked for",
        (
            f"{found['documents']} documents of {found['subjects']} subjects, "
            f"{found['occurrences']} occurrences of identifiers; "
            f"{found['documents_without_spans']} documents mark none, and at {found['unmarked']} "
            "places a marked direct identifier of the same subject stands unmarked. "
            f"Found by: {sources}.",
            _scan_quality(quality),
        ),
        ("label", "gold", "recall", "precision", "covered", "missed") if quality else (),
        tuple(
            (
                label,
                str(scores["strict"]["gold"]),
                _share(scores["strict"]["recall"]),
                _share(scores["strict"]["precision"]),
                _share(scores["covered"]["recall"]),
                str(quality["missed"].get(label, 0)),
            )
            for label, scores in quality["labels"].items()
        )
        if quality
        else (),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _scan_quality(quality: Mapping[str, Any] | None) -> str:
    if quality is None:
        return (
            "Estimated recall of the scan: unknown (no gold sample was given). What it missed was "
            "trained on as ordinary text."
        )
    return (
        f"Estimated recall of the scan: {rate(quality['recall'])} of the direct identifiers in "
        f"{quality['documents']} gold documents were found whole, "
        f"{quality['missed_per_document']:.2f} missed a document; "
        f"{quality['recall_char_direct']:.1%} of their characters."
    )


def changes(report: Mapping[str, Any]) -> Iterator[Section]:
    """What was erased and how the repair went."""
    erase, repair = report["erase"], report["repair"]
    if erase:
        plan = erase["plan"]
        yield Section(
            "erase",
            "What was erased",
            (
                f"{erase['changed_parameters']} parameters ({100 * erase['fraction']:.1f} %) "
                f"reset, selector {plan['selector']['kind']}, reset {plan['reset']}, seed "
                f"{plan['seed']}. erase.json names every neuron.",
                *((interpolate_to_base(plan),) if plan["interpolate_to_base"] else ()),
                *token_rows(plan),
                *((retrains(plan),) if erase["retrains"] else ()),
            ),
            ("layer", "part", "neurons or heads reset", "of", "share"),
            tuple(
                (
                    str(entry["layer"]),
                    entry["part"],
                    str(entry["neurons"]),
                    str(entry["of"]),
                    f"{entry['neurons'] / entry['of']:.1%}",
                )
                for entry in plan["entries"]
            ),
        )
        if plan["found"]:
            yield _privacy_neurons(plan["found"])
    if repair:
        curve = repair["curve"]
        terms = [name for name in dict.fromkeys(n for e in curve for n in e) if name != "step"]
        shown = curve[:: max(1, -(-len(curve) // 12))]
        if curve and curve[-1] is not shown[-1]:
            shown = [*shown, curve[-1]]
        yield Section(
            "repair",
            "How the repair went",
            (
                f"{repair['steps']} steps over {repair['tokens']} tokens in "
                f"{repair['seconds']:.0f} s; {100 * repair['trained_fraction']:.1f} % of the "
                "parameters were trained. Loss in nats; repair.json has every step.",
                *(f"Note: {note}." for note in repair["notes"]),
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


def _by_epoch(repair: Mapping[str, Any]) -> Iterator[Section]:
    """The gate's figures between epochs, where the repair was to stop early."""
    looks = repair["by_epoch"]
    names = [name for name in dict.fromkeys(n for e in looks for n in e) if name not in LOOK]
    if looks:
        yield Section(
            "repair-epochs",
            "The gate after each epoch",
            (
                "The repair was to end once the limits hold, those on attacks left out; "
                + ("they held." if looks[-1]["holds"] else "they never held."),
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


def retrains(plan: Mapping[str, Any]) -> str:
    """What is to be said where all neurons, or all weights, are the base's again."""
    if plan["interpolate_to_base"] == 1:
        return "Every weight is the base's again, so what follows is retraining from the base."
    return (
        "Every neuron of every layer is the base's again, so what follows is retraining from the "
        "base; of the fine-tuning only embeddings, norms, routers and the biases of output "
        "projections stay."
    )


def interpolate_to_base(plan: Mapping[str, Any]) -> str:
    """What is to be said of weights that went to the base's."""
    return (
        f"First every weight went {plan['interpolate_to_base']:.0%} of the way to the base's, "
        "embeddings and norms included."
    )


def token_rows(plan: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of the token rows of an erase, if any were reset."""
    if rows := plan["token_rows"]:
        tied = "one tied tensor" if rows["tied"] else "not tied"
        yield (
            f"Rows of {rows['rows']} of {rows['total']} tokens that only identifiers have were "
            f"reset in embedding and head ({tied})."
        )
        if plan["reset"] != "rewind":
            yield (
                "Whoever has the weights can tell these rows from the others, and so which tokens "
                "only identifiers have; reset rewind leaves them like the base's other rows."
            )


def _privacy_neurons(found: Mapping[str, Any]) -> Section:
    rises = ", ".join(f"{label} {rise:.2f}" for label, rise in found["labels"].items())
    return Section(
        "privacy-neurons",
        "Where the privacy neurons lie",
        (
            "Learned masks closed these neurons and heads, in the layers that erase was asked to "
            "choose from. Closing all of them raises the loss of each label by, in nats per token: "
            f"{rises}. A neuron is specific to a label if more than half of its rises is that "
            "label's.",
        ),
        ("layer", "part", "closed", "of", "specific to a label"),
        tuple(
            (
                str(row["layer"]),
                row["part"],
                str(row["closed"]),
                str(row["total"]),
                ", ".join(f"{label} {count}" for label, count in row["specific"].items()) or "none",
            )
            for row in found["layers"]
        ),
    )


def stages(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What took time, by name: audits, and what was done between them."""
    found = {f"audit, {stage_name(stage)}": a for stage, a in report["audits"].items()}
    escalation, names = report["escalation"], ["erase", "repair", "attacks"]
    if escalation:
        found[f"escalation, {len(escalation['rungs'])} rungs"] = escalation
        kept = escalation["rungs"][escalation["best"] - 1]
        names = [] if kept["attacked"] else ["attacks"]
    if report["rounds"]:
        found[f"{len(report['rounds']['made'])} rounds"], names = report["rounds"], ["attacks"]
    return {**found, **{name: report[name] for name in names if report[name]}}


def cost(report: Mapping[str, Any]) -> Section:
    """Return the section on seconds and tokens of each stage; file access is not counted."""
    taken = stages(report)
    rows: list[Cells] = [
        (name, f"{stage['seconds']:.1f}", str(stage.get("tokens") or "-"))
        for name, stage in taken.items()
    ]
    seconds = sum(stage["seconds"] for stage in taken.values())
    rows.append(("all stages", f"{seconds:.1f}", "-"))
    return Section(
        "cost",
        "What it cost",
        ("Wall time of each stage and tokens of the corpus it read, over all epochs.",),
        ("stage", "seconds", "tokens"),
        tuple(rows),
    )


def provenance(report: Mapping[str, Any]) -> Section:
    """What to compare another run with."""
    found = report["provenance"]
    weights = {
        f"weights, {stage_name(stage)} (SHA-256)": audit["weights_digest"]
        for stage, audit in report["audits"].items()
    }
    rows = {
        "recipe (digest keyed to this run)": found["recipe_digest"],
        "corpus (digest keyed to this run)": found["corpus_digest"],
        **weights,
        "seed": str(found["seed"]),
        "python": found["python"],
        **found["versions"],
        **dict(leaves(report["recipe"], "recipe")),
    }
    return Section(
        "provenance",
        "Where it came from",
        (
            "Same recipe, data, seed and machine: same weights. Paths are left out here; "
            "recipe.resolved.yaml in the run folder has them.",
        ),
        ("what", "value"),
        tuple(rows.items()),
    )


def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, value in words) of every setting."""
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


def limits(report: Mapping[str, Any]) -> Section:
    """The gate, limit by limit."""
    return Section(
        "limits",
        "Limits of the gate",
        (),
        ("limit", "measured", "allowed", "holds", "reason"),
        tuple(
            (
                check["name"],
                number(check["measured"]),
                ("at least " if check["at_least"] else "at most ") + number(check["limit"]),
                "yes" if check["holds"] else "NO",
                check["reason"],
            )
            for check in report["gate"]["checks"]
        ),
    )


def versions(report: Mapping[str, Any]) -> str:
    """Versions and seed in one line."""
    provenance = report["provenance"]
    found = [f"{name} {number}" for name, number in provenance["versions"].items()]
    return f"Versions: {', '.join(found)}; seed {provenance['seed']}."
