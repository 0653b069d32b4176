"""The engine: ``transformers.Trainer`` whose items are whole batches and whose loss is ours.

It saves states that another process resumes from, notices divergence, and halves its batches once
where memory runs out. Several processes share the rows of each step and add up their gradients, so
a step is the same as in one process; each has a Trainer of its own that knows of no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from sani.errors import RepairError
from sani.machine import distributed
from sani.machine.progress import OnStep
from sani.models.streaming import stream_of
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.fsdp import gathered_state, inside, shard, sharded_state
from sani.repairing.objective import Example
from sani.repairing.saved_states import WHOLE, unsaved_error
from sani.repairing.training_job import OnEpoch, TrainingJob
from sani.text.batches import Batch

TERMS = (
    "ordinary",
    "retain",
    "anchor",
    "decoys",
    "unlikelihood",
    "npo",
    "gradient_difference",
)
AUDITED = "epoch audited"  # key of an epoch's audit in the Trainer's log
# A loss this many times that at the start, and that of even guessing, is divergence; ours.
DIVERGED = 2.0


class DivergedError(Exception):
    """A loss or a weight that is NaN or infinite, or a loss far greater than at the start."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class RepairTrainer(Trainer):
    """One training: its items are the numbers of steps, whose examples it reads itself."""

    def __init__(self, model: Any, job: TrainingJob) -> None:
        """Take what is trained.

        Args:
            model: It is trained in place.
            job: What is read, minimized and saved.
        """
        super().__init__(
            model=model,
            args=job.arguments(),
            train_dataset=list(range(len(job.examples))),
            data_collator=lambda items: {"number": items[0]},
            callbacks=[_Progress(job.on_step)],
        )
        self.remove_callback(PrinterCallback)
        if job.on_epoch is not None:
            self.add_callback(_EarlyStop(job.on_epoch))
        self.notes: list[str] = []
        self._job = job
        self._sharded = job.sharded_layers is not None
        # Weights and optimizer state of a sharded model, while a state is saved.
        self._gathered: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._halved = False
        self._vocab_size: int = model.config.vocab_size
        self._terms: dict[str, float] = {}

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Read one step's examples and accumulate the gradient of their loss."""
        step, examples = self.state.global_step, self._job.examples
        parts = examples.read(inputs["number"], epoch=step // len(examples))
        if self._job.frozen is None:
            model.train()
        else:
            self._job.frozen.train()
        if distributed.rank():
            # Saved states hold the main process's random state only. The others seed theirs by
            # seed, step and process, so that dropout is the same after a resume.
            torch.manual_seed((self.args.seed * 2**20 + step) * 2**12 + distributed.rank())
        result = None
        counts = _sums(distributed.gather(self._counts(parts)))
        try:
            result = self._accumulate(model, parts, counts)
        except RuntimeError as error:
            # In a sharded model the other processes wait for this one and cannot be told.
            if not should_reduce_batch_size(error) or self._sharded:
                raise
        results = distributed.gather(result)
        if None not in results:
            return self._combine(model, [result for result in results if result is not None])
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
        return _sums([self._job.objective.counts(part.batch) for part in parts])

    def _accumulate(
        self, model: Any, parts: list[Example], counts: Mapping[str, float]
    ) -> tuple[dict[str, float], list[bool]]:
        """Accumulate the gradient of this process's rows.

        Args:
            model: The model.
            parts: This process's rows of the step's batches.
            counts: Counts of each term in the whole step.

        Returns:
            The value of each term, and for each parameter if it has a gradient.
        """
        if self._halved:
            parts = [half for part in parts for half in part.halves()]
        terms = dict.fromkeys(("loss", *counts), 0.0)
        for part in parts:
            part_counts = {name: counts[name] for name in self._job.objective.counts(part.batch)}
            if not part_counts:
                if not self._sharded:
                    continue
                # FSDP needs every process in each pass: read one token whose loss counts nothing.
                part, part_counts = _token_without_loss(part.batch), {"ordinary": math.inf}
            part = part.to(model.device)
            work = partial(self._loss, model, part, part_counts)
            with self.accelerator.autocast():
                loss, values = inside(model, work) if self._sharded else work()
            if self._sharded:
                # FSDP averages gradients over the processes; the step needs their sum.
                loss = loss * distributed.world_size()
            for name, value in {**values, "loss": float(loss.detach())}.items():
                terms[name] = terms.get(name, 0.0) + value
            self.accelerator.backward(loss)
        return terms, [p.grad is not None for p in model.parameters()]

    def _loss(
        self, model: Any, part: Example, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        frozen = self._job.frozen
        with nullcontext() if frozen is None else frozen.skipped(part.frozen_hidden):
            hidden = hidden_states(model, part.batch)
        return self._job.objective.loss(model, hidden, part, counts)

    def _combine(
        self, model: Any, results: Sequence[tuple[dict[str, float], list[bool]]]
    ) -> Tensor:
        """Return the loss of the whole step, and make the gradients those of the whole step."""
        self._terms = _sums([terms for terms, _ in results])
        loss = self._terms.pop("loss")
        self._check_loss(loss, self._terms.get("ordinary"))
        if not self._sharded and distributed.world_size() > 1:
            gradients = []
            has_gradient = zip(*(has for _, has in results), strict=True)
            for parameter, has in zip(model.parameters(), has_gradient, strict=True):
                # A sum over processes needs a gradient on each, also where one had no rows.
                if any(has):
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    gradients.append(parameter.grad)
            distributed.all_reduce(gradients)
        return torch.tensor(loss, device=self.args.device)

    def _check_loss(self, loss: float, ordinary: float | None) -> None:
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
        # Even guessing has a loss of log(vocabulary size) nats. A repair that starts below that is
        # given twice as much, one that starts above it twice its first loss.
        limit = DIVERGED * max(first, math.log(self._vocab_size))
        if ordinary > limit:
            raise DivergedError(step, f"the loss is {ordinary:.1f} nats")

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Shard the model first, if it is to be: the optimizer must hold the sharded weights."""
        if self._job.sharded_layers is not None:
            shard(self.model, self._job.sharded_layers)
        return super().create_optimizer(model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._sharded:
            model, optimizer = self.model, cast(Any, self.optimizer)
            self._gathered = (
                gathered_state(model.state_dict()),
                gathered_state(optimizer.state_dict()),
            )
        if not distributed.is_main():
            return
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last
            raise unsaved_error(error) from None
        finally:
            self._gathered = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if stream_of(self.model) is None or output_dir is None:
            super()._save(output_dir, self._gathered[0] if self._gathered else state_dict)
            return
        # Only what is trained; all else stands in the model's files.
        model = cast(Any, self.model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(trained, Path(output_dir) / SAFE_WEIGHTS_NAME)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._gathered is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        torch.save(self._gathered[1], Path(output_dir) / "optimizer.pt")
        schedule = cast(Any, self.lr_scheduler)
        torch.save(schedule.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, schedule = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
        state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(sharded_state(state, optimizer))
        schedule.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms beside what the Trainer logs."""
        super().log({**logs, **(self._terms if "loss" in logs else {})}, start_time)


class _Progress(TrainerCallback):
    """Reports each step to the caller, and marks saved states as whole."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report progress."""
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark a state as whole; one without the mark was cut off while it was written."""
        if distributed.is_main():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class _EarlyStop(TrainerCallback):
    """Audits at the end of each epoch, and ends the training once the gate holds."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self._on_epoch = on_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Audit after an epoch's last step, before a state is saved: the state has the figures."""
        steps = state.max_steps // int(args.num_train_epochs)
        if state.global_step % steps:
            return
        kwargs["model"].eval()
        epoch_audit = self._on_epoch()
        state.log_history.append(
            {
                AUDITED: state.global_step // steps,
                **epoch_audit.figures,
                "holds": float(epoch_audit.holds),
            }
        )
        if epoch_audit.holds:
            control.should_training_stop = True
            # A run resumed from this step's state would not know that it ended here. One resumed
            # from an earlier state trains to this step again, audits, and stops.
            control.should_save = False


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return, for each name, the sum over the parts that have it."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, 0) + value
    return sums


def _token_without_loss(like: Batch) -> Example:
    """Return an example of one token for a process without rows that must take part in a step.

    Args:
        like: A batch of the same model; only the presence of a source is read from it.
    """
    ids, no = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool)
    ordinary = torch.tensor([[True, False]])
    batch = Batch(ids, ids, ordinary, no, torch.zeros(0, 4, dtype=torch.long))
    if like.source is not None:
        batch = replace(batch, source=ids, source_seen=~no)
    return Example(batch)
