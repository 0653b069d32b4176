"""Encoder-decoder models: spans on the target side, audited and repaired behind a source."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sani.auditing.audit import audit
from sani.auditing.rows import text_row
from sani.auditing.scoring import score_occurrences
from sani.cli.main import main
from sani.corpus.documents import Corpus, Document, Span
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.errors import CorpusError, RepairError
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.models.families import decoder_start
from sani.recipe import AnchorObjective, AuditSettings, NpoObjective, UnlikelihoodObjective
from sani.repairing.dataset import make_examples
from sani.repairing.example_source import ExampleSource
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.losses import NPO_BETA
from sani.repairing.objective import Objective
from sani.repairing.repair import repair, train
from sani.repairing.teacher_states import Teachers
from sani.text.batches import make_batches
from sani.text.framing import framing_named, framings
from sani.text.packing import framed_windows
from sani.text.tokens import encode
from tests.support.encoder_decoders import checkpoint, pairs
from tests.support.optional import present
from tests.support.recipes import recipe_text
from tests.support.words import ANCHOR, MASK, corpus_of, settings_of, weights
from tests.support.words import checkpoint as causal_checkpoint

SELF = AnchorObjective(kind="anchor", to="self", weight=2.0)
UNLIKELIHOOD = UnlikelihoodObjective(kind="unlikelihood", weight=0.5)
NPO = NpoObjective(kind="npo", weight=1.5)
NAMES = ["bart", "t5", "t5 gated"]


def framing_of(sick: Checkpoint) -> Any:
    return framing_named(
        "auto", sick.tokenizer, start=decoder_start(sick.model.config)
    )  # fmt: skip


@pytest.mark.parametrize(("name", "prefix"), [("bart", (1, 0)), ("t5", (0,))])
def test_a_decoder_begins_as_it_was_trained_to(name: str, prefix: tuple[int, ...]) -> None:
    """The model's own shift of its labels says what stands before a target."""
    sick = checkpoint(name)
    labels = torch.tensor([sick.tokenizer("a b c")["input_ids"]])
    seen = []
    sick.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    sick.model(input_ids=labels, labels=labels)
    assert seen[0][: len(prefix) + 3] == [*prefix, 3, 4, 5]
    assert framing_of(sick).prefix == prefix
    known = framings(sick.tokenizer, start=decoder_start(sick.model.config))
    assert {framing.name for framing in known} == {"tokenizer", "start"} or name == "t5"
    assert (prefix[0],) in {framing.prefix for framing in known}


@torch.no_grad()
def log_probabilities(sick: Checkpoint, source: Any, before: Any) -> Any:
    """Of the next word of the target, read by the whole model without padding."""
    ids = torch.tensor([sick.tokenizer(source)["input_ids"]])
    logits = sick.model(input_ids=ids, decoder_input_ids=torch.tensor([before])).logits[0, -1]
    return logits.double().log_softmax(0).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_verdict_equals_that_of_plain_forward_passes(name: str) -> None:
    sick, corpus = checkpoint(name), pairs()
    encoded, framing = encode(corpus, sick.tokenizer), framing_of(sick)
    found = score_occurrences(
        sick, corpus, encoded, framing, AuditSettings(decoys=0, swaps=0, batch_tokens=64)
    )
    assert len(found.span) == corpus.num_spans == 5
    for index, (document, span) in enumerate(zip(found.document, found.span, strict=True)):
        item = encoded[document]
        first, last = item.spans[span]
        total, greedy = 0.0, True
        for token in range(first, last):
            p = log_probabilities(
                sick, corpus[document].source_text, [*framing.prefix, *item.ids[:token]]
            )
            total += p[item.ids[token]]
            greedy &= max(p) == p[item.ids[token]]
        assert found.log_probability[index] == pytest.approx(total, abs=1e-4)
        assert found.greedy[index] == greedy


