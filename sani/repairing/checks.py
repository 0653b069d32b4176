"""Checks before a repair trains: settings, documents and models that do not fit are refused."""

from __future__ import annotations

from typing import Any

import torch

from sani.corpus.documents import Corpus
from sani.errors import RepairError
from sani.machine import distributed
from sani.models.bases import architecture_difference
from sani.models.checkpoint import Checkpoint
from sani.models.families import family_of, is_masked, num_layers
from sani.recipe import AnchorObjective, RepairSettings
from sani.repairing.mlm_masking import check_masked


def check_settings(settings: RepairSettings, config: Any) -> None:
    """Refuse settings that a model of this kind cannot be repaired with on this machine.

    Args:
        settings: Settings of the repair.
        config: The model's configuration.

    Raises:
        RepairError: If the settings do not fit the model.
    """
    if settings.precision == "bfloat16" and not _has_bfloat16():
        raise RepairError(
            "repair.precision: bfloat16 is asked for and this processor has no bfloat16 units, "
            "so it would be slower and no smaller; use float32"
        )
    layers = num_layers(config)
    if settings.last_layers is not None and settings.last_layers > layers:
        raise RepairError(
            f"repair.last_layers: got {settings.last_layers}, but the model has {layers} layers"
        )
    if is_masked(config):
        check_masked(settings)
    if family_of(config).objective == "seq2seq":
        _check_two_texts(settings)


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _check_two_texts(settings: RepairSettings) -> None:
    """Refuse to replace identifiers: those in the text that the encoder reads are not marked."""
    objective = settings.identifier_loss
    replacing = isinstance(objective, AnchorObjective) and objective.to in (
        "decoys",
        "counterfactual",
    )
    if replacing or settings.context == "surrogate":
        raise RepairError(
            "repair: identifiers in source_text are not marked, so they cannot be replaced along "
            "with those in text; use context: keep, and mask, unlikelihood, npo, "
            "gradient_difference or an anchor to base or self"
        )


def check_corpus(corpus: Corpus) -> None:
    """Refuse documents without any span.

    Raises:
        RepairError: If there is none.
    """
    if corpus.num_spans == 0:
        raise RepairError(
            f"none of the {len(corpus)} documents has a span, so every identifier would be "
            "trained on as ordinary text; annotate the corpus first"
        )


def check_teachers(
    checkpoint: Checkpoint,
    settings: RepairSettings,
    *,
    base: Checkpoint | None,
    unsanitized: Checkpoint | None,
) -> None:
    """Refuse models that the settings need and that are missing or of another architecture.

    Raises:
        RepairError: If one is.
    """
    if settings.needs_base and base is None:
        raise RepairError("the anchor needs the base model; give it, or use kind: mask")
    for name, model in (("base", base), ("unsanitized checkpoint", unsanitized)):
        difference = model and architecture_difference(checkpoint, model)
        if difference and (name != "base" or settings.needs_base):
            raise RepairError(f"the {name} does not fit the checkpoint: {difference}")


def check_own_adapter(checkpoint: Checkpoint, settings: RepairSettings) -> None:
    """Refuse what cannot be done with a checkpoint that stays an adapter on its base.

    Raises:
        RepairError: If a second adapter is to be trained, or several processes share the work.
    """
    if checkpoint.lora is None:
        return
    if settings.adapter is not None:
        raise RepairError(
            "repair.adapter: with output: adapter the checkpoint's own adapter is trained, and a "
            "second one would have to be merged into the base; leave repair.adapter out"
        )
    if distributed.world_size() > 1:
        raise RepairError(
            "output: adapter: the repair of an adapter is of one process; start one, or leave "
            "output out"
        )


def check_early_stop(settings: RepairSettings, *, has_gate: bool) -> None:
    """Refuse to stop early where nothing can be audited between two epochs.

    Args:
        settings: Settings of the repair.
        has_gate: True if the caller audits after each epoch.

    Raises:
        RepairError: If ``early_stop`` is set and there is no such audit.
    """
    if settings.early_stop and distributed.sharded():
        raise RepairError(
            "repair.early_stop: a sharded model is whole only at the end, so it cannot be audited "
            "between epochs; leave it out, or use distributed_type MULTI_GPU"
        )
    if settings.early_stop and not has_gate:
        raise RepairError(
            "repair.early_stop: nothing here has a gate to stop at; leave it out, or use sani run"
        )
