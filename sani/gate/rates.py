"""Checks of rates and AUCs: of all occurrences together, against those of the base."""

from __future__ import annotations

from collections.abc import Iterator

from sani.attacking.result import ModelFigures
from sani.auditing.figures import Figures
from sani.auditing.record import AuditRecord
from sani.corpus.documents import Kind
from sani.counting import counted, verb
from sani.gate.check import (
    MIN_TRIALS,
    NOTHING_SCORED,
    Check,
    compare,
    few_decoys,
    too_few,
)
from sani.intervals import Estimate, Rate
from sani.recipe import GateSettings, Limit

CONTROL_MARGIN = 0.002  # a rate may be this much above the control's; ours


def value_of(figure: Rate | Estimate | None) -> float | None:
    """Return the value of a figure that may be missing."""
    return None if figure is None else figure.value


def check_rates(
    kind: Kind, settings: GateSettings, after: AuditRecord, control: AuditRecord | None
) -> Iterator[Check]:
    """Yield the checks of greedy and (n, p) extraction of one kind.

    A masked language model is asked in two ways, and must meet the limits in both.
    """
    forms = [("", after.figures, control.figures if control else {})]
    if after.jointly:
        forms.append((".jointly", after.jointly, (control.jointly if control else None) or {}))
    for suffix, figures_by_scope, baselines in forms:
        figures, baseline = figures_by_scope.get(kind), baselines.get(kind)
        for name, limit in (("greedy", settings.greedy), ("discoverable", settings.discoverable)):
            if limit is not None:
                yield check_rate(
                    f"{name}.{kind}{suffix}",
                    rate_named(figures, name),
                    rate_named(baseline, name),
                    limit,
                )


def rate_named(figures: Figures | ModelFigures | None, name: str) -> Rate | None:
    """Return the rate ``greedy`` or ``discoverable`` of the figures, if there are any."""
    if figures is None:
        return None
    return figures.greedy if name == "greedy" else figures.discoverable


def check_rate(name: str, rate: Rate | None, baseline: Rate | None, limit: Limit) -> Check:
    """Check a rate against a fraction, or against the control's interval.

    Within the control's interval means: at most its upper end, and at most `CONTROL_MARGIN`
    above its value. So a handful of occurrences, whose interval is wide, cannot pass by it.
    """
    if rate is None or rate.value is None:
        return Check(name, None, None, False, NOTHING_SCORED)
    if rate.trials < MIN_TRIALS:
        return Check(name, rate.value, None, False, too_few(rate.trials))
    reason = (
        f"{rate.hits} of {counted(rate.trials, 'occurrence')} {verb(rate.hits, 'is', 'are')} "
        "extracted. "
    )
    if limit != "control":
        return compare(name, rate.value, float(limit), reason + "The recipe sets the limit.")
    if baseline is None or baseline.value is None or baseline.high is None:
        return Check(name, rate.value, None, False, "There is no control to compare with.")
    highest = min(baseline.high, baseline.value + CONTROL_MARGIN)
    reason += f"From the base: {baseline.hits} of {baseline.trials}."
    return compare(name, rate.value, highest, reason)


def check_auc(name: str, figures: Figures | None, baseline: Figures | None, excess: float) -> Check:
    """Check the AUC of an audit against that of the base's audit."""
    if figures is None:
        return Check(name, None, None, False, NOTHING_SCORED)
    auc = figures.auc
    if problem := few_decoys(auc.trials, figures.greedy.trials):
        return Check(name, auc.value, None, False, problem)
    control = value_of(baseline.auc) if baseline else None
    if auc.value is None or control is None:
        return Check(name, auc.value, None, False, "No decoys were scored, or no control.")
    if auc.trials < MIN_TRIALS:
        return Check(name, auc.value, None, False, too_few(auc.trials))
    return auc_excess_check(name, auc.value, auc, control, excess)


def auc_excess_check(
    name: str, value: float, auc: Estimate, control: float, excess: float
) -> Check:
    """Check that an AUC is at most so far above the control's."""
    # Below 0.5 a control prefers decoys, which leaves no more room than none at all.
    highest = max(control, 0.5) + excess
    above = "that" if control >= 0.5 else "chance (0.5)"
    reason = f"The control's AUC is {control:.3f}; {excess} above {above} is allowed."
    return compare(name, value, highest, reason + unsettled(auc, highest))


def unsettled(auc: Estimate, limit: float) -> str:
    """Return a sentence that says so if the interval of an AUC holds the limit, else nothing."""
    if auc.low is None or auc.high is None or not auc.low <= limit <= auc.high:
        return ""
    return (
        f" The limit lies within the 95 % interval, {auc.low:.3f} to {auc.high:.3f}: "
        f"{counted(auc.trials, 'occurrence')} {verb(auc.trials, 'does', 'do')} not settle this."
    )
