"""Inputs of the model behind a cached text: the tokens of trees, and who of them sees what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sani.auditing.rows import Tree
from sani.models.configurations import sliding_window


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return token ids [rows, longest], padded behind, where no token that is read sees it."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, tokens in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
    return ids


def tree_inputs(model: Any, trees: Sequence[Tree], *, text_length: int) -> dict[str, Any]:
    """Return the nodes of trees as inputs behind a cached text.

    Returns:
        Token ids and position ids, [trees, nodes], and the additive attention mask, [trees, 1,
        nodes, text_length + nodes], or one for each type of layer.
    """
    ids = padded([tree.tokens for tree in trees])
    num_nodes = ids.shape[1]
    positions = np.zeros(ids.shape, dtype=np.int64)
    # Added to the scores: a mask of booleans would be added as 0 and 1 by eager attention.
    hidden = torch.finfo(model.dtype).min
    mask = np.full((*ids.shape, text_length + num_nodes), hidden, dtype=np.float32)
    every = np.arange(num_nodes)
    mask[:, every, text_length + every] = 0.0  # padding too: a row of the softmax must see one
    for number, tree in enumerate(trees):
        for depth, (nodes, parents) in enumerate(tree.levels):
            if depth == 0:
                above = np.array(parents)
                positions[number, nodes] = above + 1
                before = np.arange(text_length)[None] <= above[:, None]
                mask[number, nodes, :text_length] = np.where(before, 0.0, hidden)
            else:
                # A node sees itself and all that its parent sees.
                positions[number, nodes] = positions[number, parents] + 1
                mask[number, nodes] = np.maximum(mask[number, nodes], mask[number, parents])
    return {
        "input_ids": ids.to(model.device),
        "position_ids": torch.from_numpy(positions).to(model.device),
        "attention_mask": _masks_of_layers(model, mask, positions, text_length),
    }


def _masks_of_layers(
    model: Any, mask: NDArray[np.float32], positions: NDArray[np.int64], text_length: int
) -> Tensor | dict[str, Tensor]:
    """Return the mask of all layers, or where only some have a sliding window, that of each type.

    Args:
        model: The model.
        mask: Additive mask of layers that see everything, [trees, nodes, text_length + nodes].
        positions: Position of each node, [trees, nodes].
        text_length: Positions of the text.
    """

    def on_device(values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values)[:, None].to(model.device, model.dtype)

    window = sliding_window(model.config)
    if window is None:
        return on_device(mask)
    text = np.broadcast_to(np.arange(text_length), (len(positions), text_length))
    seen = np.concatenate([text, positions], axis=1)[:, None]
    near = positions[:, :, None] - seen < window.tokens
    windowed = np.where(near, mask, torch.finfo(model.dtype).min).astype(np.float32)
    if not window.some_layers:
        return on_device(windowed)
    return {"full_attention": on_device(mask), "sliding_attention": on_device(windowed)}
