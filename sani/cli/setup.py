"""Commands before a run: init, env, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sani.cli import console
from sani.cli.options import Base, Corpus, HeldOut, Json, Model


def init(
    model: Model,
    corpus: Corpus,
    base: Base = None,
    held_out: HeldOut = None,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    no_time: Annotated[
        bool, typer.Option("--no-time", help="Do not measure how long a run takes.")
    ] = False,
) -> None:
    """Write a commented recipe that fits a model and a corpus."""
    from sani.atomic import check_new_file
    from sani.pipeline.recipe_text import duration, write_recipe
    from sani.pipeline.suggest_recipe import fit

    check_new_file(out)
    with console.reporter() as on_step:
        suggestion = fit(
            model, corpus, base=base, held_out=held_out, measure=not no_time, on_step=on_step
        )
    write_recipe(out, suggestion, model=model, corpus=corpus, base=base, held_out=held_out)
    takes = "" if suggestion.seconds is None else f" A run takes {duration(suggestion.seconds)}."
    console.show(f"Recipe: {out}.{takes}")
    for line in suggestion.judged:
        console.show(f"{line[0].upper()}{line[1:]}.")
    console.show(f"Next: sani run {out} --check")


def env(as_json: Json = False) -> None:
    """Print what this machine can do: device, memory, versions, the largest model."""
    from sani.machine.environment import describe_environment

    environment = describe_environment(Path.cwd())
    if as_json:
        console.show_json(environment)
    else:
        rows = [list(row) for row in environment.items()]
        console.show_table("This machine", ["property", "value"], rows)


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from sani.recipe import Recipe

    console.show_json(Recipe.model_json_schema())
