"""`sani run --check`: what would stop a run, found before it costs an hour. Writes nothing.

A run makes the same check before it begins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sani.counting import counted, verb
from sani.erasing.hooks import all_of, outputs_of
from sani.erasing.plan import number_chosen, sizes_of
from sani.erasing.resets import check_biases
from sani.erasing.selectors import check_layers
from sani.erasing.shards import StoredModel
from sani.errors import SaniError
from sani.machine.memory import device_memory
from sani.machine.progress import OnNamedStep
from sani.models.checkpoint import load_checkpoint
from sani.models.folder import ModelFolder
from sani.pipeline.adapter_checks import check_output
from sani.pipeline.candidates import check_candidate
from sani.pipeline.document_checks import check_audit, check_documents, check_rendering
from sani.pipeline.estimate import RunTime, estimate_time
from sani.pipeline.inputs import check_base, check_kind
from sani.pipeline.models_of_run import GivenModels
from sani.pipeline.placement import (
    check_placement,
    memory_needed,
    placement_of,
    problems_of_streaming,
    trained_share,
)
from sani.pipeline.run_inputs import RunInputs
from sani.recipe import EraseSettings, EscalationSettings, Recipe, Rung
from sani.releasing.released_files import files_not_released
from sani.reporting.escalation import erase_in_words, repair_in_words
from sani.runfolder import check_new_run
from sani.text.chat import lend_template

# Erased and repaired weights, or those of the best rung and of the last; and sanitized/.
KEPT_COPIES = 3
SAVED_STATES = 2  # of training: the weights, and two moments of what is trained


@dataclass(frozen=True)
class CheckItem:
    """One item of the check.

    Attributes:
        name: What was checked.
        holds: True if it is in order.
        detail: The facts, or the error's text.
    """

    name: str
    holds: bool
    detail: str


def check(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    measure: bool = False,
    on_step: OnNamedStep | None = None,
) -> list[CheckItem]:
    """Check everything that could stop a run later.

    Every item is checked even if an earlier one is not in order. An error that stops several items
    is told in full for the first of them. The models are loaded last, if all else is in order.

    Args:
        recipe: What the run would do.
        out: The run folder.
        resume: The run would continue an interrupted one.
        measure: Estimate the time of the run too, if all is in order, which takes some seconds.
        on_step: Called with (what is measured, steps done, steps in all).
    """
    inputs = RunInputs(recipe)
    checks = _checks(inputs, out, resume=resume)
    items = [_check_item(name, get_detail) for name, get_detail in checks.items()]
    if all(item.holds for item in items):
        models = given_models(inputs)
        items.append(_check_item("models load", lambda: _load(recipe, models)))
        if measure and items[-1].holds:
            items.append(CheckItem("time", True, _time(inputs, models, on_step)))
    first = {item.detail: item.name for item in reversed(items) if not item.holds}
    return [
        item
        if first.get(item.detail, item.name) == item.name
        else replace(item, detail=f"as {first[item.detail]}")
        for item in items
    ]


def check_before_run(inputs: RunInputs, out: Path, *, resume: bool) -> None:
    """Check all but what only loaded models tell, as `check` does, before a run begins.

    Raises:
        SaniError: That of the first item that is not in order.
    """
    for get_detail in _checks(inputs, out, resume=resume).values():
        get_detail()


def _checks(inputs: RunInputs, out: Path, *, resume: bool) -> dict[str, Callable[[], str]]:
    """Return each check by its name: it returns the facts, or raises."""
    recipe = inputs.recipe
    checks: dict[str, Callable[[], str]] = {
        "corpus": lambda: check_documents(inputs),
        "model.path": lambda: _model(inputs),
        "kind": lambda: check_kind(recipe, inputs.path),
    }
    if recipe.model.base is not None:
        checks["model.base"] = lambda: _base(inputs)
    if recipe.model.unsanitized is not None:
        checks["model.unsanitized"] = lambda: _unsanitized(inputs)
    checks["texts"] = lambda: check_rendering(inputs)
    checks["audit"] = lambda: check_audit(inputs)
    if recipe.erase is not None:
        checks["erase"] = partial(_erase, inputs, recipe.erase)
    for number, rung in enumerate(recipe.ladder, start=1):
        checks[f"rung {number}"] = partial(_rung, inputs, rung)
    if recipe.output == "adapter":
        checks["output"] = lambda: check_output(inputs)
    if recipe.escalation is not None:
        checks["escalation"] = partial(_escalation, inputs, recipe.escalation)
    if recipe.rounds > 1:
        checks["rounds"] = lambda: _rounds(inputs)
    if recipe.attack is not None:
        checks["attack"] = lambda: _attack(inputs)
    checks["out"] = lambda: _out(out, resume=resume)
    checks["disk"] = lambda: _disk(inputs, out)
    checks["placement"] = lambda: check_placement(inputs)
    checks["memory"] = lambda: _memory(inputs)
    return checks


def _check_item(name: str, get_detail: Callable[[], str]) -> CheckItem:
    try:
        return CheckItem(name, True, get_detail())
    except SaniError as error:
        return CheckItem(name, False, str(error))


def _model(inputs: RunInputs) -> str:
    if inputs.path.is_adapter:
        load_checkpoint(inputs.path)  # merged, and compared with what it was before
    else:
        inputs.path.check_finite()
    num_left = sum(files_not_released(inputs.path.path).values())
    is_listed = inputs.path.family.listed
    layers = f"{inputs.layout.num_layers} layers" if is_listed else "a family that is only audited"
    return (
        f"{layers}, {inputs.num_parameters:,} parameters, "
        f"{len(inputs.tokenizer):,} tokens in the vocabulary; "
        f"{counted(num_left, 'entry', 'entries')} of the folder {verb(num_left, 'is', 'are')} "
        "left behind"
    )


def _base(inputs: RunInputs) -> str:
    base = inputs.models.base
    if base is None:
        raise SaniError("model.base: missing")
    base.check_finite()
    _same_architecture("the base", base if inputs.path.is_adapter else inputs.path, base)
    check_base(inputs.path, base)
    return f"same architecture as model.path, other weights{_lent_to_base(inputs, base)}"


def _lent_to_base(inputs: RunInputs, base: ModelFolder) -> str:
    """Return what the base gets from the checkpoint to read the same texts; empty if nothing."""
    own, other = inputs.tokenizer, base.load_tokenizer()
    added = len(own) - len(other)
    lent = f"; it gets {counted(added, 'token')} that the checkpoint added" if added > 0 else ""
    try:
        chats = any(document.turns for corpus in inputs.documents.all() for document in corpus)
    except SaniError:  # documents that cannot be read are an item of their own
        chats = False
    if chats and lend_template(other, own) is not other:
        lent += "; it reads conversations by the checkpoint's chat template"
    return lent


def _unsanitized(inputs: RunInputs) -> str:
    models = inputs.models
    if models.unsanitized is None:
        raise SaniError("model.unsanitized: missing")
    models.unsanitized.check_finite()
    _same_architecture("the unsanitized one", inputs.path.whole, models.unsanitized.whole)
    check_candidate(inputs.path, models.unsanitized)
    if models.base is not None:
        check_base(models.unsanitized, models.base, name="model.unsanitized")
    return "same architecture as model.path, which is only checked: nothing in it is changed"


def _same_architecture(name: str, folder: ModelFolder, other: ModelFolder) -> None:
    difference = StoredModel(folder).difference(StoredModel(other))
    if difference:
        raise SaniError(
            f"{name} does not fit the checkpoint: {difference}; give the model it was fine-tuned "
            "from"
        )


def _rung(inputs: RunInputs, rung: Rung) -> str:
    """Return what a rung does, in words and in neurons."""
    words = f"{rung.name}: {erase_in_words(rung.erase)}; {repair_in_words(rung.repair)}"
    return words if rung.erase is None else f"{words}; {_erase(inputs, rung.erase)}"


def _escalation(inputs: RunInputs, settings: EscalationSettings) -> str:
    """Return how many tokens the rungs read at most."""
    ladder, tokens = inputs.recipe.ladder, inputs.num_tokens
    rung_tokens = [rung.repair.epochs * tokens for rung in ladder]
    limits = ((settings.seconds, "seconds"), (settings.tokens, "tokens"))
    budget = ", ".join(f"{limit:,g} {unit}" for limit, unit in limits if limit) or "none"
    return (
        f"{counted(len(ladder), 'rung')}, each tried only if the gate holds for none before; about "
        f"{max(rung_tokens):,.0f} tokens of training a rung, {sum(rung_tokens):,.0f} if all are "
        f"tried; budget: {budget}"
    )


def _rounds(inputs: RunInputs) -> str:
    """Return how many tokens the rounds read at most."""
    recipe = inputs.recipe
    tokens = recipe.repair.epochs * inputs.num_tokens if recipe.repair else 0
    return (
        f"{recipe.rounds} at most, each only if the one before left anything that the base does "
        f"not give; about {tokens:,.0f} tokens of training a round"
    )


def _erase(inputs: RunInputs, settings: EraseSettings) -> str:
    """Return how many neurons are erased, and where."""
    sizes = sizes_of(settings, inputs.layout)
    check_layers(settings.selector, inputs.layout, sizes)
    if settings.reset == "mean":
        check_biases(all_of(outputs_of(inputs.layout, sizes)), inputs.shapes)
    chosen, layers = number_chosen(settings, sizes), {layer for layer, _ in sizes}
    if not sizes:
        return f"no neuron; all weights {settings.interpolate_to_base:.0%} of the way to the base's"
    return f"{chosen} of {sum(sizes.values())} neurons and heads in {counted(len(layers), 'layer')}"


def _attack(inputs: RunInputs) -> str:
    neighbours = inputs.documents.neighbours
    return f"{len(neighbours)} other documents" if neighbours else "no other documents"


def _out(out: Path, *, resume: bool) -> str:
    """Return where the run is written."""
    if not resume:
        check_new_run(out)
    folder = _existing(out)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise SaniError(f"{folder} cannot be written; choose another --out")
    return str(out)


def _existing(out: Path) -> Path:
    """Return the path itself, or the nearest one above it that exists."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _disk(inputs: RunInputs, out: Path) -> str:
    needed = 0
    if not inputs.recipe.only_checks:
        share = trained_share(inputs.recipe, inputs.layout.num_layers)
        held = share if placement_of(inputs) == "stream" else 1  # weights that a state has
        stored = sum(p.end - p.start for p in inputs.path.whole.stored.places().values())
        states = 4 * inputs.num_parameters * (held + 2 * share)
        needed = int(KEPT_COPIES * stored + SAVED_STATES * states)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    free = shutil.disk_usage(_existing(out)).free
    return _enough("on the disk", max(0, needed - written), free)


