"""Learned masks, and the positive control of every selector: neurons known to hold the memory."""

import copy
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from scipy.stats import hypergeom
from torch.nn import functional

from sani.corpus.documents import Corpus, Document
from sani.erasing import hard_concrete
from sani.erasing.erase import erase
from sani.erasing.plan import layout_of, plan_erase
from sani.erasing.selector_batches import Texts
from sani.errors import SelectionError
from sani.models import families
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.recipe import (
    ActivationRatioSelector,
    EraseSettings,
    FisherRatioSelector,
    GradientRatioSelector,
    HardConcreteSelector,
    IntegratedGradientsSelector,
    RandomSelector,
)
from sani.recipe.settings import Part
from tests.support.clinic import Clinic

LABEL = "NAME"
NAMES, OTHERS = 0, 2  # the layer whose planted neurons hold the names, and that of all the rest
PLANTED = 12
LAYERS = 3


def plant(checkpoint: Checkpoint, corpus: Corpus, layer: int, neurons: Any) -> None:
    """Neurons that held nothing learn a corpus' identifiers; no other weight changes.

    They start silent, so that without them the model is the one that never saw these documents,
    and at every other token they are held to what the model said before.
    """
    *rows, columns = layout_of(checkpoint).slices("mlp", layer=layer, neurons=neurons)
    model, chance = checkpoint.model, torch.Generator().manual_seed(layer)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for piece in rows:
            fresh = 0.1 * torch.randn(len(neurons), weights[piece.name].shape[1], generator=chance)
            weights[piece.name].index_copy_(piece.dim, piece.index, fresh)
        weights[columns.name].index_fill_(columns.dim, columns.index, 0.0)
    own = {
        piece.name: torch.zeros_like(weights[piece.name]).index_fill_(piece.dim, piece.index, 1.0)
        for piece in (*rows, columns)
    }
    batches = Texts(checkpoint, corpus).batches()

    def logits(batch: Any, where: Any) -> Any:
        hidden = families.hidden_states(model, input_ids=batch.ids)
        return families.logits(model, hidden[where])

    with torch.no_grad():
        before = [logits(batch, batch.ordinary).softmax(-1) for batch in batches]
    optimizer = torch.optim.Adam([weights[name] for name in own], lr=2e-2)
    for _ in range(100):
        for batch, kept in zip(batches, before, strict=True):
            hidden = families.hidden_states(model, input_ids=batch.ids)
            learned = families.logits(model, hidden[batch.identifier])
            loss = functional.cross_entropy(learned, batch.targets[batch.identifier])
            same = families.logits(model, hidden[batch.ordinary])
            (loss + functional.cross_entropy(same, kept)).backward()
            for name, mask in own.items():
                weights[name].grad *= mask
            optimizer.step()
            model.zero_grad()


def of_labels(corpus: Corpus, wanted: Any) -> Corpus:
    return Corpus(
        [
            Document(d.id, d.subject_id, d.text, tuple(s for s in d.spans if wanted(s.label)))
            for d in corpus
        ]
    )


@pytest.fixture(scope="module")
def few(clinic: Clinic) -> Corpus:
    """Documents that the planted neurons know by heart."""
    return Corpus(clinic.private[:2])


@pytest.fixture(scope="module")
def planted(base_folder: Path, few: Corpus) -> Any:
    """The base with planted neurons, and which these are: {layer: neurons}."""
    checkpoint = load_checkpoint(base_folder)
    width = layout_of(checkpoint).num_neurons("mlp", layer=0)
    chance = torch.Generator().manual_seed(9)
    neurons = {
        layer: torch.randperm(width, generator=chance)[:PLANTED].sort().values.tolist()
        for layer in (NAMES, OTHERS)
    }
    plant(checkpoint, of_labels(few, lambda label: label == LABEL), NAMES, neurons[NAMES])
    plant(checkpoint, of_labels(few, lambda label: label != LABEL), OTHERS, neurons[OTHERS])
    return checkpoint, neurons


