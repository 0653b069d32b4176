"""Conversations as what one model reads: its chat template's text, with every span moved into it.

A corpus does not know the model, and a template may put anything before, between and behind the
contents, and strip white space off them. Where each content went is found with a second rendering,
of marks instead of contents; what does not come out exactly is an error. The template's special
tokens are text here, and a fast tokenizer reads them as special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from sani.corpus.documents import Corpus, Document, Span
from sani.errors import CorpusError
from sani.models.families import decoder_start
from sani.text.framing import untried_roles
from sani.text.templates import Message, TemplateRefusedError, render_chats

_MARK = "\u2603{}\u2604"


def rendered(corpus: Corpus, tokenizer: Any) -> Corpus:
    """Return the corpus with each conversation as the one text that the chat template makes of it.

    A begin token that the template writes first is left out: it is the framing's (``bos``). Number
    and order of documents and of their spans stay; the same corpus if none is a conversation.

    Raises:
        CorpusError: If there is a conversation and no template, the template refuses it or a
            turn by itself, or where a content or a span went cannot be told exactly.
    """
    if not any(document.turns for document in corpus):
        return corpus
    if not getattr(tokenizer, "chat_template", None):
        raise CorpusError(
            "the corpus holds conversations (messages) and the tokenizer has no chat template; "
            "give the model's chat_template.jinja, or text instead of messages"
        )
    texts = iter(render_chats(tokenizer, [m for d in corpus for m in _asked(d)]))
    documents = []
    for number, document in enumerate(corpus):
        if not document.turns:
            documents.append(document)
            continue
        try:
            documents.append(_rendered(document, tokenizer, next(texts), next(texts)))
        except _RenderingError as problem:
            raise CorpusError(f"document {number}: {problem}") from None
    roles = {turn.role for document in corpus for turn in document.turns}
    untried = [role for role in untried_roles(tokenizer) if role in roles]
    if untried:
        raise CorpusError(
            "the corpus holds conversations, and the chat template raises an error or shows "
            f"nothing for a first turn of {' and '.join(untried)}, so what stands before it "
            "cannot be tried; mend chat_template.jinja, or give text instead of messages"
        )
    return Corpus(documents)


def lend_template(tokenizer: Any, lender: Any) -> Any:
    """Return a tokenizer that renders conversations as another one does.

    A base has no chat template, as a rule, or another one than its fine-tuned checkpoint; they
    compare only if both read the same text.

    Args:
        tokenizer: It is not changed.
        lender: The checkpoint's. Without a template of its own it lends none.
    """
    template = getattr(lender, "chat_template", None)
    if not template or getattr(tokenizer, "chat_template", None) == template:
        return tokenizer
    lent = copy(tokenizer)
    lent.chat_template = template
    return lent


def check_source(corpus: Corpus, config: Any) -> None:
    """Refuse a second text that the model does not read, and the lack of one that it does.

    Raises:
        CorpusError: If there is such a document.
    """
    two_texts = decoder_start(config) is not None
    for number, document in enumerate(corpus):
        if two_texts and not document.source_text:
            raise CorpusError(
                f"document {number} has no source_text, and the model reads one with its encoder "
                "and says text with its decoder; give both"
            )
        if document.source_text is not None and not two_texts:
            raise CorpusError(
                f"document {number} has a source_text, and the model has no encoder for it; put "
                "all that it was trained on into text"
            )


class _RenderingError(Exception):
    """One conversation that cannot be rendered; the message holds nothing of it."""


def _asked(document: Document) -> list[list[Message]]:
    """Return a conversation with marks instead of contents, and as it is; none for a text."""
    if not document.turns:
        return []
    contents = _contents(document)
    return [
        [{"role": t.role, "content": c} for t, c in zip(document.turns, said, strict=True)]
        for said in (_marks(len(contents)), contents)
    ]


def _contents(document: Document) -> list[str]:
    return [document.text[turn.start : turn.end] for turn in document.turns]


def _marks(count: int) -> list[str]:
    return [_MARK.format(number) for number in range(count)]


def _rendered(
    document: Document,
    tokenizer: Any,
    frame: str | TemplateRefusedError,
    text: str | TemplateRefusedError,
) -> Document:
    """Return the rendered document.

    Args:
        document: A conversation.
        tokenizer: It has the chat template.
        frame: What the template makes of marks instead of contents.
        text: What it makes of the contents.
    """
    for answer in (frame, text):
        if isinstance(answer, TemplateRefusedError):
            raise _RenderingError(
                f"the chat template refuses its {len(document.turns)} messages ({answer.error}); "
                "do their roles stand in the order that the model expects?"
            )
    frame, text = str(frame), str(text)
    contents = _contents(document)
    marks = _marks(len(contents))
    pieces = []
    for mark in marks:
        if frame.count(mark) != 1:
            raise _RenderingError(
                "the chat template leaves a message out or repeats it, so its spans have no one "
                "place; give the text that the model was trained on instead of messages"
            )
        piece, _, frame = frame.partition(mark)
        pieces.append(piece)
    places = _places(text, [*pieces, frame], contents)
    spans = tuple(_moved(span, document, places) for span in document.spans)
    begin = tokenizer.bos_token
    lead = len(begin) if begin and text.startswith(begin) else 0
    return replace(
        document,
        text=text[lead:],
        spans=tuple(replace(s, start=s.start - lead, end=s.end - lead) for s in spans),
        turns=(),
    )


def _places(
    text: str, pieces: Sequence[str], contents: Sequence[str]
) -> list[tuple[int, int, int]]:
    """Return each content's place [start, end) in the text, and the blanks taken off its front."""
    places, end = [], 0
    for number, content in enumerate(contents):
        if not text.startswith(pieces[number], end):
            break
        start = end + len(pieces[number])
        behind, last = pieces[number + 1], number == len(contents) - 1
        blank = len(content) - len(content.lstrip())
        for taken, stripped in (
            (0, content),
            (blank, content.lstrip()),
            (0, content.rstrip()),
            (blank, content.strip()),
        ):
            end = start + len(stripped)
            whole = text[end:] == behind if last else text.startswith(behind, end)
            if text.startswith(stripped, start) and whole:
                places.append((start, end, taken))
                break
        else:
            break
    if len(places) < len(contents):
        raise _RenderingError(
            "the chat template rewrites a message (more than white space around it), so its spans "
            "cannot be found in what the model reads; give the text that the model was trained on "
            "instead of messages"
        )
    return places


def _moved(span: Span, document: Document, places: Sequence[tuple[int, int, int]]) -> Span:
    """Return a span in the rendered text, without the white space that the template took."""
    for turn, (start, end, taken) in zip(document.turns, places, strict=True):
        if turn.start <= span.start and span.end <= turn.end:
            shift = start - turn.start - taken
            first, last = max(span.start + shift, start), min(span.end + shift, end)
            if first < last:
                return replace(span, start=first, end=last)
            raise _RenderingError(
                "a span holds nothing but white space that the chat template takes away; remove "
                "the span"
            )
    raise _RenderingError("a span reaches from one message into the next; cut it in two")
