"""`run`: the whole job of a recipe, stage by stage, each finished one kept.

read -> scan -> audit before -> audit the base (the control) -> erase -> audit -> repair ->
audit after -> attack -> gate -> sanitized/ -> report; with `strategy: escalate`, the rungs of
`sani.pipeline.escalation` in place of erase and repair, with `rounds` above 1 those of
`sani.pipeline.rounds`. A stage is finished when its result file stands in the run folder; a resumed
run takes it from there and begins at the first that is missing. Of several ranks each runs all of
this; what is not shared among them (erase, report, every write) the main one does alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sani.attacking.attack import attack
from sani.attacking.result import BASE, SANITIZED, UNSANITIZED, AttackResult
from sani.auditing.audit import AuditResult, audit
from sani.auditing.compare import (
    AuditComparison,
    ComparedPretraining,
    changes_since_base,
    compare_audits,
    onion,
)
from sani.auditing.framing_search import worst_framing
from sani.auditing.record import AuditRecord, CheckpointAudit, record_of
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.erasing.erase import erase
from sani.errors import AuditError, RecipeError, RunError
from sani.gate import Check, judge
from sani.machine import distributed
from sani.machine.device import default_device, make_deterministic
from sani.machine.progress import OnNamedStep
from sani.models.checkpoint import (
    Checkpoint,
    architecture_difference,
    load_checkpoint,
    save_checkpoint,
)
from sani.models.folder import open_folder
from sani.pipeline.escalation import Judged, climb
from sani.pipeline.inputs import (
    Documents,
    check_base,
    check_control,
    check_kind,
    digests,
    read_documents,
    read_neighbours,
)
from sani.pipeline.rounds import repeat
from sani.recipe import (
    AttackSettings,
    AuditSettings,
    EraseSettings,
    GateSettings,
    Recipe,
    RepairSettings,
    dump_recipe,
    load_recipe,
)
from sani.releasing.identifiers_in_files import check_texts
from sani.releasing.release import is_current, write_release_files
from sani.repairing.repair import repair
from sani.repairing.training_job import EpochAudit
from sani.reporting.report import build_report, write_report
from sani.reporting.reveal import reveal
from sani.reporting.schema import Report
from sani.runfolder import RECIPE, RunFolder, open_run
from sani.scanning.detection import detect
from sani.scanning.record import ScanRecord
from sani.scanning.scan import scan

# What no gate asks of an audit.
GATE_AUDIT_OVERRIDES = {"generation": None, "membership_documents": 0, "swaps": 0}


@dataclass(frozen=True)
class RunResult:
    """Where a run lies and what came of it.

    Attributes:
        folder: The run folder.
        gate_holds: Whether every limit is met.
        report: The content of ``report.json``.
    """

    folder: Path
    gate_holds: bool
    report: Report


def run(
    recipe: Recipe, out: Path, *, resume: bool = False, on_step: OnNamedStep | None = None
) -> RunResult:
    """Sanitize a checkpoint as the recipe says.

    Args:
        recipe: What to do.
        out: The run folder; must not exist or be empty unless ``resume``.
        resume: Take up a run that was interrupted.
        on_step: Called with (stage, steps done, steps in all).

    Raises:
        SaniError: With one sentence that says what to do; finished stages are kept.
    """
    make_deterministic()
    check_kind(recipe)
    documents = read_documents(recipe)
    distributed.check_same("documents", documents.digests())
    if not recipe.scan.detects:
        scan(documents.corpus)  # one that marks nothing is refused before anything is written
    inputs = distributed.on_main(lambda: digests(recipe, documents))
    with open_run(out, recipe=dump_recipe(recipe), inputs=inputs, resume=resume) as folder:
        report_step = on_step or (lambda stage, done, total: None)
        documents = _scan(recipe, folder, documents, report_step)
        corpus = documents.corpus
        job = _Job(recipe, folder, documents, report_step)
        job.audit("before", job.unsanitized)
        if recipe.model.base is not None:
            job.audit("base", lambda: job.base)
        if recipe.only_checks:
            job.load_checked_checkpoint()
        elif recipe.strategy == "escalate":
            job.escalate()
        elif recipe.rounds > 1:
            repeat(job, folder, recipe, corpus)
        else:
            job.erase()
            job.repair()
        job.audit("after", job.latest)
        job.attack()
        report = distributed.on_main(lambda: _release(recipe, folder, job, corpus))
    return RunResult(out, report.gate.holds, report)


def _release(recipe: Recipe, folder: RunFolder, job: _Job, corpus: Corpus) -> Report:
    """Judge, write ``sanitized/`` and the reports, and return ``report.json``.

    Of a checkpoint that was only checked no copy is written.
    """
    out = folder.path
    after = folder.load_finished("audit-after", CheckpointAudit)
    checks = job.judge(recipe.gate, after, folder.load_as("attack", AttackResult))
    report = build_report(folder, recipe, corpus, checks)
    digest = after.weights_digest
    if not (recipe.only_checks or is_current(out / "sanitized", report, weights_digest=digest)):
        released = job.latest()
        if released.weights_digest() != digest:
            raise RunError(
                f"{out}: the weights changed after they were audited, so nothing was released; "
                "start again in another --out"
            )
        save_checkpoint(
            released,
            out / "sanitized",
            finish=lambda staging: write_release_files(
                staging, report, corpus, weights_digest=digest, base=recipe.model.base
            ),
        )
    write_report(folder.path, report)
    return report


def audit_models(
    models: Mapping[str, Path],
    documents: Documents,
    settings: AuditSettings,
    *,
    seed: int,
    on_step: OnNamedStep,
) -> AuditComparison:
    """Audit several checkpoints alike, as `sani audit` shows them.

    Args:
        models: Folder of each by name, the one in question first; ``base`` is the control, and
            all but it are rounds that are compared, from the last in the list to the first.
        documents: Corpus, held-out documents and documents of the base's training.
        settings: What is measured.
        seed: Of decoys and bootstrap.
        on_step: Called with (what, steps done, steps in all).
    """
    base = models.get("base")
    for folder in models.values():  # all, before the first takes its hours
        open_folder(folder, base=base)
    if base is not None:
        check_base(models["model"], base, name="the model", option="--base")
        check_control(load_checkpoint(models["model"], base=base), load_checkpoint(base))
    distributed.check_same("documents", documents.digests())
    found: dict[str, AuditResult] = {}
    pretraining: dict[str, AuditResult] = {}
    framing = None
    for name, folder in models.items():
        checkpoint = load_checkpoint(folder, base=base, device=default_device())
        distributed.check_same(
            "weights", checkpoint.weights_digest() if distributed.world_size() > 1 else ""
        )
        found[name] = audit(
            checkpoint,
            documents.corpus,
            settings,
            held_out=documents.held_out,
            control_framing=framing,
            seed=seed,
            on_step=partial(on_step, f"audit {name}"),
        )
        framing = framing or found[name].framing
        if documents.pretraining is not None:
            alone = settings.model_copy(update={"generation": None})
            pretraining[name] = audit(checkpoint, documents.pretraining, alone, seed=seed)
    rounds = [name for name in reversed(list(models)) if name != "base"]
    return AuditComparison(
        audit_settings=settings,
        audits=compare_audits(
            {name: record_of(result) for name, result in found.items()},
            {name: result.documents for name, result in found.items() if result.documents},
            {name: r.generation.one_by_one for name, r in found.items() if r.generation},
            next((r.generation.identifiers for r in found.values() if r.generation), ()),
            seed=seed,
        ),
        onion=onion(rounds, {name: result.occurrences for name, result in found.items()}),
        pretraining=ComparedPretraining(
            audits={name: record_of(result) for name, result in pretraining.items()},
            changes=changes_since_base(
                {name: result.occurrences for name, result in pretraining.items()}
            ),
        ),
    )


def reveal_run(path: Path) -> Path:
    """Write what a finished run still recites, in clear, into its ``private/``.

    Args:
        path: The run folder; its corpus must still be where its recipe says.

    Raises:
        RunError: If the run is not finished, or the corpus changed since.
        CorpusError: If the corpus cannot be read.
    """
    folder = RunFolder(path)
    if not folder.finished("report") or not (folder.private / "key").is_file():
        raise RunError(f"{path} is not a finished run with its private/; finish it with --resume")
    folder.read_key()
    recipe = load_recipe(path / RECIPE)
    documents = _scan(recipe, folder, read_documents(recipe), lambda stage, done, total: None)
    return reveal(folder, documents.corpus)


def attack_models(
    models: Mapping[str, Path],
    documents: Documents,
    settings: AttackSettings,
    *,
    framing: str,
    attacked: Sequence[str],
    seed: int,
    out: Path | None,
    resume: bool,
    on_step: OnNamedStep,
) -> AttackResult:
    """Attack checkpoints, as `sani attack` shows it.

    Args:
        models: Folder of each by name: ``sanitized``, and ``unsanitized`` and ``base`` where there are.
        documents: Corpus and held-out documents.
        settings: Which attacks.
        framing: What stands before a document; ``auto`` tries all on the unsanitized model, else on the
            sanitized one.
        attacked: Which of the models are attacked.
        seed: Of every draw.
        out: Folder for what is done, so that an interrupted attack goes on; kept nowhere if None.
        resume: Take up an interrupted one.
        on_step: Called with (what, steps done, steps in all).
    """
    make_deterministic()
    base = models.get(BASE)
    loaded = {
        name: load_checkpoint(path, base=base, device=default_device())
        for name, path in models.items()
    }
    if BASE in loaded and UNSANITIZED in loaded:
        check_control(loaded[UNSANITIZED], loaded[BASE], name="--unsanitized", option="--base")
    audit_settings = AuditSettings()
    if framing == "auto":
        suspect = loaded.get(UNSANITIZED, loaded[SANITIZED])
        framing = worst_framing(suspect, documents.corpus, audit_settings).name

    def run_attacks(folder: Path | None) -> AttackResult:
        return attack(
            loaded,
            documents.corpus,
            settings,
            audit=audit_settings.model_copy(update={"framing": framing}),
            held_out=documents.held_out,
            neighbours=read_neighbours(settings),
            attacked=attacked,
            seed=seed,
            folder=folder,
            on_step=on_step,
        )

    if out is None:
        return run_attacks(None)
    inputs = {name: open_folder(path, base=base).digest for name, path in models.items()}
    inputs["corpus"] = documents.corpus.digest()
    if documents.held_out is not None:
        inputs["corpus.held_out"] = documents.held_out.digest()
    asked = f"{settings.model_dump_json()} {framing} {' '.join(attacked)} {seed}\n"
    with open_run(out, recipe=asked, inputs=inputs, resume=resume) as folder:
        if not folder.finished("attack"):
            place = folder.private / "attack"
            distributed.on_main(partial(place.mkdir, exist_ok=True))
            folder.save("attack", run_attacks(place).to_json())
        return AttackResult.from_json(folder.load("attack"))


def _scan(
    recipe: Recipe, folder: RunFolder, documents: Documents, on_step: OnNamedStep
) -> Documents:
    """The documents with what the scan finds; its findings are kept in the private part.

    In held-out documents k-anonymity is left out: they are few, and only utility is measured there.
    """
    settings, held_out = recipe.scan, documents.held_out
    cache_folder = folder.private / "scan"
    finished = folder.finished("scan")
    gold = None
    if finished:  # the detectors were measured when the run began
        settings = settings.model_copy(update={"gold": None})
    elif settings.gold is not None:
        gold = read_corpus(settings.gold, kinds=recipe.corpus.kinds)
    result = scan(documents.corpus, settings, gold=gold, cache_folder=cache_folder, on_step=on_step)
    if settings.detects and held_out is not None:
        alone = settings.model_copy(update={"indirect": None})
        held_out = detect(held_out, alone, cache_folder=cache_folder, on_step=on_step)
    digest = folder.digest(result.corpus.digest())
    if finished:
        if folder.load("scan")["digest"] != digest:
            raise RunError(
                f"{folder.path}: what the scan finds changed since this run began (another version "
                "of a library or a model?); start again in another --out"
            )
        return Documents(result.corpus, held_out, documents.pretraining)
    quality = result.quality.to_json() if result.quality else None
    folder.save("scan", {**result.inventory.to_json(), "quality": quality, "digest": digest})
    return Documents(result.corpus, held_out, documents.pretraining)


class _Job:
    """The stages of one run, with the models they share."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        documents: Documents,
        on_step: OnNamedStep,
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._corpus = documents.corpus
        self._held_out = documents.held_out
        self._pretraining = documents.pretraining
        self._on_step = on_step
        self._latest: Checkpoint | None = None

    @cached_property
    def base(self) -> Checkpoint:
        """The model that the checkpoint was fine-tuned from."""
        if self._recipe.model.base is None:
            raise RecipeError("model.base: missing")
        base = load_checkpoint(self._recipe.model.base, device=default_device())
        unsanitized = self.unsanitized()
        difference = architecture_difference(unsanitized, base)
        name = "model.unsanitized" if self._recipe.only_checks else "model.path"
        if difference:
            raise RecipeError(
                f"model.base: it does not fit {name}, so it is no control: {difference}"
            )
        check_control(unsanitized, base, name=name, option="model.base")
        return base

    def unsanitized(self) -> Checkpoint:
        """The checkpoint as it came; of one that is only checked, what it was made from."""
        model = self._recipe.model
        if model.unsanitized is not None:
            return load_checkpoint(model.unsanitized, base=model.base, device=default_device())
        return self._as_it_came()

    def _as_it_came(self) -> Checkpoint:
        model = self._recipe.model
        checkpoint = load_checkpoint(model.path, base=model.base, device=default_device())
        check_texts(checkpoint.path, self._corpus, base=model.base)
        return checkpoint

    def load_checked_checkpoint(self) -> None:
        """Make the given checkpoint the latest, if what it was made from is its control.

        It is asked with the tokenizer of the unsanitized one, as whoever wants the records would:
        a tokenizer that cuts otherwise would hide what the weights know.
        """
        checked, before = self._as_it_came(), self.unsanitized()
        difference = architecture_difference(checked, before)
        if difference:
            raise RecipeError(
                "model.unsanitized: it does not fit model.path, so it is no positive control: "
                f"{difference}"
            )
        if self._recipe.model.base is not None:
            check_control(checked, self.base, name="model.path", option="model.base")
        self._latest = replace(checked, tokenizer=before.tokenizer)

    def latest(self) -> Checkpoint:
        """The checkpoint as the last finished stage left it."""
        if self._latest is None:
            for stage in ("repair", "erase"):
                if self._folder.finished(stage):
                    place = self._folder.private / stage
                    self._latest = load_checkpoint(place, device=default_device())
                    if self._latest.weights_digest() != self._folder.load(stage)["weights_digest"]:
                        raise RunError(
                            f"{place}: the weights are not those that {stage} left there; start "
                            "again in another --out"
                        )
                    break
            else:
                self._latest = self.unsanitized()
        return self._latest

    def audit(self, stage: str, checkpoint: Callable[[], Checkpoint]) -> None:
        """Audit a checkpoint, with the same decoys at every stage.

        The erased one, of which nothing is decided, is asked no more than a gate asks, and behind
        one framing.
        """
        settings = self._recipe.audit
        if not self._folder.finished(f"audit-{stage}"):
            framing = None if stage == "before" else self._framing()
            less = {**GATE_AUDIT_OVERRIDES, "framing": framing} if stage == "erased" else {}
            self._audit(
                f"audit-{stage}",
                checkpoint(),
                self._corpus,
                settings.model_copy(update=less),
                held_out=self._held_out,
                control_framing=framing,
            )
        if self._pretraining and not self._folder.finished(f"pretraining-{stage}"):
            alone = settings.model_copy(update={"generation": None})
            self._audit(f"pretraining-{stage}", checkpoint(), self._pretraining, alone)

    def _audit(
        self,
        stage: str,
        audited: Checkpoint,
        corpus: Corpus,
        settings: AuditSettings,
        **held_out: Any,
    ) -> None:
        result = audit(
            audited,
            corpus,
            settings,
            seed=self._recipe.seed,
            on_step=self._progress(stage),
            **held_out,
        )
        self._folder.save_arrays(stage, result.occurrences)
        if result.documents is not None:
            self._folder.save_arrays(f"{stage}-documents", result.documents)
        if result.generation is not None:
            self._folder.save_arrays(f"{stage}-generation", result.generation.one_by_one)
        digest = distributed.check_same("weights", audited.weights_digest())
        self._folder.save(stage, {**result.to_json(), "weights_digest": digest})

    def erase(self) -> None:
        """Reset the selected neurons, and audit what is left."""
        settings = self._recipe.erase
        if settings is None:
            return
        if not self._folder.finished("erase"):
            checkpoint = self.latest()
            self._keep("erase", checkpoint, self.erased(checkpoint, settings))
        self.audit("erased", self.latest)

    def erased(
        self,
        checkpoint: Checkpoint,
        settings: EraseSettings,
        *,
        corpus: Corpus | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """In place: reset the selected neurons; the main rank does it for all."""
        base, framing = self.base if settings.needs_base else None, self._framing()
        result = distributed.on_main(
            lambda: erase(
                checkpoint,
                settings,
                corpus=corpus or self._corpus,
                base=base,
                framing=framing,
                seed=self._recipe.seed if seed is None else seed,
            )
        )
        distributed.broadcast_weights(checkpoint.model)
        plan = result.plan
        return {**asdict(result), "plan": plan.to_json(), "retrains": plan.retrains}

    def repair(self) -> None:
        """Fine-tune with the identifiers out of the loss; an interrupted repair goes on."""
        settings = self._recipe.repair
        if settings is None or self._folder.finished("repair"):
            return
        checkpoint = self.latest()
        self._keep("repair", checkpoint, self.repaired(checkpoint, settings))
        trainer = self._folder.private / "trainer"
        distributed.on_main(lambda: shutil.rmtree(trainer, ignore_errors=True))

    def repaired(
        self,
        checkpoint: Checkpoint,
        settings: RepairSettings,
        *,
        within: str = "",
        seed: int | None = None,
    ) -> dict[str, Any]:
        """In place: fine-tune, or go on with what an earlier process began."""
        result = repair(
            checkpoint,
            self._corpus,
            settings,
            base=self.base if settings.needs_base else None,
            unsanitized=self.unsanitized() if settings.needs_unsanitized else None,
            framing=self._framing(),
            seed=self._recipe.seed if seed is None else seed,
            folder=self._folder.private / "trainer",
            on_step=self._progress(_in(within, "repair")),
            on_epoch=lambda: self._epoch_audit(checkpoint, within),
        )
        return asdict(result)

    def _epoch_audit(self, checkpoint: Checkpoint, within: str) -> EpochAudit:
        """The gate's figures between two epochs, in one pass: behind the worst framing, alone."""
        settings = self._recipe.audit.model_copy(update={"framing": self._framing()})
        checks = self.judge(
            self._gate_without_attacks, self._measured(checkpoint, settings, _in(within, "audit"))
        )
        figures = {c.name: c.measured for c in checks if c.measured is not None}
        return EpochAudit(figures, all(check.holds for check in checks))

    def escalate(self) -> None:
        """Try the rungs of the ladder; the best one's weights are the latest."""
        settings = self._recipe.escalation
        if settings is not None:
            tokens = self._folder.load("audit-before")["tokens"]
            climb(self, self._folder, settings, corpus_tokens=tokens)

    def judged(self, checkpoint: Checkpoint, *, within: str) -> Judged:
        """A rung's audit and verdict; it is attacked only if the gate asks and all else holds."""
        record = self._measured(checkpoint, self._recipe.audit, _in(within, "audit"))
        checks, attacks = self.judge(self._gate_without_attacks, record), None
        if self._recipe.gate.judges_attacks:
            if all(check.holds for check in checks):
                attacks = self._attacked(checkpoint)
            checks = self.judge(self._recipe.gate, record, attacks)
        return Judged(record, attacks, checks)

    def _measured(self, checkpoint: Checkpoint, settings: AuditSettings, stage: str) -> AuditRecord:
        """Return what the gate asks of an audit, and no more of it."""
        record = record_of(self._gate_audit(checkpoint, settings, stage))
        # All ranks take the first one's: ranks whose last digits differ would part at a limit.
        record = distributed.gather(record)[0]
        if record.utility and not math.isfinite(record.utility.perplexity):
            raise AuditError("the held-out perplexity is not a number")
        return record

    def measured(self, checkpoint: Checkpoint, *, within: str) -> AuditResult:
        """A round's audit."""
        return self._gate_audit(checkpoint, self._recipe.audit, _in(within, "audit"))

    def _gate_audit(
        self, checkpoint: Checkpoint, settings: AuditSettings, stage: str
    ) -> AuditResult:
        """An audit without what the gate does not ask."""
        return audit(
            checkpoint,
            self._corpus,
            settings.model_copy(update=GATE_AUDIT_OVERRIDES),
            held_out=self._held_out,
            control_framing=self._framing(),
            seed=self._recipe.seed,
            on_step=self._progress(stage),
        )

    @property
    def _gate_without_attacks(self) -> GateSettings:
        return self._recipe.gate.model_copy(update={"attacks": None, "attacks_auc_excess": None})

    def judge(
        self, gate: GateSettings, after: AuditRecord, attacks: AttackResult | None = None
    ) -> list[Check]:
        """Hold an audit, and attacks, against limits."""
        return judge(
            gate,
            before=self._folder.load_finished("audit-before", CheckpointAudit),
            after=after,
            control=self._folder.load_as("audit-base", CheckpointAudit),
            scan=self._folder.load_as("scan", ScanRecord),
            attacks=attacks,
        )

    def attack(self) -> None:
        """Attack the sanitized checkpoint; an interrupted one goes on with the next attack."""
        if self._recipe.attack is not None and not self._folder.finished("attack"):
            self._folder.save("attack", self._attacked(self.latest()).to_json())

    def _attacked(self, checkpoint: Checkpoint) -> AttackResult:
        settings = self._recipe.attack or AttackSettings()
        place = self._folder.private / "attack"
        distributed.on_main(lambda: place.mkdir(exist_ok=True))
        models = {SANITIZED: checkpoint, UNSANITIZED: self.unsanitized()}
        if self._recipe.model.base is not None:
            models[BASE] = self.base
        return attack(
            models,
            self._corpus,
            settings,
            audit=self._recipe.audit.model_copy(update={"framing": self._framing()}),
            held_out=self._held_out,
            neighbours=read_neighbours(settings),
            seed=self._recipe.seed,
            folder=place,
            on_step=self._on_step,
        )

    def _keep(self, stage: str, checkpoint: Checkpoint, result: dict[str, Any]) -> None:
        """Keep a stage's weights in the private part, then its result, which finishes it."""
        save_checkpoint(checkpoint, self._folder.private / stage)
        self._folder.save(stage, {**result, "weights_digest": checkpoint.weights_digest()})

    def _framing(self) -> str:
        """The framing under which the unsanitized checkpoint recites most."""
        return str(self._folder.load("audit-before")["framing"])

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self._on_step(stage, done, total)


def _in(within: str, stage: str) -> str:
    """How progress names a stage of a rung."""
    return f"{within}, {stage}" if within else stage
