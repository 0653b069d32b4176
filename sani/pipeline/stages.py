"""The stages of a run, as plain functions; `run` calls them, as do escalation and rounds.

A function named ``run_X`` is a stage: it does nothing if its result stands in the run folder, and
puts it there otherwise. The others work on a checkpoint that is given to them and keep nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sani.attacking.attack import attack
from sani.attacking.result import BASE, SANITIZED, UNSANITIZED, AttackResult
from sani.auditing.audit import AuditResult, audit
from sani.auditing.control_tests import AtRisk, ControlTests, Verdicts, control_tests_by_kind
from sani.auditing.record import AuditRecord, CheckpointAudit, load_verdicts, record_of, verdicts_of
from sani.corpus.documents import Corpus, Kind
from sani.erasing.erase import EraseResult, erase
from sani.errors import AuditError, RunError
from sani.gate import Check, judge
from sani.machine import distributed
from sani.models.checkpoint import Checkpoint
from sani.pipeline.context import RunContext
from sani.recipe import (
    AttackSettings,
    AuditSettings,
    EraseSettings,
    GateSettings,
    RepairSettings,
)
from sani.repairing.repair import RepairResult, repair
from sani.repairing.training_job import EpochAudit
from sani.scanning.record import ScanRecord

# Left out of an audit of which only the gate reads the figures.
GATE_AUDIT_OVERRIDES = {"membership_documents": 0, "swaps": 0}
UNSAMPLED = {"generation": None}


@dataclass(frozen=True)
class Judged:
    """The measurements of a checkpoint, and what the gate says of them.

    Attributes:
        audit: Its audit.
        attack: The attacks on it; None if it was not attacked.
        checks: One check a limit.
    """

    audit: AuditRecord
    attack: AttackResult | None
    checks: list[Check]


# ---- audit -----------------------------------------------------------------------------------


def run_audit(run: RunContext, stage: str, checkpoint: Callable[[], Checkpoint]) -> None:
    """Audit a checkpoint, with the same decoys at every stage.

    Of the erased checkpoint nothing is decided, so only what a gate reads is measured.

    Args:
        run: The run.
        stage: ``before``, ``base``, ``erased`` or ``after``.
        checkpoint: Returns the checkpoint; not called if all is finished.
    """
    settings, documents = run.recipe.audit, run.documents
    run.on_stage(f"audit-{stage}")
    if not run.folder.finished(f"audit-{stage}"):
        framing = None if stage == "before" else run.framing
        overrides = {**GATE_AUDIT_OVERRIDES, **UNSAMPLED} if stage == "erased" else {}
        _audit_and_keep(
            run,
            f"audit-{stage}",
            checkpoint(),
            documents.corpus,
            settings.model_copy(update=overrides),
            held_out=documents.held_out,
            control_framing=framing,
        )
    if documents.pretraining and not run.folder.finished(f"pretraining-{stage}"):
        unsampled = settings.model_copy(update=UNSAMPLED)
        _audit_and_keep(run, f"pretraining-{stage}", checkpoint(), documents.pretraining, unsampled)


def _audit_and_keep(
    run: RunContext,
    name: str,
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: AuditSettings,
    *,
    held_out: Corpus | None = None,
    control_framing: str | None = None,
) -> None:
    """Audit and keep the figures, and in the private part the verdicts one by one."""
    result = audit(
        checkpoint,
        corpus,
        settings,
        held_out=held_out,
        control_framing=control_framing,
        seed=run.recipe.seed,
        on_step=run.progress(name),
    )
    folder = run.folder
    folder.save_arrays(name, result.occurrences)
    if result.held_out_occurrences is not None:
        folder.save_arrays(f"{name}-held-out", result.held_out_occurrences)
    if result.documents is not None:
        folder.save_arrays(f"{name}-documents", result.documents)
    if result.generation is not None:
        folder.save_arrays(f"{name}-generation", result.generation.one_by_one)
    digest = distributed.check_same("weights", checkpoint.weights_digest())
    folder.save(name, {**result.to_json(), "weights_digest": digest})


def gate_audit(run: RunContext, checkpoint: Checkpoint, *, within: str) -> AuditResult:
    """Audit a checkpoint within a round; nothing is sampled before the last audit."""
    settings = run.recipe.audit.model_copy(update=UNSAMPLED)
    return _gate_audit(run, checkpoint, settings, within=within)


def _gate_audit(
    run: RunContext, checkpoint: Checkpoint, settings: AuditSettings, *, within: str
) -> AuditResult:
    return audit(
        checkpoint,
        run.documents.corpus,
        settings.model_copy(update=GATE_AUDIT_OVERRIDES),
        held_out=run.documents.held_out,
        control_framing=run.framing,
        seed=run.recipe.seed,
        on_step=run.progress("audit", within=within),
    )


def _gate_record(
    run: RunContext, checkpoint: Checkpoint, settings: AuditSettings, *, within: str
) -> AuditRecord:
    """Return the figures that the gate reads, the same on every process.

    Raises:
        AuditError: If the held-out perplexity is not a number.
    """
    result = _gate_audit(run, checkpoint, settings, within=within)
    tests = control_tests_of_run(run, verdicts_of(result))
    record = replace(
        record_of(result), control_tests={kind: test for kind, (test, _) in tests.items()}
    )
    # Processes whose last digits differ could disagree at a limit, so all take the first one's.
    record = distributed.gather(record)[0]
    if record.utility and not math.isfinite(record.utility.perplexity):
        raise AuditError("the held-out perplexity is not a number")
    return record


def control_tests_of_run(
    run: RunContext, verdicts: Verdicts
) -> dict[Kind, tuple[ControlTests, AtRisk]]:
    """Test verdicts of this run against the base, or against decoys alone without one.

    Raises:
        RunError: If the base's verdicts are gone.
    """
    base, documents = load_verdicts(run.folder, "base"), run.documents
    if run.recipe.model.base is not None and base is None:
        private = run.folder.private
        raise RunError(f"{private}: audit-base.npz is gone; start again in another --out")
    return control_tests_by_kind(
        documents.corpus, verdicts, base, held_out=documents.held_out, seed=run.recipe.seed
    )


# ---- erase and repair ------------------------------------------------------------------------


def run_erase(run: RunContext) -> None:
    """Reset the selected neurons of the latest checkpoint, and audit what is left."""
    settings = run.recipe.erase
    if settings is None:
        return
    run.on_stage("erase")
    if not run.folder.finished("erase") and run.models.is_streamed:
        run.models.erase_in_files(settings, seed=run.recipe.seed, record=erase_record)
    elif not run.folder.finished("erase"):
        checkpoint = run.models.latest
        result = erase_checkpoint(run, checkpoint, settings)
        run.models.keep("erase", checkpoint, erase_record(result))
    run_audit(run, "erased", lambda: run.models.latest)


def erase_checkpoint(
    run: RunContext,
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    corpus: Corpus | None = None,
    seed: int | None = None,
) -> EraseResult:
    """Reset the selected neurons in place; the main process does it for all.

    Args:
        run: The run.
        checkpoint: It is changed.
        settings: Which neurons, and what they are reset to.
        corpus: Documents whose identifiers the selector looks at; all of the run's if None.
        seed: Seed of random choices and fresh weights; the recipe's if None.
    """
    base = run.models.base if settings.needs_base else None
    framing = run.framing
    result = distributed.on_main(
        lambda: erase(
            checkpoint,
            corpus or run.documents.corpus,
            settings,
            base=base,
            framing=framing,
            seed=run.recipe.seed if seed is None else seed,
        )
    )
    distributed.broadcast_weights(checkpoint.model)
    return result


def erase_record(result: EraseResult) -> dict[str, Any]:
    """Return an erase's result as it stands in its file, but for the weights' digest."""
    plan = result.plan
    return {**asdict(result), "plan": plan.to_json(), "retrains": plan.retrains}


def run_repair(run: RunContext) -> None:
    """Repair the latest checkpoint; an interrupted repair goes on."""
    settings = run.recipe.repair
    if settings is None or run.folder.finished("repair"):
        return
    run.on_stage("repair")
    result = repair_checkpoint(run, run.models.latest, settings)
    run.models.keep("repair", run.models.latest, asdict(result))
    remove_trainer_states(run)


def repair_checkpoint(
    run: RunContext,
    checkpoint: Checkpoint,
    settings: RepairSettings,
    *,
    within: str = "",
    seed: int | None = None,
) -> RepairResult:
    """Fine-tune in place, or go on with what an earlier process began.

    Args:
        run: The run.
        checkpoint: It is changed.
        settings: Objective and schedule.
        within: Name of the rung or round.
        seed: Seed of every random draw; the recipe's if None.
    """
    return repair(
        checkpoint,
        run.documents.corpus,
        settings,
        base=run.models.base if settings.needs_base else None,
        unsanitized=run.models.unsanitized if settings.needs_unsanitized else None,
        framing=run.framing,
        seed=run.recipe.seed if seed is None else seed,
        folder=run.folder.private / "trainer",
        on_step=run.progress("repair", within=within),
        on_epoch=lambda: _epoch_audit(run, checkpoint, within=within),
    )


def _epoch_audit(run: RunContext, checkpoint: Checkpoint, *, within: str) -> EpochAudit:
    """Return the gate's figures between two epochs, from one pass under the worst framing alone."""
    settings = run.recipe.audit.model_copy(update={"framing": run.framing, **UNSAMPLED})
    record = _gate_record(run, checkpoint, settings, within=within)
    gate = _gate_without_attacks(run.recipe.gate)
    checks = judge_records(run, gate.model_copy(update={"sampled_beyond_control": None}), record)
    figures = {check.name: check.measured for check in checks if check.measured is not None}
    return EpochAudit(figures, all(check.holds for check in checks))


