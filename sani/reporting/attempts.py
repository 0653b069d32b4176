"""Sections on other ways to the same records: membership, sampling, what the base had seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sani.reporting.format import (
    Cells,
    Section,
    by_kind,
    estimate,
    p_value,
    rate,
    sampled,
    stage_name,
)

ATTACKS = {
    "loss": "loss",
    "reference": "loss minus the base's",
    "zlib": "zlib",
    "min_k": "min-k 20 %",
    "min_k_plus": "min-k++ 20 %",
}


def membership(report: Mapping[str, Any]) -> Iterator[Section]:
    """Can documents and subjects of the corpus be told from others?"""
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
                        stage_name(stage),
                        estimate(attack["auc"]),
                        f"{attack['either_way']:.3f}",
                        *(rate(tpr) for tpr in attack["tpr"].values()),
                    )
                )
    if not rows:
        yield Section(
            "membership", "Membership", ("Not tested: no held-out documents were given.",)
        )
    else:
        yield Section(
            "membership",
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


def generation(report: Mapping[str, Any]) -> Iterator[Section]:
    """What came up in samples."""
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
                    stage_name(stage),
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
        curves.append(f"Saturation, {stage_name(stage)}: distinct identifiers expected: {told}.")
    if not rows:
        yield Section(
            "generation",
            "Recited when left to write",
            ("Not tested: the recipe asks for no samples (audit.generation).",),
        )
        return
    short = sum(last["too_short"].values())
    yield Section(
        "generation",
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


def pretraining(report: Mapping[str, Any]) -> Iterator[Section]:
    """Documents that only the base may have seen."""
    audits = report["pretraining"]["audits"]
    if audits:
        changes = report["pretraining"]["changes"]
        yield Section(
            "pretraining",
            "What the base may have seen",
            (
                "Documents that were never in the corpus: a fine-tuned model may leak what only "
                "its base saw (Borkar 2023).",
                *(
                    f"Base against {stage_name(stage)}: {c['new']} occurrences newly "
                    f"extractable, {c['cured']} no longer (paired test, p {p_value(c['p_value'])})."
                    for stage, c in changes.items()
                ),
            ),
            ("identifiers", "checkpoint", "greedy", sampled(report), "AUC"),
            tuple(
                (*where, rate(f["greedy"]), rate(f["discoverable"]), estimate(f["auc"]))
                for where, f in by_kind(audits)
            ),
        )


def onion(report: Mapping[str, Any]) -> Section:
    """What each stage cured and brought up."""
    return Section(
        "onion",
        "The onion",
        (
            "What each stage cured and brought up, occurrence by occurrence; first seen: newly "
            "extractable, and at no earlier stage.",
        ),
        ("stage", "cured", "kept", "newly extractable", "first seen", "p of the paired test"),
        tuple(
            (
                f"{stage_name(item['from'])} to {stage_name(item['to'])}",
                *(str(item[key]) for key in ("cured", "kept", "new", "first_seen")),
                p_value(item["p_value"]),
            )
            for item in report["onion"]
        ),
    )
