"""`run`: the whole job of a recipe, stage by stage; each finished stage is kept.

read -> scan -> audit before -> audit the base (the control) -> erase -> audit -> repair ->
audit after -> unlearning depth -> attack -> gate -> sanitized/ -> report

With `strategy: escalate`, the rungs of `escalation` take the place of erase and repair; with
`rounds` above 1, those of `rounds` do. A stage is finished when its result file stands in the run
folder. A resumed run takes it from there and begins at the first stage that is missing. In a run of
several processes each does all of this; the main one alone erases, reports and writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sani.atomic import write_text
from sani.attacking.result import AttackResult
from sani.auditing.control_tests import AtRisk
from sani.auditing.record import CheckpointAudit, load_verdicts
from sani.corpus.documents import Corpus, Kind, Place
from sani.errors import RunError
from sani.machine import distributed
from sani.machine.device import make_deterministic
from sani.machine.memory_watch import MemoryWatch
from sani.machine.progress import OnNamedStep
from sani.models.checkpoint import save_checkpoint
from sani.pipeline.context import RunContext
from sani.pipeline.depth import run_depth
from sani.pipeline.escalation import climb
from sani.pipeline.inputs import digests
from sani.pipeline.models_of_run import ModelsOfRun
from sani.pipeline.placement import placement_of
from sani.pipeline.preflight import check_before_run
from sani.pipeline.rounds import repeat
from sani.pipeline.run_inputs import RunInputs
from sani.pipeline.scan_stage import scan_documents
from sani.pipeline.stages import (
    control_tests_of_run,
    judge_records,
    run_attack,
    run_audit,
    run_erase,
    run_repair,
)
from sani.recipe import Recipe, dump_recipe
from sani.releasing.leftovers import check_leftovers
from sani.releasing.release import is_current, write_release_files
from sani.reporting.report import build_report, write_report
from sani.reporting.schema import Report
from sani.runfolder import open_run
from sani.tabular import Tabular

if TYPE_CHECKING:
    import pandas as pd

AT_RISK = "at-risk.json"  # in private/: the occurrences and the subjects above a limit, by name


@dataclass(frozen=True)
class RunResult(Tabular):
    """The result of a run.

    Attributes:
        folder: The run folder.
        gate_holds: True if every limit is met.
        report: The content of ``report.json``.
    """

    folder: Path
    gate_holds: bool
    report: Report

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each check of the gate."""
        import pandas as pd

        checks = self.report.gate.checks
        rows = [(each.name, each.measured, each.limit, each.holds) for each in checks]
        return pd.DataFrame(rows, columns=["check", "measured", "limit", "holds"])


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    on_step: OnNamedStep | None = None,
    on_note: Callable[[str], None] | None = None,
) -> RunResult:
    """Sanitize a checkpoint as the recipe says.

    Args:
        recipe: What to do.
        out: The run folder; it must not exist or be empty unless ``resume``.
        resume: Continue a run that was interrupted.
        on_step: Called with (stage, steps done, steps in all).
        on_note: Called with each note on what was not read of the documents.

    Raises:
        SaniError: With one sentence that says what to do; finished stages are kept.
    """
    make_deterministic()
    out = Path(out)
    files = RunInputs(recipe)
    documents = files.documents
    unread = documents.unread()
    for note in documents.notes():
        (on_note or (lambda note: None))(note)
    distributed.on_every_rank(lambda: check_before_run(files, out, resume=resume))
    given, placement = files.models, distributed.on_main(lambda: placement_of(files))
    distributed.check_same("documents", documents.digests())
    inputs = distributed.on_main(lambda: digests(recipe, documents, given))
    with open_run(out, recipe=dump_recipe(recipe), inputs=inputs, resume=resume) as folder:
        report_step = on_step or (lambda stage, done, total: None)
        with MemoryWatch("scan") as watch:
            documents = scan_documents(recipe, folder, documents, report_step)
            models = ModelsOfRun(recipe, given, folder, documents.corpus, placement)
            if not folder.finished("audit-before"):
                watch.enter("load")
                models.load()
            context = RunContext(
                recipe, folder, documents, models, report_step, watch.enter, unread
            )
            _run_stages(context)
        distributed.on_main(given.path.check_unchanged)  # the tokenizer is released as it lies
        if not folder.finished("memory"):
            folder.save("memory", {"placement": placement, "peaks": watch.peaks})
        report = distributed.on_main(lambda: _release(context))
    return RunResult(out, report.gate.holds, report)


