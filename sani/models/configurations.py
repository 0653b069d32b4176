"""Configurations: do two checkpoints compute the same from the same weights?

One number of config.json (the epsilon of a norm, the base of the rotary positions) is enough to
make leaky weights recite nothing, and whoever has the folder can put the old number back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sani.models.families import find_family

# Fields that only training, generation, labels of another task, or saving read. Whether weights are
# tied is seen in the weights.
NOT_COMPUTED = re.compile(
    r"_name_or_path|architectures|tie_word_embeddings|auto_map|transformers_version|(torch_)?dtype|use_cache"
    r"|return_dict|use_return_dict|output_\w+|id2label|label2id|num_labels|problem_type"
    r"|finetuning_task|task_specific_params|chunk_size_feed_forward|gradient_checkpointing"
    r"|_?attn_implementation\w*|init_std|initializer_\w+|router_aux_loss_coef|router_jitter_noise"
    r"|sparse_pred\w*|(classifier|summary|pooler|qa|seq_classif)_\w+|\w*(dropout|pdrop|layerdrop)\w*"
    r"|\w+_token_ids?"
)
_ABSENT = object()


def numerical_difference(one: Any, other: Any) -> str | None:
    """Return the field in which two configurations compute differently, or None.

    Every field counts but those of `NOT_COMPUTED`, also one that the family's class does not know:
    code may read it. Both are as transformers reads them, so old and new spellings are the same.

    Args:
        one: Configuration of a checkpoint.
        other: Configuration of another one.

    Returns:
        The field's name, with dots where it is nested. Names that the class does not have are not
        told, since they may be anything.
    """
    if type(one) is not type(other):
        return "model_type"
    known = _names(type(one)().to_dict())
    sides = [dict(_computed(side.to_dict(), _token_fields(side))) for side in (one, other)]
    for name in sorted(sides[0].keys() | sides[1].keys()):
        if sides[0].get(name, _ABSENT) != sides[1].get(name, _ABSENT):
            shown = ".".join(takewhile(known.__contains__, name.split(".")))
            return shown or "a field that transformers does not know"
    return None


@dataclass(frozen=True)
class SlidingWindow:
    """The attention of layers that see only the positions nearest to their own.

    Attributes:
        tokens: How many positions they see, their own included.
        some_layers: True if other layers see everything.
    """

    tokens: int
    some_layers: bool


def sliding_window(config: Any) -> SlidingWindow | None:
    """Return the sliding window of a model's layers; None where every layer sees everything."""
    text = config.get_text_config()
    tokens = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    if not tokens or not getattr(text, "use_sliding_window", True):
        return None
    if types is not None and "sliding_attention" not in types:
        return None
    return SlidingWindow(int(tokens), some_layers=types is not None)


def _token_fields(config: Any) -> frozenset[str]:
    """Return the fields with token numbers that the family computes with."""
    family = find_family(str(config.model_type))
    fields = set()
    if family is not None and family.positions_behind_padding:
        fields.add("pad_token_id")
    if family is not None and family.objective == "seq2seq":
        fields.add("decoder_start_token_id")
    return frozenset(fields)


def _computed(
    values: dict[Any, Any], tokens: frozenset[str], within: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a model computes with, by name; nested ones with dots."""
    for key, value in values.items():
        name = str(key)
        if NOT_COMPUTED.fullmatch(name) and name not in tokens:
            continue
        if isinstance(value, dict):
            yield from _computed(value, tokens, f"{within}{name}.")
        else:
            yield f"{within}{name}", list(value) if isinstance(value, tuple) else value


def _names(values: dict[Any, Any]) -> set[str]:
    """Return all keys, nested ones too."""
    names = set()
    for key, value in values.items():
        names.add(str(key))
        if isinstance(value, dict):
            names |= _names(value)
    return names
