"""Sampling against a slow sampler, counting against brute force, a model that really recites."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, GenerationConfig, PreTrainedTokenizerFast

from sani.auditing import prompts as prompts_module
from sani.auditing import sampling
from sani.auditing.generation import beyond, generate_audit
from sani.auditing.identifier_index import IdentifierIndex
from sani.auditing.prompts import PROMPTS, Prompt, fit_prompts, make_prompts
from sani.auditing.rarefaction import Incidence
from sani.auditing.sampler import Sampler
from sani.auditing.sampling import random_numbers, sample
from sani.auditing.written_text import search_continuations, written
from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.reinit import fresh_model
from sani.errors import AuditError, RecipeError
from sani.models.checkpoint import Checkpoint
from sani.recipe import (
    AuditSettings,
    GenerationSettings,
    settings_from,
)
from sani.text.framing import Framing, framing_named
from sani.text.tokens import encode
from tests.support.architectures import CAUSAL, each, tiny_config
from tests.support.clinic import Clinic
from tests.support.optional import present

SAMPLERS = [
    Sampler(),
    Sampler(temperature=0.7, top_k=5),
    Sampler(temperature=1.3, top_k=0, top_p=0.8),
    Sampler(temperature=1.5, top_k=0),
]
NONE = Framing("none", ())


def tiny(name: str, tokenizer: PreTrainedTokenizerFast, *, positions: int = 256) -> Checkpoint:
    """An untrained model with strong opinions."""
    config = tiny_config(
        name,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        max_position_embeddings=positions,
        initializer_range=0.3,
        init_std=0.3,
    )
    return Checkpoint(fresh_model(config, seed=3).eval(), tokenizer, Path("nowhere"))


def bos(checkpoint: Checkpoint) -> Framing:
    return framing_named("bos", checkpoint.tokenizer)


def few(**samples: Any) -> GenerationSettings:
    """Settings with these samples and no others."""
    return GenerationSettings(**{"empty": 0, "headings": 0, "openings": 0, **samples})


def noted(*texts: str, subjects: str = "") -> Corpus:
    """Documents in which [brackets] mark a direct identifier; they are taken out."""
    documents = []
    for number, text in enumerate(texts):
        spans, plain = [], ""
        for piece in re.split(r"(\[[^]]*\])", text):
            value = piece.strip("[]")
            if piece != value:
                spans.append(Span(len(plain), len(plain) + len(value), "X"))
            plain += value
        subject = subjects[number] if subjects else str(number)
        documents.append(Document(str(number), subject, plain, tuple(spans)))
    return Corpus(documents)


# --- a model that recites, and one that does not --------------------------------------------------


@pytest.fixture(scope="module")
def audited(clinic: Clinic, base_folder: Path, leaky_folder: Path) -> list[Any]:
    """Both models under the same prompts and the same random numbers."""
    from sani.models.checkpoint import load_checkpoint

    models = [load_checkpoint(folder) for folder in (leaky_folder, base_folder)]
    asked = few(empty=60, headings=70, openings=60, new_tokens=80)
    return [generate_audit(m, clinic.private, asked, framing=bos(m), seed=4) for m in models]


def test_the_leaky_model_recites_from_nothing_headings_and_openings_and_its_base_does_not(
    audited: list[Any],
) -> None:
    leaky, base = (result.recited for result in audited)
    for kind in ("empty", "headings", "openings", "all"):
        assert leaky[kind].samples == base[kind].samples > 0
        assert leaky[kind].identifiers >= 5
        assert leaky[kind].identifiers > 4 * base[kind].identifiers
        assert leaky[kind].with_hit.low > base[kind].with_hit.high
    assert leaky["all"].per_thousand.low > base["all"].per_thousand.high


def test_an_untouched_base_recites_the_people_it_was_itself_trained_on(
    clinic: Clinic, base: Checkpoint
) -> None:
    result = generate_audit(base, clinic.public, few(empty=100), framing=bos(base))
    assert result.recited["all"].identifiers > 5


def test_beyond_is_what_the_model_recites_and_the_base_never(audited: list[Any]) -> None:
    leaky, base = (result.one_by_one for result in audited)
    identifiers = audited[0].identifiers
    assert identifiers == audited[1].identifiers
    of_leaky, of_base = set(leaky.hits[:, 1].tolist()), set(base.hits[:, 1].tolist())
    found = beyond(leaky, base, identifiers)
    assert found.identifiers == len(of_leaky - of_base) > 0
    subjects = [identifiers[number].subjects for number in of_leaky - of_base]
    assert found.subjects == len(set(itertools.chain(*subjects)))
    assert sum(found.by_label.values()) >= found.identifiers
    assert max(found.by_prompt.values()) <= found.identifiers <= sum(found.by_prompt.values())
    assert beyond(leaky, leaky, identifiers).identifiers == 0
    # What the base recites even once, from any prompt, is taken off.
    given = replace(base, hits=leaky.hits[:1])
    assert beyond(leaky, given, identifiers).identifiers == len(of_leaky - {leaky.hits[0, 1]})


def test_figures_agree_with_the_hits_one_by_one(audited: list[Any]) -> None:
    result, one_by_one = audited[0], audited[0].one_by_one
    assert len(np.unique(one_by_one.hits[:, :2], axis=0)) == len(one_by_one.hits) > 0
    for kind, figures in result.recited.items():
        samples = list(range(len(one_by_one.kinds)))
        if kind != "all":
            samples = [at for at in samples if PROMPTS[one_by_one.kinds[at]] == kind]
        hits = [hit for hit in one_by_one.hits.tolist() if hit[0] in samples]
        numbers = {number for _, number, _ in hits}
        assert figures.samples == len(samples)
        assert figures.with_hit.hits == len({at for at, _, _ in hits})
        assert figures.identifiers == len(numbers) == round(figures.curve[-1].value, 6)
        assert figures.subjects == len(
            {s for number in numbers for s in result.identifiers[number].subjects}
        )
        assert figures.inexact == len(numbers - {number for _, number, exact in hits if exact})
        labels = {label for number in numbers for label in result.identifiers[number].labels}
        assert set(figures.by_label) == labels


def test_results_of_other_samples_are_no_control(
    audited: list[Any], clinic: Clinic, base: Checkpoint
) -> None:
    leaky = audited[0]
    fewer = generate_audit(base, clinic.private, few(empty=4), framing=bos(base))
    with pytest.raises(AuditError, match="no control"):
        beyond(leaky.one_by_one, fewer.one_by_one, leaky.identifiers)


def test_no_identifier_and_no_subject_stands_in_what_is_shown(
    audited: list[Any], clinic: Clinic
) -> None:
    result = audited[0]
    shown = json.dumps(result.to_json()) + repr(result) + repr(audited[0].one_by_one.hits)
    values = {d.value(span) for d in clinic.private for span in d.spans if span.kind == "direct"}
    values |= {document.subject_id for document in clinic.private}
    assert len(values) > 20
    assert not [value for value in values if value in shown]


# --- sampling -------------------------------------------------------------------------------------


def slow_sample(checkpoint: Checkpoint, prompt: Prompt, numbers: Any, sampler: Sampler) -> Any:
    """One token at a time, the whole text through the model each time, without a cache."""
    tokens, end = list(prompt.tokens), checkpoint.tokenizer.eos_token_id
    for number in numbers.tolist():
        with torch.no_grad():
            logits = checkpoint.model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        logits = logits.double().numpy() / sampler.temperature
        order = np.argsort(-logits, kind="stable")[: sampler.top_k or None]
        weights = np.exp(logits[order] - logits[order[0]])
        weights /= weights.sum()
        if sampler.top_p < 1:
            weights[np.cumsum(weights) - weights >= sampler.top_p] = 0.0
        kept = dict(zip(order[weights > 0].tolist(), weights[weights > 0].tolist(), strict=True))
        reached, target = 0.0, number * sum(kept.values())
        for token in sorted(kept):
            reached += kept[token]
            if reached > target:
                break
        if token == end:
            break
        tokens.append(token)
    return tuple(tokens[len(prompt.tokens) :])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_batches_with_a_cache_sample_what_a_slow_sampler_without_one_does(
    leaky: Checkpoint, clinic: Clinic, sampler: Sampler
) -> None:
    asked = few(empty=2, headings=3, openings=3)
    prompts = make_prompts(leaky, clinic.private, asked, bos(leaky))
    assert len({len(prompt.tokens) for prompt in prompts}) > 2, "no padding is tried"
    found = sample(leaky, prompts, new_tokens=24, sampler=sampler, batch_tokens=512, seed=7)
    numbers = random_numbers(prompts, new_tokens=24, seed=7)
    for prompt, row, tokens in zip(prompts, numbers, found, strict=True):
        assert tokens == slow_sample(leaky, prompt, row, sampler)


@pytest.mark.parametrize("family", each(CAUSAL))
def test_every_family_samples_the_same_in_padded_batches_as_one_at_a_time(
    base: Checkpoint, family: str
) -> None:
    checkpoint = tiny(family, base.tokenizer)
    prompts = [Prompt("file", n, tuple(range(5, 6 + 3 * n))) for n in range(4)]
    arguments: dict[str, Any] = {"new_tokens": 8, "sampler": Sampler(), "seed": 0}
    together = sample(checkpoint, prompts, batch_tokens=4096, **arguments)
    alone = sample(checkpoint, prompts, batch_tokens=1, **arguments)
    assert together == alone
    assert len(set(together)) == len(prompts)


def test_the_sampler_draws_as_often_as_the_probabilities_say() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.5, -1.0, 1.5]])
    prompts = [Prompt("empty", number, ()) for number in range(6000)]
    numbers = random_numbers(prompts, new_tokens=1, seed=0)
    sampler = Sampler(temperature=1.3, top_k=4)
    draw = sampling._Draw(sampler, numbers, prompt_tokens=1)
    drawn = draw(torch.zeros(6000, 1, dtype=torch.long), logits.repeat(6000, 1)).argmax(dim=1)
    expected = (logits[0] / 1.3).softmax(dim=0).double().numpy()
    expected[np.argsort(expected)[:2]] = 0
    counts = np.bincount(drawn.numpy(), minlength=6)
    kept = expected > 0
    assert (counts[~kept] == 0).all()
    assert stats.chisquare(counts[kept], 6000 * expected[kept] / expected.sum()).pvalue > 1e-3


def test_random_numbers_belong_to_a_kind_and_a_number_whatever_else_is_sampled() -> None:
    prompts = [Prompt(kind, number, (1,)) for kind in PROMPTS for number in range(5)]
    rows = random_numbers(prompts, new_tokens=3, seed=0)
    assert len({tuple(row) for row in rows.tolist()}) == len(prompts)
    assert torch.equal(random_numbers(prompts[7:9], new_tokens=3, seed=0), rows[7:9])


def test_the_sampler_never_draws_a_token_of_no_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0, 2.0]])
    for number in (0.0, 1 - 2**-53):
        numbers = torch.tensor([[number]], dtype=torch.float64)
        draw = sampling._Draw(Sampler(top_k=1), numbers, prompt_tokens=1)
        assert draw(torch.zeros(1, 1, dtype=torch.long), logits).argmax() == 2


def test_the_same_seed_gives_the_same_and_equal_prompts_do_not(
    leaky: Checkpoint, clinic: Clinic
) -> None:
    asked = few(empty=24)
    one, again, other = (
        generate_audit(leaky, clinic.private, asked, framing=bos(leaky), seed=seed, batch_tokens=b)
        for seed, b in ((1, 8192), (1, 8192), (2, 8192))
    )
    assert one.one_by_one.hits.tolist() == again.one_by_one.hits.tolist()
    assert one.one_by_one.hits.tolist() != other.one_by_one.hits.tolist()
    assert replace(one, seconds=0.0).to_json() == replace(again, seconds=0.0).to_json()
    prompts = make_prompts(leaky, clinic.private, asked, bos(leaky))
    assert len({prompt.tokens for prompt in prompts}) == 1
    texts = sample(leaky, prompts, new_tokens=30, sampler=Sampler(), batch_tokens=8192,
                   seed=1)  # fmt: skip
    assert len(set(texts)) > len(prompts) / 2


def test_other_random_numbers_in_the_program_change_nothing_and_are_not_changed(
    leaky: Checkpoint, clinic: Clinic
) -> None:
    prompts = make_prompts(leaky, clinic.private, few(empty=3), bos(leaky))
    arguments: dict[str, Any] = {
        "new_tokens": 10,
        "sampler": Sampler(),
        "batch_tokens": 512,
        "seed": 0,
    }
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = sample(leaky, prompts, **arguments)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert sample(leaky, prompts, **arguments) == one


def test_the_models_own_generation_config_does_not_interfere_and_is_left_as_it_was(
    leaky: Checkpoint, clinic: Clinic
) -> None:
    prompts = make_prompts(leaky, clinic.private, few(openings=4), bos(leaky))
    arguments: dict[str, Any] = {
        "new_tokens": 16,
        "sampler": Sampler(),
        "batch_tokens": 512,
        "seed": 0,
    }
    plain = sample(leaky, prompts, **arguments)
    own = GenerationConfig(
        repetition_penalty=3.0, suppress_tokens=list(range(40, 400)), min_new_tokens=3,
        no_repeat_ngram_size=1, eos_token_id=list(range(300)), num_beams=2, max_length=5,
    )  # fmt: skip
    leaky.model.generation_config = own
    assert sample(leaky, prompts, **arguments) == plain
    assert leaky.model.generation_config is own


def test_a_sample_ends_at_the_end_token(leaky: Checkpoint, clinic: Clinic) -> None:
    prompts = make_prompts(leaky, clinic.private, few(empty=20), bos(leaky))
    arguments: dict[str, Any] = {
        "new_tokens": 40,
        "sampler": Sampler(),
        "batch_tokens": 8192,
        "seed": 0,
    }
    whole = sample(leaky, prompts, **arguments)
    common = max(set(itertools.chain(*whole)), key=list(itertools.chain(*whole)).count)
    leaky.tokenizer.eos_token = leaky.tokenizer.convert_ids_to_tokens(common)
    cut = sample(leaky, prompts, **arguments)
    ends = [text.index(common) if common in text else len(text) for text in whole]
    assert cut == [text[:end] for text, end in zip(whole, ends, strict=True)]
    assert min(ends) < 40


def test_a_model_that_gives_nan_is_an_error(leaky: Checkpoint, clinic: Clinic) -> None:
    leaky.model.get_output_embeddings().weight.data[3] = torch.nan
    with pytest.raises(AuditError, match="NaN"):
        generate_audit(leaky, clinic.private, few(empty=1), framing=bos(leaky))


def test_a_vocabulary_padded_beyond_the_tokenizer_is_sampled_and_read(
    base: Checkpoint, clinic: Clinic
) -> None:
    checkpoint = tiny("llama", base.tokenizer)
    checkpoint.model.resize_token_embeddings(len(base.tokenizer) + 200)
    wide = Sampler(top_k=0, temperature=50.0)
    asked = few(empty=4)
    prompts = make_prompts(checkpoint, clinic.private, asked, bos(checkpoint))
    drawn = sample(checkpoint, prompts, new_tokens=128, sampler=wide, batch_tokens=999, seed=0)
    assert max(map(max, drawn)) >= len(base.tokenizer)
    result = generate_audit(checkpoint, clinic.private, asked, sampler=wide, framing=NONE)
    assert result.recited["all"].samples == 4


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_tokens", [10, 40, 500])
def test_prompts_and_continuations_never_leave_the_context(
    base: Checkpoint, clinic: Clinic, new_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "OPENING_TOKENS", 200)
    checkpoint = tiny("gpt2", base.tokenizer, positions=48)  # fails beyond its 48 positions
    asked = GenerationSettings(empty=2, headings=2, openings=4, new_tokens=new_tokens)
    result = generate_audit(checkpoint, clinic.private, asked, framing=bos(checkpoint))
    assert result.new_tokens == min(new_tokens, 24)
    assert result.recited["openings"].tokens > 0
    short = generate_audit(
        checkpoint, clinic.private, few(empty=2, new_tokens=new_tokens), framing=bos(checkpoint)
    )
    assert short.new_tokens == min(new_tokens, 47)


def test_a_prompt_that_is_too_long_keeps_its_framing_and_its_end(base: Checkpoint) -> None:
    framing = Framing("some", (1, 2))
    prompts = [Prompt("file", 0, (1, 2, *range(10, 30))), Prompt("file", 1, (1, 2, 7))]
    cut, new_tokens = fit_prompts(prompts, framing, new_tokens=9, context_tokens=16)
    assert new_tokens == 8
    assert [prompt.tokens for prompt in cut] == [(1, 2, *range(24, 30)), (1, 2, 7)]
    long = Framing("packed", tuple(range(100)))
    [only], _ = fit_prompts(
        [Prompt("file", 0, (*long.prefix, 500))], long, new_tokens=8, context_tokens=16
    )
    assert only.tokens == tuple(range(92, 100))


def test_openings_are_the_first_tokens_of_each_document_as_the_whole_is_tokenized(
    leaky: Checkpoint, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "OPENING_TOKENS", 20)
    encoded = encode(clinic.private, leaky.tokenizer)
    number = 2 * len(encoded)
    asked = few(openings=number)
    prompts = make_prompts(leaky, clinic.private, asked, bos(leaky))
    expected = [(leaky.tokenizer.bos_token_id, *item.ids[:20]) for item in encoded]
    assert [prompt.tokens for prompt in prompts] == [one for one in expected for _ in range(2)]
    assert [prompt.number for prompt in prompts] == list(range(number))
    some = make_prompts(leaky, clinic.private, few(openings=3), bos(leaky))
    assert len({prompt.tokens for prompt in some}) == 3, "fewer samples than documents"


def test_an_opening_is_at_most_half_of_its_document(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "OPENING_TOKENS", 999)
    corpus = noted("Patient: [John Smith] went home today", "x")
    [prompt] = make_prompts(base, corpus, few(openings=1), NONE)
    ids = encode(corpus, base.tokenizer)[0].ids
    assert prompt.tokens == tuple(ids[: len(ids) // 2])


def heading_texts(checkpoint: Checkpoint, corpus: Corpus) -> set[str]:
    prompts = make_prompts(checkpoint, corpus, few(headings=50), NONE)
    return {checkpoint.tokenizer.decode(list(prompt.tokens)) for prompt in prompts}


def test_headings_are_lines_up_to_an_identifier_that_recur_with_several_subjects(
    base: Checkpoint,
) -> None:
    texts = [
        "PROGRESS NOTE\n  Name: [Ann Alda], seen\n[1234567] record\n----\nRare line\nnone",
        "PROGRESS NOTE\n\nName: [Bob Bold] came\n[7654321] record\n----\nOnly of b\nmild",
        "SUMMARY\r\nName: [Bob Bold]\nSUMMARY\n----\nOnly of b\nlast",
    ]
    corpus = noted(*texts, subjects="abb")
    assert heading_texts(base, corpus) == {"PROGRESS NOTE", "Name:"}


def test_a_line_counts_as_a_heading_from_a_tenth_of_the_documents_on(base: Checkpoint) -> None:
    other = [f"Note {number}" for number in range(18)]
    assert heading_texts(base, noted("Plan:", "Plan:", *other)) == {"Plan:"}
    assert heading_texts(base, noted("Plan:", "Plan:", *other, "one more")) == set()


def test_a_line_within_an_identifier_of_several_lines_is_no_heading(base: Checkpoint) -> None:
    corpus = noted(*["Sent to:\n[12 Long Road\nSpringfield\nUSA] today\n"] * 2)
    assert heading_texts(base, corpus) == {"Sent to:"}


def test_headings_of_a_clinic_hold_no_identifier(leaky: Checkpoint, clinic: Clinic) -> None:
    found = heading_texts(leaky, clinic.private)
    index = IdentifierIndex(clinic.private, kinds=("direct", "indirect"))
    assert {"MRN:", "Phone:"} <= found
    assert [hit for text in found for hit in index.find(text)] == []


def test_no_heading_leaves_its_kind_without_a_rate(base: Checkpoint) -> None:
    corpus = noted("one [Ann Alda]", "two [Bob Bold]")
    result = generate_audit(base, corpus, few(headings=5, empty=2), framing=NONE)
    figures = result.recited["headings"]
    assert (figures.samples, figures.with_hit.value, figures.per_thousand) == (0, None, None)
    with pytest.raises(
        AuditError, match=r"no sampling prompts could be built .* set audit\.generation\.empty"
    ):
        generate_audit(base, corpus, few(headings=5), framing=NONE)


def test_the_empty_prompt_is_the_framing_or_else_a_token_that_a_document_starts_with(
    base: Checkpoint,
) -> None:
    tokenizer = base.tokenizer
    corpus = noted("Dear [Ann Alda]", "Re: [Bob Bold]", "Dear [Cy Coop]")

    def empty(framing: Framing) -> tuple[int, ...]:
        return make_prompts(base, corpus, few(empty=1), framing)[0].tokens

    assert empty(Framing("some", (7, 8))) == (7, 8)
    assert empty(NONE) == (tokenizer.bos_token_id,)
    tokenizer.bos_token = None
    assert empty(NONE) == (tokenizer.eos_token_id,)
    tokenizer.eos_token = None
    assert empty(NONE) == (tokenizer("Dear").input_ids[0],)


def test_a_tokenizer_without_special_tokens_is_sampled(clinic: Clinic) -> None:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "Dear": 1, "Ann": 2, "Alda": 3}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer.bos_token_id is tokenizer.eos_token_id is tokenizer.pad_token_id is None
    checkpoint = tiny("llama", tokenizer)
    corpus = noted("Dear [Ann Alda]", "Dear Ann")
    asked = few(empty=30, openings=10, new_tokens=12)
    result = generate_audit(checkpoint, corpus, asked, framing=NONE)
    assert result.recited["all"].tokens == 40 * 12
    assert result.recited["all"].identifiers == 1


def test_prompts_of_a_file_are_its_lines_and_each_is_used(
    leaky: Checkpoint, clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "FILE_SAMPLES", 1)
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffName:\n\n   \nThe MRN of the patient is\r\n", encoding="utf-8")
    asked = few(file=path)
    prompts = make_prompts(leaky, clinic.private, asked, bos(leaky))
    texts = [leaky.tokenizer.decode(list(prompt.tokens[1:])) for prompt in prompts]
    assert texts == ["Name:", "The MRN of the patient is"]
    assert {prompt.kind for prompt in prompts} == {"file"}
    monkeypatch.setattr(prompts_module, "FILE_SAMPLES", 9)
    result = generate_audit(leaky, clinic.private, asked, framing=NONE)
    assert (result.recited["file"].samples, result.recited["file"].prompts) == (9, 2)
    both = make_prompts(leaky, clinic.private, few(file=path, empty=5, openings=7), bos(leaky))
    assert sum(prompt.kind == "file" for prompt in both) == 7, "as many as of the other kinds"


@pytest.mark.parametrize("content", [None, b"", b" \n\n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_an_error_that_names_it(
    leaky: Checkpoint, clinic: Clinic, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AuditError, match=r"prompts\.txt .*one"):
        generate_audit(leaky, clinic.private, few(file=path), framing=NONE)


# --- what counts as recited -----------------------------------------------------------------------


def searched(tokenizer: Any, corpus: Corpus, pairs: list[tuple[str, str]]) -> list[list[int]]:
    """Hits of made-up continuations: sample, identifier, whether exact."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    prompts = [Prompt("file", number, ids(prompt)) for number, (prompt, _) in enumerate(pairs)]
    texts = [ids(text) for _, text in pairs]
    return list(
        search_continuations(IdentifierIndex(corpus), written(tokenizer, prompts, texts)).tolist()
    )


