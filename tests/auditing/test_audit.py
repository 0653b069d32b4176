"""The audit against slow and obvious versions of itself, on models that really recite."""

import itertools
import random
import socket
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sani import intervals
from sani.auditing.audit import audit
from sani.auditing.metrics import (
    discoverable,
    exact_memorization,
    extraction_strength,
    log10_queries,
    preference,
)
from sani.auditing.occurrences import Occurrences
from sani.auditing.rows import Row
from sani.auditing.sampler import Sampler
from sani.auditing.scoring import score_occurrences
from sani.auditing.teacher_forcing import ScoreRequest, sampled_log_probability, score
from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.reinit import fresh_model
from sani.errors import AuditError, CheckpointError, UnsupportedModelError
from sani.intervals import clustered_mean, rate
from sani.models import families
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings, GenerationSettings, settings_from
from sani.text.framing import Framing, framing_named, framings
from sani.text.tokens import encode, overlapping, windows
from sani.values.decoys import DecoyMaker
from tests.support.architectures import CAUSAL, tiny_config
from tests.support.clinic import Clinic
from tests.support.optional import present

NATS = 1e-4
SHORT_CONTEXT = 96  # the clinic's notes have 150 to 400 tokens
SAMPLERS = [
    Sampler(),
    Sampler(temperature=0.7, top_k=5),
    Sampler(temperature=1.3, top_k=0, top_p=0.8),
    Sampler(temperature=0.9, top_k=30, top_p=0.5),
    Sampler(temperature=2.0, top_k=0, top_p=1.0),
]


# --- slow and obvious versions -------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One occurrence that can be scored, found the slow way.

    Attributes:
        left: What the model sees before the first token that is scored.
        context: The document's tokens before the identifier, be they seen or not.
        tokens: The tokens that are scored.
        last_end: One past the last character of its last token.
        given: Nothing stands before it, so its first token is part of ``left``.
    """

    document: int
    span: int
    left: list[int]
    context: list[int]
    tokens: list[int]
    last_end: int
    given: bool


def places(
    checkpoint: Checkpoint, corpus: Corpus, framing: Framing, *, context_tokens: int
) -> Iterator[Place]:
    """Every occurrence with the left context of the first window that holds its last token."""
    for number, document in enumerate(corpus):
        encoding = checkpoint.tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        cut = windows(len(ids), item=number, capacity=context_tokens - len(framing.prefix))
        for span_number, span in enumerate(document.spans):
            inside = set(range(span.start, span.end))
            own = [token for token, place in enumerate(offsets) if inside & set(range(*place))]
            window = next(window for window in cut if own[-1] < window.end)
            if window.start > own[0]:
                continue
            left = [*framing.prefix, *ids[window.start : own[0]]]
            tokens = [ids[token] for token in own]
            given = not left
            if given:
                left, tokens = tokens[:1], tokens[1:]
            if tokens:
                end = offsets[own[-1]][1]
                yield Place(number, span_number, left, ids[: own[0]], tokens, end, given)


@torch.no_grad()
def slow_logits(checkpoint: Checkpoint, left: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """Logits at the position before each token, from one plain forward pass, [tokens, vocab]."""
    ids = torch.tensor([[*left, *tokens[:-1]]])
    logits: torch.Tensor = checkpoint.model(input_ids=ids).logits[0, len(left) - 1 :]
    return logits.double()


def slow_log_probability(
    checkpoint: Checkpoint, left: Sequence[int], tokens: Sequence[int]
) -> float:
    logits = slow_logits(checkpoint, left, tokens).log_softmax(dim=1)
    return float(sum(logits[position, token] for position, token in enumerate(tokens)))


def warped(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Log-probabilities that sampling draws from, by transformers' own warpers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampler.temperature)])
    if sampler.top_k:
        warpers.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampler.top_p))
    nothing: Any = None  # they do not look at the tokens so far
    return warpers(nothing, logits).log_softmax(dim=1)


def slow_decoys(
    checkpoint: Checkpoint,
    corpus: Corpus,
    maker: DecoyMaker,
    place: Place,
    *,
    count: int,
    swaps: bool = False,
) -> list[list[int]]:
    """Decoys, or other subjects' values, from the tokens of the document with each in its place."""
    document = corpus[place.document]
    span = document.spans[place.span]
    for drawn in (count, 8 * count):
        found = []
        own = document.value(span)
        values = (
            maker.swaps(span.label, own, document.subject_id, count=drawn)
            if swaps
            else maker.decoys(span.label, own, count=drawn)
        )
        for value in values:
            text = document.text[: span.start] + value + document.text[span.end : place.last_end]
            ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids[: len(place.context)] == place.context:
                found.append(ids[len(place.context) :])
        if len(found) >= count:
            break
    return found[:count]


def random_checkpoint(
    name: str, tokenizer: PreTrainedTokenizerFast, *, positions: int = 512
) -> Checkpoint:
    """An untrained model of a family, with weights so large that it has strong opinions."""
    config = tiny_config(
        name,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # Its embedding is zero, so the token has no opinion; this one puts it where images are.
        pad_token_id=0 if name == "gemma4" else None,
        initializer_range=0.3,
        init_std=0.3,
    )
    return Checkpoint(fresh_model(config, seed=3).eval(), tokenizer, Path("nowhere"))


def first(corpus: Corpus, number: int) -> Corpus:
    return Corpus(corpus[:number])


def framed(checkpoint: Checkpoint, name: str = "bos") -> Framing:
    return framing_named(name, checkpoint.tokenizer)


# --- the harness ---------------------------------------------------------------------------------


def test_the_network_is_out_of_reach_and_local_sockets_are_not() -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with pytest.raises(pytest.fail.Exception, match="internet socket"):
            socket.socket(family)
    with pytest.raises(pytest.fail.Exception):
        socket.create_connection(("localhost", 9))
    one, other = socket.socketpair()
    one.send(b"x")
    assert other.recv(1) == b"x"
    one.close()
    other.close()


