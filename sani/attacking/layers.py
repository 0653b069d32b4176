"""Inner layers: a lower layer may still know what the last layer no longer says.

Threat: the adversary has the weights and reads inside them. The logit lens asks an inner layer for
its next token through the model's own head. A linear probe asks whether the hidden state at the
end of a value tells the true value from a decoy.

Cost: one audit a layer, and for the probe two forward passes over the documents in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sani.attacking.context import AttackContext, Outcome, all_places, surrogated
from sani.auditing.teacher_forcing import LogitReader
from sani.corpus.documents import Place
from sani.intervals import Estimate, clustered_mean
from sani.models import families
from sani.models.checkpoint import Checkpoint
from sani.recipe import LayersSettings
from sani.text.packing import framed_windows
from sani.text.tokens import Encoded, encode

FOLDS = 5  # ours: of the probe's cross-validation, by subject
PENALTY = 1.0  # ours: ridge penalty on standardized states
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def layers(
    model: Checkpoint, context: AttackContext, settings: LayersSettings
) -> Iterator[Outcome]:
    """Ask inner layers by the logit lens, then by a linear probe.

    Source: logit lens, nostalgebraist 2020; probes, Alain & Bengio 2016 (1610.01644). Deviation:
    the probe is a ridge regression, judged on subjects that it was not fitted on.
    """
    num_inner = model.text_config.num_hidden_layers - 1
    if num_inner < 1:
        yield Outcome("lens", not_run="the model has one layer, so no inner one")
        return
    count = min(settings.layers, num_inner)
    chosen = sorted({round(number) for number in np.linspace(0, num_inner - 1, count).tolist()})
    for layer in chosen:
        occurrences = context.score(model, reader=LensReader(layer))
        yield Outcome(f"lens, layer {layer}", occurrences, context.places)
    for layer, auc in zip(chosen, probe(model, context, chosen), strict=True):
        yield Outcome(f"probe, layer {layer}", auc=auc)


class LensReader(LogitReader):
    """Logits of an inner layer, through the final norm and the model's own head."""

    def __init__(self, layer: int) -> None:
        """Read this layer, counted from 0."""
        self._layer = layer

    def hidden(self, model: Any, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """Return the layer's hidden states with the final norm applied, [batch, seq, hidden]."""
        return families.layer_states(model, [self._layer], cache=cache, **inputs)[0]


def probe(model: Checkpoint, context: AttackContext, chosen: Sequence[int]) -> list[Estimate]:
    """Measure how often a layer's state at a value's last token tells the true value from a decoy.

    True values are read in their documents. Decoys are read in the same documents with all
    identifiers replaced. Each pair is judged by a probe fitted on other subjects; 0.5 is chance.
    Traces of the replacement itself tell the two apart in the base too, which is the control.

    Returns:
        An estimate for each layer; without trials if there is only one subject.
    """
    replaced, origins = surrogated(context.annotated, context.maker)
    decoy_of = dict(zip(origins, all_places(replaced), strict=True))
    attacked = {(d, context.corpus[d].spans[s]) for d, s in context.places}
    true = [(d, s) for d, s in decoy_of if (d, context.annotated[d].spans[s]) in attacked]
    states = [
        _states(model, context, encoded, places, chosen)
        for encoded, places in (
            (context.encoded_annotated(model), true),
            (encode(replaced, model.tokenizer), [decoy_of[place] for place in true]),
        )
    ]  # of each side, of each layer, [n, hidden]; NaN where a value could not be read
    # Folds by subject: a probe that saw other values of the same subject would know the person.
    subjects = sorted({document.subject_id for document in context.corpus})
    context.chance("folds").shuffle(subjects)
    subject = np.array([subjects.index(context.annotated[d].subject_id) for d, _ in true])
    estimates = []
    for true_states, decoy_states in zip(*states, strict=True):
        read = np.isfinite(true_states[:, 0]) & np.isfinite(decoy_states[:, 0])
        beaten = np.full(len(true), np.nan)
        beaten[read] = preferred(
            true_states[read], decoy_states[read], subject[read] % FOLDS, penalty=PENALTY
        )
        estimates.append(clustered_mean(beaten, subject.tolist(), seed=context.seed))
    return estimates


def preferred(true: Floats, decoys: Floats, folds: Ints, *, penalty: float) -> Floats:
    """Judge each pair by a linear probe that was fitted on the other folds.

    The probe is a ridge regression on standardized states with target +1 for true values and -1
    for decoys: w = (X'X / m + penalty I)^-1 X'y / m over the m states of the other folds.

    Args:
        true: States of the true values, [n, hidden].
        decoys: States of their decoys, [n, hidden].
        folds: Fold of each pair, [n].
        penalty: Ridge penalty, on standardized states.

    Returns:
        1 where the true value's state scores above its decoy's, 0 where it scores below, 0.5 for
        a tie, NaN where there is no other fold, [n].
    """
    beaten = np.full(len(true), np.nan)
    for fold in np.unique(folds):
        inside = folds == fold
        if inside.all():
            continue
        states = np.concatenate([true[~inside], decoys[~inside]])
        # A dimension that is constant over the states would be divided by 0.
        center, spread = states.mean(axis=0), states.std(axis=0) + 1e-6
        sides = np.repeat([1.0, -1.0], int((~inside).sum()))
        standard = (states - center) / spread
        gram = standard.T @ standard / len(standard) + penalty * np.eye(standard.shape[1])
        direction = np.linalg.solve(gram, standard.T @ sides / len(standard)) / spread
        # The center cancels in the difference of a pair.
        difference = (true[inside] - decoys[inside]) @ direction
        beaten[inside] = 0.5 + 0.5 * np.sign(difference)
    return beaten


@torch.inference_mode()
def _states(
    model: Checkpoint,
    context: AttackContext,
    encoded: Sequence[Encoded],
    places: Sequence[Place],
    chosen: Sequence[int],
) -> list[Floats]:
    """Return hidden states at each value's last token, for each layer [places, hidden]."""
    framing = context.framing(model)
    width = model.text_config.hidden_size
    states = [np.full((len(places), width), np.nan) for _ in chosen]
    ends_of: dict[int, list[tuple[int, int]]] = defaultdict(list)  # document -> (row, last token)
    for row, (document, span) in enumerate(places):
        first, last = encoded[document].spans[span]
        if first < last:
            ends_of[document].append((row, last - 1))
    for document, ends in ends_of.items():
        item = encoded[document]
        for framed in framed_windows(item, framing, context_tokens=model.context_tokens):
            window = framed.window
            here = [(row, end) for row, end in ends if window.new <= end < window.end]
            if not here:
                continue
            ids = torch.tensor([framed.tokens(item)])
            by_layer = families.layer_states(
                model.model, chosen, input_ids=ids.to(model.model.device)
            )
            rows = [row for row, _ in here]
            positions = [len(framed.before) + end - window.start for _, end in here]
            for layer, hidden in enumerate(by_layer):
                # float64: the probe's normal equations square the states.
                states[layer][rows] = hidden[0, positions].double().cpu().numpy()
    return states
