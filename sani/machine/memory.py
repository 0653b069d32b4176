"""The one model of memory: bytes that a model needs for a stage, and bytes that are free.

Weights, gradients and the optimizer are counted; activations are not, since they depend on the
batch.
"""

from __future__ import annotations

import psutil

PARAMETER_BYTES = 4  # float32
AUDIT_COPIES = 1  # the weights
TRAINED_COPIES = 3  # of trained weights: gradients, two moments of the optimizer
# Of a repair: weights, gradients, two moments of the optimizer, and the base as anchor.
REPAIR_COPIES = 2 + TRAINED_COPIES
CHECK_COPIES = 3  # of a run that only checks: the checkpoint, the unsanitized one, the base


def needed_memory(parameters: int, *, copies: float) -> int:
    """Return the bytes that so many copies of a model's parameters need."""
    return int(copies * PARAMETER_BYTES * parameters)


def largest_model(room: int, *, copies: int) -> float:
    """Return how many parameters a model may have if so many copies fit into ``room`` bytes."""
    return room / (copies * PARAMETER_BYTES)


def free_memory() -> int:
    """Return the bytes that a program can get without swapping: caches count as free."""
    return int(psutil.virtual_memory().available)


def device_memory() -> int:
    """Return the bytes that are free where models are held: on the accelerator, if there is one."""
    import torch

    return int(torch.cuda.mem_get_info(0)[0]) if torch.cuda.is_available() else free_memory()
