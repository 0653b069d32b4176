"""What the machine is and how runs are made repeatable: device, seeds, quiet libraries, batches."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pynvml
import torch


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quiet_libraries() -> None:
    """Silence progress bars and warnings of the libraries below: they may quote what they read.

    Also forbids the network: a run reads local files only.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Read by datasets when it is imported, which takes a second that erasing in files can spare.
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["DATASETS_VERBOSITY"] = "error"
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
    for name in ("accelerate", "torch", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("transformers", "peft"):
        warnings.filterwarnings("ignore", module=name)


def make_deterministic() -> None:
    """Ask for kernels that give the same bytes each time on one machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def generator(seed: int) -> torch.Generator:
    """A source of randomness on the CPU that depends on nothing but ``seed``."""
    return torch.Generator().manual_seed(seed)


def token_batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Group items into batches of at most ``budget`` tokens, padding included.

    Items are sorted by length, longest first, so that little is padding and the largest batch
    comes first: memory that suffices for it suffices for all. An item longer than the budget is
    a batch of its own.

    Args:
        lengths: Tokens of each item.
        budget: Most tokens of a batch, counted as items times the longest item.

    Returns:
        Indices into ``lengths``, each exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        current = batches[-1] if batches else None
        if current is None or lengths[current[0]] * (len(current) + 1) > budget:
            batches.append([index])
        else:
            current.append(index)
    return batches


POWERCAP = Path("/sys/class/powercap")
MOST_WATTS = 1000.0  # of one processor package; its counter starts again from 0 every few minutes


class EnergyMeter:
    """What the processors and GPUs of this machine take, by their own counters.

    The counters are of the whole machine, so other work on it counts too. Linux shows those of
    processors (RAPL) to its administrator only.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._powercap = powercap
        self._began = time.monotonic()
        self._packages = _packages(powercap)
        self._gpus = _gpu_joules()

    def joules(self) -> float | None:
        """Energy since this was made; None where a processor or a used GPU does not tell."""
        now, gpus = _packages(self._powercap), _gpu_joules()
        if not self._packages or now.keys() != self._packages.keys():
            return None
        if gpus is None or self._gpus is None:
            return None
        total, seconds = gpus - self._gpus, time.monotonic() - self._began
        for name, (before, most) in self._packages.items():
            if seconds * MOST_WATTS > most:  # it may have started again more than once
                return None
            total += (now[name][0] - before) % most
        return total


def _packages(powercap: Path) -> dict[str, tuple[float, float]]:
    """Joules of each processor package, and where its counter starts again from 0."""
    found = {}
    try:
        for place in sorted(powercap.glob("*-rapl:?")):
            names = ("energy_uj", "max_energy_range_uj")
            joules, most = (int((place / name).read_text()) / 1e6 for name in names)
            found[place.name] = (joules, most)
    except (OSError, ValueError):
        return {}
    return found


def _gpu_joules() -> float | None:
    """Joules of every visible GPU since its driver was loaded; 0 without one, None if untold."""
    total = 0.0
    try:
        for index in range(torch.cuda.device_count()):
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(index).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            total += pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:
        return None
    return total
