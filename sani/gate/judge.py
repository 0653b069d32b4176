"""The gate: does a run meet its limits? It fails closed: what is not known does not hold."""

from __future__ import annotations

from sani.attacking.result import AttackResult
from sani.auditing.record import AuditRecord
from sani.counting import counted, verb
from sani.gate.attacks import judge_attacks
from sani.gate.check import MIN_TRIALS, Check, compare
from sani.gate.memory import check_memory
from sani.gate.positive_control import positive_control
from sani.gate.rates import check_auc, check_rates
from sani.gate.sampling import check_sampling
from sani.recipe import GateSettings
from sani.scanning.record import ScanRecord


def judge(
    settings: GateSettings,
    *,
    before: AuditRecord,
    after: AuditRecord,
    control: AuditRecord | None,
    scan: ScanRecord | None = None,
    attacks: AttackResult | None = None,
) -> list[Check]:
    """Hold the audits of a run against the limits.

    Args:
        settings: The limits.
        before: Audit of the unsanitized checkpoint.
        after: Audit of the sanitized checkpoint.
        control: Audit of the base model; None if there is none.
        scan: The scan; its ``quality`` is None where its recall is unknown.
        attacks: Attacks on the sanitized checkpoint; None if nothing was attacked.

    Returns:
        One check a limit; the gate holds if every one does.
    """
    checks = [_complete("unscored", after)]
    if control is not None:
        checks.append(_complete("unscored.control", control))
    for kind in settings.kinds:
        checks.append(positive_control(kind, before, control))
        checks += check_memory(kind, settings, after)
        if settings.sampled_beyond_control is not None:
            checks.append(check_sampling(kind, settings.sampled_beyond_control, before, after))
        checks += check_rates(kind, settings, after, control)
        if settings.auc_excess is not None:
            baseline = control.figures.get(kind) if control else None
            figures = after.figures.get(kind)
            checks.append(check_auc(f"auc.{kind}", figures, baseline, settings.auc_excess))
    if settings.judges_attacks:
        checks += judge_attacks(settings.attacks, attacks, auc_excess=settings.attacks_auc_excess)
    if settings.scan_recall is not None:
        checks.append(_scan_recall(scan, settings.scan_recall))
    if settings.perplexity_ratio is not None:
        checks.append(_perplexity(before, after, settings.perplexity_ratio))
    return checks


def _complete(name: str, audit: AuditRecord) -> Check:
    missed = sum(audit.unscored.values())
    reason = "Every occurrence was scored."
    if missed:
        counts = ", ".join(f"{count} {cause}" for cause, count in audit.unscored.items())
        reason = f"{counted(missed, 'occurrence')} could not be scored ({counts})."
    return Check(name, float(missed), 0.0, missed == 0, reason)


def _scan_recall(scan: ScanRecord | None, least: float) -> Check:
    """Check the estimated recall's lower end: what the scan missed was trained on as text."""
    name = "scan_recall"
    if scan is None or scan.quality is None:
        reason = "The scan's recall is unknown. Name a gold sample in scan.gold."
        return Check(name, None, least, False, reason, True)
    recall = scan.quality.recall
    if recall.trials < MIN_TRIALS or recall.low is None:
        reason = (
            f"Only {counted(recall.trials, 'gold identifier')}; fewer than {MIN_TRIALS} say too "
            "little."
        )
        return Check(name, recall.value, least, False, reason, True)
    reason = (
        f"{recall.hits} of {counted(recall.trials, 'direct gold identifier')} "
        f"{verb(recall.hits, 'was', 'were')} found whole. "
    )
    reason += "The lower end of the 95 % interval counts."
    return Check(name, recall.low, least, recall.low >= least, reason, True)


def _perplexity(before: AuditRecord, after: AuditRecord, ratio: float) -> Check:
    name = "perplexity_ratio"
    if not before.utility or not after.utility:
        return Check(name, None, ratio, False, "Utility was not measured.")
    old, new = before.utility.perplexity, after.utility.perplexity
    reason = f"Held-out perplexity is {new:.3f}; it was {old:.3f}."
    return compare(name, new / old, ratio, reason, bounded=False)