# --- one pass against generation -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("context_tokens", "framing_name", "documents"),
    [(512, "bos", 6), (SHORT_CONTEXT, "bos", 4), (SHORT_CONTEXT, "none", 2)],
)
def test_one_pass_finds_exactly_what_greedy_generation_recites(
    clinic: Clinic, leaky: Checkpoint, context_tokens: int, framing_name: str, documents: int
) -> None:
    leaky.model.config.max_position_embeddings = context_tokens
    corpus, framing = first(clinic.private, documents), framed(leaky, framing_name)
    encoded = encode(corpus, leaky.tokenizer)
    longest = max(len(item.ids) for item in encoded)
    assert (longest > context_tokens) == (context_tokens == SHORT_CONTEXT)
    found = score_occurrences(leaky, corpus, encoded, framing, AuditSettings(decoys=0))
    fast = {
        (int(document), int(span)): bool(greedy)
        for document, span, greedy in zip(found.document, found.span, found.greedy, strict=True)
    }
    recited = missed = 0
    for place in places(leaky, corpus, framing, context_tokens=context_tokens):
        ids = torch.tensor([place.left])
        generated = leaky.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(place.tokens),
            do_sample=False,
            pad_token_id=leaky.tokenizer.eos_token_id,
        )[0, len(place.left) :].tolist()
        where = (place.document, place.span)
        if fast.pop(where) != (generated == place.tokens):
            best = slow_logits(leaky, place.left, place.tokens).topk(2, dim=1).values
            gaps = (best[:, 0] - best[:, 1]).tolist()
            assert min(gaps) == 0.0, f"occurrence {where} differs, and not by an exact tie"
        recited += generated == place.tokens
        missed += generated != place.tokens
    assert recited + missed + len(fast) == corpus.num_spans
    assert not any(fast.values())
    # Both verdicts occur, or the comparison would say nothing.
    assert recited > 0
    assert missed > 0
    if context_tokens == 512:
        assert not fast
        assert recited / (recited + missed) >= 0.6


# --- numbers against one forward pass each -------------------------------------------------------


@pytest.mark.parametrize("family", ["leaky", "gpt2"])
@pytest.mark.parametrize(
    ("context_tokens", "framing_name", "num_decoys", "sampler"),
    [(512, "bos", 8, SAMPLERS[3]), (SHORT_CONTEXT, "none", 60, SAMPLERS[0])],
)
def test_every_figure_of_an_occurrence_equals_that_of_plain_forward_passes(
    clinic: Clinic,
    leaky: Checkpoint,
    family: str,
    context_tokens: int,
    framing_name: str,
    num_decoys: int,
    sampler: Sampler,
) -> None:
    checkpoint = leaky if family == "leaky" else random_checkpoint("gpt2", leaky.tokenizer)
    checkpoint.model.config.max_position_embeddings = context_tokens
    corpus = first(clinic.private, 2 if num_decoys < 60 else 1)
    framing = framed(checkpoint, framing_name)
    maker = DecoyMaker([clinic.private], seed=5)
    asked = AuditSettings(decoys=num_decoys, queries=100, batch_tokens=64)
    encoded = encode(corpus, checkpoint.tokenizer)
    passes = []
    original = families.hidden_states

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        passes.append(1)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "hidden_states", counted)
        found = score_occurrences(
            checkpoint, corpus, encoded, framing, asked, maker=maker, sampler=sampler
        )
    # With so few tokens a batch, each row is a batch and takes two passes: more of them than twice
    # the windows means that decoys were too many for one tree and were spread over several.
    capacity = context_tokens - len(framing.prefix)
    plain = sum(len(windows(len(i.ids), item=0, capacity=capacity)) for i in encoded)
    assert len(passes) > 2 * plain or num_decoys < 60

    compared = compared_swaps = 0
    for place in places(checkpoint, corpus, framing, context_tokens=context_tokens):
        at = np.flatnonzero((found.document == place.document) & (found.span == place.span))
        assert len(at) == 1
        index = int(at[0])
        assert found.scored[index]
        logits = slow_logits(checkpoint, place.left, place.tokens)
        steps = range(len(place.tokens))
        chances = logits.log_softmax(dim=1)
        expected = sum(float(chances[step, place.tokens[step]]) for step in steps)
        assert found.log_probability[index] == pytest.approx(expected, abs=NATS)
        drawn = warped(logits, sampler)
        sampled = sum(float(drawn[step, place.tokens[step]]) for step in steps)
        seen = 1 - (1 - np.exp(max(sampled, expected))) ** 100  # with the cut or without
        assert found.discoverable[index] == (seen >= 0.5)
        assert found.sampled[index] == pytest.approx(sampled, abs=NATS)
        likeliest = logits.argmax(dim=1).tolist()
        assert found.greedy[index] == (likeliest == place.tokens)
        order = logits.argsort(dim=1, descending=True).tolist()
        ranks = [1 + order[step].index(place.tokens[step]) for step in steps]
        assert found.ranks_of[index].tolist() == ranks
        if place.given:
            assert np.isnan(found.auc[index])
            continue
        room = context_tokens - len(place.left) + 1  # the last token is never an input
        others = [
            slow_log_probability(checkpoint, place.left, decoy)
            for decoy in slow_decoys(checkpoint, corpus, maker, place, count=num_decoys)
            if len(decoy) <= room
        ]
        assert min(abs(other - expected) for other in others) > NATS, "too close to compare"
        better = sum(expected > other for other in others)
        assert found.auc[index] == pytest.approx(better / len(others), abs=1e-12)
        rank = 1 + len(others) - better
        exposure = np.log2((len(others) + 1) / rank)
        assert found.exposure[index] == pytest.approx(exposure, abs=1e-12)
        assert found.first[index] == (expected > max(others))
        assert found.chance[index] == pytest.approx(1 / (len(others) + 1))
        swapped = [
            slow_log_probability(checkpoint, place.left, tokens)
            for tokens in slow_decoys(checkpoint, corpus, maker, place, count=4, swaps=True)
            if len(tokens) <= room
        ]
        if swapped:
            beaten = np.mean([expected > other for other in swapped])
            assert found.swap_auc[index] == pytest.approx(beaten, abs=1e-12)
            assert found.swap_first[index] == (expected > max(swapped))
            assert found.swap_chance[index] == pytest.approx(1 / (len(swapped) + 1))
        compared_swaps += len(swapped)
        compared += len(others)
    assert compared > 50
    assert compared_swaps > 20


