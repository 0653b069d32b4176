"""Erase from one folder into another: in the files where that can be done, else in memory.

Both ways give the same weights (but where a model stacks experts that its files hold in several
types: in memory they get one that holds all their numbers); in the files no model is built.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sani.atomic import check_no_input
from sani.corpus.documents import Corpus
from sani.erasing.adapters import erase_adapter
from sani.erasing.erase import EraseResult, apply_plan, plan_neurons
from sani.erasing.plan import ErasePlan, architecture_digest, plan_by_weights
from sani.erasing.selectors import reads_texts
from sani.erasing.shards import RESETS, StoredModel, erase_stored
from sani.errors import SelectionError
from sani.models.bases import load_base
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from sani.models.folder import ModelFolder, open_folder
from sani.recipe import EraseSettings


def plan_folder(
    path: Path,
    settings: EraseSettings,
    *,
    corpus: Corpus | None = None,
    base: Path | None = None,
    framing: str = "auto",
    seed: int = 0,
) -> ErasePlan:
    """Choose neurons of a model folder, or of an adapter merged into its base; writes nothing.

    Args:
        path: The folder.
        settings: Layers, parts, selector and reset.
        corpus: Documents with spans, for selectors that look at the model's work.
        base: Folder of the model it was fine-tuned from, or that it is an adapter on.
        framing: What stands before each document, by name.
        seed: Of the random selector and of fresh weights.

    Raises:
        CheckpointError: If a folder cannot be read.
        SelectionError: As of `sani.erasing.erase.erase`.
    """
    folder = open_folder(path, base=base)
    drifts = base is not None and settings.selector.kind == "drift"
    if not reads_texts(settings.selector) and not settings.token_rows:
        stored = _stored(folder, base if drifts else None)
        if stored is not None:
            return _plan_stored(*stored, settings, seed=seed)
    checkpoint = load_checkpoint(folder)
    return plan_neurons(
        checkpoint,
        settings,
        corpus=corpus,
        base=load_base(base, checkpoint) if base is not None and drifts else None,
        framing=framing,
        seed=seed,
    )


def _plan_stored(
    model: StoredModel, base: StoredModel | None, settings: EraseSettings, *, seed: int
) -> ErasePlan:
    """Choose neurons by the weights as they lie in their files."""
    difference = model.difference(base) if base else None
    if difference:
        raise SelectionError(f"selector 'drift': the base does not fit: {difference}")
    plan = plan_by_weights(
        model.stored_layout, model.weights, settings, base=base.weights if base else None, seed=seed
    )
    return replace(plan, architecture=architecture_digest(model.layout))


def apply_folder(
    path: Path,
    out: Path,
    plan: ErasePlan,
    *,
    base: Path | None = None,
    merge: bool = False,
    corpus: Corpus | None = None,
    framing: str = "auto",
) -> EraseResult:
    """Write a folder with the neurons of a plan reset; the old one is not touched.

    Args:
        path: A model folder, or an adapter's.
        out: The new folder; written whole or not at all.
        plan: From `plan_folder`, or read.
        base: Folder of the base, for ``rewind``, ``interpolate_to_base`` and for an adapter.
        merge: Write an adapter merged into its base, instead of as an adapter.
        corpus: Documents with spans, for ``mean`` and ``dampen``.
        framing: What stands before each document, by name.

    Raises:
        CheckpointError: If a folder cannot be read.
        WriteError: If ``out`` is a folder that is read, or cannot be written.
        SelectionError: If the plan does not fit.
    """
    folder = open_folder(path, base=base)
    check_no_input(out, [folder.path, *([base] if base is not None else [])])
    if folder.base is not None and not merge:
        return erase_adapter(folder, out, plan, base=StoredModel(folder.base))
    if not (plan.reset == "rewind" or plan.interpolate_to_base):
        base = None  # not needed
    if plan.reset in RESETS and plan.token_rows is None:
        stored = _stored(folder, base)
        if stored is not None and not (plan.interpolate_to_base and _differ_in_shapes(*stored)):
            return erase_stored(stored[0], out, plan, base=stored[1])
    checkpoint = load_checkpoint(folder)
    base_checkpoint = load_base(base, checkpoint) if base is not None else None
    result = apply_plan(checkpoint, plan, base=base_checkpoint, corpus=corpus, framing=framing)
    save_checkpoint(checkpoint, out)
    return result


def _stored(
    folder: ModelFolder, base: Path | None
) -> tuple[StoredModel, StoredModel | None] | None:
    """Return the model, and the base to compare it with, as files; None if they must be loaded."""
    if folder.is_adapter:
        return None
    model = StoredModel(folder)
    other = StoredModel(open_folder(base, more_weights=True)) if base is not None else None
    if not model.is_plain or (other and not other.is_plain):
        return None
    if other and other.experts != model.experts:  # stacked in the files of one of them only
        return None
    return model, other


def _differ_in_shapes(model: StoredModel, base: StoredModel | None) -> bool:
    """Return whether a head is tied in one of them only, or the base has other rows."""
    return base is not None and base.weights.shapes != model.weights.shapes
