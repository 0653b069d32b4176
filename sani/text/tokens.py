"""Documents as tokens: what an identifier touches, what stands before, how long ones are cut.

Shared by audit, erase and repair, so that a token masked in one is the token scored in another.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
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
        words: Number of the word that each token is of, from 0, in order.
        source: Token ids of what the encoder of an encoder-decoder model reads, with what its
            tokenizer puts around.
    """

    document: int
    ids: list[int]
    starts: list[int]
    ends: list[int]
    spans: list[tuple[int, int]]
    words: Sequence[int] = ()
    source: Sequence[int] = ()

    def owners(self) -> list[int]:
        """For each token, the first span that touches it; -1 for ordinary text."""
        owner = [-1] * len(self.ids)
        for number in range(len(self.spans) - 1, -1, -1):
            first, last = self.spans[number]
            owner[first:last] = [number] * (last - first)
        return owner

    def source_within(self, most: int) -> Sequence[int]:
        """The source, if longer cut to so many tokens as transformers does: the last one stays."""
        if len(self.source) <= most:
            return self.source
        return [*self.source[: most - 1], self.source[-1]]

    def in_span(self) -> list[bool]:
        """For each token, whether an identifier touches it."""
        return [owner >= 0 for owner in self.owners()]


def encode(corpus: Corpus, tokenizer: Any) -> list[Encoded]:
    """Tokenize every document once, keeping where each token stands.

    Raises:
        ValueError: If a conversation was not rendered for this tokenizer before.
    """
    result = []
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
            )
        )
    return result


def _words(
    text: str, own: Sequence[int | None], starts: Sequence[int], ends: Sequence[int]
) -> list[int]:
    """Number of each token's word: the tokenizer's own words, cut at white space.

    Some tokenizers (SentencePiece without pre-tokenization) call a whole document one word.
    """
    words: list[int] = []
    for token, word in enumerate(own):
        if token == 0:
            words.append(0)
            continue
        between = text[ends[token - 1] : starts[token] + 1]
        new = word is None or word != own[token - 1] or any(map(str.isspace, between))
        words.append(words[-1] + new)
    return words


def overlapping(starts: list[int], ends: list[int], start: int, end: int) -> tuple[int, int]:
    """Tokens [first, last) that share a character with [start, end); (0, 0) if none does.

    A token of no width (some tokenizers mark one where they normalize) counts if it stands
    strictly inside.
    """
    first, last = bisect_right(ends, start), bisect_left(starts, end)
    return (first, last) if first < last else (0, 0)


@dataclass(frozen=True)
class Framing:
    """What stands around every document: its name, the tokens before and the tokens behind."""

    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()


# Stands for a packed document's predecessor: any text will do, what counts is that some is there.
_PREDECESSOR = "The patient was seen again and went home. There were no further complaints. " * 3
_MARK = "\u2603"


def framings(tokenizer: Any, *, masked: bool = False, start: int | None = None) -> list[Framing]:
    """Every framing that training may plausibly have used, each prefix once.

    ``bos`` the begin token, ``eos`` the end token of a document packed before, ``eos-bos`` both,
    ``packed`` a whole document and the end token, ``newline`` an empty line, ``chat-user`` and
    ``chat-assistant`` the chat template's opening of a turn, ``tokenizer`` whatever the tokenizer
    itself puts around it, ``none`` nothing; for a masked language model only the last two. With
    ``start``, what a decoder begins with, only ``tokenizer`` and ``start``, and no more than it.
    """
    found: dict[tuple[int, ...], Framing] = {}
    for name, framing in _framings(tokenizer, start).items():
        if not masked or name in ("tokenizer", "none"):
            found.setdefault(framing.prefix, framing)
    return list(found.values())


def framing_named(
    name: str, tokenizer: Any, *, masked: bool = False, start: int | None = None
) -> Framing:
    """The framing of this name for this tokenizer.

    ``auto`` is the begin token where there is one, which training most often used, else, and for
    a masked or an encoder-decoder model, what the tokenizer itself does; an audit tries them all
    instead.

    Raises:
        AuditError: If the tokenizer lacks the token or the template it needs.
    """
    known = _framings(tokenizer, start)
    if name == "auto":
        name = "bos" if "bos" in known and not masked else "tokenizer"
    if name not in known:
        raise AuditError(
            f"framing '{name}': the tokenizer has no token or template for it; it has "
            f"{', '.join(known)}"
        )
    return known[name]


def _framings(tokenizer: Any, start: int | None = None) -> dict[str, Framing]:
    """Each framing that this tokenizer has the tokens for; two may be the same."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    own = tokenizer("", add_special_tokens=True)["input_ids"]
    behind: list[int] = []
    if own and own[-1] in (eos, tokenizer.sep_token_id) and own[-1] != bos:
        own, behind = own[:-1], own[-1:]
    if tokenizer.sep_token_id is None:  # a causal model does not see what stands behind
        behind = []

    if start is not None:
        return {
            "tokenizer": Framing("tokenizer", (start, *own)),
            "start": Framing("start", (start,)),
        }

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    named: dict[str, list[int | None]] = {
        "bos": [bos],
        "eos": [eos],
        "eos-bos": [eos, bos],
        "none": [],
        "tokenizer": [*own],
        "newline": [*plain("\n\n")],
        "packed": [*plain(_PREDECESSOR), eos if eos is not None else bos],
    }
    for role in ("user", "assistant"):
        opening = _chat_opening(tokenizer, role)
        if opening is not None:
            named[f"chat-{role}"] = [*plain(opening)]
    return {
        name: Framing(
            name,
            tuple(id_ for id_ in ids if id_ is not None),
            tuple(behind) if name == "tokenizer" else (),
        )
        for name, ids in named.items()
        if None not in ids
    }


def _chat_opening(tokenizer: Any, role: str) -> str | None:
    """What the chat template puts before the first words of a role; None without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    question = [] if role == "user" else [{"role": "user", "content": ""}]
    try:
        text = tokenizer.apply_chat_template(
            [*question, {"role": role, "content": _MARK}], tokenize=False
        )
    except Exception:  # a template may refuse a role in any way it likes
        return None
    return str(text).partition(_MARK)[0] if _MARK in text else None


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