@pytest.mark.parametrize("family", CAUSAL)
def test_decoys_share_their_prefix_and_score_as_if_each_stood_alone(
    base: Checkpoint, family: str
) -> None:
    checkpoint = random_checkpoint(family, base.tokenizer)
    chance = random.Random(family)
    vocabulary = len(base.tokenizer)
    rows, asked, slots = [], [], 0
    for length in (40, 7, 23):
        text = [chance.randrange(vocabulary) for _ in range(length)]
        row = Row(text)
        rows.append(row)
        for position in range(length - 1):
            row.reads.append((position, text[position + 1], slots + position))
        asked.append((text[:1], text[1:], list(range(slots, slots + length - 1))))
        slots += length - 1
        stem = [chance.randrange(vocabulary) for _ in range(3)]
        branches = [
            (position, stem[:shared] + [chance.randrange(vocabulary) for _ in range(length // 5)])
            for position in (0, length // 2, length - 1)
            for shared in (0, 1, 3, 3)
        ]
        for position, tokens in branches:
            own = list(range(slots, slots + len(tokens)))
            row.add_branch(position, tokens, own)
            asked.append((text[: position + 1], tokens, own))
            slots += len(tokens)
        alone = sum(len(tokens) - 1 for _, tokens in branches)
        nodes = sum(len(tree.tokens) for tree in row.trees)
        assert nodes < alone, "no branch shares a token with another"
    sampler = Sampler(temperature=3.0, top_k=300)
    found = score(
        checkpoint.model,
        rows,
        num_slots=slots,
        batch_tokens=150,
        request=ScoreRequest(num_ranked=60, num_sampled=60, sampler=sampler, moments=True),
    )
    cut = 0
    for left, tokens, own in asked:
        logits = slow_logits(checkpoint, left, tokens)
        plain, drawn = logits.log_softmax(dim=1), warped(logits, sampler)
        for step, (token, slot) in enumerate(zip(tokens, own, strict=True)):
            assert found.log_probability[slot] == pytest.approx(float(plain[step, token]), abs=NATS)
            p = plain[step].exp()
            mean = float((p * plain[step]).sum())
            assert found.mean[slot] == pytest.approx(mean, abs=NATS)
            spread = float((p * (plain[step] - mean) ** 2).sum().sqrt())
            assert found.deviation[slot] == pytest.approx(spread, abs=10 * NATS)
            if slot < 60:
                likelier = int((logits[step] > logits[step, token]).sum())
                assert found.rank[slot] == 1 + likelier
                assert found.likeliest[slot] == (likelier == 0)
                expected = float(drawn[step, token])
                assert found.sampled[slot] == pytest.approx(expected, abs=NATS)
                cut += expected == -np.inf
            else:
                assert np.isnan(found.sampled[slot])
                assert found.rank[slot] == 0
    assert 0 < cut < 60


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampled_probabilities_are_those_of_transformers(sampler: Sampler) -> None:
    chance = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 90, generator=chance, dtype=torch.float64)
    logits[:50] = logits[:50].round()  # ties, also at the k-th place
    expected = warped(logits, sampler)
    for target in range(90):
        found = sampled_log_probability(
            logits, torch.arange(200), torch.full((200,), target), sampler
        )
        # Where tied tokens stand at the edge of top-p, which of them go is the sort's choice.
        clear = slice(50, None) if sampler.top_p < 1 else slice(None)
        assert torch.allclose(found[clear], expected[clear, target], atol=1e-9)
        untied = sampled_log_probability(
            logits[50:], torch.arange(150), torch.full((150,), target), sampler
        )
        assert torch.allclose(untied, expected[50:, target], atol=1e-9)
    if sampler.top_k or sampler.top_p < 1:
        assert (expected == -torch.inf).any()


def test_a_tie_for_the_likeliest_token_counts_as_reciting(base: Checkpoint) -> None:
    with torch.no_grad():
        base.model.get_output_embeddings().weight.zero_()
    row = Row([1, 2, 3])
    row.reads.append((1, 3, 0))
    request = ScoreRequest(num_ranked=1, num_sampled=1)
    found = score(base.model, [row], num_slots=1, batch_tokens=64, request=request)
    assert found.rank.tolist() == [1]
    assert found.likeliest.tolist() == [True]


def test_results_do_not_depend_on_the_batch_size(clinic: Clinic, leaky: Checkpoint) -> None:
    corpus, held_out = first(clinic.private, 3), first(clinic.held_out, 4)
    few, many = (
        audit(leaky, corpus, AuditSettings(batch_tokens=tokens), held_out=held_out)
        for tokens in (64, 8192)
    )
    for name, one in vars(few.occurrences).items():
        other = vars(many.occurrences)[name]
        if name in ("log_probability", "sampled", "decoy_log_probability"):
            assert np.array_equal(np.isfinite(one), np.isfinite(other))
            assert np.abs(one - other)[np.isfinite(one)].max() < NATS
        else:
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name
    for name, one in vars(few.documents).items():
        assert np.allclose(one, vars(many.documents)[name], atol=NATS), name
    assert present(few.utility).tokens == present(many.utility).tokens
    assert present(few.utility).perplexity == pytest.approx(
        present(many.utility).perplexity, rel=NATS
    )
    assert few.framing == many.framing


@pytest.mark.parametrize("context_tokens", [512, SHORT_CONTEXT])
def test_utility_equals_a_loop_over_documents_and_tokens(
    clinic: Clinic, leaky: Checkpoint, context_tokens: int
) -> None:
    leaky.model.config.max_position_embeddings = context_tokens
    found = audit(
        leaky,
        first(clinic.private, 1),
        AuditSettings(framing="bos", decoys=0),
        held_out=clinic.held_out,
    ).utility
    chances, hits, logits = [], 0, {}
    begin = leaky.tokenizer.bos_token_id
    for document in clinic.held_out:
        encoding = leaky.tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = encoding["input_ids"]
        hidden = {c for span in document.spans for c in range(span.start, span.end)}
        cut = windows(len(ids), item=0, capacity=context_tokens - 1)
        for token, place in enumerate(encoding["offset_mapping"]):
            if hidden & set(range(*place)):
                continue
            window = next(window for window in cut if token < window.end)
            where = (document.id, window)
            if where not in logits:
                logits[where] = slow_logits(leaky, [begin], ids[window.start : window.end])
            here = logits[where][token - window.start]
            chances.append(float(here.log_softmax(dim=0)[ids[token]]))
            hits += int(here.argmax()) == ids[token]
    assert present(found).tokens == len(chances)
    assert present(found).perplexity == pytest.approx(np.exp(-np.mean(chances)), rel=NATS)
    assert present(found).accuracy == pytest.approx(hits / len(chances), abs=1e-12)


# --- closed forms and intervals ------------------------------------------------------------------


def exactly_discoverable(chance: Decimal, queries: int, probability: Decimal) -> bool:
    return 1 - (1 - chance) ** queries >= probability


@pytest.mark.parametrize("queries", [1, 2, 1000, 10**6])
@pytest.mark.parametrize("probability", ["1e-9", "0.01", "0.5", "0.99", "0.999999999999"])
def test_discoverable_agrees_with_400_digits_on_either_side_of_the_limit(
    queries: int, probability: str
) -> None:
    with localcontext() as context:
        context.prec = 400
        wanted = Decimal(probability)
        limit = 1 - (1 - wanted) ** (1 / Decimal(queries))
        chances = [limit * (1 + Decimal(sign) / 10**4) for sign in (-1, 1)]
        chances += [Decimal("1e-300"), Decimal(1) - Decimal("1e-12"), Decimal(1)]
        chances = [chance for chance in chances if chance <= 1]
        logs = [float(chance.ln()) for chance in chances]
        expected = [exactly_discoverable(chance, queries, wanted) for chance in chances]
    found = discoverable(np.array(logs), queries=queries, probability=float(probability))
    assert found.tolist() == expected
    assert expected[0] is False
    assert expected[-1] is True


def test_discoverable_agrees_with_sampling() -> None:
    chance = np.random.default_rng(0)
    queries, probability, experiments = 40, 0.3, 20_000
    # Far enough from the limit (0.0089) that the experiments cannot tell it wrong.
    chances = np.array([1e-4, 2e-3, 7e-3, 1.1e-2, 0.05, 0.4, 1.0])
    seen = chance.binomial(queries, chances, size=(experiments, len(chances))) > 0
    found = discoverable(np.log(chances), queries=queries, probability=probability)
    assert found.tolist() == (seen.mean(axis=0) >= probability).tolist()
    assert found.tolist() == [False] * 3 + [True] * 4


def test_discoverable_takes_what_the_sampler_never_draws_and_rounding_above_one() -> None:
    logs = np.array([-np.inf, -1e308, -800.0, 1e-7, 0.0, -0.0])
    found = discoverable(logs, queries=10**6, probability=1e-9)
    assert found.tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, the score method.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_rate_has_the_published_wilson_interval(
    hits: int, trials: int, low: float, high: float
) -> None:
    found = rate(hits, trials)
    assert (found.hits, found.trials, found.value) == (hits, trials, hits / trials)
    assert (round(present(found.low), 4), round(present(found.high), 4)) == (low, high)


def test_nothing_tried_is_no_rate_at_all() -> None:
    found = rate(0, 0)
    assert (found.value, found.low, found.high) == (None, None, None)
    nothing = clustered_mean(np.array([np.nan, np.nan]), [0, 1], seed=0)
    assert (nothing.trials, nothing.value, nothing.low, nothing.high) == (0, None, None, None)


@pytest.mark.parametrize("block", [1, 7000, 2**22])
def test_the_interval_is_that_of_all_rounds_at_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow obvious version resamples the subjects round by round."""
    monkeypatch.setattr(intervals, "BLOCK", block)
    chance = np.random.default_rng(5)
    for subjects, seed in ((31, 0), (31, 1), (30, 1), (31, 1)):
        owner = np.concatenate([np.arange(subjects), chance.integers(0, subjects, 200)])
        values = chance.random(len(owner))
        found = clustered_mean(values, owner.tolist(), seed=seed)
        again = np.random.default_rng(seed)
        means = []
        for _ in range(1000):
            times = again.multinomial(subjects, np.full(subjects, 1 / subjects))
            means.append((values * times[owner]).sum() / times[owner].sum())
        low, high = np.quantile(means, [0.025, 0.975])
        assert found.low == pytest.approx(low, abs=1e-12)
        assert found.high == pytest.approx(high, abs=1e-12)
        assert present(found.high) - present(found.low) > 0.01


def test_the_clustered_interval_covers_the_mean_and_the_naive_one_does_not() -> None:
    chance = np.random.default_rng(1)
    rounds, subjects = 150, 40
    covered = naive = 0
    for number in range(rounds):
        sizes = chance.integers(1, 12, size=subjects)
        means = chance.normal(0.3, 1.0, size=subjects)
        owner = np.repeat(np.arange(subjects), sizes)
        values = means[owner] + chance.normal(0, 0.1, size=len(owner))
        found = clustered_mean(values, owner.tolist(), seed=number)
        covered += present(found.low) <= 0.3 <= present(found.high)
        alone = clustered_mean(values, list(range(len(values))), seed=number)
        naive += present(alone.low) <= 0.3 <= present(alone.high)
    assert 0.90 <= covered / rounds <= 0.98
    assert naive / rounds < 0.75


def test_repeating_a_subjects_occurrences_adds_no_certainty() -> None:
    values = np.random.default_rng(2).random(30)
    once = clustered_mean(values, list(range(30)), seed=0)
    repeated = clustered_mean(np.repeat(values, 20), np.repeat(np.arange(30), 20).tolist(), seed=0)
    naive = clustered_mean(np.repeat(values, 20), list(range(600)), seed=0)
    assert repeated.trials == 600
    assert repeated.value == pytest.approx(once.value)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    assert present(repeated.high) - present(repeated.low) > 3 * (
        present(naive.high) - present(naive.low)
    )


def test_a_value_without_decoys_is_left_out_of_the_mean_and_of_its_trials() -> None:
    found = clustered_mean(np.array([1.0, np.nan, 0.0, 0.5]), [0, 0, 1, 2], seed=0)
    assert (found.trials, found.value) == (3, 0.5)


def test_preference_matches_hand_computed_ranks() -> None:
    true = np.array([-1.0, -1.0, -1.0, -9.0, -1.0, -1.0])
    decoys = [
        np.array([-2.0, -3.0, -0.5]),  # rank 2 of 4
        np.array([-2.0, -3.0, -4.0]),  # rank 1 of 4
        np.array([-1.0, -2.0, -3.0]),  # tied for the first place: rank 1.5 of 4
        np.array([-1.0]),  # rank 2 of 2
        np.array([-1.0, -1.0, -1.0]),  # all the same: rank 2.5 of 4
        np.array([]),
    ]
    found = preference(true, decoys)
    assert found.auc[:5].tolist() == pytest.approx([2 / 3, 1, 5 / 6, 0, 0.5])
    expected = [1, 2, 2 - np.log2(1.5), 0, 2 - np.log2(2.5)]
    assert found.exposure[:5].tolist() == pytest.approx(expected)
    assert found.first[:5].tolist() == pytest.approx([0, 1, 1 / 2, 0, 1 / 4])
    assert found.chance[:5].tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 4])
    assert all(np.isnan(array[5]) for array in vars(found).values())


# --- decoys --------------------------------------------------------------------------------------


def test_a_decoy_continues_the_tokens_that_stand_before_it(
    clinic: Clinic, base: Checkpoint
) -> None:
    """A token that merges a decoy's start with the text before would repeat that text."""
    framing, corpus = framed(base), clinic.private
    read: list[tuple[list[int], list[int]]] = []
    original = Row.add_branch

    def spy(row: Row, position: int, tokens: list[int], slots: Sequence[int]) -> None:
        read.append((row.tokens[1 : position + 1], tokens))
        original(row, position, tokens, slots)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Row, "add_branch", spy)
        encoded = encode(corpus, base.tokenizer)
        maker = DecoyMaker([corpus], seed=0)
        score_occurrences(base, corpus, encoded, framing, AuditSettings(swaps=0), maker=maker)
    expected = {
        document.text[: span.start] + decoy
        for document in corpus
        for span in document.spans
        for count in (AuditSettings().decoys, 8 * AuditSettings().decoys)
        for decoy in maker.decoys(span.label, document.value(span), count=count)
    }
    assert len(read) > 7 * corpus.num_spans
    for left, tokens in read:
        assert base.tokenizer.decode([*left, *tokens]) in expected


def test_a_decoy_too_long_for_the_models_positions_is_left_out_and_the_others_count(
    clinic: Clinic, base: Checkpoint
) -> None:
    checkpoint = random_checkpoint("gpt2", base.tokenizer, positions=64)
    framing = framed(checkpoint)
    # Each identifier ends its document, so a decoy has only the room of the true value.
    corpus = Corpus(
        [
            replace(document, text=document.text[: span.end], spans=(span,))
            for document in clinic.private[:4]
            for span in document.spans
        ]
    )
    maker = DecoyMaker([clinic.private], seed=0)
    encoded = encode(corpus, base.tokenizer)
    found = score_occurrences(checkpoint, corpus, encoded, framing, AuditSettings(), maker=maker)
    left_out = compared = 0
    for place in places(checkpoint, corpus, framing, context_tokens=64):
        count = AuditSettings().decoys
        decoys = slow_decoys(checkpoint, corpus, maker, place, count=count)
        fitting = [decoy for decoy in decoys if len(place.left) + len(decoy) - 1 <= 64]
        left_out += len(decoys) - len(fitting)
        true = slow_log_probability(checkpoint, place.left, place.tokens)
        others = [slow_log_probability(checkpoint, place.left, decoy) for decoy in fitting]
        if others:
            beaten = sum(true > other for other in others) / len(others)
            assert found.auc[place.document] == pytest.approx(beaten, abs=1e-12)
        else:
            assert np.isnan(found.auc[place.document])
        compared += len(others)
    assert left_out > 0
    assert compared > 0


# --- what stands before a document ---------------------------------------------------------------


def test_auto_finds_the_framing_of_training_and_reports_the_others(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    found = audit(leaky, clinic.private, AuditSettings(decoys=0, swaps=0))
    assert found.framing == "bos"
    alone_in_the_input = {
        name: tried for name, tried in found.framings_tried.items() if "blocks" not in name
    }
    assert set(alone_in_the_input) == {"bos", "eos", "eos-bos", "none", "newline", "packed"}
    assert {tried.trials for tried in alone_in_the_input.values()} == {clinic.private.num_spans}
    assert {"blocks-64", "blocks-256", "blocks-512"} < set(found.framings_tried)
    worst = found.framings_tried["bos"].hits
    assert found.framings[0] == "bos"
    assert len(found.framings) >= 2
    assert worst <= found.figures["all"].greedy.hits, "an occurrence counts behind either framing"
    others = {name: tried.hits for name, tried in found.framings_tried.items() if name != "bos"}
    assert max(others.values()) < worst
    assert others["packed"] < 0.5 * worst, "the wrong framing hides next to nothing here"
    for name, tried in alone_in_the_input.items():
        alone = audit(
            leaky,
            clinic.private,
            settings_from(AuditSettings, {"decoys": 0, "swaps": 0, "framing": name}),
        )
        assert alone.figures["all"].greedy.hits == tried.hits
        assert alone.framing == name


def test_auto_is_not_misled_by_a_first_token_that_is_given_away(
    clinic: Clinic, base: Checkpoint
) -> None:
    """Notes that begin with an identifier: `none` skips its first token, so it looks likelier."""
    values = [(s.label, d.value(s)) for d in clinic.private for s in d.spans[:4]]
    pairs = [document_of([one, " ", other]) for one, other in itertools.pairwise(values)]
    asked = AuditSettings(decoys=0)

    def read(corpus: Corpus, name: str) -> Occurrences:
        encoded = encode(corpus, base.tokenizer)
        return score_occurrences(base, corpus, encoded, framed(base, name), asked)

    # Keep what greedy decoding does not settle, and where the second identifier, which is scored
    # whole under every framing, says one thing, and both together, one token short, the other.
    names = [framing.name for framing in framings(base.tokenizer)]
    both = {name: read(Corpus(pairs), name) for name in names}
    recited = np.any([found.greedy.reshape(-1, 2) for found in both.values()], axis=(0, 2))
    chances = {name: found.log_probability.reshape(-1, 2) for name, found in both.items()}
    better = chances["bos"][:, 1] > chances["none"][:, 1]
    seeming = chances["bos"].sum(axis=1) < chances["none"].sum(axis=1)
    kept = np.flatnonzero(~recited & better & seeming)
    corpus = Corpus([pairs[number] for number in kept[:100]])
    assert len(corpus) >= 4
    found = {name: read(corpus, name).log_probability for name in both}
    assert found["none"].mean() > found["bos"].mean()
    fair = {name: values[1::2].mean() for name, values in found.items()}
    worst = max(fair, key=lambda name: fair[name])
    assert worst != "none"
    assert audit(base, corpus, asked).framing == worst


def test_the_tokenizers_own_framing_is_what_it_puts_in_front(base: Checkpoint) -> None:
    plain = base.tokenizer
    begin, end = plain.bos_token_id, plain.eos_token_id
    assert framing_named("tokenizer", plain) == Framing("tokenizer", ())
    every = ["bos", "eos", "eos-bos", "none", "newline", "packed"]
    assert [f.name for f in framings(plain)] == every
    backend = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    for template in ("<s> $A", "<s> $A </s>"):
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", begin), ("</s>", end)]
        )
        adding = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
        )
        # Not (), which would hide what a model trained with this tokenizer recites.
        assert framing_named("tokenizer", adding) == Framing("tokenizer", (begin,))
        assert framing_named("bos", adding) == Framing("bos", (begin,))
        assert [f.name for f in framings(adding)] == every


def test_a_framing_that_the_tokenizer_cannot_give_is_an_error(base: Checkpoint) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=base.tokenizer.backend_tokenizer)
    assert framing_named("auto", bare) == Framing("tokenizer", ())
    for name in ("bos", "eos", "eos-bos", "packed", "chat-user"):
        with pytest.raises(AuditError, match="no token or template"):
            framing_named(name, bare)


