"""Erase: carry out a plan. `apply_` is the only function of the stage that changes a weight."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sani.batches import Batch, make_batches
from sani.checkpoint import Checkpoint, architecture_difference
from sani.corpus.documents import Corpus
from sani.encoding import encode, framing_named
from sani.erasing.fresh import FreshWeights
from sani.erasing.plan import ErasePlan, check_plan, layout_of, plan_erase
from sani.errors import SelectionError
from sani.families import Layout, Slice
from sani.recipe import EraseSettings

STATISTICS_TOKENS = 2048


@dataclass(frozen=True)
class EraseResult:
    """What an erase did.

    Attributes:
        plan: The neurons that were reset, and why these.
        changed_tensors: Names of the tensors that were touched.
        changed_parameters: Numbers in them that were set.
        fraction: Those over all parameters of the model.
        seconds: Wall time.
    """

    plan: ErasePlan
    changed_tensors: tuple[str, ...]
    changed_parameters: int
    fraction: float
    seconds: float

    @classmethod
    def of(
        cls, plan: ErasePlan, changed: Mapping[str, int], parameters: int, started: float
    ) -> EraseResult:
        """From the numbers set in each tensor, and all of the model's."""
        numbers = sum(changed.values())
        seconds = time.perf_counter() - started
        return cls(plan, tuple(sorted(changed)), numbers, numbers / parameters, seconds)


def erase(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    corpus: Corpus | None = None,
    base: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
) -> EraseResult:
    """In place: choose neurons and reset them.

    Args:
        checkpoint: The model to change; its folder is not touched.
        settings: Layers, parts, selector and reset.
        corpus: Documents with spans, for selectors that look at activations.
        base: The model it was fine-tuned from, for ``rewind`` and the selector ``drift``.
        framing: What stands before each document, by name.
        seed: Of the random selector and of fresh weights.

    Raises:
        SelectionError: If nothing can be chosen, or the base is missing or does not fit.

    Source: SANI, Boutet & Magnana 2025 (2510.21322): a random half of the last layer. Deviations:
    the paper does not say which matrices nor what value; ours are in `sani.families` and
    `EraseSettings.reset`.
    """
    plan = plan_neurons(checkpoint, settings, corpus=corpus, base=base, framing=framing, seed=seed)
    return apply_(checkpoint, plan, base=base)


def plan_neurons(
    checkpoint: Checkpoint,
    settings: EraseSettings,
    *,
    corpus: Corpus | None = None,
    base: Checkpoint | None = None,
    framing: str = "auto",
    seed: int = 0,
) -> ErasePlan:
    """The first half of `erase`: choose, and change nothing. Arguments and errors as there."""
    batches = _statistics_batches(checkpoint, corpus, framing)
    return plan_erase(checkpoint, settings, batches=batches, base=base, seed=seed)


def apply_(
    checkpoint: Checkpoint, plan: ErasePlan, *, base: Checkpoint | None = None
) -> EraseResult:
    """In place: reset the neurons of a plan; every other weight keeps its bits.

    Raises:
        SelectionError: If the plan is of another architecture, or rewinds and the base is missing
            or does not fit.
    """
    started = time.perf_counter()
    layout = layout_of(checkpoint)
    check_plan(plan, layout)
    weights = dict(checkpoint.model.named_parameters())
    source = _source(checkpoint, plan, base)
    changed: dict[str, int] = {}
    with torch.no_grad():
        for name, pieces in planned_slices(plan, layout).items():
            changed[name] = reset_slices(weights[name], pieces, source)
    return EraseResult.of(
        plan, changed, sum(tensor.numel() for tensor in weights.values()), started
    )


def planned_slices(plan: ErasePlan, layout: Layout) -> dict[str, list[Slice]]:
    """What a plan resets, by tensor."""
    found: dict[str, list[Slice]] = {}
    for entry in plan.entries:
        for piece in layout.slices(entry.part, layer=entry.layer, neurons=entry.neurons):
            if len(piece.index):  # keys and values of heads that are not all chosen have none
                found.setdefault(piece.name, []).append(piece)
    return found


def reset_slices(
    tensor: Tensor, pieces: Sequence[Slice], source: Mapping[str, Tensor] | None
) -> int:
    """In place: reset slices of one tensor, in memory or read from a file.

    Args:
        tensor: The tensor that the slices name.
        pieces: What to reset; they do not overlap.
        source: Weights to take the values from; None for zero.

    Returns:
        How many numbers were set.
    """
    new = None if source is None else source[pieces[0].name]
    count = 0
    for piece in pieces:
        index = piece.index.to(tensor.device)
        if new is None:
            tensor.index_fill_(piece.dim, index, 0.0)
        elif len(index) == tensor.shape[piece.dim]:
            tensor.copy_(new)
        else:
            values = new.index_select(piece.dim, piece.index.to(new.device))
            tensor.index_copy_(piece.dim, index, values.to(tensor))
        count += tensor.numel() // tensor.shape[piece.dim] * len(index)
    return count


def _source(
    checkpoint: Checkpoint, plan: ErasePlan, base: Checkpoint | None
) -> Mapping[str, Tensor] | None:
    """The weights that reset neurons take their values from; None for zero."""
    if plan.reset == "zero":
        return None
    if plan.reset == "reinit":
        return FreshWeights(checkpoint.model.config, seed=plan.seed)
    if base is None:
        raise SelectionError("reset 'rewind' needs the base model; give it, or use reinit")
    difference = architecture_difference(checkpoint, base)
    if difference:
        raise SelectionError(f"reset 'rewind': the base does not fit the checkpoint: {difference}")
    return dict(base.model.named_parameters())


def fresh_model(config: Any, *, seed: int) -> Any:
    """A model as the architecture initializes it, the same for the same seed."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]


def _statistics_batches(
    checkpoint: Checkpoint, corpus: Corpus | None, framing: str
) -> Callable[[], Sequence[Batch]] | None:
    if corpus is None:
        return None

    def batches() -> Sequence[Batch]:
        return make_batches(
            encode(corpus, checkpoint.tokenizer),
            framing_named(framing, checkpoint.tokenizer),
            context_tokens=checkpoint.context_tokens,
            batch_tokens=STATISTICS_TOKENS,
        )

    return batches
