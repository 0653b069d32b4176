"""Commands that measure a checkpoint and change nothing: audit, attack."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sani.cli import console
from sani.cli.errors import GATE_FAILED, resumable
from sani.cli.options import (
    ATTACKS,
    DOCUMENTS,
    MEASUREMENTS,
    MODELS,
    OUTPUT,
    Base,
    Column,
    Corpus,
    Framing,
    HeldOut,
    Json,
    Limit,
    Model,
    Placement,
    Seed,
    columns_from,
    settings_from_options,
)
from sani.counting import counted
from sani.errors import UsageError

if TYPE_CHECKING:
    from sani.auditing.record import AuditRecord


def audit(
    model: Model,
    corpus: Corpus,
    base: Base = None,
    held_out: HeldOut = None,
    limit: Limit = None,
    column: Column = None,
    before: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of an earlier round of the same model. Repeat it, oldest first.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    pretraining: Annotated[
        Path | None,
        typer.Option(
            help="Documents that only the base may have seen. Tells if the checkpoint leaks them.",
            rich_help_panel=DOCUMENTS,
        ),
    ] = None,
    decoys: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Decoys per occurrence: values of the same format that are not in the corpus.",
            show_default="19",
            rich_help_panel=MEASUREMENTS,
        ),
    ] = None,
    swaps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Other subjects' values per occurrence.",
            show_default="4",
            rich_help_panel=MEASUREMENTS,
        ),
    ] = None,
    framing: Framing = "auto",
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also sample this many continuations of each kind of prompt.",
            rich_help_panel=MEASUREMENTS,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Also sample, with the prompts of this file besides, one a line.",
            rich_help_panel=MEASUREMENTS,
        ),
    ] = None,
    placement: Placement = "auto",
    seed: Seed = 0,
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Exit with 3 if a larger fraction of the direct identifiers' occurrences is "
            "recited greedily or (n, p)-discoverable, or if any could not be scored.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what a checkpoint recites of a corpus, with the base as control."""
    from sani.corpus.readers import read_corpus
    from sani.pipeline.audit_models import audit_models
    from sani.pipeline.inputs import Documents, read_others
    from sani.recipe import AuditSettings
    from sani.reporting.contents import audit_sections
    from sani.reporting.next_steps import after_audit, conclusion_of_audit

    generation: dict[str, Any] | None = None
    if samples or prompts:
        generation = dict.fromkeys(("empty", "headings", "openings"), samples) if samples else {}
        if prompts:
            generation["file"] = str(prompts)
    settings = settings_from_options(
        AuditSettings, decoys=decoys, swaps=swaps, framing=framing, generation=generation
    )
    columns = columns_from(column)
    read = read_corpus(corpus, limit=limit, columns=columns)
    documents = Documents(
        read,
        read_others("--held-out", held_out, read, columns=columns),
        read_others("--pretraining", pretraining, read, columns=columns),
    )
    for note in documents.notes():
        console.say_note(note)
    models = {"model": model}
    for number, folder in reversed(list(enumerate(before or [], start=1))):
        models[f"round {number}"] = folder
    if base is not None:
        models["base"] = base
    with console.reporter() as on_step:
        result = audit_models(
            models, documents, settings, placement=placement, seed=seed, on_step=on_step
        )
    if as_json:
        console.show_json(result.to_json())
    else:
        console.show_audits(result.audits)
        for section in audit_sections(result):
            console.show_section(section)
        for name, record in result.audits.items():
            for reason, count in record.unscored.items():
                console.show(f"{name}: {counted(count, 'occurrence')} not scored: {reason}")
        console.show(conclusion_of_audit(result.audits, result.audit_settings))
    console.show_next(after_audit(result.audits, base=base is not None), as_json=as_json)
    if fail_above is not None and not _recites_at_most(result.audits["model"], fail_above):
        raise typer.Exit(GATE_FAILED)


