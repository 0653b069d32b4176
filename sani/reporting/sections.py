"""What a report says, section by section: titles, sentences, tables. Both formats show the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STAGE_NAMES = {
    "base": "base (control)",
    "before": "before",
    "erased": "after erase",
    "after": "after (sanitized)",
}
KIND_NAMES = ("direct", "indirect")
ATTACKS = {
    "loss": "loss",
    "reference": "loss minus the base's",
    "zlib": "zlib",
    "min_k": "min-k 20 %",
    "min_k_plus": "min-k++ 20 %",
}

Cells = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, and a table; a table without rows is left out."""

    title: str
    sentences: tuple[str, ...] = ()
    head: Cells = ()
    rows: tuple[Cells, ...] = ()


def audit_sections(report: Mapping[str, Any]) -> list[Section]:
    """What `sani audit` shows beside its first table."""
    return [
        _memory(report),
        _queries(report),
        *_membership(report),
        *_generation(report),
        *_pretraining(report),
        _rounds(report),
    ]


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Everything below the gate, in the order in which it is read."""
    return [
        *_recited(report),
        _memory(report),
        _queries(report),
        *_membership(report),
        *_generation(report),
        *_pretraining(report),
        _utility(report),
        _rounds(report),
        _labels(report),
        *_listed(report),
        *_privacy_neurons(report),
        _done(report),
    ]


def _name(stage: str) -> str:
    return STAGE_NAMES.get(stage, stage)


def rate(rate: Mapping[str, Any] | None) -> str:
    """A rate with its numerator, denominator and interval; a dash where nothing was tried."""
    if not rate or rate["value"] is None:
        return "-"
    return (
        f"{rate['value']:.1%} ({rate['hits']}/{rate['trials']}; "
        f"{rate['low']:.1%} to {rate['high']:.1%})"
    )


def estimate(estimate: Mapping[str, Any] | None) -> str:
    """A mean with its interval; a dash where there is none."""
    if not estimate or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} (one subject, no interval)"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def number(value: float | None) -> str:
    """Four digits, or that it is not known."""
    return "unknown" if value is None else f"{value:.4g}"


def _by_kind(audits: Mapping[str, Any], scope: str = "") -> Iterator[tuple[Cells, Any]]:
    """(kind and checkpoint, figures) for every kind and stage that has the scope."""
    for kind in KIND_NAMES:
        for stage, audit in audits.items():
            for form, suffix in (("figures", ""), ("jointly", ", masked jointly")):
                figures = (audit[form] or {}).get(kind + scope)
                if figures is not None:
                    yield (kind + scope.replace(":", ", "), _name(stage) + suffix), figures


def _sampled(report: Mapping[str, Any]) -> str:
    settings = report["audit_settings"]
    return f"({settings['queries']}, {settings['probability']})"


def _recited(report: Mapping[str, Any]) -> Iterator[Section]:
    settings, audits, changes = report["audit_settings"], report["audits"], report["changes"]
    sampler = settings["sampler"]
    framings = ", ".join(f"{_name(s)} {a['framing']}" for s, a in audits.items())
    tried = ", ".join(f"{name} {rate(r)}" for name, r in audits["before"]["framings_tried"].items())
    unscored = [
        f"Not scored, {_name(stage)}: "
        + ", ".join(f"{count} {reason}" for reason, count in audit["unscored"].items())
        + "."
        for stage, audit in audits.items()
        if audit["unscored"]
    ]
    yield Section(
        "What is recited",
        (
            f"Rates are occurrences recited / scored, with 95 % intervals. {_sampled(report)}: "
            f"seen with that probability in that many samples (temperature "
            f"{sampler['temperature']}, top-k {sampler['top_k']}, top-p {sampler['top_p']}). "
            "AUC: how often the true value is preferred to a decoy; 0.5 is chance, and the base's "
            "own value is the control.",
            f"Before against after: {changes['cured']} occurrences cured, {changes['kept']} kept, "
            f"{changes['new']} newly extractable (paired test, p {number(changes['p_value'])}); "
            f"{changes['beyond_control']} are extractable from the sanitized checkpoint and not "
            "from the base.",
            f"Framing (what stood around each document; the worst of those tried): {framings}.",
            *([f"Greedy on the sample, before, by framing: {tried}."] if tried else []),
            *unscored,
        ),
        ("identifiers", "checkpoint", "greedy", _sampled(report), "distinct", "AUC", "exposure"),
        tuple(
            (
                *where,
                rate(f["greedy"]),
                rate(f["discoverable"]),
                rate(f["identifiers"]),
                estimate(f["auc"]),
                estimate(f["exposure"]),
            )
            for where, f in _by_kind(audits)
        ),
    )


def _memory(report: Mapping[str, Any]) -> Section:
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
        for where, f in _by_kind(report["audits"], scope)
        if f["greedy"]["trials"]
    ]
    return Section(
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
            _sampled(report),
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


def _queries(report: Mapping[str, Any]) -> Section:
    probability = report["audit_settings"]["probability"]
    found = list(_by_kind(report["audits"]))
    counts = list(found[0][1]["queries"]["extractable"]) if found else []
    return Section(
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


def _membership(report: Mapping[str, Any]) -> Iterator[Section]:
    rows: list[Cells] = []
    sentences: list[str] = []
    for stage, audit in report["audits"].items():
        found = audit["membership"]
        if not found:
            continue
        sentences = found["warnings"]
        one_each = (found["members"], found["non_members"]) == (
            found["member_subjects"], found["non_member_subjects"],
        )  # fmt: skip
        for level, attacks in found["attacks"].items():
            if level == "subject" and one_each:  # the same figures again
                continue
            for name, attack in attacks.items():
                rows.append(
                    (
                        level,
                        ATTACKS[name],
                        _name(stage),
                        estimate(attack["auc"]),
                        f"{attack['either_way']:.3f}",
                        *(rate(tpr) for tpr in attack["tpr"].values()),
                    )
                )
    if rows:
        yield Section(
            "Membership",
            (
                "Can documents and subjects of the corpus be told from held-out ones? AUC 0.5 is "
                "chance; what the base has is not memory but how the two sets differ.",
                *(f"{line}." for line in sentences),
            ),
            (
                "level",
                "attack",
                "checkpoint",
                "AUC",
                "either way",
                "TPR at 1 % FPR",
                "TPR at 0.1 % FPR",
            ),
            tuple(sorted(rows, key=lambda row: (row[0], list(ATTACKS.values()).index(row[1])))),
        )


def _generation(report: Mapping[str, Any]) -> Iterator[Section]:
    rows: list[Cells] = []
    curves: list[str] = []
    last: Mapping[str, Any] = {}
    for stage, audit in report["audits"].items():
        found = audit["generation"]
        if not found:
            continue
        last = found
        more = found.get("beyond")
        for prompts, recited in found["recited"].items():
            unseen = recited["unseen"]
            of_base = "-"
            if more:
                of_base = str(
                    more["identifiers"] if prompts == "all" else more["by_prompt"].get(prompts, 0)
                )
            rows.append(
                (
                    _name(stage),
                    prompts,
                    rate(recited["with_hit"]),
                    str(recited["identifiers"]),
                    str(recited["inexact"]),
                    str(recited["subjects"]),
                    _distinct(recited["per_thousand"]),
                    "-" if unseen is None else f"{unseen:.0f}",
                    of_base,
                )
            )
        points = found["recited"]["all"]["curve"]
        told = ", ".join(f"{point['value']:.0f} in {point['samples']}" for point in points)
        curves.append(f"Saturation, {_name(stage)}: distinct identifiers expected: {told}.")
    if not rows:
        return
    short = sum(last["too_short"].values())
    yield Section(
        "Recited when left to write",
        (
            f"Samples of {last['new_tokens']} tokens from each kind of prompt, searched for "
            f"{last['searched']} distinct identifiers; {short} values are too short to be searched "
            "for. What stands in a prompt never counts. Inexact: only a looser reading finds it "
            "(day and month open, words turned around). Still to come: identifiers that more "
            "samples would bring, at least.",
            *curves,
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
        tuple(rows),
    )


def _distinct(value: Mapping[str, Any] | None) -> str:
    return "-" if not value else f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


def _pretraining(report: Mapping[str, Any]) -> Iterator[Section]:
    audits = report["pretraining"]["audits"]
    if audits:
        changes = report["pretraining"]["changes"]
        yield Section(
            "What the base may have seen",
            (
                "Documents that were never in the corpus: a fine-tuned model may leak what only "
                "its base saw (Borkar 2023).",
                *(
                    f"Base against {_name(stage)}: {c['new']} occurrences newly "
                    f"extractable, {c['cured']} no longer (paired test, p {number(c['p_value'])})."
                    for stage, c in changes.items()
                ),
            ),
            ("identifiers", "checkpoint", "greedy", _sampled(report), "AUC"),
            tuple(
                (*where, rate(f["greedy"]), rate(f["discoverable"]), estimate(f["auc"]))
                for where, f in _by_kind(audits)
            ),
        )


def _utility(report: Mapping[str, Any]) -> Section:
    rows = [
        (
            _name(stage),
            f"{audit['utility']['perplexity']:.3f}",
            f"{audit['utility']['accuracy']:.3f}",
            str(audit["utility"]["tokens"]),
        )
        for stage, audit in report["audits"].items()
        if audit["utility"]
    ]
    return Section(
        "Utility, on held-out documents outside identifiers",
        () if rows else ("Not measured: no held-out documents were given.",),
        ("checkpoint", "perplexity", "next-token accuracy", "tokens"),
        tuple(rows),
    )


def _rounds(report: Mapping[str, Any]) -> Section:
    return Section(
        "The onion",
        (
            "What each stage cured and brought up, occurrence by occurrence; first seen: newly "
            "extractable, and at no earlier stage.",
        ),
        ("stage", "cured", "kept", "newly extractable", "first seen", "p of the paired test"),
        tuple(
            (
                f"{_name(item['from'])} to {_name(item['to'])}",
                *(str(item[key]) for key in ("cured", "kept", "new", "first_seen")),
                number(item["p_value"]),
            )
            for item in report["rounds"]
        ),
    )


def _labels(report: Mapping[str, Any]) -> Section:
    audits = report["audits"]

    def figures(stage: str, label: str) -> Mapping[str, Any]:
        return dict(audits[stage]["figures"][f"label:{label}"]) if stage in audits else {}

    return Section(
        "By label",
        (),
        (
            "label",
            "kind",
            "greedy before",
            "greedy after",
            f"{_sampled(report)} after",
            "AUC after",
            "AUC of the base",
        ),
        tuple(
            (
                label,
                count["kind"],
                rate(figures("before", label)["greedy"]),
                rate(figures("after", label)["greedy"]),
                rate(figures("after", label)["discoverable"]),
                estimate(figures("after", label)["auc"]),
                estimate(figures("base", label).get("auc")),
            )
            for label, count in report["scan"]["labels"].items()
        ),
    )


def _listed(report: Mapping[str, Any]) -> Iterator[Section]:
    for title, listed in (
        ("Extractable, and not from the base", report["changes"]["beyond_control_listed"]),
        ("Still extractable", report["changes"]["kept_listed"]),
        ("Newly extractable", report["changes"]["new_listed"]),
    ):
        if listed:
            yield Section(
                title,
                ("At most 50 are listed; the digest is keyed to this run.",),
                ("document number", "label", "kind", "digest"),
                tuple(
                    (str(item["document"]), item["label"], item["kind"], item["digest"])
                    for item in listed
                ),
            )


def _privacy_neurons(report: Mapping[str, Any]) -> Iterator[Section]:
    found = report["erase"] and report["erase"]["plan"].get("found")
    if not found:
        return
    rises = ", ".join(f"{label} {rise:.2f}" for label, rise in found["labels"].items())
    yield Section(
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
                str(row["of"]),
                ", ".join(f"{label} {count}" for label, count in row["specific"].items()) or "none",
            )
            for row in found["layers"]
        ),
    )


def _done(report: Mapping[str, Any]) -> Section:
    scan, erase, repair = report["scan"], report["erase"], report["repair"]
    sentences = [
        f"{scan['documents']} documents of {scan['subjects']} subjects, {scan['occurrences']} "
        f"occurrences of identifiers; {scan['documents_without_spans']} documents mark none, and "
        f"at {scan['unmarked']} places a marked direct identifier of the same subject stands "
        "unmarked."
    ]
    found = ", ".join(f"{source} {count}" for source, count in scan["sources"].items())
    sentences.append(f"Found by: {found}. {_scan_quality(scan['quality'])}")
    if erase:
        sentences.append(
            f"Erase: {erase['changed_parameters']} parameters ({100 * erase['fraction']:.1f} %) "
            f"reset, selector {erase['plan']['selector']['kind']}, reset {erase['plan']['reset']}."
        )
        if rows := erase["plan"].get("token_rows"):
            tied = "one tied tensor" if rows["tied"] else "not tied"
            sentences.append(
                f"Rows of {rows['rows']} of {rows['of']} tokens that only identifiers have were "
                f"reset in embedding and head ({tied})."
            )
    if repair:
        sentences.append(
            f"Repair: {repair['steps']} steps over {repair['tokens']} tokens in "
            f"{repair['seconds']:.0f} s."
        )
    return Section("What was done", tuple(sentences))


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


def limits(report: Mapping[str, Any]) -> Section:
    """The gate, limit by limit."""
    return Section(
        "Limits",
        (),
        ("limit", "measured", "allowed", "holds", "why"),
        tuple(
            (
                check["name"],
                number(check["measured"]),
                ("at least " if check["at_least"] else "at most ") + number(check["limit"]),
                "yes" if check["holds"] else "NO",
                check["why"],
            )
            for check in report["gate"]["checks"]
        ),
    )


def versions(provenance: Mapping[str, Any]) -> str:
    """Versions and seed in one line."""
    found: Sequence[str] = [f"{name} {number}" for name, number in provenance["versions"].items()]
    return f"Versions: {', '.join(found)}; seed {provenance['seed']}."
