"""The layout of neurons: the numbers of each tensor that belong to one, by names and shapes.

A *neuron* is row j of an MLP block's input projections, with its bias, and column j of its output
projection; where a layer has several blocks (experts), they are numbered through, block by block.
For attention it is a head: its columns of the output projection, and every row of the query, key
and value projections that no head reads but those chosen. So the rows of a key and value head go
once all heads that share it are chosen (grouped-query attention), and query and key rows that are
normalized over all heads together go once all heads of the layer are.

What serves a layer as a whole belongs to no neuron: biases of output projections, norms, routers,
relative position tables. Tensors are named as in the model or as in its file, which may differ, so
what needs no activations needs no model either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from sani.errors import UnsupportedModelError
from sani.models.families import listed_family, text_config
from sani.models.family import Attention, Mlp, Stack
from sani.recipe import Part


@dataclass(frozen=True)
class Slice:
    """Part of one tensor: ``index`` [n] along dimension ``dim`` of the tensor ``name``.

    Of a tensor [experts, out, in] it is part of the matrix of one ``expert``.
    """

    name: str
    dim: int
    index: Tensor
    expert: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the matrix or vector that ``dim`` and ``index`` count in, a view of ``tensor``."""
        return tensor if self.expert is None else tensor[self.expert]


@dataclass(frozen=True)
class Output:
    """A module that takes in the activations of neurons, which are numbered one after the other.

    Attributes:
        name: Name of the module; where one holds all experts, of that.
        neurons: Number of neurons or heads.
        experts: Number of experts in the module; 0 where its input is the activation,
            [..., channels].
        of_source: It stands in the encoder of an encoder-decoder, whose positions predict nothing.
    """

    name: str
    neurons: int
    experts: int = 0
    of_source: bool = False


@dataclass(frozen=True)
class _Block:
    """A block as one layer has it: its row in the table, its expert in a tensor of all of them."""

    row: Mlp | Attention
    expert: int | None
    size: int