def _recites_at_most(audit: AuditRecord, fraction: float) -> bool:
    """Return True if an audit meets ``--fail-above``; without direct identifiers it does not."""
    figures = audit.figures.get("direct")
    rates = [figures.greedy.value, figures.discoverable.value] if figures else [None]
    holds = all(rate is not None and rate <= fraction for rate in rates)
    return holds and not audit.unscored


def attack(
    model: Model,
    corpus: Corpus,
    base: Base = None,
    unsanitized: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the unsanitized checkpoint: it guides, and shows what there was.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    held_out: HeldOut = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(
            help="Other documents of the same subjects, with spans.", rich_help_panel=DOCUMENTS
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Use few documents and one or two variants of each attack.",
            rich_help_panel=ATTACKS,
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only this attack. May be repeated.", rich_help_panel=ATTACKS),
    ] = None,
    framing: Framing = "auto",
    limit: Limit = None,
    column: Column = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps finished attacks, so that --resume can go on.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an interrupted attack.", rich_help_panel=OUTPUT),
    ] = False,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Exit with 3 if an attack gets more than from the base, or if the unsanitized "
            "checkpoint recites nothing, so that nothing was shown.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Attack a sanitized checkpoint, and the base as control."""
    if gate and (unsanitized is None or base is None):
        raise UsageError(
            "--gate needs --base and --unsanitized: without them, a clean model looks the same as "
            "a wrong corpus or tokenizer"
        )
    from sani.runfolder import check_new_run

    if out is not None and not resume:  # before the heavy libraries are loaded
        check_new_run(out)
    from sani.attacking.attack import ATTACKS as NAMES
    from sani.attacking.result import BASE, SANITIZED, UNSANITIZED
    from sani.corpus.readers import read_corpus
    from sani.gate import judge_attacks, positive_control_of_attacks
    from sani.pipeline.attack_models import attack_models
    from sani.pipeline.inputs import Documents, read_neighbours, read_others
    from sani.recipe import QUICK, AttackSettings, settings_from
    from sani.reporting.attacks import attack_sections
    from sani.reporting.next_steps import after_attack

    if unknown := set(only or ()) - set(NAMES):
        raise UsageError(f"--only {min(unknown)}: no such attack; there are {', '.join(NAMES)}")
    values: dict[str, Any] = QUICK.model_dump(mode="json") if quick else {}
    values |= {name: None for name in NAMES if only and name not in only}
    if neighbours and values.get("neighbours", {}) is not None:
        values["neighbours"] = {**values.get("neighbours", {}), "documents": str(neighbours)}
    columns = columns_from(column)
    read = read_corpus(corpus, limit=limit, columns=columns)
    settings = settings_from(AttackSettings, values)
    documents = Documents(
        read,
        read_others("--held-out", held_out, read, columns=columns),
        None,
        read_neighbours(settings, columns=columns),
    )
    for note in documents.notes():
        console.say_note(note)
    models = {SANITIZED: model}
    for name, folder in ((UNSANITIZED, unsanitized), (BASE, base)):
        if folder is not None:
            models[name] = folder
    going_on = nullcontext() if out is None else resumable(out, "sani attack")
    with going_on, console.reporter() as on_step:
        result = attack_models(
            models,
            documents,
            settings,
            framing=framing,
            attacked=(SANITIZED, BASE) if quick and not gate else (SANITIZED, UNSANITIZED, BASE),
            seed=seed,
            out=out,
            resume=resume,
            on_step=on_step,
        )
    judged = [
        *([positive_control_of_attacks(result)] if gate else []),
        *judge_attacks("control", result),
    ]
    if as_json:
        console.show_json({**result.to_json(), "checks": [check.to_json() for check in judged]})
    else:
        for section in attack_sections(result):
            console.show_section(section)
        console.show_checks(judged)
    console.show_next(after_attack(judged), as_json=as_json)
    if gate and not all(check.holds for check in judged):
        raise typer.Exit(GATE_FAILED)
