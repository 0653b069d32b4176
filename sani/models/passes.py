"""Forward passes of many batches, side by side: each layer runs for all of them before the next.

A model whose weights stay in its files (`sani.models.streaming`) reads a layer once for all batches
instead of once for each. To swap the two loops, a forward pass pauses where it calls a layer: it is
a coroutine (greenlet), and the model's own code is not changed. Passes run in their order, one at a
time and on one thread, so the numbers are those of one pass after the other.

Source: the swapped loops are those of llm-compressor's sequential onloading and of FlexGen (Sheng
et al. 2023, 2303.06865). Deviation: they call the layers by themselves with inputs that they caught
once; here the model calls them, so whatever a family hands from layer to layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from greenlet import GreenletExit, getcurrent, greenlet

Pass = Callable[[], None]


@dataclass(frozen=True)
class PassGroup:
    """Forward passes that run in this order; a later one may read what an earlier one leaves.

    Attributes:
        passes: Each calls the model and keeps what it needs of the result.
        tokens: Tokens that all of them read, padding included.
    """

    passes: Sequence[Pass]
    tokens: int


def run_one_by_one(groups: Iterable[PassGroup], on_group: Callable[[], None]) -> None:
    """Run each pass from its begin to its end.

    Args:
        groups: Made one by one, so that only the inputs of one are held.
        on_group: Called behind each group.
    """
    for group in groups:
        for run in group.passes:
            run()
        on_group()


def sweeps(groups: Iterable[PassGroup], tokens: int) -> Iterator[list[PassGroup]]:
    """Cut groups into lists of at most so many tokens each, or of one group."""
    sweep: list[PassGroup] = []
    for group in groups:
        if sweep and sum(g.tokens for g in sweep) + group.tokens > tokens:
            yield sweep
            sweep = []
        sweep.append(group)
    if sweep:
        yield sweep


class PausingPasses:
    """Passes that run side by side. A hook on each layer, or other part, calls `pause`."""

    def __init__(self) -> None:
        self._scheduler: greenlet | None = None

    @property
    def active(self) -> bool:
        """True within a pass that `run` began, which `pause` may pause."""
        return self._scheduler is not None and getcurrent() is not self._scheduler

    def pause(self, layer: int) -> None:
        """Pause the pass that calls this until `run` lets the passes at this layer run on."""
        if self._scheduler is not None:
            self._scheduler.switch(layer)

    @torch.no_grad()  # set by a pass itself it would end with that pass, while others are paused
    def run(self, passes: Sequence[Pass], *, prepare: Callable[[int], None]) -> None:
        """Run all passes to their ends.

        Args:
            passes: They run in this order before, between and behind the layers.
            prepare: Called with the number of a layer before the passes that wait for it run on.

        Raises:
            Exception: The one that a pass or ``prepare`` raises; then all other passes are ended.
        """
        self._scheduler = getcurrent()
        coroutines = [greenlet(run) for run in passes]
        try:
            layers = {coroutine: coroutine.switch() for coroutine in coroutines}
            while waiting := [c for c in coroutines if not c.dead]:
                # The lowest first: a pass that reads the model twice waits there for the others.
                layer = min(layers[coroutine] for coroutine in waiting)
                prepare(layer)
                for coroutine in waiting:
                    if layers[coroutine] == layer:
                        layers[coroutine] = coroutine.switch()
        finally:
            for coroutine in coroutines:
                if coroutine:  # it began and did not end
                    coroutine.throw(GreenletExit)
            self._scheduler = None
