"""Identity of a run: what ran, on what, when and where; never a path or an identifier."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from sani.corpus.documents import Corpus
from sani.errors import CheckpointError
from sani.recipe import Recipe
from sani.releasing.identifiers_in_files import check_strings
from sani.reporting.schema import Provenance
from sani.runfolder import RECIPE, RunFolder

LIBRARIES = ("sani-llm", "torch", "transformers", "accelerate", "safetensors")
NOT_SHOWN = "(not shown: the name holds an identifier)"
COMMAND = f"sani run {RECIPE} --out NEW"


def identity(folder: RunFolder, recipe: Recipe, corpus: Corpus) -> Provenance:
    """Return what another run is compared with; the seconds are summed up once all are known.

    Args:
        folder: The run folder; the date is that of its last audit, so a resumed run keeps it.
        recipe: The recipe.
        corpus: None of its identifiers stands in a name that is shown.
    """

    def name(path: Path) -> str:
        try:
            check_strings([path.name], corpus, origin="a name")
        except CheckpointError:
            return NOT_SHOWN
        return path.name

    base = recipe.model.base
    written = (folder.path / "audit-after.json").stat().st_mtime
    return Provenance(
        model=name(recipe.model.path),
        base=None if base is None else name(base),
        corpus=name(recipe.corpus.path),
        date=datetime.fromtimestamp(int(written), tz=UTC).isoformat(),
        seconds=0.0,
        machine=_machine(),
        command=COMMAND,
        seed=recipe.seed,
        python=platform.python_version(),
        versions={name: version(name) for name in LIBRARIES},
        recipe_digest=folder.digest((folder.path / RECIPE).read_text(encoding="utf-8")),
        corpus_digest=folder.digest(corpus.digest()),
    )


def _machine() -> str:
    """Return the machine in words, without its name in a network."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no accelerator"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"
