"""A row of the table of model families; the table itself is `sani.models.families`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Objective = Literal["causal", "masked", "seq2seq"]


@dataclass(frozen=True)
class Mlp:
    """A block of neurons, named from its layer; a layer has those whose tensors are all there.

    Attributes:
        inputs: Projections into the neurons; two for a gated MLP. The same name twice means one
            tensor that stacks both.
        output: Projection out of them; its input is the neurons' activation.
        transposed: Weights are [in, out], whatever those of other blocks are.
        interleaved: In a tensor that stacks two inputs, rows of both take turns.

    ``{}`` stands for the number of an expert. A tensor [experts, out, in] is as many blocks; its
    biases, if any, are a tensor of their own, with ``_bias`` behind its name.
    """

    inputs: tuple[str, ...]
    output: str
    transposed: bool = False
    interleaved: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the projections that make up the block."""
        return (*self.inputs, self.output)


@dataclass(frozen=True)
class Attention:
    """A block of heads, named from its layer; a layer has those whose tensors are all there.

    Attributes:
        query, key, value: Projections of the heads. The same name three times means one tensor
            that stacks query, key and value in this order.
        output: Projection out of the heads; its input is the heads' output.
        interleaved: The stacked tensor goes through the key and value heads: the queries that
            share one, its key, its value, then the next.
        positions: Further projections with the heads' rows, where they are there.
        normalized_together: Queries, and keys, are normalized over all heads of the layer.
        gated: Each head has as many rows again behind its query's, which gate its output.
        latent: Keys and values are made from one latent vector, a pair for each head; their rows
            are of other widths than the heads' outputs.
        optional: Projections that a layer may lack: its values are its keys, or both are those of
            a layer below.
    """

    query: str
    key: str
    value: str
    output: str
    interleaved: bool = False
    positions: tuple[str, ...] = ()
    normalized_together: bool = False
    gated: bool = False
    latent: bool = False
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the projections that make up the block."""
        return (self.query, self.key, self.value, self.output)


@dataclass(frozen=True)
class Stack:
    """A list of layers.

    Attributes:
        layers: Its name, from the top of the model.
        norm: Final norm behind it, from the top of the model; empty if there is none.
        length: Field of the configuration with the number of layers.
        heads: Field of the configuration with the number of attention heads.
        in_file: Name of ``layers`` in files, if another.
    """

    layers: str
    norm: str = ""
    length: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    in_file: str = ""


@dataclass(frozen=True)
class Family:
    """Names and shapes of the weights of one architecture.

    Attributes:
        stacks: Its layers. Encoder before decoder, numbered through, so the last layers are those
            before the output.
        mlp, attention: Blocks that its layers may have.
        objective: Prediction of the next token, of masked tokens, or of a second text.
        head: Modules of a masked language model from hidden states to logits, in order.
        scaled: Field of the configuration that says if the states of a decoder are divided by the
            root of their width before the head; empty for none.
        transposed: Weights are [in, out] (``Conv1D``) instead of [out, in] (``Linear``).
        whole: Matrices of a layer that belong to no neuron.
        mixers: Matrices of a layer's linear attention, state space or convolution, none of whose
            numbers is a head's. Where a family has them, a layer may lack heads, or neurons.
        token_tables: Tables with a row for each token besides embedding and head, named from where
            the layers are; in a model that has them.
        vision: Also reads images; the configuration of its text tower is nested, and only that
            tower is erased.
        sdpa: Transformers has fused attention for it.
        branches: It obeys given positions and masks, so that several continuations of one text
            can be read in one pass. False where attention makes its own (ALiBi, windows).
        cached: Keys and values of a text are all that is needed to read on behind it. False where
            a layer keeps a state instead.
        padded_in_front: It reads a text behind padding as it reads it alone.
        own_head: Logits are scaled or squeezed behind the head's matrix, by the model's own code.
        positions_behind_padding: Positions are numbered from behind the padding token's number.
        read_from_outside: Modules whose weights the module around them reads before it calls
            them, or without a call.
        listed: It is in the table; False for one that is only audited, of which no layer is known.
    """

    stacks: tuple[Stack, ...]
    mlp: tuple[Mlp, ...]
    attention: tuple[Attention, ...]
    objective: Objective = "causal"
    head: tuple[str, ...] = ()
    scaled: str = ""
    transposed: bool = False
    whole: tuple[str, ...] = ()
    mixers: tuple[str, ...] = ()
    token_tables: tuple[str, ...] = ()
    vision: bool = False
    sdpa: bool = True
    branches: bool = True
    cached: bool = True
    padded_in_front: bool = True
    own_head: bool = False
    positions_behind_padding: bool = False
    read_from_outside: tuple[str, ...] = ()
    listed: bool = True
