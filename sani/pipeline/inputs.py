"""The inputs of a run: its documents, and the digests by which a resumed run checks them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sani.auditing.prompts import read_prompts
from sani.corpus.documents import Corpus, Kind
from sani.corpus.formats import Format
from sani.corpus.readers import read_corpus
from sani.corpus.reading import DEFAULT_LIMITS, FIELD_NAMES, SizeLimits
from sani.errors import RecipeError, RepairError
from sani.models.checkpoint import Checkpoint
from sani.models.families import listed_family
from sani.models.folder import ModelFolder, open_folder
from sani.models.weight_files import check_only_weights
from sani.pipeline.candidates import check_candidate
from sani.recipe import AttackSettings, CorpusSettings, ModelSettings, Recipe, ScanSettings
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

# Notes on what was left out; others say how something was read.
_UNREAD = re.compile(r"\bnot (be )?(read|entered)\b|cut off|without a (resource|text)|next page")


@dataclass(frozen=True)
class Documents:
    """All documents of a run, each file read once.

    Attributes:
        corpus: The documents that the checkpoint was fine-tuned on.
        held_out: Documents that it was not trained on, or None.
        pretraining: Documents that only the base may have been trained on, or None.
        neighbours: Other documents of the same subjects, for an attack, or None.
    """

    corpus: Corpus
    held_out: Corpus | None
    pretraining: Corpus | None
    neighbours: Corpus | None = None

    def _by_key(self) -> dict[str, Corpus]:
        corpora = {
            "corpus": self.corpus,
            "corpus.held_out": self.held_out,
            "corpus.pretraining": self.pretraining,
            "attack.neighbours.documents": self.neighbours,
        }
        return {key: corpus for key, corpus in corpora.items() if corpus is not None}

    def digests(self) -> dict[str, str]:
        """Return the digest of each corpus, by the recipe's key that names its file."""
        return {key: corpus.digest() for key, corpus in self._by_key().items()}

    def all(self) -> list[Corpus]:
        """Return every corpus that there is."""
        return list(self._by_key().values())

    def notes(self) -> list[str]:
        """Return what was noted when the files were read, behind the recipe's key."""
        return [f"{key}: {note}" for key, corpus in self._by_key().items() for note in corpus.notes]

    def unread(self) -> list[str]:
        """Return what was not read of the files, without names of fields, which may be anything."""
        return [note.partition(FIELD_NAMES)[0] for note in self.notes() if _UNREAD.search(note)]

    def with_spans(self, corpus: Corpus, held_out: Corpus | None) -> Documents:
        """Return the same documents with the spans of a scan."""
        return replace(self, corpus=corpus, held_out=held_out)


def read_documents(recipe: Recipe) -> Documents:
    """Read all documents that a recipe names; errors as of `read_corpora`."""
    documents = read_corpora(recipe)
    if recipe.attack is None:
        return documents
    columns, limits = recipe.corpus.columns, size_limits(recipe.corpus)
    neighbours = read_neighbours(recipe.attack, columns=columns, limits=limits)
    return replace(documents, neighbours=neighbours)


def read_corpora(recipe: Recipe) -> Documents:
    """Read the documents of the recipe's ``corpus`` section.

    Raises:
        CorpusError: If one cannot be read.
        RecipeError: If a document of the others also stands in the corpus, or the held-out
            documents have no spans and get none.
    """
    settings = recipe.corpus
    kinds, columns, limits = settings.kinds, settings.columns, size_limits(settings)
    corpus = read_corpus(
        settings.path,
        format=settings.format,
        limit=settings.limit,
        kinds=kinds,
        subject_pattern=settings.subject_pattern,
        columns=columns,
        limits=limits,
    )

    def others(name: str, path: Path | None) -> Corpus | None:
        return read_others(
            name,
            path,
            corpus,
            format=settings.format,
            subject_pattern=settings.subject_pattern,
            kinds=kinds,
            columns=columns,
            limits=limits,
        )

    held_out = others("corpus.held_out", settings.held_out)
    check_held_out(corpus, held_out, recipe.scan)
    return Documents(
        corpus,
        held_out,
        others("corpus.pretraining", settings.pretraining),
    )


