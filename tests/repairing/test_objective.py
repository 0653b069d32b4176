"""The repair's loss: that each term is the one it claims, however it is computed."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.plan import layout_of
from sani.models.checkpoint import Checkpoint
from sani.models.neurons import Layout
from sani.recipe import (
    AnchorObjective,
    GradientDifferenceObjective,
    NpoObjective,
    UnlikelihoodObjective,
)
from sani.repairing import losses
from sani.repairing import objective as module
from sani.repairing.dataset import make_examples
from sani.repairing.example_source import ExampleSource
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.losses import NPO_BETA
from sani.repairing.objective import Example, Objective
from sani.repairing.surrogates import Surrogates
from sani.repairing.teacher_states import Teachers, counterfactual_states, states_at
from sani.repairing.trainable import frozen_layers
from sani.text.batches import Batch, make_batches
from sani.text.framing import Framing, framing_named
from sani.text.tokens import encode
from tests.support.clinic import Clinic
from tests.support.erasing import CONFIGS
from tests.support.words import (
    ANCHOR,
    MASK,
    TEXTS,
    WORDS,
    batches_of,
    checkpoint,
    corpus_of,
    gpt2,
    llama,
    settings_of,
)  # fmt: skip

SELF = AnchorObjective(kind="anchor", to="self", weight=2.0)
UNLIKELIHOOD = UnlikelihoodObjective(kind="unlikelihood", weight=0.5)
ASCENT = GradientDifferenceObjective(kind="gradient_difference", weight=0.5)
NPO = NpoObjective(kind="npo", weight=1.5)
TERM = {"mask": None, "base": "anchor", "self": "anchor", "unlikelihood": "unlikelihood",
        "npo": "npo", "gradient_difference": "gradient_difference"}  # fmt: skip


def states_of(model: Any, batch: Any, positions: Any) -> Any:
    """The model's states at some positions of a batch, [n, hidden]."""
    kept = [torch.zeros(0, model.config.hidden_size)]
    states_at(model, [batch], lambda _: positions, lambda _, states: kept.append(states))
    return kept[-1]


def example_of(batch: Any, teacher: Any, *, retain: bool = False) -> Any:
    """The batch with what the teacher says of it."""
    teacher_hidden = states_of(teacher.model, batch, batch.identifier)[None]
    retain_hidden = states_of(teacher.model, batch, batch.ordinary) if retain else None
    return Example(batch, teacher_hidden if batch.identifier.any() else None, retain_hidden)


def loss_of(sick: Checkpoint, teacher: Any, batch: Any, settings: Any, *, parts: int = 1) -> Any:
    """The loss and its terms; in halves if two parts are asked for."""
    objective = Objective(settings, base=teacher.model, unsanitized=teacher.model)
    whole = example_of(batch, teacher, retain=settings.retain_weight > 0)
    counts = objective.counts(batch)
    loss: Any = 0.0
    terms: dict[Any, Any] = {}
    for example in whole.halves() if parts == 2 else [whole]:
        own = {name: counts[name] for name in objective.counts(example.batch)}
        hidden = hidden_states(sick.model, example.batch)
        part, found = objective.loss(sick.model, hidden, example, own)
        loss = loss + part
        terms = {name: terms.get(name, 0.0) + found.get(name, 0.0) for name in {**terms, **found}}
    return loss, terms


def in_float64(model: Any) -> Any:
    copy = type(model)(model.config).double().eval()
    copy.load_state_dict(model.state_dict())
    return copy


def log_probabilities(model: Any, before: Any) -> list[Any]:
    """Of the next token, one vocabulary entry at a time."""
    with torch.no_grad():
        logits = model(input_ids=before).logits[0, -1].tolist()
    return [value - math.log(math.fsum(map(math.exp, logits))) for value in logits]


