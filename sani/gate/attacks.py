"""Checks of attacks: the sanitized checkpoint against the base under the same attack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from sani.attacking.result import BASE, SANITIZED, AttackResult, ModelFigures, VariantResult
from sani.counting import counted, verb
from sani.gate.check import MIN_TRIALS, Check, compare, few_decoys, too_few
from sani.gate.rates import auc_excess_check, check_rate, rate_named, unsettled
from sani.recipe import Limit

NOT_JUDGED = "guidance"


def judge_attacks(
    limit: Limit | None, attacks: AttackResult | None, *, auc_excess: float | None = None
) -> list[Check]:
    """Hold every attack on the sanitized checkpoint against the same attack on the base.

    There is one check for each attack and each figure that has a limit: that of the variant which
    is furthest above its limit. An attack that was not run, in any of its variants, does not hold.
    Neither does one that left an occurrence unscored. Guidance is not judged: it needs the
    unsanitized checkpoint, and shows why that one must never be released.

    Args:
        limit: Limit of greedy and (n, p) rates; None for none.
        attacks: The attacks; None if nothing was attacked.
        auc_excess: How far the AUC of the log-ratio to the base after the same attack may be above
            0.5, and that of a probe above the base's; None for no limit. Attacks that score no
            decoys are not judged by it.
    """
    if attacks is None:
        return [Check("attacks", None, None, False, "No attack was run.")]
    checks = []
    for name in attacks.not_run:
        if name != NOT_JUDGED:
            reason = f"The attack was not run. The setting attack.{name} turns it on."
            checks.append(Check(f"attack.{name}", None, None, False, reason))
    for name, variants in attacks.attacks.items():
        if name == NOT_JUDGED:
            continue
        if limit is not None:
            checks += [
                _worst_rate(f"attack.{name}.{figure}", figure, variants, limit)
                for figure in ("greedy", "discoverable")
            ]
        if auc_excess is not None:
            checks += _worst_auc(f"attack.{name}.auc", variants, auc_excess)
    if auc_excess is not None and not any(check.name.endswith(".auc") for check in checks):
        checks.append(Check("attack.auc", None, None, False, "No attack gave an AUC."))
    return checks


def _worst_rate(
    name: str, figure: str, variants: Mapping[str, VariantResult], limit: Limit
) -> Check:
    """Return the check of the variant whose rate is furthest above its limit."""
    checks = []
    for variant, row in variants.items():
        figures = row.models.get(SANITIZED)
        # A variant that was run and has no rates measures something else, as a probe does.
        if figures is None or figures.not_run or figures.greedy is not None:
            checks.append(_variant_rate(name, figure, variant, row.models, limit))
    no_rate = Check(name, None, None, False, "The attack gave no rate.")
    return max(checks, key=_severity, default=no_rate)


def _worst_auc(name: str, variants: Mapping[str, VariantResult], excess: float) -> list[Check]:
    """Return the check of the variant whose AUC is furthest above its limit; none without AUC."""
    checks = [
        _variant_auc(name, variant, row, excess)
        for variant, row in variants.items()
        # A variant that was run on every model and has no AUC scores no decoys, as sampling.
        if any(figures.not_run or figures.auc is not None for figures in row.models.values())
    ]
    return [max(checks, key=_severity)] if checks else []


def _variant_auc(name: str, variant: str, row: VariantResult, excess: float) -> Check:
    aucs = []
    for model in (SANITIZED, BASE):
        figures = row.models.get(model)
        auc = figures.auc if figures else None
        if figures is None or figures.not_run or auc is None or auc.value is None:
            cause = (figures.not_run if figures else "") or "no AUC"
            return Check(name, None, None, False, f"{variant}, {model}: {cause}.")
        if figures.unscored:
            reason = f"{variant}, {model}: {_unscored(figures.unscored)}."
            return Check(name, auc.value, None, False, reason)
        if auc.trials < MIN_TRIALS:
            return Check(name, auc.value, None, False, f"{variant}: {too_few(auc.trials)}")
        trials = figures.greedy.trials if figures.greedy else auc.trials
        if problem := few_decoys(auc.trials, trials):
            return Check(name, auc.value, None, False, f"{variant}: {problem}")
        aucs.append((auc.value, auc, figures.greedy))
    (value, auc, rate), (control, _, _) = aucs
    if rate is None:  # a probe ranks values, and gives no probabilities to divide by the base's
        check = auc_excess_check(name, value, auc, control, excess)
        return replace(check, reason=f"{variant}: {check.reason}")
    to_base, highest = row.auc_to_base.get(SANITIZED), 0.5 + excess
    if to_base is None or to_base.value is None:
        return Check(name, None, highest, False, f"{variant}: no uncued occurrence has decoys.")
    if to_base.trials < MIN_TRIALS:
        return Check(name, to_base.value, highest, False, f"{variant}: {too_few(to_base.trials)}")
    reason = (
        f"{variant}: the AUC of the log-ratio to the base after the same attack; {excess} above "
        f"chance (0.5) is allowed.{unsettled(to_base, highest)}"
    )
    return compare(name, to_base.value, highest, reason)


def _variant_rate(
    name: str, figure: str, variant: str, models: Mapping[str, ModelFigures], limit: Limit
) -> Check:
    sanitized, base = models.get(SANITIZED), models.get(BASE)
    if sanitized is None or sanitized.not_run or (base is not None and base.not_run):
        missing = sanitized if sanitized is None or sanitized.not_run else base
        cause = missing.not_run if missing else "no checkpoint"
        return Check(name, None, None, False, f"{variant}: The attack was not run: {cause}.")
    check = check_rate(name, rate_named(sanitized, figure), rate_named(base, figure), limit)
    for model, figures in ((" on the base", base), ("", sanitized)):
        if figures is not None and figures.unscored:
            reason = f"{_unscored(figures.unscored)}{model}."
            check = replace(check, holds=False, reason=reason)
    return replace(check, reason=f"{variant}: {check.reason}")


def _unscored(number: int) -> str:
    return f"{counted(number, 'occurrence')} {verb(number, 'was', 'were')} not scored"


def _severity(check: Check) -> tuple[bool, float]:
    """Return the sort key of checks: those that do not hold are highest, then by the excess."""
    if check.measured is None or check.limit is None:
        return True, math.inf
    return not check.holds, check.measured - check.limit