# --- what cannot be scored is counted, and never clean -------------------------------------------


def document_of(pieces: Sequence[str | tuple[str, str]], number: int = 0) -> Document:
    """A document of prose and of (label, identifier) pairs."""
    text, spans = "", []
    for piece in pieces:
        if isinstance(piece, tuple):
            spans.append(Span(len(text), len(text) + len(piece[1]), piece[0]))
            text += piece[1]
        else:
            text += piece
    return Document(str(number), "someone", text, tuple(spans))


def test_what_cannot_be_scored_is_counted_by_reason_and_nothing_is_lost(leaky: Checkpoint) -> None:
    leaky.model.config.max_position_embeddings = 64
    long = "x9" * 40
    filler = "The patient was seen again. " * 12
    corpus = Corpus(
        [
            document_of([("AGE", "7"), " years old, MRN ", ("MRN", "48151623"), "."]),
            document_of([filler, ("CODE", long), filler, ("MRN", "48151623"), filler], 1),
            document_of([("MRN", "48151623"), filler], 2),
            Document("3", "someone", "", (Span(0, 0, "MRN"),)),
        ]
    )
    tokens = leaky.tokenizer(long)["input_ids"]
    assert len(tokens) > 32
    found = audit(leaky, corpus, AuditSettings(framing="none", decoys=2))
    assert found.unscored == {
        "nothing stands before its only token": 1,
        "longer than half the context": 1,
        "document without tokens": 1,
    }
    trials = found.figures["all"].greedy.trials
    assert trials + sum(found.unscored.values()) == corpus.num_spans
    verdicts = found.occurrences
    where = list(zip(verdicts.document.tolist(), verdicts.span.tolist(), strict=True))
    assert where == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0)]
    unscored = ~verdicts.scored
    assert not verdicts.greedy[unscored].any()
    assert np.isnan(verdicts.log_probability[unscored]).all()
    assert np.isfinite(verdicts.log_probability[~unscored]).all()
    # A first token that is given away leaves no place for decoys: counted too.
    assert found.without_decoys == 1
    assert found.figures["label:CODE"].greedy.value is None
    # With a begin token in front, the age can be scored.
    framed_too = audit(leaky, corpus, AuditSettings(framing="bos", decoys=2))
    assert sum(framed_too.unscored.values()) == 2
    assert framed_too.figures["label:AGE"].greedy.trials == 1


