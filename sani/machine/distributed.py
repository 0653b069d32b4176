"""Ranks: the processes that ``accelerate launch`` or torchrun starts to do one job together.

Every rank runs the same program. This module alone knows that there are several: which is the main
one, what they tell each other, who works on what. In one process its functions cost nothing.

The libraries below are not told: `start` takes the launcher's variables out of the environment, so
that each rank loads whole models and its ``Trainer`` is that of one process. What is shared is
shared here: work by `each`, decisions by `on_main`, sums of gradients by `add_up_`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sani.errors import RunError, SaniError

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")
_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# A rank waits as long as the main one takes for what it does alone. One that died closes its
# connections, which ends the others at once.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class _Ranks:
    """What this process knows of the others.

    Attributes:
        number: Of this rank, from 0.
        count: How many ranks work together.
        sharded: Whether weights are spread over them while they are trained (FSDP).
        store: Keys and values that all of them see.
    """

    number: int = 0
    count: int = 1
    sharded: bool = False
    store: Any = None


_own = _Ranks()


def start(*, together: bool) -> None:
    """Find out who this process is, and join the others if they are to work together.

    Args:
        together: Whether the ranks share the work. Otherwise each is alone, and all but the main
            one should leave.

    Raises:
        RunError: If the launcher is configured for what sani does not do.
    """
    global _own
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _own = _Ranks(number)
    sharded = _asks("ACCELERATE_USE_FSDP")
    if together and count > 1:
        if _asks("ACCELERATE_USE_DEEPSPEED") or _asks("ACCELERATE_USE_MEGATRON_LM"):
            raise RunError(
                "accelerate is configured for DeepSpeed or Megatron; sani runs with "
                "distributed_type MULTI_GPU, MULTI_CPU or FSDP"
            )
        if sharded and os.environ.get("FSDP_VERSION") != "2":
            raise RunError(
                "accelerate is configured for the first version of FSDP; set fsdp_version: 2 in "
                "fsdp_config"
            )
        if sharded and _asks("FSDP_OFFLOAD_PARAMS"):
            raise RunError(
                "accelerate is configured to offload parameters, which sani does not do; set "
                "fsdp_offload_params: false in fsdp_config"
            )
    if _asks("ACCELERATE_USE_CPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    store = _join(number, count) if together and count > 1 else None
    for name in list(os.environ):
        if name in _TOLD or name.startswith(("ACCELERATE_", "FSDP_")):
            del os.environ[name]
    if store is not None:
        _own = _Ranks(number, count, sharded, store)


def _asks(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def _join(number: int, count: int) -> Any:
    """Connect to the other ranks; each gets a device of its own."""
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=count, timeout=_PATIENCE
    )
    return store


def finish() -> None:
    """Wait until all ranks are done, so that the launcher stops none that has more to tell."""
    global _own
    if _own.count > 1:
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()
        _own = _Ranks(_own.number, store=_own.store)


def launched() -> bool:
    """Whether other ranks work, or worked, with this one."""
    return _own.store is not None


def lost(error: BaseException) -> bool:
    """Whether an error is that another rank is not there any more."""
    frame, places = error.__traceback__, [""]
    while frame is not None:
        places.append(frame.tb_frame.f_code.co_filename)
        frame = frame.tb_next
    inside = any(place == __file__ or "torch/distributed" in place for place in places)
    return launched() and inside and isinstance(error, RuntimeError)


def number() -> int:
    """Number of this rank, from 0."""
    return _own.number


def count() -> int:
    """How many ranks share the work."""
    return _own.count


def main() -> bool:
    """Whether this is the rank that writes and prints."""
    return _own.number == 0


def sharded() -> bool:
    """Whether weights are spread over the ranks while they are trained."""
    return _own.sharded and _own.count > 1


def first(what: str) -> bool:
    """Whether no rank asked for this before: what all have to tell, one tells."""
    if _own.store is None:
        return int(os.environ.get("RANK", _own.number)) == 0
    try:
        return bool(_own.store.add(f"sani/{what}", 1) == 1)
    except RuntimeError:  # who kept the store is gone, and has told
        return False


def gather(mine: _T) -> list[_T]:
    """What each rank gives, by rank, known to all."""
    if _own.count == 1:
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * _own.count
    distributed.all_gather_object(found, mine)
    return found


def each(work: Callable[[], _T]) -> list[_T]:
    """What ``work`` gives on each rank, by rank, known to all.

    Raises:
        SaniError: On every rank, if ``work`` raised it on one.
    """
    if _own.count == 1:
        return [work()]
    mine: _T | None = None
    trouble: Exception | None = None
    try:
        mine = work()
    except (SaniError, OSError) as error:
        trouble = error
    found = gather((mine, trouble))
    for _, trouble in found:
        if trouble is not None:
            raise trouble
    return [result for result, _ in found]  # type: ignore[misc]


def on_main(work: Callable[[], _T]) -> _T:
    """What ``work`` gives on the main rank, which does it alone, known to all.

    Raises:
        SaniError: On every rank, if ``work`` raised it.
    """
    if _own.count == 1:
        return work()
    from torch import distributed

    told: list[Any] = [None, None]
    if main():
        try:
            with _alone():
                told[0] = work()
        except (SaniError, OSError) as error:
            told[1] = error
    distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    result: _T = told[0]
    return result


@contextmanager
def _alone() -> Iterator[None]:
    """Within, this rank is the only one."""
    global _own
    together, _own = _own, _Ranks(_own.number)
    try:
        yield
    finally:
        _own = together


def agree(what: str, mine: _T) -> _T:
    """The same, if all ranks have it.

    Raises:
        RunError: If they have not: they would not do one job.
    """
    if any(other != mine for other in gather(mine)):
        raise RunError(
            f"the ranks do not have the same {what}; give all of them the same files and the same "
            "versions"
        )
    return mine


def share(sizes: Sequence[int]) -> list[int]:
    """Which of some pieces of work this rank does, in order: dealt out in turn, largest first.

    Args:
        sizes: Of each piece.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    return sorted(order[_own.number :: _own.count]) if _own.count > 1 else list(range(len(sizes)))


def part(size: int) -> slice:
    """Which of ``size`` rows are this rank's; the main one has one at least."""
    ends = (-(-size * (_own.number + side) // _own.count) for side in (0, 1))
    return slice(*ends)


def add_up_(tensors: Sequence[Tensor]) -> None:
    """In place: the sums over the ranks, each rank giving tensors of the same shapes."""
    if _own.count > 1:
        from torch import distributed

        waiting = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in waiting:
            work.wait()


def spread_(model: Any) -> None:
    """In place: the main rank's weights and buffers, on every rank."""
    if _own.count > 1:
        from torch import distributed

        for _, tensor in sorted(model.state_dict().items()):
            distributed.broadcast(tensor, src=0)
