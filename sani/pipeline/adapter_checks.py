"""Check of `output: adapter`: what the recipe asks for can be done within the given adapter."""

from __future__ import annotations

from sani.counting import counted
from sani.erasing.adapter_matrices import matrix_changes
from sani.erasing.erase import planned_slices
from sani.erasing.plan import ErasePlan, PlannedNeurons, sizes_of
from sani.errors import RepairError
from sani.machine import distributed
from sani.models.adapters import MATRICES, OUT_OF, Lora, read_lora
from sani.pipeline.run_inputs import RunInputs
from sani.recipe import EraseSettings, RepairSettings
from sani.repairing.trainable import NOTHING_TO_TRAIN


def check_output(inputs: RunInputs) -> str:
    """Return what the adapter changes, in words.

    Raises:
        SaniError: If the adapter is not plain LoRA, or holds nothing where the recipe erases or
            repairs, or several processes are to do the run.
    """
    if distributed.world_size() > 1:
        raise RepairError(
            "output: adapter: the repair of an adapter is of one process; start one, or leave "
            "output out"
        )
    lora, recipe = read_lora(inputs.path), inputs.recipe
    for part in recipe.ladder or (recipe,):
        if part.erase is not None:
            _check_erase(inputs, lora, part.erase)
        if part.repair is not None:
            _check_repair(inputs, lora, part.repair)
    modules = [name for name in lora.weights if name.endswith(OUT_OF)]
    return f"the adapter stays one: plain LoRA on {counted(len(modules), 'module')} of the base"


def _check_erase(inputs: RunInputs, lora: Lora, settings: EraseSettings) -> None:
    """Refuse an erase that would find nothing, whatever its selector chooses."""
    sizes = sizes_of(settings, inputs.layout).items()
    entries = [PlannedNeurons(*site, tuple(range(size)), size, None) for site, size in sizes]
    plan = ErasePlan(
        {"kind": "all"}, settings.reset, inputs.recipe.seed, tuple(entries),
        interpolate_to_base=settings.interpolate_to_base,
    )  # fmt: skip
    planned = planned_slices(plan, inputs.layout)
    matrix_changes(
        lora.folder.path, lora.weights, plan, planned, base=inputs.shapes, layout=inputs.layout
    )


def _check_repair(inputs: RunInputs, lora: Lora, settings: RepairSettings) -> None:
    """Refuse a repair of layers in which the adapter holds nothing."""
    if settings.last_layers is None:
        return
    prefixes = inputs.layout.trained_prefixes(settings.last_layers)
    names = [name.removeprefix("base_model.model.") for name in lora.weights]
    if not any(name.startswith(prefixes) and name.endswith(MATRICES) for name in names):
        raise RepairError(NOTHING_TO_TRAIN)
