"""Families without a row in the table: audited by their logits, but not erased or repaired.

No neuron of theirs is known, and nothing is assumed of their caches and masks: each text is read by
itself, whole. `check_reading` tests on the loaded model what an audit relies on.
"""

from __future__ import annotations

from typing import Any

import torch

from sani.errors import UnsupportedModelError
from sani.models.family import Family, Objective

TOKENS = 8  # read to test a model
TOLERANCE = 1e-3  # of the largest logit


def unlisted_family(model_type: str) -> Family | None:
    """Return a row to audit a family with; None if transformers has no such language model."""
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return None  # two texts go in, so hidden states are not those of the model's base
    reads_images = model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    is_masked = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not (is_masked or reads_images or model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return None
    objective: Objective = "masked" if is_masked else "causal"
    return Family(
        (),
        (),
        (),
        objective=objective,
        vision=reads_images,
        sdpa=False,
        branches=False,
        cached=False,
        padded_in_front=False,
        own_head=True,
        positions_behind_padding=is_masked,  # or the longest input is a little longer than read
        listed=False,
    )


def check_reading(model: Any, ids: torch.Tensor, pieces: torch.Tensor, *, causal: bool) -> None:
    """Refuse a model whose logits cannot be read as an audit reads them.

    Args:
        model: In evaluation mode.
        ids: Some tokens, [1, `TOKENS`].
        pieces: Logits of these from hidden states, as an audit computes them, [1, tokens, vocab].
        causal: Whether it predicts the next token.

    Raises:
        UnsupportedModelError: If they are not the model's own, or a causal model reads ahead.
    """
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        before = model(input_ids=ids[:, : TOKENS // 2]).logits
    limit = TOLERANCE * float(whole.abs().max())
    model_type = model.config.model_type
    if whole.shape != pieces.shape or not float((whole - pieces).abs().max()) <= limit:
        raise UnsupportedModelError(
            f"model_type '{model_type}' is not in the table of families, and its logits cannot be "
            "computed from its last hidden states, so it cannot be audited either"
        )
    if causal and not float((whole[:, : TOKENS // 2] - before).abs().max()) <= limit:
        raise UnsupportedModelError(
            f"model_type '{model_type}' is not in the table of families, and a token that it "
            "predicts depends on those behind it, so it cannot be audited"
        )
