"""`sani audit`: several checkpoints audited alike and compared, without a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from sani.auditing.audit import AuditResult, audit
from sani.auditing.compare import (
    AuditComparison,
    ComparedPretraining,
    Corpora,
    changes_since_base,
    compare_audits,
    onion,
)
from sani.auditing.record import record_of, verdicts_of
from sani.machine import distributed
from sani.machine.device import default_device
from sani.machine.memory import AUDIT_COPIES, device_memory, needed_memory
from sani.machine.progress import OnNamedStep
from sani.models.bases import fit_base
from sani.models.checkpoint import Checkpoint, Placement, load_checkpoint
from sani.models.folder import ModelFolder, open_folder
from sani.pipeline.inputs import Documents, check_base, check_control, check_held_out
from sani.recipe import AuditSettings, PlacementChoice
from sani.text.chat import lend_template


def audit_models(
    models: Mapping[str, Path],
    documents: Documents,
    settings: AuditSettings,
    *,
    placement: PlacementChoice = "auto",
    seed: int,
    on_step: OnNamedStep,
) -> AuditComparison:
    """Audit several checkpoints alike and compare them.

    Args:
        models: Folder of each by name, the one in question (``model``) first. ``base`` is the
            control; all others are rounds, compared from the last in the list to the first.
        documents: Corpus, held-out documents and documents of the base's training.
        settings: What is measured.
        placement: Of the weights: ``memory``, ``stream`` from the files layer by layer, or
            ``auto``, which streams whole models that do not fit into memory, if nothing is sampled.
        seed: Of decoys and bootstrap.
        on_step: Called with (what is done, steps done, steps in all).

    Returns:
        The audits and what they say together, as `sani audit` shows them.

    Raises:
        RecipeError: If the base is no control, or only the corpus has spans.
        CheckpointError: If a folder is not a checkpoint that sani reads, or that of the model in
            question holds other weights too.
    """
    check_held_out(documents.corpus, documents.held_out, name="--held-out")
    # All are opened before the first takes its hours.
    folders = {
        name: open_folder(path, base=models.get("base"), more_weights=name == "base")
        for name, path in models.items()
    }
    place = _placement(placement, folders, settings)
    loaded = _load_control(folders["model"], folders["base"], place) if "base" in folders else {}
    distributed.check_same("documents", documents.digests())
    results: dict[str, AuditResult] = {}
    pretraining: dict[str, AuditResult] = {}
    framing = lender = None
    for name, folder in folders.items():
        checkpoint = loaded.pop(name, None) or load_checkpoint(folder, placement=place)
        lender = lender or checkpoint.tokenizer
        checkpoint.tokenizer = lend_template(checkpoint.tokenizer, lender)
        checkpoint.model.to(default_device())
        several = distributed.world_size() > 1
        distributed.check_same("weights", checkpoint.weights_digest() if several else "")
        results[name] = audit(
            checkpoint,
            documents.corpus,
            settings,
            held_out=documents.held_out,
            control_framing=framing,
            seed=seed,
            on_step=partial(on_step, f"audit {name}"),
        )
        framing = framing or results[name].framing
        if documents.pretraining is not None:
            without_generation = settings.model_copy(update={"generation": None})
            pretraining[name] = audit(
                checkpoint, documents.pretraining, without_generation, seed=seed
            )
    rounds = [name for name in reversed(list(models)) if name != "base"]
    return _compared(results, pretraining, rounds, documents, settings, seed=seed)


def _compared(
    results: Mapping[str, AuditResult],
    pretraining: Mapping[str, AuditResult],
    rounds: Sequence[str],
    documents: Documents,
    settings: AuditSettings,
    *,
    seed: int,
) -> AuditComparison:
    """Compare the audits of several checkpoints; ``rounds`` from the last one to the first."""
    return AuditComparison(
        audit_settings=settings,
        audits=compare_audits(
            {name: record_of(result) for name, result in results.items()},
            {name: verdicts_of(result) for name, result in results.items()},
            Corpora(documents.corpus, documents.held_out),
            {name: result.documents for name, result in results.items() if result.documents},
            {name: r.generation.one_by_one for name, r in results.items() if r.generation},
            next((r.generation.identifiers for r in results.values() if r.generation), ()),
            seed=seed,
        ),
        onion=onion(rounds, {name: result.occurrences for name, result in results.items()}),
        pretraining=ComparedPretraining(
            audits={name: record_of(result) for name, result in pretraining.items()},
            changes=changes_since_base(
                {name: result.occurrences for name, result in pretraining.items()}
            ),
        ),
    )


def _placement(
    choice: PlacementChoice, folders: Mapping[str, ModelFolder], settings: AuditSettings
) -> Placement:
    """Return where the weights of all models are."""
    if choice != "auto":
        return choice
    sizes = [folder.whole.stored.num_parameters for folder in folders.values()]
    held = sum(sizes[:1]) + max(sizes[1:], default=0)  # the model in question, and one other
    fits = needed_memory(held, copies=AUDIT_COPIES) <= device_memory()
    whole = not any(folder.is_adapter for folder in folders.values())
    return "stream" if whole and settings.generation is None and not fits else "memory"


def _load_control(
    model: ModelFolder, base: ModelFolder, placement: Placement
) -> dict[str, Checkpoint]:
    """Load the model and its base on the CPU, if the base is a control for it."""
    check_base(model, base, name="the model", option="--base")
    loaded = {
        name: load_checkpoint(folder, placement=placement)
        for name, folder in (("model", model), ("base", base))
    }
    fit_base(loaded["base"], loaded["model"])
    check_control(loaded["model"], loaded["base"])
    return loaded
