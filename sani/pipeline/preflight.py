"""`sani run --check`: what would stop a run, found before it costs an hour. Writes nothing."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sani.corpus.documents import Corpus
from sani.counting import counted, verb
from sani.erasing.hooks import all_of, outputs_of
from sani.erasing.plan import number_chosen, sizes_of
from sani.erasing.resets import check_biases
from sani.erasing.selectors import check_layers
from sani.erasing.shards import StoredModel
from sani.errors import SaniError
from sani.machine.memory import CHECK_COPIES, REPAIR_COPIES, free_memory, needed_memory
from sani.models.folder import ModelFolder, open_folder
from sani.models.neurons import Layout
from sani.models.safetensors_files import StoredWeights
from sani.models.weight_files import check_only_weights
from sani.pipeline.candidates import check_candidate
from sani.pipeline.inputs import (
    Documents,
    check_base,
    check_kind,
    read_corpora,
    read_neighbours,
    size_limits,
)
from sani.pipeline.scan_stage import read_gold
from sani.recipe import (
    AttackSettings,
    CorpusSettings,
    EraseSettings,
    EscalationSettings,
    Recipe,
    Rung,
)
from sani.releasing.released_files import files_not_released
from sani.reporting.escalation import erase_in_words, repair_in_words
from sani.scanning.allowed import read_allowed
from sani.scanning.detection import detector_settings, load_detector
from sani.scanning.inventory import subjects_in_words, take_inventory
from sani.text.chat import rendered
from sani.text.tokens import encode

# Erased and repaired weights, or those of the best rung and of the last; sanitized/, and two saved
# states of training (three copies each).
DISK_COPIES = 9
TOKENIZED = 200  # documents, to estimate what an escalation reads
_Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


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


class _Inputs:
    """The files of a recipe, each read once, when a check first needs it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @cached_property
    def documents(self) -> Documents:
        return read_corpora(self.recipe)

    @cached_property
    def path(self) -> ModelFolder:
        return open_folder(self.recipe.model.path, base=self.recipe.model.base)

    @cached_property
    def tokenizer(self) -> Any:
        return self.path.load_tokenizer()

    @cached_property
    def shapes(self) -> _Shapes:
        """Shapes of the checkpoint's tensors, from its files' headers; an adapter's base's."""
        return StoredWeights(self.path.whole.weight_files).shapes

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.path.config, self.shapes)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_tokens(self) -> float:
        """Number of tokens of all documents, estimated from a sample of them."""
        corpus = self.documents.corpus
        sample = Corpus(corpus[:TOKENIZED])
        encoded = encode(rendered(sample, self.tokenizer), self.tokenizer)
        return sum(len(item.ids) for item in encoded) * len(corpus) / len(sample)


def check(recipe: Recipe, out: Path) -> list[CheckItem]:
    """Check the files, the model family, the tokenizer, the sizes, the disk and the memory.

    Every item is checked even if an earlier one is not in order. An error that stops several items
    is told in full for the first of them.
    """
    inputs = _Inputs(recipe)
    checks: dict[str, Callable[[], str]] = {
        "corpus": lambda: _corpus(inputs),
        "model.path": lambda: _model(inputs),
        "kind": lambda: check_kind(recipe, inputs.path),
    }
    if recipe.model.base is not None:
        checks["model.base"] = partial(_base, inputs, recipe.model.base)
    if recipe.model.unsanitized is not None:
        checks["model.unsanitized"] = partial(_unsanitized, inputs, recipe.model.unsanitized)
    if recipe.erase is not None:
        checks["erase"] = partial(_erase, inputs, recipe.erase)
    for number, rung in enumerate(recipe.ladder, start=1):
        checks[f"rung {number}"] = partial(_rung, inputs, rung)
    if recipe.escalation is not None:
        checks["escalation"] = partial(_escalation, inputs, recipe.escalation)
    if recipe.rounds > 1:
        checks["rounds"] = lambda: _rounds(inputs)
    if recipe.attack is not None:
        checks["attack"] = partial(_attack, recipe.attack, recipe.corpus)
    checks["disk"] = lambda: _disk(inputs, out)
    checks["memory"] = lambda: _memory(inputs)
    items = [_check_item(name, get_detail) for name, get_detail in checks.items()]
    first = {item.detail: item.name for item in reversed(items) if not item.holds}
    return [
        item
        if first.get(item.detail, item.name) == item.name
        else replace(item, detail=f"as {first[item.detail]}")
        for item in items
    ]


def _check_item(name: str, get_detail: Callable[[], str]) -> CheckItem:
    try:
        return CheckItem(name, True, get_detail())
    except SaniError as error:
        return CheckItem(name, False, str(error))


