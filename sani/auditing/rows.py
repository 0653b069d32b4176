"""Inputs of the model: framed windows of documents, and the decoys that branch off them.

A row is a text with a list of reads. A read asks at a position of the text for the log-probability
of one target token, and names the slot of the result in which it goes. Decoys hang behind the text
as trees of tokens, so that decoys with the same first tokens share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sani.models.checkpoint import Checkpoint
from sani.text.packing import FramedWindow
from sani.text.tokens import Encoded

# Tokens of a tree, at least. Every node attends over a mask of all nodes, so the cost of a tree
# grows with the square of its size, while each further tree costs one more pass.
MIN_TREE = 64

Reads = list[tuple[int, int, int]]  # (position, target, slot)


@dataclass
class Tree:
    """Tokens of decoys behind a text, read in one pass.

    Attributes:
        tokens: Token of each node.
        reads: (node, target, slot): the log-probability of ``target`` behind ``node``.
        levels: For each depth, from the text outwards: the nodes of that depth, and for each of
            them its parent. A parent is a position of the text at depth 0 and a node below that.
    """

    tokens: list[int] = field(default_factory=list)
    reads: Reads = field(default_factory=list)
    levels: list[tuple[list[int], list[int]]] = field(default_factory=list)
    _nodes: dict[tuple[int, int, int], int] = field(default_factory=dict, init=False, repr=False)

    def child(self, parent: int, token: int, *, depth: int) -> int:
        """Return the node for this token below that parent, and add it if it is not there yet."""
        index = self._nodes.setdefault((depth, parent, token), len(self.tokens))
        if index == len(self.tokens):
            self.tokens.append(token)
            if depth == len(self.levels):
                self.levels.append(([], []))
            nodes, parents = self.levels[depth]
            nodes.append(index)
            parents.append(parent)
        return index


@dataclass
class Row:
    """One input of the model, and the reads on it.

    Attributes:
        tokens: Token ids of the text.
        reads: (position, target, slot): the log-probability of ``target`` at ``position``.
        trees: Other continuations of the text, from positions within it.
        source: Token ids for the encoder of an encoder-decoder model.
    """

    tokens: list[int]
    reads: Reads = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    source: Sequence[int] = ()

    def add_branch(self, position: int, tokens: Sequence[int], slots: Sequence[int]) -> None:
        """Add the reads of ``tokens`` as a continuation of the text up to ``position``.

        Args:
            position: The last position of the text before the branch.
            tokens: Tokens of the branch. Leading tokens that another branch at the same position
                has too are shared.
            slots: The slot of each token.
        """
        # The first token is predicted by the text itself, the last one predicts nothing.
        self.reads.append((position, tokens[0], slots[0]))
        if len(tokens) == 1:
            return
        # Branches come in the order of their positions. A tree of neighbouring positions needs only
        # the text before the last of them, so a full tree is closed and a new one begun.
        max_nodes = max(len(self.tokens) // 4, MIN_TREE)
        if not self.trees or len(self.trees[-1].tokens) + len(tokens) > max_nodes:
            self.trees.append(Tree())
        tree, node = self.trees[-1], position
        for depth, token in enumerate(tokens[:-1]):
            node = tree.child(node, token, depth=depth)
            tree.reads.append((node, tokens[depth + 1], slots[depth + 1]))

    def without_trees(self) -> list[Row]:
        """Return rows with the same reads, each branch behind its own copy of the text.

        For models that cannot read behind a cache. Reads of a node go to the longest branch
        through it, so a branch that is the beginning of another one costs no row.
        """
        rows: list[Row] = []
        for tree in self.trees:
            texts: list[list[int]] = [[] for _ in tree.tokens]  # up to each node
            parent_of: dict[int, int] = {}
            for depth, (nodes, parents) in enumerate(tree.levels):
                for node, parent in zip(nodes, parents, strict=True):
                    before = texts[parent] if depth else self.tokens[: parent + 1]
                    texts[node] = [*before, tree.tokens[node]]
                    if depth:
                        parent_of[node] = parent
            row_of: dict[int, Row] = {}
            for node in reversed(range(len(tree.tokens))):  # nodes stand behind their parents
                if node not in row_of:
                    row_of[node] = Row(texts[node], source=self.source)
                    rows.append(row_of[node])
                if node in parent_of:
                    row_of.setdefault(parent_of[node], row_of[node])
            for node, target, slot in tree.reads:
                row_of[node].reads.append((len(texts[node]) - 1, target, slot))
        return [Row(self.tokens, self.reads, source=self.source), *rows]


def text_row(checkpoint: Checkpoint, item: Encoded, framed: FramedWindow) -> Row:
    """Return a framed window as an input of the model, without reads."""
    return Row(framed.tokens(item), source=item.source_within(checkpoint.context_tokens))