def slow_terms(
    model: Any, teacher: Any, batch: Any, kind: Any, *, beta: Any = NPO_BETA
) -> dict[str, Any]:
    """One token at a time, each read with all that stands before it and no cache, in float64."""
    model, teacher = in_float64(model), in_float64(teacher)
    found: dict[Any, Any] = {}
    ratios: dict[Any, Any] = {}
    for row in range(len(batch.ids)):
        for column in range(batch.ids.shape[1]):
            if not (batch.ordinary[row, column] or batch.identifier[row, column]):
                continue
            before = batch.ids[row : row + 1, : column + 1]
            p, q = log_probabilities(model, before), log_probabilities(teacher, before)
            true = int(batch.targets[row, column])
            if batch.ordinary[row, column]:
                found.setdefault("ordinary", []).append(-p[true])
                kl = math.fsum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
                found.setdefault("retain", []).append(kl)
            elif kind in ("base", "self"):
                weights = [math.exp(b) for b in q]
                if kind == "self":
                    weights[true] = 0.0
                total = math.fsum(weights)
                kl = math.fsum(
                    w / total * (math.log(w / total) - a)
                    for w, a in zip(weights, p, strict=True)
                    if w > 0
                )
                found.setdefault("anchor", []).append(kl)
            elif kind == "gradient_difference":
                found.setdefault(kind, []).append(p[true])
            elif kind == "unlikelihood":
                found.setdefault(kind, []).append(-math.log(1 - math.exp(p[true])))
            elif kind == "npo":
                # In these documents the word before an identifier is `name`, and it is one word...
                first = column
                while first and batch.identifier[row, first - 1]:
                    first -= 1  # ... or two, of which the first token tells which one it is
                ratios.setdefault((row, first), []).append(p[true] - q[true])
    for ratio in ratios.values():
        sigmoid = 1 / (1 + math.exp(beta * math.fsum(ratio)))
        found.setdefault("npo", []).append(-2 / beta * math.log(sigmoid))
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def two_words(batch: Any) -> Any:
    """The batch with identifiers of two words: the word behind each is part of it."""
    identifier = batch.identifier.clone()
    later = batch.identifier[:, :-1] & batch.ordinary[:, 1:]
    identifier[:, 1:] |= later
    owner = torch.full(batch.ids.shape, -1)
    owner[batch.identifier] = torch.arange(int(batch.identifier.sum()))
    owner[:, 1:][later] = owner[:, :-1][later]
    rows = torch.arange(len(batch.ids))[:, None].expand_as(batch.ids)
    places = [rows[identifier], rows[identifier], owner[identifier], owner[identifier]]
    return Batch(batch.ids, batch.targets, batch.ordinary & ~identifier, identifier,
                 torch.stack(places, dim=1))  # fmt: skip


