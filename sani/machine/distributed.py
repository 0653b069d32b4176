"""Several processes: what ``accelerate launch`` or torchrun starts to do one job together.

Every process (rank) runs the same program. This module alone knows that there are several: which
is the main one (rank 0), what they tell each other, and who works on what. In one process its
functions cost nothing.

The libraries below do not know of the others: `start` removes the launcher's variables from the
environment, so each rank loads whole models and its ``Trainer`` is that of one process. What is
shared is shared here: work by `on_every_rank`, decisions by `on_main`, sums of gradients by
`all_reduce`.
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
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# A rank waits as long as the main one takes for what it does alone: hours, with large models. One
# that died closes its connections, which ends the others at once.
_TIMEOUT = timedelta(days=30)


@dataclass(frozen=True)
class _Group:
    """This process among the others.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes that work together.
        sharded: Weights are spread over the ranks while they are trained (FSDP).
        store: Keys and values that all ranks see; None for a process that never had others.
    """

    rank: int = 0
    world_size: int = 1
    sharded: bool = False
    store: Any = None


_group = _Group()


def start(*, together: bool) -> None:
    """Read this process's rank, and join the others if they are to work together.

    Args:
        together: The ranks share the work. Otherwise each is alone, and all but the main one
            should leave.

    Raises:
        RunError: If the launcher is configured for what sani does not do.
    """
    global _group
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    together = together and world_size > 1
    _group = _Group(rank)
    sharded = _is_set("ACCELERATE_USE_FSDP")
    if together:
        _check_launcher(sharded=sharded)
    if _is_set("ACCELERATE_USE_CPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    store = _join(rank, world_size) if together else None
    for name in list(os.environ):
        if name in _LAUNCHER_VARIABLES or name.startswith(("ACCELERATE_", "FSDP_")):
            del os.environ[name]
    if store is not None:
        _group = _Group(rank, world_size, sharded, store)


def _check_launcher(*, sharded: bool) -> None:
    """Refuse an accelerate configuration for what sani does not do."""
    if _is_set("ACCELERATE_USE_DEEPSPEED") or _is_set("ACCELERATE_USE_MEGATRON_LM"):
        raise RunError(
            "accelerate is configured for DeepSpeed or Megatron; sani runs with "
            "distributed_type MULTI_GPU, MULTI_CPU or FSDP"
        )
    if sharded and os.environ.get("FSDP_VERSION") != "2":
        raise RunError(
            "accelerate is configured for the first version of FSDP; set fsdp_version: 2 in "
            "fsdp_config"
        )
    if sharded and _is_set("FSDP_OFFLOAD_PARAMS"):
        raise RunError(
            "accelerate is configured to offload parameters, which sani does not do; set "
            "fsdp_offload_params: false in fsdp_config"
        )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def _join(rank: int, world_size: int) -> Any:
    """Connect to the other ranks; each gets a device of its own."""
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Gloo for objects and tensors on the CPU, NCCL for tensors on the devices.
        backend = "cpu:gloo,cuda:nccl"
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
    )
    return store


def finish() -> None:
    """Wait until all ranks are done, so that the launcher stops none that has more to tell."""
    global _group
    if _group.world_size > 1:
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()
        _group = _Group(_group.rank, store=_group.store)


def launched() -> bool:
    """Return whether other ranks work, or worked, with this one."""
    return _group.store is not None


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error means that another rank is not there any more.

    Torch raises a plain ``RuntimeError`` then; that it comes from its collectives, or from here,
    tells it from others.
    """
    frame, files = error.__traceback__, [""]
    while frame is not None:
        files.append(frame.tb_frame.f_code.co_filename)
        frame = frame.tb_next
    inside = any(file == __file__ or "torch/distributed" in file for file in files)
    return launched() and inside and isinstance(error, RuntimeError)


def rank() -> int:
    """Return the number of this rank, from 0."""
    return _group.rank


def world_size() -> int:
    """Return how many ranks share the work."""
    return _group.world_size


def is_main() -> bool:
    """Return whether this is the rank that writes and prints."""
    return _group.rank == 0


def sharded() -> bool:
    """Return whether weights are spread over the ranks while they are trained."""
    return _group.sharded and _group.world_size > 1


def claim(name: str) -> bool:
    """Return whether no rank claimed this name before: what all have to tell, one tells."""
    if _group.store is None:
        return int(os.environ.get("RANK", _group.rank)) == 0
    try:
        return bool(_group.store.add(f"sani/{name}", 1) == 1)
    except RuntimeError:  # the rank that kept the store is gone, and has told
        return False


def gather(value: _T) -> list[_T]:
    """Return every rank's value, by rank, on all ranks."""
    if _group.world_size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _group.world_size
    distributed.all_gather_object(values, value)
    return values


def on_every_rank(work: Callable[[], _T]) -> list[_T]:
    """Do ``work`` on each rank and return every rank's result, by rank, on all ranks.

    Raises:
        SaniError: On every rank, if ``work`` raised it on one.
    """
    if _group.world_size == 1:
        return [work()]
    outcome: tuple[Any, Exception | None]
    try:
        outcome = work(), None
    except (SaniError, OSError) as caught:  # the others wait for this rank's word
        outcome = None, caught
    outcomes: list[tuple[Any, Exception | None]] = gather(outcome)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


def on_main(work: Callable[[], _T]) -> _T:
    """Do ``work`` on the main rank alone and return its result on all ranks.

    Raises:
        SaniError: On every rank, if ``work`` raised it.
    """
    if _group.world_size == 1:
        return work()
    from torch import distributed

    outcome: list[Any] = [None, None]  # result and error
    if is_main():
        try:
            with _alone():
                outcome[0] = work()
        except (SaniError, OSError) as error:  # the others wait for this rank's word
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: _T = outcome[0]
    return result


@contextmanager
def _alone() -> Iterator[None]:
    """Within, this rank is the only one, so what it calls waits for no other."""
    global _group
    together, _group = _group, _Group(_group.rank)
    try:
        yield
    finally:
        _group = together


def check_same(name: str, value: _T) -> _T:
    """Return the value, if all ranks have the same.

    Args:
        name: What it is, for the error.
        value: Of this rank.

    Raises:
        RunError: If they have not: they would not do one job.
    """
    if any(other != value for other in gather(value)):
        raise RunError(
            f"the ranks do not have the same {name}; give all of them the same files and the same "
            "versions"
        )
    return value


def shard(sizes: Sequence[int]) -> list[int]:
    """Return which pieces of work this rank does, in order.

    They are dealt out in turn, largest first, so that all ranks get about the same.

    Args:
        sizes: Of each piece.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    if _group.world_size == 1:
        return list(range(len(sizes)))
    return sorted(order[_group.rank :: _group.world_size])


def shard_of_rows(rows: int) -> slice:
    """Return which of ``rows`` rows are this rank's; the main one has one at least."""
    start, end = (-(-rows * (_group.rank + side) // _group.world_size) for side in (0, 1))
    return slice(start, end)


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """In place: add up tensors of the same shapes over the ranks."""
    if _group.world_size > 1:
        from torch import distributed

        # All are sent before the first is waited for, so that they travel at once.
        pending = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in pending:
            work.wait()


def broadcast_weights(model: Any) -> None:
    """In place: put the main rank's weights and buffers on every rank."""
    if _group.world_size > 1:
        from torch import distributed

        for _, tensor in sorted(model.state_dict().items()):
            distributed.broadcast(tensor, src=0)