def remove_trainer_states(run: RunContext) -> None:
    """Remove the states of a repair that is finished."""
    run.folder.remove_private_folder("trainer")


# ---- attack and gate -------------------------------------------------------------------------


def run_attack(run: RunContext) -> None:
    """Attack the latest checkpoint; an interrupted stage goes on with the next attack."""
    if run.recipe.attack is not None and not run.folder.finished("attack"):
        run.on_stage("attack")
        run.folder.save("attack", attack_checkpoint(run, run.models.latest).to_json())


def attack_checkpoint(run: RunContext, checkpoint: Checkpoint) -> AttackResult:
    """Attack a checkpoint, the unsanitized one and the base alike."""
    models = {SANITIZED: checkpoint, UNSANITIZED: run.models.unsanitized}
    if run.recipe.model.base is not None:
        models[BASE] = run.models.base
    return attack(
        models,
        run.documents.corpus,
        run.recipe.attack or AttackSettings(),
        audit=run.recipe.audit.model_copy(update={"framing": run.framing}),
        held_out=run.documents.held_out,
        neighbours=run.documents.neighbours,
        seed=run.recipe.seed,
        folder=run.folder.make_private_folder("attack"),
        on_step=run.on_step,
    )


def judge_checkpoint(run: RunContext, checkpoint: Checkpoint, *, within: str) -> Judged:
    """Audit a checkpoint and judge it; attack it only if the gate asks and all else holds."""
    gate = run.recipe.judged_gate
    unread = UNSAMPLED if gate.sampled_beyond_control is None else {}
    record = _gate_record(
        run, checkpoint, run.recipe.audit.model_copy(update=unread), within=within
    )
    checks, attacks = judge_records(run, _gate_without_attacks(gate), record), None
    if gate.judges_attacks:
        if all(check.holds for check in checks):
            attacks = attack_checkpoint(run, checkpoint)
        checks = judge_records(run, gate, record, attacks)
    return Judged(record, attacks, checks)


def judge_records(
    run: RunContext, gate: GateSettings, after: AuditRecord, attacks: AttackResult | None = None
) -> list[Check]:
    """Return the gate's checks of an audit, and of attacks if there were any."""
    folder = run.folder
    return judge(
        gate,
        before=folder.load_finished("audit-before", CheckpointAudit),
        after=after,
        control=folder.load_as("audit-base", CheckpointAudit),
        scan=folder.load_as("scan", ScanRecord),
        attacks=attacks,
    )


def _gate_without_attacks(gate: GateSettings) -> GateSettings:
    return gate.model_copy(update={"attacks": None, "attacks_auc_excess": None})
