"""Leftovers of training in a folder that is only checked: nobody judges what they hold."""

from __future__ import annotations

from pathlib import Path

from sani.gate import Check
from sani.releasing.identifiers_in_files import OTHER, files_not_released

HARMLESS = ("README.md", "code", OTHER)  # what a public model's folder may hold too


def check_leftovers(folder: Path) -> Check:
    """Return the gate's check that a folder holds nothing that training left there.

    An optimizer's state, a log or a saved state of training may hold records, and whoever checks a
    folder will give it away whole.
    """
    kinds = {kind: n for kind, n in files_not_released(folder).items() if kind not in HARMLESS}
    counts = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    reason = (
        f"The folder that was checked also holds {counts}, which nobody judged. Move them "
        "elsewhere before you give the folder away."
        if kinds
        else "The folder that was checked holds nothing that training left there."
    )
    return Check("leftovers", float(sum(kinds.values())), 0.0, not kinds, reason)
