"""Continuations: the pieces of values that follow each other, counted as Kneser and Ney do."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable

# Where a piece stands: backoff contexts, which hold the pieces before it, from narrow to wide, then
# unigram contexts, which do not.
Contexts = tuple[tuple[Hashable, ...], tuple[Hashable, ...]]
Entry = tuple[Contexts, tuple[str, int]]  # (piece, number of its value)
_SHARED = -2  # stands for the number of a value where a piece is of several


def continuations(entries: list[Entry]) -> dict[Hashable, list[tuple[str, int]]]:
    """Return for each context the pieces that stand in it with the numbers of their values, sorted.

    Interpolated Kneser-Ney: a wider backoff context counts in how many narrower ones a piece
    stands and not how often, so each narrower context passes one of each piece on to it.
    """
    items_of: dict[Hashable, list[tuple[str, int]]] = {}
    level = 0
    while entries:
        groups: dict[Hashable, list[Entry]] = defaultdict(list)
        for contexts, item in entries:
            backoff_contexts, unigram_contexts = contexts
            if level < len(backoff_contexts):
                groups[backoff_contexts[level]].append((contexts, item))
            for context in unigram_contexts if level == len(backoff_contexts) else ():
                items_of.setdefault(context, []).append(item)
        entries = []
        for context, group in groups.items():
            group.sort(key=lambda entry: entry[1])
            if len(group) > 1:
                items_of[context] = [item for _, item in group]
            for text, same in itertools.groupby(group, key=lambda entry: entry[1][0]):
                (contexts, (_, number)), *others = same
                if any(other != number for _, (_, other) in others):
                    number = _SHARED
                entries.append((contexts, (text, number)))
        level += 1
    return {context: sorted(items) for context, items in items_of.items()}