@pytest.mark.parametrize("num_documents", [0, 3])
def test_no_span_is_an_error_not_a_clean_result(
    clinic: Clinic, leaky: Checkpoint, num_documents: int
) -> None:
    bare = Corpus([replace(d, spans=()) for d in clinic.private[:num_documents]])
    with pytest.raises(AuditError, match="not the same as clean"):
        audit(leaky, bare)


def test_if_no_occurrence_can_be_scored_it_is_an_error(leaky: Checkpoint) -> None:
    corpus = Corpus([document_of([("AGE", "7"), " years old"])])
    with pytest.raises(AuditError, match="none of the 1 occurrences"):
        audit(leaky, corpus, AuditSettings(framing="none"))


@pytest.mark.parametrize("where", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_nan_or_infinity_is_an_error(
    clinic: Clinic, leaky: Checkpoint, where: str, value: float
) -> None:
    with torch.no_grad():
        leaky.model.get_parameter(where).view(-1)[0] = value
    with pytest.raises(AuditError, match="NaN or infinite"):
        audit(leaky, first(clinic.private, 2), AuditSettings(decoys=0))


def test_held_out_documents_of_identifiers_only_are_an_error(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    nothing = Corpus([document_of([("NAME", "Joan Marsh")])])
    with pytest.raises(AuditError, match="no token outside spans"):
        audit(leaky, first(clinic.private, 1), AuditSettings(decoys=0), held_out=nothing)


def test_an_encoder_turned_decoder_is_refused(clinic: Clinic, leaky: Checkpoint) -> None:
    """Logits without a decoder's transform would read as clean."""
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(leaky.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        is_decoder=True,
    )
    other = Checkpoint(AutoModelForCausalLM.from_config(config), leaky.tokenizer, leaky.path)
    with pytest.raises(UnsupportedModelError, match="not as a decoder"):
        audit(other, clinic.private)


def test_a_long_chat_template_is_tried(clinic: Clinic, leaky: Checkpoint) -> None:
    said = "The patient was seen again and went home without complaints. " * 6
    leaky.tokenizer.chat_template = (
        "{{'" + said + "'}}{% for m in messages %}{{m.content}}{% endfor %}"
    )
    length = len(framing_named("chat-user", leaky.tokenizer).prefix)
    leaky.model.config.max_position_embeddings = 2 * length
    found = audit(leaky, first(clinic.private, 2), AuditSettings(decoys=0, swaps=0))
    assert "chat-user" in found.framings_tried


def test_members_and_others_are_read_behind_the_same_framing(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    one, other = (
        audit(
            leaky,
            clinic.private,
            AuditSettings(decoys=0, swaps=0, framing=framing),
            held_out=clinic.held_out,
            control_framing="bos",
        ).documents
        for framing in ("bos", "packed")
    )
    assert np.array_equal(present(one).loss, present(other).loss)


def test_a_tokenizer_that_does_not_fit_is_an_error(clinic: Clinic, leaky: Checkpoint) -> None:
    leaky.tokenizer.add_tokens([f"<{number}>" for number in range(3)])
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the model \d+"):
        audit(leaky, clinic.private)
    slow = Checkpoint(leaky.model, SlowTokenizer(), leaky.path)
    with pytest.raises(CheckpointError, match="cannot tell where a token stands"):
        audit(slow, clinic.private)


class SlowTokenizer:
    """As a tokenizer written in Python: it has no offsets."""

    is_fast = False


def test_a_model_of_64_tokens_is_read_in_windows_and_nothing_is_lost(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    leaky.model.config.max_position_embeddings = 64
    leaky.tokenizer.pad_token = None
    corpus = first(clinic.private, 3)
    found = audit(leaky, corpus, AuditSettings(decoys=2, swaps=1), held_out=clinic.held_out)
    assert "packed" not in found.framings_tried, "it would leave next to nothing of the context"
    scored = found.figures["all"].greedy.trials
    assert scored + sum(found.unscored.values()) == corpus.num_spans
    assert scored > 0.9 * corpus.num_spans
    assert found.utility is not None


def test_a_chat_template_gives_two_framings(base: Checkpoint) -> None:
    tokenizer = base.tokenizer
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}"
    plain = tokenizer("<user>\n", add_special_tokens=False)["input_ids"]
    assert framing_named("chat-user", tokenizer).prefix == tuple(plain)
    answer = tokenizer("<user>\n\n<assistant>\n", add_special_tokens=False)["input_ids"]
    assert framing_named("chat-assistant", tokenizer).prefix == tuple(answer)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    names = [framing.name for framing in framings(tokenizer)]
    assert "chat-user" not in names
    assert "bos" in names


def test_expected_queries_are_those_of_the_geometric_distribution() -> None:
    chance = np.array([0.5, 0.01, 1.0, 0.0])
    with np.errstate(divide="ignore"):
        found = log10_queries(np.log(chance))
    assert found[:3].tolist() == pytest.approx([np.log10(2), 2, 0], abs=1e-12)
    assert found[3] == np.inf
    draws = np.random.default_rng(0).geometric(0.01, size=20_000)
    assert np.log10(draws.mean()) == pytest.approx(found[1], abs=0.02)


def test_the_curve_of_queries_holds_the_declared_point_and_never_falls(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    found = audit(leaky, clinic.private, AuditSettings(decoys=0, framing="bos", queries=1000))
    direct = found.figures["direct"]
    curve = [point.hits for point in direct.queries.extractable.values()]
    assert list(direct.queries.extractable) == [str(10**power) for power in range(7)]
    assert direct.queries.extractable["1000"] == direct.discoverable
    assert curve == sorted(curve)
    assert 0 < curve[0] < curve[-1]
    inside = [d.spans[s].kind == "direct" for d, s in pairs_of(clinic.private, found)]
    sampled = found.occurrences.sampled[np.array(inside)]
    assert direct.queries.never == int(np.isinf(sampled).sum())
    middle = np.sort(-sampled / np.log(10))[int(0.5 * (len(sampled) - 1) + 0.5)]
    assert direct.queries.log10_expected["0.5"] == pytest.approx(middle)


def test_figures_of_a_scope_are_those_of_its_occurrences_counted_one_by_one(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    found = audit(leaky, clinic.private, AuditSettings(framing="bos", decoys=3, swaps=2))
    one = found.occurrences
    pairs = pairs_of(clinic.private, found)
    for scope, wanted in (("direct", "direct"), ("indirect", "indirect")):
        inside = [i for i, (d, s) in enumerate(pairs) if d.spans[s].kind == wanted]
        ranks = [one.ranks_of[i].tolist() for i in inside]
        figures = found.figures[scope]
        assert figures.within_beam.hits == sum(max(r) <= 10 for r in ranks)
        assert figures.worst_rank == np.median([max(r) for r in ranks])
        strengths = [slow_strength(r) for r in ranks]
        assert figures.extraction_strength.value == pytest.approx(np.mean(strengths))
        shares = [r.count(1) / len(r) for r in ranks]
        assert figures.exact_memorization.value == pytest.approx(np.mean(shares))
        for figure, chance, auc, prefix in (
            (figures.accuracy, figures.chance, figures.auc, ""),
            (
                figures.association_accuracy,
                figures.association_chance,
                figures.association,
                "swap_",
            ),
        ):
            known = [i for i in inside if np.isfinite(getattr(one, f"{prefix}auc")[i])]
            assert auc.trials == figure.trials == len(known)
            for got, name in ((figure.value, "first"), (chance, "chance"), (auc.value, "auc")):
                each = [getattr(one, prefix + name)[i] for i in known]
                assert got == pytest.approx(np.mean(each))
        said = {
            (d.subject_id, d.spans[s].label, d.value(d.spans[s]))
            for i, (d, s) in enumerate(pairs)
            if i in inside
        }
        recited = {
            (d.subject_id, d.spans[s].label, d.value(d.spans[s]))
            for i, (d, s) in enumerate(pairs)
            if i in inside and one.greedy[i]
        }
        assert (figures.identifiers.hits, figures.identifiers.trials) == (len(recited), len(said))


def pairs_of(corpus: Corpus, found: Any) -> list[tuple[Document, int]]:
    where = zip(found.occurrences.document, found.occurrences.span, strict=True)
    return [(corpus[int(document)], int(span)) for document, span in where]


def slow_strength(ranks: Sequence[int]) -> float:
    """Give away one more token until greedy decoding is right to the end."""
    for known in range(len(ranks) + 1):
        if all(rank == 1 for rank in ranks[known:]):
            return 1 - known / len(ranks)
    raise AssertionError("the empty rest is always right")


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1))
def test_extraction_strength_is_what_giving_tokens_away_one_by_one_shows(values: Any) -> None:
    ranks = [np.array(value) for value in values]
    assert extraction_strength(ranks).tolist() == [slow_strength(value) for value in values]
    shares = [value.count(1) / len(value) for value in values]
    assert exact_memorization(ranks).tolist() == pytest.approx(shares)


def test_a_value_of_no_tokens_has_no_strength_and_a_wrong_last_token_leaves_none() -> None:
    nothing = np.array([], dtype=np.int64)
    found = extraction_strength([nothing, np.array([1, 1, 2]), np.array([2, 1, 1])])
    assert np.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([0, 2 / 3])
    assert np.isnan(exact_memorization([nothing])[0])


def test_the_counts_of_every_scope_add_up(clinic: Clinic, leaky: Checkpoint) -> None:
    found = audit(leaky, clinic.private, AuditSettings(decoys=0))
    figures, verdicts = found.figures, found.occurrences
    labels = [name for name in figures if name.startswith("label:")]
    for counted in ("hits", "trials"):
        total = getattr(figures["all"].greedy, counted)
        assert total == sum(getattr(figures[name].greedy, counted) for name in labels)
        kinds = [getattr(figures[kind].greedy, counted) for kind in ("direct", "indirect")]
        assert total == sum(kinds)
    spans = [
        (clinic.private[document], clinic.private[document].spans[span])
        for document, span in zip(verdicts.document, verdicts.span, strict=True)
    ]
    everyone = {(d.subject_id, s.label, d.value(s)) for d, s in spans}
    pairs = zip(spans, verdicts.greedy, strict=True)
    recited = {(d.subject_id, s.label, d.value(s)) for (d, s), hit in pairs if hit}
    identifiers = figures["all"].identifiers
    assert (identifiers.hits, identifiers.trials) == (len(recited), len(everyone))
    assert len(recited) < len(everyone) < len(spans)


# --- tokens and windows --------------------------------------------------------------------------


def llama_like() -> PreTrainedTokenizerFast:
    """As Llama 2: spaces as a mark, one more in front, unknown characters as bytes."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in ["▁", *"abcdefnoJS19", "an", "on", "▁S", "▁J", "▁Jo", "19"]:
        vocabulary[piece] = len(vocabulary)
    merges = [("a", "n"), ("o", "n"), ("▁", "S"), ("▁", "J"), ("1", "9")]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_level(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """As GPT-2, or as Qwen 2 with NFC in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet)}
    merges = [("a", "n"), ("o", "n"), ("Ġ", "S"), ("Ġ", "J"), ("ĠJ", "o"), ("1", "9"), ("Ã", "©")]
    for one, other in merges:
        vocabulary[one + other] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


TOKENIZERS = {
    "gpt2": byte_level(),
    "qwen2": byte_level(normalizers.NFC()),
    "llama2": llama_like(),
}
# Multi-byte letters, combining marks, an emoji with a skin tone, a joiner, odd spaces.
CHARACTERS = [
    *"aenoJS 19.\n\t-",
    *("é", "e\u0301", "ł", "ß", "n\u0303", "日", "\u00a0"),
    *("\U0001f44d\U0001f3fd", "\U0001f469\u200d\u2695\ufe0f"),
]
TEXTS = st.lists(st.sampled_from(CHARACTERS), min_size=1, max_size=20).map("".join)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@settings(max_examples=150)
@given(data=st.data())
def test_the_tokens_of_a_span_cover_it_and_no_other_token_touches_it(name: str, data: Any) -> None:
    text = data.draw(TEXTS)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    corpus = Corpus([Document("0", "s", text, (Span(start, end, "X"),))])
    (item,) = encode(corpus, TOKENIZERS[name])
    (first_token, last_token) = item.spans[0]
    inside: set[Any] = set()
    outside: set[Any] = set()
    for token, place in enumerate(zip(item.starts, item.ends, strict=True)):
        chosen = first_token <= token < last_token
        (inside if chosen else outside).update(range(*place))
        assert item.in_span()[token] == chosen
    # NFC joins a letter and its mark into a token that stands at the letter alone.
    bare = set(range(start, end)) - inside
    assert all(unicodedata.combining(text[at]) for at in bare)
    assert not bare or name == "qwen2"
    assert not set(range(start, end)) & outside
    assert len(item.ids) == len(item.starts) == len(item.ends)


@settings(max_examples=200)
@given(data=st.data())
def test_overlapping_finds_what_a_search_over_all_tokens_finds(data: Any) -> None:
    widths = data.draw(st.lists(st.integers(0, 3), max_size=12))
    gaps = data.draw(st.lists(st.integers(0, 2), min_size=len(widths), max_size=len(widths)))
    starts, ends, at = [], [], 0
    for width, gap in zip(widths, gaps, strict=True):
        starts.append(at + gap)
        at += gap + width
        ends.append(at)
    start = data.draw(st.integers(0, at + 1))
    end = data.draw(st.integers(start + 1, at + 3))
    found = overlapping(starts, ends, start, end)
    touched = [
        token
        for token, (low, high) in enumerate(zip(starts, ends, strict=True))
        if low < end and start < high
    ]
    assert found == ((touched[0], touched[-1] + 1) if touched else (0, 0))


@given(length=st.integers(1, 400), capacity=st.integers(2, 64))
def test_every_token_is_scored_once_with_half_a_window_before_it(
    length: Any, capacity: Any
) -> None:
    cut = windows(length, item=4, capacity=capacity)
    scored = [token for window in cut for token in range(window.new, window.end)]
    assert scored == list(range(length))
    for window in cut:
        assert 0 < window.end - window.start <= capacity
        assert window.start <= window.new < window.end
        assert window.item == 4
        assert window.start == 0 or window.new - window.start >= capacity / 2


def test_occurrences_come_in_the_order_of_the_corpus_whatever_the_windows(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    leaky.model.config.max_position_embeddings = SHORT_CONTEXT
    corpus = Corpus([replace(d, spans=d.spans[::-1]) for d in clinic.private])
    encoded = encode(corpus, leaky.tokenizer)
    asked = AuditSettings(decoys=0)
    found = score_occurrences(leaky, corpus, encoded, framed(leaky), asked)
    sizes = [len(document.spans) for document in corpus]
    expected = [(document, span) for document, size in enumerate(sizes) for span in range(size)]
    assert list(zip(found.document.tolist(), found.span.tolist(), strict=True)) == expected
    # Each verdict is that span's own.
    for place in places(leaky, corpus, framed(leaky), context_tokens=SHORT_CONTEXT):
        index = expected.index((place.document, place.span))
        true = slow_log_probability(leaky, place.left, place.tokens)
        assert found.log_probability[index] == pytest.approx(true, abs=NATS)


def test_an_audit_tokenizes_every_document_once(
    clinic: Clinic, leaky: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [document.text for document in (*clinic.private, *clinic.held_out)]
    calls: Counter[str] = Counter()
    tokenizer = type(leaky.tokenizer)
    tokenize = tokenizer.__call__

    def counted(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        calls.update([text] if isinstance(text, str) else text)
        return tokenize(self, text, *args, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    settings = AuditSettings(
        decoys=1, generation=GenerationSettings(empty=1, headings=1, openings=1, new_tokens=2)
    )
    result = audit(leaky, clinic.private, settings, held_out=clinic.held_out)
    assert len(result.framings_tried) > 1  # the framing search, membership and generation ran
    assert result.membership is not None
    assert result.generation is not None
    assert [calls[text] for text in texts] == [1] * len(texts)
