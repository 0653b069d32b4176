"""Two configurations: whether the same weights give the same numbers under both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from sani.erasing.reinit import fresh_model
from sani.models.configurations import numerical_difference
from tests.support.architectures import ARCHITECTURES, tiny_config

SMALL: Any = {"llama": {"rms_norm_eps": 1e30}, "gpt2": {"layer_norm_epsilon": 1e30}}


def logits(config: Any) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = fresh_model(config, seed=1)(torch.tensor([[1, 2, 3, 4]])).logits
    return made


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_configuration_saved_again_computes_the_same(name: str, tmp_path: Path) -> None:
    config = tiny_config(name)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert numerical_difference(config, again) is None
    assert numerical_difference(again, config) is None


@pytest.mark.parametrize("name", sorted(SMALL))
def test_one_number_changes_every_figure_and_is_named(name: str) -> None:
    config, other = tiny_config(name), tiny_config(name, **SMALL[name])
    assert (logits(config) - logits(other)).abs().max() > 1e-3  # or there were nothing to refuse
    assert numerical_difference(config, other) == next(iter(SMALL[name]))


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("llama", {"max_position_embeddings": 8}, "max_position_embeddings"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
         "rope_parameters.rope_theta"),
        ("llama", {"hidden_act": "relu"}, "hidden_act"),
        ("roberta", {"pad_token_id": 5}, "pad_token_id"),  # where its positions begin
        ("bart", {"decoder_start_token_id": 5}, "decoder_start_token_id"),
        ("llama", {"Zanzibar": 0.5}, "a field that transformers does not know"),
    ],
)  # fmt: skip
def test_whatever_the_model_computes_with_counts(
    name: str, change: dict[str, Any], field: str
) -> None:
    assert numerical_difference(tiny_config(name), tiny_config(name, **change)) == field


def test_a_number_of_a_tower_counts() -> None:
    other = tiny_config("gemma3")
    other.text_config.rms_norm_eps = 4.0
    found = numerical_difference(tiny_config("gemma3"), other)
    assert found == "text_config.rms_norm_eps"


def test_what_only_training_or_generation_reads_does_not_count() -> None:
    changed = tiny_config(
        "llama", pad_token_id=3, eos_token_id=5, use_cache=False, attention_dropout=0.5,
        initializer_range=0.5, architectures=["Another"], transformers_version="1",
    )  # fmt: skip
    assert numerical_difference(tiny_config("llama"), changed) is None


def test_another_family_is_another_configuration() -> None:
    assert numerical_difference(tiny_config("llama"), tiny_config("gpt2")) == "model_type"
