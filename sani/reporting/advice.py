"""The advice of a run in words: what failed, why, and the line of the next step.

The terminal and every format of the report print these sentences and no others.
"""

from __future__ import annotations

from collections.abc import Iterator

from sani.counting import counted
from sani.gate.advice import Advice, Cause, Setting, Why
from sani.gate.failed import FailedLimit
from sani.reporting.schema import Report

CAUSES: dict[Cause, str] = {
    "wrong_inputs": (
        "The audit may be blind: corpus, tokenizer, framing or base may not be those of the "
        "training. The reason of the limit says what to check."
    ),
    "few_records": "Few records: where chance may be the reason, this run cannot tell.",
    "cued_text": (
        "Cued text: the text around most identifiers gives them away, and such occurrences say "
        "nothing about memory."
    ),
    "scan_debris": (
        "Debris of the scan: values seem to be marked that are no identifiers, such as ordinary "
        "words. Their decoys are poor or missing."
    ),
    "missed_identifiers": (
        "Missed identifiers: what the corpus does not mark is trained on as ordinary text."
    ),
    "masked_loss": (
        "The repair teaches nothing at identifiers, so it leaves what was learned there."
    ),
    "far_from_base": "The weights are still far from the base's, and hold what was learned.",
    "weak_base": (
        "The base knows less of this kind of text than the checkpoint did. Going towards it costs "
        "skill."
    ),
    "base_knows": ("The base seems to know some of these subjects, so it is no control for them."),
    "fresh_layers": (
        "Layers were set to fresh values, and few records do not bring back their skill."
    ),
    "rate_low": (
        "The repair's loss still fell when its learning rate had gone to almost zero: it would "
        "have gone further at a higher one."
    ),
    "repair_short": (
        "The repair's loss still fell when it ended, at the learning rate for a model of this "
        "size: it would have gone further in more epochs."
    ),
    "rate_high": (
        "The repair's loss ended above what it had reached before: the learning rate was too high."
    ),
    "rounding": (
        "Rounding: a small change of the weights is lost when they are rounded. Give the "
        "checkpoint in float32 if you have it."
    ),
}
# What docs/results.md measured; no setting is advised without a row there.
MEASURED: dict[Why, str] = {
    "near_base": (
        "measured: nine tenths of the way to the base left no subject and no label above the "
        "limit; after fresh last layers some were above it, also three quarters of the way (one "
        "run each)"
    ),
    "anchor": (
        "measured: the anchor also suppresses most identifiers that the scan missed, masked repair "
        "does not"
    ),
    "skill": (
        "measured: where the checkpoint knows more than its base, it keeps the perplexity, and the "
        "AUC within 0.05 of the control's for listed identifiers"
    ),
    "epochs": (
        "measured: nine tenths of the way to the base, three epochs with weight 20 left the "
        "perplexity at 9.0, twelve at 3.5, and twelve with weight 10 at 2.7; the limits on memory "
        "held in all three (one model)"
    ),
    "no_fresh_layers": (
        "measured: half way to the base kept the perplexity that fresh layers lost (one model)"
    ),
    "retraining": (
        "measured: retraining from the base meets the limits on memory for identifiers that are "
        "marked; it learns missed ones again, and skill only in many epochs (perplexity 4.98 after "
        "four, where the unsanitized model had 2.89)"
    ),
    "rate_low": (
        "measured: nine tenths of the way to the base, 4e-3 in place of 1e-3 brought the AUC to "
        "the base from 0.603 to 0.525 and the perplexity from 3.37 to 2.83 (one model below 3 "
        "million parameters); this run's loss was still falling"
    ),
    "repair_short": (
        "measured: twice the epochs took the held-out perplexity of one chat model of 1.4 million "
        "parameters from 1.33 to 1.24, and twice the learning rate, 8e-3, to 2.67; this run's loss "
        "was still falling"
    ),
    "rate_high": "this run's loss rose again at the rate that it had",
    "rungs_left": "the budget ended the escalation before its last rung",
}


def failed_in_words(report: Report) -> list[str]:
    """Return a sentence for each limit that is not met: how much is behind it, and if chance is."""
    return [_failed(limit, report) for limit in report.advice.failed]


