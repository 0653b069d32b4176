"""What a report says of attacks: each variant beside the base's, and the curves of relearning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sani.reporting.format import Section, estimate, rate

GUIDANCE = (
    "Guidance: whoever holds the unsanitized checkpoint recites by it ({old}); with the sanitized "
    "one to step away from, {new}, and with the base in its place {base}. No repair changes that: "
    "the unsanitized checkpoint must never be released, nor any copy of it."
)


def attack_sections(found: Mapping[str, Any] | None) -> list[Section]:
    """The sections on attacks; only that nothing was attacked, if nothing was."""
    if found is None:
        return [Section("attacks", "Attacks", ("Not tested: the recipe asks for no attack.",))]
    return [_table(found), *_curves(found), *_checks(found)]


def whether_tested(found: Mapping[str, Any] | None, name: str) -> str:
    """Whether an attack was made on the sanitized checkpoint, in words, for tables."""
    variants = found["attacks"].get(name, {}).values() if found else ()
    models = [row["models"] for row in variants]
    run = ["sanitized" in row and not row["sanitized"]["not_run"] for row in models]
    if not any(run):
        return "not tested"
    return "tested, see Attacks" if all(run) else "tested in part, see Attacks"


def guidance(found: Mapping[str, Any] | None) -> list[str]:
    """What guidance by the unsanitized checkpoint brings up, which the gate does not judge."""
    sentences = []
    for row in (found or {"attacks": {}})["attacks"].get("guidance", {}).values():
        models = row["models"]
        if {"sanitized", "unsanitized", "base"} <= set(models) and not models["sanitized"][
            "not_run"
        ]:
            old, new, base = (
                rate(models[n]["greedy"]) for n in ("unsanitized", "sanitized", "base")
            )
            sentences.append(GUIDANCE.format(old=old, new=new, base=base))
    return sentences


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, variants in found["attacks"].items():
        for variant, row in variants.items():
            yield name, variant, row


def _table(found: Mapping[str, Any]) -> Section:
    sentences = [
        f"On {found['occurrences']} occurrences in {found['documents']} documents. Every attack is "
        "also made on the base, which never saw the records: that is its control. Beyond: "
        "extracted (greedily or (n, p)) from the sanitized checkpoint and not from the base by the "
        "same attack; recovered: not extracted without the attack."
    ]
    if found["not_run"]:
        sentences.append(f"Not asked for: {', '.join(found['not_run'])}.")
    sentences += guidance(found)
    for name, variant, row in _rows(found):
        sentences += [
            f"Not run: {name}, {variant}, {model}: {figures['not_run']}."
            for model, figures in row["models"].items()
            if figures["not_run"]
        ]
    return Section(
        "attacks",
        "Attacks",
        tuple(sentences),
        ("attack", "variant", "checkpoint", "greedy", "(n, p)", "AUC", "beyond", "recovered"),
        tuple(
            (
                name,
                variant,
                "base (control)" if model == "base" else model,
                rate(figures["greedy"]),
                rate(figures["discoverable"]),
                estimate(figures["auc"]),
                _labels(row["beyond_control"]) if model == "sanitized" else "",
                _labels(row["recovered"]) if model == "sanitized" else "",
            )
            for name, variant, row in _rows(found)
            for model, figures in row["models"].items()
            if not figures["not_run"]
        ),
    )


def _labels(counts: Mapping[str, int] | None) -> str:
    """How many, and of which labels; a dash where that is not known."""
    if counts is None:
        return "-"
    by_label = ", ".join(f"{label} {count}" for label, count in counts.items())
    return f"{sum(counts.values())} ({by_label})" if counts else "0"


def _curves(found: Mapping[str, Any]) -> Iterator[Section]:
    rows = [
        (variant, model, *(_points(figures["curve"], name) for name in ("greedy", "discoverable")))
        for name, variant, row in _rows(found)
        if name == "relearn"
        for model, figures in row["models"].items()
        if figures["curve"]
    ]
    if rows:
        yield Section(
            "relearning",
            "Relearning, step by step",
            ("Extraction of the rest, which was not trained on, after so many steps.",),
            ("trained on", "checkpoint", "greedy", "(n, p)"),
            tuple(rows),
        )


def _points(curve: list[dict[str, Any]], figure: str) -> str:
    return ", ".join(f"{point['step']}: {point[figure]:.1%}" for point in curve)


def _checks(found: Mapping[str, Any]) -> Iterator[Section]:
    rows = []
    for row in found["attacks"].get("sampling", {}).values():
        for model, figures in row["models"].items():
            if not figures["check"]:
                continue
            leaked = ", ".join(
                f"{point['samples']}: {estimate(point['leaked'])}" for point in figures["curve"]
            )
            check = figures["check"]
            p_value = "-" if check["p_value"] is None else f"{check['p_value']:.3f}"
            seen = f"{check['found']} of {check['samples']}, {check['expected']:.1f} expected"
            rows.append((model, leaked, seen, p_value))
    if rows:
        yield Section(
            "leak-at-k",
            "Leak@k",
            (
                "The chance that an occurrence comes up in k samples, mean over occurrences, in "
                "closed form; and identifiers found by really sampling, beside what the closed "
                "form expects.",
            ),
            ("checkpoint", "k: leaked", "sampled", "p"),
            tuple(rows),
        )
