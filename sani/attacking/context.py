"""What all attacks share: the adversary's documents, the audit's own scoring, and what is found.

An attack changes the model or what stands before an identifier, and then asks the audit. It is a
function of the model under attack, the scene and its settings that yields an `Outcome` for each of
its variants; given the base, it is its own control.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from sani.auditing.occurrences import Occurrences, score_occurrences
from sani.auditing.teacher_forcing import DEFAULT_READER, Reading
from sani.corpus.documents import Corpus, Document, Place, only
from sani.intervals import Estimate
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.tokens import Encoded, Framing, encode, framing_named
from sani.values.decoys import DecoyMaker
from sani.values.phrases import PhraseIndex, words_of

BLANK = "___"


@dataclass(frozen=True)
class Outcome:
    """What one variant of an attack found on one model.

    Attributes:
        variant: What was done, as ``4 bits``.
        occurrences: Verdicts; None where the attack only ranks, or was not run.
        places: Of each verdict, where it stands in the scene's corpus (or in ``corpus``).
        corpus: Documents attacked, where they are not the scene's.
        auc: How often the true value is preferred, where that is not read off the verdicts.
        curve: Points on the way, in the attack's own terms.
        check: What the attack says of itself.
        ranks: Whether decoys were asked; where they were and none is there, there is no AUC, but
            there should be.
        not_run: Why it could not be run.
    """

    variant: str
    occurrences: Occurrences | None = None
    places: Sequence[Place] = ()
    corpus: Corpus | None = None
    auc: Estimate | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    check: dict[str, Any] | None = None
    ranks: bool = True
    not_run: str = ""


@dataclass(frozen=True)
class AttackContext:
    """What the adversary has besides the model under attack, and how the audit asks.

    Attributes:
        corpus: The documents, with the occurrences under attack marked and no others.
        annotated: The same documents with all their spans.
        held_out: Documents of others; None if there are none.
        old: The unsanitized checkpoint; None if it is well kept.
        neighbours: Further documents of the same subjects; None if there are none.
        framing: What stands around each document, by name.
        audit: How the audit asks: sampler, queries, decoys.
        seed: Of every draw.
    """

    corpus: Corpus
    annotated: Corpus
    held_out: Corpus | None
    old: Checkpoint | None
    neighbours: Corpus | None
    framing: str
    audit: AuditSettings
    seed: int

    @cached_property
    def places(self) -> list[Place]:
        """Every occurrence under attack."""
        return all_places(self.corpus)

    @cached_property
    def maker(self) -> DecoyMaker:
        """Makes the audit's own decoys."""
        return DecoyMaker(
            [self.annotated, *([self.held_out] if self.held_out else [])], seed=self.seed
        )

    def frame(self, checkpoint: Checkpoint) -> Framing:
        """What stands around each document, as tokens."""
        return framing_named(self.framing, checkpoint.tokenizer)

    def chance(self, purpose: str) -> random.Random:
        """Random numbers for one purpose, the same ones whichever attack ran before."""
        return random.Random(f"{self.seed}\x00{purpose}")

    def drawn(self, most: int, *, ordered: bool = True) -> list[Place]:
        """At most so many occurrences, drawn; fewer are among more."""
        places = list(self.places)
        self.chance("occurrences").shuffle(places)
        return sorted(places[:most]) if ordered else places[:most]

    def value(self, place: Place) -> str:
        """An identifier in clear; it goes into prompts and nowhere else."""
        document: Document = self.corpus[place[0]]
        return document.value(document.spans[place[1]])

    def untold(self, places: Iterable[Place], told: Corpus) -> list[Place]:
        """The occurrences whose value stands nowhere in some documents."""
        index = PhraseIndex(document.text for document in told)
        return [place for place in places if not index.holds(words_of(self.value(place)))]

    def score(
        self,
        checkpoint: Checkpoint,
        places: Sequence[Place] | None = None,
        *,
        decoys: bool = True,
        reading: Reading = DEFAULT_READER,
    ) -> Occurrences:
        """The audit's verdicts for these occurrences, in order; all if None."""
        corpus = self.corpus if places is None else only(self.corpus, places)
        encoded = [item for item in encode(corpus, checkpoint.tokenizer) if item.spans]
        return self.ask(checkpoint, corpus, encoded, decoys=decoys, reading=reading)

    def ask(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        encoded: Sequence[Encoded] | None = None,
        *,
        decoys: bool = True,
        reading: Reading = DEFAULT_READER,
    ) -> Occurrences:
        """The audit's verdicts for other documents or prompts."""
        return score_occurrences(
            checkpoint,
            corpus,
            encode(corpus, checkpoint.tokenizer) if encoded is None else encoded,
            self.frame(checkpoint),
            self.audit,
            maker=self.maker if decoys else None,
            reading=reading,
        )


def duplicate(checkpoint: Checkpoint) -> Checkpoint:
    """A copy in memory that an attack may change."""
    return replace(checkpoint, model=copy.deepcopy(checkpoint.model))


def all_places(corpus: Corpus) -> list[Place]:
    """Every occurrence of a corpus, in order."""
    return [(d, s) for d, document in enumerate(corpus) for s in range(len(document.spans))]


def one_by_one(corpus: Corpus, places: Sequence[Place]) -> Corpus:
    """A document for each of these occurrences, with nothing else marked."""
    return Corpus([replace(corpus[d], spans=(corpus[d].spans[s],)) for d, s in places])


def cut(
    encoded: Sequence[Encoded], places: Sequence[Place], *, prefix: int | None, given: float = 0.0
) -> list[Encoded]:
    """Each occurrence with at most ``prefix`` tokens of its document before it, for `one_by_one`.

    Cut at the whole document's tokens: other ones would ask for something the model never read.

    Args:
        encoded: All documents.
        places: Occurrences.
        prefix: Tokens; all of them if None.
        given: Share of each identifier's tokens, rounded up, that is given away with them.
    """
    found = []
    for number, (document, span) in enumerate(places):
        item = encoded[document]
        first, last = item.spans[span]
        first += -int(-given * (last - first) // 1)
        begin = 0 if prefix is None else max(0, first - prefix)
        kept = slice(begin, last)
        spans = [(first - begin, last - begin)] if first < last else [(0, 0)]
        found.append(Encoded(number, item.ids[kept], item.starts[kept], item.ends[kept], spans))
    return found


def plain(documents: Iterable[Document]) -> Corpus:
    """Documents with nothing marked: all of their text is there to be learnt."""
    return Corpus([replace(document, spans=()) for document in documents])


def surrogated(corpus: Corpus, maker: DecoyMaker) -> tuple[Corpus, list[Place]]:
    """Documents with a decoy in the place of each identifier, the same for the same value.

    Where no decoy is to be had, `BLANK` stands, and a span that overlaps one before it is cut to
    what is left of it.

    Returns:
        The documents, with each decoy marked, and for each of these where the identifier stood.
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
