"""`sani run --try-next`: the first advice of a finished run, as a recipe and a folder of its own.

The recipe is that of the finished run with the settings that the advice changes. Its comments say
what changed, and why. No limit of the gate is changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from sani.atomic import check_new_file, write_text
from sani.errors import RecipeError, RunError
from sani.recipe import Recipe, dump_recipe, load_recipe
from sani.reporting.advice import MEASURED, next_line
from sani.reporting.stored_report import read_report
from sani.runfolder import RECIPE, check_new_run

NUMBERED = re.compile(r"(?P<name>.+)-(?P<number>[0-9]+)")


@dataclass(frozen=True)
class NextRun:
    """The recipe and the folder of the run that an advice asks for.

    Attributes:
        recipe: The new recipe.
        file: Its file, beside the finished run's folder.
        text: The content of that file.
        out: The new run folder.
    """

    recipe: Recipe
    file: Path
    text: str
    out: Path

    def write(self) -> None:
        """Write the recipe's file."""
        write_text(self.file, self.text)


def next_run(run: Path) -> NextRun:
    """Return the next run of a finished one; nothing is written.

    Args:
        run: The finished run's folder.

    Raises:
        RunError: If the run is not finished, its gate holds, or the advice names no setting, or
            the next folder holds something.
        WriteError: If the recipe's file exists.
    """
    advice = read_report(run).advice
    if not advice.settings:
        raise RunError(f"{run}: there is no setting to try. {next_line(advice, run=str(run))}")
    out = next_folder(run)
    file = out.with_name(f"{out.name}.yaml")
    check_new_run(out)
    check_new_file(file)
    overrides = [f"{setting.key}={setting.value}" for setting in advice.settings]
    try:
        recipe = load_recipe(run / RECIPE, overrides=overrides)
    except RecipeError as error:
        raise RunError(f"{run}: the advice does not fit its recipe: {error}") from None
    reasons = dict.fromkeys(MEASURED[setting.why] for setting in advice.settings)
    comments = [
        f"Made by sani run --try-next from the run {run.name}. What changed:",
        *(f"  {override}" for override in overrides),
        *(line for reason in reasons for line in wrap(f"Why: {reason}.", width=96)),
        "Settings that are changed until the gate holds fit these records: judge the last one once",
        "on other records of the same training.",
    ]
    text = "".join(f"# {comment}\n" for comment in comments)
    return NextRun(recipe, file, text + dump_recipe(recipe), out)


def next_folder(run: Path) -> Path:
    """Return the folder of the next run: NAME-2 for NAME, NAME-3 for NAME-2."""
    match = NUMBERED.fullmatch(run.name)
    if match is None:
        return run.with_name(f"{run.name}-2")
    return run.with_name(f"{match['name']}-{int(match['number']) + 1}")
