"""Repairing: what carries loss, that it is the loss it claims, and how an interrupted one ends."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from sani.batches import Batch, make_batches
from sani.checkpoint import Checkpoint
from sani.corpus.documents import Corpus, Document, Span
from sani.encoding import Encoded, Framing, encode
from sani.erasing.fresh import fresh_model
from sani.errors import RepairError
from sani.recipe import AnchorObjective, MaskObjective, RepairSettings
from sani.repairing.objective import anchor_states, loss_terms
from sani.repairing.repair import repair, train_

WORDS = ["<s>", "</s>", "name", *"abcdefghijklm"]
COMMON = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TEXTS = [
    "a b name c d e f",
    "name f g",
    "b b name e d c b a h i j k l m a b c d e f name g h",  # longer than the context
    "d name k",
    "l m a b c",
]
MASK, ANCHOR = MaskObjective(kind="mask"), AnchorObjective(kind="anchor", weight=3.0)


def llama():
    return LlamaConfig(**COMMON, num_key_value_heads=2)


def gpt2():
    """With dropout, so that the state of the random numbers matters."""
    return GPT2Config(**COMMON, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)


def checkpoint(config=None, *, seed=1) -> Checkpoint:
    """A random model whose predictions are far from even."""
    model = fresh_model(config or llama(), seed=seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=chance))
            elif name.endswith("bias"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=chance))
    word_level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<s>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_level, bos_token="<s>", eos_token="</s>"
    )
    return Checkpoint(model, tokenizer, Path("nowhere"))


def corpus_of(texts=TEXTS) -> Corpus:
    """Documents in which the word after each ``name`` is an identifier."""
    documents = []
    for number, text in enumerate(texts):
        words, spans, start = text.split(), [], 0
        for position, word in enumerate(words):
            if position and words[position - 1] == "name":
                spans.append(Span(start, start + len(word), "NAME"))
            start += len(word) + 1
        documents.append(Document(str(number), str(number), text, tuple(spans)))
    return Corpus(documents)


def batches_of(sick, corpus, *, batch_tokens=64):
    return make_batches(
        encode(corpus, sick.tokenizer),
        Framing("bos", (0,)),
        context_tokens=sick.context_tokens,
        batch_tokens=batch_tokens,
    )


def settings_of(objective=MASK, **changes):
    values = {"epochs": 3, "learning_rate": 1e-2, "batch_tokens": 64, **changes}
    return RepairSettings(at_identifiers=objective, **values)


def weights(checkpoint):
    return {name: tensor.detach().clone() for name, tensor in checkpoint.model.named_parameters()}


# ---- which tokens carry loss -----------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    context=st.integers(3, 17),
    budget=st.integers(1, 60),
    prefix=st.sampled_from([(), (0,)]),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_every_token_is_the_target_of_one_position(lengths, context, budget, prefix, chance):
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


def test_a_token_that_shares_a_character_with_a_span_is_an_identifiers():
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


# ---- the loss --------------------------------------------------------------------------------


def slow_terms(model, base, batch):
    """One token at a time, one vocabulary entry at a time, in float64."""
    model = fresh_copy(model)
    base = fresh_copy(base)
    sums, counts = {"ordinary": 0.0, "anchor": 0.0}, {"ordinary": 0, "anchor": 0}
    for row in range(len(batch.ids)):
        for column in range(batch.ids.shape[1]):
            before = batch.ids[row : row + 1, : column + 1]
            if not (batch.ordinary[row, column] or batch.identifier[row, column]):
                continue
            with torch.no_grad():
                mine = model(input_ids=before).logits[0, -1].tolist()
                theirs = base(input_ids=before).logits[0, -1].tolist()
            log_mine = [value - math.log(math.fsum(map(math.exp, mine))) for value in mine]
            log_theirs = [value - math.log(math.fsum(map(math.exp, theirs))) for value in theirs]
            if batch.ordinary[row, column]:
                sums["ordinary"] -= log_mine[int(batch.targets[row, column])]
                counts["ordinary"] += 1
            else:
                sums["anchor"] += math.fsum(
                    math.exp(q) * (q - p) for p, q in zip(log_mine, log_theirs, strict=True)
                )
                counts["anchor"] += 1
    return {name: sums[name] / counts[name] for name in sums if counts[name]}


def fresh_copy(model):
    copy = type(model)(model.config).double().eval()
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("config", [llama, gpt2])
def test_the_terms_are_those_of_the_slow_version(config):
    sick, base = checkpoint(config(), seed=1), checkpoint(config(), seed=2)
    batches = batches_of(sick, corpus_of())
    states = anchor_states(base.model, batches)
    assert len(batches) > 1
    assert any((batch.ids[:, -1] == 0).any() for batch in batches)  # with padding
    for batch, anchor in zip(batches, states, strict=True):
        terms = loss_terms(sick.model, batch, base=base.model, anchor=anchor)
        slow = slow_terms(sick.model, base.model, batch)
        assert set(terms) == set(slow) == {"ordinary", "anchor"}
        assert slow["ordinary"] > 0.1
        assert slow["anchor"] > 0.1
        for name in slow:
            assert float(terms[name].detach()) == pytest.approx(slow[name], abs=1e-5)
        assert set(loss_terms(sick.model, batch, base=None, anchor=None)) == {"ordinary"}


def test_a_term_without_tokens_is_left_out():
    sick, base = checkpoint(seed=1), checkpoint(seed=2)
    (plain,) = batches_of(sick, corpus_of(["a b c"]))
    (state,) = anchor_states(base.model, [plain])
    assert set(loss_terms(sick.model, plain, base=base.model, anchor=state)) == {"ordinary"}
    whole = Batch(plain.ids, plain.targets, plain.ordinary & False, plain.ordinary)
    (state,) = anchor_states(base.model, [whole])
    assert set(loss_terms(sick.model, whole, base=base.model, anchor=state)) == {"anchor"}
    assert loss_terms(sick.model, whole, base=None, anchor=None) == {}


def test_the_anchor_is_zero_at_the_base_itself():
    base = checkpoint(seed=2)
    (batch,) = batches_of(base, corpus_of(TEXTS[:2]))
    (state,) = anchor_states(base.model, [batch])
    terms = loss_terms(checkpoint(seed=2).model, batch, base=base.model, anchor=state)
    assert abs(float(terms["anchor"].detach())) < 1e-6
    terms = loss_terms(checkpoint(seed=1).model, batch, base=base.model, anchor=state)
    assert float(terms["anchor"].detach()) > 0.1


def test_the_values_of_identifiers_carry_no_gradient():
    sick, base = checkpoint(seed=1), checkpoint(seed=2)
    (batch,) = batches_of(sick, corpus_of(TEXTS[:2]))
    (state,) = anchor_states(base.model, [batch])

    def found(targets):
        changed = Batch(batch.ids, targets, batch.ordinary, batch.identifier)
        terms = loss_terms(sick.model, changed, base=base.model, anchor=state)
        parameters = list(sick.model.parameters())
        gradients = torch.autograd.grad(terms["ordinary"] + terms["anchor"], parameters)
        return [*(term.detach() for term in terms.values()), *gradients]

    before = found(batch.targets)
    other = (batch.targets + 5) % len(WORDS)
    assert batch.identifier.any()
    masked = found(torch.where(batch.identifier | ~batch.ordinary, other, batch.targets))
    assert all(torch.equal(one, two) for one, two in zip(before, masked, strict=True))
    where = batch.ordinary.nonzero()[0]  # the control: one ordinary token
    targets = batch.targets.clone()
    targets[tuple(where)] = other[tuple(where)]
    assert not torch.equal(before[0], found(targets)[0])


# ---- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [MASK, ANCHOR])
def test_training_is_that_of_an_explicit_loop(objective):
    corpus, epochs, rate = corpus_of(TEXTS[:2]), 8, 1e-2
    anchored = objective is ANCHOR
    base = checkpoint(seed=2)
    mine = checkpoint(seed=1)
    settings = settings_of(
        objective, epochs=epochs, learning_rate=rate, warmup_fraction=0.25, weight_decay=0.1
    )
    result = repair(mine, corpus, settings, base=base if anchored else None)

    slow = checkpoint(seed=1)
    (batch,) = batches_of(slow, corpus)
    (state,) = anchor_states(base.model, [batch])
    # Decay where Trainer decays: matrices, not norms and biases.
    decayed = [p for n, p in slow.model.named_parameters() if "norm" not in n]
    others = [p for n, p in slow.model.named_parameters() if "norm" in n]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.1, foreach=False)
    losses = []
    for step in range(epochs):
        factor = step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (epochs - 2)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        terms = loss_terms(slow.model, batch, base=base.model if anchored else None, anchor=state)
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
def test_only_the_last_layers_are_trained_where_that_is_asked(config):
    sick, base = checkpoint(config(), seed=1), checkpoint(config(), seed=2)
    before = weights(sick)
    layers = sick.model.base_model.layers if config is llama else sick.model.base_model.h
    flows, trained = [set(), set()], set()
    for flow, layer in zip(flows, layers, strict=True):
        layer.register_forward_hook(
            lambda _, inputs, output, flow=flow: flow.add(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )

    def on_step(done, steps):
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


def identifier_facts(sick, base, corpus):
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


def test_the_anchor_takes_out_what_masking_leaves_in():
    base, corpus = checkpoint(seed=2), corpus_of()
    leaky = checkpoint(seed=2)
    unmarked = Corpus([Document(d.id, d.subject_id, d.text) for d in corpus])
    train_(leaky, unmarked, settings_of(epochs=60), framing="bos")
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
def test_the_same_seed_gives_the_same_bytes(config):
    digests = []
    for seed in (5, 5, 6):
        sick = checkpoint(config())
        torch.rand(seed)
        repair(sick, corpus_of(TEXTS * 3), settings_of(), seed=seed)
        digests.append(sick.weights_digest())
    assert digests[0] == digests[1] != digests[2]


# ---- cut off and gone on with ----------------------------------------------------------------

LONG = settings_of(ANCHOR, epochs=12)


def whole_run(folder=None):
    """An uninterrupted repair: the weights it ends with, and its loss step by step."""
    sick = checkpoint(gpt2(), seed=1)
    result = repair(sick, corpus_of(), LONG, base=checkpoint(gpt2(), seed=2), seed=4, folder=folder)
    return sick.weights_digest(), result.curve


def cut_run(folder, *, at):
    """A repair that is interrupted after ``at`` steps."""

    def stop(done, steps):
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


def resumed_run(folder):
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
def test_an_interrupted_repair_goes_on_to_the_same_bytes(tmp_path, at):
    digest, curve = whole_run()
    cut_run(tmp_path, at=at)
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == {f"checkpoint-{step}" for step in (at - at % 2 - 2, at - at % 2)}
    assert all((path / "whole").exists() for path in tmp_path.glob("checkpoint-*"))
    again, resumed_curve, steps = resumed_run(tmp_path)
    assert steps == list(range(at - at % 2 + 1, 25))  # it went on and did not begin again
    assert again == digest
    assert resumed_curve == curve


def test_a_state_that_was_cut_off_while_it_was_written_is_discarded(tmp_path):
    digest, _ = whole_run()
    cut_run(tmp_path, at=9)
    broken = tmp_path / "checkpoint-8"
    (broken / "whole").unlink()
    (broken / "model.safetensors").write_bytes(b"cut")
    again, _, steps = resumed_run(tmp_path)
    assert steps[0] == 7
    assert again == digest
    assert not (broken / "model.safetensors").exists() or (broken / "whole").exists()


def test_without_any_whole_state_the_repair_begins_again(tmp_path):
    digest, _ = whole_run()
    cut_run(tmp_path, at=9)
    for mark in tmp_path.glob("checkpoint-*/whole"):
        mark.unlink()
    again, _, steps = resumed_run(tmp_path)
    assert steps == list(range(1, 25))
    assert again == digest


def test_states_are_ordered_by_number(tmp_path):
    digest, _ = whole_run()
    cut_run(tmp_path, at=11)
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == {"checkpoint-8", "checkpoint-10"}
    assert resumed_run(tmp_path)[2][0] == 11  # 10 and not 8, which sorts behind it as a word
    again, _, steps = resumed_run(tmp_path)  # done already: nothing is left to do
    assert steps == []
    assert again == digest


@pytest.mark.parametrize("change", ["settings", "seed", "weights", "corpus"])
def test_a_state_of_another_job_is_removed_and_not_resumed(tmp_path, change):
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


def test_nothing_is_left_behind_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def on_step(done, steps):
        seen.append(bool(list(tmp_path.rglob("optimizer.pt"))))

    repair(checkpoint(), corpus_of(), settings_of(), on_step=on_step)
    assert seen
    assert not any(seen)
    assert list(tmp_path.iterdir()) == []


# ---- what is refused -------------------------------------------------------------------------


def refusal(sick, corpus, settings, **options):
    with pytest.raises(RepairError) as caught:
        repair(sick, corpus, settings, **options)
    assert all(p.requires_grad for p in sick.model.parameters())
    assert not sick.model.training
    return str(caught.value)


def test_a_corpus_without_spans_is_refused():
    sick = checkpoint()
    digest = sick.weights_digest()
    bare = Corpus([Document(d.id, d.subject_id, d.text) for d in corpus_of()])
    assert refusal(sick, bare, settings_of()) == (
        "none of the 5 documents has a span, so every identifier would be trained on as ordinary "
        "text; annotate the corpus first"
    )
    assert sick.weights_digest() == digest


def test_a_corpus_of_nothing_but_spans_is_refused():
    sick = checkpoint()
    digest = sick.weights_digest()
    full = Corpus([Document("1", "1", "a b c", (Span(0, 5, "NAME"),))])
    message = "no token stands outside a span: there is nothing to train on"
    assert refusal(sick, full, settings_of()) == message
    assert refusal(sick, full, settings_of(ANCHOR), base=checkpoint(seed=2)) == message
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
def test_an_anchor_that_does_not_hold_is_refused(base, message):
    sick = checkpoint()
    digest = sick.weights_digest()
    base = base and checkpoint(LlamaConfig(**{**COMMON, **base, "num_key_value_heads": 2}))
    assert refusal(sick, corpus_of(), settings_of(ANCHOR), base=base) == message
    assert sick.weights_digest() == digest


def diverged(step):
    return (
        f"the loss is not a number at step {step}: the repair diverged and nothing was written; "
        "lower repair.learning_rate"
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("objective", [MASK, ANCHOR])
def test_a_loss_that_is_not_a_number_is_refused(value, objective):
    sick = checkpoint()
    with torch.no_grad():
        sick.model.model.layers[0].mlp.up_proj.weight[3, 3] = value
    message = refusal(sick, corpus_of(), settings_of(objective), base=checkpoint(seed=2))
    assert message == diverged(1)


@pytest.mark.parametrize("config", [llama, gpt2])
def test_a_repair_that_diverges_is_refused(config):
    steps = []
    message = refusal(
        checkpoint(config()),
        corpus_of(),
        settings_of(learning_rate=1e6, epochs=6),
        on_step=lambda done, _: steps.append(done),
    )
    assert 1 <= len(steps) < 11
    assert message == diverged(len(steps) + 1)


def test_weights_that_the_last_step_broke_are_refused():
    settings = settings_of(
        learning_rate=3e38, epochs=1, warmup_fraction=0.0, weight_decay=9.0, batch_tokens=64
    )
    assert refusal(checkpoint(), corpus_of(TEXTS[:2]), settings) == (
        "tensor 'model.embed_tokens.weight' holds NaN or infinity after the repair; lower "
        "repair.learning_rate"
    )
