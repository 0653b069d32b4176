"""Adapters in memory: merged into their base, and kept as adapters where they are to be written so.

The update of a LoRA adapter is a product of two matrices, B A, in each module that it changes. Kept
beside the merged model, the matrices can be changed, merged again and written; the model is then
nothing but its base and what the written adapter holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sani.errors import CheckpointError
from sani.models.folder_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    copy_files,
    read_json,
    tokenizer_files,
)
from sani.models.layouts import HUB_NAME
from sani.models.merging import TOLERANCE, merge_adapter
from sani.models.stored_tensors import refuse_infinite
from sani.models.tokenizers import check_fits

if TYPE_CHECKING:
    from sani.models.checkpoint import Checkpoint
    from sani.models.folder import ModelFolder

# Ways to begin training that leave the base's weights as they are.
PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva")
MATRICES = (".lora_A.weight", ".lora_B.weight")  # ends of the names of a plain adapter's tensors
OUT_OF = MATRICES[1]  # of the one whose output is the update


@dataclass(frozen=True)
class Lora:
    """A plain LoRA adapter: two matrices for each module that it changes, and nothing else.

    Attributes:
        folder: Its folder as it was given, on its base; settings and tokenizer are read from there.
        weights: Its matrices by their names in the file, in the types that they have there.
    """

    folder: ModelFolder
    weights: Mapping[str, Tensor]

    @property
    def base(self) -> Path:
        """Folder of the base."""
        return self.folder.whole.path

    def changed(self, weights: Mapping[str, Tensor]) -> Lora:
        """Return the same adapter with other matrices, each rounded to its type in the file.

        Raises:
            CheckpointError: If one holds a number that its type cannot.
        """
        rounded = {
            name: weights[name].detach().to(old).contiguous() for name, old in self.weights.items()
        }
        for name, tensor in rounded.items():
            refuse_infinite(self.folder.path, name, tensor)
        return replace(self, weights=rounded)

    def write(self, folder: Path) -> None:
        """Write matrices, settings and the adapter's own tokenizer into an existing folder."""
        from safetensors.torch import save_file

        weights = {name: tensor.cpu() for name, tensor in self.weights.items()}
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_settings(self.folder.path, folder)


def read_lora(folder: ModelFolder) -> Lora:
    """Read the matrices of an adapter that can be changed and written as one.

    Raises:
        CheckpointError: If the folder holds no adapter, or one that is more than plain LoRA.
    """
    if not folder.is_adapter:
        raise CheckpointError(
            f"output: adapter: model folder {folder.path} holds a whole model and no adapter; "
            "leave output out, or give the adapter and its base"
        )
    problem = not_plain_lora(read_json(folder.path, ADAPTER_CONFIG), list(folder.stored))
    if problem is not None:
        raise CheckpointError(
            f"output: adapter: the adapter in {folder.path} is not plain LoRA ({problem}), and "
            "sani cannot sanitize it within; leave output out: then it is merged, and a whole "
            "checkpoint is written"
        )
    return Lora(folder, dict(folder.stored))


def not_plain_lora(config: Mapping[str, Any], names: list[str]) -> str | None:
    """Return what an adapter has that is not the product of two matrices; None if nothing.

    Args:
        config: Its ``adapter_config.json``.
        names: Names of its tensors.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        return f"kind {kind}"
    if config.get("use_dora"):
        return "DoRA"
    if config.get("init_lora_weights") not in PLAIN_BEGINNINGS or config.get("layer_replication"):
        return "its training changed the base's weights"
    other = next((name for name in sorted(names) if not name.endswith(MATRICES)), None)
    return None if other is None else f"it holds '{other}'"


def write_settings(path: Path, folder: Path) -> None:
    """Copy an adapter's settings and tokenizer; a local path of its base is left out.

    Args:
        path: Folder of the adapter.
        folder: Where to; it exists.
    """
    copy_files(path, folder, tokenizer_files(path))
    config = read_json(path, ADAPTER_CONFIG)
    config.pop("auto_map", None)  # it names code, which is not copied
    named = config.get("base_model_name_or_path") or ""
    if not HUB_NAME.fullmatch(named) or Path(named).exists():
        config["base_model_name_or_path"] = None
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def merge(folder: ModelFolder, base: Checkpoint, device: torch.device) -> Checkpoint:
    """Merge an adapter into its loaded base, which is changed.

    Raises:
        CheckpointError: If peft cannot merge it, or the merged model is not what the adapter on its
            base computes.
    """
    path = folder.path
    own_tokenizer = folder.tokenizer_path == path
    tokenizer, random_steps = (
        folder.load_tokenizer_and_steps() if own_tokenizer else (base.tokenizer, base.random_steps)
    )
    try:
        merged = merge_adapter(base.model, path, rows=folder.rows)
    except Exception as error:
        raise CheckpointError(
            f"model folder {path}: the adapter cannot be merged ({type(error).__name__}); is it "
            f"one on {base.path}, and of a kind that peft can merge?"
        ) from error
    if not merged.whole:
        raise CheckpointError(
            f"model folder {path}: the adapter's tensors are not those that its configuration "
            f"adds to {base.path}; is it an adapter on this base, and whole?"
        )
    model = merged.model
    check_fits(tokenizer, model.get_input_embeddings().weight.shape[0], folder.tokenizer_path)
    for name, tensor in model.named_parameters():
        refuse_infinite(path, name, tensor)
    if not merged.difference <= TOLERANCE:  # also if it is NaN
        raise CheckpointError(
            f"model folder {path}: merged into {base.path} the adapter is another model than on "
            f"top of it (logits differ by {merged.difference:.1g} of their size), so an audit "
            "would not be of the model that is served; train the adapter without the part that "
            "peft cannot merge, or give a whole checkpoint"
        )
    return replace(
        base,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        path=folder.tokenizer_path,
        sources=(path, *base.sources),
        random_steps=random_steps,
    )
