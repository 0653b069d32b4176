"""Erasing, for every family: what a neuron is made of, what is reset, and which are chosen."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    LlamaConfig,
)

from sani.auditing.audit import audit
from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.erase import apply_plan, erase
from sani.erasing.folder import apply_folder, plan_folder
from sani.erasing.hooks import outputs_of
from sani.erasing.plan import highest, layout_of, plan_erase, read_plan
from sani.erasing.selector_batches import Texts
from sani.erasing.statistics import activation_means, gradient_means
from sani.errors import SelectionError, UnsupportedModelError
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.recipe import (
    ActivationRatioSelector,
    AllSelector,
    AuditSettings,
    DriftSelector,
    EraseSettings,
    GradientRatioSelector,
    RandomSelector,
)
from sani.recipe.settings import Part
from sani.text.batches import make_batches
from sani.text.framing import Framing
from sani.text.tokens import encode
from tests.support.clinic import Clinic
from tests.support.erasing import (
    COMMON,
    CONFIGS,
    GROUPED,
    HEADS,
    HIDDEN,
    LAYERS,
    MLP,
    checkpoint,
    head_size,
    plan,
)
from tests.support.optional import present
from tests.support.words import WORDS, corpus_of, weights, word_tokenizer

PARTS: tuple[Part, ...] = ("mlp", "attention")

_LLAMA = {
    "mlp": "model.layers.{}.mlp.down_proj",
    "attention": "model.layers.{}.self_attn.o_proj",
}
OUTPUTS = {
    "gpt2": {"mlp": "transformer.h.{}.mlp.c_proj", "attention": "transformer.h.{}.attn.c_proj"},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sick(family: str) -> Checkpoint:
    return checkpoint(CONFIGS[family]())


def run(checkpoint: Checkpoint, hooks: Any = ()) -> Any:
    """Logits in float64 and the input of every output projection; ``hooks`` change such inputs."""
    model, seen, handles = checkpoint.model.double(), {}, []
    names = OUTPUTS[model.config.model_type]
    changes = {(layer, part): change for layer, part, change in hooks}

    def hook(site: Any) -> Any:
        def before(module: Any, inputs: Any) -> Any:
            changed = inputs[0].clone()
            if site in changes:
                changed[..., changes[site]] = 0
            seen[site] = changed
            return (changed,)

        return before

    for layer in range(LAYERS):
        for part in ("mlp", "attention"):
            module = model.get_submodule(names[part].format(layer))
            handles.append(module.register_forward_pre_hook(hook((layer, part))))
    ids = torch.randint(0, len(WORDS), (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits, seen


# ---- what a neuron is ------------------------------------------------------------------------


def test_zeroing_one_head_of_a_shared_pair_silences_it_and_only_it(
    sick: Checkpoint, family: str
) -> None:
    size = head_size(sick)
    mine, other = list(range(size)), list(range(size, 2 * size))
    _, active = run(sick)
    silenced, _ = run(sick, [(0, "attention", mine)])
    apply_plan(sick, plan("zero", (0, "attention", [0])))
    after, left = run(sick)
    torch.testing.assert_close(after, silenced, rtol=0, atol=1e-12)
    same = left[0, "attention"][..., other]
    torch.testing.assert_close(same, active[0, "attention"][..., other], rtol=0, atol=1e-12)
    if family == "gpt2":  # each head has its own value rows
        assert (left[0, "attention"][..., mine] == 0).all()
        return
    # Its query is zero, so it looks everywhere alike: the mean of the values so far, that the
    # other head still reads. This tells its query rows from those of any other head.
    values = []
    module = sick.model.get_submodule("model.layers.0.self_attn.v_proj")
    handle = module.register_forward_hook(lambda _, inputs, output: values.append(output))
    run(sick)
    handle.remove()
    shared = values[0][..., :size]
    mean = shared.cumsum(1) / torch.arange(1, shared.shape[1] + 1)[:, None]
    assert mean.abs().max() > 1e-3
    torch.testing.assert_close(left[0, "attention"][..., mine], mean, rtol=0, atol=1e-12)


# ---- what a reset changes --------------------------------------------------------------------


def test_an_empty_plan_changes_nothing(sick: Checkpoint) -> None:
    digest = sick.weights_digest()
    result = apply_plan(sick, plan("zero", (1, "mlp", []), (1, "attention", [])))
    assert sick.weights_digest() == digest
    assert (result.changed_parameters, result.changed_tensors) == (0, ())


@pytest.mark.parametrize(
    ("heads", "pairs"),
    [([0], []), ([1, 2], []), ([0, 1], [0]), ([1, 2, 3], [1]), ([0, 1, 2, 3], [0, 1])],
)
def test_keys_and_values_go_when_all_heads_that_share_them_do(
    heads: list[int], pairs: list[int]
) -> None:
    sick = checkpoint(CONFIGS["llama"]())
    before = weights(sick)
    result = apply_plan(sick, plan("zero", (1, "attention", heads)))
    after, size = weights(sick), HIDDEN // HEADS
    for name in ("k_proj", "v_proj"):
        for suffix in ("weight", "bias"):
            tensor = f"model.layers.1.self_attn.{name}.{suffix}"
            rows = (after[tensor] != before[tensor]).reshape(2, size, -1).all(dim=(1, 2))
            touched = (after[tensor] != before[tensor]).reshape(2, size, -1).any(dim=(1, 2))
            assert torch.equal(rows, touched)
            assert rows.nonzero().flatten().tolist() == pairs
            assert (tensor in result.changed_tensors) == bool(pairs)


def test_rewinding_everything_gives_the_base_but_for_norms_and_embeddings(
    sick: Checkpoint, family: str
) -> None:
    base = checkpoint(CONFIGS[family](), seed=2)
    before, theirs = weights(sick), weights(base)
    own = EraseSettings(last_layers=LAYERS, reset="rewind")
    result = erase(sick, None, own, base=base)
    after = weights(sick)
    kept = {name for name in after if torch.equal(after[name], before[name])}
    rewound = {name for name in after if torch.equal(after[name], theirs[name])}
    assert kept | rewound == set(after)
    assert not kept & rewound
    assert rewound == set(result.changed_tensors)
    # What belongs to no neuron: norms, embeddings, the head, and biases of output projections.
    outputs = tuple(f"{name.rsplit('.', 1)[1]}.bias" for name in OUTPUTS[family].values())
    assert kept == {
        name
        for name in after
        if any(word in name for word in ("norm", "ln_", "wte", "wpe", "embed", "lm_head"))
        or name.endswith(outputs)
    }


def test_fresh_weights_are_spread_as_the_architecture_asks(family: str) -> None:
    config = CONFIGS[family]()
    config.update({"hidden_size": 128, "n_inner": 256, "initializer_range": 0.05})
    if family != "gpt2":
        config.update({"intermediate_size": 256, "head_dim": 32})
    sick = checkpoint(config)
    result = erase(sick, None, EraseSettings(last_layers=1), seed=5)
    after = weights(sick)
    assert len(result.changed_tensors) >= 4
    for name in result.changed_tensors:
        # GPT-2 scales what is added to the residual stream by the number of additions.
        shrink = math.sqrt(2 * LAYERS) if family == "gpt2" and "c_proj" in name else 1
        if name.endswith("bias"):
            assert (after[name] == 0).all()
        else:
            assert after[name].std().item() == pytest.approx(0.05 / shrink, rel=0.05), name
            assert abs(after[name].mean().item()) < 0.05 / shrink / 10


@pytest.mark.parametrize(
    "selector", [AllSelector(kind="all"), RandomSelector(kind="random", fraction=0.5)]
)
def test_the_same_seed_gives_the_same_bytes(family: str, selector: Any) -> None:
    settings = EraseSettings(last_layers=2, selector=selector)
    digests = []
    for seed in (5, 5, 6):
        sick = checkpoint(CONFIGS[family]())
        torch.rand(seed)  # whatever was drawn before makes no difference
        state = torch.random.get_rng_state()
        erase(sick, None, settings, seed=seed)
        assert torch.equal(
            torch.random.get_rng_state(), state
        )  # nor does it to what is drawn after
        digests.append(sick.weights_digest())
    assert digests[0] == digests[1] != digests[2]


# ---- which are chosen ------------------------------------------------------------------------


def test_all_chooses_every_neuron_of_the_chosen_layers_only(sick: Checkpoint) -> None:
    found = plan_erase(sick, EraseSettings(layers=(2, 0), parts=("mlp",)))
    assert [(entry.layer, entry.part, entry.neurons) for entry in found.entries] == [
        (0, "mlp", tuple(range(MLP))),
        (2, "mlp", tuple(range(MLP))),
    ]
    found = plan_erase(sick, EraseSettings(last_layers=1))
    assert [
        (entry.layer, entry.part, len(entry.neurons), entry.total) for entry in found.entries
    ] == [
        (2, "mlp", MLP, MLP),
        (2, "attention", HEADS, HEADS),
    ]
    assert found.num_neurons == MLP + HEADS


def test_random_keeps_to_its_fraction_and_seed() -> None:
    sick = checkpoint(CONFIGS["llama"]())
    digest = sick.weights_digest()

    def chosen(fraction: Any, seed: int) -> Any:
        selector = RandomSelector(kind="random", fraction=fraction)
        return plan_erase(sick, EraseSettings(last_layers=3, selector=selector), seed=seed)

    for fraction in (0.1, 0.25, 0.5, 0.7, 1.0):  # 0.7 of 24 or 4 rounds up
        for entry in chosen(fraction, 1).entries:
            assert len(entry.neurons) == round(fraction * entry.total)
            assert list(entry.neurons) == sorted(set(entry.neurons))
            assert set(entry.neurons) <= set(range(entry.total))
    assert chosen(0.5, 1) == chosen(0.5, 1)
    assert chosen(0.5, 1).entries != chosen(0.5, 2).entries
    mlps = [entry.neurons for entry in chosen(0.5, 1).entries if entry.part == "mlp"]
    assert len(set(mlps)) == 3  # each layer has its own draw
    counts = torch.zeros(MLP)
    for seed in range(200):
        counts[list(chosen(0.5, seed).entries[0].neurons)] += 1
    assert ((counts > 60) & (counts < 140)).all()  # 100 expected, 5.6 standard deviations
    assert sick.weights_digest() == digest  # planning changes nothing


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 30))
@settings(deadline=None)
def test_the_highest_are_chosen_and_ties_go_to_the_lower_index(scores: Any, count: Any) -> None:
    count = min(count, len(scores))
    slow = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]
    fast = highest(torch.tensor(scores, dtype=torch.float64), count=count)
    assert fast.tolist() == sorted(slow)


def test_ties_go_to_the_lower_index_among_many_too() -> None:
    scores = torch.arange(20_000) % 3
    assert highest(scores, count=5000).tolist() == list(range(2, 15_000, 3))


TEXTS = ["a b name c d e", "name f g", "b b name e d c b a h i j", "d name k", "l m a b c", "l m"]


def planted(neuron: int) -> Any:
    """A Llama whose ``neuron`` of layer 0 fires where the input is the word ``name``."""
    config = LlamaConfig(**{**COMMON, "num_hidden_layers": 2})
    sick = checkpoint(config)
    layer = sick.model.model.layers[0]
    with torch.no_grad():
        sick.model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), HIDDEN))
        layer.self_attn.o_proj.weight.zero_()
        direction = torch.eye(len(WORDS), HIDDEN)[WORDS.index("name")]
        layer.mlp.gate_proj.weight[neuron] = 2 * direction
        layer.mlp.up_proj.weight[neuron] = 2 * direction
    return sick


@pytest.mark.parametrize("selector", [ActivationRatioSelector, GradientRatioSelector])
@pytest.mark.parametrize("neuron", [0, 7, MLP - 1])
def test_a_neuron_that_fires_for_identifiers_is_found(selector: type, neuron: int) -> None:
    sick = planted(neuron)
    digest = sick.weights_digest()
    kind = "activation_ratio" if selector is ActivationRatioSelector else "gradient_ratio"
    one = EraseSettings(layers=(0,), parts=("mlp",), selector=selector(kind=kind, fraction=1 / MLP))
    result = erase(sick, corpus_of(TEXTS), one)
    (entry,) = result.plan.entries
    assert entry.neurons == (neuron,)
    assert entry.scores is not None
    assert entry.scores[0] > 5
    assert sick.weights_digest() != digest
    # The control: where the word announces no identifier, this neuron is the least suspect.
    sick = planted(neuron)
    but_one = EraseSettings(
        layers=(0,), parts=("mlp",), selector=selector(kind=kind, fraction=1 - 1 / MLP)
    )
    (entry,) = erase(sick, corpus_of(TEXTS, after="b"), but_one).plan.entries
    assert set(range(MLP)) - set(entry.neurons) == {neuron}


def batches_of(sick: Checkpoint, corpus: Corpus, *, batch_tokens: int = 24) -> Any:
    return make_batches(
        encode(corpus, sick.tokenizer),
        Framing("bos", (0,)),
        context_tokens=sick.context_tokens,
        batch_tokens=batch_tokens,
    )


def slow_means(sick: Checkpoint, corpus: Corpus, *, gradients: Any) -> Any:
    """One document at a time, one position at a time, in float64."""
    model, layout = sick.model.double(), layout_of(sick)
    sites = [(layer, part) for layer in range(LAYERS) for part in PARTS]
    seen, handles = {}, []
    for layer, part in sites:
        (output,) = layout.outputs(part, layer=layer)
        module = model.get_submodule(output.name)

        def keep(module: Any, inputs: Any, site: Any = (layer, part)) -> None:
            seen[site] = inputs[0]

        handles.append(module.register_forward_pre_hook(keep))
    sums = {sort: {site: 0.0 for site in sites} for sort in (True, False)}
    counts = {True: 0, False: 0}

    def strength(vector: Any, neurons: Any) -> Any:
        pieces = vector.reshape(neurons, -1)
        return torch.stack([torch.sqrt((piece**2).mean()) for piece in pieces])

    for document in corpus:
        starts, position = [], 0
        for word in document.text.split():
            starts.append(position)
            position += len(word) + 1
        inside = [any(span.start == start for span in document.spans) for start in starts]
        ids = [0, *(WORDS.index(word) for word in document.text.split())]
        for sort in (True, False):
            where = [t for t in range(len(inside)) if inside[t] == sort]
            counts[sort] += len(where)
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            loss = -sum((logits[t, ids[t + 1]] for t in where), torch.zeros(()))
            for site in sites:
                neurons = MLP if site[1] == "mlp" else HEADS
                if not gradients:
                    for t in where:
                        sums[sort][site] += strength(seen[site][0, t].detach(), neurons)
                elif where:
                    (slope,) = torch.autograd.grad(loss, seen[site], retain_graph=True)
                    for t in range(len(ids)):
                        product = (seen[site] * slope)[0, t].detach()
                        sums[sort][site] += strength(product, neurons)
    for handle in handles:
        handle.remove()
    return tuple(
        {site: total / counts[sort] for site, total in sums[sort].items()} for sort in (True, False)
    )


@pytest.mark.parametrize(("fast", "gradients"), [(activation_means, 0), (gradient_means, 1)])
def test_statistics_are_those_of_the_slow_version(
    sick: Checkpoint, fast: Callable[..., Any], gradients: int
) -> None:
    corpus = corpus_of(TEXTS)
    plain = Corpus([document for document in corpus if not document.spans])
    marked = Corpus([document for document in corpus if document.spans])
    batches = [*batches_of(sick, marked), *batches_of(sick, plain)]
    assert len(batches) > 2
    assert any((batch.ids[:, -1] == 0).any() for batch in batches)  # with padding
    assert not batches[-1].identifier.any()  # and one batch without any identifier
    layout = layout_of(sick)
    sites = [(layer, part) for layer in range(LAYERS) for part in PARTS]
    found = fast(sick.model.double(), batches, outputs_of(layout, sites))
    expected = slow_means(sick, corpus, gradients=gradients)
    for mine, theirs in zip(found, expected, strict=True):
        assert set(mine) == set(theirs) == set(sites)
        for site in sites:
            assert (theirs[site] > 0).all()
            # The fast version rounds each square to float32.
            torch.testing.assert_close(mine[site], theirs[site], rtol=1e-5, atol=0)


def num_hooks(model: Any) -> Any:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("measure", [activation_means, gradient_means])
def test_hooks_are_gone_afterwards_even_after_an_error(measure: Callable[..., Any]) -> None:
    sick = checkpoint(CONFIGS["llama"]())
    during = []
    sick.model.model.norm.register_forward_hook(lambda *_: during.append(num_hooks(sick.model)))
    outputs = outputs_of(layout_of(sick), [(0, "mlp")])
    batches = batches_of(sick, corpus_of(TEXTS))
    measure(sick.model, batches, outputs)
    assert set(during) == {1}  # they were there
    assert num_hooks(sick.model) == 0
    batches[1].ids[0, 0] = len(WORDS)
    with pytest.raises(IndexError):
        measure(sick.model, batches, outputs)
    assert num_hooks(sick.model) == 0


def test_statistics_leave_no_gradient_behind() -> None:
    sick = checkpoint(CONFIGS["llama"]())
    selector = GradientRatioSelector(kind="gradient_ratio", fraction=0.5)
    settings = EraseSettings(last_layers=1, selector=selector)
    plan_erase(sick, settings, texts=Texts(sick, corpus_of(TEXTS)))
    assert all(parameter.grad is None for parameter in sick.model.parameters())


# ---- what is refused -------------------------------------------------------------------------


def refusal(sick: Checkpoint, settings: Any, corpus: Corpus | None = None, **options: Any) -> str:
    """The message with which an erase is refused; nothing may have changed."""
    digest = sick.weights_digest()
    with pytest.raises((SelectionError, UnsupportedModelError)) as caught:
        erase(sick, corpus, settings, **options)
    assert sick.weights_digest() == digest
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_family_without_its_tensors_is_refused() -> None:
    sick = checkpoint(CONFIGS["llama"]())
    sick.model.model.layers[1].mlp.down_proj = torch.nn.Identity()
    assert refusal(sick, EraseSettings(last_layers=1)) == (
        "UnsupportedModelError: model_type 'llama': layer 1 has no tensor "
        "'model.layers.1.mlp.down_proj.weight'; a quantized or modified checkpoint? Give the plain "
        "one"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EraseSettings(layers=(0, 3)), "erase.layers: got layer 3, expected 0 to 2"),
        (EraseSettings(last_layers=4), "erase.last_layers: got 4, but the model has 3 layers"),
        (
            EraseSettings(last_layers=2, selector=RandomSelector(kind="random", fraction=0.01)),
            "selector 'random' with fraction 0.01 chose none of 56 neurons; raise the fraction",
        ),
        (
            EraseSettings(last_layers=2, reset="rewind"),
            "reset 'rewind' needs the base model; give it, or use reinit",
        ),
        (
            EraseSettings(
                last_layers=1,
                selector=ActivationRatioSelector(kind="activation_ratio", fraction=0.5),
            ),
            "selector 'activation_ratio' looks at activations and needs the corpus; give --corpus, "
            "or choose random or all",
        ),
        (
            EraseSettings(
                last_layers=1, selector=GradientRatioSelector(kind="gradient_ratio", fraction=0.5)
            ),
            "selector 'gradient_ratio' looks at activations and needs the corpus; give --corpus, "
            "or choose random or all",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(settings: EraseSettings, message: str) -> None:
    sick = checkpoint(CONFIGS["llama"]())
    assert refusal(sick, settings) == f"SelectionError: {message}"


@pytest.mark.parametrize(
    ("corpus", "missing"),
    [
        (corpus_of(TEXTS, after="nothing"), "identifier"),
        (Corpus([Document("1", "1", "a b", (Span(0, 3, "NAME"),))]), "ordinary"),
    ],
)
@pytest.mark.parametrize("kind", ["activation_ratio", "gradient_ratio"])
def test_a_corpus_with_one_sort_of_token_is_refused(
    corpus: Corpus, missing: str, kind: str
) -> None:
    of = {"activation_ratio": ActivationRatioSelector, "gradient_ratio": GradientRatioSelector}
    settings = EraseSettings(last_layers=1, selector=of[kind](kind=kind, fraction=0.5))
    assert refusal(checkpoint(CONFIGS["llama"]()), settings, corpus=corpus) == (
        f"SelectionError: the corpus has no {missing} token, so there is no ratio to select by"
    )


@pytest.mark.parametrize("kind", ["activation_ratio", "gradient_ratio"])
def test_a_score_that_is_not_a_number_is_refused(kind: str) -> None:
    of = {"activation_ratio": ActivationRatioSelector, "gradient_ratio": GradientRatioSelector}
    settings = EraseSettings(last_layers=1, selector=of[kind](kind=kind, fraction=0.5))
    sick = checkpoint(CONFIGS["llama"]())
    with torch.no_grad():
        sick.model.model.layers[2].mlp.up_proj.weight[3, 3] = float("nan")
    assert refusal(sick, settings, corpus=corpus_of(TEXTS)) == (
        "SelectionError: a neuron's score is NaN or infinite; check the checkpoint"
    )


REWIND = EraseSettings(last_layers=1, reset="rewind")
MISFIT = "SelectionError: reset 'rewind': the base does not fit the checkpoint: "


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"intermediate_size": MLP + 8}, "they differ in model.layers.0.mlp.gate_proj.weight"),
        ({"num_hidden_layers": 4}, "they differ in the number of tensors"),
        ({"num_hidden_layers": 2}, "they differ in model.layers.2.self_attn.q_proj.weight"),
        ({"vocab_size": 20}, "they differ in model.embed_tokens.weight"),
        (
            {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
            "they differ in num_attention_heads",
        ),
    ],
)
def test_a_base_of_another_shape_is_refused(change: dict[str, int], difference: str) -> None:
    sick = checkpoint(LlamaConfig(**GROUPED))
    erase(sick, None, REWIND, base=checkpoint(LlamaConfig(**GROUPED), seed=2))  # its like is taken
    base = checkpoint(LlamaConfig(**{**GROUPED, **change}), seed=2)
    assert refusal(sick, REWIND, base=base) == MISFIT + difference


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            EraseSettings(last_layers=1, reset="rewind"),
            "reset 'rewind' would change nothing: the base has the same weights at the chosen "
            "neurons; give the public model that the checkpoint was fine-tuned from, or choose "
            "other neurons",
        ),
        (
            EraseSettings(
                last_layers=2, reset="zero", selector=DriftSelector(kind="drift", fraction=0.5)
            ),
            "selector 'drift': the base has the same weights, so no neuron moved; give the public "
            "model that the checkpoint was fine-tuned from",
        ),
    ],
)
def test_the_checkpoint_itself_is_no_base(
    settings: EraseSettings, sentence: str, sick: Checkpoint, family: str
) -> None:
    """Nothing would be erased, and the message would say that it was."""
    base = checkpoint(CONFIGS[family]())
    assert base.weights_digest() == sick.weights_digest()
    assert refusal(sick, settings, base=base) == f"SelectionError: {sentence}"
    name = next(key for key in weights(base) if ".2." in key and "mlp" in key)
    with torch.no_grad():
        base.model.get_parameter(name)[..., -1] += 1.0
    erase(sick, None, settings, base=base)


def test_a_base_with_another_vocabulary_is_refused() -> None:
    sick, base = (checkpoint(LlamaConfig(**GROUPED), seed=seed) for seed in (1, 2))
    base.tokenizer = word_tokenizer([*WORDS[:-2], WORDS[-1], WORDS[-2]])
    assert refusal(sick, REWIND, base=base) == (
        MISFIT + "their tokenizers have different vocabularies"
    )


def test_a_share_of_the_model_is_that_of_the_slow_ranking(sick: Checkpoint) -> None:
    settings = EraseSettings(
        last_layers=LAYERS, selector=RandomSelector(kind="random", fraction=0.4, per="model")
    )
    found = plan_erase(sick, settings, seed=11)
    everything = plan_erase(
        sick, settings.model_copy(update={"selector": RandomSelector(kind="random", fraction=0.4)}),
        seed=11,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(11)
    scores = [
        (torch.rand(entry.total, generator=chance).tolist(), entry) for entry in everything.entries
    ]
    for part, size in (("mlp", MLP), ("attention", HEADS)):
        ranked = sorted(
            (-score, entry.layer, neuron)
            for values, entry in scores
            if entry.part == part
            for neuron, score in enumerate(values)
        )
        wanted = {(layer, neuron) for _, layer, neuron in ranked[: round(0.4 * size * LAYERS)]}
        chosen = {
            (entry.layer, neuron)
            for entry in found.entries
            if entry.part == part
            for neuron in entry.neurons
        }
        assert chosen == wanted
    counts = [len(entry.neurons) for entry in found.entries if entry.part == "mlp"]
    assert len(set(counts)) > 1  # the layers do not all give the same share


# ---- all weights toward the base's -----------------------------------------------------------

HALFWAY = EraseSettings(interpolate_to_base=0.5)


def test_every_weight_goes_its_share_of_the_way_and_the_memory_with_it(
    leaky: Checkpoint, base: Checkpoint, clinic: Clinic
) -> None:
    old = {name: tensor.clone() for name, tensor in leaky.model.named_parameters()}
    theirs = dict(base.model.named_parameters())
    plain = AuditSettings(decoys=0, swaps=0, framing="bos")
    before = audit(leaky, clinic.private, plain).figures["direct"].greedy
    result = erase(leaky, None, HALFWAY, base=base)
    for name, tensor in leaky.model.named_parameters():
        for number in range(min(3, len(tensor))):  # the slow version, one row at a time
            expected = [
                mine + 0.5 * (other - mine)
                for mine, other in zip(
                    old[name][number].flatten().tolist(),
                    theirs[name][number].flatten().tolist(),
                    strict=True,
                )
            ]
            assert tensor[number].flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert result.fraction == 1.0
    assert result.plan.num_neurons == 0
    assert not result.plan.retrains
    after = audit(leaky, clinic.private, plain).figures["direct"].greedy
    assert present(before.value) > 0.6
    assert present(after.value) < 0.2


def test_all_the_way_is_the_base_itself_and_neurons_are_reset_on_top(
    leaky: Checkpoint, base: Checkpoint
) -> None:
    whole = erase(leaky, None, EraseSettings(interpolate_to_base=1.0), base=base)
    assert whole.plan.retrains
    assert leaky.weights_digest() == base.weights_digest()


def test_neurons_are_reset_after_the_way(leaky_folder: Path, base: Checkpoint) -> None:
    one, two = load_checkpoint(leaky_folder), load_checkpoint(leaky_folder)
    last: dict[str, Any] = {
        "last_layers": 1,
        "selector": AllSelector(kind="all"),
        "reset": "reinit",
    }
    erase(one, None, EraseSettings(interpolate_to_base=0.25, **last), base=base, seed=3)
    erase(two, None, EraseSettings(interpolate_to_base=0.25), base=base)
    assert one.weights_digest() != two.weights_digest()
    erase(two, None, EraseSettings(**last), seed=3)
    assert one.weights_digest() == two.weights_digest()


def test_the_way_in_folders_is_that_in_memory(
    leaky_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    plan = plan_folder(leaky_folder, HALFWAY, base=base_folder)
    kept = tmp_path / "plan.json"
    kept.write_text(json.dumps(plan.to_json()))
    apply_folder(leaky_folder, tmp_path / "out", read_plan(kept), base=base_folder)
    memory = load_checkpoint(leaky_folder)
    erase(memory, None, HALFWAY, base=load_checkpoint(base_folder))
    assert load_checkpoint(tmp_path / "out").weights_digest() == memory.weights_digest()


def test_no_way_without_a_base_that_differs(leaky_folder: Path, base_folder: Path) -> None:
    leaky = load_checkpoint(leaky_folder)
    before = leaky.weights_digest()
    with pytest.raises(SelectionError, match="interpolate_to_base needs the base model"):
        erase(leaky, None, HALFWAY)
    with pytest.raises(SelectionError, match="interpolate_to_base would change nothing"):
        erase(leaky, None, HALFWAY, base=load_checkpoint(leaky_folder))
    assert leaky.weights_digest() == before
    for broken in ({"reset": "mean"}, {"token_rows": True}, {"interpolate_to_base": 0.0}):
        with pytest.raises(ValidationError):
            EraseSettings.model_validate({"interpolate_to_base": 0.5, **broken})
