"""What a run reads: its documents, and the digests by which a resumed run knows them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sani.auditing.prompts import read_prompts
from sani.corpus.documents import Corpus, Kind
from sani.corpus.readers import read_corpus
from sani.errors import RecipeError, RepairError
from sani.models.checkpoint import Checkpoint
from sani.models.folder import open_folder
from sani.recipe import AttackSettings, Recipe
from sani.repairing.checks import check_settings

KINDS_OF_MODELS = {
    "causal": "predicts the next token",
    "masked": "predicts masked tokens",
    "seq2seq": "predicts a second text",
}
NO_CONTROL = (
    "{}: has the same weights as {}, so it is no control: every leak would count as "
    "harmless. Give the public model it was fine-tuned from"
)


@dataclass(frozen=True)
class Documents:
    """All documents of a run."""

    corpus: Corpus
    held_out: Corpus | None
    pretraining: Corpus | None

    def digests(self) -> dict[str, str]:
        """Of each corpus that is there."""
        return {name: found.digest() for name, found in vars(self).items() if found is not None}


def read_documents(recipe: Recipe) -> Documents:
    """The recipe's corpus, held-out documents, and documents of the base's training.

    Raises:
        CorpusError: If one cannot be read.
        RecipeError: If a document of the others also stands in the corpus.
    """
    settings = recipe.corpus
    corpus = read_corpus(
        settings.path,
        format=settings.format,
        limit=settings.limit,
        kinds=settings.kinds,
        subject_pattern=settings.subject_pattern,
    )
    return Documents(
        corpus,
        read_others("corpus.held_out", settings.held_out, corpus, kinds=settings.kinds),
        read_others("corpus.pretraining", settings.pretraining, corpus, kinds=settings.kinds),
    )


def read_others(
    name: str, path: Path | None, corpus: Corpus, *, kinds: Mapping[str, Kind] | None = None
) -> Corpus | None:
    """Documents that must not be of the corpus; None without a path.

    Raises:
        CorpusError: If they cannot be read.
        RecipeError: If one of them also stands in the corpus.
    """
    if path is None:
        return None
    found = read_corpus(path, kinds=kinds)
    texts = {document.text for document in corpus}
    shared = sum(document.text in texts for document in found)
    if shared:
        raise RecipeError(
            f"{name}: {shared} of its {len(found)} documents also stand in the corpus; "
            "it must hold documents that the model was not fine-tuned on"
        )
    return found


def read_neighbours(settings: AttackSettings) -> Corpus | None:
    """The other documents that `attack.neighbours` names; None if it names none."""
    neighbours = settings.neighbours
    if neighbours is None or neighbours.documents is None:
        return None
    return read_corpus(neighbours.documents)


def digests(recipe: Recipe, documents: Documents) -> dict[str, str]:
    """Digests of everything a run reads."""
    model = recipe.model
    inputs = {
        "corpus": documents.corpus.digest(),
        "model.path": open_folder(model.path, base=model.base).digest,
    }
    for name, digest in documents.digests().items():
        if name != "corpus":
            inputs[f"corpus.{name}"] = digest
    for name, path in (("scan.terms", recipe.scan.terms), ("scan.gold", recipe.scan.gold)):
        if path is not None:
            inputs[name] = _file_digest(path, name)
    if model.unsanitized is not None:
        inputs["model.unsanitized"] = open_folder(model.unsanitized, base=model.base).digest
    if model.base is not None:
        check_base(model.path, model.base)
        if model.unsanitized is not None:
            check_base(model.unsanitized, model.base, name="model.unsanitized")
        inputs["model.base"] = open_folder(model.base).digest
    if recipe.audit.generation is not None and recipe.audit.generation.file is not None:
        text = "\n".join(read_prompts(recipe.audit.generation.file))
        inputs["audit.generation.file"] = hashlib.sha256(text.encode()).hexdigest()
    neighbours = read_neighbours(recipe.attack) if recipe.attack else None
    if neighbours is not None:
        inputs["attack.neighbours.documents"] = neighbours.digest()
    return inputs


def check_kind(recipe: Recipe) -> str:
    """Refuse what cannot be asked of a model of this kind, before anything is trained.

    Returns:
        What the model predicts, in words.

    Raises:
        RecipeError: If the recipe asks for it.
    """
    model = recipe.model
    model_folder = open_folder(model.path, base=model.base)
    objective = model_folder.family.objective
    if recipe.attack is not None and objective != "causal":
        raise RecipeError(
            f"attack: {model.path} is not a causal language model; attacks on other ones are not "
            "supported: leave out the section attack"
        )
    asked = [("", recipe.repair)] if recipe.strategy == "once" else []
    asked += [(f"escalation.ladder, {rung.name}: ", rung.repair) for rung in recipe.ladder]
    for where, repair in asked:
        try:
            if repair is not None:
                check_settings(repair, model_folder.config)
        except RepairError as error:
            raise RecipeError(f"{where}{error}") from None
    return KINDS_OF_MODELS[objective]


def check_base(
    path: Path, base: Path, *, name: str = "model.path", option: str = "model.base"
) -> None:
    """Refuse a base whose weight files are the checkpoint's own.

    Args:
        path: Folder of the checkpoint.
        base: Folder of the base.
        name: What the user calls the checkpoint.
        option: What the user calls the base.

    Raises:
        RecipeError: If they are: then it would be no control.
    """
    if open_folder(path, base=base).weights_digest == open_folder(base).weights_digest:
        raise RecipeError(NO_CONTROL.format(option, name))


def check_control(
    checkpoint: Checkpoint, base: Checkpoint, *, name: str = "the model", option: str = "--base"
) -> None:
    """As `check_base`, by the weights themselves, however and in whatever type they were saved."""
    if checkpoint.has_weights_of(base):
        raise RecipeError(NO_CONTROL.format(option, name))


def _file_digest(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RecipeError(f"{name}: {path} cannot be read: {error.strerror}") from None
