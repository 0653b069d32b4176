"""Decoys and swaps as tokens: the tokens that a value would have in an identifier's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sani.corpus.documents import Corpus
from sani.text.tokens import Encoded
from sani.values.decoys import DecoyMaker

# Tokens before the identifier that are tokenized again with each value: enough that the last of
# them is tokenized as in the whole document, and few, for every decoy is tokenized on its own.
CONTEXT_TOKENS = 8
REDRAWN = 8  # how many times as many values to draw where too few fit


def decoy_tokens(
    tokenizer: Any, corpus: Corpus, item: Encoded, span: int, maker: DecoyMaker, *, count: int
) -> list[tuple[int, list[int]]]:
    """Return the tokens of up to ``count`` decoys in the place of an occurrence.

    Each comes with its number among the decoys of its value: the same number stands for the same
    decoy wherever the value occurs.

    Args:
        tokenizer: The checkpoint's tokenizer.
        corpus: The documents.
        item: The occurrence's document as tokens.
        span: Number of the occurrence's span.
        maker: Makes the decoys.
        count: Maximum number of decoys.
    """
    document = corpus[item.document]
    target = document.spans[span]
    value = document.value(target)
    return _in_place(
        tokenizer,
        corpus,
        item,
        span,
        lambda drawn: maker.decoys(target.label, value, count=drawn),
        count,
    )


def swap_tokens(
    tokenizer: Any, corpus: Corpus, item: Encoded, span: int, maker: DecoyMaker, *, count: int
) -> list[tuple[int, list[int]]]:
    """Return the tokens of up to ``count`` other subjects' values in the place of an occurrence.

    Arguments as for `decoy_tokens`.
    """
    document = corpus[item.document]
    target = document.spans[span]
    value = document.value(target)
    return _in_place(
        tokenizer,
        corpus,
        item,
        span,
        lambda drawn: maker.swaps(target.label, value, document.subject_id, count=drawn),
        count,
    )


def _in_place(
    tokenizer: Any,
    corpus: Corpus,
    item: Encoded,
    span: int,
    draw: Callable[[int], list[str]],
    count: int,
) -> list[tuple[int, list[int]]]:
    """Tokenize values between the same neighbours as the occurrence.

    A value that would merge with the token before it cannot follow the context as it stands: it is
    left out, and more values are drawn where that leaves too few.

    Args:
        tokenizer: The checkpoint's tokenizer.
        corpus: The documents.
        item: The occurrence's document as tokens.
        span: Number of the occurrence's span.
        draw: Returns up to so many values; fewer of them are the first of more.
        count: Maximum number of values.
    """
    document = corpus[item.document]
    target = document.spans[span]
    first, last = item.spans[span]
    lead = max(0, first - CONTEXT_TOKENS)
    begin = item.ends[lead - 1] if lead else 0
    head = document.text[begin : target.start]
    tail = document.text[target.end : item.ends[last - 1]]
    # The identifier's first token may start before the span: what stands before it is context.
    context_end = (item.ends[first - 1] if first else 0) - begin
    candidates: list[tuple[int, list[int]]] = []
    for drawn in (count, REDRAWN * count):
        values = draw(drawn) if count else []
        if not values:
            return []
        encodings = tokenizer(
            [head + value + tail for value in values],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        candidates = []
        tokens = zip(encodings["input_ids"], encodings["offset_mapping"], strict=True)
        for number, (ids, offsets) in enumerate(tokens):
            # The value follows the context if a token ends where the context ends, and it is the
            # same token as in the document.
            known = sum(end <= context_end for _, end in offsets)
            follows = not first or (
                known > 0
                and offsets[known - 1][1] == context_end
                and ids[known - 1] == item.ids[first - 1]
            )
            if follows and known < len(ids):
                candidates.append((number, ids[known:]))
        if len(candidates) >= count:
            break
    return candidates[:count]
