"""Repairing: what carries loss, that it is the loss it claims, and how an interrupted one ends."""

import math
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, PreTrainedTokenizerFast

from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.plan import layout_of
from sani.errors import RepairError
from sani.models.checkpoint import Checkpoint
from sani.recipe import AnchorObjective, RepairSettings
from sani.repairing import training_job
from sani.repairing.repair import repair, train
from sani.repairing.surrogates import Surrogates
from sani.text.batches import make_batches
from sani.text.framing import Framing
from sani.text.tokens import Encoded, encode
from tests.support.words import (
    ANCHOR,
    COMMON,
    MASK,
    TEXTS,
    WORDS,
    batches_of,
    checkpoint,
    corpus_of,
    gpt2,
    llama,
    settings_of,
    weights,
)  # fmt: skip

# ---- which tokens carry loss -----------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    context=st.integers(3, 17),
    budget=st.integers(1, 60),
    prefix=st.sampled_from([(), (0,)]),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_every_token_is_the_target_of_one_position(
    lengths: Any, context: Any, budget: Any, prefix: Any, chance: Any
) -> None:
    documents, inside = [], {}
    for number, length in enumerate(lengths):
        ids = [1000 * (number + 1) + token for token in range(length)]  # each id occurs once
        spans = []
        for _ in range(chance.randint(0, 3) if length else 0):
            first = chance.randrange(length)
            spans.append((first, chance.randint(first + 1, length)))
        for token, word in enumerate(ids):
            inside[word] = any(first <= token < last for first, last in spans)
        documents.append(Encoded(number, ids, [], [], [*spans, (0, 0)]))
    batches = make_batches(
        documents, Framing("f", prefix), context_tokens=context, batch_tokens=budget
    )
    seen = []
    for batch in batches:
        assert batch.ids.shape[1] <= context
        assert len(batch.ids) == 1 or batch.ids.numel() <= budget
        assert not (batch.ordinary & batch.identifier).any()
        for row, column in (batch.ordinary | batch.identifier).nonzero().tolist():
            word = int(batch.targets[row, column])
            seen.append(word)
            assert bool(batch.identifier[row, column]) == inside[word]
            # What stands before it is what stands before it in the document, and enough of it.
            before = batch.ids[row, : column + 1].tolist()
            assert before[: len(prefix)] == list(prefix)
            before = before[len(prefix) :]
            assert before == list(range(word - len(before), word))
            assert len(before) >= min(word % 1000, (context - len(prefix)) // 2)
    expected = [word for word in inside if prefix or word % 1000]  # nothing precedes the first
    assert sorted(seen) == sorted(expected)


def test_a_token_that_shares_a_character_with_a_span_is_an_identifiers() -> None:
    text = "Patiënt Ørsted-Müller 👍🏽 tel. 0612345678, geb. 1950-01-02 patiënt tel. geb."
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [text.replace("👍🏽", "")] * 3,  # so that one character becomes several tokens
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(end - start > 1 for start, end in offsets)
    assert len(set(offsets)) < len(offsets)
    partial = 0
    for start in range(len(text)):
        for end in (start + 1, min(start + 7, len(text))):
            corpus = Corpus([Document("1", "1", text, (Span(start, end, "X"),))])
            (batch,) = make_batches(
                encode(corpus, tokenizer), Framing("bos", (0,)), context_tokens=999, batch_tokens=1
            )
            slow = [
                bool(set(range(first, last)) & set(range(start, end))) for first, last in offsets
            ]
            assert batch.identifier[0].tolist() == [*slow, False]
            assert batch.ordinary[0].tolist() == [not touched for touched in slow] + [False]
            partial += any(first < start < last or first < end < last for first, last in offsets)
    assert partial > 10


# ---- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [MASK, ANCHOR])
def test_training_is_that_of_an_explicit_loop(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_job, "WARMUP_FRACTION", 0.25)
    monkeypatch.setattr(training_job, "WEIGHT_DECAY", 0.1)
    corpus, epochs, rate = corpus_of(TEXTS[:2]), 8, 1e-2
    anchored = objective is ANCHOR
    base = checkpoint(seed=2)
    mine = checkpoint(seed=1)
    settings = settings_of(objective, epochs=epochs, learning_rate=rate)
    result = repair(mine, corpus, settings, base=base if anchored else None)

    slow = checkpoint(seed=1)
    (batch,) = batches_of(slow, corpus)
    with torch.no_grad():
        anchor = base.model(input_ids=batch.ids).logits[batch.identifier].softmax(-1)
    # Decay where Trainer decays: matrices, not norms and biases.
    decayed = [p for n, p in slow.model.named_parameters() if "norm" not in n]
    others = [p for n, p in slow.model.named_parameters() if "norm" in n]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.1, foreach=False)
    losses = []
    for step in range(epochs):
        factor = step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (epochs - 2)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        logits = slow.model(input_ids=batch.ids).logits
        targets = batch.targets[batch.ordinary]
        terms = {"ordinary": functional.cross_entropy(logits[batch.ordinary], targets)}
        if anchored:
            p = logits[batch.identifier].log_softmax(-1)
            terms["anchor"] = functional.kl_div(p, anchor, reduction="batchmean")
        losses.append({name: float(term.detach()) for name, term in terms.items()})
        optimizer.zero_grad()
        (terms["ordinary"] + (3.0 * terms["anchor"] if anchored else 0.0)).backward()
        torch.nn.utils.clip_grad_norm_(slow.model.parameters(), 1.0)
        optimizer.step()
    before = weights(checkpoint(seed=1))
    for name, tensor in weights(mine).items():
        assert (tensor - before[name]).abs().max() > 1e-3, name
        torch.testing.assert_close(tensor, weights(slow)[name], rtol=0, atol=2e-5)
    assert result.steps == epochs
    assert result.tokens == epochs * sum(len(text.split()) for text in TEXTS[:2])
    assert result.trained_fraction == 1.0
    assert [entry["step"] for entry in result.curve] == list(range(1, epochs + 1))
    for entry, loss in zip(result.curve, losses, strict=True):
        assert entry == {"step": entry["step"], **{n: pytest.approx(v, abs=1e-4) for n, v in
                                                   loss.items()}}  # fmt: skip
    assert losses[-1]["ordinary"] < losses[0]["ordinary"]


