"""Hidden states of models that are not trained, at the positions where a term of the loss reads.

Hidden states are kept and not logits: they are smaller by vocabulary size / hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sani.corpus.documents import Corpus
from sani.models.passes import PassGroup
from sani.models.streaming import run_passes
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.surrogates import Surrogates
from sani.text.batches import Batch
from sani.text.tokens import Encoded, encode


@dataclass(frozen=True)
class Teachers:
    """Models that are not trained, where the settings need them.

    Attributes:
        base: The base model, for an anchor to it.
        unsanitized: The model as it was before any erasing.
    """

    base: Any = None
    unsanitized: Any = None


def states_at(
    model: Any,
    batches: Sequence[Batch],
    positions: Callable[[Batch], Tensor],
    keep: Callable[[int, Tensor], None],
) -> None:
    """Compute the model's last hidden states at chosen positions of batches.

    Args:
        model: In evaluation mode.
        batches: On any device.
        positions: Returns the mask of the positions of a batch, [batch, seq], bool. A batch without
            any is not read.
        keep: Called with the number of each batch that is read and its states, [n, hidden].
    """

    def read(number: int, batch: Batch) -> None:
        # A copy: a view would keep the states of all positions alive.
        chosen = positions(batch).to(model.device)
        keep(number, hidden_states(model, batch.to(model.device))[chosen].clone())

    with torch.no_grad():
        run_passes(
            model,
            (
                PassGroup([partial(read, number, batch)], batch.ids.numel())
                for number, batch in enumerate(batches)
                if positions(batch).any()
            ),
        )


def counterfactual_states(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    surrogates: Surrogates,
    *,
    make_batches: Callable[[Sequence[Encoded]], list[Batch]],
    samples: int,
) -> dict[tuple[int, int], Tensor]:
    """Return a model's states at identifier tokens if every identifier of a document is another.

    The model never reads the true value. The token at index i of an identifier is predicted where
    the surrogate's token i stands, or its last token where the surrogate is shorter. A model that
    memorized the value itself would complete it after its first tokens, in any document.

    Args:
        model: The unsanitized model, in evaluation mode.
        tokenizer: Its tokenizer.
        encoded: The documents, with their identifiers.
        surrogates: Makes the other identifiers.
        make_batches: Makes batches of replaced documents.
        samples: Replaced documents for each document; the anchor is the mean of their predictions.

    Returns:
        For each (document, token) of an identifier, [samples, hidden].

    Source: ours; a counterfactual teacher, as in Eldan & Russinovich 2023 (2310.02238), who
    replace names by generic ones and train on the prediction.
    """
    states: dict[tuple[int, int], list[Tensor]] = {}
    for sample in range(samples):
        replaced = []
        for item in encoded:
            # Rounds below 0 are never drawn by an epoch, so the two draw different surrogates.
            document, _ = surrogates.document(item.document, round=-1 - sample)
            (other,) = encode(Corpus([document]), tokenizer)
            replaced.append(replace(other, document=item.document))
        at_token = _states_of_identifiers(model, make_batches(replaced))
        # A surrogate's first token may have no prediction (nothing stands before it): states of 0
        # give even logits.
        zero = torch.zeros(model.config.hidden_size, dtype=model.dtype)
        for item, other in zip(encoded, replaced, strict=True):
            for token, span in enumerate(item.owners()):
                if span >= 0:
                    (begin, _), (first, last) = item.spans[span], other.spans[span]
                    index = min(first + token - begin, last - 1)
                    state = at_token.get((item.document, index), zero)
                    states.setdefault((item.document, token), []).append(state)
    return {key: torch.stack(samples_of) for key, samples_of in states.items()}


def _states_of_identifiers(model: Any, batches: Sequence[Batch]) -> dict[tuple[int, int], Tensor]:
    """Return a model's states at each (document, token) of an identifier, [hidden] each."""
    states: dict[tuple[int, int], Tensor] = {}

    def keep(number: int, hidden: Tensor) -> None:
        places = batches[number].occurrences.tolist()
        for (_, document, _, token), state in zip(places, hidden.cpu(), strict=True):
            states[document, token] = state

    states_at(model, batches, lambda batch: batch.identifier, keep)
    return states
