"""Advice after a gate: failed limits, likely causes and the next step, from typed figures.

A setting is advised only where docs/results.md measured that it helps. No limit is ever weakened.
`sani.reporting.advice` puts the advice into words; `sani.pipeline.try_next` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from sani.auditing.control_tests import ControlTests
from sani.auditing.record import AuditRecord
from sani.corpus.documents import Kind
from sani.gate.check import MIN_DECOY_SHARE, MIN_TRIALS, Check
from sani.gate.failed import FailedLimit, failed_limits
from sani.gate.learning_rate import RateFault
from sani.recipe import AnchorObjective, MaskObjective, Recipe, RepairSettings
from sani.scanning.record import ScanRecord

MEMORY = ("greedy", "discoverable", "sampled_beyond_control", "subjects", "labels", "auc")
TOTALS = ("greedy.", "discoverable.", "auc.")  # limits that judge cued occurrences too
INPUTS = ("unscored", "positive_control", "leftovers")  # these tell that the run measured nothing
NEAR_BASE = 0.9  # the way to the base of the rows of docs/results.md that hold today's limits
ENOUGH_EPOCHS, ENOUGH_WEIGHT = 12, 10.0  # of the repair near the base, in such a row
KEEPS_SKILL = 5.0  # repair.retain_weight of the rows "keeps skill" of docs/results.md

Cause = Literal[
    "wrong_inputs",
    "few_records",
    "cued_text",
    "scan_debris",
    "missed_identifiers",
    "masked_loss",
    "far_from_base",
    "weak_base",
    "base_knows",
    "fresh_layers",
    "rate_low",
    "repair_short",
    "rate_high",
    "rounding",
]
Next = Literal[
    "decide",  # the gate holds
    "share_base",  # the base is better on held-out text
    "fix_inputs",
    "annotate",
    "more_records",
    "give_base",
    "sanitize",
    "settings",
    "retrain",
    "nothing",
]
Why = Literal[
    "near_base",
    "anchor",
    "skill",
    "epochs",
    "no_fresh_layers",
    "retraining",
    "rungs_left",
    "rate_low",
    "repair_short",
    "rate_high",
]
RATE_CAUSES: Mapping[RateFault, Cause] = {
    "low": "rate_low",
    "short": "repair_short",
    "high": "rate_high",
}


@dataclass(frozen=True)
class Setting:
    """A key of the recipe to change, with its new value in YAML, and the measurement behind it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    key: str
    value: str
    why: Why