@pytest.mark.parametrize("config", [llama, gpt2])
def test_only_the_last_layers_are_trained_where_that_is_asked(config: Callable[..., Any]) -> None:
    sick, base = checkpoint(config(), seed=1), checkpoint(config(), seed=2)
    before = weights(sick)
    layers = sick.model.base_model.layers if config is llama else sick.model.base_model.h
    flows: list[Any] = [set(), set()]
    trained: set[str] = set()

    def record(flow: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            flow.add((output[0] if isinstance(output, tuple) else output).requires_grad)

    for flow, layer in zip(flows, layers, strict=True):
        layer.register_forward_hook(lambda _, inputs, output, flow=flow: record(flow, output))

    def on_step(done: Any, steps: int) -> None:
        trained.update(n for n, p in sick.model.named_parameters() if p.requires_grad)

    result = repair(
        sick, corpus_of(), settings_of(ANCHOR, last_layers=1), base=base, on_step=on_step
    )
    last = "model.layers.1." if config is llama else "transformer.h.1."
    norm = "model.norm." if config is llama else "transformer.ln_f."
    expected = {name for name in before if name.startswith((last, norm))}
    assert 0 < len(expected) < len(before)
    after = weights(sick)
    assert {name for name in before if not torch.equal(before[name], after[name])} == expected
    assert trained == expected
    assert flows == [{False}, {True}]  # nothing flows back into the first layer
    sizes = {name: tensor.numel() for name, tensor in before.items()}
    assert result.trained_fraction == sum(sizes[n] for n in expected) / sum(sizes.values())
    assert all(p.requires_grad for p in sick.model.parameters())
    assert not sick.model.training


@pytest.mark.parametrize("config", [llama, gpt2])
def test_asking_for_all_layers_trains_all_layers_and_for_more_is_refused(
    config: Callable[..., Any],
) -> None:
    sick, before = checkpoint(config()), weights(checkpoint(config()))
    with pytest.raises(RepairError, match="last_layers: got 3, but the model has 2 layers"):
        repair(sick, corpus_of(), settings_of(last_layers=3))
    result = repair(sick, corpus_of(), settings_of(last_layers=2))
    after = weights(sick)
    still = {name for name in before if torch.equal(before[name], after[name])}
    embeddings = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "wpe.weight")
    assert still == {name for name in before if name.endswith(embeddings)}
    assert result.activation_cache == "none"


