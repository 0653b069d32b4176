"""What a report is evidence for: the first screen, the threat model, and what the law asks.

It says "evidence for", never that something complies or is anonymous: that is for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sani.reporting.attacks import guidance, whether_tested
from sani.reporting.format import (
    KIND_NAMES,
    Cells,
    Section,
    estimate,
    rate,
    sampled,
    stage_name,
)

VERDICTS = {
    True: "Every limit of the recipe is met on the documents and identifiers given. This is "
    "evidence for the person who decides, not the decision.",
    False: "At least one limit of the recipe is not met. Do not share this checkpoint on the "
    "strength of this run.",
}


ONLY_CHECKED = (
    "Only checked: this run changed nothing. The checkpoint before is the unsanitized one that the "
    "recipe names, so that there is something to find."
)


def summary(report: Mapping[str, Any]) -> Section:
    """The figures that decide: control, before and after, a column each."""
    audits = {stage: audit for stage, audit in report["audits"].items() if stage != "erased"}
    rows: list[Cells] = []
    for kind in KIND_NAMES:
        if kind not in audits["after"]["figures"]:
            continue
        for what, form, figure, words in (
            ("recited greedily", "figures", "greedy", rate),
            (f"seen in {sampled(report)}", "figures", "discoverable", rate),
            ("recited greedily, masked jointly", "jointly", "greedy", rate),
            (f"seen in {sampled(report)}, masked jointly", "jointly", "discoverable", rate),
            ("AUC against decoys", "figures", "auc", estimate),
        ):
            if audits["after"][form]:
                of = [(audit[form] or {}).get(kind, {}) for audit in audits.values()]
                cells = [words(figures.get(figure)) for figures in of]
                rows.append((f"{kind}: {what}", *cells))
    for what, figure in (("perplexity", "perplexity"), ("next-token accuracy", "accuracy")):
        measured = [a["utility"][figure] if a["utility"] else None for a in audits.values()]
        if any(value is not None for value in measured):
            cells = ["-" if value is None else f"{value:.3f}" for value in measured]
            rows.append((f"utility: {what}", *cells))
    return Section(
        "summary",
        "Before, after, and the control",
        (
            f"Occurrences recited / scored, with 95 % intervals. {sampled(report)}: so many "
            "samples show it with that probability. AUC 0.5 is chance. The base model, which "
            "never saw the records, is the control: what it gives too is no memory."
            if "base" in audits
            else "Occurrences recited / scored, with 95 % intervals. There is no control: no base "
            "model was given, so what anyone could guess is not told from memory.",
            *(() if report["erase"] or report["repair"] else (ONLY_CHECKED,)),
        ),
        ("figure", *(stage_name(stage) for stage in audits)),
        tuple(rows),
    )


def untested(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What this run says nothing about, one sentence each."""
    kinds = report["gate_settings"]["kinds"]
    limit, asked = report["corpus_limit"], report["without_limit"]
    return (
        *report["not_tested"],
        *(f"{kind} identifiers: measured, but the gate sets no limit for them"
          for kind in KIND_NAMES if kind not in kinds),
        *([f"limits that the recipe does not ask for: {', '.join(asked)}"] if asked else []),
        *(f"measured, but not judged: {line}" for line in guidance(report["attacks"])),
        *([f"documents after the first {limit} of the corpus (corpus.limit)"] if limit else []),
    )  # fmt: skip


