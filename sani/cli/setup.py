"""Commands before a run: init, dequantize, env, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sani.cli import console
from sani.cli.options import (
    Base,
    Column,
    Corpus,
    Format,
    HeldOut,
    Json,
    Model,
    SubjectPattern,
    cache_folder,
    columns_from,
    settings_from_options,
)


def init(
    model: Model,
    corpus: Corpus,
    base: Base = None,
    held_out: HeldOut = None,
    format: Format = None,
    subject_pattern: SubjectPattern = None,
    column: Column = None,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    no_time: Annotated[
        bool, typer.Option("--no-time", help="Do not measure how long a run takes.")
    ] = False,
) -> None:
    """Write a commented recipe that fits a model and a corpus.

    Documents that nobody has annotated are scanned, held-out documents in the same way.
    """
    from sani.atomic import check_new_file

    check_new_file(out)  # before the heavy libraries are loaded
    from sani.models.folder_files import is_adapter
    from sani.pipeline.preflight import time_of_run
    from sani.pipeline.recipe_text import suggested_recipe, values_file, write_recipe
    from sani.pipeline.suggest_recipe import fit
    from sani.recipe import CorpusSettings
    from sani.scanning.values import write_values

    documents = settings_from_options(
        CorpusSettings,
        path=str(corpus),
        held_out=str(held_out) if held_out else None,
        format=format,
        subject_pattern=subject_pattern,
        columns=columns_from(column) or None,
    )
    with console.reporter() as on_step:
        facts = fit(
            model,
            documents,
            base=base,
            cache_folder=cache_folder(),
            on_step=on_step,
        )
        takes = None
        if facts.fits and not no_time:
            recipe = suggested_recipe(facts, model=model, corpus=documents, base=base)
            takes = time_of_run(recipe, on_step)
    for note in facts.notes:
        console.say_note(note)
    if facts.scan.detects:
        write_values(values_file(out), facts.scanned)
    write_recipe(out, facts, model=model, corpus=documents, base=base, takes=takes)
    console.show(f"Recipe: {out}.{f' A run takes {takes.in_words}.' if takes else ''}")
    if is_adapter(model):
        console.show(f"{model} is an adapter: a run merges it, and writes a whole model.")
    for line in (*facts.scan_in_words, *facts.judged):
        console.show(f"{line[0].upper()}{line[1:]}.")
    if facts.scan.detects:
        console.show(
            f"What the scan marks most often: {values_file(out)} (identifiers in clear, mode "
            "0600). Values in it that are no identifiers: put them into a file, and name it in "
            "scan.allow."
        )
    console.show(f"Next: sani run {out} --check")


def dequantize(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder with one GGUF file.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.", show_default=False)],
) -> None:
    """Write the weights of a GGUF file as a plain checkpoint, which every command reads.

    config.json and tokenizer files beside it go before what it says itself.
    """
    from sani.atomic import check_new_folder

    check_new_folder(out, inputs=[folder])
    from sani.models.dequantize import dequantize

    result = dequantize(folder, out)
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    console.show(f"Dequantized: {result.parameters:,} numbers of a {result.model_type} ({types}).")
    if result.tokenizer == "gguf":
        console.show(
            "The tokenizer was rebuilt from the GGUF file; with tokenizer.json beside it, that one "
            "goes along."
        )
    console.show(f"Checkpoint: {out}")
    console.show_next(f"Next: sani audit {out} --corpus RECORDS")


def env(as_json: Json = False) -> None:
    """Print what this machine can do: device, memory, versions, the largest model."""
    from sani.machine.environment import describe_environment

    environment = describe_environment(Path.cwd())
    if as_json:
        console.show_json(environment)
    else:
        rows = [list(row) for row in environment.items()]
        console.show_table("This machine", ["property", "value"], rows)
    console.show_next("Next: sani init MODEL --corpus RECORDS", as_json=as_json)


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from sani.recipe import Recipe

    console.show_json(Recipe.model_json_schema())