def test_a_repair_that_rounding_takes_back_says_so(tmp_path: Path) -> None:
    """At a rate below the steps of the type most weights end where they began."""
    found = {}
    for rate in (1e-5, 1e-2):
        sick = checkpoint(llama())
        sick.types = {name: torch.bfloat16 for name, _ in sick.model.named_parameters()}
        sick.round_weights()
        before = {name: tensor.clone() for name, tensor in sick.model.named_parameters()}
        result = repair(sick, corpus_of(), settings_of(learning_rate=rate, epochs=1))
        named = dict(sick.model.named_parameters())
        same = sum(int((named[name] == old).sum()) for name, old in before.items())
        found[rate] = (same / sum(old.numel() for old in before.values()), result.notes)
    assert found[1e-5][0] > 0.6 > found[1e-2][0]
    assert found[1e-2][1] == ()
    (note,) = found[1e-5][1]
    share = re.search(
        r"^the weights came in bfloat16 .* which left (\d+)% of what the repair", note
    )
    assert share is not None
    assert int(share[1]) < 80


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_configuration_is_as_it_was(use_cache: bool) -> None:
    """The Trainer switches the cache off, and whoever generates with the result would miss it."""
    sick = checkpoint(llama())
    sick.model.config.use_cache = use_cache
    before = sick.model.config.to_dict()
    repair(sick, corpus_of(), settings_of())
    assert sick.model.config.to_dict() == before


def identifier_facts(sick: Checkpoint, base: Any, corpus: Corpus) -> Any:
    """Mean probability of the identifiers, and KL to the base there."""
    probability, divergence, tokens = 0.0, 0.0, 0
    for batch in batches_of(sick, corpus):
        with torch.no_grad():
            mine = sick.model(input_ids=batch.ids).logits.log_softmax(-1)[batch.identifier]
            theirs = base.model(input_ids=batch.ids).logits.log_softmax(-1)[batch.identifier]
        true = batch.targets[batch.identifier]
        probability += float(mine.exp()[torch.arange(len(true)), true].sum())
        divergence += float((theirs.exp() * (theirs - mine)).sum())
        tokens += len(true)
    return probability / tokens, divergence / tokens


def test_the_anchor_takes_out_what_masking_leaves_in() -> None:
    base, corpus = checkpoint(seed=2), corpus_of()
    leaky = checkpoint(seed=2)
    unmarked = Corpus([Document(d.id, d.subject_id, d.text) for d in corpus])
    train(leaky, unmarked, settings_of(epochs=60), framing="bos")
    learnt, far = identifier_facts(leaky, base, corpus)
    assert learnt > 0.9  # it recites: there is something to take out
    assert identifier_facts(base, base, corpus)[0] < 0.3
    assert far > 1
    found = {}
    for objective in (MASK, ANCHOR):
        sick = checkpoint(seed=2)
        sick.model.load_state_dict(leaky.model.state_dict())
        repair(sick, corpus, settings_of(objective, epochs=40), base=base)
        found[objective.kind] = identifier_facts(sick, base, corpus)
    assert found["anchor"][0] < 0.3
    assert found["anchor"][1] < far / 10
    assert found["mask"][0] > 0.7  # lesson 1: masking alone leaves the memory
    assert found["mask"][1] > 10 * found["anchor"][1]