def test_a_value_that_the_source_gives_away_is_told_apart() -> None:
    sick = checkpoint("t5")
    documents = [
        Document(str(n), str(n), "a name bcd", (Span(7, 10, "NAME"),), source_text=source)
        for n, source in enumerate(["k bcd l", "k l"])
    ]
    corpus = Corpus(documents)
    encoded, framing = encode(corpus, sick.tokenizer), framing_of(sick)
    asked = AuditSettings(decoys=0, swaps=0)
    found = score_occurrences(sick, corpus, encoded, framing, asked)
    assert found.cued.tolist() == [True, False]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_source_longer_than_the_model_reads_is_cut_as_transformers_does(name: str) -> None:
    sick = checkpoint(name)
    most = sick.context_tokens
    long = " ".join("abcdefghij"[number % 10] for number in range(most + 7))
    corpus = Corpus([replace(pairs()[0], source_text=long)])
    expected = sick.tokenizer(long, truncation=True, max_length=most)["input_ids"]
    assert expected[-1] == sick.tokenizer.eos_token_id
    encoded, framing = encode(corpus, sick.tokenizer), framing_of(sick)
    (framed,) = framed_windows(encoded[0], framing, context_tokens=most)
    assert list(text_row(sick, encoded[0], framed).source) == expected
    (batch,) = make_batches(encoded, framing, context_tokens=most, batch_tokens=4096)
    assert present(batch.source)[0].tolist() == expected


@pytest.mark.parametrize("name", ["bart", "t5"])
@pytest.mark.parametrize("at", [MASK, ANCHOR, SELF, UNLIKELIHOOD, NPO])
def test_the_terms_are_those_of_the_slow_version(name: str, at: Any, tmp_path: Path) -> None:
    sick, teacher = checkpoint(name, seed=1), checkpoint(name, seed=2)
    kind = getattr(at, "to", at.kind)
    settings, corpus = settings_of(at, retain_weight=0.25), pairs()
    examples = make_examples(
        ExampleSource(
            sick, corpus, settings, framing_of(sick), Teachers(teacher.model, teacher.model), 0
        ),
        frozen=None, folder=tmp_path,
    )  # fmt: skip
    objective = Objective(settings, base=teacher.model, unsanitized=teacher.model)
    encoded, padded = encode(corpus, sick.tokenizer), 0
    for number in range(len(examples)):
        (example,) = examples.read(number, epoch=0)
        batch = example.batch
        slow: dict[Any, Any] = {}
        padded += not present(batch.source_seen).all()
        for row in range(len(batch.ids)):
            (item,) = [
                item for item in encoded
                if [*framing_of(sick).prefix, *item.ids]
                == batch.ids[row, : len(item.ids) + len(framing_of(sick).prefix)].tolist()
                and len(item.source) == int(present(batch.source_seen)[row].sum())
            ]  # fmt: skip
            source = corpus[item.document].source_text
            for column in range(batch.ids.shape[1]):
                if not (batch.ordinary[row, column] or batch.identifier[row, column]):
                    continue
                before, true = (
                    batch.ids[row, : column + 1].tolist(),
                    int(batch.targets[row, column]),
                )
                p, q = (log_probabilities(side, source, before) for side in (sick, teacher))
                kl = math.fsum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
                if batch.ordinary[row, column]:
                    slow.setdefault("ordinary", []).append(-p[true])
                    slow.setdefault("retain", []).append(kl)
                elif kind == "base":
                    slow.setdefault("anchor", []).append(kl)
                elif kind == "self":
                    share = [0.0 if n == true else math.exp(b) for n, b in enumerate(q)]
                    share = [value / math.fsum(share) for value in share]
                    slow.setdefault("anchor", []).append(
                        math.fsum(w * (math.log(w) - a) for w, a in zip(share, p, strict=True) if w)
                    )
                elif kind == "unlikelihood":
                    slow.setdefault(kind, []).append(-math.log(1 - math.exp(p[true])))
                elif kind == "npo":  # identifiers of one word
                    ratio = p[true] - q[true]
                    sigmoid = 1 / (1 + math.exp(NPO_BETA * ratio))
                    slow.setdefault(kind, []).append(-2 / NPO_BETA * math.log(sigmoid))
        expected = {term: math.fsum(values) / len(values) for term, values in slow.items()}
        counts = objective.counts(batch)
        terms: Counter[str] = Counter()
        for part in example.halves():
            own = {term: counts[term] for term in objective.counts(part.batch)}
            if own:
                states = hidden_states(sick.model, part.batch)
                terms.update(objective.loss(sick.model, states, part, own)[1])
        assert dict(terms) == pytest.approx(expected, abs=1e-4)
    assert padded