def threats(report: Mapping[str, Any]) -> Section:
    """Who is assumed to try what, and what these figures cannot say."""
    audits = report["audits"]
    membership = any(audit["membership"] for audit in audits.values())
    generation = any(audit["generation"] for audit in audits.values())
    asked = f"{report['audit_settings']['queries']} times"
    attacks = report["attacks"]
    return Section(
        "threats",
        "Threat model and limits",
        (
            "Whoever holds the sanitized weights can do with them whatever they like, for as long "
            "as they like. The table says which of it this run tried.",
            "A rate of zero is a rate of zero among the occurrences tried, under the prompts and "
            "the sampler tried; its interval says how much more there may be. Rates are pooled: a "
            "record number and a first name count alike. What no one marked in the corpus was "
            "neither looked for nor kept from training.",
            "Nothing here is a proof, and no differential privacy is claimed. The unsanitized "
            "checkpoint must never be released: the two together point at what was removed.",
        ),
        ("the adversary", "in this run"),
        (
            ("knows the text around an identifier word for word, decodes greedily", "tested"),
            (f"samples {asked} behind that text", "tested, in closed form"),
            ("picks the true value out of a list of candidates", _tested(
                report["audit_settings"]["decoys"] > 0)),
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
    )  # fmt: skip


def _tested(tested: bool) -> str:
    return "tested" if tested else "not tested"


def edpb(report: Mapping[str, Any]) -> Section:
    """The criteria of the EDPB's Opinion 28/2024 on AI models, and what here speaks to them."""
    audits = report["audits"]
    membership = any(audit["membership"] for audit in audits.values())
    generation = any(audit["generation"] for audit in audits.values())
    quality = report["scan"]["quality"]
    untried = [
        words
        for name, words in (
            ("prompting", "other prompts"),
            ("relearn", "relearning"),
            ("quantize", "quantization"),
        )
        if whether_tested(report["attacks"], name) == "not tested"
    ]
    return Section(
        "edpb",
        "EDPB Opinion 28/2024: what this is evidence for",
        (
            "The Opinion asks that, by all means reasonably likely to be used, the likelihood of "
            "extracting personal data from the model, and of obtaining it from queries, be "
            "insignificant for any data subject. Whether it is, the controller and "
            "the supervisory authority decide.",
        ),
        ("criterion", "evidence for it in this report", "what is missing"),
        (
            (
                "likelihood of direct extraction, probabilistic too",
                "What is recited; How many samples it takes; True value against decoys",
                "only identifiers that are marked, only the prompts that were tried",
            ),
            (
                "likelihood of obtaining personal data from queries, on purpose or not",
                "Recited when left to write" if generation else "none",
                "queries of users in practice" if generation else "no text was sampled in this run",
            ),
            (
                "for any data subject, not on average",
                "By subject: the distribution and the ten worst",
                "a subject's share has no interval of its own",
            ),
            (
                "all means reasonably likely to be used",
                "Threat model and limits",
                "what the threat model names as not tested; means that come up later",
            ),
            (
                "selection, preparation and minimisation of training data (design)",
                "What was looked for: the identifiers, who found them, "
                + ("and the estimated recall" if quality else "its recall unknown"),
                "why these records were needed at all",
            ),
            (
                "methodological choices that reduce identifiability (design)",
                "; ".join(
                    [
                        *(["What was erased"] if report["erase"] else []),
                        *(["How the repair went"] if report["repair"] else []),
                        "Before, after, and the control",
                    ]
                ),
                "how the fine-tuning before it was done",
            ),
            (
                "tests against membership inference",
                "Membership" if membership else "none",
                "attacks with shadow models" if membership else "no held-out documents were given",
            ),
            (
                "tests against regurgitation of training data",
                "What is recited; Newly extractable; the positive control of the gate"
                + ("; Attacks" if report["attacks"] else ""),
                ", ".join(untried) or "attacks other than those in the table",
            ),
            (
                "tests against exfiltration, model inversion, reconstruction, attribute inference",
                "Memory, or reading (association of a value with its subject)",
                "gradient-based inversion and reconstruction",
            ),
            (
                "documentation: processing, risk assessment, measures, roles",
                "this report, report.json, the manifest, the recipe",
                "the impact assessment and the opinion of the data protection officer",
            ),
        ),
    )


def hipaa(report: Mapping[str, Any]) -> Section:
    """What an expert determination must show, and what here an expert can use."""
    return Section(
        "hipaa",
        "HIPAA expert determination (45 CFR 164.514(b)(1)): what this is evidence for",
        (
            "An expert must determine that the risk is very small that the information could be "
            "used, alone or with other reasonably available information, by an anticipated "
            "recipient to identify an individual, and must document methods and results. The "
            "expert decides; this is material.",
        ),
        ("what an expert looks at", "evidence for it in this report", "what is missing"),
        (
            (
                "generally accepted statistical and scientific principles",
                "figures with intervals, controls and a paired test; sources in the README",
                "the expert's own knowledge and signature",
            ),
            (
                "risk that the information identifies an individual, alone",
                "What is recited; By subject; True value against decoys",
                "identifiers that are not marked",
            ),
            (
                "in combination with other reasonably available information",
                "indirect identifiers, in every table beside direct ones",
                "linkage with outside sources (registers, voter lists) was not tried",
            ),
            (
                "the anticipated recipient",
                "Threat model and limits: a recipient who holds the weights",
                "contracts and access controls of the actual recipient",
            ),
            (
                "replicability, availability, distinguishability of features",
                "By label, with the number of distinct values in scan.json",
                "how well known each kind of value is outside",
            ),
            (
                "documented methods and results",
                "this report; Where it came from",
                "the date on which the determination should be looked at again",
            ),
        ),
    )
