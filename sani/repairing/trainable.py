"""The parameters that a repair trains: all, those of the last layers, or an adapter's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from sani.models.neurons import Layout
from sani.models.streaming import stream_of
from sani.recipe import AdapterSettings, RepairSettings
from sani.repairing.frozen_layers import FrozenLayers


@dataclass(frozen=True)
class Trainable:
    """A model that is ready to be trained.

    Attributes:
        fraction: Share of its parameters that are trained, in (0, 1].
        frozen: The layers below the trained ones; None if all layers are trained.
        layers: Names of all layers, in order.
    """

    fraction: float
    frozen: FrozenLayers | None
    layers: tuple[str, ...]


@contextmanager
def trainable(model: Any, settings: RepairSettings, *, seed: int) -> Iterator[Trainable]:
    """Let only the parameters that the settings name ask for gradients, within the context.

    Afterwards an adapter is merged (taken off again, if the training failed), and the model is in
    evaluation mode with its configuration as before.

    Args:
        model: It is changed in place.
        settings: Settings of the repair.
        seed: Of an adapter's first weights.
    """
    size = sum(p.numel() for p in model.parameters())
    layout, last = _layout(model), settings.last_layers
    prefixes = layout.trained_prefixes(last or layout.num_layers)
    frozen = frozen_layers(model, layout, last) if last and last < layout.num_layers else None
    use_cache = getattr(model.config, "use_cache", None)  # the Trainer changes it
    adapted = None
    if settings.adapter is not None:
        adapted = _with_adapter(model, settings.adapter, layout, prefixes, seed=seed)
    elif settings.last_layers is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        yield Trainable(trained / size, frozen, tuple(layer_names(layout)))
        if adapted is not None:
            adapted.merge_and_unload()
            adapted = None
    finally:
        if adapted is not None:
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


def frozen_layers(model: Any, layout: Layout, last_layers: int) -> FrozenLayers:
    """Return the layers below the last ``last_layers``."""
    names, first = layer_names(layout), layout.num_layers - last_layers
    return FrozenLayers(model, frozen=names[:first], trained=names[first:])


def layer_names(layout: Layout) -> list[str]:
    """Return the names of the layers, in order."""
    names = layout.trained_prefixes(layout.num_layers)[: layout.num_layers]
    return [name.removesuffix(".") for name in names]
