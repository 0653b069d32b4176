"""States of an interrupted training that another process resumes from, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

from sani.errors import UnsavedError

WHOLE = "whole"  # empty file in a state that was written to its end


def unsaved_error(error: Exception) -> UnsavedError:
    """Return the error shown when the trainer state cannot be written."""
    reason = getattr(error, "strerror", None) or "disk full?"
    return UnsavedError(
        f"cannot write the state of the repair ({reason}); free space and go on with --resume"
    )


def newest_state(folder: Path, *, job: str) -> str | None:
    """Return the newest state of this job that was written to its end, or None.

    All others are removed: those that were cut off, and those of another job.

    Args:
        folder: Where states are saved; made if it is missing.
        job: Digest of the settings, the documents, the weights to start from and the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "job"
    if not mark.exists() or mark.read_text(encoding="utf-8") != job:
        remove_states(folder)
        mark.write_text(job, encoding="utf-8")
    states = []
    for state in folder.glob("checkpoint-*"):
        if (state / WHOLE).exists():
            states.append(state)
        else:
            shutil.rmtree(state)
    newest = max(states, key=lambda state: int(state.name.rsplit("-", 1)[1]), default=None)
    return str(newest) if newest else None


def remove_states(folder: Path) -> None:
    """Remove all states."""
    for state in folder.glob("checkpoint-*"):
        shutil.rmtree(state)