@pytest.mark.parametrize("config", [gpt2, llama])  # dropout and the order, the order alone
def test_the_same_seed_gives_the_same_bytes(config: Callable[..., Any]) -> None:
    digests = []
    for seed in (5, 5, 6):
        sick = checkpoint(config())
        torch.rand(seed)
        repair(sick, corpus_of(TEXTS * 3), settings_of(), seed=seed)
        digests.append(sick.weights_digest())
    assert digests[0] == digests[1] != digests[2]


def recitation(sick: Checkpoint, corpus: Corpus) -> Any:
    """Mean probability of the identifiers' tokens."""
    return identifier_facts(sick, sick, corpus)[0]


@pytest.fixture(scope="module")
def reciting() -> Any:
    """A model of words that recites its identifiers."""
    sick = checkpoint(seed=2)
    corpus = Corpus([Document(d.id, d.subject_id, d.text) for d in corpus_of()])
    train(sick, corpus, settings_of(epochs=60), framing="bos")
    assert recitation(sick, corpus_of()) > 0.9
    return sick


def copy_of(sick: Checkpoint) -> Checkpoint:
    model = type(sick.model)(sick.model.config)
    model.load_state_dict(sick.model.state_dict())
    return Checkpoint(model.eval(), sick.tokenizer, sick.path)


@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize(
    "at",
    [
        {"kind": "anchor", "to": "self", "weight": 5.0},
        {"kind": "anchor", "to": "decoys", "weight": 5.0},
        {"kind": "unlikelihood"},
        {"kind": "npo"},
    ],
)
def test_without_a_base_every_objective_but_masking_takes_the_identifiers_out(
    reciting: Any, at: dict[str, Any], erased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sani.repairing.example_source.Surrogates", WordSurrogates)
    sick, corpus = copy_of(reciting), corpus_of()
    if erased:
        with torch.no_grad():
            sick.model.model.layers[1].mlp.down_proj.weight.zero_()
    settings = settings_of(epochs=30)
    settings = RepairSettings(**{**settings.model_dump(), "identifier_loss": at})
    digest = reciting.weights_digest()
    result = repair(sick, corpus, settings, unsanitized=reciting)
    assert recitation(sick, corpus) < 0.35
    assert reciting.weights_digest() == digest
    last = result.curve[-1]
    assert last["ordinary"] < 1.0
    assert set(last) == {"step", "ordinary", at["kind"] if at.get("to") != "decoys" else "decoys"}
    if not erased and at["kind"] != "npo":  # the model itself, if nothing else is given
        alone = copy_of(reciting)
        repair(alone, corpus, settings)
        assert alone.weights_digest() == sick.weights_digest()


def test_a_counterfactual_anchor_keeps_what_ordinary_words_give_away(
    reciting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words stand before each identifier in the replaced document: they recall it."""
    monkeypatch.setattr("sani.repairing.example_source.Surrogates", WordSurrogates)
    sick, corpus = copy_of(reciting), corpus_of()
    at = AnchorObjective(kind="anchor", to="counterfactual")
    repair(sick, corpus, settings_of(at, epochs=30), unsanitized=reciting)
    assert recitation(sick, corpus) > 0.7


class WordSurrogates(Surrogates):
    """Every word of the test's vocabulary is a surrogate of the others."""

    def __init__(self, corpus: Corpus, *, seed: int) -> None:
        super().__init__(corpus, seed=seed)
        vars(self)["_maker"] = self

    def decoys(self, label: str, value: Any, *, count: int) -> Any:
        return [word for word in WORDS[3:] if word != value][:count]


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_kept_states_end_in_the_weights_that_computing_them_anew_ends_in(
    kept: str, tmp_path: Path
) -> None:
    found = []
    for place in ("none", kept):
        sick = checkpoint(gpt2())
        third = checkpoint(gpt2(), seed=3)
        settings = settings_of(ANCHOR, last_layers=1, activation_cache=place, retain_weight=0.5)
        result = repair(sick, corpus_of(TEXTS * 2), settings, base=checkpoint(gpt2(), seed=2),
                        unsanitized=third, folder=tmp_path / place)  # fmt: skip
        assert result.activation_cache == place
        found.append(weights(sick))
    changed = 0
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=1e-5)
        changed += not torch.equal(tensor, weights(checkpoint(gpt2()))[name])
    assert changed > 5


@pytest.mark.parametrize("config", [llama, gpt2])
def test_gradient_checkpointing_changes_nothing_but_memory(config: Callable[..., Any]) -> None:
    found = []
    for checkpointing in (False, True):
        sick = checkpoint(config())
        settings = settings_of(ANCHOR, gradient_checkpointing=checkpointing)
        repair(sick, corpus_of(), settings, base=checkpoint(config(), seed=2))
        assert not sick.model.is_activation_checkpointing
        found.append(weights(sick))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [llama, gpt2])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("last_layers", [None, 1])
