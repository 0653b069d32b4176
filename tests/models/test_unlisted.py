"""Families that the table does not have: audited by their logits, not erased or repaired."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from sani.auditing.audit import audit
from sani.auditing.prompts import Prompt
from sani.auditing.sampler import Sampler
from sani.auditing.sampling import sample
from sani.auditing.scoring import score_occurrences
from sani.corpus.tables import write_jsonl
from sani.erasing.erase import erase
from sani.erasing.reinit import fresh_model
from sani.errors import UnsupportedModelError
from sani.models import families
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.models.families import FAMILIES, check_reads, family_of
from sani.pipeline.preflight import check
from sani.recipe import AuditSettings, EraseSettings, load_recipe
from sani.repairing.repair import repair
from sani.text.framing import Framing
from sani.text.tokens import encode
from tests.support import masked as masked_words
from tests.support.words import MASK, TEXTS, WORDS, corpus_of, settings_of, word_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 40,
    "embedding_size": 16,
    "pad_token_id": 19,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "state_size": 4,
}
CAUSAL = ["arcee", "mamba", "stablelm", "xglm"]
MASKED = ["albert", "nystromformer"]
ASKED = AuditSettings(decoys=3, swaps=0)


def unlisted(name: str) -> Checkpoint:
    sizes = {**SIZES, "d_model": 16, "ffn_dim": 24, "attention_heads": 4, "num_layers": 2}
    model = fresh_model(AutoConfig.for_model(name, **sizes), seed=1)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 2:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=chance))
    tokenizer = masked_words.tokenizer_of_words() if name in MASKED else word_tokenizer()
    return Checkpoint(model, tokenizer, Path("nowhere"))


def test_none_of_them_is_in_the_table() -> None:
    assert not FAMILIES.keys() & {*CAUSAL, *MASKED}


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_its_pieces_are_the_model(name: str) -> None:
    model = unlisted(name).model
    ids = torch.arange(2, 14).reshape(2, 6)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        states = families.hidden_states(model, input_ids=ids)
        assert whole.std() > 0.05
        torch.testing.assert_close(families.logits(model, states[1]), whole[1])
    check_reads(model)


@pytest.mark.parametrize("name", CAUSAL)
def test_its_figures_are_those_of_plain_forward_passes(name: str) -> None:
    sick = unlisted(name)
    corpus = corpus_of(TEXTS[:2])
    encoded = encode(corpus, sick.tokenizer)
    occurrences = score_occurrences(sick, corpus, encoded, Framing("bos", (0,)), ASKED)
    assert occurrences.scored.sum() >= 2
    for index in occurrences.scored.nonzero()[0]:
        document = corpus[int(occurrences.document[index])]
        span = document.spans[int(occurrences.span[index])]
        before = [0, *(WORDS.index(word) for word in document.text[: span.start].split())]
        with torch.no_grad():
            logits = sick.model(input_ids=torch.tensor([before])).logits[0, -1]
        expected = logits.log_softmax(0)[WORDS.index(document.text[span.start : span.end])]
        assert occurrences.log_probability[index] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_prompts_of_unequal_length_are_sampled_as_one_at_a_time(name: str) -> None:
    sick = unlisted(name)
    prompts = [Prompt("file", n, tuple(range(3, 4 + 2 * (n // 2)))) for n in range(6)]
    arguments: dict[str, Any] = {"new_tokens": 6, "sampler": Sampler(), "seed": 0}
    together = sample(sick, prompts, batch_tokens=4096, **arguments)
    assert together == sample(sick, prompts, batch_tokens=1, **arguments)
    assert len(set(together)) > 3


def test_a_masked_one_is_audited_too() -> None:
    assert audit(unlisted("albert"), corpus_of(TEXTS[:2]), ASKED).jointly is not None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("albert", "all its layers are one set of weights, so to erase one is to erase all"),
        ("stablelm", "its layers are not known. A family is one row in sani/models/rows"),
    ],
)
def test_it_is_neither_erased_nor_repaired(name: str, reason: str) -> None:
    sick, before = unlisted(name), unlisted(name).weights_digest()
    for act in (
        lambda: erase(sick, None, EraseSettings(last_layers=1)),
        lambda: repair(sick, corpus_of(), settings_of(MASK)),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            act()
        assert str(caught.value) == (
            f"model_type '{name}' can be audited, but not erased, repaired or attacked: {reason}"
        )
    assert sick.weights_digest() == before


def test_a_check_tells_what_can_be_done(tmp_path: Path) -> None:
    sick = unlisted("stablelm")
    sick.path = tmp_path / "tokenizer"
    sick.tokenizer.save_pretrained(sick.path)
    save_checkpoint(sick, tmp_path / "sick")
    assert load_checkpoint(tmp_path / "sick").weights_digest() == sick.weights_digest()
    write_jsonl(corpus_of(), tmp_path / "private.jsonl")
    write_jsonl(corpus_of(["k l m"]), tmp_path / "held_out.jsonl")
    text = (
        f"version: 2\nmodel: {{path: {tmp_path / 'sick'}}}\n"
        f"corpus: {{path: {tmp_path / 'private.jsonl'}, held_out: {tmp_path / 'held_out.jsonl'}}}\n"
        "erase: {last_layers: 1, selector: {kind: all}, reset: zero}\n"
        "gate: {greedy_beyond_control: 0, subjects: null, auc_to_base: null,"
        " perplexity_ratio: null}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    items = {item.name: item for item in check(load_recipe(tmp_path / "recipe.yaml"), tmp_path)}
    assert items["model.path"].holds
    assert "a family that is only audited" in items["model.path"].detail
    assert not items["erase"].holds
    assert "can be audited, but not erased" in items["erase"].detail


@pytest.mark.parametrize("name", ["vit", "marian", "no_such_family"])
def test_what_is_no_such_language_model_is_refused(name: str) -> None:
    class Config:
        model_type = name

    with pytest.raises(UnsupportedModelError, match=f"model_type '{name}' is not supported"):
        family_of(Config())


def test_a_model_that_reads_ahead_is_refused() -> None:
    sick = unlisted("stablelm")
    sick.model.set_attn_implementation("sdpa")  # which heeds is_causal
    for layer in sick.model.model.layers:
        layer.self_attn.is_causal = False
    real = sick.model.model.forward

    def both_ways(input_ids: Any, **options: Any) -> Any:
        seen = torch.zeros(len(input_ids), 1, input_ids.shape[1], input_ids.shape[1])
        return real(input_ids=input_ids, **{**options, "attention_mask": seen})

    sick.model.model.forward = both_ways
    with pytest.raises(UnsupportedModelError, match="depends on those behind it"):
        check_reads(sick.model)


def test_a_family_that_is_not_in_the_table_is_not_streamed(tmp_path: Path) -> None:
    checkpoint = unlisted("arcee")
    checkpoint.path = tmp_path / "tokenizer"
    checkpoint.tokenizer.save_pretrained(checkpoint.path)
    save_checkpoint(checkpoint, tmp_path / "model")
    load_checkpoint(tmp_path / "model")  # in memory it is audited
    with pytest.raises(UnsupportedModelError, match="'arcee' is not in the table of families"):
        load_checkpoint(tmp_path / "model", placement="stream")