@pytest.fixture(scope="module")
def masked(planted: Any, few: Corpus) -> Any:
    """An erase of the neurons that learned masks close."""
    return chosen_by(HardConcreteSelector, planted, few)


def losses(checkpoint: Checkpoint, corpus: Corpus, label: Any = None) -> dict[str, Any]:
    """Mean loss on identifier tokens and on ordinary ones."""
    found: dict[Any, Any] = {"identifier": [], "ordinary": []}
    with torch.no_grad():
        for batch in Texts(checkpoint, corpus).batches(label):
            hidden = families.hidden_states(checkpoint.model, input_ids=batch.ids)
            logits = families.logits(checkpoint.model, hidden)
            for sort, values in found.items():
                where = getattr(batch, sort)
                values.append(
                    functional.cross_entropy(logits[where], batch.targets[where], reduction="none")
                )
    return {sort: float(torch.cat(values).mean()) for sort, values in found.items()}


SELECTORS: dict[Any, Any] = {
    RandomSelector: {},
    ActivationRatioSelector: {},
    GradientRatioSelector: {},
    FisherRatioSelector: {},
    IntegratedGradientsSelector: {"occurrences": 8},
    HardConcreteSelector: {"steps": 150},
}


def chosen_by(selector: Any, planted: Any, corpus: Corpus, *, reset: Any = "zero") -> Any:
    """An erase of as many neurons as are planted, over all layers: (model, plan, how many hit)."""
    checkpoint, neurons = planted
    sick = copy.deepcopy(checkpoint)
    width = layout_of(sick).num_neurons("mlp", layer=0)
    kind = selector.model_fields["kind"].annotation.__args__[0]
    fraction = 2 * PLANTED / (LAYERS * width)
    rule = selector(kind=kind, fraction=fraction, per="model", **SELECTORS[selector])
    settings = EraseSettings(last_layers=LAYERS, parts=("mlp",), selector=rule, reset=reset)
    plan = erase(sick, corpus, settings).plan
    assert plan.num_neurons == 2 * PLANTED
    hits = sum(len(set(e.neurons) & set(neurons.get(e.layer, ()))) for e in plan.entries)
    return sick, plan, hits


def chance_of(hits: Any, planted: Any) -> float:
    """How likely a random choice of as many neurons finds at least so many of the planted."""
    width = layout_of(planted[0]).num_neurons("mlp", layer=0)
    return float(hypergeom.sf(hits - 1, LAYERS * width, 2 * PLANTED, 2 * PLANTED))


def test_the_planted_neurons_are_what_recites(planted: Any, base_folder: Path, few: Corpus) -> None:
    sick, neurons = planted
    base, before = losses(load_checkpoint(base_folder), few), losses(sick, few)
    assert before["identifier"] < 1.0 < 4.0 < base["identifier"]
    cured = copy.deepcopy(sick)
    weights = dict(cured.model.named_parameters())
    for layer, own in neurons.items():
        (output,) = layout_of(cured).outputs("mlp", layer=layer)
        with torch.no_grad():
            weights[f"{output.name}.weight"][:, own] = 0
    after = losses(cured, few)
    assert after["identifier"] > 4.0
    assert after["ordinary"] < before["ordinary"] + 0.2


@pytest.mark.parametrize(
    ("selector", "least"),
    [
        (ActivationRatioSelector, 10),
        (GradientRatioSelector, 8),
        (FisherRatioSelector, 6),
        (IntegratedGradientsSelector, 16),
    ],
)
def test_every_selector_finds_planted_neurons_far_above_chance(
    selector: type, least: int, planted: Any, few: Corpus
) -> None:
    _, _, hits = chosen_by(selector, planted, few)
    assert hits >= least
    assert chance_of(hits, planted) < 1e-3


