"""Hidden states computed once for all epochs: where there is room for them, and keeping them there.

Cached are the output of the untrained layers and the unsanitized model's states for the ``retain``
term, of every batch that is the same in each epoch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from sani.text.batches import Batch

MEMORY_BYTES = 2**31  # that `auto` fills before it turns to the disk
Storage = Literal["memory", "disk", "none"]


class ActivationCache:
    """Tensors of each batch: in memory, in one file a batch, or nowhere."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        """Remove what an earlier repair left, and make the folder if the tensors go to the disk.

        Args:
            folder: Of the cache alone.
            storage: Where tensors are kept.
        """
        self.storage = storage
        self._folder = folder
        self._memory: dict[int, dict[str, Tensor]] = {}
        shutil.rmtree(folder, ignore_errors=True)
        if storage == "disk":
            folder.mkdir(mode=0o700)

    def save(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Keep tensors of a batch, beside those that are kept of it already."""
        if self.storage == "memory":
            self._memory[number] = self._memory.get(number, {}) | tensors
        elif self.storage == "disk":
            kept = load_file(self._file(number)) if self._file(number).exists() else {}
            save_file(kept | tensors, self._file(number))

    def load(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a batch; an empty dictionary if nothing is kept."""
        if self.storage == "memory":
            return self._memory[number]
        return load_file(self._file(number)) if self.storage == "disk" else {}

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"


def storage_with_room(model: Any, batches: Sequence[Batch], kinds: int, folder: Path) -> Storage:
    """Return memory if the states are small enough for it, else the disk if half of it suffices.

    Args:
        model: Its hidden size and type give the size of a state.
        batches: All batches whose states are to be kept.
        kinds: Number of states kept a token.
        folder: On the disk in question.
    """
    tokens = sum(batch.ids.numel() for batch in batches)
    size = tokens * kinds * model.config.hidden_size * model.dtype.itemsize  # bytes
    if size <= MEMORY_BYTES:
        return "memory"
    return "disk" if shutil.disk_usage(folder).free > 2 * size else "none"