def size_limits(settings: CorpusSettings) -> SizeLimits:
    """Return the sizes beyond which a file of documents is refused."""
    return SizeLimits(settings.max_line_mib, settings.max_decompressed_mib)


def read_others(
    name: str,
    path: Path | None,
    corpus: Corpus,
    *,
    format: Format | None = None,
    subject_pattern: str | None = None,
    kinds: Mapping[str, Kind] | None = None,
    columns: Mapping[str, str] | None = None,
    limits: SizeLimits = DEFAULT_LIMITS,
) -> Corpus | None:
    """Read documents that must not be part of the corpus; return None without a path.

    Args:
        name: What the user calls the file: a recipe's key or an option.
        path: The file or folder.
        corpus: The corpus.
        format: Of the corpus. Only for a folder where the corpus is one of plain text: that format
            is read nowhere but where somebody says it.
        subject_pattern: Of the corpus, likewise.
        kinds: Kind of identifier by label.
        columns: Name of a field -> name of its column, as in the corpus.
        limits: Sizes beyond which the file is refused.

    Raises:
        CorpusError: If they cannot be read.
        RecipeError: If one of them also stands in the corpus.
    """
    if path is None:
        return None
    as_text = format == "text" and path.is_dir()
    others = read_corpus(
        path,
        format="text" if as_text else None,
        subject_pattern=subject_pattern if as_text else None,
        kinds=kinds,
        columns=columns,
        limits=limits,
    )
    texts = {document.text for document in corpus}
    shared = sum(document.text in texts for document in others)
    if shared:
        raise RecipeError(
            f"{name}: {shared} of its {len(others)} documents also stand in the corpus; "
            "it must hold documents that the model was not fine-tuned on"
        )
    return others


def check_held_out(
    corpus: Corpus,
    held_out: Corpus | None,
    scan: ScanSettings | None = None,
    *,
    name: str = "corpus.held_out",
) -> None:
    """Refuse held-out documents without a span where the corpus has some.

    Their identifiers would count as ordinary text, which changes perplexity, AUC and limits.

    Args:
        corpus: The corpus.
        held_out: Documents that the model was not trained on, or None.
        scan: A scan that both go through. Patterns and a trained model find new people too; known
            terms, propagation and k-anonymity find none in documents of others.
        name: What the user calls the held-out documents.

    Raises:
        RecipeError: If no document has a span and the scan would not find any.
    """
    if held_out is None or held_out.num_spans or not corpus.num_spans:
        return
    if scan is None or not (scan.patterns or scan.ner):
        raise RecipeError(
            f"{name}: none of its {len(held_out)} documents has a span while the corpus has "
            f"{corpus.num_spans}, so its identifiers would count as ordinary text; annotate them "
            "as the records are, or have them found (sani scan with --out, or scan.patterns or "
            "scan.ner in a recipe)"
        )


def read_neighbours(
    settings: AttackSettings,
    *,
    columns: Mapping[str, str] | None = None,
    limits: SizeLimits = DEFAULT_LIMITS,
) -> Corpus | None:
    """Read the other documents that `attack.neighbours` names; return None if it names none."""
    neighbours = settings.neighbours
    if neighbours is None or neighbours.documents is None:
        return None
    return read_corpus(neighbours.documents, columns=columns, limits=limits)


@dataclass(frozen=True)
class ModelFolders:
    """The model folders that a recipe names: each is checked once and hashed at most once.

    Attributes:
        path: The checkpoint to sanitize, or to check.
        unsanitized: What a checkpoint that is only checked was made from, or None.
        base: The public model, or None.
    """

    path: ModelFolder
    unsanitized: ModelFolder | None
    base: ModelFolder | None


def open_models(model: ModelSettings, *, path: ModelFolder) -> ModelFolders:
    """Open the model folders that a recipe names.

    Args:
        model: The recipe's section.
        path: The folder of its checkpoint.

    Raises:
        CheckpointError: If one of them is not a checkpoint that sani reads, or one that is only
            checked holds other weights too.
    """
    if model.unsanitized is not None:
        check_only_weights(path.path, read=path.weight_files, below=True)
    return ModelFolders(
        path,
        None if model.unsanitized is None else open_unsanitized(model.unsanitized, model.base),
        None if model.base is None else open_folder(model.base, more_weights=True),
    )


