"""Description of this machine: device, memory, threads, versions, the largest model that fits."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from sani.machine.memory import (
    AUDIT_COPIES,
    REPAIR_COPIES,
    device_memory,
    free_memory,
    largest_model,
)

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "safetensors", "datasets")
EXTRAS = {"spacy": "ner", "model-signing": "sign"}


def describe_environment(folder: Path) -> dict[str, str]:
    """Return what the machine has, in words, by name.

    Args:
        folder: Folder that runs are written to; the free space of its disk is reported.
    """
    import torch

    facts = {
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
        facts["device"] = (
            f"{torch.cuda.device_count()} x {gpu.name}, {_gib(room)} free of "
            f"{_gib(gpu.total_memory)}; the first one is used"
        )
    else:
        facts["device"] = f"CPU ({platform.processor() or platform.machine()}), float32"
    facts["largest model"] = (
        f"about {_parameters(largest_model(room, copies=AUDIT_COPIES))} parameters to audit, "
        f"{_parameters(largest_model(room, copies=REPAIR_COPIES))} to repair, "
        "activations not counted"
    )
    return facts


def _extra(name: str, extra: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} is missing (pip install 'sani-llm[{extra}]')"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _parameters(number: float) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.0f} million"