def test_a_random_choice_finds_few_planted_neurons_and_leaves_the_memory(
    planted: Any, few: Corpus
) -> None:
    sick, _, hits = chosen_by(RandomSelector, planted, few)
    assert chance_of(hits, planted) > 1e-3
    assert losses(sick, few)["identifier"] < 3.0


def test_hard_concrete_finds_the_planted_neurons_and_closing_them_cures(
    planted: Any, few: Corpus, masked: Any
) -> None:
    sick, plan, hits = masked
    assert hits >= 18  # of 24; a random choice finds 1.1 on average
    assert chance_of(hits, planted) < 1e-12
    before, after = losses(planted[0], few), losses(sick, few)
    assert before["identifier"] < 1.0
    assert after["identifier"] > 4.0
    assert after["ordinary"] < before["ordinary"] + 0.3
    layers = {row["layer"]: row for row in plan.selector_result["layers"]}
    assert set(layers) == {0, 1, 2}
    assert all(row["total"] == 170 for row in layers.values())
    assert layers[1]["closed"] < min(layers[NAMES]["closed"], layers[OTHERS]["closed"])


def test_hard_concrete_says_which_label_a_planted_neuron_serves(planted: Any, masked: Any) -> None:
    _, plan, _ = masked
    owners = {
        (row["layer"], row["neuron"]): row["label"] for row in plan.selector_result["neurons"]
    }
    of = {
        layer: [owners[layer, n] for n in planted[1][layer] if (layer, n) in owners]
        for layer in (NAMES, OTHERS)
    }
    assert min(map(len, of.values())) >= 6
    assert of[NAMES].count(LABEL) > 0.8 * len(of[NAMES])
    assert of[OTHERS].count(LABEL) < 0.2 * len(of[OTHERS])
    specific = {row["layer"]: row["specific"] for row in plan.selector_result["layers"]}
    for layer, counts in specific.items():
        for label in {*counts, LABEL}:
            shares = [
                row["share"]
                for row in plan.selector_result["neurons"]
                if (row["layer"], row["label"]) == (layer, label)
            ]
            assert counts.get(label, 0) == sum(share > 0.5 for share in shares)
    assert specific[NAMES][LABEL] >= 3


# ---- the parts of it -------------------------------------------------------------------------


def test_the_penalty_is_how_often_a_mask_is_drawn_closed() -> None:
    score = torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0])
    drawn = hard_concrete._draw(score, rows=40_000, chance=torch.Generator().manual_seed(0))
    expected = (drawn == 0).double().mean()
    torch.testing.assert_close(hard_concrete._closed([score]).double(), expected, rtol=0, atol=5e-3)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert (drawn == 1).any()


def test_the_mask_without_noise_is_stretched_and_clipped() -> None:
    scores = torch.tensor([-5.0, math.log(0.5), 0.0, 5.0])
    expected = [0.0, 1.2 / 3 - 0.1, 0.5, 1.0]
    torch.testing.assert_close(hard_concrete.mask(scores), torch.tensor(expected))


def sites_of(checkpoint: Checkpoint) -> Any:
    layout = layout_of(checkpoint)
    sites: list[tuple[int, Part]] = [
        (layer, part) for layer in range(LAYERS) for part in get_args(Part)
    ]
    outputs = {site: layout.outputs(site[1], layer=site[0]) for site in sites}
    return outputs, {site: layout.num_neurons(site[1], layer=site[0]) for site in sites}


def test_a_mask_of_zeros_and_ones_is_a_zero_reset(planted: Any, few: Corpus) -> None:
    sick = copy.deepcopy(planted[0])
    outputs, sizes = sites_of(sick)
    rule = RandomSelector(kind="random", fraction=0.5)
    settings = EraseSettings(last_layers=LAYERS, selector=rule, reset="zero")
    plan = plan_erase(sick, settings)
    masks = {site: torch.ones(size) for site, size in sizes.items()}
    for entry in plan.entries:
        masks[entry.layer, entry.part][list(entry.neurons)] = 0
    (batch, *_) = Texts(sick, few).batches()
    with torch.no_grad(), hard_concrete.masked(sick.model, outputs, masks):
        silenced = families.hidden_states(sick.model, input_ids=batch.ids)
    with torch.no_grad():
        before = families.hidden_states(sick.model, input_ids=batch.ids)
        erase(sick, None, settings)
        after = families.hidden_states(sick.model, input_ids=batch.ids)
    assert (before - after).abs().max() > 0.1
    torch.testing.assert_close(silenced, after, rtol=0, atol=1e-4)


