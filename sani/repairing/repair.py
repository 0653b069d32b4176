"""Repair one checkpoint: fine-tune it so that ordinary text returns and identifiers do not.

`repair` is the stage. `train` is its engine without any of the safeguards: the demo and the
benchmarks make models that leak with it. In a run of several processes each calls these alike, and
all get the result.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from sani.corpus.documents import Corpus
from sani.errors import RepairError
from sani.machine import distributed
from sani.machine.progress import OnStep
from sani.models.adapter_change import change_adapter
from sani.models.checkpoint import Checkpoint, pieces
from sani.models.streaming import check_in_memory, release
from sani.recipe import RepairSettings, complete_repair_settings
from sani.repairing.checks import (
    check_corpus,
    check_early_stop,
    check_own_adapter,
    check_settings,
    check_teachers,
)
from sani.repairing.dataset import make_examples
from sani.repairing.example_source import ExampleSource
from sani.repairing.objective import Objective
from sani.repairing.restart import train_with_restart
from sani.repairing.saved_states import newest_state, unsaved_error
from sani.repairing.teacher_states import Teachers
from sani.repairing.trainable import Trainable, keep_trained, trainable
from sani.repairing.trainer import AUDITED, TERMS, RepairTrainer
from sani.repairing.training_job import OnEpoch, TrainingJob
from sani.tabular import Tabular
from sani.text.chat import check_source, rendered
from sani.text.framing import framing_of

if TYPE_CHECKING:
    import pandas as pd

ROUNDED = "were rounded to it again"  # in the note of a repair that rounding undid in part
KEPT_BY_ROUNDING = 0.9  # share of the change; a repair of which rounding leaves less says so


@dataclass(frozen=True)
class RepairResult(Tabular):
    """The result of a repair.

    Attributes:
        steps: Number of optimizer steps.
        tokens: Number of tokens read: those of the documents, in all epochs.
        seconds: Wall time of this process; after a resume, of the rest only.
        trained_fraction: Share of the parameters that were trained, in (0, 1].
        curve: One entry a step: ``step`` and each loss term in nats.
        activation_cache: Where the output of the untrained layers was kept; ``none`` if nowhere.
        by_epoch: With ``early_stop``, the figures of the audit after each epoch, and under
            ``holds`` 1.0 where the gate's limits held; empty without.
        notes: What the user should know: memory that ran out, a restart, what rounding removed.
    """

    steps: int
    tokens: int
    seconds: float
    trained_fraction: float
    curve: list[dict[str, float]]
    activation_cache: str
    by_epoch: list[dict[str, float]]
    notes: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return a row a step: each loss term in nats."""
        import pandas as pd

        return pd.DataFrame(self.curve).set_index("step")


