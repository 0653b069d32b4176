"""Erase from one folder into another: in the files where that can be done, else in memory.

Both ways give the same weights (but where a model stacks experts that its files hold in several
types: in memory they get one that holds all their numbers); in the files no model is built.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sani.corpus.documents import Corpus
from sani.erasing.adapters import erase_adapter
from sani.erasing.erase import EraseResult, apply_, plan_neurons
from sani.erasing.plan import ErasePlan, architecture_digest, plan_by_weights
from sani.erasing.selectors import reads_texts
from sani.erasing.shards import RESETS, StoredModel, erase_stored
from sani.errors import SelectionError
from sani.models.checkpoint import check_folder, is_adapter, load_checkpoint, save_checkpoint
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
    drifts = base is not None and settings.selector.kind == "drift"
    alone = not reads_texts(settings.selector) and not settings.token_rows
    stored = _stored(path, base, compares=drifts) if alone else None
    if stored is not None:
        model, theirs = stored
        difference = model.difference(theirs) if theirs else None
        if difference:
            raise SelectionError(f"selector 'drift': the base does not fit: {difference}")
        weights = theirs.weights if theirs else None
        plan = plan_by_weights(
            model.stored_layout, model.weights, settings, base=weights, seed=seed
        )
        return replace(plan, architecture=architecture_digest(model.layout))
    return plan_neurons(
        load_checkpoint(path, base=base),
        settings,
        corpus=corpus,
        base=load_checkpoint(base) if base is not None and drifts else None,
        framing=framing,
        seed=seed,
    )


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
        CheckpointError: If a folder cannot be read or written.
        SelectionError: If the plan does not fit.
    """
    path = check_folder(path, base=base)
    if is_adapter(path) and not merge and base is not None:
        return erase_adapter(path, out, plan, base=StoredModel(base))
    rewinds = base is not None and plan.reset == "rewind"
    alone = plan.reset in RESETS and plan.token_rows is None and not plan.interpolate_to_base
    stored = _stored(path, base, compares=rewinds) if alone else None
    if stored is not None:
        return erase_stored(stored[0], out, plan, base=stored[1])
    checkpoint = load_checkpoint(path, base=base)
    asked = rewinds or plan.interpolate_to_base
    theirs = load_checkpoint(base) if base is not None and asked else None
    result = apply_(checkpoint, plan, base=theirs, corpus=corpus, framing=framing)
    save_checkpoint(checkpoint, out)
    return result


def _stored(
    path: Path, base: Path | None, *, compares: bool
) -> tuple[StoredModel, StoredModel | None] | None:
    """The model, and the base if it is compared with it, as files; None if they must be loaded."""
    path = check_folder(path, base=base)
    if is_adapter(path):
        return None
    models = [StoredModel(path)]
    if compares and base is not None:
        models.append(StoredModel(check_folder(base)))
    alike = all(model.experts == models[0].experts for model in models)  # or stacked in one only
    if not alike or not all(model.is_plain for model in models):
        return None
    return models[0], models[1] if len(models) > 1 else None
