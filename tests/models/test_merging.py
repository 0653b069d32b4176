"""Adapters of every kind: what is audited is the model that peft and vLLM serve, or an error."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from sani.errors import CheckpointError
from sani.models.bases import architecture_difference, fit_base
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from tests.support.folders import COMMON, WORDS, write_source
from tests.support.words import word_tokenizer

IDS = torch.arange(len(WORDS))[None]
HEADS = ["q_proj", "v_proj", "down_proj"]
BOTH_ENDS = ["embed_tokens", "lm_head"]

KINDS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=HEADS),
    "lora with biases": lambda: peft.LoraConfig(r=4, target_modules=HEADS, bias="lora_only"),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=HEADS, use_dora=True),
    "rank-stabilized": lambda: peft.LoraConfig(r=4, target_modules=HEADS, use_rslora=True),
    "lora on the embedding": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens"]),
    "lora on the head": lambda: peft.LoraConfig(r=4, target_modules=["lm_head"]),
    "lora on both ends": lambda: peft.LoraConfig(r=4, target_modules=BOTH_ENDS),
    "saved embedding": lambda: peft.LoraConfig(
        r=4, target_modules=HEADS, modules_to_save=["embed_tokens"]
    ),
    "saved head": lambda: peft.LoraConfig(r=4, target_modules=HEADS, modules_to_save=["lm_head"]),
    "some tokens": lambda: peft.LoraConfig(
        r=4, target_modules=HEADS, trainable_token_indices=[3, 5]
    ),
    "only some tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 5]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=HEADS),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=HEADS),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_modules=HEADS, total_step=9),
    "ia3": lambda: peft.IA3Config(target_modules=HEADS, feedforward_modules=["down_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=HEADS),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "fourier": lambda: peft.FourierFTConfig(n_frequency=8, target_modules=["q_proj"]),
}


def base_in(folder: Path, *, tied: bool) -> Path:
    return write_source(folder, LlamaConfig(**COMMON, tie_word_embeddings=tied))


def adapter_on(base: Path, folder: Path, config: Any) -> Path:
    """An adapter that changes its base by far, saved without the embedding's base layer."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, config)
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=chance)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(input_ids=ids).logits
    return made


def served(base: Path, adapter: Path) -> torch.Tensor:
    """The logits of the adapter on its base, as peft serves it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    return logits(PeftModel.from_pretrained(model, adapter).eval())


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


@pytest.mark.false_clean
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_loaded_is_what_is_served(kind: str, tied: bool, tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", tied=tied)
    adapter = adapter_on(base, tmp_path / "adapter", KINDS[kind]())
    expected = served(base, adapter)
    assert distance(logits(load_checkpoint(base).model), expected) > 0.01  # it does something
    loaded = load_checkpoint(adapter, base=base)
    assert distance(logits(loaded.model), expected) < 1e-3
    # What is written is the same model again: a head that was parted stays so.
    save_checkpoint(loaded, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert distance(logits(again), expected) < 1e-3
    stored = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ("lm_head.weight" in stored) == (not config["tie_word_embeddings"])
    if tied and kind in ("lora", "some tokens"):
        assert config["tie_word_embeddings"]
    control = load_checkpoint(base)  # as the control of a run, it keeps what it computes
    fit_base(control, loaded)
    assert torch.equal(logits(control.model), logits(load_checkpoint(base).model))
    assert architecture_difference(loaded, control) is None


MORE = 3  # tokens that training added to the base's


@pytest.mark.false_clean
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "both ends trained whole", "lora on both ends"])
def test_added_tokens_are_merged_as_peft_serves_them(kind: str, tied: bool, tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", tied=tied)
    config = {
        "both ends trained whole": lambda: peft.LoraConfig(
            r=4, target_modules=HEADS, modules_to_save=BOTH_ENDS
        )
    }.get(kind, KINDS.get(kind))
    assert config is not None

    def resized() -> Any:
        torch.manual_seed(4)  # the rows that training began with
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(len(WORDS) + MORE, mean_resizing=False)
        return model

    adapter = tmp_path / "adapter"
    trained = get_peft_model(resized(), config())
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in trained.parameters():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=chance)
    trained.save_pretrained(str(adapter), save_embedding_layers=True)
    word_tokenizer([*WORDS, "x", "y", "z"]).save_pretrained(adapter)
    ids = torch.arange(len(WORDS) + MORE)[None]
    expected = logits(PeftModel.from_pretrained(resized(), adapter).eval(), ids)
    loaded = load_checkpoint(adapter, base=base)
    assert len(loaded.tokenizer) == len(WORDS) + MORE
    assert distance(logits(loaded.model, ids), expected) < 1e-3
    save_checkpoint(loaded, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert distance(logits(again, ids), expected) < 1e-3
    # The base as control: what it knew of its own tokens, and the same tokens as the checkpoint.
    control, before = load_checkpoint(base), load_checkpoint(base)
    fit_base(control, loaded)
    assert control.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert architecture_difference(loaded, control) is None
    assert distance(logits(control.model)[..., : len(WORDS)], logits(before.model)) < 1e-6


def test_a_base_of_other_tokens_is_not_fitted(tmp_path: Path) -> None:
    base = load_checkpoint(base_in(tmp_path / "base", tied=True))
    words = [*reversed(WORDS), "x"]
    config = LlamaConfig(**{**COMMON, "vocab_size": len(words)}, tie_word_embeddings=True)
    other = load_checkpoint(write_source(tmp_path / "other", config, words=words))
    before = base.weights_digest()
    fit_base(base, other)
    assert base.weights_digest() == before
    assert architecture_difference(other, base) is not None


@pytest.mark.false_clean
@pytest.mark.filterwarnings("ignore")
def test_a_merge_that_changes_the_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without parting, peft's merge puts the embedding's update into the tied head too."""
    base = base_in(tmp_path / "base", tied=True)
    adapter = adapter_on(base, tmp_path / "adapter", KINDS["lora on both ends"]())
    load_checkpoint(adapter, base=base)
    monkeypatch.setattr("sani.models.merging._part", lambda model, weights: None)
    with pytest.raises(CheckpointError, match="the adapter is another model than on top of it"):
        load_checkpoint(adapter, base=base)