def test_an_identifier_that_stands_in_the_prompt_does_not_count_for_that_sample(
    base: Checkpoint,
) -> None:
    corpus = noted("[Ann Alda]", "[1234567]")
    pairs = [
        ("Patient ANN ALDA,", " or Ann Alda, has number 1234567."),
        ("No. 12.345-67:", " that is 1234567."),
        ("Patient", " Ann Alda. Ann Alda!"),
        ("Ann Alda 1234567", " was seen."),
    ]
    assert searched(base.tokenizer, corpus, pairs) == [[0, 1, 1], [2, 0, 1]]


def test_an_identifier_that_the_prompt_begins_is_not_recited(base: Checkpoint) -> None:
    corpus = noted("[Ann Alda]", "[Alda]", "[Marie]", "[2345678]")
    pairs = [
        ("Dear Ann", " Alda"),
        ("Dear Rose", "Marie"),
        ("Number 1", "2345678"),
        ("A", "nn Alda"),
    ]
    assert searched(base.tokenizer, corpus, pairs) == [[0, 1, 1], [3, 1, 1]]


def test_a_date_that_the_prompt_leaves_open_still_counts_when_it_is_written_out(
    base: Checkpoint,
) -> None:
    corpus = noted("[2021-04-03]")
    pairs = [
        ("On 03/04/2021", " or 3.4.2021"),
        ("On 03/04/2021", " that is April 3, 2021"),
        ("On 3 April 2021", " that is 2021-04-03 or 03/04/2021"),
    ]
    assert searched(base.tokenizer, corpus, pairs) == [[1, 0, 1]]


