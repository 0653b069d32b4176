"""Checks of a run's documents before anything is computed: what a later stage would refuse."""

from __future__ import annotations

from collections.abc import Iterator

from sani.attacking.attack import check_marks, draw_documents
from sani.auditing.generation import check_searchable
from sani.auditing.prompts import read_prompts
from sani.corpus.documents import Corpus
from sani.counting import counted
from sani.errors import RecipeError
from sani.pipeline.run_inputs import RunInputs
from sani.pipeline.scan_stage import read_gold
from sani.scanning.allowed import read_allowed
from sani.scanning.detection import check_gold, detector_settings, load_detector
from sani.scanning.indirect import check_subjects
from sani.scanning.inventory import subjects_in_words, take_inventory
from sani.text.chat import check_source, rendered
from sani.text.framing import framing_named


def check_documents(inputs: RunInputs) -> str:
    """Return what the corpus holds; if the scan detects, each detector is loaded and none run.

    Raises:
        SaniError: If a stage would refuse the documents.
    """
    recipe, documents = inputs.recipe, inputs.documents
    corpus, held_out = documents.corpus, documents.held_out
    num_held_out = f", {len(held_out)} held out" if held_out else ", none held out"
    notes = "".join(f"; {note}" for note in documents.notes())
    if recipe.scan.detects:
        load_detector(detector_settings(recipe.scan))
        gold = read_gold(recipe)
        if gold is not None:
            check_gold(gold)
        read_allowed(recipe.scan.allow, ())
        if recipe.scan.indirect is not None:
            check_subjects(corpus, recipe.scan.indirect)
        spans = corpus.num_spans
        return (
            f"{_of_subjects(corpus)}{num_held_out}; {counted(spans, 'occurrence')} "
            f"before the scan{notes}"
        )
    inventory = take_inventory(corpus)
    _check_kinds(inputs, corpus)
    return (
        f"{_of_subjects(corpus)}{num_held_out}; {counted(inventory.occurrences, 'occurrence')} of "
        f"{counted(len(inventory.labels), 'label')}{notes}"
    )


def _of_subjects(corpus: Corpus) -> str:
    """Return how many documents of how many subjects there are, and whether anybody knows."""
    return subjects_in_words(
        len(corpus),
        len({document.subject_id for document in corpus}),
        sum(document.subject_id == document.id for document in corpus),
    )


def _check_kinds(inputs: RunInputs, corpus: Corpus) -> None:
    """Refuse kinds of identifiers that are judged, searched for or attacked and marked nowhere.

    Raises:
        SaniError: If there is one.
    """
    recipe = inputs.recipe
    marked = {span.kind for document in corpus for span in document.spans}
    missing = [kind for kind in recipe.gate.kinds if kind not in marked]
    if missing:
        raise RecipeError(
            f"gate.kinds: the corpus marks no {' and no '.join(missing)} identifier, so the limits "
            "on them could not be measured and would not hold; annotate them, have them found "
            f"(scan), or set gate.kinds to [{', '.join(sorted(marked))}]"
        )
    if recipe.audit.generation is not None:
        check_searchable(corpus, recipe.audit.generation.kinds)
    if recipe.attack is not None:
        drawn = draw_documents(corpus, recipe.attack.documents, seed=recipe.seed)
        check_marks(drawn, recipe.attack.kinds)


def check_rendering(inputs: RunInputs) -> str:
    """Return that both models can read the documents.

    Raises:
        SaniError: If the chat template of one refuses a conversation, or a text is missing.
    """
    chats = 0
    for corpus in inputs.documents.all():
        check_source(corpus, inputs.path.config)
        conversations = sum(bool(document.turns) for document in corpus)
        chats += conversations
        for tokenizer in inputs.tokenizers if conversations else ():  # a template may refuse them
            rendered(corpus, tokenizer)
    return f"{counted(chats, 'conversation')} rendered" if chats else "plain texts"


def check_audit(inputs: RunInputs) -> str:
    """Return what the audit reads documents behind, and what else it needs.

    Raises:
        SaniError: If the tokenizer has no such framing, or the file of prompts cannot be read.
    """
    return "; ".join(_of_audit(inputs))


def _of_audit(inputs: RunInputs) -> Iterator[str]:
    settings, family = inputs.recipe.audit, inputs.path.family
    start = inputs.path.config.decoder_start_token_id if family.objective == "seq2seq" else None
    for tokenizer in inputs.tokenizers:
        framing_named(settings.framing, tokenizer, masked=family.objective == "masked", start=start)
    yield f"framing {settings.framing}"
    if settings.generation is not None and settings.generation.file is not None:
        yield f"{counted(len(read_prompts(settings.generation.file)), 'prompt')} of a file"