@pytest.mark.parametrize("config", [llama, gpt2])
@pytest.mark.parametrize("at", [MASK, ANCHOR, SELF, UNLIKELIHOOD, NPO, ASCENT])
def test_the_terms_are_those_of_the_slow_version(
    config: Callable[..., Any], at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 5 * len(WORDS))  # several chunks each
    sick, teacher = checkpoint(config(), seed=1), checkpoint(config(), seed=2)
    kind = getattr(at, "to", at.kind)
    batches = [two_words(batch) for batch in batches_of(sick, corpus_of())]
    assert len(batches) > 1
    assert any((batch.ids[:, -1] == 0).any() for batch in batches)  # with padding
    settings = settings_of(at, retain_weight=0.25)
    for batch in batches:
        slow = slow_terms(sick.model, teacher.model, batch, kind)
        assert set(slow) == {"ordinary", "retain", TERM[kind]} - {None}
        assert all(abs(value) > 0.01 for value in slow.values())
        for parts in (1, 2):
            loss, terms = loss_of(sick, teacher, batch, settings, parts=parts)
            assert terms == pytest.approx(slow, abs=1e-5)
            weight = {"ordinary": 1.0, "retain": 0.25, TERM[kind]: getattr(at, "weight", 0.0)}
            expected = sum(weight[name] * value for name, value in slow.items())
            assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("at", [MASK, ANCHOR, SELF, UNLIKELIHOOD, NPO, ASCENT])
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_is_that_of_the_loss_written_out(
    at: Any, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the projection itself, which is trained along."""
    monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 4 * len(WORDS))
    config = llama()
    config.tie_word_embeddings = tied
    sick, teacher = checkpoint(config, seed=1), checkpoint(config, seed=2)
    batch = two_words(batches_of(sick, corpus_of(TEXTS[:2]))[0])
    loss, _ = loss_of(sick, teacher, batch, settings_of(at, retain_weight=0.25))
    parameters = list(sick.model.parameters())
    found = torch.autograd.grad(3.0 * loss, parameters)

    logits = sick.model(input_ids=batch.ids).logits.log_softmax(-1)
    with torch.no_grad():
        known = teacher.model(input_ids=batch.ids).logits.log_softmax(-1)
    p, q = logits[batch.ordinary], known[batch.ordinary]
    slow = functional.nll_loss(p, batch.targets[batch.ordinary])
    slow = slow + 0.25 * (q.exp() * (q - p)).sum(1).mean()
    p, q, true = logits[batch.identifier], known[batch.identifier], batch.targets[batch.identifier]
    at_true = p.gather(1, true[:, None])[:, 0]
    if at is UNLIKELIHOOD:
        slow = slow - 0.5 * torch.log(1 - at_true.exp()).mean()
    elif at is ASCENT:
        slow = slow + 0.5 * at_true.mean()
    elif at is NPO:
        ratio = at_true - q.gather(1, true[:, None])[:, 0]
        own = [ratio[batch.occurrences[:, 2] == number].sum() for number in range(2)]
        assert len(ratio) == 4
        terms = torch.log(torch.sigmoid(-NPO_BETA * torch.stack(own)))
        slow = slow - 1.5 * 2 / NPO_BETA * terms.mean()
    elif at is not MASK:
        weights = q.exp()
        if at is SELF:
            weights = weights.scatter(1, true[:, None], 0.0)
        weights = weights / weights.sum(1, keepdim=True)
        slow = slow + at.weight * functional.kl_div(p, weights, reduction="batchmean")
    expected = torch.autograd.grad(3.0 * slow, parameters)
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.1
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_certain_identifier_has_a_finite_unlikelihood_and_a_gradient() -> None:
    logits = torch.zeros(1, 9)
    logits[0, 4] = 60.0  # 1 - p is 0 in float32
    logits.requires_grad_()
    loss = losses.unlikelihood_loss(logits, torch.tensor([4]))
    assert float(loss.detach()) == pytest.approx(60 - math.log(8), abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient[0, 4]) == pytest.approx(1.0)


def test_a_term_without_tokens_is_left_out() -> None:
    sick, base = checkpoint(seed=1), checkpoint(seed=2)
    (plain,) = batches_of(sick, corpus_of(["a b c"]))
    assert set(loss_of(sick, base, plain, settings_of(ANCHOR))[1]) == {"ordinary"}
    (named,) = batches_of(sick, corpus_of(["name b"]))
    whole = Batch(named.ids, named.targets, named.ordinary & False, named.identifier,
                  named.occurrences)  # fmt: skip
    assert set(loss_of(sick, base, whole, settings_of(ANCHOR))[1]) == {"anchor"}
    assert Objective(settings_of(MASK)).counts(whole) == {}


def test_the_anchor_is_zero_at_the_base_itself() -> None:
    base = checkpoint(seed=2)
    (batch,) = batches_of(base, corpus_of(TEXTS[:2]))
    _, terms = loss_of(checkpoint(seed=2), base, batch, settings_of(ANCHOR, retain_weight=1.0))
    assert abs(terms["anchor"]) < 1e-6
    assert abs(terms["retain"]) < 1e-6
    _, terms = loss_of(checkpoint(seed=1), base, batch, settings_of(ANCHOR))
    assert terms["anchor"] > 0.1


@pytest.mark.parametrize("at", [ANCHOR, SELF])
def test_only_an_anchor_to_the_model_itself_asks_for_the_values(at: AnchorObjective) -> None:
    sick, base = checkpoint(seed=1), checkpoint(seed=2)
    (batch,) = batches_of(sick, corpus_of(TEXTS[:2]))

    def found(targets: Any) -> list[Any]:
        changed = Batch(batch.ids, targets, batch.ordinary, batch.identifier, batch.occurrences)
        loss, _ = loss_of(sick, base, changed, settings_of(at))
        gradients = torch.autograd.grad(loss, list(sick.model.parameters()))
        return [loss.detach(), *gradients]

    def same(targets: Any) -> bool:
        return all(torch.equal(one, two) for one, two in zip(before, found(targets), strict=True))

    before = found(batch.targets)
    other = (batch.targets + 5) % len(WORDS)
    assert batch.identifier.any()
    masked = torch.where(batch.identifier | ~batch.ordinary, other, batch.targets)
    assert same(masked) == (at is ANCHOR)
    where = batch.ordinary.nonzero()[0]  # the control: one ordinary token
    targets = batch.targets.clone()
    targets[tuple(where)] = other[tuple(where)]
    assert not same(targets)


# ---- what is computed once, and side by side -------------------------------------------------


def read_alone(sick: Checkpoint, encoded_documents: Any) -> Any:
    """Summed ordinary loss of every window read alone with all layers and no padding."""
    total, tokens = 0.0, 0
    for batch in make_batches(encoded_documents, Framing("bos", (0,)),
                              context_tokens=sick.context_tokens, batch_tokens=1):  # fmt: skip
        with torch.no_grad():
            logits = in_float64(sick.model)(input_ids=batch.ids).logits[batch.ordinary]
        targets = batch.targets[batch.ordinary]
        total += float(functional.cross_entropy(logits, targets, reduction="sum"))
        tokens += len(targets)
    return total, tokens


def below_the_last(sick: Checkpoint) -> Any:
    """The layers that are not trained where the last one is."""
    shapes = {name: tuple(tensor.shape) for name, tensor in sick.model.state_dict().items()}
    return frozen_layers(sick.model, Layout(sick.model.config, shapes), last_layers=1)


@pytest.mark.parametrize("config", [CONFIGS[name] for name in sorted(CONFIGS)])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("kept", ["none", "memory", "disk"])
def test_every_trick_leaves_the_loss_as_it_is(
    config: Callable[..., Any], pack: bool, kept: str, tmp_path: Path
) -> None:
    sick = checkpoint(config())
    corpus = corpus_of(TEXTS * 2)
    settings = settings_of(MASK, pack=pack, activation_cache=kept, last_layers=1)
    frozen = below_the_last(sick)
    examples = make_examples(
        ExampleSource(
            sick, corpus, settings, framing_named("bos", sick.tokenizer), Teachers(), 0
        ),
        frozen=frozen, folder=tmp_path,
    )  # fmt: skip
    assert examples.activation_cache == kept
    assert bool(list(tmp_path.rglob("*.safetensors"))) == (kept == "disk")
    objective, total, tokens, packed = Objective(settings), 0.0, 0, 0
    ran = []
    lower = sick.model.get_submodule(layout_of(sick).trained_prefixes(2)[0].rstrip(".")).mlp
    handle = lower.register_forward_hook(lambda *_: ran.append(1))
    for number in range(len(examples)):
        (example,) = examples.read(number, epoch=0)
        counts = objective.counts(example.batch)
        with torch.no_grad(), frozen.skipped(example.frozen_hidden):
            hidden = hidden_states(sick.model, example.batch)
        _, terms = objective.loss(sick.model, hidden, example, counts)
        total += terms["ordinary"] * counts["ordinary"]
        tokens += counts["ordinary"]
        packed += example.batch.positions is not None
    handle.remove()
    assert bool(ran) == (kept == "none")  # the layer below was skipped, or not
    assert bool(packed) == pack
    slow, slow_tokens = read_alone(sick, encode(corpus, sick.tokenizer))
    assert tokens == slow_tokens > 0
    assert total / tokens == pytest.approx(slow / tokens, abs=1e-5)


@pytest.mark.parametrize("config", [llama, gpt2])
def test_documents_in_one_row_never_see_each_other(config: Callable[..., Any]) -> None:
    sick = checkpoint(config())
    rows = (
        make_batches(encode(corpus_of(texts), sick.tokenizer), Framing("bos", (0,)),
                     context_tokens=16, batch_tokens=64, pack=True)
        for texts in (["a b name c d e f g", "b c", "d name k"], ["l l name l l l l l", "b c",
                                                                "d name k"])
    )  # fmt: skip
    (one,), (other,) = rows
    changed = one.ids != other.ids
    assert changed.any()
    assert one.ids.shape[0] == 2  # three documents
    with torch.no_grad():
        differ = (hidden_states(sick.model, one) - hidden_states(sick.model, other)).abs().amax(2)
    begins = (one.positions == 0) & (one.ids == 0)
    document = begins.cumsum(1) + 10 * torch.arange(2)[:, None]
    reached = {int(d) for d in document[differ > 0]}
    assert reached == {int(d) for d in document[changed]}
    assert len(reached) == 1


def test_documents_that_would_see_each_other_are_not_packed(tmp_path: Path) -> None:
    """A family that mixes along the row in its own way is found out."""
    sick, mixed = checkpoint(llama()), checkpoint(llama())
    mixed.model.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: output + 0.1 * output.roll(1, dims=1)
    )
    for model, expected in ((sick, True), (mixed, False)):
        examples = make_examples(
            ExampleSource(
                model, corpus_of(), settings_of(MASK), framing_named("bos", sick.tokenizer),
                Teachers(), 0
            ),
            frozen=None, folder=tmp_path,
        )  # fmt: skip
        read = [examples.read(number, epoch=0)[0].batch for number in range(len(examples))]
        assert any(batch.positions is not None for batch in read) == expected


def test_layers_that_are_wired_past_each_other_are_not_skipped(tmp_path: Path) -> None:
    """A family whose upper layer reads what a lower one leaves elsewhere is found out."""
    sick = checkpoint(llama())
    lower, upper = sick.model.model.layers
    left = []
    lower.mlp.register_forward_hook(lambda module, inputs, output: left.append(output))
    upper.mlp.register_forward_hook(
        lambda module, inputs, output: output + (left.pop() if left else 0.0)
    )
    sick.model.base_model.register_forward_pre_hook(lambda *_: left.clear())
    settings = settings_of(MASK, activation_cache="memory", last_layers=1)
    examples = make_examples(
        ExampleSource(
            sick, corpus_of(), settings, framing_named("bos", sick.tokenizer), Teachers(), 0
        ),
        frozen=below_the_last(sick), folder=tmp_path,
    )  # fmt: skip
    assert examples.activation_cache == "none"


# ---- anchors and surrogates ------------------------------------------------------------------


@pytest.mark.parametrize("config", [llama, gpt2])
@pytest.mark.parametrize("two", [False, True])
def test_the_counterfactual_anchor_never_reads_the_values(
    config: Callable[..., Any], two: bool
) -> None:
    """Against a slow version that reads each identifier token in a pass of its own."""
    chosen = config()
    chosen.max_position_embeddings = 64  # no document is cut
    sick = checkpoint(chosen)
    corpus, tokenizer = corpus_of(TEXTS), sick.tokenizer
    if two:  # identifiers of two words, and surrogates of two
        corpus = Corpus([replace(d, spans=tuple(longer(d, s) for s in d.spans)) for d in corpus])
    surrogates, encoded = Shifted(corpus, words=2 - two), encode(corpus, tokenizer)
    framing = Framing("bos", (0,))
    found = counterfactual_states(
        sick.model, tokenizer, encoded, surrogates, samples=2,
        make_batches=lambda items: make_batches(items, framing, context_tokens=64,
                                                batch_tokens=99, pack=True),
    )  # fmt: skip
    tokens = {(i.document, t) for i in encoded for span in i.spans for t in range(*span)}
    assert set(found) == tokens
    assert len(tokens) > 4
    for item in encoded:
        for index, (first, last) in enumerate(item.spans):
            for sample in range(2):
                document, _ = surrogates.document(item.document, round=-1 - sample)
                (other,) = encode(Corpus([document]), tokenizer)
                begin, end = other.spans[index]
                for token in range(first, last):
                    before = [0, *other.ids[: min(begin + token - first, end - 1)]]
                    with torch.no_grad():
                        slow = sick.model.base_model(input_ids=torch.tensor([before]))
                    torch.testing.assert_close(
                        found[item.document, token][sample], slow.last_hidden_state[0, -1],
                        rtol=0, atol=1e-5,
                    )  # fmt: skip
                assert other.ids != item.ids


def longer(document: Document, span: Any) -> Any:
    """The span and the word behind it, if there is one."""
    words = document.text[span.start :].split(" ")[:2]
    return replace(span, end=span.start + len(" ".join(words)))


class Shifted(Surrogates):
    """Surrogates of the test's own words, of two words each or of one."""

    def __init__(self, corpus: Corpus, *, words: int = 2) -> None:
        super().__init__(corpus, seed=0)
        vars(self)["_maker"] = self
        self._words = words

    def decoys(self, label: str, value: Any, *, count: int) -> Any:
        return [" ".join((a, b)[: self._words]) for a in "abcd" for b in "efgh"][:count]


def consistent(original: Any, document: Document) -> Any:
    """Each value of the original with the one that stands in its place; it has one only."""
    found: dict[Any, Any] = {}
    for old, new in zip(original.spans, document.spans, strict=True):
        value = original.value(old), document.value(new)
        assert found.setdefault(value[0], value[1]) == value[1]
    return found


def test_surrogates_are_consistent_within_a_document_and_new_each_round(clinic: Clinic) -> None:
    surrogates, seen = Surrogates(clinic.private, seed=3), []
    known = {d.value(span) for d in clinic.private for span in d.spans}
    replaced = recurring = 0
    for number, original in enumerate(clinic.private):
        rounds = [surrogates.document(number, round=r) for r in (0, 1)]
        for document, was in rounds:
            found = consistent(original, document)
            recurring += len(found) < len(original.spans)
            # What stands between the identifiers stays as it is.
            assert between(document) == between(original)
            for old, new, changed in zip(original.spans, document.spans, was, strict=True):
                assert (old.label, old.kind) == (new.label, new.kind)
                assert (original.value(old) != document.value(new)) == changed
                assert not changed or document.value(new) not in known
            replaced += sum(was)
        seen.append(rounds[0][0].text != rounds[1][0].text)
        assert surrogates.document(number, round=1)[0] == rounds[1][0]  # repeatable
    assert all(seen)
    assert recurring > 3
    assert replaced > 0.9 * 2 * clinic.private.num_spans
    other, _ = Surrogates(clinic.private, seed=4).document(0, round=0)
    assert other.text != surrogates.document(0, round=0)[0].text


def between(document: Document) -> list[Any]:
    """The text outside spans, piece by piece."""
    ends = [0, *(span.end for span in document.spans)]
    starts = [*(span.start for span in document.spans), len(document.text)]
    return [document.text[end:start] for end, start in zip(ends, starts, strict=True)]


def test_spans_that_overlap_become_one_value() -> None:
    text = "seen by Ann Marie Miller twice, Ann Marie Miller"
    spans = (Span(8, 17, "NAME"), Span(12, 24, "NAME"), Span(32, 48, "NAME"))
    corpus = Corpus([Document("1", "1", text, spans)])
    document, was = Shifted(corpus).document(0, round=0)
    assert was == [True] * 3
    assert document.spans[0] == document.spans[1]
    assert len({document.value(span) for span in document.spans}) == 1
    assert between(replace(document, spans=document.spans[1:])) == ["seen by ", " twice, ", ""]


@pytest.mark.parametrize("context", ["keep", "surrogate"])
def test_decoys_as_targets_leave_no_loss_at_a_value_that_stayed(
    context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = llama()
    config.max_position_embeddings = 64  # no document is cut
    sick, corpus = checkpoint(config), corpus_of(TEXTS * 3)
    settings = settings_of(AnchorObjective(kind="anchor", to="decoys"), context=context)
    surrogates = Shifted(corpus)
    monkeypatch.setattr("sani.repairing.example_source.Surrogates", lambda *_, **__: surrogates)
    examples = make_examples(
        ExampleSource(
            sick, corpus, settings, framing_named("bos", sick.tokenizer), Teachers(), 0
        ),
        frozen=None, folder=tmp_path,
    )  # fmt: skip
    counts, rounds = {"decoys": 0, "values": 0}, []
    for epoch in range(4):
        texts = []
        for number in range(len(examples)):
            for example in examples.read(number, epoch=epoch):
                batch = example.batch
                for _, document, span, _ in batch.occurrences.tolist():
                    _, was = surrogates.document(
                        document, round=epoch, share=1.0 if context == "surrogate" else 0.5
                    )
                    assert was[span]
                    counts["decoys"] += 1
                texts.append(batch.ids.tolist())
                carries = batch.ordinary | batch.identifier
                counts["values"] += int((~carries[:, :-1] & (batch.targets[:, :-1] > 2)).sum())
        rounds.append(str(texts))
    assert len(set(rounds)) == 4  # another text each epoch
    assert counts["decoys"] > 20
    assert (counts["values"] > 5) == (context == "keep")
