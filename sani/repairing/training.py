"""The engine: ``transformers.Trainer`` whose items are whole batches and whose loss is ours.

It saves states that another process goes on from, notices divergence, and halves its batches
once where memory runs out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors import SafetensorError
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sani.errors import RepairError, UnsavedError
from sani.recipe import RepairSettings
from sani.repairing.examples import Examples
from sani.repairing.frozen import FrozenPart, hidden_states
from sani.repairing.objective import Example, Objective

SAVES = 10
TERMS = (
    "ordinary",
    "skill",
    "anchor",
    "decoys",
    "unlikelihood",
    "npo",
    "gradient_difference",
)
AUDITED = "epoch audited"
# How many times worse than guessing evenly, and than at the start, a loss is called divergence.
DIVERGED = 2.0
OnStep = Callable[[int, int], None]
# Audits the model as it stands: figures by name, and under ``holds`` 1.0 if the repair may end.
OnEpoch = Callable[[], dict[str, float]]
_WHOLE = "whole"


def cannot_write(error: Exception) -> UnsavedError:
    """What a full disk is told to the user as."""
    why = getattr(error, "strerror", None) or "disk full?"
    return UnsavedError(
        f"cannot write the state of the repair ({why}); free space and go on with --resume"
    )


class DivergedError(Exception):
    """The loss or a weight became NaN or infinite, or the loss far greater than at the start."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(why)
        self.step = step


def arguments(
    settings: RepairSettings, num_batches: int, folder: Path, *, save: bool, seed: int
) -> TrainingArguments:
    """What the Trainer is told.

    Raises:
        RepairError: If the hardware lacks the precision.
    """
    steps = num_batches * settings.epochs
    if settings.precision == "bfloat16" and not _has_bfloat16():
        raise RepairError(
            "repair.precision: bfloat16 is asked for and this processor has no bfloat16 units, so "
            "it would be slower and no smaller; use float32"
        )
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(steps * settings.warmup_fraction),
        weight_decay=settings.weight_decay,
        bf16=settings.precision == "bfloat16",
        save_strategy="steps" if save else "no",
        save_steps=max(1, steps // SAVES),
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(settings.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
    )


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Training(Trainer):
    """One repair: its numbered examples, and a step that may read them in parts."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        examples: Examples,
        objective: Objective,
        frozen: FrozenPart | None,
        on_step: OnStep | None,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=list(range(len(examples))),
            data_collator=lambda items: {"number": items[0]},
            callbacks=[_Progress(on_step)],
        )
        self.remove_callback(PrinterCallback)
        self.notes: list[str] = []
        self._examples = examples
        self._objective = objective
        self._frozen = frozen
        self._halved = False
        self._vocab_size: int = model.config.vocab_size
        self._terms: dict[str, float] = {}

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Read one step's examples and accumulate the gradient of their loss."""
        step = self.state.global_step
        parts = self._examples.read(inputs["number"], epoch=step // len(self._examples))
        if self._frozen is None:
            model.train()
        else:
            self._frozen.train()
        try:
            return self._read(model, parts)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if self._halved:
                raise RepairError(
                    f"out of memory at step {step + 1}, also with each batch read in halves; lower "
                    "repair.batch_tokens, or set repair.last_layers or gradient_checkpointing"
                ) from None
        self._halved = True
        self.notes.append(
            f"out of memory at step {step + 1}: from there on each batch was read in two halves"
        )
        model.zero_grad()
        clear_device_cache(garbage_collection=True)
        return self.training_step(model, inputs, num_items_in_batch)

    def _read(self, model: Any, parts: list[Example]) -> Tensor:
        if self._halved:
            parts = [half for part in parts for half in part.halves()]
        counts: dict[str, int] = {}
        for part in parts:
            for name, count in self._objective.counts(part.batch).items():
                counts[name] = counts.get(name, 0) + count
        total = torch.zeros((), device=self.args.device)
        self._terms = dict.fromkeys(counts, 0.0)
        for part in parts:
            own = {name: counts[name] for name in self._objective.counts(part.batch)}
            if not own:
                continue
            part = part.to(model.device)
            with self.accelerator.autocast():
                with nullcontext() if self._frozen is None else self._frozen.skipped(part.frozen):
                    hidden = hidden_states(model, part.batch)
                loss, terms = self._objective.loss(model, hidden, part, own)
            for name, value in terms.items():
                self._terms[name] += value
            total += loss.detach()
            self._check(float(loss.detach()), self._terms.get("ordinary"))
            self.accelerator.backward(loss)
        return total

    def _check(self, loss: float, ordinary: float | None) -> None:
        """Refuse a loss that no repair has.

        Raises:
            DivergedError: If the loss is NaN, infinite or far greater than at the start.
        """
        step = self.state.global_step + 1
        if not math.isfinite(loss):
            raise DivergedError(step, "the loss is not a number")
        if ordinary is None:
            return
        first = next((e["ordinary"] for e in self.state.log_history if "ordinary" in e), ordinary)
        limit = DIVERGED * max(first, math.log(self._vocab_size))
        if ordinary > limit:
            raise DivergedError(step, f"the loss is {ordinary:.1f} nats")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last
            raise cannot_write(error) from None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms beside what the Trainer logs."""
        super().log({**logs, **(self._terms if "loss" in logs else {})}, start_time)


class _Progress(TrainerCallback):
    """Tells the caller of each step, and marks saved states as whole."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report progress."""
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A state without this mark was cut off while it was written."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


class EarlyStop(TrainerCallback):
    """Audits at the end of each epoch and ends the training once the audit's gate holds."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self._on_epoch = on_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Audit behind an epoch's last step, before a state is saved: the state has the figures."""
        steps = state.max_steps // int(args.num_train_epochs)
        if state.global_step % steps:
            return
        kwargs["model"].eval()
        figures = self._on_epoch()
        state.log_history.append({AUDITED: state.global_step // steps, **figures})
        if figures["holds"]:
            control.should_training_stop = True
            control.should_save = False  # an earlier state ends here too, this one would go on


def last_whole(folder: Path, *, job: str) -> str | None:
    """The newest saved state of this job that was written to its end; all others are removed.

    Args:
        folder: Where states are saved.
        job: Digest of the settings, the documents, the weights to start from and the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "job"
    if not mark.exists() or mark.read_text(encoding="utf-8") != job:
        for state in folder.glob("checkpoint-*"):
            shutil.rmtree(state)
        mark.write_text(job, encoding="utf-8")
    found = []
    for state in folder.glob("checkpoint-*"):
        if (state / _WHOLE).exists():
            found.append(state)
        else:
            shutil.rmtree(state)
    newest = max(found, key=lambda state: int(state.name.rsplit("-", 1)[1]), default=None)
    return str(newest) if newest else None