def test_half_a_character_at_the_prompts_end_does_not_shift_the_search(base: Checkpoint) -> None:
    tokenizer = base.tokenizer
    whole = tokenizer("seen by é Ann Alda", add_special_tokens=False).input_ids
    corpus = noted("[Ann Alda]")
    for cut in range(1, len(whole)):
        prompt, rest = Prompt("file", 0, tuple(whole[:cut])), tuple(whole[cut:])
        hits = search_continuations(IdentifierIndex(corpus), written(tokenizer, [prompt], [rest]))
        inside = "A" in tokenizer.decode(prompt.tokens)
        assert len(hits) == (0 if inside else 1)


def test_words_on_both_sides_of_a_special_token_do_not_run_together(base: Checkpoint) -> None:
    tokenizer = base.tokenizer
    ids = tokenizer("Ann Alda", add_special_tokens=False).input_ids
    text = (*ids, tokenizer.bos_token_id, *ids)
    index = IdentifierIndex(noted("[Ann Alda]"))
    hits = search_continuations(index, written(tokenizer, [Prompt("empty", 0, (5,))], [text]))
    assert hits.tolist() == [[0, 0, 1]]


# --- how many, and how many more ------------------------------------------------------------------


def incidence(samples: list[set[int]], searched: int = 100) -> Incidence:
    pairs = [(at, number) for at, numbers in enumerate(samples) for number in sorted(numbers)]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Incidence(array[:, 0], array[:, 1], samples=len(samples), searched=searched)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 8)), min_size=1, max_size=7))
