"""The command line: its commands, and `main`, which runs one and returns the exit code.

Exit codes: 0 done and the gate holds, 1 an error, 2 wrong usage, 3 the gate does not hold, 130
interrupted. Under ``accelerate launch`` each rank has them, and the launcher ends with 1 for any
that is not 0.
A command parses, calls the library and prints. Heavy libraries are imported inside the commands,
so that `sani --help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from sani import __version__
from sani.cli import console, documents, measures, release, run, setup, stages
from sani.cli.deadline import deadline_after_sigterm
from sani.cli.errors import (
    INTERRUPTED,
    CommandInterruptedError,
    handled_signals,
    report_error,
    report_interrupt,
)
from sani.machine import distributed

SHARED_BY_RANKS = ("run", "audit", "repair", "scan")  # the main rank does other commands alone

app = typer.Typer(
    help="Audit, erase and repair language models that recite identifiers of the people in "
    "their training data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in {
    "The whole job": (setup.init, setup.dequantize, run.run, run.demo),
    "One stage": (
        documents.scan,
        documents.review,
        measures.audit,
        stages.erase,
        stages.repair,
        documents.sample,
        measures.attack,
    ),
    "After a run": (release.report, release.verify, release.sign),
    "This installation": (setup.env, setup.schema),
}.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        console.show(f"sani {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.Exit(2)
    together = context.invoked_subcommand in SHARED_BY_RANKS
    distributed.start(together=together)
    if not (together or distributed.is_main()):
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback reaches the user.

    Args:
        arguments: Words behind ``sani``; those of this process if None.
    """
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    # Threads that spin while they wait cost a shared machine up to ten times the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with deadline_after_sigterm(until_exit=arguments is None), handled_signals():
        try:
            code = app(args=arguments, standalone_mode=False)
            if code != INTERRUPTED:
                distributed.finish()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except CommandInterruptedError as stop:
            return report_interrupt(str(stop))
        except typer.Exit as stop:
            distributed.finish()
            code = stop.exit_code
        except Exception as error:
            return report_error(error)
    if code == INTERRUPTED:
        return report_interrupt()
    return int(code or 0)
