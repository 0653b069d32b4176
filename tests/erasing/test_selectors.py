"""Selectors and resets that look at the model, each against a slow and obvious version."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from sani.cli.main import main
from sani.corpus.documents import Corpus, Document, Span
from sani.corpus.tables import write_jsonl
from sani.erasing.erase import apply_plan, erase, plan_neurons
from sani.erasing.integrated_gradients import attributions, votes
from sani.erasing.plan import layout_of, plan_erase
from sani.erasing.reinit import fresh_model
from sani.erasing.selector_batches import COPIES, Question, Texts
from sani.erasing.statistics import fisher_diagonals
from sani.errors import CheckpointError, RecipeError, SelectionError
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.neurons import Output
from sani.pipeline.preflight import check
from sani.recipe import (
    CorpusSettings,
    DampenSettings,
    EraseSettings,
    FisherRatioSelector,
    GateSettings,
    IntegratedGradientsSelector,
    ModelSettings,
    RandomSelector,
    Recipe,
    settings_from,
)
from sani.recipe.settings import Part
from sani.reporting.process import changes
from sani.reporting.report import _erased
from sani.reporting.schema import Erase
from sani.reporting.stage_files import EraseFile
from tests.support.clinic import Clinic
from tests.support.neurons import random_model
from tests.support.optional import present

WORDS = ["<s>", "</s>", "[MASK]", "name", "age", *"abcde", "anna", "bert", "carl", "dora", "77"]
HIDDEN, MLP, HEADS, LAYERS = 16, 24, 4, 2
PARTS: tuple[Part, ...] = ("mlp", "attention")
COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "gpt2": lambda **own: GPT2Config(**{**COMMON, "n_inner": MLP, **own}),
    "llama": lambda **own: LlamaConfig(
        **{**COMMON, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, **own}
    ),
}
TEXTS = [
    "anna a b name bert d e",
    "a b name carl dora c age 77 a b",
    "c c d",
    "b a name dora",
    "a b c d e a b c d e name anna carl b b c d e a age b e d c",
]
LABELS = {**dict.fromkeys(("anna", "bert", "carl", "dora"), "NAME"), "77": "AGE", "b": "AGE"}


def tokenizer() -> Any:
    word_level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<s>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level, bos_token="<s>", eos_token="</s>", mask_token="[MASK]"
    )


def shaken(model: Any, *, seed: int = 1) -> Checkpoint:
    """Every weight counts: no bias is zero and no norm is one. In float64."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=chance)
            tensor.copy_(1 + 0.1 * noise if tensor.ndim == 1 and "norm" in name else 0.3 * noise)
    return Checkpoint(model.double().eval(), tokenizer(), Path("nowhere"))


def checkpoint(family: str, *, seed: int = 1, **changes: Any) -> Checkpoint:
    return shaken(fresh_model(CONFIGS[family](**changes), seed=seed), seed=seed)


@pytest.fixture(params=sorted(CONFIGS))
def sick(request: pytest.FixtureRequest) -> Checkpoint:
    return checkpoint(request.param)


@pytest.fixture
def masked_model() -> Any:
    return shaken(BertForMaskedLM(BertConfig(**COMMON)))


def corpus_of(texts: Sequence[str] = TEXTS) -> Corpus:
    """The word after ``name`` or ``age`` is an identifier, and a name after a name is of it."""
    documents = []
    for number, text in enumerate(texts):
        words, spans, start = text.split(), [], 0
        for position, word in enumerate(words):
            before = words[position - 1] if position else ""
            if word in LABELS and (word != "b" or before == "age"):
                spans.append(Span(start, start + len(word), LABELS[word]))
            start += len(word) + 1
        documents.append(Document(str(number), str(number), text, tuple(spans)))
    return Corpus(documents)


def weights(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in checkpoint.model.named_parameters()}


def sites_of(sick: Checkpoint, layers: Any = range(LAYERS)) -> Any:
    layout = layout_of(sick)
    sites = [(layer, part) for layer in layers for part in PARTS]
    outputs = {site: layout.outputs(site[1], layer=site[0]) for site in sites}
    return outputs, {site: layout.num_neurons(site[1], layer=site[0]) for site in sites}


def modules_of(outputs: Any) -> dict[tuple[int, Part], Any]:
    """Of models in which one module takes in all neurons' activations of a layer and part."""
    return {site: output.name for site, (output,) in outputs.items()}


