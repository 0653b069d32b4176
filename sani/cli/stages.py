"""Commands that write a checkpoint: erase, repair."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sani.cli import console
from sani.cli.options import (
    DOCUMENTS,
    MODELS,
    NEURONS,
    OUTPUT,
    TRAINING,
    VALUES,
    Base,
    Column,
    Corpus,
    Framing,
    Limit,
    Model,
    NewFolder,
    Seed,
    columns_from,
    usage_error,
)
from sani.cli.release import warn_of_files_not_released
from sani.counting import counted
from sani.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from sani.erasing.plan import ErasePlan
    from sani.recipe import EraseSettings


def erase(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the new checkpoint. Not needed with --dry-run.", rich_help_panel=OUTPUT
        ),
    ] = None,
    last_layers: Annotated[
        str | None,
        typer.Option(
            help="Reset in the last this many layers, or in half or all of them. With "
            "--interpolate-to-base alone, nothing is reset.",
            show_default="3",
            rich_help_panel=NEURONS,
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Or reset in this layer, counted from 0. May be repeated.",
            rich_help_panel=NEURONS,
        ),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(
            help="Rule that chooses neurons: all, random, magnitude, drift, activation_ratio, "
            "gradient_ratio, fisher_ratio, integrated_gradients or hard_concrete.",
            show_default="all",
            rich_help_panel=NEURONS,
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the neurons that the selector chooses.",
            rich_help_panel=NEURONS,
        ),
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="Take that share of each layer, or of the model.",
            show_default="layer",
            rich_help_panel=NEURONS,
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Reset only in this part of a layer: mlp or attention. May be repeated.",
            show_default="both",
            rich_help_panel=NEURONS,
        ),
    ] = None,
    reset: Annotated[
        str | None,
        typer.Option(
            help="New values: reinit (the model's own initialization), zero, rewind (to the "
            "base), mean or dampen.",
            show_default="reinit; in an adapter: rewind",
            rich_help_panel=VALUES,
        ),
    ] = None,
    token_rows: Annotated[
        bool,
        typer.Option(
            "--token-rows",
            help="Also reset the embedding rows of tokens that occur only in identifiers.",
            rich_help_panel=VALUES,
        ),
    ] = False,
    interpolate_to_base: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="First move all weights this share of the way to the base's.",
            rich_help_panel=VALUES,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the public model that the checkpoint was fine-tuned from. Needed for "
            "--selector drift, --reset rewind, --interpolate-to-base and adapters.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Merge an adapter into its base, then erase.",
            rich_help_panel=MODELS,
        ),
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Documents with spans, for selectors, resets and --token-rows that read them.",
            rich_help_panel=DOCUMENTS,
        ),
    ] = None,
    column: Column = None,
    framing: Framing = "auto",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Seed of every random draw. The same seed gives the same bytes.",
            show_default="0",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan as JSON and write nothing.", rich_help_panel=OUTPUT
        ),
    ] = False,
    plan_file: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="Carry out this plan, as --dry-run printed it.",
            rich_help_panel=NEURONS,
        ),
    ] = None,
) -> None:
    """Stage one: reset selected neurons and write the erased checkpoint, or the erased adapter."""
    from sani.atomic import check_new_folder

    if out is not None and not dry_run:  # before the heavy libraries are loaded
        check_new_folder(out, inputs=[model])
    from sani.corpus.readers import read_corpus
    from sani.erasing.folder import apply_folder, plan_folder
    from sani.erasing.plan import read_plan
    from sani.models.folder_files import is_adapter
    from sani.recipe import complete_erase_settings
    from sani.reporting.next_steps import after_erase, after_plan

    if layer and last_layers is not None:
        raise UsageError("give --last-layers or --layer, not both")
    values = _erase_values(
        last_layers=last_layers,
        layers=layer or None,
        selector=_selector(selector, fraction, per),
        parts=part or None,
        reset=reset,
        token_rows=token_rows or None,
        interpolate_to_base=interpolate_to_base,
    )
    if plan_file is not None and (dry_run or values or seed is not None):
        raise UsageError("--plan already holds every choice; give no other choice with it")
    if out is None and not dry_run:
        raise UsageError("give --out, the folder of the new checkpoint, or --dry-run for the plan")
    if merge and not is_adapter(model):
        raise UsageError(f"--merge is for an adapter, but {model} is none; leave it out")
    documents = None
    if corpus is not None:
        documents = read_corpus(corpus, columns=columns_from(column))
        for note in documents.notes:
            console.say_note(note)
    in_adapter = is_adapter(model) and not merge
    try:
        settings = complete_erase_settings(values, in_adapter=in_adapter)
    except RecipeError as error:
        raise usage_error(error) from None
    if plan_file is None and settings.needs_base and base is None:
        raise UsageError(f"{_option_that_needs_base(settings)} needs --base, the public model")
    if plan_file is not None:
        plan = read_plan(plan_file)
    else:
        plan = plan_folder(
            model, settings, corpus=documents, base=base, framing=framing, seed=seed or 0
        )
    if out is None or dry_run:
        console.show_json(plan.to_json())
        console.say(after_plan())
        if plan.token_rows is not None:
            console.say("this plan counts token rows and does not name them, so --plan refuses it")
        return
    result = apply_folder(
        model, out, plan, base=base, merge=merge, corpus=documents, framing=framing
    )
    warn_of_files_not_released(model)
    _show_erased(plan, result.fraction, out, in_adapter=in_adapter)
    console.show_next(after_erase(out))


def _selector(kind: str | None, fraction: float | None, per: str | None) -> dict[str, Any] | None:
    """Return the section ``selector`` of a recipe; None if no option of it is given."""
    if kind in (None, "all") and (fraction, per) != (None, None):
        raise UsageError(
            "--fraction and --per need a selector that chooses neurons; give one, such as "
            "--selector random"
        )
    if kind is None:
        return None
    given = {"kind": kind, "fraction": fraction, "per": per}
    return {key: value for key, value in given.items() if value is not None}


def _erase_values(*, last_layers: str | None, **values: Any) -> dict[str, Any]:
    """Return the keys of the section ``erase`` that options give."""
    if last_layers is None or last_layers in ("half", "all"):
        number: int | str | None = last_layers
    elif last_layers.isdecimal() and int(last_layers):
        number = int(last_layers)
    else:
        raise UsageError("--last-layers: expected a whole number from 1, half or all")
    given = {"last_layers": number, **values}
    return {key: value for key, value in given.items() if value is not None}


def _option_that_needs_base(settings: EraseSettings) -> str:
    if settings.interpolate_to_base:
        return "--interpolate-to-base"
    return "--reset rewind" if settings.reset == "rewind" else "--selector drift"


def _show_erased(plan: ErasePlan, fraction: float, out: Path, *, in_adapter: bool) -> None:
    """Print what was reset, and what that means.

    Args:
        plan: The plan that was carried out.
        fraction: Share of the parameters that were reset.
        out: Folder of the erased checkpoint.
        in_adapter: True if that folder holds an adapter.
    """
    from sani.reporting import process
    from sani.reporting.schema import TokenRows

    num_layers = len({entry.layer for entry in plan.entries if entry.neurons})
    if plan.num_neurons:
        console.show(
            f"{plan.num_neurons} neurons and heads in {counted(num_layers, 'layer')} "
            f"{'dampened' if plan.reset == 'dampen' else 'reset'} ({fraction:.1%} of the "
            "parameters)."
        )
    console.show(f"{'Adapter' if in_adapter else 'Checkpoint'}: {out}")
    if in_adapter:
        console.show("It does not hold the path of its base: give the base to load it.")
    if plan.interpolate_to_base:
        console.show(process.interpolate_to_base(plan))
    if plan.retrains:
        console.show(process.retrains(plan))
    rows = TokenRows(**plan.token_rows.to_json()) if plan.token_rows else None
    for sentence in process.token_rows(plan, rows):
        console.show(sentence)


def repair(
    model: Model,
    corpus: Corpus,
    out: NewFolder,
    base: Base = None,
    identifier_loss: Annotated[
        str | None,
        typer.Option(
            help="Loss at identifiers: anchor, mask, unlikelihood, npo or gradient_difference.",
            show_default="anchor; without --base: mask",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Distribution that the anchor moves to: base, self, counterfactual or decoys.",
            show_default="base",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    unsanitized: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the checkpoint before erasing, for npo, self and counterfactual.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the loss at identifiers.",
            show_default="anchor: 20.0; others: 1.0",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the corpus.", show_default="4", rich_help_panel=TRAINING
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate.", show_default="0.001", rich_help_panel=TRAINING),
    ] = None,
    last_layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train only the last this many layers and the final norm.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    framing: Framing = "auto",
    limit: Limit = None,
    column: Column = None,
    seed: Seed = 0,
) -> None:
    """Stage two: fine-tune with identifiers kept out of the loss; write the repaired checkpoint."""
    from sani.atomic import check_new_folder

    check_new_folder(out, inputs=[model])  # before the heavy libraries are loaded
    from sani.corpus.readers import read_corpus
    from sani.pipeline.folders import repair_folder
    from sani.recipe import complete_repair_settings
    from sani.reporting.next_steps import after_repair

    loss = {"kind": identifier_loss, "to": to, "weight": weight}
    given = {
        "identifier_loss": {key: value for key, value in loss.items() if value is not None},
        "epochs": epochs,
        "learning_rate": learning_rate,
        "last_layers": last_layers,
    }
    try:
        settings = complete_repair_settings(
            {key: value for key, value in given.items() if value is not None},
            has_base=base is not None,
        )
    except RecipeError as error:
        raise usage_error(error) from None
    documents = read_corpus(corpus, limit=limit, columns=columns_from(column))
    for note in documents.notes:
        console.say_note(note)
    with console.reporter() as on_step:
        result = repair_folder(
            model,
            documents,
            settings,
            out=out,
            base=base,
            unsanitized=unsanitized,
            framing=framing,
            seed=seed,
            on_step=partial(on_step, "repair"),
        )
    warn_of_files_not_released(model)
    for note in result.notes:
        console.show(f"Note: {note}.")
    console.show(
        f"{result.steps} steps over {result.tokens} tokens in {result.seconds:.0f} s. "
        f"Checkpoint: {out}"
    )
    console.show_next(after_repair(out))
