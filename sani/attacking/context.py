"""Shared parts of the attacks: the adversary's documents and the audit's own scoring.

An attack changes the model, or the text before an identifier, and then scores with the audit. It is
a function of the model under attack, the context and the attack's settings, and yields an `Outcome`
for each of its variants. Run on the base, the same function is the control.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sani.attacking.result import LeakPoint, RelearnPoint, SamplingCheck
from sani.auditing.occurrences import Occurrences
from sani.auditing.scoring import score_occurrences
from sani.auditing.teacher_forcing import DEFAULT_READER, LogitReader
from sani.corpus.documents import Corpus, Document, Place, only
from sani.intervals import Estimate
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.framing import Framing, framing_of
from sani.text.tokens import Encoded, encode
from sani.values.decoys import DecoyMaker, decoy_maker
from sani.values.phrases import PhraseIndex, words_of

BLANK = "___"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one variant of an attack on one model.

    Attributes:
        variant: Name of the variant, as ``4 bits``.
        occurrences: Verdicts; None where the variant only ranks, or was not run.
        places: For each verdict, the occurrence in the context's corpus (or in ``corpus``).
        corpus: Documents under attack, where they are not the context's.
        auc: Share of decoys that the true value beats, where it does not follow from the verdicts.
        curve: Points on the way, of relearning and of sampling.
        check: The sampling attack's test of its closed form.
        ranks: False if the variant scores no decoys, so that a missing AUC is no failure.
        not_run: The reason why the variant was not run.
    """

    variant: str
    occurrences: Occurrences | None = None
    places: Sequence[Place] = ()
    corpus: Corpus | None = None
    auc: Estimate | None = None
    curve: tuple[RelearnPoint, ...] | tuple[LeakPoint, ...] = ()
    check: SamplingCheck | None = None
    ranks: bool = True
    not_run: str = ""


@dataclass(frozen=True)
class AttackContext:
    """The adversary's means besides the model under attack, and the audit's settings.

    Attributes:
        corpus: The documents, with the occurrences under attack marked and no others.
        annotated: The same documents with all their spans.
        held_out: Documents of other subjects; None if there are none.
        unsanitized: The unsanitized checkpoint; None if the adversary does not have it.
        neighbours: Further documents of the same subjects; None if there are none.
        audit: The audit's settings: framing, sampler, queries, decoys.
        seed: Seed of every random draw.
    """

    corpus: Corpus
    annotated: Corpus
    held_out: Corpus | None
    unsanitized: Checkpoint | None
    neighbours: Corpus | None
    audit: AuditSettings
    seed: int

    @cached_property
    def places(self) -> list[Place]:
        """Every occurrence under attack."""
        return all_places(self.corpus)

    @cached_property
    def maker(self) -> DecoyMaker:
        """The audit's own maker of decoys."""
        return decoy_maker(
            [self.annotated, *([self.held_out] if self.held_out else [])], seed=self.seed
        )

    @cached_property
    def _encoded(self) -> dict[Any, list[Encoded]]:
        """`annotated` as tokens, by tokenizer."""
        return {}

    def encoded_annotated(self, checkpoint: Checkpoint) -> list[Encoded]:
        """Return `annotated` as tokens; each model's tokenizer reads it once for all attacks."""
        tokenizer = checkpoint.tokenizer
        if tokenizer not in self._encoded:
            self._encoded[tokenizer] = encode(self.annotated, tokenizer)
        return self._encoded[tokenizer]

    def encoded(self, checkpoint: Checkpoint) -> list[Encoded]:
        """Return `corpus` as tokens: those of `annotated`, with fewer spans."""
        items = []
        for item, annotated, document in zip(
            self.encoded_annotated(checkpoint), self.annotated, self.corpus, strict=True
        ):
            tokens_of = dict(zip(annotated.spans, item.spans, strict=True))
            items.append(replace(item, spans=[tokens_of[span] for span in document.spans]))
        return items

    def framing(self, checkpoint: Checkpoint) -> Framing:
        """Return the tokens around each document, for this checkpoint's tokenizer."""
        return framing_of(checkpoint, self.audit.framing)

    def chance(self, purpose: str) -> random.Random:
        """Return random numbers for one purpose, the same whichever attack ran before."""
        return random.Random(f"{self.seed}\x00{purpose}")

    def drawn(self, max_occurrences: int, *, ordered: bool = True) -> list[Place]:
        """Draw occurrences at random; a smaller draw is a part of every larger one."""
        places = list(self.places)
        self.chance("occurrences").shuffle(places)
        return sorted(places[:max_occurrences]) if ordered else places[:max_occurrences]

    def value(self, place: Place) -> str:
        """Return an identifier in clear; it goes into prompts and nowhere else."""
        document: Document = self.corpus[place[0]]
        return document.value(document.spans[place[1]])

    def subject_numbers(self, places: Sequence[Place], corpus: Corpus | None = None) -> list[int]:
        """Number the subjects of occurrences in the context's corpus, or in another one."""
        documents = corpus or self.corpus
        subjects = [documents[document].subject_id for document, _ in places]
        numbers: list[int] = np.unique(subjects, return_inverse=True)[1].tolist()
        return numbers

    def not_in(self, documents: Corpus, places: Iterable[Place]) -> list[Place]:
        """Return the occurrences whose value stands in none of the documents."""
        index = PhraseIndex(document.text for document in documents)
        return [place for place in places if not index.holds(words_of(self.value(place)))]

    def score(
        self,
        checkpoint: Checkpoint,
        places: Sequence[Place] | None = None,
        *,
        decoys: bool = True,
        reader: LogitReader = DEFAULT_READER,
    ) -> Occurrences:
        """Return the audit's verdicts for these occurrences, in order; for all if None."""
        corpus = self.corpus if places is None else only(self.corpus, places)
        encoded = select_spans(self.encoded(checkpoint), self.places if places is None else places)
        return self.score_documents(checkpoint, corpus, encoded, decoys=decoys, reader=reader)

    def score_documents(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        encoded: Sequence[Encoded] | None = None,
        *,
        decoys: bool = True,
        reader: LogitReader = DEFAULT_READER,
    ) -> Occurrences:
        """Return the audit's verdicts for all occurrences of other documents or prompts.

        Args:
            checkpoint: The model.
            corpus: The documents.
            encoded: The documents as tokens; made from ``corpus`` if None.
            decoys: True to score decoys too.
            reader: Source of the logits.
        """
        return score_occurrences(
            checkpoint,
            corpus,
            encode(corpus, checkpoint.tokenizer) if encoded is None else encoded,
            self.framing(checkpoint),
            self.audit,
            maker=self.maker if decoys else None,
            reader=reader,
        )