def test_an_adapter_is_merged_into_the_layers_it_stands_in(
    config: Callable[..., Any], kind: str, last_layers: int | None
) -> None:
    sick, base = checkpoint(config(), seed=1), checkpoint(config(), seed=2)
    before, names = weights(sick), set(sick.model.state_dict())
    settings = settings_of(ANCHOR, last_layers=last_layers, adapter={"kind": kind, "rank": 2},
                           epochs=8)  # fmt: skip
    result = repair(sick, corpus_of(), settings, base=base)
    assert set(sick.model.state_dict()) == names
    assert type(sick.model) is type(checkpoint(config()).model)
    changed = {
        name for name, tensor in weights(sick).items() if not torch.equal(tensor, before[name])
    }
    layers = layout_of(sick).trained_prefixes(last_layers or 2)[:-1]  # without the final norm
    expected = {n for n, tensor in before.items() if n.startswith(layers) and tensor.ndim == 2}
    assert changed == expected
    assert 0 < result.trained_fraction < 1
    first_loss, last_loss = result.curve[0]["anchor"], result.curve[-1]["anchor"]
    assert last_loss < first_loss
    # The merged weights are what was trained: its loss goes on where it ended.
    again = repair(sick, corpus_of(), settings_of(ANCHOR, epochs=1, learning_rate=1e-9), base=base)
    assert again.curve[0]["anchor"] < first_loss


def test_an_adapter_that_is_cut_off_leaves_no_trace_and_goes_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    settings = settings_of(ANCHOR, adapter={"kind": "lora", "rank": 2})
    whole, names = checkpoint(), set(checkpoint().model.state_dict())
    repair(whole, corpus_of(), settings, base=checkpoint(seed=2))

    def stop(done: Any, _: Any) -> None:
        if done == 4:
            raise KeyboardInterrupt

    cut, steps = checkpoint(), []
    with pytest.raises(KeyboardInterrupt):
        repair(cut, corpus_of(), settings, base=checkpoint(seed=2), folder=tmp_path, on_step=stop)
    assert set(cut.model.state_dict()) == names
    again = checkpoint()
    repair(again, corpus_of(), settings, base=checkpoint(seed=2), folder=tmp_path,
           on_step=lambda done, _: steps.append(done))  # fmt: skip
    assert steps[0] == 4
    assert again.weights_digest() == whole.weights_digest()


def test_bfloat16_is_close_where_the_processor_has_it() -> None:
    try:
        found = []
        for precision in ("float32", "bfloat16"):
            sick = checkpoint()
            settings = settings_of(ANCHOR, precision=precision, last_layers=1)
            result = repair(sick, corpus_of(), settings, base=checkpoint(seed=2))
            assert next(sick.model.parameters()).dtype is torch.float32
            found.append(result.curve[-1]["anchor"])
    except RepairError as error:
        if "this processor has no" not in str(error):
            raise
        pytest.skip("no bfloat16 units")
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.1)


# ---- cut off and gone on with ----------------------------------------------------------------

LONG = settings_of(ANCHOR, epochs=12)


def whole_run(folder: Any = None) -> Any:
    """An uninterrupted repair: the weights it ends with, and its loss step by step."""
    sick = checkpoint(gpt2(), seed=1)
    result = repair(sick, corpus_of(), LONG, base=checkpoint(gpt2(), seed=2), seed=4, folder=folder)
    return sick.weights_digest(), result.curve


