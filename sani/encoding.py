"""Documents as tokens: what an identifier touches, what stands before, how long ones are cut.

Shared by audit, erase and repair, so that a token masked in one is the token scored in another.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any

from sani.corpus.documents import Corpus
from sani.errors import AuditError


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
    """

    document: int
    ids: list[int]
    starts: list[int]
    ends: list[int]
    spans: list[tuple[int, int]]

    def in_span(self) -> list[bool]:
        """For each token, whether an identifier touches it."""
        touched = [False] * len(self.ids)
        for first, last in self.spans:
            touched[first:last] = [True] * (last - first)
        return touched


def encode(corpus: Corpus, tokenizer: Any) -> list[Encoded]:
    """Tokenize every document once, keeping where each token stands."""
    result = []
    for number, document in enumerate(corpus):
        encoding = tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        starts = [start for start, _ in encoding["offset_mapping"]]
        ends = [end for _, end in encoding["offset_mapping"]]
        spans = [overlapping(starts, ends, span.start, span.end) for span in document.spans]
        result.append(Encoded(number, encoding["input_ids"], starts, ends, spans))
    return result


def overlapping(starts: list[int], ends: list[int], start: int, end: int) -> tuple[int, int]:
    """Tokens [first, last) that share a character with [start, end); (0, 0) if none does.

    A token of no width (some tokenizers mark one where they normalize) counts if it stands
    strictly inside.
    """
    first, last = bisect_right(ends, start), bisect_left(starts, end)
    return (first, last) if first < last else (0, 0)


@dataclass(frozen=True)
class Framing:
    """What stands before every document: its name and its token ids."""

    name: str
    prefix: tuple[int, ...]


def framings(tokenizer: Any) -> list[Framing]:
    """Every framing that training may plausibly have used, each prefix once.

    ``bos`` the begin token, ``eos`` the end token of a document packed before, ``tokenizer``
    whatever the tokenizer itself puts in front, ``none`` nothing.
    """
    found: dict[tuple[int, ...], Framing] = {}
    for name, prefix in _prefixes(tokenizer).items():
        found.setdefault(prefix, Framing(name, prefix))
    return list(found.values())


def framing_named(name: str, tokenizer: Any) -> Framing:
    """The framing of this name for this tokenizer.

    ``auto`` is the begin token where there is one, which training most often used; an audit tries
    them all instead.

    Raises:
        AuditError: If the tokenizer lacks the token it needs.
    """
    if name == "auto":
        name = "none" if tokenizer.bos_token_id is None else "bos"
    prefix = _prefixes(tokenizer).get(name)
    if prefix is None:
        raise AuditError(f"framing '{name}': the tokenizer has no such token; use auto or none")
    return Framing(name, prefix)


def _prefixes(tokenizer: Any) -> dict[str, tuple[int, ...]]:
    """Each name that this tokenizer has the tokens for, and these; two may be the same."""
    own = tokenizer("", add_special_tokens=True)["input_ids"]
    if own and own[-1] == tokenizer.eos_token_id and own[-1] != tokenizer.bos_token_id:
        own = own[:-1]
    named = {
        "bos": [tokenizer.bos_token_id],
        "eos": [tokenizer.eos_token_id],
        "none": [],
        "tokenizer": own,
    }
    return {name: tuple(ids) for name, ids in named.items() if None not in ids}


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
    found = [Window(item, 0, capacity, 0)]
    while found[-1].end < length:
        end = min(found[-1].end + stride, length)
        found.append(Window(item, end - capacity, end, found[-1].end))
    return found