def _corpus(inputs: _Inputs) -> str:
    """Return what the corpus holds; if the scan detects, each detector is loaded and none run."""
    recipe, corpus = inputs.recipe, inputs.documents.corpus
    if any(document.turns for document in corpus):  # which a template may refuse
        rendered(corpus, inputs.tokenizer)
    held_out = inputs.documents.held_out
    num_held_out = f", {len(held_out)} held out" if held_out else ", none held out"
    notes = "".join(f"; {note}" for note in inputs.documents.notes())
    if recipe.scan.detects:
        load_detector(detector_settings(recipe.scan))
        read_gold(recipe)
        read_allowed(recipe.scan.allow, ())
        spans = corpus.num_spans
        return (
            f"{counted(len(corpus), 'document')}{num_held_out}, {counted(spans, 'occurrence')} "
            f"before the scan{notes}"
        )
    inventory = take_inventory(corpus)
    of_subjects = subjects_in_words(
        inventory.documents, inventory.subjects, inventory.without_subject_id
    )
    return (
        f"{of_subjects}{num_held_out}; {counted(inventory.occurrences, 'occurrence')} of "
        f"{counted(len(inventory.labels), 'label')}{notes}"
    )


def _model(inputs: _Inputs) -> str:
    num_left = sum(files_not_released(inputs.path.path).values())
    is_listed = inputs.path.family.listed
    layers = f"{inputs.layout.num_layers} layers" if is_listed else "a family that is only audited"
    return (
        f"{layers}, {inputs.num_parameters:,} parameters, "
        f"{len(inputs.tokenizer):,} tokens in the vocabulary; "
        f"{counted(num_left, 'entry', 'entries')} of the folder {verb(num_left, 'is', 'are')} "
        "left behind"
    )


def _base(inputs: _Inputs, path: Path) -> str:
    base = open_folder(path)
    _same_architecture("the base", base if inputs.path.is_adapter else inputs.path, base)
    check_base(inputs.path, base)
    return "same architecture as model.path, other weights"


def _unsanitized(inputs: _Inputs, path: Path) -> str:
    base = inputs.recipe.model.base
    unsanitized = open_folder(path, base=base)
    _same_architecture("the unsanitized one", inputs.path.whole, unsanitized.whole)
    check_only_weights(inputs.path, below=True)
    check_candidate(inputs.path, unsanitized)
    if base is not None:
        check_base(unsanitized, open_folder(base), name="model.unsanitized")
    return "same architecture as model.path, which is only checked: nothing in it is changed"


def _same_architecture(name: str, folder: ModelFolder, other: ModelFolder) -> None:
    difference = StoredModel(folder).difference(StoredModel(other))
    if difference:
        raise SaniError(
            f"{name} does not fit the checkpoint: {difference}; give the model it was fine-tuned "
            "from"
        )


def _rung(inputs: _Inputs, rung: Rung) -> str:
    """Return what a rung does, in words and in neurons."""
    words = f"{rung.name}: {erase_in_words(rung.erase)}; {repair_in_words(rung.repair)}"
    return words if rung.erase is None else f"{words}; {_erase(inputs, rung.erase)}"


def _escalation(inputs: _Inputs, settings: EscalationSettings) -> str:
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


def _rounds(inputs: _Inputs) -> str:
    """Return how many tokens the rounds read at most."""
    recipe = inputs.recipe
    tokens = recipe.repair.epochs * inputs.num_tokens if recipe.repair else 0
    return (
        f"{recipe.rounds} at most, each only if the one before left anything that the base does "
        f"not give; about {tokens:,.0f} tokens of training a round"
    )


def _erase(inputs: _Inputs, settings: EraseSettings) -> str:
    """Return how many neurons are erased, and where."""
    sizes = sizes_of(settings, inputs.layout)
    check_layers(settings.selector, inputs.layout, sizes)
    if settings.reset == "mean":
        check_biases(all_of(outputs_of(inputs.layout, sizes)), inputs.shapes)
    chosen, layers = number_chosen(settings, sizes), {layer for layer, _ in sizes}
    if not sizes:
        return f"no neuron; all weights {settings.interpolate_to_base:.0%} of the way to the base's"
    return f"{chosen} of {sum(sizes.values())} neurons and heads in {counted(len(layers), 'layer')}"


def _attack(settings: AttackSettings, corpus: CorpusSettings) -> str:
    neighbours = read_neighbours(settings, columns=corpus.columns, limits=size_limits(corpus))
    return f"{len(neighbours)} other documents" if neighbours else "no other documents"


def _disk(inputs: _Inputs, out: Path) -> str:
    copies = 0 if inputs.recipe.only_checks else DISK_COPIES
    needed = copies * 4 * inputs.num_parameters
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise SaniError(f"{folder} cannot be written; choose another --out")
    return _enough("on the disk", needed, shutil.disk_usage(folder).free)


def _memory(inputs: _Inputs) -> str:
    copies = CHECK_COPIES if inputs.recipe.only_checks else REPAIR_COPIES
    needed = needed_memory(inputs.num_parameters, copies=copies)
    return _enough("in memory, activations not counted", needed, free_memory())


def _enough(where: str, needed: int, free: int) -> str:
    """Return how many bytes are needed and free.

    Raises:
        SaniError: If too few are free.
    """
    text = f"about {needed / 2**30:.2f} GiB needed {where}, {free / 2**30:.1f} GiB free"
    if needed > free:
        raise SaniError(text + "; free some, or use a smaller model")
    return text