def duplicate(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy in memory that an attack may change."""
    return replace(checkpoint, model=copy.deepcopy(checkpoint.model))


def all_places(corpus: Corpus) -> list[Place]:
    """Return every occurrence of a corpus, in order."""
    return [(d, s) for d, document in enumerate(corpus) for s in range(len(document.spans))]


def select_spans(encoded: Sequence[Encoded], places: Sequence[Place]) -> list[Encoded]:
    """Return the documents that hold these occurrences, with no other span, as `only` does."""
    spans: list[list[tuple[int, int]]] = [[] for _ in encoded]
    for document, span in places:
        spans[document].append(encoded[document].spans[span])
    return [
        replace(item, spans=chosen) for item, chosen in zip(encoded, spans, strict=True) if chosen
    ]


def one_by_one(corpus: Corpus, places: Sequence[Place]) -> Corpus:
    """Return a document for each of these occurrences, with no other span marked."""
    return Corpus([replace(corpus[d], spans=(corpus[d].spans[s],)) for d, s in places])


def cut(
    encoded: Sequence[Encoded], places: Sequence[Place], *, prefix: int | None, given: float = 0.0
) -> list[Encoded]:
    """Cut each occurrence out of its document with a short left context, for `one_by_one`.

    The cut is made between tokens of the whole document. A text cut as a string is tokenized in
    another way, and would ask for tokens that the model never read.

    Args:
        encoded: All documents.
        places: Occurrences.
        prefix: Maximum number of tokens before the identifier; no limit if None.
        given: Share of each identifier's tokens, rounded up, that belongs to the left context.
    """
    cuts = []
    for number, (document, span) in enumerate(places):
        item = encoded[document]
        first, last = item.spans[span]
        first += -int(-given * (last - first) // 1)  # rounded up
        begin = 0 if prefix is None else max(0, first - prefix)
        window = slice(begin, last)
        spans = [(first - begin, last - begin)] if first < last else [(0, 0)]
        cuts.append(
            Encoded(number, item.ids[window], item.starts[window], item.ends[window], spans)
        )
    return cuts


def plain(documents: Iterable[Document]) -> Corpus:
    """Return the documents with nothing marked, so that all of their text is trained on."""
    return Corpus([replace(document, spans=()) for document in documents])


def surrogated(corpus: Corpus, maker: DecoyMaker) -> tuple[Corpus, list[Place]]:
    """Put a decoy in the place of each identifier, the same decoy for the same value.

    Where no decoy can be made, `BLANK` stands. A span that overlaps an earlier one is cut to the
    part behind it.

    Returns:
        The documents with each decoy marked, and for each decoy the occurrence that it replaces.
    """
    documents, places = [], []
    for number, document in enumerate(corpus):
        parts, spans, at, length = [], [], 0, 0
        for name in sorted(range(len(document.spans)), key=lambda n: document.spans[n]):
            span = document.spans[name]
            if span.end <= at:
                continue
            decoys = maker.decoys(span.label, document.value(span), count=1)
            before = document.text[at : max(at, span.start)]
            parts += [before, *(decoys or [BLANK])]
            length += len(before)
            if decoys and span.start >= at:
                spans.append(replace(span, start=length, end=length + len(decoys[0])))
                places.append((number, name))
            length += len(parts[-1])
            at = span.end
        text = "".join([*parts, document.text[at:]])
        documents.append(replace(document, text=text, spans=tuple(spans)))
    return Corpus(documents), places
