"""A whole recipe: its sections, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sani.recipe.attack_settings import AttackSettings
from sani.recipe.erase_settings import EraseSettings
from sani.recipe.ladder import EscalationSettings, Rung, complete_rung, default_ladder
from sani.recipe.repair_settings import RepairSettings
from sani.recipe.sections import (
    AuditSettings,
    CorpusSettings,
    GateSettings,
    ModelSettings,
    ScanSettings,
)
from sani.recipe.settings import PlacementChoice, Settings


class Recipe(Settings):
    """The whole job, one section a stage. Without a section erase or repair, that stage is skipped.

    Without both, `model.path` is judged as it is, and `model.unsanitized` is the positive control.
    """

    version: Literal[2] = Field(description="version of the recipe's format")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random draw")
    strategy: Literal["once", "escalate"] = Field(
        "once",
        description="once: use the sections erase and repair; escalate: try the rungs of "
        "escalation.ladder until the gate holds",
    )
    rounds: int = Field(
        1,
        ge=1,
        le=100,
        description="maximum number of rounds of erase and repair; another round begins while "
        "anything is extractable that the base does not give, and its selectors look at that alone",
    )
    placement: PlacementChoice = Field(
        "auto",
        description="memory: whole models in memory; stream: weights stay in their files and are "
        "read layer by layer; auto: stream where memory does not suffice",
    )
    output: Literal["checkpoint", "adapter"] = Field(
        "checkpoint",
        description="what is written: checkpoint: a whole model, an adapter merged into its base; "
        "adapter: model.path is a LoRA adapter and stays one, erased and repaired within, for the "
        "same base",
    )
    model: ModelSettings
    corpus: CorpusSettings
    scan: ScanSettings = Field(default_factory=ScanSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    erase: EraseSettings | None = None
    repair: RepairSettings | None = None
    escalation: EscalationSettings | None = Field(None, validate_default=True)
    attack: AttackSettings | None = None
    gate: GateSettings = Field(default_factory=GateSettings)

    @field_validator("escalation")
    @classmethod
    def _write_out_the_ladder(
        cls, escalation: EscalationSettings | None, info: ValidationInfo
    ) -> EscalationSettings | None:
        """Fill in every rung, so that a reader of the resolved recipe sees all of them."""
        # A section that is wrong is missing from info.data; it has its own error.
        if info.data.get("strategy") != "escalate" or not {"model", "repair"} <= set(info.data):
            return escalation
        escalation, repair = escalation or EscalationSettings(), info.data["repair"]
        base = info.data["model"].base is not None
        in_adapter = info.data.get("output") == "adapter"
        ladder = escalation.ladder or default_ladder(repair, base=base, in_adapter=in_adapter)
        complete = tuple(complete_rung(rung, n, repair) for n, rung in enumerate(ladder, start=1))
        return escalation.model_copy(update={"ladder": complete})

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The rungs that are tried in turn; empty unless the strategy is to escalate."""
        rungs = self.escalation.ladder if self.escalation else None
        return rungs or () if self.strategy == "escalate" else ()

    @property
    def only_checks(self) -> bool:
        """True if a checkpoint is judged and nothing in it changed."""
        return self.strategy == "once" and self.erase is None and self.repair is None

    @property
    def judged_gate(self) -> GateSettings:
        """The limits as they are judged: without samples there is none on what is written."""
        if self.audit.generation is not None:
            return self.gate
        return self.gate.model_copy(update={"sampled_beyond_control": None})

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        problems = [
            *_check_problems(self),
            *_strategy_problems(self),
            *_output_problems(self),
            *_gate_problems(self),
            *_sampling_problems(self),
            *_attack_limit_problems(self),
            *_utility_problems(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _check_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the problems of a recipe that only checks, or of a key that only such a recipe has."""
    if not recipe.only_checks:
        if recipe.model.unsanitized is not None:
            yield (
                "model.unsanitized is for a recipe with neither erase nor repair; with one of "
                "them, model.path itself is the unsanitized checkpoint"
            )
        return
    if recipe.model.unsanitized is None:
        yield (
            "give erase, repair or both; with neither, model.path is only checked, and needs "
            "model.unsanitized, the checkpoint that it was made from: a checkpoint that recites "
            "nothing counts as clean only if the same audit finds what the unsanitized one recites"
        )
    if recipe.rounds > 1:
        yield "rounds: with neither erase nor repair there is nothing to repeat; leave it out"


def _strategy_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the problems of the strategy with the sections that it reads."""
    if recipe.strategy == "once":
        if recipe.escalation is not None:
            yield "escalation needs strategy: escalate"
        if recipe.model.base is None:
            yield from _base_problems("", recipe.erase, recipe.repair)
        return
    if recipe.rounds > 1:
        yield "rounds: strategy: escalate tries other settings on each rung; leave rounds out"
    if recipe.erase is not None:
        yield "erase: each rung of strategy: escalate has its own, in escalation.ladder"
    if recipe.model.base is None:
        for number, rung in enumerate(recipe.ladder):
            yield from _base_problems(f"escalation.ladder.{number}.", rung.erase, rung.repair)


def _output_problems(recipe: Recipe) -> Iterator[str]:
    """Yield what a recipe asks for that no LoRA adapter can hold."""
    if recipe.output == "checkpoint":
        return
    if recipe.only_checks:
        yield "output: nothing is written of a checkpoint that is only checked; leave output out"
    if recipe.model.base is None:
        yield "output: adapter needs model.base, the model that the adapter is on"
    parts: list[tuple[str, Recipe | Rung]] = [
        (f"escalation.ladder.{number}.", rung) for number, rung in enumerate(recipe.ladder)
    ]
    for prefix, part in parts or [("", recipe)]:
        erase, repair = part.erase, part.repair
        if erase is not None and erase.chooses_layers and erase.reset != "rewind":
            yield (
                f"{prefix}erase.reset: output: adapter can only take the adapter's update back; "
                "set reset: rewind, or leave output out"
            )
        if erase is not None and erase.token_rows:
            yield (
                f"{prefix}erase.token_rows: with output: adapter the rows of tokens are the "
                "base's own; leave token_rows out, or leave output out"
            )
        if repair is not None and repair.adapter is not None:
            yield (
                f"{prefix}repair.adapter: with output: adapter the adapter of model.path itself is "
                "trained; leave repair.adapter out"
            )


def _base_problems(
    prefix: str, erase: EraseSettings | None, repair: RepairSettings | None
) -> Iterator[str]:
    """Yield the keys of these sections that need a base, for a recipe without one."""
    if erase is not None and erase.reset == "rewind":
        yield f"{prefix}erase.reset: rewind needs model.base"
    if erase is not None and erase.selector.kind == "drift":
        yield f"{prefix}erase.selector: drift needs model.base"
    if erase is not None and erase.interpolate_to_base:
        yield f"{prefix}erase.interpolate_to_base needs model.base"
    if repair is not None and repair.needs_base:
        yield f"{prefix}repair.identifier_loss: anchor to base needs model.base"


def _gate_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the limits on the audit that this recipe cannot measure."""
    gate = recipe.gate
    if recipe.audit.unlearning_depth and recipe.model.base is None:
        yield "audit.unlearning_depth needs model.base; without one, set it to false"
    if recipe.model.base is None:
        if "control" in (gate.greedy, gate.discoverable, gate.attacks):
            yield (
                "gate: 'control' needs model.base; without one, give fractions, as in greedy: 0.0"
            )
        if gate.auc_excess is not None and recipe.audit.decoys:
            yield "gate.auc_excess needs model.base; without one, set it to null"
    if gate.scan_recall is not None and recipe.scan.gold is None:
        yield (
            "gate.scan_recall needs scan.gold, notes that people annotated completely; without "
            "them, set it to null"
        )
    needs_decoys = recipe.judged_gate.needs_decoys
    if needs_decoys and not recipe.audit.decoys:
        yield f"gate.{needs_decoys[0]} needs audit.decoys of at least 1"


def _sampling_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the problems of the limit on what the model writes by itself."""
    generation, limit = recipe.audit.generation, recipe.gate.sampled_beyond_control
    if generation is None:
        if isinstance(limit, int):
            yield "gate.sampled_beyond_control: a number needs a section audit.generation"
    elif limit is not None and not set(recipe.gate.kinds) <= set(generation.kinds):
        kinds = ", ".join(recipe.gate.kinds)
        yield (
            "gate.sampled_beyond_control: the gate judges what is searched for; set "
            f"audit.generation.kinds to [{kinds}]"
        )


def _attack_limit_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the limits on attacks that this recipe cannot measure."""
    gate, attack = recipe.gate, recipe.attack
    limits = ("attacks", "attacks_auc_excess")
    limit = next((f"gate.{name}" for name in limits if getattr(gate, name) is not None), None)
    if limit is not None and attack is None:
        yield f"{limit} needs a section attack"
    elif limit is not None and attack is not None and set(attack.kinds) != set(gate.kinds):
        yield f"{limit}: attack.kinds must be gate.kinds, because the gate judges the attacks"
    if gate.attacks_auc_excess is not None and recipe.model.base is None:
        yield "gate.attacks_auc_excess needs model.base"
    if gate.attacks_auc_excess is not None and attack is not None and not attack.decoys:
        yield "gate.attacks_auc_excess needs attack.decoys of at least 1"


def _utility_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the limit on utility, if this recipe cannot measure it."""
    if recipe.gate.perplexity_ratio is not None and recipe.corpus.held_out is None:
        yield (
            "gate.perplexity_ratio needs corpus.held_out; without held-out documents, set it to "
            "null"
        )
