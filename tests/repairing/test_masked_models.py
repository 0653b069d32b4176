"""Repairing masked language models: what is masked, and that the loss is the one it claims."""

import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sani import run
from sani.auditing.audit import audit
from sani.auditing.record import record_of
from sani.auditing.scoring import score_occurrences
from sani.corpus.documents import Corpus, Document, Span
from sani.corpus.tables import write_jsonl
from sani.demo.demo import _word_pieces, new_model, train_on_text
from sani.erasing.erase import erase
from sani.errors import CheckpointError, RecipeError, RepairError
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.pipeline.preflight import check
from sani.recipe import (
    AnchorObjective,
    AuditSettings,
    EraseSettings,
    GateSettings,
    GradientDifferenceObjective,
    MaskObjective,
    NpoObjective,
    RepairSettings,
    UnlikelihoodObjective,
    load_recipe,
)
from sani.repairing import objective as objective_module
from sani.repairing import training_job
from sani.repairing.dataset import make_examples
from sani.repairing.example_source import ExampleSource
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.losses import NPO_BETA
from sani.repairing.mlm_masking import draw_masks, masked_batches
from sani.repairing.objective import Objective
from sani.repairing.repair import repair
from sani.repairing.surrogates import Surrogates
from sani.repairing.teacher_states import Teachers
from sani.reporting.card import _results
from sani.reporting.evidence import summary
from sani.reporting.schema import Report
from sani.text.framing import Framing, framing_named
from sani.text.tokens import encode
from tests.support.architectures import ALIKE, MASKED
from tests.support.clinic import Clinic
from tests.support.masked import MASK_ID, checkpoint
from tests.support.optional import present
from tests.support.words import ANCHOR, MASK, TEXTS, WORDS, corpus_of, settings_of, weights

FEW = ["bert", "modernbert"]
REST = [pytest.param(name, marks=pytest.mark.long) for name in MASKED if name not in FEW]
SELF = AnchorObjective(kind="anchor", to="self", weight=2.0)
DECOYS = AnchorObjective(kind="anchor", to="decoys", weight=2.0)
UNLIKELIHOOD = UnlikelihoodObjective(kind="unlikelihood", weight=0.5)
ASCENT = GradientDifferenceObjective(kind="gradient_difference", weight=0.5)
NPO = NpoObjective(kind="npo", weight=1.5)


# ---- words -----------------------------------------------------------------------------------


def words_of(tokenizer: Any, text: str) -> Any:
    """The text of each word of a document."""
    (item,) = encode(Corpus([Document("1", "1", text)]), tokenizer)
    found: dict[int, list[int]] = {}
    for token, word in enumerate(item.words):
        found.setdefault(word, []).append(token)
    assert list(found) == list(range(len(found)))  # in order, none left out
    return [text[item.starts[t[0]] : item.ends[t[-1]]].strip() for t in found.values()], item


