"""The examples that each step of a repair reads.

`FixedExamples` are the same in every epoch, so what other models compute on them is computed once.
`DrawnExamples` (surrogates, decoys, masks) are made anew each epoch; only the tokenized documents
stay. Several processes read the same steps, and of each step's batches each process reads its own
rows, maybe none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sani.machine import distributed
from sani.repairing.drawn_examples import DrawnExamples
from sani.repairing.example_source import ExampleSource
from sani.repairing.fixed_examples import FixedExamples
from sani.repairing.frozen_layers import FrozenLayers, hidden_states, nearly_equal

Examples = FixedExamples | DrawnExamples


def make_examples(source: ExampleSource, *, frozen: FrozenLayers | None, folder: Path) -> Examples:
    """Return the examples that the settings ask for, with all that is computed once.

    Args:
        source: What they are made from.
        frozen: The layers that are not trained, or None.
        folder: States are kept here if memory has no room for them.

    Raises:
        CheckpointError: If documents cannot be read with the tokenizer.
    """
    source.checkpoint.check_tokenizer()
    two_texts = source.checkpoint.family.objective == "seq2seq"
    pack = source.settings.pack and not (source.masked or two_texts)
    pack = pack and distributed.on_main(lambda: _packs_exactly(source))
    if source.masked or source.replaces_identifiers:
        return DrawnExamples(source, pack=pack)
    if two_texts:
        frozen = None  # its two stacks read inputs of two lengths: their states are not kept
    return FixedExamples.compute(source, pack=pack, frozen=frozen, folder=folder)


def _packs_exactly(source: ExampleSource) -> bool:
    """Test if a document that follows another in a row is read as if it were alone.

    Most families start attention again where positions start again, but some do not look.
    """
    model = source.checkpoint.model
    for batch in source.batches(source.encoded, pack=True):
        if batch.positions is not None:
            row = int((batch.positions == 0).sum(dim=1).argmax())  # the one of most documents
            starts = (batch.positions[row] == 0).nonzero().flatten().tolist()
            second = slice(starts[1], [*starts, batch.ids.shape[1]][2])
            alone = replace(batch, ids=batch.ids[row : row + 1, second], positions=None)
            model.eval()
            with torch.no_grad():
                packed_states = hidden_states(model, batch.to(model.device))[row, second]
                alone_states = hidden_states(model, alone.to(model.device))[0]
            return nearly_equal(packed_states, alone_states)
    return False
