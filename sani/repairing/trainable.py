"""The parameters that a repair trains: all, those of the last layers, or an adapter's.

That adapter is a new one, which is merged afterwards, or the one that the checkpoint came as.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sani.errors import RepairError
from sani.models.adapters import Lora
from sani.models.families import family_of
from sani.models.neurons import Layout
from sani.models.streaming import stream_of
from sani.recipe import AdapterSettings, RepairSettings
from sani.repairing.frozen_layers import FrozenLayers

NOTHING_TO_TRAIN = (
    "output: adapter: the adapter changes nothing in the layers of repair.last_layers, so there is "
    "nothing to train; give more layers, or leave last_layers out"
)


@dataclass(frozen=True)
class Trainable:
    """A model that is ready to be trained.

    Attributes:
        fraction: Share of its parameters that are trained, in (0, 1].
        frozen: The layers below the trained ones; None if all layers are trained.
        layers: Names of all layers, in order.
        lora: Matrices of the checkpoint's own adapter once they are trained, by their names in its
            file; empty before, and if it is not what was trained.
    """

    fraction: float
    frozen: FrozenLayers | None
    layers: tuple[str, ...]
    lora: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def trainable(
    model: Any, settings: RepairSettings, *, seed: int, lora: Lora | None = None
) -> Iterator[Trainable]:
    """Let only the parameters that the settings name ask for gradients, within the context.

    Afterwards an adapter is merged (as it was before, if the training failed), and the model is in
    evaluation mode with its configuration as before.

    Args:
        model: It is changed in place.
        settings: Settings of the repair.
        seed: Of a new adapter's first weights.
        lora: The adapter that the model is merged from; its matrices alone are trained.

    Raises:
        RepairError: If its own adapter holds nothing in the layers that are to be trained.
    """
    size = sum(p.numel() for p in model.parameters())
    layout, last = _layout(model), settings.last_layers
    prefixes = layout.trained_prefixes(last or layout.num_layers)
    frozen = frozen_layers(model, layout, last) if last and last < layout.num_layers else None
    use_cache = getattr(model.config, "use_cache", None)  # the Trainer changes it
    adapted = None
    if lora is not None:
        adapted = _with_own_adapter(model, lora, prefixes if last else ("",))
    elif settings.adapter is not None:
        adapted = _with_adapter(model, settings.adapter, layout, prefixes, seed=seed)
    elif settings.last_layers is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        part = Trainable(trained / size, frozen, tuple(layer_names(layout)))
        yield part
        if lora is not None:
            state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            part.lora.update((name, tensor.detach().clone()) for name, tensor in state.items())
        if adapted is not None:
            adapted.merge_and_unload()
            adapted = None
    finally:
        if adapted is not None and lora is not None:
            set_peft_model_state_dict(adapted, dict(lora.weights))
            adapted.merge_and_unload()
        elif adapted is not None:
            adapted.unload()
        if settings.gradient_checkpointing:
            model.activation_checkpointing_disable()
        if use_cache is not None:
            model.config.use_cache = use_cache
        model.requires_grad_(True)
        model.eval()


def keep_trained(model: Any, settings: RepairSettings) -> tuple[str, ...]:
    """Read the weights that each step of a training uses, if the model is streamed.

    Returns:
        The prefixes of the names of all weights that are trained.
    """
    prefixes: tuple[str, ...] = ("",)
    if settings.last_layers is not None:
        prefixes = _layout(model).trained_prefixes(settings.last_layers)
    stream = stream_of(model)
    if stream is not None:
        head = {id(tensor) for tensor in model.get_output_embeddings().parameters()}
        stream.keep(
            name
            for name, tensor in model.named_parameters(remove_duplicate=False)
            if name.startswith(prefixes) or id(tensor) in head
        )
    return prefixes


def _layout(model: Any) -> Layout:
    return Layout(model.config, {n: tuple(t.shape) for n, t in model.state_dict().items()})


def _with_adapter(
    model: Any, adapter: AdapterSettings, layout: Layout, prefixes: tuple[str, ...], *, seed: int
) -> Any:
    """Return a PEFT model around this one, whose linear layers get low-rank updates."""
    linear = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefixes) and isinstance(module, torch.nn.Linear | Conv1D)
    ]
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_dora=adapter.kind == "dora",
        target_modules=linear,
        fan_in_fan_out=layout.family.transposed,
    )
    # The adapter's weights are drawn from torch's global state: leave that as it was.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, lora)


def _with_own_adapter(model: Any, lora: Lora, prefixes: tuple[str, ...]) -> Any:
    """Return a PEFT model around one that an adapter is merged into, with the adapter taken out.

    Args:
        model: The merged model; it is changed.
        lora: The adapter.
        prefixes: Of the modules in which it is trained.
    """
    config = PeftConfig.from_pretrained(str(lora.folder.path))
    config.inference_mode = False
    config.task_type = None
    config.lora_dropout = 0.0  # states of lower layers are kept, and have none
    config.init_lora_weights = True  # whatever it began with, its matrices are set here
    config.fan_in_fan_out = family_of(model.config).transposed
    with torch.random.fork_rng():
        adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, dict(lora.weights))
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.merged_adapters = ["default"]
    adapted.base_model.unmerge_adapter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(name.startswith(prefixes))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        set_peft_model_state_dict(adapted, dict(lora.weights))
        adapted.merge_and_unload()
        raise RepairError(NOTHING_TO_TRAIN)
    return adapted


def frozen_layers(model: Any, layout: Layout, last_layers: int) -> FrozenLayers:
    """Return the layers below the last ``last_layers``."""
    names, first = layer_names(layout), layout.num_layers - last_layers
    return FrozenLayers(model, frozen=names[:first], trained=names[first:])


def layer_names(layout: Layout) -> list[str]:
    """Return the names of the layers, in order."""
    names = layout.trained_prefixes(layout.num_layers)[: layout.num_layers]
    return [name.removesuffix(".") for name in names]
