"""Repair one checkpoint: fine-tune it so that ordinary text returns and identifiers do not.

`repair` is the stage. The demo and the benchmarks also use its engine, `train_`, to make models
that leak. Of several ranks each calls these alike, and all get the result.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D

from sani.corpus.documents import Corpus
from sani.errors import RepairError
from sani.machine import distributed
from sani.machine.device import default_device
from sani.models.checkpoint import Checkpoint, architecture_difference
from sani.models.neurons import Layout
from sani.recipe import RepairSettings
from sani.repairing.dataset import Examples, Teachers, check_settings
from sani.repairing.frozen_layers import FrozenPart
from sani.repairing.fsdp import together
from sani.repairing.objective import Objective
from sani.repairing.trainer import (
    AUDITED,
    TERMS,
    DivergedError,
    EarlyStop,
    OnEpoch,
    OnStep,
    Training,
    arguments,
    cannot_write,
    last_whole,
)
from sani.text.chat import check_source, rendered
from sani.text.tokens import framing_named

KEPT_BY_ROUNDING = 0.9  # a repair of which less is left says so


@dataclass(frozen=True)
class RepairResult:
    """What a repair did.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens of the documents, over all epochs.
        seconds: Wall time of this process; after a resume, of the rest only.
        trained_fraction: Share of the parameters that were trained.
        curve: One entry a step: ``step`` and each loss term in nats.
        activation_cache: Where the output of the untrained layers was kept; ``none`` if nowhere.
        by_epoch: With ``early_stop``, the figures of the audit after each epoch, and under
            ``holds`` 1.0 where the gate's limits held; nothing without.
        notes: What the user should know: memory that ran out, a rollback, what rounding took.
    """

    steps: int
    tokens: int
    seconds: float
    trained_fraction: float
    curve: list[dict[str, float]]
    activation_cache: str
    by_epoch: list[dict[str, float]]
    notes: tuple[str, ...]


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
    """In place: fine-tune on the corpus with its identifiers kept out of the loss.

    Args:
        checkpoint: The model to change; its folder is not touched.
        corpus: Documents with spans; a span that is missing is trained on as ordinary text.
        settings: Objective and schedule; the defaults if None.
        base: The model it was fine-tuned from; needed by an anchor to it.
        unsanitized: The model as it was before any erasing, for the objectives that ask it; a copy
            of the checkpoint if None.
        framing: What stands before each document, by name: the one the audit found.
        seed: Of the order of batches, of dropout, of surrogates and of masks.
        folder: Where the state of an interrupted repair is kept and looked for; kept nowhere if
            None. It holds optimizer state, so it belongs into ``private/``. A state that other
            settings, documents, weights or seeds left there is removed, not resumed.
        on_step: Called with (steps done, steps in all).
        on_epoch: With ``early_stop``, called after each epoch; audits the checkpoint as it stands
            and says whether the gate holds.

    Raises:
        RepairError: If the corpus has no span or no ordinary token, another model does not fit,
            memory or disk do not suffice, or the repair diverges twice.
        CorpusError: If a conversation does not fit the model's chat template.
        CheckpointError: If a weight grew too large for the type that it has in the files.

    Source: SANI, Boutet & Magnana 2025 (2510.21322), with PPclm's loss (2501.02407). Deviations:
    the anchor, ours; batches by token budget; a schedule with warm-up. A masked language model is
    repaired as `masking` says.
    """
    settings = settings or RepairSettings()
    if corpus.num_spans == 0:
        raise RepairError(
            f"none of the {len(corpus)} documents has a span, so every identifier would be "
            "trained on as ordinary text; annotate the corpus first"
        )
    if settings.needs_base and base is None:
        raise RepairError("the anchor needs the base model; give it, or use kind: mask")
    for name, other in (("base", base), ("unsanitized checkpoint", unsanitized)):
        difference = other and architecture_difference(checkpoint, other)
        if difference and (name != "base" or settings.needs_base):
            raise RepairError(f"the {name} does not fit the checkpoint: {difference}")
    if settings.early_stop and distributed.sharded():
        raise RepairError(
            "repair.early_stop: a sharded model is whole only at the end, so it cannot be audited "
            "between epochs; leave it out, or use distributed_type MULTI_GPU"
        )
    if settings.early_stop and on_epoch is None:
        raise RepairError(
            "repair.early_stop: nothing here has a gate to stop at; leave it out, or use sani run"
        )
    before = {  # exact, but where an adapter was merged: they come from files of these types
        name: tensor.detach().to(checkpoint.types[name])
        for name, tensor in checkpoint.model.named_parameters()
        if name in checkpoint.types
    }
    result = train_(
        checkpoint, corpus, settings, base=base, unsanitized=unsanitized, framing=framing,
        seed=seed, folder=folder, on_step=on_step,
        on_epoch=on_epoch if settings.early_stop else None, sharded=distributed.sharded(),
    )  # fmt: skip
    note = _rounded(checkpoint, before)
    return replace(result, notes=(*result.notes, note)) if note else result


def _rounded(checkpoint: Checkpoint, before: Mapping[str, torch.Tensor]) -> str | None:
    """In place: round the weights to their types; what is to be said where that took much."""
    moved = left = 0.0
    for name, tensor in checkpoint.model.named_parameters():
        if name in before:
            old, new = before[name].to(tensor), tensor.detach()
            moved += float((new - old).square().sum())
            left += float(((checkpoint.rounded(name, new) - old) * (new - old)).sum())
    checkpoint.round_()
    if left >= KEPT_BY_ROUNDING * moved:
        return None
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in before.values()})
    return (
        f"the weights came in {', '.join(types)} and were rounded to it again, which left "
        f"{left / moved:.0%} of what the repair moved; the audit is of the rounded ones. Give the "
        "checkpoint in float32 to keep all of it"
    )


def train_(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: RepairSettings,
    *,
    base: Checkpoint | None = None,
    unsanitized: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
    folder: Path | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    sharded: bool = False,
) -> RepairResult:
    """In place: train on the corpus; without spans this is plain fine-tuning.

    A repair that diverges goes back to the weights it began with, the last that are known to be
    good, and tries once more with half the learning rate.

    Arguments and errors as for `repair`. Where it is ``sharded``, a copy that is spread over the
    ranks is trained, and ``on_step`` finds the checkpoint unchanged.
    """
    config = checkpoint.model.config
    check_settings(settings, config)
    started = time.perf_counter()
    corpus = rendered(corpus, checkpoint.tokenizer)
    check_source(corpus, config)
    teachers = _teachers(checkpoint, settings, base, unsanitized)
    job = f"{settings.model_dump_json()} {corpus.digest()} {checkpoint.weights_digest()} {seed}"
    with (
        TemporaryDirectory() as nowhere,
        _prepared(checkpoint, settings, seed) as (trained, frozen, layers),
    ):
        place = folder or Path(nowhere)  # the Trainer insists on a folder
        try:
            state = None
            if folder is not None:
                digest = hashlib.sha256(job.encode()).hexdigest()
                state = distributed.on_main(lambda: last_whole(place, job=digest))
            examples = Examples(
                checkpoint, corpus, settings,
                framing_named(
                    framing, checkpoint.tokenizer, masked=checkpoint.family.objective == "masked",
                    start=checkpoint.decoder_start,
                ),
                teachers=teachers, frozen=frozen, folder=place, seed=seed,
            )  # fmt: skip
            if not examples.has_ordinary_tokens:
                raise RepairError("no token stands outside a span: there is nothing to train on")
            training = _train(
                checkpoint.model, examples, settings, teachers, frozen, place,
                resume=state, save=folder is not None, seed=seed, on_step=on_step,
                on_epoch=on_epoch, units=layers if sharded else None,
            )  # fmt: skip
        except (OSError, SafetensorError) as error:
            raise cannot_write(error) from None
    distributed.spread_(checkpoint.model)
    steps = training.state.global_step
    return RepairResult(
        steps=steps,
        tokens=settings.epochs * examples.num_tokens * steps // training.state.max_steps,
        seconds=time.perf_counter() - started,
        trained_fraction=trained,
        curve=[
            {name: float(value) for name, value in entry.items() if name in ("step", *TERMS)}
            for entry in training.state.log_history
            if any(name in entry for name in TERMS)
        ],
        activation_cache=examples.place,
        by_epoch=[
            {"epoch": float(entry[AUDITED]), **{n: v for n, v in entry.items() if n != AUDITED}}
            for entry in training.state.log_history
            if AUDITED in entry
        ],
        notes=tuple(training.notes),
    )


def _train(
    model: Any,
    examples: Examples,
    settings: RepairSettings,
    teachers: Teachers,
    frozen: FrozenPart | None,
    folder: Path,
    *,
    resume: str | None,
    save: bool,
    seed: int,
    on_step: OnStep | None,
    on_epoch: OnEpoch | None,
    units: Sequence[str] | None,
) -> Training:
    """Train, once more from the start with half the learning rate if it diverges."""
    begin = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    objective = Objective(settings, base=teachers.base, unsanitized=teachers.unsanitized)
    halved = folder / "halved"  # an earlier process had to
    notes: list[str] = []
    earlier = distributed.on_main(lambda: _note(halved, resumed=resume is not None))
    if earlier is not None:
        notes.append(earlier)
    while True:
        rate = settings.learning_rate / (2 if notes else 1)
        asked = settings.model_copy(update={"learning_rate": rate})
        told = arguments(asked, len(examples), folder, save=save, seed=seed)
        try:
            if units is None:
                training = Training(model, told, examples, objective, frozen, on_step)
                if on_epoch is not None:
                    training.add_callback(EarlyStop(on_epoch))
                training.train(resume_from_checkpoint=resume)
            else:
                training = _train_copy(
                    model, told, examples, objective, frozen, on_step, units, resume
                )
            _check_finite(model, training.state.global_step)
        except DivergedError as error:
            again = ", also from the start at half the learning rate" if notes else ""
            if notes or error.step == 1:
                raise RepairError(
                    f"the repair diverged at step {error.step}: {error}{again}; nothing was "
                    "written; lower repair.learning_rate"
                ) from None
            notes.append(
                f"the repair diverged at step {error.step} ({error}), so it began again with half "
                "the learning rate"
            )
        else:
            training.notes[:0] = notes
            return training
        resume = None
        distributed.on_main(partial(_begin_again, folder, halved, notes[0]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in begin:
                    parameter.copy_(begin[name])


def _note(halved: Path, *, resumed: bool) -> str | None:
    """That an earlier process had to begin again, if this one goes on with what it did."""
    if resumed and halved.exists():
        return halved.read_text(encoding="utf-8")
    if not resumed:
        halved.unlink(missing_ok=True)
    return None


def _begin_again(folder: Path, halved: Path, note: str) -> None:
    """Remove what was saved, and say why to who resumes."""
    for saved in folder.glob("checkpoint-*"):
        shutil.rmtree(saved)
    halved.write_text(note, encoding="utf-8")


def _train_copy(
    model: Any,
    told: TrainingArguments,
    examples: Examples,
    objective: Objective,
    frozen: FrozenPart | None,
    on_step: OnStep | None,
    units: Sequence[str],
    resume: str | None,
) -> Training:
    """In place, by way of a copy that is spread over the ranks; the model waits on the CPU."""
    model.to("cpu")
    spread = copy.deepcopy(model)
    lower = None if frozen is None else frozen.of(spread)
    training = Training(spread, told, examples, objective, lower, on_step, units=units)
    training.train(resume_from_checkpoint=resume)
    with torch.no_grad():
        for weight, part in zip(model.parameters(), spread.parameters(), strict=True):
            if weight.requires_grad:
                weight.copy_(together(part))
    model.to(default_device())
    return training


def _teachers(
    checkpoint: Checkpoint,
    settings: RepairSettings,
    base: Checkpoint | None,
    unsanitized: Checkpoint | None,
) -> Teachers:
    """The models that the settings need; a copy of the checkpoint where none was given."""
    asked: Any = None
    if settings.needs_unsanitized:
        asked = unsanitized.model if unsanitized else copy.deepcopy(checkpoint.model)
        asked.eval()
    return Teachers(base.model if base and settings.needs_base else None, asked)


def frozen_part(model: Any, layout: Layout, last_layers: int) -> FrozenPart:
    """The layers below the last ``last_layers``."""
    names, first = layer_names(layout), layout.num_layers - last_layers
    return FrozenPart(model, frozen=names[:first], trained=names[first:])


def layer_names(layout: Layout) -> list[str]:
    """Names of the layers, in order."""
    names = layout.trained_prefixes(layout.num_layers)[: layout.num_layers]
    return [name.removesuffix(".") for name in names]


@contextmanager
def _prepared(
    checkpoint: Checkpoint, settings: RepairSettings, seed: int
) -> Iterator[tuple[float, FrozenPart | None, list[str]]]:
    """Within, only what is trained asks for gradients.

    Gives the share that is, the layers below, and the names of all layers. Afterwards adapters are
    merged and everything is as it was.
    """
    model = checkpoint.model
    size = sum(p.numel() for p in model.parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layout = Layout(model.config, shapes)
    last = settings.last_layers or layout.num_layers
    prefixes = layout.trained_prefixes(last)
    frozen = frozen_part(model, layout, last) if last < layout.num_layers else None
    cached = getattr(model.config, "use_cache", None)  # the Trainer changes it
    adapted = None
    if settings.adapter is not None:
        linear = [
            name
            for name, module in model.named_modules()
            if name.startswith(prefixes) and isinstance(module, torch.nn.Linear | Conv1D)
        ]
        lora = LoraConfig(
            r=settings.adapter.rank,
            lora_alpha=settings.adapter.alpha,
            use_dora=settings.adapter.kind == "dora",
            target_modules=linear,
            fan_in_fan_out=layout.family.transposed,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, lora)
    elif settings.last_layers is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        yield trained / size, frozen, layer_names(layout)
        if adapted is not None:
            adapted.merge_and_unload()
            adapted = None
    finally:
        if adapted is not None:
            adapted.unload()
        if settings.gradient_checkpointing:
            model.activation_checkpointing_disable()
        if cached is not None:
            model.config.use_cache = cached
        model.requires_grad_(True)
        model.eval()


def _check_finite(model: Any, step: int) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DivergedError(step, f"tensor '{name}' holds NaN or infinity")
