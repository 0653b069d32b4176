"""Inner layers: what the last layer no longer says, a lower one may still know.

Threat: whoever has the weights reads inside them. The logit lens asks each inner layer for its
next token through the model's own head; a linear probe asks whether its hidden state at the end of
a value tells the true one from a decoy.

Cost: for each layer an audit, and for the probe two forward passes over the documents in all.
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
from sani.auditing.occurrences import document_windows, text_row
from sani.auditing.teacher_forcing import Reading
from sani.corpus.documents import Corpus, Place
from sani.intervals import Estimate, clustered_mean
from sani.models import families
from sani.models.checkpoint import Checkpoint
from sani.recipe import LayersSettings
from sani.text.tokens import encode

FOLDS = 5  # ours: of the probe's cross-validation, by subject
PENALTY = 1.0  # ours: ridge penalty on standardized states
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def layers(model: Checkpoint, scene: AttackContext, settings: LayersSettings) -> Iterator[Outcome]:
    """Ask inner layers by the logit lens, then by a linear probe.

    Source: logit lens, nostalgebraist 2020; probes, Alain & Bengio 2016 (1610.01644). Deviations:
    the probe is a ridge regression, judged on subjects it was not fitted on.
    """
    inner = model.text_config.num_hidden_layers - 1
    if inner < 1:
        yield Outcome("lens", not_run="the model has one layer, so no inner one")
        return
    count = min(settings.layers, inner)
    chosen = sorted({round(number) for number in np.linspace(0, inner - 1, count).tolist()})
    for layer in chosen:
        found = scene.score(model, reading=Lens(layer))
        yield Outcome(f"lens, layer {layer}", found, scene.places)
    for layer, auc in zip(chosen, probe(model, scene, chosen), strict=True):
        yield Outcome(f"probe, layer {layer}", auc=auc)


class Lens(Reading):
    """Reads the next token off an inner layer, through the final norm and the head."""

    def __init__(self, layer: int) -> None:
        """Read this layer, from 0."""
        self._layer = layer

    def hidden(self, model: Any, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """Hidden states behind the layer, normed as the last ones are."""
        return families.layer_states(model, [self._layer], cache=cache, **inputs)[0]


def probe(model: Checkpoint, scene: AttackContext, chosen: Sequence[int]) -> list[Estimate]:
    """How often a layer's state at a value's last token tells the true value from a decoy.

    The true values are read in their documents, the decoys in the same documents with all
    identifiers replaced; each pair is judged by a probe fitted on other subjects. 0.5 is chance,
    but what gives a replaced document away does so in the base too, which is the control.

    Returns:
        An estimate for each layer; without trials if there is one subject only.
    """
    replaced, origins = surrogated(scene.annotated, scene.maker)
    decoy_of = dict(zip(origins, all_places(replaced), strict=True))
    asked = {(d, scene.corpus[d].spans[s]) for d, s in scene.places}
    true = [(d, s) for d, s in decoy_of if (d, scene.annotated[d].spans[s]) in asked]
    states = [
        _states(model, scene, corpus, places, chosen)
        for corpus, places in ((scene.annotated, true), (replaced, [decoy_of[p] for p in true]))
    ]  # of each side, of each layer, [n, hidden]; NaN where a value could not be read
    subjects = sorted({document.subject_id for document in scene.corpus})
    scene.chance("folds").shuffle(subjects)
    whose = np.array([subjects.index(scene.annotated[d].subject_id) for d, _ in true])
    found = []
    for one, other in zip(*states, strict=True):
        read = np.isfinite(one[:, 0]) & np.isfinite(other[:, 0])
        beaten = np.full(len(true), np.nan)
        beaten[read] = preferred(one[read], other[read], whose[read] % FOLDS, penalty=PENALTY)
        found.append(clustered_mean(beaten, whose.tolist(), seed=scene.seed))
    return found


def preferred(true: Floats, decoys: Floats, folds: Ints, *, penalty: float) -> Floats:
    """Whether a linear probe fitted on the other folds puts each true value above its decoy, [n].

    Args:
        true: States of the true values, [n, hidden].
        decoys: States of their decoys, [n, hidden].
        folds: Fold of each pair, [n]; NaN comes back where there is no other one.
        penalty: Of the ridge, on standardized states.
    """
    beaten = np.full(len(true), np.nan)
    for fold in np.unique(folds):
        inside = folds == fold
        if inside.all():
            continue
        states = np.concatenate([true[~inside], decoys[~inside]])
        center, spread = states.mean(axis=0), states.std(axis=0) + 1e-6
        sides = np.repeat([1.0, -1.0], int((~inside).sum()))
        standard = (states - center) / spread
        gram = standard.T @ standard / len(standard) + penalty * np.eye(standard.shape[1])
        direction = np.linalg.solve(gram, standard.T @ sides / len(standard)) / spread
        difference = (true[inside] - decoys[inside]) @ direction
        beaten[inside] = 0.5 + 0.5 * np.sign(difference)
    return beaten


@torch.inference_mode()
def _states(
    model: Checkpoint,
    scene: AttackContext,
    corpus: Corpus,
    places: Sequence[Place],
    chosen: Sequence[int],
) -> list[Floats]:
    """Hidden states at each value's last token, for each layer [places, hidden]."""
    framing = scene.frame(model)
    encoded = encode(corpus, model.tokenizer)
    width = model.text_config.hidden_size
    found = [np.full((len(places), width), np.nan) for _ in chosen]
    places_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, (document, span) in enumerate(places):
        first, last = encoded[document].spans[span]
        if first < last:
            places_of[document].append((row, last - 1))
    for document, ends in places_of.items():
        for window in document_windows(model, encoded[document], framing):
            here = [(row, end) for row, end in ends if window.new <= end < window.end]
            if not here:
                continue
            ids = torch.tensor([text_row(model, encoded[document], window, framing).tokens])
            states = families.layer_states(
                model.model, chosen, input_ids=ids.to(model.model.device)
            )
            rows = [row for row, _ in here]
            at = [len(framing.prefix) + end - window.start for _, end in here]
            for layer, hidden in enumerate(states):
                found[layer][rows] = hidden[0, at].double().cpu().numpy()
    return found