def open_unsanitized(path: Path, base: Path | None) -> ModelFolder:
    """Open the checkpoint before any erasing, which is only compared with."""
    return open_folder(path, base=base, more_weights=True)


def digests(recipe: Recipe, documents: Documents, models: ModelFolders) -> dict[str, str]:
    """Return a digest of everything a run reads, by the recipe's key.

    Raises:
        RecipeError: If the base has the weights of a checkpoint whose control it is to be, a
            checkpoint that is only checked is the unsanitized one, or a file cannot be read.
    """
    inputs = {
        **documents.digests(),
        "model.path": models.path.digest,
    }
    for name in ("terms", "gold", "allow"):
        path = getattr(recipe.scan, name)
        if path is not None:
            inputs[f"scan.{name}"] = _file_digest(path, f"scan.{name}")
    if models.unsanitized is not None:
        check_candidate(models.path, models.unsanitized)
        inputs["model.unsanitized"] = models.unsanitized.digest
    if models.base is not None:
        check_base(models.path, models.base)
        if models.unsanitized is not None:
            check_base(models.unsanitized, models.base, name="model.unsanitized")
        inputs["model.base"] = models.base.digest
    if recipe.audit.generation is not None and recipe.audit.generation.file is not None:
        text = "\n".join(read_prompts(recipe.audit.generation.file))
        inputs["audit.generation.file"] = hashlib.sha256(text.encode()).hexdigest()
    return inputs


def check_kind(recipe: Recipe, folder: ModelFolder) -> str:
    """Refuse a recipe that a model of this kind does not fit, before anything is trained.

    Args:
        recipe: The recipe.
        folder: Folder of its checkpoint.

    Returns:
        A few words for what the model predicts.

    Raises:
        RecipeError: If the recipe does not fit.
    """
    objective = folder.family.objective
    if recipe.audit.generation is not None and objective != "causal":
        raise RecipeError(
            f"audit.generation: {folder.path} is not a causal language model, and others cannot be "
            "sampled by prompts: set it to null"
        )
    if recipe.attack is not None and objective != "causal":
        raise RecipeError(
            f"attack: {folder.path} is not a causal language model; attacks on other ones are not "
            "supported: leave out the section attack"
        )
    if recipe.audit.unlearning_depth and objective != "causal":
        raise RecipeError(
            f"audit.unlearning_depth: {folder.path} is not a causal language model, and others are "
            "not supported: set it to false"
        )
    if recipe.attack is not None or recipe.audit.unlearning_depth:
        listed_family(folder.config)
    repairs = [("", recipe.repair)] if recipe.strategy == "once" else []
    repairs += [(f"escalation.ladder, {rung.name}: ", rung.repair) for rung in recipe.ladder]
    for where, repair in repairs:
        try:
            if repair is not None:
                check_settings(repair, folder.config)
        except RepairError as error:
            raise RecipeError(f"{where}{error}") from None
    return KINDS_OF_MODELS[objective]


def check_base(
    folder: ModelFolder,
    base: ModelFolder,
    *,
    name: str = "model.path",
    option: str = "model.base",
) -> None:
    """Refuse a base whose weight files equal the checkpoint's.

    Args:
        folder: Folder of the checkpoint.
        base: Folder of the base.
        name: What the user calls the checkpoint.
        option: What the user calls the base.

    Raises:
        RecipeError: If they do: then it would be no control.
    """
    if folder.weights_digest == base.weights_digest:
        raise RecipeError(NO_CONTROL.format(option, name))


def check_control(
    checkpoint: Checkpoint, base: Checkpoint, *, name: str = "the model", option: str = "--base"
) -> None:
    """Refuse a base with the checkpoint's weights, in whatever files and types they were saved.

    Arguments and errors as for `check_base`.
    """
    if checkpoint.has_weights_of(base):
        raise RecipeError(NO_CONTROL.format(option, name))


def _file_digest(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RecipeError(f"{name}: {path} cannot be read: {error.strerror}") from None
