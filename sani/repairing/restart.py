"""A training that diverges is begun again, once, with half the learning rate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sani.errors import RepairError
from sani.machine import distributed
from sani.machine.device import default_device
from sani.repairing.fsdp import gathered
from sani.repairing.saved_states import remove_states
from sani.repairing.trainer import DivergedError, RepairTrainer
from sani.repairing.training_job import TrainingJob

HALVED = "halved"  # file of the folder: why the training began again


def train_with_restart(model: Any, job: TrainingJob, *, resume: str | None) -> RepairTrainer:
    """Train in place; if the training diverges, once more from the start at half the rate.

    The weights at the start are the last that are known to be good.

    Args:
        model: It is trained in place.
        job: What is read, minimized and saved.
        resume: Folder of a saved state to go on from, or None.

    Raises:
        RepairError: If it diverges at its first step, or twice.
    """
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    halved = job.folder / HALVED
    notes: list[str] = []
    earlier = distributed.on_main(lambda: _earlier_note(halved, resumed=resume is not None))
    if earlier is not None:
        notes.append(earlier)
    while True:
        rate = job.settings.learning_rate / (2 if notes else 1)
        settings = job.settings.model_copy(update={"learning_rate": rate})
        try:
            trainer = _train(model, replace(job, settings=settings), resume)
            _check_finite(model, trainer.state.global_step)
        except DivergedError as error:
            notes.append(_note_of(error, notes))
        else:
            trainer.notes[:0] = notes
            return trainer
        resume = None
        distributed.on_main(partial(_begin_again, job.folder, notes[0]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])


def _note_of(error: DivergedError, notes: Sequence[str]) -> str:
    """Return what the user is told about a first divergence.

    Raises:
        RepairError: If it is the second one, or at the first step: a lower rate would not help.
    """
    again = ", also from the start at half the learning rate" if notes else ""
    if notes or error.step == 1:
        raise RepairError(
            f"the repair diverged at step {error.step}: {error}{again}; nothing was "
            "written; lower repair.learning_rate"
        ) from None
    return (
        f"the repair diverged at step {error.step} ({error}), so it began again with half "
        "the learning rate"
    )


def _earlier_note(halved: Path, *, resumed: bool) -> str | None:
    """Return why an earlier process began again, if this one goes on with its states."""
    if resumed and halved.exists():
        return halved.read_text(encoding="utf-8")
    if not resumed:
        halved.unlink(missing_ok=True)
    return None


def _begin_again(folder: Path, note: str) -> None:
    """Remove what was saved, and write down why for a process that resumes."""
    remove_states(folder)
    (folder / HALVED).write_text(note, encoding="utf-8")


def _train(model: Any, job: TrainingJob, resume: str | None) -> RepairTrainer:
    """Train the model in place, or a copy that is spread over the processes."""
    if job.sharded_layers is not None:
        return _train_sharded_copy(model, job, resume)
    trainer = RepairTrainer(model, job)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def _train_sharded_copy(model: Any, job: TrainingJob, resume: str | None) -> RepairTrainer:
    """Train a sharded copy and put its weights back; the model waits on the CPU."""
    model.to("cpu")
    sharded = copy.deepcopy(model)
    if job.frozen is not None:
        job = replace(job, frozen=job.frozen.of(sharded))
    trainer = RepairTrainer(sharded, job)
    trainer.train(resume_from_checkpoint=resume)
    with torch.no_grad():
        for weight, part in zip(model.parameters(), sharded.parameters(), strict=True):
            if weight.requires_grad:
                weight.copy_(gathered(part))
    model.to(default_device())
    return trainer


def _check_finite(model: Any, step: int) -> None:
    """Refuse weights that the last step broke.

    Raises:
        DivergedError: If a tensor holds NaN or infinity.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:  # streamed from its file, as it was
            continue
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DivergedError(step, f"tensor '{name}' holds NaN or infinity")