def repair(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: RepairSettings | None = None,
    *,
    base: Checkpoint | None = None,
    unsanitized: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
    folder: Path | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> RepairResult:
    """Fine-tune a checkpoint in place on the corpus, with its identifiers kept out of the loss.

    Args:
        checkpoint: The model to change; its folder is not touched. Of one with an adapter of its
            own the adapter's matrices alone are trained.
        corpus: Documents with spans; a span that is missing is trained on as ordinary text.
        settings: Objective and schedule; the defaults if None.
        base: The model it was fine-tuned from; needed by an anchor to it.
        unsanitized: The model as it was before any erasing, for the objectives that need it; a copy
            of the checkpoint if None.
        framing: Name of the special tokens around each document: the framing that the audit chose.
        seed: Of the order of batches, of dropout, of surrogates and of masks.
        folder: Where the state of an interrupted repair is saved and looked for; nowhere if None.
            It holds optimizer state, so it belongs into ``private/``. A state of other settings,
            documents, weights or seeds is removed, not resumed.
        on_step: Called with (steps done, steps in all).
        on_epoch: With ``early_stop``, called after each epoch; audits the checkpoint as it is then
            and says if the gate holds.

    Raises:
        RepairError: If the corpus has no span or no ordinary token, another model does not fit,
            memory or disk do not suffice, or the repair diverges twice.
        CorpusError: If a conversation does not fit the model's chat template.
        CheckpointError: If a weight grew too large for its type in the files.

    Source: SANI, Boutet & Magnana 2025 (2510.21322), with PPclm's loss (2501.02407). Deviations:
    the anchor, ours; batches by token budget; a schedule with warm-up. A masked language model is
    repaired as `mlm_masking` says.
    """
    settings = settings or complete_repair_settings(has_base=base is not None)
    if settings.last_layers is None or checkpoint.family.objective != "causal":
        check_in_memory(
            checkpoint.model, "a repair of all layers, or of a model that is not causal,"
        )
    check_corpus(corpus)
    check_teachers(checkpoint, settings, base=base, unsanitized=unsanitized)
    check_early_stop(settings, has_gate=on_epoch is not None)
    check_own_adapter(checkpoint, settings)
    trained = keep_trained(checkpoint.model, settings)
    before = {  # exact, but where an adapter was merged: they come from files of these types
        name: tensor.detach().to(checkpoint.types[name])
        for name, tensor in checkpoint.model.named_parameters()
        if name in checkpoint.types and name.startswith(trained)
    }
    result = _train(
        checkpoint, corpus, settings, _teachers(checkpoint, settings, base, unsanitized),
        framing=framing, seed=seed, folder=folder, on_step=on_step,
        on_epoch=on_epoch if settings.early_stop else None, sharded=distributed.sharded(),
    )  # fmt: skip
    note = _round_to_types(checkpoint, before)
    return replace(result, notes=(*result.notes, note)) if note else result


def train(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: RepairSettings,
    *,
    framing: str = "auto",
    seed: int = 0,
    on_step: OnStep | None = None,
) -> RepairResult:
    """Train a checkpoint in place on the corpus; without spans this is plain fine-tuning.

    A training that diverges is begun again once, with half the learning rate. Arguments and errors
    as for `repair`, but for an adapter of the checkpoint's own: its merged weights are trained.
    """
    checkpoint = replace(checkpoint, lora=None)
    teachers = _teachers(checkpoint, settings, None, None)
    return _train(
        checkpoint, corpus, settings, teachers, framing=framing, seed=seed, on_step=on_step
    )


def _train(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: RepairSettings,
    teachers: Teachers,
    *,
    framing: str,
    seed: int,
    folder: Path | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    sharded: bool = False,
) -> RepairResult:
    """Train in place; if ``sharded``, by way of a copy that is spread over the processes.

    Then ``on_step`` finds the checkpoint unchanged. Of one with an adapter of its own only that is
    trained.
    """
    config = checkpoint.model.config
    check_settings(settings, config)
    started = time.perf_counter()
    corpus = rendered(corpus, checkpoint.tokenizer)
    check_source(corpus, config)
    # Before an adapter changes the names of the weights.
    digest = None if folder is None else _job_digest(checkpoint, corpus, settings, seed)
    source = ExampleSource(
        checkpoint, corpus, settings, framing_of(checkpoint, framing), teachers, seed
    )
    with (
        TemporaryDirectory() as temporary,
        trainable(checkpoint.model, settings, seed=seed, lora=checkpoint.lora) as part,
    ):
        states = folder or Path(temporary)  # the Trainer insists on a folder
        try:
            state = None
            if digest is not None:
                state = distributed.on_main(lambda: newest_state(states, job=digest))
            examples = make_examples(source, frozen=part.frozen, folder=states)
            if not examples.has_ordinary_tokens:
                raise RepairError("no token stands outside a span: there is nothing to train on")
            job = TrainingJob(
                settings, examples,
                Objective(settings, base=teachers.base, unsanitized=teachers.unsanitized),
                part.frozen, states, save=folder is not None, seed=seed, on_step=on_step,
                on_epoch=on_epoch, sharded_layers=part.layers if sharded else None,
            )  # fmt: skip
            trainer = train_with_restart(checkpoint.model, job, resume=state)
        except (OSError, SafetensorError) as error:
            raise unsaved_error(error) from None
    for teacher in (teachers.base, teachers.unsanitized):
        release(teacher)
    if checkpoint.lora is not None:
        change_adapter(checkpoint, part.lora)
    distributed.broadcast_weights(checkpoint.model)
    return _result(trainer, job, part, seconds=time.perf_counter() - started)


def _job_digest(checkpoint: Checkpoint, corpus: Corpus, settings: RepairSettings, seed: int) -> str:
    """Return a digest of all that a saved state depends on."""
    job = f"{settings.model_dump_json()} {corpus.digest()} {checkpoint.weights_digest()} {seed}"
    return hashlib.sha256(job.encode()).hexdigest()


def _result(
    trainer: RepairTrainer, job: TrainingJob, part: Trainable, *, seconds: float
) -> RepairResult:
    """Read the result of a training off the Trainer's log."""
    steps, log = trainer.state.global_step, trainer.state.log_history
    all_tokens = job.settings.epochs * job.examples.num_tokens
    return RepairResult(
        steps=steps,
        tokens=all_tokens * steps // trainer.state.max_steps,
        seconds=seconds,
        trained_fraction=part.fraction,
        curve=[
            {name: float(value) for name, value in entry.items() if name in ("step", *TERMS)}
            for entry in log
            if any(name in entry for name in TERMS)
        ],
        activation_cache=job.examples.activation_cache,
        by_epoch=[
            {"epoch": float(entry[AUDITED]), **{n: v for n, v in entry.items() if n != AUDITED}}
            for entry in log
            if AUDITED in entry
        ],
        notes=tuple(trainer.notes),
    )


def _teachers(
    checkpoint: Checkpoint,
    settings: RepairSettings,
    base: Checkpoint | None,
    unsanitized: Checkpoint | None,
) -> Teachers:
    """Return the models that the settings need; a copy of the checkpoint where none was given."""
    before_erasing = None
    if settings.needs_unsanitized:
        before_erasing = unsanitized.model if unsanitized else copy.deepcopy(checkpoint.model)
        before_erasing.eval()
    return Teachers(base.model if base and settings.needs_base else None, before_erasing)


def _round_to_types(checkpoint: Checkpoint, before: Mapping[str, torch.Tensor]) -> str | None:
    """Round the weights in place to their types in the files; return a note if that took much.

    With change d = new - old and what rounding leaves of it, r = rounded(new) - old, the share
    that is left is sum(r * d) / sum(d * d): the projection of r on d, 1 if nothing is rounded. A
    norm would count the noise that rounding adds as change.

    Args:
        checkpoint: The repaired checkpoint.
        before: Its weights before the repair.
    """
    moved = remaining = 0.0
    for name, tensor in checkpoint.model.named_parameters():
        if name in before:
            for old, new in zip(pieces(before[name]), pieces(tensor), strict=True):
                change = new - old
                moved += float(change.square().sum())
                remaining += float(((checkpoint.rounded(name, new) - old) * change).sum())
    checkpoint.round_weights()
    if remaining >= KEPT_BY_ROUNDING * moved:
        return None
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in before.values()})
    return (
        f"the weights came in {', '.join(types)} and {ROUNDED}, which left "
        f"{remaining / moved:.0%} of what the repair moved; the audit is of the rounded ones. Give "
        "the checkpoint in float32 to keep all of it"
    )
