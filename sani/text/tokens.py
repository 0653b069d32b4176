"""Documents as tokens: what an identifier touches, what stands before, how long ones are cut.

Shared by audit, erase and repair, so that a token masked in one is the token scored in another.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sani.corpus.documents import Corpus


@dataclass(frozen=True)
class Encoded:
    """One document as tokens.

    Attributes:
        document: Its number in the corpus.
        ids: Token ids, without special tokens.
        starts: First character of each token.
        ends: One past the last character of each token.
        spans: For each span of the document, the tokens [first, last) that overlap it by one
            character or more; (0, 0) for a span that no token covers.
        words: Number of the word that each token is of, from 0, in order.
        source: Token ids of what the encoder of an encoder-decoder model reads, with what its
            tokenizer puts around.
        previous: The document before it in the corpus; None for the first one.
        tokens_before: Number of tokens of all documents before it.
    """

    document: int
    ids: list[int]
    starts: list[int]
    ends: list[int]
    spans: list[tuple[int, int]]
    words: Sequence[int] = ()
    source: Sequence[int] = ()
    previous: Encoded | None = field(default=None, repr=False, compare=False)
    tokens_before: int = field(default=0, compare=False)

    def owners(self) -> list[int]:
        """Return the first span that touches each token; -1 for ordinary text."""
        owner = [-1] * len(self.ids)
        for number in range(len(self.spans) - 1, -1, -1):
            first, last = self.spans[number]
            owner[first:last] = [number] * (last - first)
        return owner

    def source_within(self, most: int) -> Sequence[int]:
        """Return the source, cut to ``most`` tokens as transformers cuts it: the last one stays."""
        if len(self.source) <= most:
            return self.source
        return [*self.source[: most - 1], self.source[-1]]

    def in_span(self) -> list[bool]:
        """Return whether an identifier touches each token."""
        return [owner >= 0 for owner in self.owners()]


def encode(corpus: Corpus, tokenizer: Any) -> list[Encoded]:
    """Tokenize every document once, keeping where each token stands.

    Raises:
        ValueError: If a conversation was not rendered for this tokenizer before.
    """
    result: list[Encoded] = []
    tokens_before = 0
    for number, document in enumerate(corpus):
        if document.turns:
            raise ValueError("a conversation must be rendered before it is tokenized")
        encoding = tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        starts = [start for start, _ in encoding["offset_mapping"]]
        ends = [end for _, end in encoding["offset_mapping"]]
        spans = [overlapping(starts, ends, span.start, span.end) for span in document.spans]
        words = _words(document.text, encoding.word_ids(), starts, ends)
        source = document.source_text and tokenizer(document.source_text, verbose=False)
        result.append(
            Encoded(
                number,
                encoding["input_ids"],
                starts,
                ends,
                spans,
                words,
                source["input_ids"] if source else (),
                result[-1] if result else None,
                tokens_before,
            )
        )
        tokens_before += len(encoding["input_ids"])
    return result


def _words(
    text: str, word_ids: Sequence[int | None], starts: Sequence[int], ends: Sequence[int]
) -> list[int]:
    """Return the number of each token's word: the tokenizer's words, cut at white space.

    Some tokenizers (SentencePiece without pre-tokenization) call a whole document one word.
    """
    words: list[int] = []
    for token, word in enumerate(word_ids):
        if token == 0:
            words.append(0)
            continue
        between = text[ends[token - 1] : starts[token] + 1]
        new = word is None or word != word_ids[token - 1] or any(map(str.isspace, between))
        words.append(words[-1] + new)
    return words


def overlapping(starts: list[int], ends: list[int], start: int, end: int) -> tuple[int, int]:
    """Return the tokens [first, last) that share a character with [start, end), or (0, 0).

    A token of no width (some tokenizers mark one where they normalize) counts if it stands
    strictly inside.
    """
    first, last = bisect_right(ends, start), bisect_left(starts, end)
    return (first, last) if first < last else (0, 0)


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) of one encoded document, read with the framing in front.

    Tokens from ``new`` on are this window's to score; those before it were scored by an earlier
    one and are here as context.
    """

    item: int
    start: int
    end: int
    new: int


def windows(length: int, *, item: int, capacity: int) -> list[Window]:
    """Cut a document of ``length`` tokens into windows of at most ``capacity``.

    A document that fits is one window. Further windows overlap by half, so that every token is
    scored once with at least half a window of left context.
    """
    if length <= capacity:
        return [Window(item, 0, length, 0)]
    stride = max(1, capacity // 2)
    cut = [Window(item, 0, capacity, 0)]
    while cut[-1].end < length:
        end = min(cut[-1].end + stride, length)
        cut.append(Window(item, end - capacity, end, cut[-1].end))
    return cut
