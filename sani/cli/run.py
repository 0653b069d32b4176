"""Commands for the whole job of a recipe: run and demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sani.cli import console
from sani.cli.errors import GATE_FAILED, resumable
from sani.cli.options import Json
from sani.cli.release import show_report, warn_of_files_not_released
from sani.errors import UsageError
from sani.machine import distributed

if TYPE_CHECKING:
    from sani.recipe import Recipe


def run(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe, a YAML file. With --try-next, also the folder of a finished run."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/<name of the recipe>")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check every input; run nothing and write nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value wins over the recipe. May be repeated."),
    ] = None,
    try_next: Annotated[
        bool,
        typer.Option(
            "--try-next",
            help="Carry out the first advice of the finished run, as a new recipe in a new folder "
            "(NAME-2).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Do the whole job of a recipe. The exit code is 3 if its gate does not hold."""
    folder = out or Path("runs") / recipe.stem
    if try_next:
        if resume or overrides:
            raise UsageError(
                "--try-next takes the recipe and the settings of the finished run: leave --resume "
                "and --set away"
            )
        finished = recipe if recipe.is_dir() else folder
        raise typer.Exit(_try_next(finished, only_check=check, as_json=as_json))
    from sani.recipe import load_recipe

    settings = load_recipe(recipe, overrides=overrides or ())
    if check:
        raise typer.Exit(_check(settings, folder, resume=resume, as_json=as_json))
    raise typer.Exit(run_and_show(settings, folder, resume=resume, as_json=as_json))


def demo(
    out: Annotated[Path, typer.Option(help="Folder for models and runs.")] = Path("runs/demo"),
) -> None:
    """Invent a clinic, train a model that recites its patients, and sanitize it. No download."""
    from sani.demo.demo import make_demo
    from sani.recipe import load_recipe

    with console.reporter() as on_step:
        made = make_demo(out, on_step=on_step)
    console.say(f"sani run {made.recipe}")
    recipe = load_recipe(made.recipe)
    raise typer.Exit(run_and_show(recipe, out / "run", trainings=made.seconds))


def _try_next(run: Path, *, only_check: bool, as_json: bool) -> int:
    """Write the next recipe of a finished run, run it, and return the exit code.

    With ``only_check`` the next run is checked, and nothing is written.
    """
    from sani.runfolder import check_is_run

    check_is_run(run)  # before the heavy libraries are loaded
    from sani.pipeline.try_next import next_run

    new = distributed.on_main(lambda: next_run(run))
    if only_check:
        return _check(new.recipe, new.out, resume=False, as_json=as_json)
    distributed.on_main(new.write)
    console.say(f"{new.file}: the recipe of {run}, and what changed")
    console.say(f"once it ends, both runs: sani report {run} {new.out} --compare")
    return run_and_show(new.recipe, new.out, resume=False, as_json=as_json)


def _check(settings: Recipe, out: Path, *, resume: bool, as_json: bool) -> int:
    """Check the inputs of a run, print the result, and return the exit code."""
    from dataclasses import asdict

    from sani.pipeline.preflight import check
    from sani.reporting.next_steps import after_check

    with console.reporter() as on_step:
        measure = not distributed.launched()  # ranks would stop to measure at different steps
        items = check(settings, out, resume=resume, measure=measure, on_step=on_step)
    if as_json:
        console.show_json([asdict(item) for item in items])
    else:
        rows = [[item.name, "ok" if item.holds else "NO", item.detail] for item in items]
        console.show_table("Check (nothing was written)", ["check", "", "result"], rows)
    holds = all(item.holds for item in items)
    console.show_next(after_check(out, holds=holds), as_json=as_json)
    return 0 if holds else 1


def run_and_show(
    settings: Recipe,
    out: Path,
    *,
    resume: bool = False,
    as_json: bool = False,
    trainings: Mapping[str, float] | None = None,
) -> int:
    """Carry out a recipe, print its report, and return the exit code.

    Args:
        settings: The recipe.
        out: The run folder.
        resume: Continue an interrupted run.
        as_json: Print ``report.json``.
        trainings: Seconds of the trainings before the run; with these, the time of every stage is
            printed too.
    """
    from sani.runfolder import check_new_run

    if not resume:  # before the heavy libraries are loaded
        distributed.on_main(lambda: check_new_run(out))
    from sani.pipeline.run import run as run_recipe
    from sani.reporting.advice import next_line
    from sani.reporting.process import cost

    if resume and not out.exists():
        console.say(f"{out} does not exist, so there is nothing to resume: this run is new")
    with resumable(out, "sani run"), console.reporter() as on_step:
        result = run_recipe(settings, out, resume=resume, on_step=on_step, on_note=console.say_note)
    warn_of_files_not_released(settings.model.path, only_checked=settings.only_checks)
    if as_json:
        console.show_json(result.report.to_json())
    else:
        show_report(result.report, out)
        _show_checkpoint(settings, out, gate_holds=result.gate_holds)
        if trainings is not None:
            times = cost(result.report)
            rows = [(name, f"{seconds:.1f}", "-") for name, seconds in trainings.items()]
            console.show_table(times.title, times.head, [*rows, *times.rows])
    console.show_next(next_line(result.report.advice, run=str(out)), as_json=as_json)
    return 0 if result.gate_holds else GATE_FAILED


def _show_checkpoint(recipe: Recipe, out: Path, *, gate_holds: bool) -> None:
    """Print where the checkpoint is, and whether an adapter became a whole model."""
    from sani.models.folder_files import is_adapter

    checkpoint = recipe.model.path if recipe.only_checks else out / "sanitized"
    warning = "" if gate_holds else " (do not share it: the gate does not hold)"
    console.show(f"Checkpoint: {checkpoint}{warning}")
    if recipe.output == "adapter":
        console.show("It is an adapter, for the base that it was audited on.")
    elif is_adapter(recipe.model.path) and not recipe.only_checks:
        console.show("It is a whole model: the adapter was merged into its base.")
