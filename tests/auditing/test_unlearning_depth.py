"""Unlearning depth: 1 for the base, 0 for the unsanitized model, and what lies between."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sani.auditing.occurrences import Occurrences
from sani.auditing.unlearning_depth import (
    MIN_GAP,
    Models,
    UnlearningDepth,
    depths,
    drawn_places,
    unlearning_depth,
)
from sani.corpus.documents import Corpus, Place
from sani.erasing.reinit import fresh_model
from sani.errors import AuditError, UnsupportedModelError
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.layer_patch import layers_of, patched
from sani.recipe import MaskObjective, RepairSettings
from sani.repairing.repair import repair
from sani.text.framing import framing_named
from sani.text.tokens import encode
from tests.support.architectures import CAUSAL, MASKED, each, tiny_config
from tests.support.clinic import Clinic
from tests.support.optional import present
from tests.support.reports import verdicts_of


def places_of(corpus: Corpus, number: int) -> list[Place]:
    """The first direct occurrences."""
    places = [
        (d, s) for d, doc in enumerate(corpus) for s, span in enumerate(doc.spans)
        if span.kind == "direct"
    ]  # fmt: skip
    return places[:number]


def measured(
    unsanitized: Checkpoint,
    sanitized: Checkpoint,
    base: Checkpoint,
    corpus: Corpus,
    places: Sequence[Place],
    **options: Any,
) -> UnlearningDepth:
    framing = framing_named("bos", unsanitized.tokenizer)
    models = Models(unsanitized, sanitized, base)
    return unlearning_depth(models, corpus, places, framing=framing, **options)


def changed(checkpoint: Checkpoint, change: Any) -> Checkpoint:
    """A copy of a checkpoint with some of its parameters changed in place."""
    copied = replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    with torch.no_grad():
        for name, parameter in copied.model.named_parameters():
            change(name, parameter)
    return copied


# --- models that were really trained --------------------------------------------------------------


def test_the_base_is_as_if_never_trained_and_the_unsanitized_model_hides_nothing(
    leaky: Checkpoint, base: Checkpoint, clinic: Clinic
) -> None:
    places = places_of(clinic.private, 20)
    erased = measured(leaky, base, base, clinic.private, places)
    intact = measured(leaky, leaky, base, clinic.private, places)
    assert (erased.depth.value, intact.depth.value) == (1.0, 0.0)  # to the last digit
    assert erased.occurrences == erased.depth.trials + erased.without_gap == 20
    assert erased.depth.trials > 15
    assert [layer.base for layer in erased.layers] == [layer.sanitized for layer in erased.layers]
    assert all(layer.base > MIN_GAP for layer in erased.layers)
    assert all(layer.sanitized == 0.0 for layer in intact.layers)
    assert set(erased.by_label) == {clinic.private[d].spans[s].label for d, s in places}


def test_what_is_only_prevented_at_the_surface_is_still_inside(
    leaky: Checkpoint, base: Checkpoint, clinic: Clinic
) -> None:
    places, of_base = places_of(clinic.private, 30), dict(base.model.named_parameters())
    last = f".layers.{len(layers_of(leaky.model)) - 1}."

    def final_norm(name: str, parameter: Any) -> None:
        if name.endswith("model.norm.weight"):
            parameter.neg_()  # every likely token becomes an unlikely one

    def last_layer(name: str, parameter: Any) -> None:
        if last in name:
            parameter.copy_(of_base[name])

    surface = measured(leaky, changed(leaky, final_norm), base, clinic.private, places)
    assert surface.depth.value == 0.0
    shallow = measured(leaky, changed(leaky, last_layer), base, clinic.private, places)
    assert 0.0 < present(shallow.depth.value) < 0.3
    assert [layer.sanitized for layer in shallow.layers[:-1]] == [0.0] * (len(shallow.layers) - 1)


@pytest.mark.long
def test_masked_retraining_from_the_base_is_deep(
    leaky: Checkpoint, base: Checkpoint, base_folder: Path, clinic: Clinic
) -> None:
    retrained = load_checkpoint(base_folder)
    settings = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"), epochs=8, learning_rate=5e-3, batch_tokens=768
    )
    repair(retrained, clinic.private, settings, base=None, framing="bos", seed=1)
    result = measured(leaky, retrained, base, clinic.private, places_of(clinic.private, 40))
    assert present(result.depth.low) > 0.9
    assert all(layer.sanitized > 0.5 * layer.base for layer in result.layers)


# --- against a slow version -----------------------------------------------------------------------


def slow_drops(target: Any, source: Any, tokens: list[int], places: list[int]) -> list[float]:
    """Drops of one occurrence with plain hooks on a Llama, layer by layer, without a batch."""
    ids = torch.tensor([tokens])
    layers = len(target.model.layers)

    def log_p() -> float:
        with torch.no_grad():
            scores = target(ids).logits[0].double().log_softmax(dim=-1)
        return float(np.mean([float(scores[place, tokens[place + 1]]) for place in places]))

    states: dict[int, Any] = {}
    hooks = [
        layer.register_forward_hook(
            lambda m, i, out, n=n: states.update({n: (out[0] if isinstance(out, tuple) else out)})
        )
        for n, layer in enumerate(source.model.layers)
    ]
    with torch.no_grad():
        source(ids)
    for hook in hooks:
        hook.remove()
    drops, before = [], log_p()
    for number in range(layers):

        def put(module: Any, inputs: Any, out: Any, number: int = number) -> Any:
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            for place in places:
                hidden[0, place] = states[number][0, place]
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        hook = target.model.layers[number].register_forward_hook(put)
        drops.append(before - log_p())
        hook.remove()
    return drops


def test_each_score_is_that_of_plain_hooks_on_one_occurrence(
    leaky: Checkpoint, base: Checkpoint, clinic: Clinic
) -> None:
    """The sanitized model is half way to the base, so that no ratio is 0 or 1."""
    of_base = dict(base.model.named_parameters())
    half = changed(leaky, lambda name, parameter: parameter.lerp_(of_base[name], 0.5))
    encoded = encode(clinic.private, leaky.tokenizer)
    places = places_of(clinic.private, 12)
    scores = []
    begin = leaky.tokenizer.bos_token_id
    for document, span in places:
        first, last = encoded[document].spans[span]
        tokens = [begin, *encoded[document].ids[:last]]
        predicting = list(range(first, last))  # the begin token shifts all by one
        s1 = slow_drops(leaky.model, base.model, tokens, predicting)
        s2 = slow_drops(leaky.model, half.model, tokens, predicting)
        weights = [gap if gap > 0.05 else 0.0 for gap in s1]
        kept = [min(max(b / a, 0.0), 1.0) if w else 0.0
                for a, b, w in zip(s1, s2, weights, strict=True)]  # fmt: skip
        scores.append(sum(w * k for w, k in zip(weights, kept, strict=True)) / sum(weights))
        one = measured(leaky, half, base, clinic.private, [(document, span)])
        assert [layer.base for layer in one.layers] == pytest.approx(s1, abs=1e-4)
        assert [layer.sanitized for layer in one.layers] == pytest.approx(s2, abs=1e-4)
        assert one.depth.value == pytest.approx(scores[-1], abs=1e-3)
    together = measured(leaky, half, base, clinic.private, places, batch_tokens=600)
    assert 0.1 < np.mean(scores) < 0.9
    assert together.depth.value == pytest.approx(np.mean(scores), abs=1e-3)
    assert together.depth.trials == 12


def test_layers_are_weighted_by_the_gap_of_the_base_and_ratios_are_clipped() -> None:
    base = np.array([[1.0, 3.0, 0.04], [0.0, -1.0, 0.05], [2.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    sanitized = np.array([[0.5, 9.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 5.0], [0.0, 2.0, 2.0]])
    scores = depths(base, sanitized)
    assert scores[0] == pytest.approx((1 * 0.5 + 3 * 1) / 4)
    assert np.isnan(scores[1])  # no layer of the base lacks anything
    assert scores[2] == pytest.approx((2 * 0 + 2 * 0.5) / 4)
    assert scores[3] == 0.0


# --- families, places, errors ---------------------------------------------------------------------


@pytest.mark.parametrize("family", each(CAUSAL))
def test_every_causal_family_can_be_patched(base: Checkpoint, clinic: Clinic, family: str) -> None:
    config = tiny_config(family, vocab_size=len(base.tokenizer))
    models = [
        Checkpoint(fresh_model(config, seed=seed).eval(), base.tokenizer, Path("nowhere"))
        for seed in range(2)
    ]
    unsanitized, other = models
    corpus = Corpus(clinic.private[:1])
    place = [places_of(corpus, 1)[0]]
    result = measured(unsanitized, other, other, corpus, place)
    assert len(result.layers) == len(layers_of(unsanitized.model))
    assert all(layer.base == layer.sanitized for layer in result.layers)
    assert any(layer.base != 0.0 for layer in result.layers)
    itself = measured(unsanitized, unsanitized, other, corpus, place)
    assert all(layer.sanitized == 0.0 for layer in itself.layers)


def test_a_patch_is_gone_behind_its_block(leaky: Checkpoint, base: Checkpoint) -> None:
    ids, places = torch.tensor([[5, 6, 7]]), torch.tensor([[False, True, False]])
    with torch.no_grad():
        before = leaky.model(ids).logits
        with patched(leaky.model, 0, torch.zeros(1, 64), places):
            within = leaky.model(ids).logits
        assert torch.equal(leaky.model(ids).logits, before)
    assert torch.equal(within[:, 0], before[:, 0])
    assert not torch.equal(within[:, 1], before[:, 1])


def test_only_uncued_scored_occurrences_of_the_kinds_are_drawn(clinic: Clinic) -> None:
    corpus = clinic.private
    verdicts: Occurrences = verdicts_of(corpus, memory=0.5, seed=0)
    reasons = verdicts.reason.copy().astype("U9")
    reasons[::7] = "too long"
    verdicts = replace(verdicts, reason=reasons)
    drawn = drawn_places(corpus, verdicts, ["direct"], limit=10**6, seed=0)
    expected = [
        (d, s)
        for d, s, reason, cued in zip(
            verdicts.document, verdicts.span, verdicts.reason, verdicts.cued, strict=True
        )
        if not reason and not cued and corpus[d].spans[s].kind == "direct"
    ]
    assert drawn == expected
    few = drawn_places(corpus, verdicts, ["direct", "indirect"], limit=9, seed=0)
    assert few == drawn_places(corpus, verdicts, ["direct", "indirect"], limit=9, seed=0)
    assert few != drawn_places(corpus, verdicts, ["direct", "indirect"], limit=9, seed=1)
    assert len(set(few)) == 9


def test_what_cannot_be_measured_is_an_error(
    leaky: Checkpoint, base: Checkpoint, clinic: Clinic
) -> None:
    with pytest.raises(AuditError, match=r"set audit\.unlearning_depth to false"):
        measured(leaky, base, base, clinic.private, [])
    place = places_of(clinic.private, 1)

    def break_it(name: str, parameter: Any) -> None:
        parameter.fill_(torch.nan)

    with pytest.raises(AuditError, match="NaN"):
        measured(leaky, changed(base, break_it), base, clinic.private, place)
    config = tiny_config(MASKED[0], vocab_size=len(base.tokenizer))
    masked = Checkpoint(fresh_model(config, seed=0).eval(), base.tokenizer, Path("nowhere"))
    with pytest.raises(UnsupportedModelError, match="this takes a causal one"):
        measured(masked, masked, masked, clinic.private, place)