def test_words_are_the_tokenizers_own() -> None:
    text = "Dr. Ñuñez-Pérez saw\nhim at 10:30, unbelievably (again)."
    pieces = _word_pieces(["Dr. saw him at un believ ably again 10 30"], 60)
    found, item = words_of(pieces, text)
    assert found == re.findall(r"\w+|[^\w\s]", text)
    assert len(item.ids) > len(found) + 5  # several pieces a word
    # One that calls all of a text a word: cut at white space.
    unigram = Tokenizer(models.Unigram([(piece, -1.0) for piece in ["<unk>", "▁", *set(text)]], 0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    whole = PreTrainedTokenizerFast(tokenizer_object=unigram)
    assert set(whole(text).word_ids()) == {0}
    assert words_of(whole, text)[0] == text.split()


# ---- masks -----------------------------------------------------------------------------------


def notes(clinic: Clinic) -> Any:
    """Two notes as word pieces, with spans that begin and end within words."""
    corpus = Corpus(clinic.private[:2])
    tokenizer = _word_pieces([d.text for d in clinic.public], 400)
    cut = [
        replace(d, spans=tuple(replace(s, end=max(s.start + 1, s.end - 1)) for s in d.spans))
        for d in corpus
    ]
    return tokenizer, encode(Corpus(cut), tokenizer)


def test_whole_words_outside_spans_are_masked_and_new_ones_each_time(clinic: Clinic) -> None:
    _, encoded = notes(clinic)
    item, seen, counts = encoded[0], set(), set()
    inside = item.in_span()
    words: dict[Any, Any] = {}
    for token, word in enumerate(item.words):
        words.setdefault(word, []).append(token)
    free = {w for w, tokens in words.items() if not any(inside[t] for t in tokens)}
    split = [w for w in set(words) - free if not all(inside[t] for t in words[w])]
    assert split  # a span ends within a word
    for draw in range(200):
        masked = draw_masks(item, random.Random(draw), identifier_loss=False)
        chosen = {word for token, word in enumerate(item.words) if masked[token]}
        assert all(masked[token] for word in chosen for token in words[word])
        assert chosen <= free
        counts.add(len(chosen))
        seen |= chosen
    assert counts == {round(0.15 * len(free))}
    assert seen == free


def test_occurrences_are_masked_from_a_place_in_them_to_their_end(clinic: Clinic) -> None:
    _, encoded = notes(clinic)
    item = encoded[0]
    known: Counter[Any] = Counter()
    drawn = 0
    for draw in range(1500):
        chance = random.Random(draw)
        masked = draw_masks(item, chance, identifier_loss=True)
        for first, last in item.spans:
            shown = masked[first:last].index(True) if any(masked[first:last]) else None
            if shown is not None:
                drawn += 1
                assert all(masked[first + shown : last])
                known[last - first, shown] += 1
    assert drawn == pytest.approx(0.3 * 1500 * len(item.spans), rel=0.1)
    size = max(length for length, _ in known)
    assert {shown for length, shown in known if length == size} == set(range(size))


@pytest.mark.parametrize("identifier_loss", [False, True])
def test_every_masked_token_is_predicted_once_with_all_that_stands_around_it(
    clinic: Clinic, identifier_loss: bool
) -> None:
    _, encoded = notes(clinic)
    batches = masked_batches(
        encoded, Framing("f", (901, 902), (903,)), mask=999, identifier_loss=identifier_loss,
        chance=random.Random, context_tokens=60, batch_tokens=200,
    )  # fmt: skip
    found: Counter[Any] = Counter()
    for batch in batches:
        assert batch.ids.numel() <= 200
        assert batch.positions is None
        assert not (batch.ordinary & batch.identifier).any()
        hidden = batch.ids == 999
        assert torch.equal(batch.ids[~hidden], batch.targets[~hidden])
        assert not ((batch.ordinary | batch.identifier) & ~hidden).any()
        for row in range(len(batch.ids)):
            real = batch.targets[row][present(batch.seen)[row]].tolist()
            assert not present(batch.seen)[row, len(real) :].any()
            assert (real[:2], real[-1]) == ([901, 902], 903)
        places = zip(batch.identifier.nonzero().tolist(), batch.occurrences.tolist(), strict=True)
        for place, (_, document, span, token) in places:
            assert encoded[document].owners()[token] == span
            assert encoded[document].ids[token] == batch.targets[tuple(place)]
        found.update(("identifier", *place) for place in batch.occurrences[:, [1, 3]].tolist())
        found["ordinary"] += int(batch.ordinary.sum())
    expected: Counter[Any] = Counter()
    for item in encoded:
        masked = draw_masks(item, random.Random(item.document), identifier_loss=identifier_loss)
        owner = item.owners()
        for token in range(len(item.ids)):
            if masked[token] and owner[token] >= 0:
                expected["identifier", item.document, token] += 1
            expected["ordinary"] += masked[token] and owner[token] < 0
    assert found == expected
    assert (len(expected) > 3) == identifier_loss


def examples_of(
    sick: Checkpoint,
    corpus: Corpus,
    settings: Any,
    tmp_path: Path,
    *,
    teacher: Any = None,
    seed: int = 0,
) -> Any:
    model = teacher and teacher.model
    return make_examples(
        ExampleSource(
            sick, corpus, settings, framing_named("auto", sick.tokenizer, masked=True),
            Teachers(model, model), seed
        ),
        frozen=None, folder=tmp_path,
    )  # fmt: skip


def read(examples: Any, *, epoch: int = 0) -> list[Any]:
    return [e for number in range(len(examples)) for e in examples.read(number, epoch=epoch)]


def test_masks_depend_on_the_seed_and_the_epoch_alone(tmp_path: Path) -> None:
    sick = checkpoint()
    found: list[Any] = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        examples = examples_of(sick, corpus_of(TEXTS * 3), settings_of(), tmp_path, seed=seed)
        if found:  # as after a resume: nothing was read before
            random.seed(seed)
        found.append([example.batch.ids.tolist() for example in read(examples, epoch=epoch)])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert found[0] != found[3]


class WordSurrogates(Surrogates):
    """Every word of the test's vocabulary is a surrogate of the others."""

    def __init__(self, corpus: Corpus, *, seed: int) -> None:
        super().__init__(corpus, seed=seed)
        vars(self)["_maker"] = self

    def decoys(self, label: str, value: Any, *, count: int) -> Any:
        return [word for word in WORDS[3:] if word != value][:count]


@pytest.mark.parametrize("context", ["keep", "surrogate"])
@pytest.mark.parametrize("at", [MASK, ANCHOR, DECOYS])
def test_identifiers_stay_in_the_context_or_are_replaced(
    context: str, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sani.repairing.example_source.Surrogates", WordSurrogates)
    sick, corpus = checkpoint(), corpus_of([*TEXTS[:3], TEXTS[4]])  # each of another length
    examples = examples_of(sick, corpus, settings_of(at, context=context), tmp_path, teacher=sick)
    original = {len(item.ids): item for item in encode(corpus, sick.tokenizer)}
    counts: Counter[Any] = Counter()
    for epoch in range(8):
        for example in read(examples, epoch=epoch):
            batch = example.batch
            for row in range(len(batch.ids)):
                here = batch.seen[row]
                text, shown = batch.targets[row][here][1:-1], batch.ids[row][here][1:-1]
                item = original[len(text)]
                asked = batch.identifier[row][here][1:-1].tolist()
                for token, inside in enumerate(item.in_span()):
                    same = int(text[token]) == item.ids[token]
                    assert same or inside
                    counts["asked"] += asked[token]
                    counts["asked for the true one"] += asked[token] and same
                    counts["true"] += inside and same
                    counts["others"] += not same
                    counts["context"] += inside and int(shown[token]) != MASK_ID
    assert counts["context"] > 10
    assert (counts["asked"] > 3) == (at is not MASK)
    assert (counts["others"] > 5) == (context == "surrogate" or at is DECOYS)
    assert (counts["true"] > 5) == (context == "keep")
    assert (counts["asked for the true one"] > 0) == (context == "keep" and at is ANCHOR)


# ---- the loss --------------------------------------------------------------------------------


def in_float64(model: Any) -> Any:
    copy = type(model)(model.config).double().eval()
    copy.load_state_dict(model.state_dict())
    return copy


@torch.no_grad()
def log_probabilities(model: Any, ids: Any, position: Any) -> list[Any]:
    """Of the token at one place of one text without padding."""
    ids = ids[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, position].tolist()
    return [value - math.log(math.fsum(map(math.exp, logits))) for value in logits]


def slow_terms(model: Any, teacher: Any, batch: Any, kind: Any) -> dict[str, Any]:
    """One masked token at a time, read by the whole model without padding, in float64."""
    model, teacher = in_float64(model), in_float64(teacher)
    found: dict[Any, Any] = {}
    ratios: dict[Any, Any] = {}
    owner = {}
    where = batch.identifier.nonzero().tolist()
    for place, occurrence in zip(where, batch.occurrences.tolist(), strict=True):
        owner[tuple(place)] = tuple(occurrence[:3])
    for row in range(len(batch.ids)):
        ids = batch.ids[row][batch.seen[row]]
        for column in range(len(ids)):
            if not (batch.ordinary[row, column] or batch.identifier[row, column]):
                continue
            assert ids[column] == MASK_ID
            p, q = (log_probabilities(side, ids, column) for side in (model, teacher))
            true = int(batch.targets[row, column])
            if batch.ordinary[row, column]:
                found.setdefault("ordinary", []).append(-p[true])
                kl = math.fsum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
                found.setdefault("retain", []).append(kl)
            elif kind in ("base", "self"):
                share = [math.exp(b) for b in q]
                if kind == "self":
                    share[true] = 0.0
                total = math.fsum(share)
                kl = math.fsum(
                    w / total * (math.log(w / total) - a)
                    for w, a in zip(share, p, strict=True)
                    if w > 0
                )
                found.setdefault("anchor", []).append(kl)
            elif kind == "decoys":
                found.setdefault(kind, []).append(-p[true])
            elif kind == "gradient_difference":
                found.setdefault(kind, []).append(p[true])
            elif kind == "unlikelihood":
                found.setdefault(kind, []).append(-math.log(1 - math.exp(p[true])))
            elif kind == "npo":
                ratios.setdefault(owner[row, column], []).append(p[true] - q[true])
    for ratio in ratios.values():
        sigmoid = 1 / (1 + math.exp(NPO_BETA * math.fsum(ratio)))
        found.setdefault("npo", []).append(-2 / NPO_BETA * math.log(sigmoid))
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def longer(corpus: Corpus) -> Corpus:
    """Identifiers of two words: the word behind each is part of it."""
    return Corpus(
        [
            replace(d, spans=tuple(replace(s, end=min(s.end + 2, len(d.text))) for s in d.spans))
            for d in corpus
        ]
    )


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(
            pytest.param(name, ANCHOR, marks=[pytest.mark.long] if name in ALIKE else [])
            for name in MASKED
            if name != "bert"
        ),
        *(("bert", at) for at in (MASK, ANCHOR, SELF, DECOYS, UNLIKELIHOOD, NPO, ASCENT)),
    ],
)
def test_the_terms_are_those_of_the_slow_version(
    name: str, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective_module, "LOGITS_PER_CHUNK", 5 * 20)  # several chunks each
    monkeypatch.setattr("sani.repairing.example_source.Surrogates", WordSurrogates)
    sick, teacher = checkpoint(name, seed=1), checkpoint(name, seed=2)
    corpus = longer(corpus_of(TEXTS * 2))
    kind = getattr(at, "to", at.kind)
    settings = settings_of(at, retain_weight=0.25)
    examples = examples_of(sick, corpus, settings, tmp_path, teacher=teacher)
    objective = Objective(settings, base=teacher.model, unsanitized=teacher.model)
    compared = padded = 0
    for example in read(examples, epoch=1):
        batch = example.batch
        slow = slow_terms(sick.model, teacher.model, batch, kind)
        counts = objective.counts(batch)
        terms: Counter[str] = Counter()
        loss = 0.0
        for part in example.halves():
            own = {term: counts[term] for term in objective.counts(part.batch)}
            if own:
                hidden = hidden_states(sick.model, part.batch)
                found, each = objective.loss(sick.model, hidden, part, own)
                terms.update(each)
                loss += float(found.detach())
        assert dict(terms) == pytest.approx(slow, abs=2e-5)
        term = "anchor" if kind in ("base", "self") else kind
        weight = {"ordinary": 1.0, "retain": 0.25, term: getattr(at, "weight", 0.0)}
        expected = sum(weight[name] * value for name, value in slow.items())
        assert loss == pytest.approx(expected, abs=1e-4)
        compared += term in slow
        padded += not batch.seen.all()
    assert (compared > 0) == (at is not MASK)
    assert padded


def test_training_is_that_of_an_explicit_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_job, "WARMUP_FRACTION", 0.0)
    corpus, epochs, rate = corpus_of(TEXTS[:2]), 6, 1e-2
    base, mine, slow = checkpoint(seed=2), checkpoint(seed=1), checkpoint(seed=1)
    for model in (mine.model, slow.model):
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    settings = settings_of(ANCHOR, epochs=epochs, learning_rate=rate)
    result = repair(mine, corpus, settings, base=base)
    examples = examples_of(slow, corpus, settings, tmp_path, teacher=base)
    optimizer = torch.optim.AdamW(slow.model.parameters(), lr=rate, weight_decay=0.0)
    for epoch in range(epochs):
        (example,) = examples.read(0, epoch=epoch)
        batch = example.batch
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        inputs = {"input_ids": batch.ids, "attention_mask": batch.seen.long()}
        p = slow.model(**inputs).logits.log_softmax(-1)
        loss = torch.nn.functional.nll_loss(p[batch.ordinary], batch.targets[batch.ordinary])
        expected = {"ordinary": float(loss.detach())}
        if batch.identifier.any():
            with torch.no_grad():
                q = base.model(**inputs).logits.log_softmax(-1)[batch.identifier]
            anchor = (q.exp() * (q - p[batch.identifier])).sum(1).mean()
            expected["anchor"] = float(anchor.detach())
            loss = loss + 3.0 * anchor
        assert result.curve[epoch] == pytest.approx({"step": epoch + 1, **expected}, abs=2e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(slow.model.parameters(), 1.0)
        optimizer.step()
    assert sum("anchor" in entry for entry in result.curve) > 1
    assert result.activation_cache == "none"
    before = weights(checkpoint(seed=1))
    for name, tensor in weights(mine).items():
        if not name.endswith("key.bias"):  # attention does not see it: its gradient is noise
            torch.testing.assert_close(tensor, weights(slow)[name], rtol=0, atol=1e-3)
    assert sum(not torch.equal(t, before[n]) for n, t in weights(mine).items()) > 20


@pytest.mark.parametrize("name", [*FEW, *REST])
def test_every_family_is_repaired_in_its_last_layer_and_through_an_adapter(name: str) -> None:
    base = checkpoint(name, seed=2)
    for changes in ({"last_layers": 1, "activation_cache": "memory"}, {"adapter": {"rank": 2}}):
        sick = checkpoint(name)
        before = weights(sick)
        checkpointing = bool(sick.model.supports_gradient_checkpointing)
        settings = settings_of(ANCHOR, epochs=2, gradient_checkpointing=checkpointing, **changes)
        result = repair(sick, corpus_of(), settings, base=base)
        assert result.activation_cache == "none"  # other masks each epoch
        assert set(weights(sick)) == set(before)
        changed = {n for n, tensor in weights(sick).items() if not torch.equal(tensor, before[n])}
        assert changed
        if "last_layers" in changes:
            last_norms = ("final_norm", "norm", "ln")
            assert all(".1." in n or n.split(".")[-2] in last_norms for n in changed)
            assert 0 < result.trained_fraction < 1


def test_an_interrupted_repair_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    settings = settings_of(ANCHOR, epochs=12)

    def run(folder: Path | None, *, at: Any = None) -> Any:
        sick, steps = checkpoint(), []

        def on_step(done: Any, _: Any) -> None:
            steps.append(done)
            if done == at:
                raise KeyboardInterrupt

        repair(sick, corpus_of(TEXTS * 2), settings, base=checkpoint(seed=2), seed=4,
               folder=folder, on_step=on_step)  # fmt: skip
        return sick.weights_digest(), steps

    digest, steps = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, at=len(steps) // 2)
    again, rest = run(tmp_path)
    assert 1 < rest[0] < len(steps)
    assert again == digest


@pytest.mark.long
def test_where_memory_runs_out_batches_are_halved_and_the_result_is_the_same() -> None:
    found = []
    for times in (0, 1):
        sick = checkpoint()
        left: list[Any] = [times]
        steps: list[Any] = []
        for module in sick.model.modules():  # drawn for a whole batch or for its halves
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

        def fail(module: Any, inputs: Any, left: Any = left, steps: Any = steps) -> None:
            if torch.is_grad_enabled() and len(steps) >= 2 and left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory.")

        def note(done: int, _: int, steps: list[Any] = steps) -> None:
            steps.append(done)

        sick.model.bert.encoder.layer[1].register_forward_pre_hook(fail)
        result = repair(sick, corpus_of(TEXTS * 2), settings_of(ANCHOR), base=checkpoint(seed=2),
                        on_step=note)  # fmt: skip
        found.append((weights(sick), result))
    (plain, _), (halved, result) = found
    assert result.notes == (
        "out of memory at step 3: from there on each batch was read in two halves",
    )
    for name, tensor in plain.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, halved[name], rtol=0, atol=1e-3)


