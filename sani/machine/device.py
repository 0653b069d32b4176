"""The device, seeds, deterministic kernels, and libraries that are kept quiet."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import torch


def default_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
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

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
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
    """Return a source of randomness on the CPU that depends on nothing but ``seed``."""
    return torch.Generator().manual_seed(seed)
