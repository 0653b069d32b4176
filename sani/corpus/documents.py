"""The shape every corpus is read into: documents, and spans that say where an identifier stands.

Contract: ``{"id", "subject_id", "text", "spans": [{"start", "end", "label", "kind"}]}``;
offsets are Python characters and ``text[start:end]`` is the identifier. A span that the scan found
says so: ``source`` and ``score``. Instead of ``text`` and ``spans`` a conversation has
``"messages": [{"role", "content", "spans"}]``, each with the spans of its own content; for an
encoder-decoder model ``source_text`` is what the encoder reads, and ``text`` what it is to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args, overload

COLUMNS = ("id", "subject_id", "text", "spans", "messages", "source_text")  # fields of a record
Kind = Literal["direct", "indirect"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ANNOTATION = "annotation"
TERM_SOURCE = "term"  # of a confidential term that a list names


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The place of an identifier in a text.

    Attributes:
        start: First character, 0-based.
        end: One past the last character; greater than ``start``.
        label: What it is, in the corpus's own words (``NAME``, ``MRN``, ...).
        kind: ``direct`` if it names a person by itself, else ``indirect``.
        source: Who found it: ``annotation`` if it came with the corpus, else a part of the scan.
        score: How sure the source is, in [0, 1].
    """

    start: int
    end: int
    label: str
    kind: Kind = "direct"
    source: str = ANNOTATION
    score: float = 1.0


BETWEEN_TURNS = "\n\n"


@dataclass(frozen=True, slots=True)
class Turn:
    """The characters [start, end) of a document that one role of a conversation said."""

    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """One text about one subject, with its identifiers.

    The representation hides the id, the subject and the text: any of them may name a person.

    Attributes:
        id: Its name.
        subject_id: Whom it is about.
        text: All of it; of a conversation the contents, `BETWEEN_TURNS` between them.
        spans: Where identifiers stand in ``text``.
        turns: Of a conversation, in order; `sani.text.chat` makes of it what a model reads.
        source_text: What the encoder of an encoder-decoder model reads, without spans.
    """

    id: str
    subject_id: str
    text: str
    spans: tuple[Span, ...] = ()
    turns: tuple[Turn, ...] = ()
    source_text: str | None = None

    def __repr__(self) -> str:
        """Return sizes only, never a value."""
        return f"Document({len(self.text)} characters, {len(self.spans)} spans)"

    def value(self, span: Span) -> str:
        """Return the identifier in clear; whoever calls this keeps it inside ``private/``."""
        return self.text[span.start : span.end]


class Corpus(Sequence[Document]):
    """Documents in a fixed order; a document is named by its number in it, from 0.

    Attributes:
        notes: Sentences on what was not read, or what a scan learnt, with counts; they hold no
            value.
    """

    def __init__(self, documents: Sequence[Document], notes: Sequence[str] = ()) -> None:
        self._documents = tuple(documents)
        self.notes = tuple(notes)

    def __repr__(self) -> str:
        """Return sizes only, never a value."""
        return f"Corpus({len(self)} documents, {self.num_spans} spans)"

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._documents)

    def __iter__(self) -> Iterator[Document]:
        """Return the documents in order."""
        return iter(self._documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Document, ...]: ...
    def __getitem__(self, index: int | slice) -> Document | tuple[Document, ...]:
        """Return the document with this number, or a tuple of them for a slice."""
        return self._documents[index]

    @property
    def num_spans(self) -> int:
        """Occurrences of identifiers in all documents."""
        return sum(len(document.spans) for document in self._documents)

    def digest(self) -> str:
        """Return the SHA-256 of every id, subject, text, span and turn, as hexadecimal digits.

        It tells whether two corpora are the same. It is not keyed, so it stays in ``private/``.
        """
        state = hashlib.sha256()
        for document in self._documents:
            row: tuple[object, ...] = (
                document.id,
                document.subject_id,
                document.text,
                document.spans,
            )
            if document.turns or document.source_text is not None:
                row = (*row, document.turns, document.source_text)
            state.update(repr(row).encode("utf-8", "surrogatepass"))
        return state.hexdigest()


def by_turn(span: Span, document: Document) -> Sequence[Span]:
    """Cut a span where a message of a conversation ends; pieces of blanks alone are dropped."""
    ends = [(max(span.start, turn.start), min(span.end, turn.end)) for turn in document.turns]
    return [
        replace(span, start=start, end=end)
        for start, end in ends or [(span.start, span.end)]
        if start < end and document.text[start:end].strip()
    ]


Place = tuple[int, int]
"""The place of an occurrence: number of its document, number of its span in it."""


def only(corpus: Corpus, places: Sequence[Place]) -> Corpus:
    """Return the same documents with these spans marked and no others."""
    spans: list[list[Span]] = [[] for _ in corpus]
    for document, span in places:
        spans[document].append(corpus[document].spans[span])
    return Corpus([replace(d, spans=tuple(s)) for d, s in zip(corpus, spans, strict=True)])