@dataclass(frozen=True)
class Advice:
    """Failed limits of a run, their likely causes, and the next step.

    Attributes:
        failed: Limits that are not met.
        causes: Likely causes in this run, the first to look at first.
        next: The next step.
        settings: Keys to change for it; empty where no measurement says that a key helps.
        seconds: What the repair of this run took, as the next one may; None without a repair.
        base_is_better: The base has the lower perplexity on held-out text.
        unsettled: Limits that hold, whose 95 % interval holds the limit too, with its occurrences.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    failed: list[FailedLimit]
    causes: list[Cause]
    next: Next
    settings: list[Setting]
    seconds: float | None
    base_is_better: bool
    unsettled: dict[str, int]


@dataclass(frozen=True)
class Facts:
    """The figures of a run that the advice follows.

    Attributes:
        recipe: The recipe.
        checks: What the gate said.
        audits: Audits by stage: ``before``, ``after``, and ``base`` where there is one.
        scan: The scan.
        is_rounded: Rounding to the types of the files undid a part of the repair.
        rungs_left: An escalation ended by its budget, with rungs that were not tried.
        retrained: A rung of an escalation went back to the base.
        rate: What the repair's loss says of its learning rate; None for nothing.
        usual_rate: The learning rate for a model of this size.
        seconds: What the repair took; None without one.
    """

    recipe: Recipe
    checks: Sequence[Check]
    audits: Mapping[str, AuditRecord]
    scan: ScanRecord
    is_rounded: bool = False
    rungs_left: bool = False
    retrained: bool = False
    rate: RateFault | None = None
    usual_rate: float = math.inf
    seconds: float | None = None

    @property
    def tests(self) -> Mapping[Kind, ControlTests]:
        """The control tests of the sanitized checkpoint, by kind."""
        return self.audits["after"].control_tests or {}


def advise(facts: Facts) -> Advice:
    """Return what to do after a run."""
    failed = failed_limits(facts.checks, facts.audits)
    causes = list(_causes(facts, failed))
    better = _base_is_better(facts)
    step, settings = _next(facts, failed, causes)
    if better and step in ("decide", "nothing"):
        step = "share_base"
    return Advice(
        failed=failed,
        causes=causes,
        next=step,
        settings=settings,
        seconds=facts.seconds,
        base_is_better=better,
        unsettled=_unsettled(facts),
    )


def _base_is_better(facts: Facts) -> bool:
    """Return whether the base does better on held-out text than the sanitized checkpoint."""
    base, after = _perplexity(facts, "base"), _perplexity(facts, "after")
    return base is not None and after is not None and base < after


def _perplexity(facts: Facts, stage: str) -> float | None:
    audit = facts.audits.get(stage)
    return audit.utility.perplexity if audit and audit.utility else None


def _unsettled(facts: Facts) -> dict[str, int]:
    """Return the limits on the AUC that hold though its interval holds the limit."""
    unsettled = {}
    for check in facts.checks:
        for kind, tests in facts.tests.items():
            high = tests.auc_to_base.high
            if check.name != f"auc_to_base.{kind}" or not check.holds or check.limit is None:
                continue
            if high is not None and high > check.limit:
                unsettled[check.name] = tests.auc_to_base.trials
    return unsettled


# ---- causes ----------------------------------------------------------------------------------


def _causes(facts: Facts, failed: Sequence[FailedLimit]) -> Iterator[Cause]:
    """Yield the likely causes of what failed, those that make others void first."""
    if any(limit.name.startswith(INPUTS) for limit in failed):
        yield "wrong_inputs"
    tests = [
        facts.tests[limit.kind] for limit in failed if limit.kind and limit.kind in facts.tests
    ]
    if any(limit.noise for limit in failed) or any(t.occurrences < MIN_TRIALS for t in tests):
        yield "few_records"
    if any(_is_cued(facts, limit) for limit in failed):
        yield "cued_text"
    if _is_debris(failed, tests):
        yield "scan_debris"
    memory = _fails(failed, *MEMORY)
    if (memory and _misses(facts.scan)) or _fails(failed, "scan_recall"):
        yield "missed_identifiers"
    if memory or _fails(failed, "attack"):
        yield from _causes_of_memory(facts, tests)
    if _fails(failed, "perplexity_ratio"):
        yield from _causes_of_lost_skill(facts)
    if facts.rate is not None and (memory or _fails(failed, "perplexity_ratio")):
        yield RATE_CAUSES[facts.rate]
    rounded = facts.is_rounded and (memory or _fails(failed, "perplexity_ratio"))
    if rounded or _fails(failed, "attack.quantize"):
        yield "rounding"


def _causes_of_memory(facts: Facts, tests: Sequence[ControlTests]) -> Iterator[Cause]:
    recipe = facts.recipe
    if recipe.strategy == "once" and recipe.model.base is not None and _to_base(recipe) < NEAR_BASE:
        masks = recipe.repair is None or isinstance(recipe.repair.identifier_loss, MaskObjective)
        if not recipe.only_checks:
            yield "masked_loss" if masks else "far_from_base"
    if any(test.without_control for test in tests):
        yield "base_knows"


def _causes_of_lost_skill(facts: Facts) -> Iterator[Cause]:
    base, before = _perplexity(facts, "base"), _perplexity(facts, "before")
    if base is not None and before is not None and base > before:
        yield "weak_base"
    if _resets(facts.recipe):
        yield "fresh_layers"


def _is_cued(facts: Facts, limit: FailedLimit) -> bool:
    """Return whether most occurrences are given away by their text, where that matters."""
    if limit.kind is None or not (limit.missing or limit.name.startswith(TOTALS)):
        return False
    figures = facts.audits["after"].figures
    every, uncued = figures.get(limit.kind), figures.get(f"{limit.kind}:uncued")
    if every is None or not every.greedy.trials:
        return False
    return (uncued.greedy.trials if uncued else 0) < every.greedy.trials / 2


def _is_debris(failed: Sequence[FailedLimit], tests: Sequence[ControlTests]) -> bool:
    """Return whether values seem to be marked that are no identifiers."""
    few = any(
        test.occurrences - test.without_decoys < MIN_DECOY_SHARE * test.occurrences
        for test in tests
    )
    # A label stands out and no person does: its decoys are poor, as those of ordinary words are.
    return few or (_fails(failed, "labels") and not _fails(failed, "subjects", "greedy"))


def _misses(scan: ScanRecord) -> bool:
    return scan.unmarked > 0 or scan.documents_without_spans > 0


def _fails(failed: Sequence[FailedLimit], *names: str) -> bool:
    return any(limit.name.startswith(names) for limit in failed)


def _to_base(recipe: Recipe) -> float:
    return recipe.erase.interpolate_to_base if recipe.erase else 0.0


def _resets(recipe: Recipe) -> bool:
    erase = recipe.erase
    return erase is not None and (erase.last_layers is not None or erase.layers is not None)


# ---- the next step ---------------------------------------------------------------------------


def _next(
    facts: Facts, failed: Sequence[FailedLimit], causes: Sequence[Cause]
) -> tuple[Next, list[Setting]]:
    """Return the next step, with the settings to change for it."""
    if not failed:
        return "decide", []
    if "wrong_inputs" in causes or any(_was_not_measured(facts, limit) for limit in failed):
        return "fix_inputs", []
    decided = [limit for limit in failed if not (limit.noise or limit.missing)]
    if _fails(failed, "scan_recall") or (
        "scan_debris" in causes and all(limit.name.startswith("labels") for limit in decided)
    ):
        return "annotate", []
    if not decided:
        return "more_records", []
    if _fails(decided, *MEMORY, "attack"):
        return _less_memory(facts)
    return _more_skill(facts, causes)


def _was_not_measured(facts: Facts, limit: FailedLimit) -> bool:
    """Return whether a figure is missing that no further record would give."""
    if not limit.missing or limit.name == "scan_recall":
        return False
    return limit.kind is None or limit.kind not in facts.tests


def _less_memory(facts: Facts) -> tuple[Next, list[Setting]]:
    """Return the next step where memory is left: nearer to the base, then the base itself."""
    recipe, settings = facts.recipe, []
    if recipe.only_checks:
        return "sanitize", []
    if facts.rungs_left and not facts.retrained:
        return "settings", [
            Setting(f"escalation.{name}", "null", "rungs_left")
            for name in ("seconds", "tokens")
            if recipe.escalation and getattr(recipe.escalation, name) is not None
        ]
    if recipe.model.base is None:
        return "give_base", []
    if facts.retrained or _to_base(recipe) == 1:
        return "nothing", []
    if recipe.strategy == "escalate":
        return "retrain", []
    is_masked_model = facts.audits["after"].jointly is not None
    near = _to_base(recipe) >= NEAR_BASE and not is_masked_model
    if near and (rate := list(_other_rate(facts))):
        return "settings", rate
    if _to_base(recipe) >= NEAR_BASE or is_masked_model:
        return "retrain", _retraining()
    settings.append(Setting("erase", f"{{interpolate_to_base: {NEAR_BASE}}}", "near_base"))
    if recipe.repair is None or isinstance(recipe.repair.identifier_loss, MaskObjective):
        loss = Setting("repair.identifier_loss", "{kind: anchor, to: base}", "anchor")
        settings.append(loss)
    return "settings", settings


def _retraining() -> list[Setting]:
    """Return the settings of retraining: nothing may hold on to the unsanitized model."""
    values = {
        "erase": "{interpolate_to_base: 1.0}",
        "repair.identifier_loss": "{kind: mask}",
        "repair.retain_weight": "0.0",
        "repair.adapter": "null",
        "repair.last_layers": "null",
    }
    return [Setting(key, value, "retraining") for key, value in values.items()]


def _more_skill(facts: Facts, causes: Sequence[Cause]) -> tuple[Next, list[Setting]]:
    """Return the next step where skill was lost and no memory is left."""
    recipe = facts.recipe
    has_base, once = recipe.model.base is not None, recipe.strategy == "once"
    is_causal = facts.audits["after"].jointly is None
    if not once or recipe.repair is None:
        return "nothing", []
    if _to_base(recipe) >= NEAR_BASE and not _resets(recipe):
        longer = list(_longer_repair(recipe.repair)) if is_causal else []
        longer = longer or list(_other_rate(facts))
        return ("settings", longer) if longer else ("nothing", [])
    # Weights that went to the base on their way out of memory are not sent back.
    stays = _to_base(recipe) == 0 and not _resets(recipe)
    if "weak_base" in causes and stays and not recipe.repair.retain_weight:
        return "settings", [Setting("repair.retain_weight", str(KEEPS_SKILL), "skill")]
    if "fresh_layers" in causes and has_base and is_causal:
        near = Setting("erase", f"{{interpolate_to_base: {NEAR_BASE}}}", "no_fresh_layers")
        return "settings", [near]
    return "nothing", []


def _other_rate(facts: Facts) -> Iterator[Setting]:
    """Yield half or twice the learning rate or twice the epochs, where the loss asks for it."""
    repair = facts.recipe.repair
    if repair is None:
        return
    match facts.rate:
        case "low":
            value = min(2.0 * repair.learning_rate, facts.usual_rate)
            yield Setting("repair.learning_rate", f"{value:g}", "rate_low")
        case "high":
            yield Setting("repair.learning_rate", f"{repair.learning_rate / 2:g}", "rate_high")
        case "short":
            yield Setting("repair.epochs", str(2 * repair.epochs), "repair_short")


def _longer_repair(repair: RepairSettings) -> Iterator[Setting]:
    """Yield the settings of the row near the base that kept its skill, where they differ."""
    if repair.epochs < ENOUGH_EPOCHS:
        yield Setting("repair.epochs", str(ENOUGH_EPOCHS), "epochs")
    loss = repair.identifier_loss
    if isinstance(loss, AnchorObjective) and loss.to == "base" and loss.weight > ENOUGH_WEIGHT:
        value = f"{{kind: anchor, to: base, weight: {ENOUGH_WEIGHT}}}"
        yield Setting("repair.identifier_loss", value, "epochs")
