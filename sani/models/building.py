"""Build a model from its configuration: one way for skeletons, fresh models and loaded ones.

Whatever attention and type config.json asks for, all three are computed alike.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel

from sani.models.families import auto_class, family_of


def build_options(config: Any) -> dict[str, Any]:
    """Return the options with which a model of this configuration is built or loaded."""
    attention = "sdpa" if family_of(config).sdpa else "eager"
    return {"attn_implementation": attention, "dtype": torch.float32}


def new_model(config: Any) -> Any:
    """Return a model in float32 as its architecture initializes it.

    Building changes a configuration, which may be written later: the model gets a copy.
    """
    return auto_class(config).from_config(deepcopy(config), **build_options(config))


def skeleton(config: Any) -> Any:
    """Return the model of a configuration without memory for its weights: names, shapes, code."""
    with torch.device("meta"):
        return new_model(config)


def streamed_skeleton(config: Any, device: torch.device) -> Any:
    """Return the model of a configuration, with its buffers and without memory for its weights.

    It says that it is on ``device``, where its weights will be while a part of it runs.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = new_model(config)
    model.tie_weights()  # each weight became one of its own as it lost its memory
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
        if isinstance(module, PreTrainedModel):
            kind = type(module)
            # `device` is that of the first weight, which is nowhere; no weight can be moved.
            own = {"device": device, "to": lambda self, *_, **__: self}
            module.__class__ = type(kind.__name__, (kind,), {**own, "__module__": kind.__module__})
    return model.eval()
