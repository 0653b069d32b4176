"""Masked language models: batches of documents with some of their tokens masked.

Outside spans 15 % of the words are masked, whole. Where the objective acts at identifiers, a part
of the occurrences is masked too, as in an audit: the first tokens of the value (none or more) are
visible and all others are masked. All other identifiers stay as context.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sani.errors import RepairError
from sani.recipe import AnchorObjective, RepairSettings
from sani.text.batches import Batch, Row, padded, token_batches
from sani.text.framing import Framing
from sani.text.tokens import Encoded, windows

MASKED_WORDS = 0.15  # share; BERT's and the paper's
# Share; ours. A larger one hides the context by which other occurrences are recalled.
MASKED_OCCURRENCES = 0.3


def check_masked(settings: RepairSettings) -> None:
    """Refuse an objective that has no meaning at a masked token.

    Raises:
        RepairError: If the settings have it.
    """
    objective = settings.identifier_loss
    if isinstance(objective, AnchorObjective) and objective.to == "counterfactual":
        raise RepairError(
            "repair.identifier_loss: a counterfactual anchor is for causal models (at a mask the "
            "words around recall the value, whatever other identifiers say); use an anchor to "
            "base, self or decoys"
        )


def free_words(item: Encoded) -> list[list[int]]:
    """Return the tokens of each word that no span touches."""
    words: dict[int, list[int]] = {}
    for token, word in enumerate(item.words):
        words.setdefault(word, []).append(token)
    inside = item.in_span()
    return [tokens for tokens in words.values() if not any(inside[token] for token in tokens)]


def draw_masks(item: Encoded, chance: random.Random, *, identifier_loss: bool) -> list[bool]:
    """Draw the mask of a document: one boolean for each token.

    Args:
        item: The document.
        chance: Source of the random draws.
        identifier_loss: Whether occurrences are masked too.

    Source: PPmlm, Boutet et al. 2026 (2501.02407): 15 % of words, whole, outside spans only.
    Deviations: a drawn word is always masked (BERT keeps a tenth and changes a tenth); with an
    objective at identifiers, occurrences are masked too.
    """
    masked = [False] * len(item.ids)
    words = free_words(item)
    count = min(len(words), max(1, round(MASKED_WORDS * len(words))))
    for tokens in chance.sample(words, count):
        for token in tokens:
            masked[token] = True
    for first, last in item.spans if identifier_loss else ():
        if first < last and chance.random() < MASKED_OCCURRENCES:
            visible = chance.randrange(last - first)  # tokens of the value, from its first
            masked[first + visible : last] = [True] * (last - first - visible)
    return masked


def masked_batches(
    encoded: Sequence[Encoded],
    framing: Framing,
    *,
    mask: int,
    identifier_loss: bool,
    chance: Callable[[int], random.Random],
    context_tokens: int,
    batch_tokens: int,
) -> list[Batch]:
    """Return batches of masked documents; each masked token is predicted once.

    Args:
        encoded: Documents; those longer than the context are cut into overlapping windows, whose
            overlap is context only.
        framing: Special tokens around every document.
        mask: Id of the mask token.
        identifier_loss: Whether occurrences are masked too.
        chance: Returns the source of random draws for a document, by its number.
        context_tokens: The model's longest input.
        batch_tokens: Maximum number of tokens of a batch, padding included.
    """
    rows: list[Row] = []
    prefix, suffix = list(framing.prefix), list(framing.suffix)
    capacity = context_tokens - len(prefix) - len(suffix)
    for item in encoded:
        masked = draw_masks(item, chance(item.document), identifier_loss=identifier_loss)
        owner = item.owners()
        for window in windows(len(item.ids), item=item.document, capacity=capacity):
            # Windows overlap. A token is predicted in the first window it stands in
            # (token >= window.new) and is context, still masked, in the others.
            tokens = range(window.start, window.end)
            ids = [mask if masked[token] else item.ids[token] for token in tokens]
            occurrences = [
                (len(rows), item.document, owner[token], token)
                if masked[token] and token >= window.new and owner[token] >= 0
                else None
                for token in tokens
            ]
            ordinary = [
                masked[token] and token >= window.new and owner[token] < 0 for token in tokens
            ]
            before, after = len(prefix), len(suffix)
            rows.append(
                Row(
                    [*prefix, *ids, *suffix],
                    [*prefix, *item.ids[window.start : window.end], *suffix],
                    [*[False] * before, *ordinary, *[False] * after],
                    [*[None] * before, *occurrences, *[None] * after],
                )
            )
    batches = token_batches([len(row.ids) for row in rows], budget=batch_tokens)
    return [padded([[rows[index]] for index in batch], both_sides=True) for batch in batches]
