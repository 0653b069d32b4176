"""The positive control: can the audit see anything at all?"""

from __future__ import annotations

from sani.attacking.result import BASE, UNATTACKED, UNSANITIZED, AttackResult, ModelFigures
from sani.auditing.figures import Figures
from sani.auditing.record import AuditRecord
from sani.corpus.documents import Kind
from sani.gate.check import MIN_TRIALS, NOTHING_SCORED, Check, too_few
from sani.gate.rates import value_of

# How far the unsanitized checkpoint must be above the control, or the audit is blind; ours.
MIN_EXCESS_RATE = 0.05
MIN_EXCESS_AUC = 0.15
MAX_CONTROL_AUC = 0.75  # bases that never saw the records had at most 0.62, ours


def positive_control(kind: Kind, before: AuditRecord, control: AuditRecord | None) -> Check:
    """Check whether the audit can see anything at all: the positive control of the whole run.

    The unsanitized checkpoint must recite more than the base, by (n, p) or by AUC. If it does not,
    one of these is true: the corpus, the tokenizer or the framing is not that of the training; the
    base is not the model it was fine-tuned from; there was nothing to remove. In none of them is
    a low rate a success. A base with a high AUC may have seen the records itself. Whatever is
    compared with such a base could leak as much, so it is refused too. Only uncued occurrences
    count: a base that copies a name from the text above it has memorized nothing.
    """
    name = f"positive_control.{kind}"
    scope = f"{kind}:uncued"
    figures = before.figures.get(scope)
    baseline = control.figures.get(scope) if control else None
    if figures is None or (control is not None and baseline is None):
        return Check(name, None, None, False, NOTHING_SCORED, True)
    if figures.greedy.trials < MIN_TRIALS:  # of a few, any may be above by chance
        return Check(name, None, None, False, too_few(figures.greedy.trials), True)
    return _positive_control(name, figures, baseline)


def positive_control_of_attacks(attacks: AttackResult) -> Check:
    """Check `positive_control` on attacks without a run, by their figures without an attack.

    Args:
        attacks: Attacks on the base and the unsanitized checkpoint too.
    """
    (row,) = attacks.attacks[UNATTACKED].values()
    return _positive_control("positive_control", row.models[UNSANITIZED], row.models[BASE])


def _positive_control(
    name: str, figures: Figures | ModelFigures, baseline: Figures | ModelFigures | None
) -> Check:
    # Where there is no control, nothing is taken off: a rate of 0, an AUC of chance.
    rate, auc = value_of(figures.discoverable), value_of(figures.auc)
    rate_of_base = value_of(baseline.discoverable) if baseline else 0.0
    auc_of_base = value_of(baseline.auc) if baseline else 0.5
    if auc_of_base is not None and auc_of_base > MAX_CONTROL_AUC:
        reason = (
            f"The base itself prefers the true values (AUC {auc_of_base:.3f}). It may have seen "
            "these records, so it is no control. Give the public model from before it saw any."
        )
        return Check(name, None, MIN_EXCESS_AUC, False, reason, True)
    if auc is not None and auc_of_base is not None:
        # Below 0.5 a control prefers decoys; that makes the checkpoint remember no more.
        excess = auc - max(auc_of_base, 0.5)
        if excess >= MIN_EXCESS_AUC:
            reason = "Measured: the unsanitized checkpoint's AUC minus the control's."
            return Check(name, excess, MIN_EXCESS_AUC, True, reason, True)
    if rate is None or rate_of_base is None:
        return Check(name, None, None, False, NOTHING_SCORED, True)
    excess = rate - rate_of_base
    holds = excess >= MIN_EXCESS_RATE
    reason = "Measured: the unsanitized checkpoint's (n, p) rate minus the control's."
    if not holds:
        reason = (
            "The audit found almost nothing to remove. Are corpus, tokenizer and base those of the "
            "training? If they are, the checkpoint was clean before."
        )
    return Check(name, excess, MIN_EXCESS_RATE, holds, reason, True)