def _failed(limit: FailedLimit, report: Report) -> str:
    if limit.missing:
        return f"{limit.name}: not decided; the table of limits says what is missing."
    things = {
        "value" if not limit.name.startswith("labels") else "label": limit.values,
        "occurrence": limit.occurrences,
        "subject": limit.subjects,
    }
    counts = ", ".join(counted(n, noun) for noun, n in things.items() if n is not None)
    at_risk = report.at_risk.get(limit.kind) if limit.kind else None
    if limit.name.startswith("labels") and at_risk and at_risk.labels:
        counts += f" ({', '.join(at_risk.labels)})"
    chance = {
        True: "Chance may be the reason.",
        False: "That is more than chance is likely to give.",
        None: "",
    }[limit.noise]
    return f"{limit.name}: {counts or 'not met'}. {chance}".strip()


def causes_in_words(report: Report) -> list[str]:
    """Return a sentence for each likely cause."""
    return [CAUSES[cause] for cause in report.advice.causes]


def better_base(report: Report) -> str:
    """Return that the base is the better model on held-out text; nothing if it is not."""
    after, base = report.audits["after"].utility, report.audits.get("base")
    if not report.advice.base_is_better or after is None or base is None or base.utility is None:
        return ""
    return (
        f"The sanitized checkpoint is worse than its base on held-out text (perplexity "
        f"{after.perplexity:.3f} against {base.utility.perplexity:.3f}). If that text is what it "
        "is for, the base is the model to share: it never saw the records."
    )


def settings_in_words(advice: Advice) -> str:
    """Return the settings to change, as options, each reason once."""
    options = " ".join(f"--set '{setting.key}={setting.value}'" for setting in advice.settings)
    reasons = dict.fromkeys(MEASURED[setting.why] for setting in advice.settings)
    return f"{options} ({'; '.join(reasons)})" if options else ""


def next_line(advice: Advice, *, run: str = "RUN") -> str:
    """Return the line of the next step, beginning with "Next: ".

    Args:
        advice: The advice.
        run: The run folder, as it stands in a command.
    """
    return f"Next: {_next(advice, run)}"


def _next(advice: Advice, run: str) -> str:
    again = f"sani run {run} --try-next"
    if advice.next == "decide":
        return f"sani verify {run}/sanitized, read 'Not tested', and let a person decide."
    if advice.next == "share_base":
        return (
            "share the base instead, or repair with more text of the kind that the model is for. "
            "The base never saw the records."
        )
    if advice.next == "fix_inputs":
        return (
            "correct what the reasons in the table of limits name, and run again. No setting of "
            "the repair helps before that."
        )
    if advice.next == "annotate":
        return (
            "look at what the corpus marks (sani scan), correct it or add held-out people, and run "
            "again. No setting of the repair helps before that."
        )
    if advice.next == "more_records":
        return (
            "audit more records of the same training. Another seed or setting would only fit these "
            "records."
        )
    if advice.next == "give_base":
        return (
            "give the public model that the checkpoint was fine-tuned from (model.base), and run "
            "again. Without it nobody can tell memory from what anyone would guess."
        )
    if advice.next == "sanitize":
        return "sanitize the unsanitized checkpoint again, with erase and repair (sani init)."
    if advice.next == "settings":
        return f"{again} changes {_keys(advice.settings)}."
    if advice.next == "retrain":
        cost = "" if advice.seconds is None else f", at the cost of a repair ({_time(advice)})"
        if advice.settings:
            return f"{again} retrains from the base with identifiers masked{cost}."
        return (
            "retrain from the base with identifiers masked: no other setting is known to help here."
        )
    return (
        "no setting is known to help: mark what the scan missed, retrain from the base, or share "
        "the base."
    )


def _keys(settings: list[Setting]) -> str:
    return " and ".join(f"{setting.key} to {setting.value}" for setting in settings)


def _time(advice: Advice) -> str:
    return f"{advice.seconds or 0:.0f} s in this run"


def advice_lines(report: Report, *, run: str = "RUN") -> Iterator[str]:
    """Yield the sentences of the advice in the order of the first screen, without the next step.

    Args:
        report: The report.
        run: The run folder, as it stands in a command.
    """
    advice = report.advice
    yield from failed_in_words(report)
    if any(limit.occurrences or limit.subjects for limit in advice.failed):
        yield (
            f"sani report {run} --reveal names the occurrences, and private/at-risk.json the "
            "people. Both stay where the records are."
        )
    yield from (f"Likely cause. {sentence}" for sentence in causes_in_words(report))
    if better := better_base(report):
        yield better
    if words := settings_in_words(advice):
        yield f"To try: {words}."
        yield (
            "Settings that are changed until the gate holds fit these records: judge the last one "
            "once on other records of the same training."
        )
