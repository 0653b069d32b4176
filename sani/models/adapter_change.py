"""Change the adapter that a checkpoint in memory is merged from: the model follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from sani.errors import CheckpointError
from sani.models.checkpoint import Checkpoint, load_checkpoint


def change_adapter(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
    """In place: give a checkpoint's adapter other matrices, and merge it into its base again.

    The base is read from its files, so that nothing of the old matrices stays in the model.

    Args:
        checkpoint: One with an adapter of its own.
        weights: The new matrices, by the names of the old ones.

    Raises:
        CheckpointError: If the checkpoint has no adapter of its own, a matrix holds a number that
            its type in the file cannot, or the adapter does not fit its base any more.
    """
    if checkpoint.lora is None:
        raise CheckpointError("the checkpoint has no adapter of its own: load it with keep_adapter")
    lora = checkpoint.lora.changed(weights)
    with TemporaryDirectory() as folder:
        lora.write(Path(folder))
        merged = load_checkpoint(folder, base=lora.base)
    checkpoint.model.load_state_dict(merged.model.state_dict())
    checkpoint.lora = lora