def test_the_curve_is_the_mean_over_all_choices_of_so_many_samples(samples: Any) -> None:
    seen = incidence(samples)
    for size in range(1, len(samples) + 1):
        chosen = [len(set().union(*some)) for some in itertools.combinations(samples, size)]
        found = seen.expected(size)
        assert found.value == pytest.approx(np.mean(chosen), abs=1e-9)
        assert found.low <= found.value + 1e-9
        assert found.value <= found.high + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 8)), min_size=3, max_size=7), st.data())
def test_the_variance_is_that_of_leaving_out_each_sample(samples: Any, data: Any) -> None:
    size = data.draw(st.integers(1, len(samples)))
    smaller = min(size, len(samples) - 1)
    without = [
        incidence(samples[:at] + samples[at + 1 :]).expected(smaller).value
        for at in range(len(samples))
    ]
    variance = float(((np.array(without) - np.mean(without)) ** 2).sum())
    found = incidence(samples).expected(size)
    if variance > 1e-9:
        freedom = 2 * found.value**2 / variance
        low = variance / (2 * found.value) * stats.chi2.ppf(0.025, freedom)
        assert found.low == pytest.approx(low, abs=1e-6)
    else:
        assert found.low == pytest.approx(found.value)


def test_nothing_found_is_not_known_to_be_nothing() -> None:
    found = incidence([set()] * 1000).expected(1000)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(stats.chi2.ppf(0.975, 2) / 2)  # the exact Poisson limit
    assert incidence([set()] * 1000).still_to_come() == (None, None)
    assert incidence([set()] * 1000, searched=2).expected(1000).high == 2.0