def test_the_shares_of_a_label_sum_to_the_rise_of_its_loss(
    planted: Any, few: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard_concrete, "PATH_STEPS", 16)
    sick, _ = planted
    outputs, sizes = sites_of(sick)
    chance = torch.Generator().manual_seed(3)
    scores = {site: 1 + torch.randn(size, generator=chance) for site, size in sizes.items()}
    masks = {site: hard_concrete.mask(score) for site, score in scores.items()}
    texts = Texts(sick, few)
    labels = texts.labels[:3]
    found = hard_concrete.report(sick.model, texts.batches, labels, outputs, scores)
    assert list(found["labels"]) == labels
    for label, rise in found["labels"].items():
        before = losses(sick, few, label)["identifier"]
        with hard_concrete.masked(sick.model, outputs, masks):
            after = losses(sick, few, label)["identifier"]
        assert rise == pytest.approx(after - before, abs=0.03)
    assert max(found["labels"].values()) > 0.5
    for row in found["layers"]:
        site = row["layer"], row["part"]
        assert (row["closed"], row["total"]) == (int((masks[site] < 0.5).sum()), sizes[site])
    assert sum(row["closed"] for row in found["layers"]) == len(found["neurons"]) > 5


def test_the_same_seed_gives_the_same_scores_and_leaves_no_trace(planted: Any, few: Corpus) -> None:
    sick, _ = planted
    outputs, sizes = sites_of(sick)
    settings = HardConcreteSelector(kind="hard_concrete", fraction=0.1, steps=3)
    state = torch.random.get_rng_state()
    first, again, other = (
        hard_concrete.learn_scores(
            sick.model, Texts(sick, few).batches(), outputs, settings, seed=seed
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert any(not torch.equal(first[site], other[site]) for site in first)
    assert {site: len(score) for site, score in first.items()} == sizes
    assert all(p.grad is None and p.requires_grad for p in sick.model.parameters())
    assert not any(module._forward_pre_hooks for module in sick.model.modules())


@pytest.mark.parametrize("sort", ["identifier", "ordinary"])
def test_a_corpus_with_one_sort_of_token_is_refused(planted: Any, few: Corpus, sort: str) -> None:
    sick, _ = planted
    text = few[0].text
    whole = [Document("1", "1", text, ())]
    if sort == "ordinary":
        span = few[0].spans[0]
        whole = [
            Document("1", "1", few[0].value(span), (type(span)(0, span.end - span.start, "X"),))
        ]
    settings = HardConcreteSelector(kind="hard_concrete", fraction=0.1, steps=1)
    with pytest.raises(SelectionError) as caught:
        hard_concrete.learn_scores(
            sick.model, Texts(sick, Corpus(whole)).batches(), sites_of(sick)[0], settings, seed=0
        )
    assert str(caught.value) == (
        f"the corpus has no {sort} token, so there is nothing for masks to tell apart"
    )


def test_a_loss_that_is_not_a_number_is_refused(planted: Any, few: Corpus) -> None:
    sick = copy.deepcopy(planted[0])
    with torch.no_grad():
        sick.model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    settings = HardConcreteSelector(kind="hard_concrete", fraction=0.1, steps=1)
    with pytest.raises(SelectionError, match="the loss of the masks is NaN or infinite"):
        hard_concrete.learn_scores(
            sick.model, Texts(sick, few).batches(), sites_of(sick)[0], settings, seed=0
        )