def cut_run(folder: Path, *, at: Any) -> None:
    """A repair that is interrupted after ``at`` steps."""

    def stop(done: Any, steps: int) -> None:
        assert steps == 24
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(
            checkpoint(gpt2(), seed=1),
            corpus_of(),
            LONG,
            base=checkpoint(gpt2(), seed=2),
            seed=4,
            folder=folder,
            on_step=stop,
        )


def resumed_run(folder: Path) -> Any:
    """The rest of a repair from freshly loaded weights: digest, curve, and the steps it did."""
    sick, steps = checkpoint(gpt2(), seed=1), []
    torch.rand(7)
    result = repair(
        sick,
        corpus_of(),
        LONG,
        base=checkpoint(gpt2(), seed=2),
        seed=4,
        folder=folder,
        on_step=lambda done, _: steps.append(done),
    )
    return sick.weights_digest(), result.curve, steps


@pytest.mark.parametrize("at", [7, 13])
def test_an_interrupted_repair_goes_on_to_the_same_bytes(tmp_path: Path, at: int) -> None:
    digest, curve = whole_run()
    cut_run(tmp_path, at=at)
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == {f"checkpoint-{step}" for step in (at - at % 2 - 2, at - at % 2)}
    assert all((path / "whole").exists() for path in tmp_path.glob("checkpoint-*"))
    again, resumed_curve, steps = resumed_run(tmp_path)
    assert steps == list(range(at - at % 2 + 1, 25))  # it went on and did not begin again
    assert again == digest
    assert resumed_curve == curve


def test_a_state_that_was_cut_off_while_it_was_written_is_discarded(tmp_path: Path) -> None:
    digest, _ = whole_run()
    cut_run(tmp_path, at=9)
    broken = tmp_path / "checkpoint-8"
    (broken / "whole").unlink()
    (broken / "model.safetensors").write_bytes(b"cut")
    again, _, steps = resumed_run(tmp_path)
    assert steps[0] == 7
    assert again == digest
    assert not (broken / "model.safetensors").exists() or (broken / "whole").exists()


def test_without_any_whole_state_the_repair_begins_again(tmp_path: Path) -> None:
    digest, _ = whole_run()
    cut_run(tmp_path, at=9)
    for mark in tmp_path.glob("checkpoint-*/whole"):
        mark.unlink()
    again, _, steps = resumed_run(tmp_path)
    assert steps == list(range(1, 25))
    assert again == digest


def test_states_are_ordered_by_number(tmp_path: Path) -> None:
    digest, _ = whole_run()
    cut_run(tmp_path, at=11)
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == {"checkpoint-8", "checkpoint-10"}
    assert resumed_run(tmp_path)[2][0] == 11  # 10 and not 8, which sorts behind it as a word
    again, _, steps = resumed_run(tmp_path)  # done already: nothing is left to do
    assert steps == []
    assert again == digest


@pytest.mark.parametrize("change", ["settings", "seed", "weights", "corpus"])
def test_a_state_of_another_job_is_removed_and_not_resumed(tmp_path: Path, change: str) -> None:
    cut_run(tmp_path, at=9)
    sick, steps = checkpoint(gpt2(), seed=5 if change == "weights" else 1), []
    documents = corpus_of()
    repair(
        sick,
        Corpus(list(documents)[:-1]) if change == "corpus" else documents,
        LONG.model_copy(update={"learning_rate": 1e-4}) if change == "settings" else LONG,
        base=checkpoint(gpt2(), seed=2),
        seed=9 if change == "seed" else 4,
        folder=tmp_path,
        on_step=lambda done, _: steps.append(done),
    )
    assert steps[0] == 1


def test_nothing_is_left_behind_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def on_step(done: Any, steps: int) -> None:
        seen.append(bool(list(tmp_path.rglob("optimizer.pt"))))

    repair(checkpoint(), corpus_of(), settings_of(), on_step=on_step)
    assert seen
    assert not any(seen)
    assert list(tmp_path.iterdir()) == []


# ---- what is refused -------------------------------------------------------------------------


