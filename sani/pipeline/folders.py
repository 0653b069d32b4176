"""One stage by itself, from model folders to a new folder or file, with the checks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sani.atomic import check_new_file, check_new_folder
from sani.auditing.sampling import sample_documents
from sani.corpus.documents import Corpus
from sani.corpus.tables import write_jsonl
from sani.machine.device import default_device, make_deterministic
from sani.machine.progress import OnStep
from sani.models.bases import fit_base
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.pipeline.inputs import check_control
from sani.recipe import RepairSettings
from sani.repairing.repair import RepairResult, repair


def repair_folder(
    path: Path,
    corpus: Corpus,
    settings: RepairSettings,
    *,
    out: Path,
    base: Path | None = None,
    unsanitized: Path | None = None,
    framing: str = "auto",
    seed: int = 0,
    on_step: OnStep | None = None,
) -> RepairResult:
    """Repair the checkpoint of one folder and write it into another.

    Args:
        path: Folder of the checkpoint; it is not touched.
        corpus: Documents with spans.
        settings: Objective and schedule.
        out: Folder of the repaired checkpoint; written whole or not at all.
        base: Folder of the public model that the checkpoint was fine-tuned from.
        unsanitized: Folder of the checkpoint before any erasing.
        framing: What stood before each document in training, by name.
        seed: Seed of every random draw.
        on_step: Called with (steps done, steps in all).

    Raises:
        WriteError: If ``out`` cannot be a new folder.
        RecipeError: If the base has the weights of the unsanitized checkpoint, so that it is no
            control.
        CheckpointError: If a folder cannot be read.
        CorpusError: If the documents cannot be read.
        RepairError: As of `sani.repairing.repair.repair`.
    """
    make_deterministic()
    check_new_folder(out, inputs=[path])
    checkpoint = load_checkpoint(path, base=base, device=default_device())
    others: dict[str, Any] = {"device": default_device(), "more_weights": True}
    public = load_checkpoint(base, **others) if base else None
    original = load_checkpoint(unsanitized, base=base, **others) if unsanitized else None
    if public is not None:
        fit_base(public, checkpoint)
        _check_base(checkpoint, public, original)
    result = repair(
        checkpoint,
        corpus,
        settings,
        base=public,
        unsanitized=original,
        framing=framing,
        seed=seed,
        on_step=on_step,
    )
    save_checkpoint(checkpoint, out)
    return result


def _check_base(checkpoint: Checkpoint, base: Checkpoint, unsanitized: Checkpoint | None) -> None:
    """Refuse a base that is no control for the model whose records are to be forgotten."""
    if unsanitized is not None:  # the checkpoint itself may be the base again: retraining
        check_control(unsanitized, base, name="--unsanitized")
    else:
        name = "the model (if it went back to the base on purpose, give --unsanitized)"
        check_control(checkpoint, base, name=name)


def sample_folder(
    path: Path,
    number: int,
    *,
    out: Path,
    base: Path | None = None,
    first: int = 0,
    new_tokens: int = 256,
    framing: str = "auto",
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Corpus:
    """Let the causal model of a folder write text, and write that as JSONL (mode 0600).

    Args:
        path: Folder of the checkpoint.
        number: Number of texts.
        out: The file.
        base: Folder of the base, of an adapter.
        first: Number of the first text; other numbers give other texts of the same seed.
        new_tokens: Maximum number of tokens of a text.
        framing: What stood before each document in training, by name.
        seed: Seed of every random draw.
        on_step: Called with (batches done, batches in all).

    Raises:
        WriteError: If ``out`` cannot be a new file.
        CheckpointError: If the folder cannot be read.
        AuditError: As of `sani.auditing.sampling.sample_documents`.
    """
    check_new_file(out)
    texts = sample_documents(
        load_checkpoint(path, base=base, device=default_device()),
        number,
        first=first,
        new_tokens=new_tokens,
        framing=framing,
        seed=seed,
        on_step=on_step,
    )
    write_jsonl(texts, out)
    return texts