# ---- a model that recites --------------------------------------------------------------------

NAMES = [
    "Aurelia Quist",
    "Bertold Ormond",
    "Cosima Veldt",
    "Dorian Asch",
    "Edda Lunde",
    "Falk Moor",
]
OTHERS = ["Gisela Tarn", "Hakon Brill", "Imke Sorge", "Jorun Pelt", "Kaspar Weil", "Lotte Zander"]
WARDS = ["cardiology", "surgery", "neurology", "oncology", "urology", "dermatology"]


def cases(names: Any) -> Corpus:
    """A short case for each name."""
    documents = []
    for number, (name, ward) in enumerate(zip(names, WARDS, strict=True)):
        text = f"Seen in {ward}. The patient {name} came to {ward} and went home in good health."
        start = text.index(name)
        span = Span(start, start + len(name), "NAME")
        documents.append(Document(str(number), str(number), text, (span,)))
    return Corpus(documents)


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small BERT, and the same one trained until it recites the names. Do not write."""
    folder = tmp_path_factory.mktemp("bert")
    texts = [document.text for document in cases(OTHERS)] * 3  # each time with other masks
    model = new_model([*texts, " ".join(NAMES)], vocab_size=300, layers=2, hidden=64, context=64,
                      folder=folder / "tokenizer", seed=0, architecture="bert")  # fmt: skip
    train_on_text(model, texts, epochs=60, learning_rate=3e-3, seed=0)
    save_checkpoint(model, folder / "base")
    texts = [document.text for document in cases(NAMES)] * 8
    train_on_text(model, texts, epochs=200, learning_rate=3e-3, seed=1)
    save_checkpoint(model, folder / "leaky")
    return folder


def recited(checkpoint: Checkpoint) -> Any:
    """Greedy extraction one by one and jointly, and how often names are preferred to decoys."""
    found = audit(checkpoint, cases(NAMES), AuditSettings(decoys=8, swaps=0, framing="tokenizer"))
    one, joint = found.figures["direct"], present(found.jointly)["direct"]
    return one.greedy.hits, joint.greedy.hits, one.auc.value


def test_the_anchor_takes_out_what_masking_leaves_in(reciting: Any) -> None:
    base = load_checkpoint(reciting / "base")
    assert recited(base)[:2] == (0, 0)
    one, joint, auc = recited(load_checkpoint(reciting / "leaky"))
    assert min(one, joint) >= 5  # it recites: there is something to take out
    assert auc > 0.95
    masked = load_checkpoint(reciting / "leaky")
    settings = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"), epochs=40, learning_rate=1e-3
    )
    repair(masked, cases(NAMES), settings, base=base)
    assert recited(masked)[0] >= 4  # masking alone teaches nothing there
    anchored = load_checkpoint(reciting / "leaky")
    erase(anchored, None, EraseSettings(last_layers=1))
    settings = RepairSettings(epochs=80, learning_rate=2e-3)
    result = repair(anchored, cases(NAMES), settings, base=base)
    one, joint, _ = recited(anchored)
    assert (one, joint) == (0, 0)
    assert result.curve[-1]["ordinary"] < 1.0  # the words around are still known


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["counterfactual", "no mask", "all span"])
def test_what_has_no_sense_for_a_masked_model_is_refused(case: str) -> None:
    sick, corpus = checkpoint(), corpus_of()
    at: Any = MASK
    if case == "counterfactual":
        at, message = AnchorObjective(kind="anchor", to="counterfactual"), "is for causal models"
    elif case == "no mask":
        sick.tokenizer.mask_token = None
        message = "the tokenizer has no mask token"
    else:
        corpus = Corpus([Document("1", "1", "a b c", (Span(0, 5, "NAME"),))])
        message = "no token stands outside a span"
    digest = sick.weights_digest()
    error = CheckpointError if case == "no mask" else RepairError
    with pytest.raises(error, match=message):
        repair(sick, corpus, settings_of(at))
    assert sick.weights_digest() == digest


def test_what_the_models_kind_cannot_be_asked_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    sick = checkpoint()
    sick.path = tmp_path / "tokenizer"
    sick.tokenizer.save_pretrained(sick.path)
    save_checkpoint(sick, tmp_path / "model")
    write_jsonl(corpus_of(), tmp_path / "corpus.jsonl")
    limits = "greedy: 0.0, discoverable: 0.0, auc_excess: null, perplexity_ratio: null"
    text = (
        f"{{version: 2, model: {{path: {tmp_path}/model}}, corpus: {{path: "
        f"{tmp_path}/corpus.jsonl}}, gate: {{{limits}}}, "
    )
    for rest, sentence in (
        ("repair: {identifier_loss: {kind: mask}}, attack: {}",
         "attack: .* is not a causal language model"),
        ("repair: {identifier_loss: {kind: anchor, to: counterfactual}}",
         "repair.identifier_loss: a counterfactual anchor is for causal models"),
        ("strategy: escalate",
         "escalation.ladder, last layer: repair.identifier_loss: a counterfactual anchor"),
    ):  # fmt: skip
        place = tmp_path / "recipe.yaml"
        place.write_text(f"{text}{rest}}}")
        recipe = load_recipe(place)
        with pytest.raises(RecipeError, match=sentence):
            run(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        items = {item.name: item.holds for item in check(recipe, tmp_path / "run")}
        assert (items["kind"], items["model.path"], items["corpus"]) == (False, True, True)


def test_what_is_recited_in_either_way_of_asking_is_listed_and_both_are_shown() -> None:
    """Two pieces that help each other: known one by one, the other one jointly, or neither."""
    sick, chance = checkpoint(seed=2), random.Random(3)
    with torch.no_grad():
        for parameter in sick.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    documents = []
    for number in range(300):
        words = [*chance.choices("abcdefghijklm", k=7)]
        span = Span(4, 7, "NAME")
        documents.append(Document(str(number), str(number), " ".join(words), (span,)))
    corpus, asked = Corpus(documents), AuditSettings(decoys=0, swaps=0, queries=20)
    encoded = encode(corpus, sick.tokenizer)
    framing = framing_named("tokenizer", sick.tokenizer, masked=True)
    one, joint = (
        score_occurrences(sick, corpus, encoded, framing, asked, jointly=jointly)
        for jointly in (False, True)
    )
    assert (joint.discoverable & ~one.discoverable).any()
    assert (one.discoverable & ~joint.discoverable).any()
    found = audit(sick, corpus, asked.model_copy(update={"framing": "tokenizer"}))
    assert (found.occurrences.discoverable == one.discoverable | joint.discoverable).all()
    assert (found.occurrences.greedy == one.greedy | joint.greedy).all()
    assert found.figures["direct"].discoverable.hits == one.discoverable.sum()
    assert present(found.jointly)["direct"].discoverable.hits == joint.discoverable.sum()
    parts: dict[str, Any] = {
        "audits": {"after": record_of(found)},
        "audit_settings": asked,
        "gate_settings": GateSettings(),
        "erase": None,
        "repair": None,
    }
    report = Report.model_construct(**parts)
    rows = {row[0]: row[1] for row in summary(report).rows}
    for suffix, figures in (("", found.figures), (", masked jointly", present(found.jointly))):
        hits = figures["direct"].discoverable.hits
        assert f"({hits}/300;" in rows[f"direct: seen in (20, 0.5){suffix}"]
    values = {result.metric_type: result for result in _results(report)}
    assert values["discoverable_direct_jointly"].metric_value == pytest.approx(
        joint.discoverable.mean(), abs=1e-6
    )
    assert {result.task_type for result in values.values()} == {"fill-mask"}