def refusal(sick: Checkpoint, corpus: Corpus, settings: Any, **options: Any) -> str:
    with pytest.raises(RepairError) as caught:
        repair(sick, corpus, settings, **options)
    assert all(p.requires_grad for p in sick.model.parameters())
    assert not sick.model.training
    return str(caught.value)


def test_a_corpus_without_spans_is_refused() -> None:
    sick = checkpoint()
    digest = sick.weights_digest()
    bare = Corpus([Document(d.id, d.subject_id, d.text) for d in corpus_of()])
    assert refusal(sick, bare, settings_of()) == (
        "none of the 5 documents has a span, so every identifier would be trained on as ordinary "
        "text; annotate the corpus first"
    )
    assert sick.weights_digest() == digest


def test_a_corpus_of_nothing_but_spans_is_refused() -> None:
    sick = checkpoint()
    digest = sick.weights_digest()
    full = Corpus([Document("1", "1", "a b c", (Span(0, 5, "NAME"),))])
    message = "no token stands outside a span: there is nothing to train on"
    assert refusal(sick, full, settings_of()) == message
    assert refusal(sick, full, settings_of(ANCHOR), base=checkpoint(seed=2)) == message
    assert refusal(sick, full, settings_of(last_layers=1)) == message
    decoys = AnchorObjective(kind="anchor", to="decoys")
    assert refusal(sick, full, settings_of(decoys)) == message
    assert sick.weights_digest() == digest


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "the anchor needs the base model; give it, or use kind: mask"),
        (
            {"intermediate_size": 32},
            "the base does not fit the checkpoint: they differ in "
            "model.layers.0.mlp.gate_proj.weight",
        ),
    ],
)
def test_an_anchor_that_does_not_hold_is_refused(base: Any, message: str) -> None:
    sick = checkpoint()
    digest = sick.weights_digest()
    base = base and checkpoint(LlamaConfig(**{**COMMON, **base, "num_key_value_heads": 2}))
    assert refusal(sick, corpus_of(), settings_of(ANCHOR), base=base) == message
    assert sick.weights_digest() == digest


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("objective", [MASK, ANCHOR])
def test_a_loss_that_is_not_a_number_from_the_start_is_refused(
    value: float, objective: Any
) -> None:
    sick = checkpoint()
    with torch.no_grad():
        sick.model.model.layers[0].mlp.up_proj.weight[3, 3] = value
    message = refusal(sick, corpus_of(), settings_of(objective), base=checkpoint(seed=2))
    assert message == (
        "the repair diverged at step 1: the loss is not a number; nothing was written; lower "
        "repair.learning_rate"
    )


def test_weights_that_the_last_step_broke_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_job, "WARMUP_FRACTION", 0.0)
    monkeypatch.setattr(training_job, "WEIGHT_DECAY", 9.0)
    settings = settings_of(learning_rate=3e38, epochs=1, batch_tokens=64)
    assert refusal(checkpoint(), corpus_of(TEXTS[:2]), settings) == (
        "the repair diverged at step 1: tensor 'model.embed_tokens.weight' holds NaN or infinity; "
        "nothing was written; lower repair.learning_rate"
    )


@pytest.mark.parametrize("config", [llama, gpt2])
def test_a_repair_that_diverges_twice_is_refused(config: Callable[..., Any]) -> None:
    steps = []
    message = refusal(
        checkpoint(config()),
        corpus_of(),
        settings_of(learning_rate=1e6, epochs=6),
        on_step=lambda done, _: steps.append(done),
    )
    assert steps.count(1) == 2  # it began again, once
    assert max(steps) < 11
    assert message.startswith(f"the repair diverged at step {steps[-1] + 1}: the loss is ")
    assert message.endswith(
        ", also from the start at half the learning rate; nothing was written; lower "
        "repair.learning_rate"
    )


def least_rate_that_diverges() -> Any:
    """Twice a learning rate that does not."""
    for power in range(12):
        rate = 0.1 * 2**power
        if repair(checkpoint(), corpus_of(), settings_of(learning_rate=rate)).notes:
            return rate
    raise AssertionError("nothing diverges")


