"""What this machine can do: device, memory, threads, versions, and the largest model that fits."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

# Bytes per parameter in float32: the weights to audit; with gradients, two moments of the
# optimizer and the base as anchor to repair.
AUDIT_BYTES, REPAIR_BYTES = 4, 20
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "safetensors", "datasets")
EXTRAS = {"spacy": "ner", "model-signing": "sign"}


def describe_environment(folder: Path) -> dict[str, str]:
    """What there is, as words by name.

    Args:
        folder: Where runs would be written; its disk is looked at.
    """
    import torch

    found = {
        "sani": version("sani-llm"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "extras": ", ".join(_extra(name, extra) for name, extra in EXTRAS.items()),
        "cores": f"{os.cpu_count()}, of which torch uses {torch.get_num_threads()}",
        "memory": f"{_gib(free_memory())} free of {_gib(psutil.virtual_memory().total)}",
        "disk": f"{_gib(shutil.disk_usage(folder).free)} free",
        "network": "never used: models and documents are read from local folders",
    }
    room = device_memory()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["device"] = (
            f"{torch.cuda.device_count()} x {gpu.name}, {_gib(room)} free of "
            f"{_gib(gpu.total_memory)}; the first one is used"
        )
    else:
        found["device"] = f"CPU ({platform.processor() or platform.machine()}), float32"
    found["largest model"] = (
        f"about {_parameters(room / AUDIT_BYTES)} parameters to audit, "
        f"{_parameters(room / REPAIR_BYTES)} to repair, activations not counted"
    )
    return found


def free_memory() -> int:
    """Bytes that a program can get without swapping: what caches hold counts as free."""
    return int(psutil.virtual_memory().available)


def device_memory() -> int:
    """Bytes that are free where models are held: on the accelerator, if there is one."""
    import torch

    return int(torch.cuda.mem_get_info(0)[0]) if torch.cuda.is_available() else free_memory()


def _extra(name: str, extra: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} is missing (pip install 'sani-llm[{extra}]')"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _parameters(number: float) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.0f} million"
