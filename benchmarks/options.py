"""What all benchmarks share: --quick, --tiny, --json, --models, and the peak of memory."""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path
from typing import Any

QUICK_MODELS = Path("runs/quick")
FULL_MODELS = Path("runs/meddocan")


def parser_of(doc: str | None, *, models: bool = False) -> argparse.ArgumentParser:
    """Return a parser of the shared options, its description the first line of ``doc``."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_const", const="quick", dest="size", default="full",
        help="under five minutes on two cores",
    )  # fmt: skip
    size.add_argument(
        "--tiny", action="store_const", const="tiny", dest="size",
        help="seconds, for a test that it runs: the figures mean nothing",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    if models:
        parser.add_argument(
            "--models", type=Path,
            help=f"folder with base/, leaky/, private.jsonl and held_out.jsonl; {FULL_MODELS} by "
            f"default, or with --quick {QUICK_MODELS}, which is made if it is not there",
        )  # fmt: skip
    return parser


def add_corpora(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the public corpora are."""
    default = os.environ.get("SANI_CORPORA", "../shared/data")
    parser.add_argument(
        "--corpora", type=Path, default=Path(default), help="a folder with one folder a corpus"
    )


def write_json(figures: Any, path: Path | None) -> None:
    """Write the figures where ``--json`` says, if it does."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def peak() -> float:
    """Return the peak resident memory of this process in MiB.

    On Linux, what `getrusage` says of a new process includes the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
