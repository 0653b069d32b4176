"""`sani run --check`: everything that can go wrong before it costs an hour. Writes nothing."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.erasing.hooks import all_of, outputs_of
from sani.erasing.plan import number_chosen, sizes_of
from sani.erasing.resets import check_biases
from sani.erasing.selectors import check_layers
from sani.erasing.shards import StoredModel
from sani.errors import SaniError
from sani.machine.memory import CHECK_COPIES, REPAIR_COPIES, free_memory, needed_memory
from sani.models.folder import is_adapter, open_folder
from sani.models.neurons import Layout
from sani.models.safetensors_files import StoredWeights
from sani.pipeline.inputs import check_base, check_kind, read_documents, read_neighbours
from sani.recipe import AttackSettings, EraseSettings, ModelSettings, Recipe, Rung
from sani.releasing.identifiers_in_files import files_not_released
from sani.reporting.escalation import erase_in_words, repair_in_words
from sani.scanning.detection import asked_of, load_detector
from sani.scanning.inventory import take_inventory
from sani.text.chat import rendered
from sani.text.tokens import encode

# Erased and repaired weights, or those of the best rung and of the last; sanitized/, and two saved
# states of training (three copies each).
DISK_COPIES = 9
TOKENIZED = 200  # documents, to estimate what an escalation reads
_Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


@dataclass(frozen=True)
class CheckItem:
    """One thing looked at: whether it is in order, and what was found."""

    name: str
    holds: bool
    detail: str


def check(recipe: Recipe, out: Path) -> list[CheckItem]:
    """Look at the files, the model family, the tokenizer, the sizes, the disk and the memory.

    Every item is looked at even if an earlier one is not in order; what stopped several is said of
    the first.
    """
    items = [
        _look("corpus", lambda: _corpus(recipe)),
        _look("model.path", lambda: _model(recipe.model)),
        _look("kind", lambda: check_kind(recipe)),
    ]
    if recipe.model.base is not None:
        base = recipe.model.base
        items.append(_look("model.base", lambda: _base(recipe.model.path, base)))
    if recipe.model.unsanitized is not None:
        items.append(_look("model.unsanitized", lambda: _unsanitized(recipe.model)))
    if recipe.erase is not None:
        settings = recipe.erase
        items.append(_look("erase", lambda: _erase(recipe.model, settings)))
    for number, rung in enumerate(recipe.ladder, start=1):
        items.append(_look(f"rung {number}", partial(_rung, recipe.model, rung)))
    if recipe.escalation is not None:
        items.append(_look("escalation", lambda: _escalation(recipe)))
    if recipe.rounds > 1:
        items.append(_look("rounds", lambda: _rounds(recipe)))
    if recipe.attack is not None:
        attack = recipe.attack
        items.append(_look("attack", lambda: _attack(attack)))
    items.append(_look("disk", lambda: _disk(recipe, out)))
    items.append(_look("memory", lambda: _memory(recipe)))
    first = {item.detail: item.name for item in reversed(items) if not item.holds}
    return [
        item
        if first.get(item.detail, item.name) == item.name
        else replace(item, detail=f"as {first[item.detail]}")
        for item in items
    ]


def _look(name: str, look: Callable[[], str]) -> CheckItem:
    try:
        return CheckItem(name, True, look())
    except SaniError as error:
        return CheckItem(name, False, str(error))


def _corpus(recipe: Recipe) -> str:
    documents = read_documents(recipe)
    corpus, held_out = documents.corpus, documents.held_out
    if recipe.scan.detects:
        return _detectors(recipe, corpus, held_out)
    inventory = take_inventory(corpus)
    held = f", {len(held_out)} held out" if held_out else ", none held out"
    return (
        f"{inventory.documents} documents of {inventory.subjects} subjects{held}; "
        f"{inventory.occurrences} occurrences of {len(inventory.labels)} labels"
    )


def _detectors(recipe: Recipe, corpus: Corpus, held_out: Corpus | None) -> str:
    """What the scan would look at; every detector is loaded, none is run."""
    load_detector(asked_of(recipe.scan))
    if recipe.scan.gold is not None:
        read_corpus(recipe.scan.gold, kinds=recipe.corpus.kinds)
    held = f", {len(held_out)} held out" if held_out else ", none held out"
    return f"{len(corpus)} documents{held}, {corpus.num_spans} occurrences before the scan"


def _model(model: ModelSettings) -> str:
    layout, shapes = _layout(model.path, model.base)
    return (
        f"{layout.num_layers} layers, {_parameters(shapes):,} parameters, "
        f"{len(_tokenizer(model)):,} tokens in the vocabulary; "
        f"{sum(files_not_released(model.path).values())} entries of the folder are left behind"
    )


def _tokenizer(model: ModelSettings) -> Any:
    return open_folder(model.path, base=model.base).load_tokenizer()


def _base(path: Path, base: Path) -> str:
    _same_architecture("the base", base if is_adapter(path) else path, base)
    check_base(path, base)
    return "same architecture as model.path, other weights"


def _unsanitized(model: ModelSettings) -> str:
    if model.unsanitized is None:
        return "none"
    own, before = (
        model.base if model.base is not None and is_adapter(path) else path
        for path in (model.path, model.unsanitized)
    )
    _same_architecture("the unsanitized one", own, before)
    if model.base is not None:
        check_base(model.unsanitized, model.base, name="model.unsanitized")
    return "same architecture as model.path, which is only checked: nothing in it is changed"


def _same_architecture(name: str, path: Path, other: Path) -> None:
    difference = StoredModel(open_folder(path)).difference(StoredModel(open_folder(other)))
    if difference:
        raise SaniError(
            f"{name} does not fit the checkpoint: {difference}; give the model it was fine-tuned "
            "from"
        )


def _rung(model: ModelSettings, rung: Rung) -> str:
    """What a rung does, in words and in neurons."""
    words = f"{rung.name}: {erase_in_words(rung.erase)}; {repair_in_words(rung.repair)}"
    return words if rung.erase is None else f"{words}; {_erase(model, rung.erase)}"


def _escalation(recipe: Recipe) -> str:
    """What the rungs read at most."""
    settings, ladder, tokens = recipe.escalation, recipe.ladder, _tokens(recipe)
    whole = [rung.repair.epochs * tokens for rung in ladder]
    limits = "none"
    if settings is not None and (settings.seconds or settings.tokens):
        known = ((settings.seconds, "seconds"), (settings.tokens, "tokens"))
        limits = ", ".join(f"{limit:,g} {what}" for limit, what in known if limit)
    return (
        f"{len(ladder)} rungs, each tried only if the gate holds for none before; about "
        f"{max(whole):,.0f} tokens of training a rung, {sum(whole):,.0f} if all are tried; budget: "
        f"{limits}"
    )


def _rounds(recipe: Recipe) -> str:
    """What they read at most."""
    tokens = recipe.repair.epochs * _tokens(recipe) if recipe.repair else 0
    return (
        f"{recipe.rounds} at most, each only if the one before left anything that the base does "
        f"not give; about {tokens:,.0f} tokens of training a round"
    )


def _tokens(recipe: Recipe) -> float:
    """Tokens of all documents, from a sample of them."""
    corpus, tokenizer = read_documents(recipe).corpus, _tokenizer(recipe.model)
    sample = Corpus(corpus[:TOKENIZED])
    encoded = encode(rendered(sample, tokenizer), tokenizer)
    return sum(len(item.ids) for item in encoded) * len(corpus) / len(sample)


def _erase(model: ModelSettings, settings: EraseSettings) -> str:
    layout, shapes = _layout(model.path, model.base)
    sizes = sizes_of(settings, layout)
    check_layers(settings.selector, layout, sizes)
    if settings.reset == "mean":
        check_biases(all_of(outputs_of(layout, sizes)), shapes)
    chosen, layers = number_chosen(settings, sizes), {layer for layer, _ in sizes}
    if not sizes:
        return f"no neuron; all weights {settings.interpolate_to_base:.0%} of the way to the base's"
    where = f"{len(layers)} layer{'s' if len(layers) != 1 else ''}"
    return f"{chosen} of {sum(sizes.values())} neurons and heads in {where}"


def _attack(settings: AttackSettings) -> str:
    neighbours = read_neighbours(settings)
    return f"{len(neighbours)} other documents" if neighbours else "no other documents"


def _disk(recipe: Recipe, out: Path) -> str:
    _, shapes = _layout(recipe.model.path, recipe.model.base)
    needed = 0 if recipe.only_checks else DISK_COPIES * 4 * _parameters(shapes)
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise SaniError(f"{place} cannot be written; choose another --out")
    free = shutil.disk_usage(place).free
    return _enough("on the disk", needed, free)


def _memory(recipe: Recipe) -> str:
    _, shapes = _layout(recipe.model.path, recipe.model.base)
    copies = CHECK_COPIES if recipe.only_checks else REPAIR_COPIES
    needed = needed_memory(_parameters(shapes), copies=copies)
    return _enough("in memory, activations not counted", needed, free_memory())


def _enough(where: str, needed: int, there: int) -> str:
    text = f"about {needed / 2**30:.2f} GiB needed {where}, {there / 2**30:.1f} GiB free"
    if needed > there:
        raise SaniError(text + "; free some, or use a smaller model")
    return text


def _layout(path: Path, base: Path | None = None) -> tuple[Layout, _Shapes]:
    """A checkpoint's layout from its configuration and its files' headers; loads no weight.

    An adapter's is its base's.
    """
    folder = open_folder(path, base=base).whole
    shapes = StoredWeights(folder.weight_files).shapes
    return Layout(folder.config, shapes), shapes


def _parameters(shapes: _Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
