"""Text that a model wrote behind a prompt: which identifiers it holds that the prompt does not."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sani.auditing.cues import CueFinder
from sani.auditing.identifier_index import DecoyIndex, IdentifierIndex
from sani.auditing.prompts import Prompt

# Scripts that are written without blanks: no word goes on there.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
REMEMBERED = 2**16  # verdicts on a prompt and a value: the same prompt is sampled many times
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """One sample as text.

    Attributes:
        prompt: The prompt, framing included.
        text: What the model wrote behind it, from its first whole word on.
    """

    prompt: str
    text: str


def written(
    tokenizer: Any, prompts: Sequence[Prompt], continuations: Sequence[tuple[int, ...]]
) -> list[Written]:
    """Return every sample as text."""
    heads = {p.tokens: _decoded(tokenizer, p.tokens) for p in prompts}
    return [
        Written(
            heads[p.tokens],
            _behind(heads[p.tokens], _decoded(tokenizer, (*p.tokens, *tokens))),
        )
        for p, tokens in zip(prompts, continuations, strict=True)
    ]


def search_continuations(index: IdentifierIndex, samples: Sequence[Written]) -> Ints:
    """Find every identifier in every continuation that does not stand in its prompt.

    A date that a prompt leaves open does not give away the same date written out.

    Returns:
        Sample, identifier, and 1 if found exactly, [hits, 3].
    """
    given: dict[str, dict[int, bool]] = {}
    hits: list[tuple[int, int, int]] = []
    for number, sample in enumerate(samples):
        if sample.prompt not in given:
            given[sample.prompt] = {h.identifier: h.exact for h in index.find(sample.prompt)}
        known = given[sample.prompt]
        for hit in index.find(sample.text):
            if hit.identifier not in known or (hit.exact and not known[hit.identifier]):
                hits.append((number, hit.identifier, int(hit.exact)))
    return np.array(hits, dtype=np.int64).reshape(-1, 3)


class CuedByPrompt:
    """Tells whether a prompt gives an identifier, or a decoy of it, away; see `cues`."""

    def __init__(self, index: IdentifierIndex, samples: Sequence[Written]) -> None:
        self._index = index
        self._samples = samples
        self._cued = lru_cache(REMEMBERED)(_cued)

    def of(self, hits: Ints) -> Bools:
        """Return which of the hits their prompts give away, [hits].

        Args:
            hits: Sample and identifier of each, then anything, [hits, columns].
        """
        pairs = [(int(sample), int(identifier)) for sample, identifier, *_ in hits.tolist()]
        return np.array(
            [
                self._cued(self._samples[sample].prompt, self._index.label_and_value(identifier)[1])
                for sample, identifier in pairs
            ],
            dtype=np.bool_,
        )

    def decoy(self, sample: int, value: str) -> bool:
        """Return whether the prompt of a sample gives a decoy away."""
        return self._cued(self._samples[sample].prompt, value)


def search_decoys(decoys: DecoyIndex, samples: Sequence[Written], cued: CuedByPrompt) -> Ints:
    """Find every decoy in every continuation whose prompt gives away neither it nor its value.

    So a decoy has no chance to come up where its value has none.

    Returns:
        Sample, identifier, and number of the decoy among those of the identifier, [hits, 3].
    """
    hits = [
        (number, identifier, decoy)
        for number, sample in enumerate(samples)
        for identifier, decoy in decoys.find(sample.text)
        if not cued.decoy(number, decoys.value(identifier, decoy))
    ]
    rows = np.array(hits, dtype=np.int64).reshape(-1, 3)
    return rows[~cued.of(rows)]


def _cued(prompt: str, value: str) -> bool:
    """Return whether all that tells of a value stands in a prompt."""
    finder = CueFinder(f"{prompt}\n{value}")
    start = len(prompt) + 1
    return finder.cued(start, start + len(value), [(0, len(prompt))])


def _behind(head: str, whole: str) -> str:
    """Return the text behind a prompt, without the rest of a word or number that the prompt began.

    Digits behind letters are not that word going on (``NHC`` and 12345678), nor are characters of
    a script that is written without blanks. The whole may differ from the prompt's end: bytes of
    half a character show as a mark.
    """
    pairs = enumerate(zip(head, whole, strict=False))
    begin = next((at for at, (one, other) in pairs if one != other), min(len(head), len(whole)))
    going_on = _character_class(whole[begin - 1]) if begin else None
    while (
        going_on is not None and begin < len(whole) and _character_class(whole[begin]) == going_on
    ):
        begin += 1
    return whole[begin:]


def _character_class(character: str) -> str | None:
    """Return letter or digit; None for a character that no word goes on with."""
    if character.isdigit():
        return "digit"
    unspaced = unicodedata.name(character, "").startswith(UNSPACED)
    return "letter" if character.isalpha() and not unspaced else None


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text with special tokens in it: without them, words around one would join."""
    text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    return text
