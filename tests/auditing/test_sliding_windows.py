"""Layers with a sliding window: figures equal those of the plain model, however long the text."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sani.auditing.rows import Row
from sani.auditing.teacher_forcing import score
from sani.erasing.reinit import fresh_model
from sani.models.checkpoint import Checkpoint
from sani.models.families import family_of
from tests.support.architectures import tiny_config

WINDOW = 6
MIXED = ["full_attention", "sliding_attention"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "all layers": lambda: tiny_config("mistral", sliding_window=WINDOW),
    "some layers": lambda: tiny_config(
        "qwen2", sliding_window=WINDOW, use_sliding_window=True, layer_types=MIXED
    ),
    "no layer": lambda: tiny_config(
        "qwen2", sliding_window=WINDOW, use_sliding_window=True, layer_types=MIXED[:1] * 2
    ),
    "gemma2": lambda: tiny_config("gemma2", sliding_window=WINDOW, layer_types=MIXED),
    "gemma3": lambda: tiny_config("gemma3", sliding_window=WINDOW, layer_types=MIXED),
    **{
        name: partial(tiny_config, name, sliding_window=WINDOW)
        for name in ("ministral3", "mistral3", "phi4_multimodal", "phimoe", "starcoder2")
    },
    **{
        name: partial(tiny_config, name, sliding_window=WINDOW, layer_types=MIXED)
        for name in ("cohere2", "exaone4", "gpt_oss", "ministral", "olmo3")
    },
    "smollm3": lambda: tiny_config(
        "smollm3", sliding_window=WINDOW, use_sliding_window=True, layer_types=MIXED
    ),
}


def slow(model: Any, tokens: list[int], first: int) -> list[float]:
    """Log-probabilities of the tokens from ``first`` on, by one plain pass over them all."""
    with torch.inference_mode():
        log_p = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return [float(log_p[place - 1, tokens[place]]) for place in range(first, len(tokens))]


@pytest.mark.false_clean
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_decoys_far_behind_the_window_are_scored_as_by_the_plain_model(
    name: str,
) -> None:
    model = fresh_model(CONFIGS[name](), seed=0).eval()
    assert Checkpoint(model, None, Path("nowhere")).context_tokens == 64
    chance = np.random.default_rng(0)
    row = Row(chance.integers(2, 24, 30).tolist())
    expected: list[float] = []
    for place in (2, 15, 28):
        for length in (1, 2, 9):  # the longest is longer than the window
            decoy = chance.integers(2, 24, length).tolist()
            slots = range(len(expected), len(expected) + length)
            row.add_branch(place - 1, decoy, slots)
            expected += slow(model, [*row.tokens[:place], *decoy], place)
    scores = score(model, [row], num_slots=len(expected), batch_tokens=4096)
    assert len(row.trees) > 0 or not family_of(model.config).branches
    assert scores.log_probability == pytest.approx(expected, abs=1e-5)


def test_the_window_changes_what_the_model_computes() -> None:
    """The positive control: with a wide window the figures are others."""
    narrow, wide = (
        fresh_model(tiny_config("mistral", sliding_window=window), seed=0).eval()
        for window in (WINDOW, 64)
    )
    tokens = np.random.default_rng(0).integers(2, 24, 30).tolist()
    assert slow(narrow, tokens, 20) != pytest.approx(slow(wide, tokens, 20), abs=1e-4)
