"""Greedy decoding of spaCy's ``ner``: what its own loop finds, with all tokens scored at once.

spaCy takes one token of each text at a time and asks of every move whether it is valid, which costs
twice as much as the network. Outside an entity the scores of a token do not depend on the moves
before it, so they are one matrix product; step by step goes only what lies within an entity.

Source: spaCy's transition system of entities (``spacy/pipeline/_parser_internals/ner.pyx``) and its
parser model (``spacy/ml/parser_model.pyx``). Deviations: none for texts without preset entities and
sentence boundaries, which is what a pipeline with ``ner`` alone reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEATURES = 3  # token, first token of the open entity, token before: spaCy's features of entities
Entity = tuple[int, int, str]  # first token, one past the last token, label


class GreedyDecoder:
    """The weights and the moves of a component ``ner``.

    Args:
        ner: An `EntityRecognizer` for which `can_decode` is true.
    """

    def __init__(self, ner: Any) -> None:
        self._tok2vec = ner.model.get_ref("tok2vec")
        self._lower = ner.model.get_ref("lower")
        upper = ner.model.get_ref("upper")
        self._weights: NDArray[np.float32] = upper.get_param("W").T  # [hidden, moves]
        self._bias: NDArray[np.float32] = upper.get_param("b")
        moves = [name.partition("-") for name in _move_names(ner)]
        self._labels = [label for _, _, label in moves]
        self._opening = _positions(moves, "B")
        self._outside = np.array([move == "O" or (move in "BU" and bool(label))
                                  for move, _, label in moves])  # fmt: skip
        self._at_end = self._outside & np.array([move != "B" for move, *_ in moves])
        self._on_blank = np.array([move == "O" for move, *_ in moves])
        self._units = _positions(moves, "U")
        inner, last = ({label: n for n, (move, _, label) in enumerate(moves) if move == one}
                       for one in "IL")  # fmt: skip
        self._inside = {label: (inner[label], last[label]) for label in inner.keys() & last.keys()}

    def entities(self, documents: Sequence[Any]) -> list[list[Entity]]:
        """Return the entities of each document, in order."""
        documents = list(documents)
        # One row for padding, then one a token: [1 + tokens, features, hidden, pieces].
        summands = self._lower.predict(self._tok2vec.predict(documents))
        best = self._best_outside(summands, documents)
        entities, first = [], 0
        for document in documents:
            last = first + len(document)
            entities.append(list(self._walk(best[first:last], summands, first)))
            first = last
        return entities

    def _best_outside(self, summands: Any, documents: Sequence[Any]) -> NDArray[np.int64]:
        """Return the best valid move of each token while no entity is open, [tokens]."""
        from spacy.attrs import IS_SPACE

        scores = self._scores(summands[1:, 0] + summands[0, 1] + summands[0, 2])
        scores[:, ~self._outside] = -np.inf
        ends = np.cumsum([len(document) for document in documents]) - 1
        blank = np.concatenate([document.to_array(IS_SPACE) for document in documents]) > 0
        for rows, valid in ((ends, self._at_end), (blank, self._on_blank)):
            scores[rows] = np.where(valid, scores[rows], -np.inf)
        best: NDArray[np.int64] = scores.argmax(axis=1)
        return best

    def _walk(self, best: NDArray[np.int64], summands: Any, offset: int) -> Iterator[Entity]:
        """Yield the entities of one document, whose first token has this row in the batch."""
        free = 0  # the first token that no entity has taken
        for start in np.flatnonzero(self._opening[best] | self._units[best]).tolist():
            if start < free:
                continue
            free, label = start + 1, self._labels[best[start]]
            if self._opening[best[start]]:
                inner, last = self._inside[label]
                while free < len(best) - 1 and not self._closes(
                    summands, offset + start, offset + free, inner, last
                ):
                    free += 1
                free += 1
            yield start, free, label

    def _closes(self, summands: Any, start: int, token: int, inner: int, last: int) -> bool:
        """Return whether a token is the last one of the open entity."""
        row = summands[token + 1, 0] + summands[start + 1, 1] + summands[token, 2]
        scores = self._scores(row[None])[0]
        # Of equal scores spaCy takes the move that stands first.
        return bool(
            scores[last] > scores[inner] or (scores[last] == scores[inner] and last < inner)
        )

    def _scores(self, sums: Any) -> Any:
        """Return the scores of all moves, [tokens, moves]."""
        hidden = (sums + self._lower.get_param("b")).max(axis=-1)  # maxout: [tokens, hidden]
        return hidden @ self._weights + self._bias


def can_decode(ner: Any) -> bool:
    """Return whether a component ``ner`` has the form that `GreedyDecoder` decodes.

    Every other one, such as one with beam search, is left to spaCy.
    """
    model = ner.model
    if getattr(model, "name", "") != "parser_model" or not model.attrs.get("has_upper"):
        return False
    if model.attrs.get("unseen_classes") or ner.cfg.get("beam_width") != 1:
        return False
    lower = model.get_ref("lower")
    if lower.get_dim("nF") != _FEATURES or lower.get_dim("nP") < 2:
        return False
    moves = set(_move_names(ner))
    labels = {move.partition("-")[2] for move in moves} - {""}
    return model.ops.device_type == "cpu" and all(
        f"{kind}-{label}" in moves for kind in "BILU" for label in labels
    )


def _positions(moves: Sequence[tuple[str, str, str]], kind: str) -> NDArray[np.bool_]:
    return np.array([move == kind and bool(label) for move, _, label in moves])


def _move_names(ner: Any) -> list[str]:
    """Return the name of every move, of the one without a label too, which ``move_names`` omits."""
    return [ner.moves.get_class_name(number) for number in range(ner.moves.n_moves)]
