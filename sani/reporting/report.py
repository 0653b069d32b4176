"""The report of a run: result files in, pages and files for CI out. Never reads a model.

`build_report` counts and never renders; everything else is a function of what it returns, so that
``report.json`` alone gives the same page again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from sani.atomic import write_text
from sani.attacking.result import AttackResult
from sani.auditing.compare import (
    Corpora,
    beyond_control,
    changes_since_base,
    compare,
    compare_audits,
    onion,
)
from sani.auditing.control_tests import AtRisk, Verdicts
from sani.auditing.generation import Hits
from sani.auditing.identifier_index import Identifier, IdentifierIndex
from sani.auditing.membership import DocumentScores
from sani.auditing.occurrences import Occurrences
from sani.auditing.record import CheckpointAudit, load_verdicts
from sani.auditing.unlearning_depth import UnlearningDepth
from sani.corpus.documents import Corpus, Kind
from sani.counting import counted
from sani.gate import Check
from sani.gate.advice import advise
from sani.recipe import Recipe
from sani.recipe.weaker_limits import weaker_attacks, weaker_audit, weaker_limits
from sani.reporting.at_risk import named_at_risk
from sani.reporting.attacks import whether_tested
from sani.reporting.by_subject import against_control, by_subject
from sani.reporting.card import read_source_card
from sani.reporting.escalation import escalation
from sani.reporting.facts import facts_of
from sani.reporting.identity import identity
from sani.reporting.junit import junit
from sani.reporting.page import render
from sani.reporting.process import stages
from sani.reporting.ripple import ripples
from sani.reporting.rounds import rounds_between, rounds_made
from sani.reporting.sarif import sarif
from sani.reporting.schema import (
    SCHEMA_VERSION,
    Changes,
    Entry,
    Erase,
    Gate,
    MemoryUse,
    Named,
    Plan,
    Pretraining,
    Repair,
    Report,
    SelectorResult,
    Stage,
)
from sani.reporting.stage_files import EraseFile, RepairFile
from sani.runfolder import RunFolder
from sani.scanning.record import ScanRecord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_LISTED = 50
MAX_STEPS = 200
MAP_BINS = 64
_Arrays = TypeVar("_Arrays", bound="DataclassInstance")
_Settings = TypeVar("_Settings", bound=BaseModel)

NOT_ATTACKED = (
    "relearning, quantization, guidance by the unsanitized checkpoint, and prompts made to bring "
    "identifiers up (no attack was run)"
)
NOT_TESTED = (
    "identifiers that the corpus does not mark",
    "an identifier written with other tokens or in another form than in its document",
    "documents that were not given to this run",
)
# Limits on totals, which the tests against the control stand in for.
TOTALS = ("greedy", "discoverable", "auc_excess")
NOT_SAMPLED = "what the model recites when it is left to write (audit.generation)"
RARELY_SAMPLED = (
    "what the model recites less often than once in {samples} of {tokens} tokens, when it is left "
    "to write"
)


def build_report(
    folder: RunFolder,
    recipe: Recipe,
    corpus: Corpus,
    checks: Sequence[Check],
    at_risk: Mapping[Kind, AtRisk],
    *,
    held_out: Corpus | None = None,
    unread: Sequence[str] = (),
) -> Report:
    """Collect everything a run measured; no identifier and no document id is in it.

    ``unread`` says what was not read of the documents, in whole sentences.
    """
    audits = _audits(folder, "audit")
    verdicts = _arrays(folder, "audit-{}", Occurrences)
    between = rounds_between(folder)
    by_stage: dict[str, Occurrences] = {stage: each for stage, each in verdicts.items()}
    all_verdicts = by_stage | between
    steps = ("before", "erased", *between, "after")
    attacks = folder.load_as("attack", AttackResult)
    compared = compare_audits(
        audits,
        _verdicts(folder),
        Corpora(corpus, held_out),
        _arrays(folder, "audit-{}-documents", DocumentScores),
        _arrays(folder, "audit-{}-generation", Hits),
        _searched(recipe, corpus),
        seed=recipe.seed,
    )
    report = Report(
        schema_version=SCHEMA_VERSION,
        gate=Gate(
            holds=bool(checks) and all(check.holds for check in checks),
            weaker=[
                *weaker_limits(recipe.gate.model_dump(mode="json")),
                *weaker_audit(recipe.audit, recipe.gate),
                *weaker_attacks(recipe.attack, recipe.gate),
            ],
            checks=list(checks),
        ),
        scan=folder.load_finished("scan", ScanRecord),
        advice=advise(facts_of(folder, recipe, checks, compared)),
        audits=compared,
        onion=onion(steps, all_verdicts),
        pretraining=Pretraining(
            audits=_audits(folder, "pretraining"),
            changes=changes_since_base(_arrays(folder, "pretraining-{}", Occurrences)),
        ),
        changes=_changes(folder, corpus, verdicts),
        ripples=ripples(all_verdicts, corpus, rounds=steps),
        attacks=_attacked(attacks),
        unlearning_depth=folder.load_as("unlearning-depth", UnlearningDepth),
        at_risk=named_at_risk(at_risk, folder.subject_digest),
        subjects=by_subject(verdicts, corpus, folder.subject_digest),
        log_prob_scatter=against_control(verdicts, corpus),
        escalation=escalation(folder),
        rounds=rounds_made(folder),
        erase=_erased(folder.load_as("erase", EraseFile)),
        repair=_repaired(folder.load_as("repair", RepairFile)),
        audit_settings=_pathless(recipe.audit),
        gate_settings=recipe.judged_gate,
        without_limit=[name for name, limit in recipe.gate if limit is None and name not in TOTALS],
        corpus_limit=recipe.corpus.limit,
        recipe=_without_paths(recipe.model_dump()),
        source_card=read_source_card(recipe.model.path, recipe.model.base, corpus),
        not_tested=[
            *(f"not read, so not audited: {note}" for note in unread),
            *_not_attacked(attacks),
            *NOT_TESTED,
            _not_sampled(audits["after"]),
        ],
        memory=folder.load_as("memory", MemoryUse),
        provenance=identity(folder, recipe, corpus),
    )
    seconds = round(sum(stage.seconds for stage in stages(report).values()), 1)
    timed = report.provenance.model_copy(update={"seconds": seconds})
    return report.model_copy(update={"provenance": timed})


def _not_sampled(after: CheckpointAudit) -> str:
    """Return what samples of the sanitized checkpoint say nothing about."""
    generation = after.generation
    if generation is None:
        return NOT_SAMPLED
    samples = counted(generation.recited["all"].samples, "sample")
    return RARELY_SAMPLED.format(samples=samples, tokens=generation.new_tokens)


def write_report(folder: Path, report: Report) -> None:
    """Write ``report.json`` and the files that are rendered from it."""
    write_text(folder / "report.json", report.text())
    write_pages(folder, report)


def write_pages(folder: Path, report: Report) -> None:
    """Write ``report.md``, ``report.html``, ``junit.xml`` and ``report.sarif``."""
    write_text(folder / "report.md", render(report, "report.md.jinja"))
    write_text(folder / "report.html", render(report, "report.html.jinja"))
    write_text(folder / "junit.xml", junit(report))
    write_text(folder / "report.sarif", sarif(report))


def _erased(erase: EraseFile | None) -> Erase | None:
    """Return the erase, with shares of stretches of neurons; ``erase.json`` has the neurons."""
    if erase is None:
        return None
    plan = erase.plan
    return Erase(
        plan=Plan(
            selector=plan.selector,
            reset=plan.reset,
            seed=plan.seed,
            interpolate_to_base=plan.interpolate_to_base,
            entries=[
                Entry(
                    layer=entry.layer,
                    part=entry.part,
                    neurons=len(entry.neurons),
                    total=entry.total,
                    map=_map(entry.neurons, entry.total),
                )
                for entry in plan.entries
            ],
            token_rows=plan.token_rows,
            selector_result=None
            if plan.selector_result is None
            else SelectorResult(
                layers=plan.selector_result.layers, labels=plan.selector_result.labels
            ),
        ),
        retrains=erase.retrains,
        changed_parameters=erase.changed_parameters,
        fraction=erase.fraction,
        seconds=erase.seconds,
    )


def _map(neurons: Sequence[int], total: int) -> list[float]:
    """Return the reset share of each stretch of neighbouring neurons, at most `MAP_BINS`."""
    bins = min(MAP_BINS, total)
    whole = np.bincount(np.arange(total) * bins // total, minlength=bins)
    hit = np.bincount(np.asarray(neurons, dtype=np.int64) * bins // total, minlength=bins)
    return [round(float(share), 3) for share in hit / whole]


def _repaired(repair: RepairFile | None) -> Repair | None:
    """Return the repair, with means over neighbouring steps where there are many."""
    if repair is None:
        return None
    curve = repair.curve
    width = max(1, -(-len(curve) // MAX_STEPS))  # rounded up, so that at most MAX_STEPS are left
    groups = [curve[start : start + width] for start in range(0, len(curve), width)]
    return Repair(
        steps=repair.steps,
        tokens=repair.tokens,
        seconds=repair.seconds,
        trained_fraction=repair.trained_fraction,
        by_epoch=repair.by_epoch,
        notes=repair.notes,
        curve=[
            {
                # A batch without an identifier lacks that term.
                name: fmean(entry[name] for entry in group if name in entry)
                for name in dict.fromkeys(name for entry in group for name in entry)
            }
            for group in groups
        ],
    )


def _attacked(attacks: AttackResult | None) -> AttackResult | None:
    """Return the attacks, without paths on a disk."""
    return attacks and replace(attacks, settings=_pathless(attacks.settings))


def _not_attacked(attacks: AttackResult | None) -> list[str]:
    """Return what no attack tried on the sanitized checkpoint."""
    if attacks is None:
        return [NOT_ATTACKED]
    names = (*attacks.not_run, *attacks.attacks)
    missing = [name for name in names if whether_tested(attacks, name) == "not tested"]
    return [f"attacks that were not run: {', '.join(missing)}"] if missing else []


def _pathless(settings: _Settings) -> _Settings:
    """Return settings without paths on a disk."""
    return type(settings).model_validate_json(json.dumps(_without_paths(settings.model_dump())))


def _without_paths(value: Any) -> Any:
    """Return settings as plain data without paths on a disk, which may tell who or where."""
    if isinstance(value, Mapping):
        return {name: _without_paths(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_without_paths(inner) for inner in value]
    is_path = isinstance(value, Path) or (isinstance(value, str) and "/" in value)
    return "(a path)" if is_path else value


def _audits(folder: RunFolder, name: str) -> dict[Stage, CheckpointAudit]:
    """Load the audits of one kind by stage."""
    return {
        stage: audit
        for stage in get_args(Stage)
        if (audit := folder.load_as(f"{name}-{stage}", CheckpointAudit)) is not None
    }


def _searched(recipe: Recipe, corpus: Corpus) -> tuple[Identifier, ...]:
    """Return the identifiers that sampling was searched for."""
    settings = recipe.audit.generation
    return IdentifierIndex(corpus, kinds=settings.kinds).identifiers if settings else ()


def _arrays(folder: RunFolder, name: str, kind: type[_Arrays]) -> dict[Stage, _Arrays]:
    """Load what the audits stored one by one, by stage."""
    return {
        stage: arrays
        for stage in get_args(Stage)
        if (arrays := folder.load_arrays(name.format(stage), kind)) is not None
    }


def _verdicts(folder: RunFolder) -> dict[Stage, Verdicts]:
    """Load the verdicts of the audits one by one, by stage."""
    return {
        stage: verdicts
        for stage in get_args(Stage)
        if (verdicts := load_verdicts(folder, stage)) is not None
    }


def _changes(folder: RunFolder, corpus: Corpus, verdicts: Mapping[Stage, Occurrences]) -> Changes:
    """Compare before with after; name by digest what is still or newly extractable."""
    after = verdicts["after"]
    change = compare(verdicts["before"], after)
    counts = change.counts()
    beyond = np.zeros_like(change.kept)
    if "base" in verdicts:
        beyond = beyond_control(after, verdicts["base"])

    def named(chosen: NDArray[np.bool_]) -> list[Named]:
        return [
            _named(folder, corpus, int(after.document[index]), int(after.span[index]))
            for index in np.flatnonzero(chosen)[:MAX_LISTED]
        ]

    return Changes(
        cured=counts.cured,
        kept=counts.kept,
        new=counts.new,
        p_value=counts.p_value,
        beyond_control=int(beyond.sum()),
        beyond_control_listed=named(beyond),
        kept_listed=named(change.kept),
        new_listed=named(change.new),
    )


def _named(folder: RunFolder, corpus: Corpus, document_number: int, span_number: int) -> Named:
    document = corpus[document_number]
    span = document.spans[span_number]
    return Named(
        document=document_number,
        label=span.label,
        kind=span.kind,
        digest=folder.digest(f"{span.label}\x00{document.value(span)}"),
    )
