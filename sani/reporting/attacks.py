"""Section on attacks: each variant beside the base's, and the curves of relearning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sani.attacking.result import (
    BASE,
    SANITIZED,
    UNSANITIZED,
    AttackResult,
    LeakPoint,
    ModelFigures,
    RelearnPoint,
    VariantResult,
)
from sani.counting import counted, verb
from sani.reporting.format import Section, decimals, estimate, rate, share, stage_name

GUIDANCE = (
    "Guidance: whoever holds the unsanitized checkpoint can recite with it ({old}). The sanitized "
    "checkpoint as a guide gives {new}, the base as a guide {base}. No repair changes that: "
    "the unsanitized checkpoint must never be released, nor any copy of it."
)


def attack_sections(attacks: AttackResult | None) -> list[Section]:
    """Return the sections on attacks; only that nothing was attacked, if nothing was."""
    if attacks is None:
        return [Section("attacks", "Attacks", ("Not tested: the recipe asks for no attack.",))]
    return [_table(attacks), *_curves(attacks), *_checks(attacks)]


def whether_tested(attacks: AttackResult | None, name: str) -> str:
    """Return whether an attack was made on the sanitized checkpoint, in words, for tables."""
    variants = attacks.attacks.get(name, {}).values() if attacks else ()
    run = [_was_run(row.models.get(SANITIZED)) for row in variants]
    if not any(run):
        return "not tested"
    return "tested, see Attacks" if all(run) else "tested in part, see Attacks"


def _was_run(figures: ModelFigures | None) -> bool:
    return figures is not None and not figures.not_run


def guidance(attacks: AttackResult | None) -> list[str]:
    """Return what guidance by the unsanitized checkpoint gives, which the gate does not judge."""
    sentences = []
    for row in (attacks.attacks if attacks else {}).get("guidance", {}).values():
        models = row.models
        if {SANITIZED, UNSANITIZED, BASE} <= set(models) and not models[SANITIZED].not_run:
            old, new, base = (rate(models[n].greedy) for n in (UNSANITIZED, SANITIZED, BASE))
            sentences.append(GUIDANCE.format(old=old, new=new, base=base))
    return sentences


def _rows(attacks: AttackResult) -> Iterator[tuple[str, str, VariantResult]]:
    for name, variants in attacks.attacks.items():
        for variant, row in variants.items():
            yield name, variant, row


def _table(attacks: AttackResult) -> Section:
    sentences = [
        f"{counted(attacks.occurrences, 'occurrence')} in "
        f"{counted(attacks.documents, 'document')} {verb(attacks.occurrences, 'was', 'were')} "
        "attacked. Every attack is also made on the base, which never saw the records: that is "
        "its control. Beyond: extracted (greedily or (n, p)) from the sanitized checkpoint and "
        "not from the base by the same attack. Recovered: not extracted without the attack. AUC to "
        "the base: how often the log-ratio to the base after the same attack is higher for a true "
        "value than for a decoy, of uncued occurrences."
    ]
    if attacks.not_run:
        sentences.append(f"Attacks that the recipe leaves out: {', '.join(attacks.not_run)}.")
    sentences += guidance(attacks)
    for name, variant, row in _rows(attacks):
        sentences += [
            f"Not run: {name}, {variant}, {model}: {figures.not_run}."
            for model, figures in row.models.items()
            if figures.not_run
        ]
    return Section(
        "attacks",
        "Attacks",
        tuple(sentences),
        (
            "attack",
            "variant",
            "checkpoint",
            "greedy",
            "(n, p)",
            "AUC",
            "AUC to the base",
            "beyond",
            "recovered",
        ),
        tuple(
            (
                name,
                variant,
                stage_name(BASE) if model == BASE else model,
                rate(figures.greedy),
                rate(figures.discoverable),
                estimate(figures.auc),
                estimate(row.auc_to_base.get(model)),
                _labels(row.beyond_control) if model == SANITIZED else "",
                _labels(row.recovered) if model == SANITIZED else "",
            )
            for name, variant, row in _rows(attacks)
            for model, figures in row.models.items()
            if not figures.not_run
        ),
    )


def _labels(counts: Mapping[str, int] | None) -> str:
    """Return how many, and of which labels; a dash where that is not known."""
    if counts is None:
        return "-"
    by_label = ", ".join(f"{label} {count}" for label, count in counts.items())
    return f"{sum(counts.values())} ({by_label})" if counts else "0"


def _curves(attacks: AttackResult) -> Iterator[Section]:
    rows = []
    for variant, row in attacks.attacks.get("relearn", {}).items():
        for model, figures in row.models.items():
            points = [point for point in figures.curve if isinstance(point, RelearnPoint)]
            if points:
                greedy = ", ".join(f"{point.step}: {share(point.greedy)}" for point in points)
                sampled = ", ".join(
                    f"{point.step}: {share(point.discoverable)}" for point in points
                )
                rows.append((variant, model, greedy, sampled))
    if rows:
        yield Section(
            "relearning",
            "Relearning, step by step",
            (
                "Extraction after so many steps, of the occurrences that relearning did not train "
                "on.",
            ),
            ("trained on", "checkpoint", "greedy", "(n, p)"),
            tuple(rows),
        )


def _checks(attacks: AttackResult) -> Iterator[Section]:
    rows = []
    for row in attacks.attacks.get("sampling", {}).values():
        for model, figures in row.models.items():
            check = figures.check
            if check is None:
                continue
            points = [point for point in figures.curve if isinstance(point, LeakPoint)]
            leaked = ", ".join(f"{point.samples}: {estimate(point.leaked)}" for point in points)
            p_value = decimals(check.p_value)
            seen = f"{check.found} of {check.samples}, {check.expected:.1f} expected"
            rows.append((model, leaked, seen, p_value))
    if rows:
        yield Section(
            "leak-at-k",
            "Leak@k",
            (
                "The chance that an occurrence comes up in k samples, in closed form: the mean "
                "over "
                "occurrences. Beside it, the number of identifiers that real samples contain and "
                "the number that the closed form expects.",
            ),
            ("checkpoint", "k: leaked", "sampled", "p"),
            tuple(rows),
        )
