"""What models that are not trained say at identifier positions: the anchor's hidden states.

Hidden states and not logits are kept: they are smaller by the ratio of vocabulary to hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sani.corpus.documents import Corpus
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.surrogates import Surrogates
from sani.text.batches import Batch
from sani.text.tokens import Encoded, encode


def states_at(model: Any, batch: Batch, where: Tensor) -> Tensor:
    """The model's last hidden states at chosen positions of a batch, [n, hidden]."""
    with torch.no_grad():
        batch = batch.to(model.device)
        return hidden_states(model, batch)[where.to(model.device)].clone()


def counterfactual_states(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    surrogates: Surrogates,
    *,
    make_batches: Callable[[Sequence[Encoded]], list[Batch]],
    samples: int,
) -> dict[tuple[int, int], Tensor]:
    """What a model says at each identifier token if every identifier of the document is another.

    It never reads the true value: the token at place i of an identifier is predicted as the one at
    place i of the surrogate, or as the surrogate's last where that is shorter. A model that
    memorized the value itself would complete it behind its first tokens, in any document.

    Args:
        model: The unsanitized model, in evaluation mode.
        tokenizer: Its tokenizer.
        encoded: The documents, with their identifiers.
        surrogates: Makes the other identifiers.
        make_batches: Makes batches of replaced documents.
        samples: Replaced documents for each document; the anchor is their mean.

    Returns:
        For each document and identifier token, [samples, hidden].

    Source: ours; a counterfactual teacher, as in Eldan & Russinovich 2023 (2310.02238), who
    replace names by generic ones and train on the prediction.
    """
    found: dict[tuple[int, int], list[Tensor]] = {}
    for sample in range(samples):
        others = []
        for item in encoded:
            document, _ = surrogates.document(item.document, round=-1 - sample)
            (other,) = encode(Corpus([document]), tokenizer)
            others.append(replace(other, document=item.document))
        said: dict[tuple[int, int], Tensor] = {}
        for batch in make_batches(others):
            states = states_at(model, batch, batch.identifier).cpu()
            for (_, number, _, token), state in zip(
                batch.occurrences.tolist(), states, strict=True
            ):
                said[number, token] = state
        nothing = torch.zeros(model.config.hidden_size, dtype=model.dtype)  # even predictions
        for item, other in zip(encoded, others, strict=True):
            for token, span in enumerate(item.owners()):
                if span >= 0:
                    (begin, _), (first, last) = item.spans[span], other.spans[span]
                    place = min(first + token - begin, last - 1)
                    state = said.get((item.document, place), nothing)
                    found.setdefault((item.document, token), []).append(state)
    return {key: torch.stack(states) for key, states in found.items()}
