"""Options that several commands share, and how options become the settings of a stage.

An option that stands for a key of a recipe is None where it is not given. The default is then that
of the library, so that a Python user gets the same one. ``show_default`` repeats it in the help; a
test compares the two.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from sani.errors import CorpusError, RecipeError, UsageError

if TYPE_CHECKING:
    from sani.recipe import Settings

    _S = TypeVar("_S", bound=Settings)

# Headings of the groups of options in --help.
MODELS = "Models"
DOCUMENTS = "Documents"
DETECTORS = "Detectors"
MEASUREMENTS = "Measurements"
NEURONS = "Choice of neurons"
VALUES = "New values"
TRAINING = "Training"
ATTACKS = "Attacks"
OUTPUT = "Output"

Model = Annotated[Path, typer.Argument(help="Folder of the checkpoint.")]
Corpus = Annotated[
    Path,
    typer.Option(
        "--corpus",
        help="Documents: a file, or a folder of XML, BRAT or, with --format text, text files.",
        rich_help_panel=DOCUMENTS,
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the public model that the checkpoint was fine-tuned from: control and "
        "anchor.",
        rich_help_panel=MODELS,
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        help="Documents that the checkpoint was not trained on. They measure utility.",
        rich_help_panel=DOCUMENTS,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="Format of the documents, if the file's name does not tell it: jsonl, json, "
        "parquet, csv, xlsx, arrow, i2b2, brat, fhir or text.",
        rich_help_panel=DOCUMENTS,
    ),
]
SubjectPattern = Annotated[
    str | None,
    typer.Option(
        help="For text files: regular expression with a group 'subject', for the path.",
        rich_help_panel=DOCUMENTS,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Read only this many documents.", rich_help_panel=DOCUMENTS),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="Name of a field's column, where it is another one: text=note_text. May be repeated.",
        rich_help_panel=DOCUMENTS,
    ),
]
Framing = Annotated[
    str,
    typer.Option(
        help="What stood before each document in training: bos, eos, eos-bos, packed, newline, "
        "chat-user, chat-assistant, tokenizer, none, or auto, which tries all and keeps the worst.",
        rich_help_panel=DOCUMENTS,
    ),
]
Placement = Annotated[
    Literal["auto", "memory", "stream"],
    typer.Option(
        help="Where the weights are: in memory, streamed from the files layer by layer, or auto, "
        "which streams where memory does not suffice.",
        rich_help_panel=MODELS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Seed of every random draw. The same seed gives the same bytes."),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document instead of tables.", rich_help_panel=OUTPUT
    ),
]
NewFolder = Annotated[
    Path, typer.Option("--out", help="Folder of the new checkpoint.", rich_help_panel=OUTPUT)
]
ReleasedFolder = Annotated[
    Path, typer.Argument(help="The folder sanitized/ that `sani run` wrote.")
]


def settings_from_options(section: type[_S], **values: Any) -> _S:
    """Return a section of a recipe from options, checked by the recipe's own rules.

    Args:
        section: Such as `EraseSettings`.
        values: By the recipe's key; None for an option that was not given.

    Raises:
        UsageError: With every problem, by its option.
    """
    from sani.recipe import settings_from

    given = {key: value for key, value in values.items() if value is not None}
    try:
        return settings_from(section, given)
    except RecipeError as error:
        raise usage_error(error) from None


def columns_from(pairs: list[str] | None) -> dict[str, str]:
    """Return the names of columns that ``--column`` gives.

    Raises:
        UsageError: If one is not given as FIELD=NAME.
    """
    from sani.corpus.columns import parse_columns

    try:
        return parse_columns(pairs or ())
    except CorpusError as error:
        raise UsageError(f"--column: {error}") from None


def usage_error(error: RecipeError) -> UsageError:
    """Return a problem of settings with the names of options instead of the recipe's keys."""
    return UsageError(re.sub(r"^options: ([\w.]+): ", _option, str(error), flags=re.MULTILINE))


def _option(path: re.Match[str]) -> str:
    """Return the option for a key of the recipe, such as --selector for selector.kind."""
    *sections, key = [name for name in path[1].split(".") if not name.isdecimal()]
    name = sections[-1] if key == "kind" and sections else key
    singular = {"parts": "part", "layers": "layer"}
    return f"--{singular.get(name, name).replace('_', '-')}: "


def cache_folder() -> Path:
    """Return the folder that keeps the findings of scans, where nobody names another."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sani"
