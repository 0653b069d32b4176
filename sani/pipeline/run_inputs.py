"""The files of a recipe, each read once, when a check or the run first needs it."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from sani.corpus.documents import Corpus
from sani.models.folder import ModelFolder, open_folder
from sani.models.neurons import Layout
from sani.pipeline.inputs import Documents, ModelFolders, open_models, read_documents
from sani.recipe import Recipe
from sani.text.chat import lend_template, rendered
from sani.text.tokens import encode

TOKENIZED = 200  # documents, from which the number of tokens is estimated
Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


class RunInputs:
    """The files of a recipe, each read once, when a check or the run first needs it."""

    def __init__(self, recipe: Recipe) -> None:
        """Take the recipe; nothing is read yet."""
        self.recipe = recipe

    @cached_property
    def documents(self) -> Documents:
        """All documents; errors as of `read_documents`."""
        return read_documents(self.recipe)

    @cached_property
    def models(self) -> ModelFolders:
        """The model folders; errors as of `open_models`."""
        return open_models(self.recipe.model, path=self.path)

    @cached_property
    def path(self) -> ModelFolder:
        """The folder of the checkpoint."""
        return open_folder(self.recipe.model.path, base=self.recipe.model.base)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.path.load_tokenizer()

    @cached_property
    def tokenizers(self) -> list[Any]:
        """The tokenizers that documents are rendered with: the checkpoint's, and the base's."""
        base = self.models.base
        lent = [lend_template(base.load_tokenizer(), self.tokenizer)] if base else []
        return [self.tokenizer, *lent]

    @cached_property
    def shapes(self) -> Shapes:
        """Shapes of the checkpoint's tensors, from its files' headers; an adapter's base's."""
        return self.path.whole.stored.named_as_in(self.path.skeleton).shapes

    @cached_property
    def layout(self) -> Layout:
        """The places of the checkpoint's neurons."""
        return Layout(self.path.config, self.shapes)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the checkpoint."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_tokens(self) -> float:
        """Number of tokens of the corpus, estimated from a sample of its documents."""
        corpus = self.documents.corpus
        sample = Corpus(corpus[:TOKENIZED])
        encoded = encode(rendered(sample, self.tokenizer), self.tokenizer)
        return sum(len(item.ids) for item in encoded) * len(corpus) / len(sample)
