"""Placement of a run's weights: in memory, or in their files, read layer by layer.

A streamed run has one model at work at a time. It holds a layer, hidden states of many texts, and
of a repair the trained layers and the head.
"""

from __future__ import annotations

from collections.abc import Iterator

from sani.erasing.selectors import reads_texts
from sani.erasing.shards import RESETS
from sani.errors import SaniError
from sani.machine import distributed
from sani.machine.memory import CHECK_COPIES, TRAINED_COPIES, device_memory, needed_memory
from sani.models.checkpoint import Placement
from sani.models.families import text_config
from sani.models.parts import largest_part
from sani.models.streaming import STATES_HELD, SWEEP_BYTES
from sani.pipeline.models_of_run import needs_unsanitized_again
from sani.pipeline.run_inputs import RunInputs
from sani.recipe import Recipe, RepairSettings

PART_AT_ONCE = 1.75  # a part in float32, its bytes in the file, and those of the next one
LIBRARIES = 650 * 2**20  # of a process that has loaded all of them
# Heads that a repair took beyond those that are counted, at 1 and 8 billion parameters (2 and 3);
# what holds them is not known yet.
HEADS_MEASURED = 3
WORKSPACE = 2**29  # of the logits of a chunk, and a layer's intermediate results


def placement_of(inputs: RunInputs) -> Placement:
    """Return the placement of the recipe; of ``auto`` streaming, if memory does not suffice.

    A run that could not be streamed stays in memory, whose check then says what is missing.
    """
    placement = inputs.recipe.placement
    if placement != "auto":
        return placement
    fits = memory_needed(inputs, "memory") <= device_memory()
    return "memory" if fits or list(problems_of_streaming(inputs)) else "stream"


def check_placement(inputs: RunInputs) -> str:
    """Return where the weights are, in words.

    Raises:
        SaniError: If the recipe asks for what a streamed model cannot do.
    """
    if placement_of(inputs) == "memory":
        return "all weights in memory, in float32"
    problems = list(problems_of_streaming(inputs))
    if problems:
        raise SaniError(f"placement: a streamed model cannot do all of this: {'; '.join(problems)}")
    return "weights stay in their files and are read layer by layer"


def problems_of_streaming(inputs: RunInputs) -> Iterator[str]:
    """Yield what a recipe asks for that needs a model in memory, each with what to do."""
    recipe, repair, erase = inputs.recipe, inputs.recipe.repair, inputs.recipe.erase
    if distributed.world_size() > 1:
        yield "several processes each load the model: start one"
    if not inputs.path.family.listed:
        yield "its family is not in the table of families, so nobody has compared: use memory"
    if inputs.path.is_adapter:
        yield "model.path is an adapter: merge it first (peft: merge_and_unload)"
    if inputs.path.family.objective != "causal" and repair is not None:
        yield "repair is of causal models alone: leave it out"
    if recipe.strategy != "once" or recipe.rounds > 1:
        yield "a run of several attempts changes models in memory: strategy: once, rounds: 1"
    if repair is not None and repair.last_layers is None:
        yield "repair trains all layers: set repair.last_layers, to 2 for instance"
    if repair is not None and (repair.context == "surrogate" or repair.gradient_checkpointing):
        yield "repair reads all layers at each step: context: true, gradient_checkpointing: false"
    if erase is not None and (
        reads_texts(erase.selector) or erase.token_rows or erase.reset not in RESETS
    ):
        yield (
            "erase is done in the files: choose a selector that reads no documents, a reset of "
            f"{', '.join(RESETS)}, and no token_rows"
        )
    if recipe.attack is not None:
        yield "attacks change the model in memory: leave attack out"
    if recipe.audit.generation is not None or recipe.audit.unlearning_depth:
        yield "nothing is generated or patched: audit.generation: null, unlearning_depth: false"


def memory_needed(inputs: RunInputs, placement: Placement) -> int:
    """Return about how many bytes a run needs at its most, in memory or streamed."""
    if placement == "memory":
        return needed_memory(inputs.num_parameters, copies=_copies(inputs))
    part = PART_AT_ONCE * largest_part(inputs.path)
    return int(
        LIBRARIES + WORKSPACE + _hidden_states(inputs) + max(part, _repair_part(inputs, part))
    )


def _hidden_states(inputs: RunInputs) -> float:
    """Return the bytes of the hidden states that are held: decoys take about as many as texts."""
    size = int(text_config(inputs.path.config).hidden_size)
    return min(SWEEP_BYTES, 2 * STATES_HELD * 4 * size * inputs.num_tokens)


def _repair_part(inputs: RunInputs, part: float) -> float:
    """Return the bytes of weights in memory in a streamed repair; a teacher's pass reads a part."""
    repair = inputs.recipe.repair
    if repair is None or repair.last_layers is None:
        return 0.0
    layers = 4 * inputs.num_parameters * repair.last_layers / inputs.layout.num_layers
    trained = layers * (1 if repair.adapter is not None else 1 + TRAINED_COPIES)
    head = 4 * inputs.path.skeleton.get_output_embeddings().weight.numel()
    teachers = head * (repair.needs_base + repair.needs_unsanitized)
    return float(trained + (1 + HEADS_MEASURED) * head + max(part, teachers))


def _copies(inputs: RunInputs) -> float:
    """Return how many copies of the weights a run in memory holds at once.

    They are the checkpoint, the unsanitized one and the base, one of an adapter as it is written,
    and, of the weights that are trained, the gradients and two moments of the optimizer.
    """
    recipe = inputs.recipe
    if recipe.only_checks:
        return CHECK_COPIES
    models = 1 + needs_unsanitized_again(recipe) + (recipe.model.base is not None)
    models += recipe.output == "adapter"  # which is merged again as it is written
    ranks = distributed.world_size() if distributed.sharded() else 1
    share = trained_share(recipe, inputs.layout.num_layers)
    return models + TRAINED_COPIES * share / ranks


def trained_share(recipe: Recipe, layers: int) -> float:
    """Return about what share of the weights the repair trains, of all rungs the largest."""
    repairs: list[RepairSettings | None] = [rung.repair for rung in recipe.ladder]
    shares = [
        0.0
        if repair is None or repair.adapter is not None
        else min(1.0, (repair.last_layers or layers) / layers)
        for repair in repairs or [recipe.repair]
    ]
    return max(shares)