def changed_input(sick: Checkpoint, module: Any, change: Any) -> Any:
    """Hook: ``change`` gets a copy of the input of a module and may write into it."""

    def before(_: Any, inputs: Any) -> Any:
        activation = inputs[0].clone()
        change(activation)
        return (activation, *inputs[1:])

    return sick.model.get_submodule(module).register_forward_pre_hook(before)


# ---- the corpus as it is asked ---------------------------------------------------------------


def test_the_labels_share_the_identifier_tokens_between_them(sick: Checkpoint) -> None:
    texts = Texts(sick, corpus_of())
    assert texts.labels == ["AGE", "NAME"]
    counts = {
        label: sum(int(batch.identifier.sum()) for batch in texts.batches(label))
        for label in (None, "AGE", "NAME")
    }
    assert counts == {None: 9, "AGE": 2, "NAME": 7}
    assert sum(len(batch.ids) for batch in texts.batches("AGE")) < sum(
        len(batch.ids) for batch in texts.batches()
    )


def test_a_causal_question_is_the_text_before_a_token(sick: Checkpoint) -> None:
    texts = Texts(sick, corpus_of(), framing="bos")
    first, last = texts.encoded[4].spans[0][0], texts.encoded[4].spans[1][0]
    (question,) = texts.questions(4, 0)
    ids = texts.encoded[4].ids
    assert question == Question((0, *ids[:first]), first, ids[first])
    assert texts.questions(0, 0) == [Question((0,), 0, WORDS.index("anna"))]
    (long,) = texts.questions(4, 1)
    assert long == Question((0, *ids[:last]), last, ids[last])
    (longest,) = texts.questions(4, 2)  # the model takes 16 tokens
    where = texts.encoded[4].spans[2][0]
    assert longest == Question((0, *ids[where - 15 : where]), 15, ids[where])
    assert Texts(sick, corpus_of(), framing="none").questions(0, 0) == []


def test_occurrences_are_drawn_by_the_seed(sick: Checkpoint) -> None:
    texts = Texts(sick, corpus_of())
    everything = texts.drawn_questions(100, seed=1)
    assert len(everything) == 9
    assert texts.drawn_questions(4, seed=1) == everything[:4]
    assert texts.drawn_questions(4, seed=2) != everything[:4]
    assert sorted(map(repr, texts.drawn_questions(100, seed=2))) == sorted(map(repr, everything))