def _memory(inputs: RunInputs) -> str:
    placement, free = placement_of(inputs), device_memory()
    needed = memory_needed(inputs, placement)
    advice = "free some, or use a smaller model"
    if placement == "memory" and memory_needed(inputs, "stream") <= free:
        changes = ["set placement: stream", *problems_of_streaming(inputs)]
        advice = f"streamed from its files it would fit: {'; '.join(changes)}"
    return _enough("in memory, activations not counted", needed, free, advice=advice)


def time_of_run(recipe: Recipe, on_step: OnNamedStep) -> RunTime:
    """Return the estimated time of a recipe's run; nothing else is checked."""
    inputs = RunInputs(recipe)
    return estimate_time(inputs, given_models(inputs), on_step)


def given_models(inputs: RunInputs) -> GivenModels:
    """Return the models that a recipe names, to be loaded as its run would load them."""
    corpus, placement = inputs.documents.corpus, placement_of(inputs)
    return GivenModels(inputs.recipe, inputs.models, corpus, placement)


def _time(inputs: RunInputs, models: GivenModels, on_step: OnNamedStep | None) -> str:
    try:
        return estimate_time(inputs, models, on_step).in_words
    except SaniError as error:  # a few documents may lack what all of them have
        return f"not known: {error}"


def _load(recipe: Recipe, models: GivenModels) -> str:
    """Load the models as a run does, which finds what no header of a file tells."""
    models.load()
    if recipe.only_checks:
        models.load_candidate()
    return "their weights are numbers, and fit each other and the tokenizer"


def _enough(
    where: str, needed: int, free: int, *, advice: str = "free some, or use a smaller model"
) -> str:
    """Return how many bytes are needed and free.

    Raises:
        SaniError: If too few are free.
    """
    text = f"about {needed / 2**30:.2f} GiB needed {where}, {free / 2**30:.1f} GiB free"
    if needed > free:
        raise SaniError(f"{text}; {advice}")
    return text
