"""Files beside a checkpoint that is only checked: nobody judges what they hold."""

from __future__ import annotations

from pathlib import Path

from sani.gate import Check
from sani.releasing.released_files import files_not_released, searched_texts


def check_leftovers(folder: Path) -> Check:
    """Return the gate's check that a folder holds nothing that nobody judged.

    An optimizer's state, a log, a file of records or a copy of the weights under another name: who
    checks a folder will give it away whole. Texts in which identifiers are searched for may stay.
    """
    kinds = files_not_released(folder, but=searched_texts(folder))
    counts = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    reason = (
        f"The folder that was checked also holds {counts}, which nobody judged. Move them "
        "elsewhere before you give the folder away."
        if kinds
        else "The folder that was checked holds nothing beside the model but searched texts."
    )
    return Check("leftovers", float(sum(kinds.values())), 0.0, not kinds, reason)