def test_a_masked_model_is_asked_for_every_token_once_where_it_is_masked(masked_model: Any) -> None:
    texts = Texts(masked_model, corpus_of())
    mask = WORDS.index("[MASK]")
    asked: dict[bool, list[int]] = {True: [], False: []}
    for batch in texts.batches():
        at = batch.identifier | batch.ordinary
        assert (batch.ids[at] == mask).all()
        assert not (batch.identifier & batch.ordinary).any()
        hidden = batch.ids == mask  # what is masked and not asked is a window's context
        assert (at & ~hidden).sum() == 0
        assert torch.equal(batch.ids[~hidden], batch.targets[~hidden])
        assert (hidden.sum(1) <= -(-batch.ids.shape[1] // COPIES)).all()
        for sort in asked:
            where = batch.identifier if sort else batch.ordinary
            asked[sort] += batch.targets[where].tolist()
    everything: dict[bool, list[int]] = {True: [], False: []}
    for item in texts.encoded:
        for token, touched in zip(item.ids, item.in_span(), strict=True):
            everything[touched].append(token)
    assert {sort: sorted(tokens) for sort, tokens in asked.items()} == {
        sort: sorted(tokens) for sort, tokens in everything.items()
    }


def test_a_masked_question_hides_the_rest_of_the_identifier(masked_model: Any) -> None:
    text = "a b name carl dora c"
    whole = Corpus([Document("1", "1", text, (Span(9, 18, "NAME"),))])
    ids, mask = [WORDS.index(word) for word in text.split()], WORDS.index("[MASK]")
    assert Texts(masked_model, whole).questions(0, 0) == [
        Question((*ids[:3], mask, mask, ids[5]), 3, ids[3]),
        Question((*ids[:4], mask, ids[5]), 4, ids[4]),
    ]


def test_a_masked_model_without_a_mask_token_is_refused(masked_model: Any) -> None:
    masked_model.tokenizer.mask_token = None
    with pytest.raises(CheckpointError, match="has no mask token"):
        Texts(masked_model, corpus_of())


# ---- Fisher diagonals ------------------------------------------------------------------------


def slow_fisher(sick: Checkpoint, corpus: Corpus) -> Any:
    """One document at a time, token by token, with the model's own loss and backward."""
    model = sick.model
    sums = {sort: {n: torch.zeros_like(w) for n, w in weights(sick).items()} for sort in (1, 0)}
    counts = {1: 0, 0: 0}
    for document in corpus:
        starts = {span.start for span in document.spans}
        words, position, sort_of = document.text.split(), 0, []
        for word in words:
            sort_of.append(int(position in starts))
            position += len(word) + 1
        ids = [0, *(WORDS.index(word) for word in words)]
        for sort in (1, 0):
            where = [t for t, kind in enumerate(sort_of) if kind == sort]
            if not where:
                continue
            model.zero_grad()
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            (-sum(logits[t, ids[t + 1]] for t in where) / len(where)).backward()
            for name, parameter in model.named_parameters():
                sums[sort][name] += parameter.grad**2
            counts[sort] += 1
    model.zero_grad()
    return tuple({n: s / counts[sort] for n, s in sums[sort].items()} for sort in (1, 0))


SHORT = TEXTS[:4]  # no document longer than the context


def test_fisher_diagonals_are_those_of_the_slow_version(sick: Checkpoint) -> None:
    names = [name for name, _ in sick.model.named_parameters() if ".1." in name]
    found = fisher_diagonals(sick.model, Texts(sick, corpus_of(SHORT)).batches(), names)
    expected = slow_fisher(sick, corpus_of(SHORT))
    for mine, theirs in zip(found, expected, strict=True):
        assert sorted(mine) == sorted(names)
        for name in names:
            assert theirs[name].max() > 0
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-9, atol=1e-14)
    assert all(parameter.grad is None for parameter in sick.model.parameters())


def test_the_fisher_ratio_is_that_of_the_sums_over_a_neurons_weights(sick: Checkpoint) -> None:
    rule = FisherRatioSelector(kind="fisher_ratio", fraction=1.0)
    texts = Texts(sick, corpus_of(SHORT))
    plan = plan_erase(sick, EraseSettings(last_layers=LAYERS, selector=rule), texts=texts)
    theirs, text = slow_fisher(sick, corpus_of(SHORT))
    layout = layout_of(sick)
    for entry in plan.entries:
        for neuron, score in zip(entry.neurons, entry.scores or (), strict=True):
            sums = [0.0, 0.0]
            for piece in layout.slices(entry.part, layer=entry.layer, neurons=[neuron]):
                for number, fisher in enumerate((theirs, text)):
                    sums[number] += fisher[piece.name].index_select(piece.dim, piece.index).sum()
            assert score == pytest.approx(float(sums[0] / sums[1]), rel=1e-8)


# ---- integrated gradients --------------------------------------------------------------------


def chance_at(sick: Checkpoint, question: Any, module: Any, scale: Any) -> float:
    """P(token) with a module's input at the position times ``scale`` [channels], uncached."""

    def change(activation: Any) -> None:
        activation[0, question.at] *= scale

    handle = changed_input(sick, module, change)
    with torch.no_grad():
        logits = sick.model(input_ids=torch.tensor([question.ids])).logits[0, question.at]
    handle.remove()
    return float(logits.softmax(-1)[question.target])


def channels_of(sick: Checkpoint, module: Any) -> Any:
    weight = sick.model.get_submodule(module).weight
    return weight.shape[0 if sick.model.config.model_type == "gpt2" else 1]


def slow_attributions(
    sick: Checkpoint, question: Any, module: Any, neurons: Any, *, steps: int, nudge: Any
) -> Any:
    """b/m * sum of dP/db, each derivative a central difference in one channel."""
    channels = channels_of(sick, module)
    total = torch.zeros(channels, dtype=torch.float64)
    for step in range(1, steps + 1):
        for channel in range(channels):
            ends = []
            for shift in (nudge, -nudge):
                scale = torch.full((channels,), step / steps, dtype=torch.float64)
                scale[channel] += shift
                ends.append(chance_at(sick, question, module, scale))
            total[channel] += (ends[0] - ends[1]) / (2 * nudge) / steps  # already times b
    return total.reshape(neurons, -1).sum(1)


def check_against_slow(sick: Checkpoint, question: Any, outputs: Any, sizes: Any) -> None:
    # Llama's norm computes in float32, whatever the model's type: small differences drown in it.
    coarse = sick.model.config.model_type == "llama"
    nudge, exact = (0.02, 5e-6) if coarse else (1e-4, 1e-9)
    found = attributions(sick.model, question, outputs, steps=3)
    assert set(found) == set(outputs)
    for site, module in modules_of(outputs).items():
        slow = slow_attributions(sick, question, module, sizes[site], steps=3, nudge=nudge)
        assert slow.abs().max() > 50 * exact
        torch.testing.assert_close(found[site], slow, rtol=0.01 if coarse else 1e-4, atol=exact)
    assert all(parameter.requires_grad for parameter in sick.model.parameters())
    assert not any(module._forward_pre_hooks for module in sick.model.modules())


@pytest.mark.parametrize("occurrence", [(0, 0), (1, 1)])  # without and with text before it
def test_attributions_are_those_of_finite_differences(
    sick: Checkpoint, occurrence: tuple[int, ...]
) -> None:
    (question,) = Texts(sick, corpus_of()).questions(*occurrence)
    check_against_slow(sick, question, *sites_of(sick))


def test_attributions_of_a_masked_model_are_those_of_finite_differences(masked_model: Any) -> None:
    question = Texts(masked_model, corpus_of()).questions(1, 1)[0]
    outputs = {
        (1, "mlp"): [Output("bert.encoder.layer.1.output.dense", MLP)],
        (0, "attention"): [Output("bert.encoder.layer.0.attention.output.dense", HEADS)],
    }
    check_against_slow(masked_model, question, outputs, {(1, "mlp"): MLP, (0, "attention"): HEADS})


def test_a_layers_attributions_sum_to_what_it_does_for_the_token(sick: Checkpoint) -> None:
    (question,) = Texts(sick, corpus_of()).questions(1, 1)
    outputs, _ = sites_of(sick)
    found = attributions(sick.model, question, outputs, steps=2000)
    for site, module in modules_of(outputs).items():
        whole = chance_at(sick, question, module, 1.0)
        silent = chance_at(sick, question, module, 0.0)
        assert abs(whole - silent) > 1e-4
        assert float(found[site].sum()) == pytest.approx(whole - silent, rel=5e-3, abs=1e-5)


def test_votes_are_those_of_the_slow_count(sick: Checkpoint) -> None:
    outputs, sizes = sites_of(sick)
    asked = Texts(sick, corpus_of()).drawn_questions(100, seed=0)
    found = votes(sick.model, [*asked, []], outputs, steps=4, ratio=0.3)
    counts = {site: [0] * size for site, size in sizes.items()}
    means = {site: [0.0] * size for site, size in sizes.items()}
    for questions in asked:
        total = {site: torch.zeros(size, dtype=torch.float64) for site, size in sizes.items()}
        for question in questions:
            for site, own in attributions(sick.model, question, outputs, steps=4).items():
                total[site] = total[site] + own
        for site, values in total.items():
            top = max(float(v.max()) for other, v in total.items() if other[1] == site[1])
            for neuron, value in enumerate(values.tolist()):
                means[site][neuron] += value / len(asked)
                counts[site][neuron] += value > 0 and value >= 0.3 * top
    for part in ("mlp", "attention"):
        slow = [
            (counts[site][neuron], means[site][neuron], site, neuron)
            for site in sizes
            if site[1] == part
            for neuron in range(sizes[site])
        ]
        fast = [(float(found[site][neuron]), site, neuron) for _, _, site, neuron in slow]
        assert max(slow)[0] > 1
        assert [row[1:] for row in sorted(fast)] == [row[2:] for row in sorted(slow)]
        assert [int(row[0]) for row in fast] == [row[0] for row in slow]


def test_integrated_gradients_refuse_a_corpus_without_identifiers(sick: Checkpoint) -> None:
    rule = IntegratedGradientsSelector(kind="integrated_gradients", fraction=0.5)
    with pytest.raises(SelectionError) as caught:
        erase(sick, corpus_of(["a b c"]), EraseSettings(last_layers=1, selector=rule))
    assert str(caught.value) == (
        "the corpus has no identifier token, so there is nothing to attribute"
    )


# ---- resets ----------------------------------------------------------------------------------

HALF = RandomSelector(kind="random", fraction=0.5)


def logits_of(sick: Checkpoint, hooks: Any = ()) -> Any:
    handles = [changed_input(sick, module, change) for module, change in hooks]
    ids = torch.randint(0, len(WORDS), (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = sick.model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits


def slow_means(sick: Checkpoint, corpus: Corpus, modules: Any) -> dict[tuple[int, Part], Any]:
    """Mean input of each module, one document and one position at a time."""
    sums, count = dict.fromkeys(modules, 0.0), 0
    for document in corpus:
        ids = [0, *(WORDS.index(word) for word in document.text.split())]
        seen, handles = {}, []
        for site, module in modules.items():

            def keep(activation: Any, site: Any = site) -> None:
                seen[site] = activation[0].clone()  # noqa: B023

            handles.append(changed_input(sick, module, keep))
        with torch.no_grad():
            sick.model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        for position in range(len(ids) - 1):  # the last predicts no token of the corpus
            count += 1
            for site in modules:
                sums[site] = sums[site] + seen[site][position]
    return {site: total / count for site, total in sums.items()}


def test_the_mean_reset_is_holding_the_activation_at_its_mean(sick: Checkpoint) -> None:
    settings = EraseSettings(last_layers=LAYERS, selector=HALF, reset="mean")
    corpus = corpus_of(SHORT)
    plan = plan_neurons(sick, settings, corpus=corpus, seed=4)
    outputs, sizes = sites_of(sick)
    modules = modules_of(outputs)
    means = slow_means(sick, corpus, modules)
    hooks = []
    for entry in plan.entries:
        site = entry.layer, entry.part
        width = channels_of(sick, modules[site]) // sizes[site]
        index = [n * width + c for n in entry.neurons for c in range(width)]

        def hold(activation: Any, index: Any = index, mean: Any = means[site]) -> None:
            activation[..., index] = mean[index]

        hooks.append((modules[site], hold))
    before, held = logits_of(sick), logits_of(sick, hooks)
    assert (before - held).abs().max() > 1e-2
    result = apply_plan(sick, plan, corpus=corpus)
    torch.testing.assert_close(logits_of(sick), held, rtol=0, atol=1e-10)
    assert {f"{module}.bias" for module in modules.values()} <= set(result.changed_tensors)


@pytest.mark.parametrize("part", ["mlp", "attention"])
def test_the_mean_reset_is_refused_without_a_bias(part: Part, tmp_path: Path) -> None:
    own = {"mlp_bias": part != "mlp", "attention_bias": part != "attention"}
    sick = checkpoint("llama", **own)
    digest = sick.weights_digest()
    name = {"mlp": "mlp.down_proj", "attention": "self_attn.o_proj"}[part]
    settings = EraseSettings(last_layers=1, reset="mean")
    with pytest.raises(SelectionError) as caught:
        erase(sick, corpus_of(), settings)
    assert str(caught.value) == (
        f"reset 'mean' puts the mean activation into the bias of 'model.layers.1.{name}', which "
        "this model lacks (GPT-2 has such biases, most Llama-like models do not); choose zero, "
        "rewind or reinit"
    )
    assert sick.weights_digest() == digest
    with pytest.raises(SelectionError, match="reset 'mean' puts"):
        plan_neurons(sick, settings)  # --dry-run plans nothing that cannot be done
    # `sani run --check` says so before anything is trained or audited.
    assert check_erase(sick, tmp_path, settings) == (False, str(caught.value))


@pytest.mark.parametrize("scale", [0.7, 3.0])  # with 3 some would grow, which they must not
def test_dampening_is_that_of_the_slow_version(sick: Checkpoint, scale: float) -> None:
    rule = DampenSettings(above=1.2, scale=scale)
    settings = EraseSettings(last_layers=1, selector=HALF, reset="dampen", dampen=rule)
    corpus, before = corpus_of(SHORT), weights(sick)
    plan = plan_neurons(sick, settings, corpus=corpus, seed=4)
    theirs, text = slow_fisher(sick, corpus)
    chosen = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    for entry in plan.entries:
        own = layout_of(sick).slices(entry.part, layer=entry.layer, neurons=entry.neurons)
        for piece in own:
            chosen[piece.name].index_fill_(piece.dim, piece.index, True)
    result = apply_plan(sick, plan, corpus=corpus)
    count = dampened = grown = noise = 0
    for name, tensor in weights(sick).items():
        expected = before[name].clone()
        for place in chosen[name].nonzero().tolist():
            i_f, i_d = float(theirs[name][*place]), float(text[name][*place])
            if i_f < 1e-25:  # a key's bias, which changes nothing: both are rounding errors
                expected[*place] = tensor[*place]
                noise += 1
            elif i_f > 1.2 * i_d:
                expected[*place] *= min(scale * i_d / i_f, 1)
                dampened += scale * i_d < i_f
                grown += scale * i_d > i_f
        count += int(chosen[name].sum())
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=0)
    assert dampened <= result.changed_parameters <= dampened + noise
    assert noise <= 2 * HIDDEN // HEADS
    assert 0.05 * count < dampened < 0.95 * count  # some are, some are not
    assert (grown > 0) == (scale > 1)


@pytest.mark.parametrize("reset", ["mean", "dampen"])
def test_resets_that_look_at_the_model_need_the_corpus(reset: Any) -> None:
    sick = checkpoint("gpt2")
    digest = sick.weights_digest()
    with pytest.raises(SelectionError) as caught:
        erase(sick, None, EraseSettings(last_layers=1, reset=reset))
    assert str(caught.value) == f"reset '{reset}' needs the corpus; give --corpus, or choose zero"
    assert sick.weights_digest() == digest


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (
            {"reset": "zero", "dampen": {"above": 2.0}},
            "options: dampen has settings of reset dampen; set reset: dampen or remove it",
        ),
        (
            {"reset": "mean", "token_rows": True},
            "options: token_rows needs reset reinit, zero or rewind",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        settings_from(EraseSettings, {"last_layers": 1, **asked})
    assert str(caught.value) == problem


# ---- token rows ------------------------------------------------------------------------------

ROWS = EraseSettings(last_layers=1, selector=HALF, reset="zero", token_rows=True)
# Of the corpus' identifiers b also stands elsewhere.
ONLY = [WORDS.index(word) for word in ("anna", "bert", "carl", "dora", "77")]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reset", ["zero", "rewind", "reinit"])
def test_exactly_the_rows_of_identifier_only_tokens_change(tied: bool, reset: Any) -> None:
    sick, base = (checkpoint("llama", seed=seed, tie_word_embeddings=tied) for seed in (1, 2))
    before = weights(sick)
    settings = ROWS.model_copy(update={"reset": reset})
    result = erase(sick, corpus_of(), settings, base=base)
    ends = ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]
    for name in ends:
        changed = (weights(sick)[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert changed == sorted(ONLY)
        if reset == "rewind":
            assert torch.equal(weights(sick)[name][ONLY], weights(base)[name][ONLY])
        if reset == "zero":
            assert (weights(sick)[name][ONLY] == 0).all()
    plain = erase(
        checkpoint("llama", tie_word_embeddings=tied),
        None,
        settings.model_copy(update={"token_rows": False}),
        base=base,
    )
    assert set(result.changed_tensors) - set(plain.changed_tensors) == set(ends)
    assert result.changed_parameters - plain.changed_parameters == len(ends) * 5 * HIDDEN
    assert result.plan.to_json()["token_rows"] == {
        "rows": 5, "total": len(WORDS), "tensors": ends, "tied": tied
    }  # fmt: skip
    assert (sick.model.lm_head.weight is sick.model.model.embed_tokens.weight) == tied


def test_the_plan_counts_identifier_tokens_and_does_not_name_them() -> None:
    sick = checkpoint("llama")
    plan = plan_neurons(sick, ROWS, corpus=corpus_of())
    assert present(plan.token_rows).tokens == tuple(sorted(ONLY))
    shown = plan.to_json()
    assert set(json.loads(json.dumps(shown))["token_rows"]) == {"rows", "total", "tensors", "tied"}
    other = dataclasses.replace(present(plan.token_rows), tokens=(5, 6, 7, 8, 9))
    assert dataclasses.replace(plan, token_rows=other).to_json() == shown
    assert repr(present(plan.token_rows).tokens) not in repr(plan)


def test_special_tokens_and_single_characters_keep_their_rows() -> None:
    text = "anna </s> e a"  # every token of it stands in an identifier
    sick = checkpoint("llama")
    whole = Corpus([Document("1", "1", text, (Span(0, len(text), "NAME"),))])
    rows = plan_neurons(sick, ROWS, corpus=whole).token_rows
    assert present(rows).tokens == (WORDS.index("anna"),)


def test_token_rows_need_a_corpus_that_marks_something() -> None:
    nothing = Corpus([dataclasses.replace(document, spans=()) for document in corpus_of()])
    with pytest.raises(SelectionError, match="token_rows: no document has a span"):
        plan_neurons(checkpoint("llama"), ROWS, corpus=nothing)


def test_token_rows_need_the_corpus() -> None:
    with pytest.raises(SelectionError, match="token_rows needs the corpus"):
        erase(checkpoint("llama"), None, ROWS)


def test_all_neurons_of_a_share_of_the_model_are_chosen_by_score(sick: Checkpoint) -> None:
    """What is chosen over the whole model has the highest scores, of neurons and heads apart."""
    texts = Texts(sick, corpus_of())
    rule = FisherRatioSelector(kind="fisher_ratio", fraction=0.4, per="model")
    every = EraseSettings(last_layers=LAYERS, selector=rule.model_copy(update={"fraction": 1.0}))
    some = plan_erase(sick, EraseSettings(last_layers=LAYERS, selector=rule), texts=texts)
    whole = plan_erase(sick, every, texts=texts)
    for part in ("mlp", "attention"):
        ranked = sorted(
            (s for e in whole.entries if e.part == part for s in present(e.scores)), reverse=True
        )
        chosen = sorted(
            (s for e in some.entries if e.part == part for s in present(e.scores)), reverse=True
        )
        assert chosen == ranked[: round(0.4 * len(ranked))]


# ---- on the command line and in the report ---------------------------------------------------


def test_a_plan_with_token_rows_and_labels_shows_no_identifier(
    clinic: Clinic, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    arguments = [
        "erase", str(leaky_folder), "--out", str(tmp_path / "out"), "--last-layers", "1",
        "--part", "mlp", "--corpus", str(tmp_path / "notes.jsonl"), "--reset", "zero",
        "--selector", "activation_ratio", "--fraction", "0.1", "--per", "model", "--token-rows",
    ]  # fmt: skip
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    plan = json.loads(shown)
    assert plan["selector"]["per"] == "model"
    assert plan["token_rows"]["tied"] is True
    assert plan["token_rows"]["rows"] > 10
    values = {d.value(span) for d in clinic.private for span in d.spans if len(d.value(span)) > 4}
    assert not [value for value in values if value in shown]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "one tied tensor" in said
    assert "can tell these rows from the others, and so which tokens stand in" in said
    before, after = load_checkpoint(leaky_folder), load_checkpoint(tmp_path / "out")
    name = "model.embed_tokens.weight"
    changed = (weights(before)[name] != weights(after)[name]).any(1)
    assert int(changed.sum()) == plan["token_rows"]["rows"]


def report_erase(data: dict[str, Any]) -> Erase | None:
    """Return what a report says of an erase whose result file holds this."""
    return _erased(TypeAdapter(EraseFile).validate_json(json.dumps(data)))


def test_the_report_tells_where_the_privacy_neurons_lie() -> None:
    found = {
        "layers": [
            {"layer": 4, "part": "mlp", "closed": 3, "total": 24, "specific": {"NAME": 2}},
            {"layer": 5, "part": "attention", "closed": 0, "total": 4, "specific": {}},
        ],
        "labels": {"NAME": 1.25, "AGE": 0.5},
        "neurons": [{"neuron": 7}],
    }  # fmt: skip
    selector = {"kind": "hard_concrete", "fraction": 0.5}
    erased: dict[str, Any] = {
        "plan": {"selector": selector, "reset": "zero", "seed": 0, "entries": []},
        "changed_parameters": 1, "fraction": 0.1, "seconds": 1.0,
    }  # fmt: skip

    def shown(erased: Any) -> dict[str, Any]:
        return {s.key: s for s in changes(report_erase(erased), None)}

    section = shown({**erased, "plan": {**erased["plan"], "selector_result": found}})[
        "privacy-neurons"
    ]
    assert section.rows == (("4", "mlp", "3", "24", "NAME 2"), ("5", "attention", "0", "4", "none"))
    assert "NAME 1.25, AGE 0.50" in section.sentences[0]
    assert "privacy-neurons" not in shown(erased)


def test_the_report_says_that_rewinding_everything_is_retraining() -> None:
    erased: dict[str, Any] = {
        "plan": {"selector": {"kind": "all"}, "reset": "rewind", "seed": 0, "entries": []},
        "changed_parameters": 1, "fraction": 0.1, "seconds": 1.0,
    }  # fmt: skip
    for retrains in (True, False):
        (section,) = changes(report_erase({**erased, "retrains": retrains}), None)
        said = [s for s in section.sentences if "what follows is retraining from the base" in s]
        assert len(said) == retrains


@pytest.mark.parametrize("reset", ["zero", "reinit", "rewind"])
def test_the_report_says_that_reset_token_rows_can_be_seen(reset: Any) -> None:
    rows = {"rows": 3, "total": 16, "tensors": ["lm_head.weight"], "tied": False}
    plan = {"selector": {"kind": "all"}, "reset": reset, "seed": 0, "entries": []}
    erased: dict[str, Any] = {
        "plan": {**plan, "token_rows": rows},
        "changed_parameters": 1, "fraction": 0.1, "seconds": 1.0,
    }  # fmt: skip
    (section,) = changes(report_erase(erased), None)
    said = [s for s in section.sentences if "can tell these rows from the others" in s]
    assert "the rows of 3 of 16 tokens were reset" in " ".join(section.sentences)
    assert len(said) == (reset != "rewind")


def check_erase(sick: Checkpoint, folder: Path, settings: Any) -> Any:
    """What `sani run --check` says of an erase: whether it holds, and the sentence."""
    sick.tokenizer.save_pretrained(folder / "sick")
    sick.model.save_pretrained(folder / "sick")
    write_jsonl(corpus_of(), folder / "notes.jsonl")
    recipe = Recipe(
        version=2,
        model=ModelSettings(path=folder / "sick"),
        corpus=CorpusSettings(path=folder / "notes.jsonl"),
        erase=settings,
        gate=GateSettings(greedy=0.0, discoverable=None, auc_excess=None, perplexity_ratio=None),
    )
    (item,) = [item for item in check(recipe, folder / "out") if item.name == "erase"]
    return item.holds, item.detail


@pytest.mark.parametrize("per", ["layer", "model"])
@pytest.mark.parametrize("fraction", [0.02, 0.03, 0.4])
def test_the_check_counts_as_the_plan_does(
    sick: Checkpoint, tmp_path: Path, fraction: float, per: Any
) -> None:
    settings = EraseSettings(
        last_layers=2, selector=RandomSelector(kind="random", fraction=fraction, per=per)
    )
    holds, detail = check_erase(sick, tmp_path, settings)
    if holds:
        number = plan_erase(sick, settings).num_neurons
        assert detail == f"{number} of 56 neurons and heads in 2 layers"
    else:
        with pytest.raises(SelectionError) as caught:
            plan_erase(sick, settings)
        assert detail == str(caught.value)
    assert holds == (fraction * (MLP * 2 if per == "model" else MLP) > 0.5)


@pytest.mark.parametrize(
    ("name", "layer", "kind", "holds"),
    [
        ("mixtral", 1, "gradient_ratio", True),
        ("mixtral", 1, "integrated_gradients", True),
        ("t5", 2, "activation_ratio", True),
        ("t5", 1, "activation_ratio", False),
        ("t5", 1, "integrated_gradients", False),
        ("t5", 1, "hard_concrete", True),
        ("t5", 1, "random", True),
    ],
)
def test_the_check_knows_where_nothing_is_predicted(
    tmp_path: Path, name: str, layer: int, kind: str, holds: bool
) -> None:
    sick = Checkpoint(random_model(name), tokenizer(), tmp_path)
    settings = EraseSettings(layers=(layer,), selector=cast("Any", {"kind": kind, "fraction": 0.5}))
    found, detail = check_erase(sick, tmp_path, settings)
    assert found == holds
    assert holds or f"layer {layer} is the encoder's, which predicts none" in detail