class Layout:
    """Places of the neurons of one checkpoint, by its family's row and its own sizes."""

    def __init__(self, config: Any, shapes: Mapping[str, Sequence[int]]) -> None:
        """Look up the family and check that its tensors, and no others, are there.

        Args:
            config: The checkpoint's `PreTrainedConfig`.
            shapes: Shape of every tensor of the checkpoint, by its name in the model or the file.

        Raises:
            UnsupportedModelError: If the family is unknown, or the tensors are not its own.
        """
        self.family = listed_family(config)
        self._model_type: str = config.model_type
        self._shapes = shapes
        self._layers: list[str] = []
        self._blocks: dict[tuple[int, Part], list[_Block]] = {}
        self._lenders = lenders(text_config(config))
        for stack in self.family.stacks:
            prefix, sizes = self._prefix(stack), text_config(config)
            for number in range(getattr(sizes, stack.length)):
                layer = len(self._layers)
                self._layers.append(f"{prefix}.{number}.")
                self._blocks[layer, "mlp"] = self._mlps(layer)
                self._blocks[layer, "attention"] = [
                    _Block(row, None, getattr(sizes, stack.heads))
                    for row in self.family.attention
                    if self._has(layer, row)
                ]
        two_texts = self.family.objective == "seq2seq"
        # Layers that read the first of two texts, and predict nothing.
        self.source_layers: int = getattr(config, self.family.stacks[0].length) if two_texts else 0
        self._check()

    @property
    def num_layers(self) -> int:
        """Return the number of layers of all stacks."""
        return len(self._layers)

    def num_neurons(self, part: Part, *, layer: int) -> int:
        """Return the number of MLP neurons of all experts, or of heads of all attention."""
        return sum(block.size for block in self._blocks[layer, part])

    def outputs(self, part: Part, *, layer: int) -> tuple[Output, ...]:
        """Return the projections that a layer's activations go into, in the neurons' order."""
        outputs: dict[str, Output] = {}
        of_source = layer < self.source_layers
        for block in self._blocks[layer, part]:
            name = self._layers[layer] + block.row.output
            if block.expert is not None:
                name = name.rpartition(".")[0]
            before = outputs.get(name, Output(name, 0, 0, of_source))
            experts = before.experts + (block.expert is not None)
            outputs[name] = replace(before, neurons=before.neurons + block.size, experts=experts)
        return tuple(outputs.values())

    def slices(self, part: Part, *, layer: int, neurons: Iterable[int]) -> list[Slice]:
        """Return every part of every tensor that belongs to these neurons of a layer, each once."""
        chosen, first = set(neurons), 0
        pieces: list[Slice] = []
        for block in self._blocks[layer, part]:
            of_block = [index for index in range(block.size) if first + index in chosen]
            first += block.size
            pieces += self._block_slices(layer, block, of_block)
        return pieces

    def owned(self, part: Part, *, layer: int) -> Iterator[tuple[Slice, Tensor]]:
        """Yield what `slices` gives for each neuron of a layer by itself, all in one pass.

        Yields:
            A slice, and the neuron that each of its indices belongs to, [n].
        """
        first = 0
        for block in self._blocks[layer, part]:
            if isinstance(block.row, Mlp):  # rows of a tensor that stacks two inputs start again
                for piece in self._block_slices(layer, block, list(range(block.size))):
                    of_two = len(piece.index) > block.size
                    rows = piece.index // 2 if of_two and block.row.interleaved else piece.index
                    yield piece, first + rows % block.size
            else:  # rows that heads share are none of one head's
                for head in range(block.size):
                    for piece in self._block_slices(layer, block, [head]):
                        yield piece, torch.full_like(piece.index, first + head)
            first += block.size

    def trained_prefixes(self, last_layers: int) -> tuple[str, ...]:
        """Return the name prefixes of the last ``last_layers`` layers and of the final norm."""
        norm = self.family.stacks[-1].norm
        layers = self._layers[max(0, self.num_layers - last_layers) :]
        is_learned = any(name.startswith(f"{norm}.") for name in self._shapes)  # not in OLMo
        return (*layers, f"{norm}.") if norm and is_learned else tuple(layers)

    def _block_slices(self, layer: int, block: _Block, neurons: list[int]) -> list[Slice]:
        """Return the slices of some neurons of one block, counted from its first."""
        row = block.row
        width = self._matrix(layer, row, row.output)[1] // block.size
        if isinstance(row, Mlp):
            rows, widths = _mlp_rows(row, neurons, block.size), {}
        else:
            rows = self._head_rows(layer, row, neurons, block.size)
            names = row.names if row.latent else ()
            widths = {name: self._matrix(layer, row, name)[0] // block.size for name in names}
        pieces: list[Slice] = []
        for name, numbers in rows.items():
            index = _expand(numbers, widths.get(name, width))
            pieces += self._slices(layer, block, name, 0, index)
        pieces += self._slices(layer, block, row.output, 1, _expand(neurons, width))
        return [piece for piece in pieces if len(piece.index)]

    def _head_rows(
        self, layer: int, row: Attention, heads: list[int], num_heads: int
    ) -> dict[str, list[int]]:
        """Return the rows that no head reads but these, by projection, in widths of a head."""
        num_pairs = self._num_pairs(layer, row, num_heads)
        if row.latent:
            return {row.query: heads, row.key: heads}
        shared = num_heads // num_pairs
        whole = [
            pair
            for pair in range(num_pairs)
            if set(range(pair * shared, (pair + 1) * shared)) <= set(heads)
        ]
        # Rows of a key and value head belong to the chosen heads once these are all that share it.
        queries, keys, values = heads, whole, whole
        if row.normalized_together and len(heads) < num_heads:
            queries, keys = [], []
        if layer in self._lenders:  # layers above read its keys and values too
            keys, values = [], []
        if row.gated:
            queries = [2 * head + half for head in queries for half in (0, 1)]
        if row.interleaved:  # each pair's queries, then its key, then its value
            step = shared + 2
            queries = [head // shared * step + head % shared for head in queries]
            keys = [pair * step + shared for pair in keys]
            values = [pair * step + shared + 1 for pair in values]
        elif row.query == row.key:  # all queries, then all keys, then all values
            keys = [num_heads + pair for pair in keys]
            values = [num_heads + num_pairs + pair for pair in values]
        rows: dict[str, list[int]] = {}
        for name, numbers in ((row.query, queries), (row.key, keys), (row.value, values)):
            rows[name] = sorted({*rows.get(name, []), *numbers})
        rows |= dict.fromkeys(row.positions, queries)
        may_lack = {*row.positions, *row.optional}
        return {name: rows[name] for name in rows if name not in may_lack or self._is(layer, name)}

    def _num_pairs(self, layer: int, row: Attention, num_heads: int) -> int:
        """Return the number of key and value heads; 0 if the tensors' sizes do not fit."""
        width, rest = divmod(self._matrix(layer, row, row.output)[1], num_heads)
        if rest:
            return 0
        if row.latent or not self._is(layer, row.key):
            names = [name for name in (row.query, row.key) if self._is(layer, name)]
            fit = all(self._matrix(layer, row, name)[0] % num_heads == 0 for name in names)
            return num_heads if fit else 0
        rows, rest = divmod(self._matrix(layer, row, row.key)[0], width)
        if row.query == row.key:  # both and the queries
            rows, rest = divmod(rows - num_heads, 2) if not rest else (rows, rest)
        return 0 if rest or num_heads % max(rows, 1) else rows

    def _slices(self, layer: int, block: _Block, name: str, dim: int, index: Tensor) -> list[Slice]:
        """Return rows (``dim`` 0), with their bias, or columns (1) of a projection."""
        stored = 1 - dim if self._transposed(block.row) else dim
        pieces = [Slice(self._tensor(layer, name), stored, index, block.expert)]
        bias = self._bias(layer, name)
        is_own = dim == 0 and bias in self._shapes
        return [*pieces, Slice(bias, 0, index, block.expert)] if is_own else pieces

    def _mlps(self, layer: int) -> list[_Block]:
        """Return the MLP blocks of a layer, an expert each."""
        blocks = []
        for row in self.family.mlp:
            numbered = (_numbered(row, number) for number in count())
            rows = numbered if "{}" in row.output else [row]
            for present in takewhile(lambda one: self._has(layer, one), rows):
                shape = self._shapes[self._tensor(layer, present.output)]
                experts = range(shape[0]) if len(shape) == 3 else [None]
                size = self._matrix(layer, present, present.output)[1]
                blocks += [_Block(present, expert, size) for expert in experts]
        return blocks

    def _check(self) -> None:
        """Refuse tensors that are missing, unknown, or of sizes that do not fit."""
        known: set[str] = set()
        parts: list[tuple[Part, Sequence[Mlp | Attention]]] = [
            ("mlp", self.family.mlp),
            ("attention", self.family.attention),
        ]
        for layer, prefix in enumerate(self._layers):
            known |= {f"{prefix}{name}.weight" for name in self.family.whole}
            mixers = {f"{prefix}{name}.weight" for name in self.family.mixers}
            has_any = bool(mixers & self._shapes.keys())
            has_any |= any(self._blocks[layer, part] for part, _ in parts)
            known |= mixers
            for part, rows in parts:
                if not self._blocks[layer, part] and not (mixers and has_any):
                    missing = self._tensor(layer, rows[0].output)
                    raise self._misfit(f"layer {layer} has no tensor '{missing}'")
                for block in self._blocks[layer, part]:
                    names = [*block.row.names, *getattr(block.row, "positions", ())]
                    known |= {self._tensor(layer, name) for name in names}
                    known |= {self._bias(layer, name) for name in names}
                    if isinstance(block.row, Attention) and not self._num_pairs(
                        layer, block.row, block.size
                    ):
                        raise self._misfit(f"layer {layer} does not divide into {block.size} heads")
        stacks = tuple(f"{self._prefix(stack)}." for stack in self.family.stacks)
        for name, shape in self._shapes.items():
            if len(shape) in (2, 3) and name.startswith(stacks) and name not in known:
                raise self._misfit(f"tensor '{name}' belongs to no neuron known to sani")

    def _misfit(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"model_type '{self._model_type}': {problem}; a quantized or modified checkpoint? Give "
            "the plain one"
        )

    def _prefix(self, stack: Stack) -> str:
        """Return a stack's name in the checkpoint; files of a model without a head drop a part."""
        names = [name for name in (stack.layers, stack.in_file) if name]
        names.append(stack.layers.partition(".")[2])
        for name in names:
            if any(tensor.startswith(f"{name}.0.") for tensor in self._shapes):
                return name
        return stack.layers

    def _has(self, layer: int, row: Mlp | Attention) -> bool:
        optional = row.optional if isinstance(row, Attention) else ()
        return all(self._is(layer, name) for name in row.names if name not in optional)

    def _is(self, layer: int, name: str) -> bool:
        return self._tensor(layer, name) in self._shapes

    def _tensor(self, layer: int, name: str) -> str:
        """Return the name of a module's weight, or of the tensor itself where it is a tensor."""
        name = self._layers[layer] + name
        return name if name in self._shapes else f"{name}.weight"

    def _bias(self, layer: int, name: str) -> str:
        tensor = self._tensor(layer, name)
        return (
            tensor.removesuffix("weight") + "bias" if tensor[-7:] == ".weight" else f"{tensor}_bias"
        )

    def _transposed(self, row: Mlp | Attention) -> bool:
        return self.family.transposed or (isinstance(row, Mlp) and row.transposed)

    def _matrix(self, layer: int, row: Mlp | Attention, name: str) -> tuple[int, int]:
        """Return the rows and columns of a projection, [out, in]."""
        rows, columns = self._shapes[self._tensor(layer, name)][-2:]
        return (columns, rows) if self._transposed(row) else (rows, columns)


def lenders(sizes: Any) -> frozenset[int]:
    """Return the layers whose keys and values others above read, by their configuration (Gemma)."""
    borrowers = getattr(sizes, "num_kv_shared_layers", 0) or 0
    if not borrowers:
        return frozenset()
    own = sizes.layer_types[: sizes.num_hidden_layers - borrowers]
    return frozenset({kind: layer for layer, kind in enumerate(own)}.values())


def _numbered(row: Mlp, number: int) -> Mlp:
    inputs = tuple(name.format(number) for name in row.inputs)
    return replace(row, inputs=inputs, output=row.output.format(number))


def _mlp_rows(row: Mlp, neurons: list[int], size: int) -> dict[str, list[int]]:
    """Return the rows of these neurons, by projection."""
    if row.interleaved:
        both = [2 * neuron + half for neuron in neurons for half in (0, 1)]
        return dict.fromkeys(row.inputs, both)
    return {
        name: [copy * size + neuron for copy in range(row.inputs.count(name)) for neuron in neurons]
        for name in row.inputs
    }


def _expand(numbers: Iterable[int], width: int) -> Tensor:
    """Return the rows or columns of these heads, ``width`` each."""
    starts = torch.tensor(list(numbers), dtype=torch.long) * width
    return (starts[:, None] + torch.arange(width)).flatten()
