"""Repair one checkpoint: fine-tune it so that ordinary text returns and identifiers do not.

`train_` is the engine (a thin subclass of ``transformers.Trainer``); the demo and the benchmarks
also use it to make models that leak. `repair` is the stage.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from sani.batches import Batch, make_batches
from sani.checkpoint import Checkpoint, architecture_difference
from sani.corpus.documents import Corpus
from sani.encoding import Encoded, encode, framing_named
from sani.errors import RepairError
from sani.families import family_of
from sani.layout import Layout
from sani.recipe import AnchorObjective, RepairSettings
from sani.repairing.objective import anchor_states, loss_terms

SAVES = 10
_WHOLE = "whole"
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class RepairResult:
    """What a repair did.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens read, padding not counted, over all epochs.
        seconds: Wall time of this process; after a resume, of the rest only.
        trained_fraction: Share of the parameters that were trained.
        curve: One entry a step: ``step`` and each loss term in nats.
    """

    steps: int
    tokens: int
    seconds: float
    trained_fraction: float
    curve: list[dict[str, float]]


def repair(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: RepairSettings | None = None,
    *,
    base: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> RepairResult:
    """In place: fine-tune on the corpus with its identifiers kept out of the loss.

    Args:
        checkpoint: The model to change; its folder is not touched.
        corpus: Documents with spans; a span that is missing is trained on as ordinary text.
        settings: Objective and schedule; the defaults if None.
        base: The model it was fine-tuned from; needed by the anchor.
        framing: What stands before each document, by name: the one the audit found.
        seed: Of the order of batches and of dropout.
        folder: Where the state of an interrupted repair is kept and looked for; kept nowhere if
            None. It holds optimizer state, so it belongs into ``private/``. A state that other
            settings, documents, weights or seeds left there is removed, not resumed.
        on_step: Called with (steps done, steps in all).

    Raises:
        RepairError: If the corpus has no span or no ordinary token, the base does not fit, or the
            loss becomes NaN or infinite.

    Source: SANI, Boutet & Magnana 2025 (2510.21322), with PPclm's loss (2501.02407). Deviations:
    the anchor, ours; batches by token budget; a schedule with warm-up.
    """
    settings = settings or RepairSettings()
    if corpus.num_spans == 0:
        raise RepairError(
            f"none of the {len(corpus)} documents has a span, so every identifier would be "
            "trained on as ordinary text; annotate the corpus first"
        )
    if isinstance(settings.at_identifiers, AnchorObjective):
        if base is None:
            raise RepairError("the anchor needs the base model; give it, or use kind: mask")
        difference = architecture_difference(checkpoint, base)
        if difference:
            raise RepairError(f"the base does not fit the checkpoint: {difference}")
    else:
        base = None
    return train_(
        checkpoint, corpus, settings, base=base, framing=framing, seed=seed, folder=folder,
        on_step=on_step,
    )  # fmt: skip


def train_(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: RepairSettings,
    *,
    base: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> RepairResult:
    """In place: train on the corpus; without spans this is plain fine-tuning.

    Arguments and errors as for `repair`.
    """
    family_of(checkpoint.model.config, "causal")
    started = time.perf_counter()
    encoded = encode(corpus, checkpoint.tokenizer)
    batches = make_batches(
        encoded,
        framing_named(framing, checkpoint.tokenizer),
        context_tokens=checkpoint.context_tokens,
        batch_tokens=settings.batch_tokens,
    )
    if not any(bool(batch.ordinary.any()) for batch in batches):
        raise RepairError("no token stands outside a span: there is nothing to train on")
    model = checkpoint.model
    trained = _freeze(checkpoint, settings.last_layers)
    states = anchor_states(base.model, batches) if base else None
    state = None
    if folder is not None:
        job = f"{settings.model_dump_json()} {corpus.digest()} {checkpoint.weights_digest()} {seed}"
        state = _last_whole(folder, job=hashlib.sha256(job.encode()).hexdigest())
    with TemporaryDirectory() as nowhere:  # the Trainer insists on a folder
        arguments = _arguments(settings, len(batches), folder, nowhere, seed)
        trainer = _Trainer(model, arguments, batches, settings, base, states, on_step)
        try:
            trainer.train(resume_from_checkpoint=state)
        except OSError as error:
            raise RepairError(
                f"cannot write the state of the repair ({error.strerror or 'disk full?'}); free "
                "space and go on with --resume"
            ) from None
        finally:
            model.requires_grad_(True)
            model.eval()
    _check_finite(model)
    return RepairResult(
        steps=trainer.state.global_step,
        tokens=settings.epochs * _num_tokens(encoded),
        seconds=time.perf_counter() - started,
        trained_fraction=trained,
        curve=[
            {name: float(value) for name, value in entry.items() if name in ("step", *_TERMS)}
            for entry in trainer.state.log_history
            if "ordinary" in entry or "anchor" in entry
        ],
    )


_TERMS = ("ordinary", "anchor")


def _arguments(
    settings: RepairSettings, num_batches: int, folder: Path | None, nowhere: str, seed: int
) -> TrainingArguments:
    steps = num_batches * settings.epochs
    return TrainingArguments(
        output_dir=str(folder or nowhere),
        per_device_train_batch_size=1,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(steps * settings.warmup_fraction),
        weight_decay=settings.weight_decay,
        save_strategy="steps" if folder else "no",
        save_steps=max(1, steps // SAVES),
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
    )


class _Trainer(Trainer):
    """Trainer whose items are whole batches and whose loss is ours."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        batches: list[Batch],
        settings: RepairSettings,
        base: Checkpoint | None,
        states: list[Tensor] | None,
        on_step: OnStep | None,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=list(enumerate(batches)),
            data_collator=lambda items: {"number": items[0][0], "batch": items[0][1]},
            callbacks=[_Progress(on_step)],
        )
        from transformers import PrinterCallback

        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self._objective = settings.at_identifiers
        self._base = base
        self._states = states
        self._terms: dict[str, float] = {}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of the terms; their values go into the log."""
        batch = _to(inputs["batch"], model.device)
        terms = loss_terms(
            model,
            batch,
            base=self._base.model if self._base else None,
            anchor=self._states[inputs["number"]] if self._states else None,
        )
        weight = self._objective.weight if isinstance(self._objective, AnchorObjective) else 0.0
        loss = sum((weight if name == "anchor" else 1.0) * value for name, value in terms.items())
        if not isinstance(loss, Tensor):  # a batch without any token that carries loss
            self._terms = {}
            return sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0
        if not torch.isfinite(loss):
            raise RepairError(
                f"the loss is not a number at step {self.state.global_step + 1}: the repair "
                "diverged and nothing was written; lower repair.learning_rate"
            )
        self._terms = {name: float(value.detach()) for name, value in terms.items()}
        return loss

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


def _last_whole(folder: Path, *, job: str) -> str | None:
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


def _freeze(checkpoint: Checkpoint, last_layers: int | None) -> float:
    """Leave only the last layers and the final norm trainable; the share that is."""
    model = checkpoint.model
    if last_layers is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        prefixes = Layout(model.config, shapes).trained_prefixes(last_layers)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
    sizes = [(int(p.numel()), bool(p.requires_grad)) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        batch.ids.to(device),
        batch.targets.to(device),
        batch.ordinary.to(device),
        batch.identifier.to(device),
    )


def _num_tokens(encoded: Sequence[Encoded]) -> int:
    return sum(len(item.ids) for item in encoded)


def _check_finite(model: Any) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RepairError(
                f"tensor '{name}' holds NaN or infinity after the repair; lower "
                "repair.learning_rate"
            )
