"""The source of a repair's examples: tokenized documents, settings and teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sani.corpus.documents import Corpus
from sani.machine import distributed
from sani.models.checkpoint import Checkpoint
from sani.recipe import AnchorObjective, RepairSettings
from sani.repairing.surrogates import Surrogates
from sani.repairing.teacher_states import Teachers, states_at
from sani.text.batches import Batch, make_batches
from sani.text.framing import Framing
from sani.text.tokens import Encoded, encode

WITHOUT_TEACHER = ("mask", "unlikelihood", "gradient_difference", "decoys")


@dataclass(frozen=True)
class ExampleSource:
    """The source of the examples of one repair.

    Attributes:
        checkpoint: The model to repair.
        corpus: The documents, conversations rendered.
        settings: Settings of the repair.
        framing: Special tokens around each document.
        teachers: Models that are not trained.
        seed: Of surrogates and masks.
    """

    checkpoint: Checkpoint
    corpus: Corpus
    settings: RepairSettings
    framing: Framing
    teachers: Teachers
    seed: int

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The documents' tokens, made once for the whole repair."""
        return encode(self.corpus, self.checkpoint.tokenizer)

    @cached_property
    def surrogates(self) -> Surrogates:
        """Other values for the identifiers of the corpus."""
        return Surrogates(self.corpus, seed=self.seed)

    @property
    def masked(self) -> bool:
        """True for a masked language model."""
        return self.checkpoint.family.objective == "masked"

    @property
    def term(self) -> str:
        """Kind of the loss at identifiers; for an anchor, what it is an anchor to."""
        objective = self.settings.identifier_loss
        return objective.to if isinstance(objective, AnchorObjective) else objective.kind

    @property
    def replaces_identifiers(self) -> bool:
        """True if identifiers in the input are replaced, by others in each epoch."""
        return self.settings.context == "surrogate" or self.term == "decoys"

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the documents."""
        return sum(len(item.ids) for item in self.encoded)

    def batches(self, encoded: Sequence[Encoded], *, pack: bool) -> list[Batch]:
        """Return batches of tokenized documents, of the rows of all processes."""
        return make_batches(
            encoded,
            self.framing,
            context_tokens=self.checkpoint.context_tokens,
            batch_tokens=self.settings.batch_tokens,
            pack=pack,
        )

    def teacher_hidden(self, batches: Sequence[Batch]) -> list[Tensor | None]:
        """Return a teacher's states at identifier positions, [1, n, hidden], where one is needed.

        Of a counterfactual anchor see `FixedExamples.compute`.
        """
        states: list[Tensor | None] = [None] * len(batches)
        if self.term not in WITHOUT_TEACHER:
            teacher = self.teachers.base if self.term == "base" else self.teachers.unsanitized

            def keep(number: int, hidden: Tensor) -> None:
                states[number] = hidden[None]

            states_at(teacher, batches, lambda batch: batch.identifier, keep)
        return states

    def retain_hidden(self, batches: Sequence[Batch], keep: Callable[[int, Tensor], None]) -> None:
        """Compute the unsanitized model's states at ordinary positions, if a term needs them.

        Args:
            batches: A batch without such a position is left out.
            keep: Called with the number of a batch and its states, [n, hidden].
        """
        if self.settings.retain_weight > 0:
            states_at(self.teachers.unsanitized, batches, lambda batch: batch.ordinary, keep)


def own_rows(batch: Batch) -> Batch:
    """Return this process's rows of a batch, maybe none."""
    return batch.rows(distributed.shard_of_rows(len(batch.ids)))