def _run_stages(run: RunContext) -> None:
    """Do every stage that is not finished, in order."""
    recipe, models = run.recipe, run.models
    run_audit(run, "before", lambda: models.unsanitized)
    if recipe.model.base is not None:
        run_audit(run, "base", lambda: models.base)
    if recipe.only_checks:
        models.use_given()
    elif recipe.escalation is not None:
        run.on_stage("escalation")
        corpus_tokens = run.folder.load_finished("audit-before", CheckpointAudit).tokens
        climb(run, recipe.escalation, corpus_tokens=corpus_tokens)
    elif recipe.rounds > 1:
        run.on_stage("rounds")
        repeat(run)
    else:
        run_erase(run)
        run_repair(run)
    run_audit(run, "after", lambda: models.latest)
    run_depth(run)
    run_attack(run)


def _release(run: RunContext) -> Report:
    """Judge, write ``sanitized/`` and the reports, and return the content of ``report.json``.

    No copy is written of a checkpoint that was only checked.

    Raises:
        RunError: If the weights are not those that were audited.
    """
    recipe, folder, corpus = run.recipe, run.folder, run.documents.corpus
    out = folder.path
    after, at_risk = _tested(run, folder.load_finished("audit-after", CheckpointAudit))
    checks = judge_records(run, recipe.judged_gate, after, folder.load_as("attack", AttackResult))
    if recipe.only_checks:
        checks.append(check_leftovers(recipe.model.path))
    held_out = run.documents.held_out
    report = build_report(
        folder, recipe, corpus, checks, at_risk, held_out=held_out, unread=run.unread
    )
    digest = after.weights_digest
    if not (recipe.only_checks or is_current(folder, report, weights_digest=digest)):
        released = run.models.latest
        if released.weights_digest() != digest:
            raise RunError(
                f"{out}: the weights changed after they were audited, so nothing was released; "
                "start again in another --out"
            )
        save_checkpoint(
            released,
            out / "sanitized",
            finish=lambda staging: write_release_files(
                staging, report, corpus, run=folder, weights_digest=digest, base=recipe.model.base
            ),
        )
    folder.keep_digest("report", report.text())
    write_report(out, report)
    return report


def _tested(run: RunContext, after: CheckpointAudit) -> tuple[CheckpointAudit, dict[Kind, AtRisk]]:
    """Return the last audit with its control tests, and who is at risk.

    Their names, and the digests that stand for them elsewhere, are kept in the private part.

    Raises:
        RunError: If the verdicts one by one are gone.
    """
    folder = run.folder
    verdicts = load_verdicts(folder, "after")
    if verdicts is None:
        raise RunError(f"{folder.private}: audit-after.npz is gone; start again in another --out")
    tests = control_tests_of_run(run, verdicts)
    corpus = run.documents.corpus
    named = {
        kind: {
            "occurrences": _named(corpus, risk.occurrences),
            "sampled": _named(corpus, risk.sampled),
            "subjects": risk.subjects,
            "labels": risk.labels,
            "digests": {folder.subject_digest(name): name for name in risk.everyone()},
        }
        for kind, (_, risk) in tests.items()
    }
    text = json.dumps(named, indent=1, ensure_ascii=False) + "\n"
    file = folder.private / AT_RISK
    if not (file.is_file() and file.read_text(encoding="utf-8") == text):
        write_text(file, text, mode=0o600)
    tested = replace(after, control_tests={kind: test for kind, (test, _) in tests.items()})
    return tested, {kind: risk for kind, (_, risk) in tests.items()}


def _named(corpus: Corpus, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return occurrences by document, label and offsets."""
    spans = [(corpus[document].id, corpus[document].spans[span]) for document, span in places]
    return [
        {"document": name, "label": span.label, "start": span.start, "end": span.end}
        for name, span in spans
    ]
