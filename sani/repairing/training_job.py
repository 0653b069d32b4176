"""One training: its examples, its loss, its saved states, and the Trainer's arguments for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from sani.machine import distributed
from sani.machine.progress import OnStep
from sani.recipe import RepairSettings
from sani.repairing.dataset import Examples
from sani.repairing.frozen_layers import FrozenLayers
from sani.repairing.objective import Objective

SAVES = 10  # states saved in a training, at equal distances
WARMUP_FRACTION = 0.1  # ours: share of the steps that warm up
WEIGHT_DECAY = 0.0  # ours: it would pull weights to 0 that the records do not ask about


@dataclass(frozen=True)
class EpochAudit:
    """An audit between two epochs.

    Attributes:
        figures: The gate's figures by name.
        holds: True if all limits hold, so that the repair may end.
    """

    figures: dict[str, float]
    holds: bool


OnEpoch = Callable[[], EpochAudit]


@dataclass(frozen=True)
class TrainingJob:
    """One training: its examples, its loss and its saved states.

    Attributes:
        settings: Settings of the repair.
        examples: What each step reads.
        objective: The loss.
        frozen: The layers of the model that are not trained, or None.
        folder: States are saved here.
        save: False to save none; the Trainer insists on a folder all the same.
        seed: Of the order of batches and of dropout.
        on_step: Called with (steps done, steps in all).
        on_epoch: Audits the model after each epoch; None without ``early_stop``.
        sharded_layers: Names of the layers to spread over the processes; None if each process has
            the whole model.
    """

    settings: RepairSettings
    examples: Examples
    objective: Objective
    frozen: FrozenLayers | None
    folder: Path
    save: bool
    seed: int
    on_step: OnStep | None = None
    on_epoch: OnEpoch | None = None
    sharded_layers: Sequence[str] | None = None

    def arguments(self) -> TrainingArguments:
        """Return the Trainer's arguments."""
        settings = self.settings
        steps = len(self.examples) * settings.epochs
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=1,  # an item is a whole batch
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(steps * WARMUP_FRACTION),
            weight_decay=WEIGHT_DECAY,
            bf16=settings.precision == "bfloat16",
            save_strategy="steps" if self.save else "no",
            save_steps=max(1, steps // SAVES),
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to=list(settings.report_to) if distributed.is_main() else [],
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
            seed=self.seed,
            data_seed=self.seed,
        )
        # With more GPUs the Trainer would wrap the model in DataParallel.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments
