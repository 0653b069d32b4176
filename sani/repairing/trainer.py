"""The engine: ``transformers.Trainer`` whose items are whole batches and whose loss is ours.

It saves states that another process goes on from, notices divergence, and halves its batches
once where memory runs out. Ranks share the rows of each step and add up their gradients, so that a
step is that of one process; each has a Trainer of its own, which knows of no other.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors import SafetensorError
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sani.errors import RepairError, UnsavedError
from sani.machine import distributed
from sani.recipe import RepairSettings
from sani.repairing.dataset import Examples
from sani.repairing.frozen_layers import FrozenPart, hidden_states
from sani.repairing.fsdp import inside, shard_, spread_state, whole
from sani.repairing.objective import Example, Objective
from sani.text.batches import Batch

SAVES = 10
WARMUP_FRACTION = 0.1  # ours: share of the steps that warm up
WEIGHT_DECAY = 0.0  # ours: it would pull weights to 0 that the records do not ask about
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
    told = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(steps * WARMUP_FRACTION),
        weight_decay=WEIGHT_DECAY,
        bf16=settings.precision == "bfloat16",
        save_strategy="steps" if save else "no",
        save_steps=max(1, steps // SAVES),
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(settings.report_to) if distributed.main() else [],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
    )
    told._n_gpu = min(told.n_gpu, 1)  # or it would spread a step over all GPUs in its own way
    return told


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
        *,
        units: Sequence[str] | None = None,
    ) -> None:
        """Take what is trained.

        Args:
            model: It is trained in place.
            arguments: Of the Trainer.
            examples: What each step reads.
            objective: Its loss.
            frozen: The layers of the model that are not trained, or None.
            on_step: Called with (steps done, steps in all).
            units: Layers of the model to spread over the ranks; None if each has all of them.
        """
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
        self._units = units
        self._whole: tuple[dict[str, Any], dict[str, Any]] | None = None
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
        if (
            distributed.number()
        ):  # the main rank's random numbers are those of the state that it saves
            torch.manual_seed((self.args.seed * 2**20 + step) * 2**12 + distributed.number())
        own = None
        counts = _sums(distributed.gather(self._counts(parts)))
        try:
            own = self._read(model, parts, counts)
        except RuntimeError as error:
            # Within a sharded model the others wait for this rank and cannot be told.
            if not should_reduce_batch_size(error) or self._units is not None:
                raise
        found = distributed.gather(own)
        if None not in found:
            return self._add_up(model, [part for part in found if part is not None])
        if self._halved:
            raise RepairError(
                f"out of memory at step {step + 1}, also with each batch read in halves; lower "
                "repair.batch_tokens, or set repair.last_layers or gradient_checkpointing"
            )
        self._halved = True
        self.notes.append(
            f"out of memory at step {step + 1}: from there on each batch was read in two halves"
        )
        model.zero_grad()
        clear_device_cache(garbage_collection=True)
        return self.training_step(model, inputs, num_items_in_batch)

    def _counts(self, parts: list[Example]) -> dict[str, float]:
        return _sums([self._objective.counts(part.batch) for part in parts])

    def _read(
        self, model: Any, parts: list[Example], counts: Mapping[str, float]
    ) -> tuple[dict[str, float], list[bool]]:
        """Accumulate the gradient of this rank's rows: each term, and which parameters have one.

        Args:
            model: The model.
            parts: This rank's rows of the step's batches.
            counts: Of the whole step.
        """
        if self._halved:
            parts = [half for part in parts for half in part.halves()]
        terms = dict.fromkeys(("loss", *counts), 0.0)
        for part in parts:
            own = {name: counts[name] for name in self._objective.counts(part.batch)}
            if not own:
                if self._units is None:
                    continue
                part, own = _nothing(part.batch), {"ordinary": math.inf}
            part = part.to(model.device)
            work = partial(self._loss, model, part, own)
            with self.accelerator.autocast():
                loss, values = work() if self._units is None else inside(model, work)
            if self._units is not None:
                loss = (
                    loss * distributed.count()
                )  # of which a sharded model gives the mean gradient
            for name, value in {**values, "loss": float(loss.detach())}.items():
                terms[name] = terms.get(name, 0.0) + value
            self.accelerator.backward(loss)
        return terms, [p.grad is not None for p in model.parameters()]

    def _loss(
        self, model: Any, part: Example, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        with nullcontext() if self._frozen is None else self._frozen.skipped(part.frozen):
            hidden = hidden_states(model, part.batch)
        return self._objective.loss(model, hidden, part, counts)

    def _add_up(self, model: Any, found: Sequence[tuple[dict[str, float], list[bool]]]) -> Tensor:
        """The loss of the whole step, once the gradients are those of the whole step."""
        self._terms = _sums([terms for terms, _ in found])
        loss = self._terms.pop("loss")
        self._check(loss, self._terms.get("ordinary"))
        if self._units is None and distributed.count() > 1:
            gradients = []
            for parameter, *has in zip(model.parameters(), *(has for _, has in found), strict=True):
                if any(has):
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    gradients.append(parameter.grad)
            distributed.add_up_(gradients)
        return torch.tensor(loss, device=self.args.device)

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

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Spread the model over the ranks first, if that is asked for."""
        if self._units is not None:
            shard_(self.model, self._units)
        return super().create_optimizer(model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._units is not None:
            model, optimizer = self.model, cast(Any, self.optimizer)
            self._whole = whole(model.state_dict()), whole(optimizer.state_dict())
        if not distributed.main():
            return
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last
            raise cannot_write(error) from None
        finally:
            self._whole = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, self._whole[0] if self._whole else state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._whole is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        torch.save(self._whole[1], Path(output_dir) / "optimizer.pt")
        schedule = cast(Any, self.lr_scheduler)
        torch.save(schedule.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._units is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, schedule = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
        kept = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(spread_state(kept, optimizer))
        schedule.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

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
        if distributed.main():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """For each name, the sum over the parts that have it."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0) + value
    return found


def _nothing(like: Batch) -> Example:
    """What a rank without rows reads where it must take part: one token, to be counted as none.

    Args:
        like: A batch of the same model, of which only is asked whether it has a source.
    """
    ids, no = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool)
    ordinary = torch.tensor([[True, False]])
    batch = Batch(ids, ids, ordinary, no, torch.zeros(0, 4, dtype=torch.long))
    if like.source is not None:
        batch = replace(batch, source=ids, source_seen=~no)
    return Example(batch)


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