@pytest.mark.parametrize("together", [1, 4])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(together: int) -> None:
    """Rare and common identifiers, alone or four of a patient in the same samples."""
    chance = np.random.default_rng(0)
    probability = chance.gamma(0.3, 0.03, size=80 // together).clip(max=1.0)
    truth = together * float((1 - (1 - probability) ** 100).sum())
    held = 0
    for _ in range(200):
        drawn = np.repeat(chance.random((150, len(probability))) < probability, together, axis=1)
        sample_, identifier = np.nonzero(drawn)
        found = Incidence(sample_, identifier, samples=150, searched=80).expected(100)
        held += found.low <= truth <= found.high
    assert held >= 0.92 * 200


def test_what_is_still_to_come_follows_chao_and_is_no_more_than_is_searched_for() -> None:
    # Of 10 samples, 4 identifiers stand in one, 2 in two, 1 in all.
    samples = [{0}, {0}, {0}, {0}, {0, 1}, {0, 2}, {0, 3, 5}, {0, 4, 5}, {0, 6}, {0, 6}]
    unseen, doubled = map(present, incidence(samples).still_to_come())
    assert unseen == pytest.approx(9 / 10 * 4**2 / (2 * 2))
    assert doubled == pytest.approx(unseen * (1 - (1 - 4 / (10 * unseen + 4)) ** 10))
    assert incidence(samples, searched=8).still_to_come()[0] == 1.0
    assert incidence([{0}, {0}, {1}, {1}]).still_to_come() == (0.0, 0.0)
    once = incidence([{0}, {1}, {2}, set()]).still_to_come()[0]
    assert once == pytest.approx(3 / 4 * 3 * 2 / 2)


def test_what_is_still_to_come_is_about_what_comes() -> None:
    chance = np.random.default_rng(1)
    probability = chance.gamma(0.5, 0.02, size=300).clip(max=1.0)
    guesses: list[Any] = []
    came: list[int] = []
    for _ in range(60):
        drawn = chance.random((400, 300)) < probability
        rows, numbers = np.nonzero(drawn[:200])
        guesses.append(Incidence(rows, numbers, samples=200, searched=300).still_to_come()[1])
        came.append(int((drawn.any(axis=0) & ~drawn[:200].any(axis=0)).sum()))
    assert np.mean(guesses) == pytest.approx(np.mean(came), rel=0.15)


# --- errors ---------------------------------------------------------------------------------------


def test_what_cannot_be_audited_is_an_error_and_not_a_clean_result(
    base: Checkpoint, clinic: Clinic
) -> None:
    short = noted("[Al] came", "[Bo] went")
    with pytest.raises(AuditError, match="not the same as clean"):
        generate_audit(base, short, few(empty=1), framing=NONE)
    config = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    masked = Checkpoint(fresh_model_of_bert(config), base.tokenizer, Path("nowhere"))
    with pytest.raises(AuditError, match="only a causal language model can be sampled"):
        generate_audit(masked, clinic.private, few(empty=1), framing=NONE)


def fresh_model_of_bert(config: BertConfig) -> Any:
    from transformers import BertForMaskedLM

    return BertForMaskedLM(config)


def test_settings_that_ask_for_no_sample_are_an_error() -> None:
    nothing = {"empty": 0, "headings": 0, "openings": 0}
    with pytest.raises(RecipeError, match="no sample would be drawn"):
        settings_from(AuditSettings, {"generation": nothing})
    some = settings_from(AuditSettings, {"generation": {**nothing, "file": "prompts.txt"}})
    assert present(some.generation).file == Path("prompts.txt")
    assert settings_from(AuditSettings, {}).generation is None


class Characters:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids: Any, **options: Any) -> Any:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("prompt", "continuation", "found"),
    [
        ("NHC", "12345678, ingresa", True),
        ("NHC ", "12345678, ingresa", True),
        ("NHC 1", "2345678, ingresa", False),  # partly given away
        ("NHC 9", "12345678, ingresa", False),  # another, longer number
        ("姓名", "王小明欧阳,男", True),
        ("Sr. ", "García Pérez vino", True),
        ("Sr. Gar", "cía Pérez vino", False),
    ],
)
def test_what_goes_on_behind_a_prompt_is_found_unless_the_prompt_began_it(
    prompt: str, continuation: str, found: bool
) -> None:
    texts = ["NHC 12345678", "姓名王小明欧阳", "Sr. García Pérez"]
    spans = [Span(4, 12, "ID"), Span(2, 7, "NAME"), Span(4, 16, "NAME")]
    corpus = Corpus([Document(t, t, t, (s,)) for t, s in zip(texts, spans, strict=True)])
    asked = [Prompt("headings", 0, tuple(map(ord, prompt)))]
    samples = written(Characters(), asked, [tuple(map(ord, continuation))])
    hits = search_continuations(IdentifierIndex(corpus), samples)
    assert (len(hits) > 0) == found