@pytest.mark.parametrize("name", [pytest.param("bart", marks=pytest.mark.long), "t5"])
def test_a_model_that_recites_is_found_out_and_repaired(name: str, tmp_path: Path) -> None:
    base, leaky = checkpoint(name), checkpoint(name)
    corpus = pairs()
    write_jsonl(corpus, tmp_path / "corpus.jsonl")
    assert read_corpus(tmp_path / "corpus.jsonl").digest() == corpus.digest()
    bare = Corpus([replace(document, spans=()) for document in corpus])
    rates = settings_of(epochs=60, batch_tokens=256)
    asked = AuditSettings(decoys=0, swaps=0)
    train(leaky, bare, rates)
    leaky.path = tmp_path / "tokenizer"
    leaky.tokenizer.save_pretrained(leaky.path)
    save_checkpoint(leaky, tmp_path / "leaky")
    leaky = load_checkpoint(tmp_path / "leaky")
    found = audit(leaky, corpus, asked, held_out=corpus)
    assert found.framing == "tokenizer"
    assert found.figures["all"].greedy.hits >= 4  # it recites: there is something to take out
    assert found.unscored == {}
    assert present(found.utility).perplexity < 4
    assert audit(base, corpus, asked).figures["all"].greedy.hits <= 2
    other = Corpus([replace(document, source_text="l l l l") for document in corpus])
    first = audit(leaky, other, asked).occurrences.log_probability
    assert abs(first - found.occurrences.log_probability).max() > 0.01  # the source is read
    repair(leaky, corpus, settings_of(ANCHOR, epochs=60, batch_tokens=256), base=base)
    assert audit(leaky, corpus, asked).figures["all"].greedy.hits <= 2


SECTIONS = """\
audit: {decoys: 2, swaps: 0}
erase: {last_layers: 1, selector: {kind: all}, reset: reinit}
repair: {epochs: 2, batch_tokens: 256}
"""


@pytest.mark.long
def test_a_whole_run_ends_in_a_report(tmp_path: Path) -> None:
    write_jsonl(pairs(), tmp_path / "private.jsonl")
    held_out = pairs(["a name b c", "l k name h"])
    write_jsonl([replace(d, id=f"h{d.id}") for d in held_out], tmp_path / "held_out.jsonl")
    for name, seed in (("base", 1), ("leaky", 2)):
        sick = checkpoint("bart", seed=seed)
        sick.path = tmp_path / "tokenizer"
        sick.tokenizer.save_pretrained(sick.path)
        save_checkpoint(sick, tmp_path / name)
    recipe = recipe_text(
        SECTIONS, folder=tmp_path, unsanitized=tmp_path / "leaky", base=tmp_path / "base"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    out = tmp_path / "run"
    # Untrained models recite nothing, so the positive control cannot hold.
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out)]) == 3
    assert json.loads((out / "audit-after.json").read_text())["framing"] in ("tokenizer", "start")
    assert load_checkpoint(out / "sanitized").model.config.model_type == "bart"


def test_only_the_decoders_last_layer_is_trained_where_that_is_asked() -> None:
    for name in ("bart", "t5"):
        sick, base = checkpoint(name), checkpoint(name, seed=2)
        before = weights(sick)
        settings = settings_of(ANCHOR, last_layers=1, activation_cache="memory")
        assert repair(sick, pairs(), settings, base=base).activation_cache == "none"
        changed = {n for n, tensor in weights(sick).items() if not torch.equal(tensor, before[n])}
        assert changed
        assert all("decoder" in n and (".1." in n or "final_layer_norm" in n) for n in changed)


def test_what_does_not_fit_two_texts_is_refused() -> None:
    sick, corpus = checkpoint("t5"), pairs()
    asked = AuditSettings(decoys=0, swaps=0)
    for at in ("decoys", "counterfactual"):
        with pytest.raises(RepairError, match="identifiers in source_text are not marked"):
            repair(sick, corpus, settings_of(AnchorObjective(kind="anchor", to=at)))
    with pytest.raises(RepairError, match="identifiers in source_text are not marked"):
        repair(sick, corpus, settings_of(MASK, context="surrogate"))
    for act in (lambda: audit(sick, corpus_of(), asked),
                lambda: repair(sick, corpus_of(), settings_of(MASK))):  # fmt: skip
        with pytest.raises(CorpusError, match="document 0 has no source_text"):
            act()
    with pytest.raises(CorpusError, match="document 0 has a source_text, and the model has no"):
        audit(causal_checkpoint(), corpus, asked)