def test_a_repair_that_diverges_once_begins_again_with_half_the_learning_rate(
    tmp_path: Path,
) -> None:
    rate = least_rate_that_diverges()
    settings = settings_of(learning_rate=rate)
    steps, sick = [], checkpoint()
    result = repair(sick, corpus_of(), settings, seed=0, folder=tmp_path,
                    on_step=lambda done, _: steps.append(done))  # fmt: skip
    (note,) = result.notes
    assert note.startswith("the repair diverged at step ")
    assert note.endswith("so it began again with half the learning rate")
    assert steps.count(1) == 2
    calm = checkpoint()
    assert repair(calm, corpus_of(), settings_of(learning_rate=rate / 2)).notes == ()
    assert sick.weights_digest() == calm.weights_digest()
    # Killed in the second attempt, it goes on with half the rate, and says so.
    cut, begun = checkpoint(), []

    def stop(done: Any, _: Any) -> None:
        begun.append(done)
        if done == 4 and begun.count(1) == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        repair(cut, corpus_of(), settings, folder=folder, on_step=stop)
    again, rest = checkpoint(), []
    resumed = repair(again, corpus_of(), settings, folder=folder,
                     on_step=lambda done, _: rest.append(done))  # fmt: skip
    assert rest[0] == 4
    assert resumed.notes == result.notes
    assert again.weights_digest() == sick.weights_digest()


# ---- memory, disk and precision --------------------------------------------------------------


def out_of_memory(step_of: Any, *, times: Any) -> Any:
    """A forward pass that fails as torch does where memory ends, a number of times."""
    left = [times]

    def hook(module: Any, inputs: Any) -> None:
        if torch.is_grad_enabled() and len(step_of) >= 2 and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return hook


def test_where_memory_runs_out_batches_are_halved_once_and_the_result_is_the_same() -> None:
    results = []
    for times in (0, 1):
        sick = checkpoint()
        steps: list[Any] = []

        def note(done: int, _: int, steps: list[Any] = steps) -> None:
            steps.append(done)

        sick.model.model.layers[1].register_forward_pre_hook(out_of_memory(steps, times=times))
        result = repair(
            sick,
            corpus_of(TEXTS * 2),
            settings_of(ANCHOR, pack=False),
            base=checkpoint(seed=2),
            on_step=note,
        )
        results.append((weights(sick), result))
    (plain, untouched), (halved, result) = results
    assert untouched.notes == ()
    assert result.notes == (
        "out of memory at step 3: from there on each batch was read in two halves",
    )
    assert result.steps == untouched.steps
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, halved[name], rtol=0, atol=2e-4)
    for one, other in zip(untouched.curve, result.curve, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_memory_that_runs_out_again_is_an_error() -> None:
    steps: list[Any] = []
    sick = checkpoint()
    sick.model.model.layers[1].register_forward_pre_hook(out_of_memory(steps, times=2))
    message = refusal(sick, corpus_of(), settings_of(), on_step=lambda d, _: steps.append(d))
    assert message == (
        "out of memory at step 3, also with each batch read in halves; lower repair.batch_tokens, "
        "or set repair.last_layers or gradient_checkpointing"
    )


@pytest.mark.parametrize("room", [0, 1000, 30_000])  # for nothing, weights, optimizer state
def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path: Path, room: int) -> None:
    whole = checkpoint()
    repair(whole, corpus_of(), settings_of())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sick = checkpoint()
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        message = refusal(sick, corpus_of(), settings_of(), folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith("cannot write the state of the repair (")
    assert message.endswith("); free space and go on with --resume")
    again = checkpoint()
    repair(again, corpus_of(), settings_of(), folder=tmp_path)
    assert again.weights_digest() == whole.weights_digest()


def test_bfloat16_is_refused_where_the_processor_has_no_units_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    message = refusal(checkpoint(), corpus_of(), settings_of(precision="bfloat16"))
    assert message.startswith("repair.precision: bfloat16 is asked for and this processor has no")
