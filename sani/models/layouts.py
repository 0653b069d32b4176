"""Folders that hold something else than a checkpoint: each kind is refused in its own words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sani.errors import CheckpointError
from sani.models.folder_files import ADAPTER_CONFIG, WEIGHTS, WEIGHTS_INDEX, read_json

# Weights of other programs, by the end of a file's name.
_OTHER_PROGRAMS = {
    ".onnx": "ONNX", "openvino_model.xml": "OpenVINO", ".h5": "TensorFlow", ".keras": "Keras",
    ".msgpack": "Flax", ".npz": "MLX", ".mlmodel": "Core ML", ".tflite": "TensorFlow Lite",
    ".nemo": "NeMo", ".engine": "TensorRT", ".ot": "rust-bert",
}  # fmt: skip
_SAVED_STATE = re.compile(r"checkpoint-(\d+)")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")  # of a model, or owner and model
QUANTIZERS = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}
# Kinds of adapters (PEFT) that put numbers before the input or between layers: none is a weight.
_PROMPTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
            "ADAPTION_PROMPT", "CARTRIDGE", "CPT"}  # fmt: skip


def refuse_other_layout(path: Path, names: set[str]) -> None:
    """Refuse a folder without ``config.json`` or without safetensors, and say what it holds.

    Args:
        path: The folder.
        names: Names of its entries.

    Raises:
        CheckpointError: Always, but for a folder that has both.
    """
    if "config.json" in names and names & {WEIGHTS, WEIGHTS_INDEX}:
        return
    sentence = next(filter(None, _sentences(path, names)), None)
    if sentence is not None:
        raise CheckpointError(f"model folder {path} {sentence}")
    if "config.json" not in names:
        raise CheckpointError(f"model folder {path} has no config.json; is it a checkpoint folder?")
    pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    raise CheckpointError(
        f"model folder {path}: expected {WEIGHTS}, found {other_weights(pickled=pickled)}; "
        "save it with save_pretrained(..., safe_serialization=True)"
    )


def other_weights(*, pickled: bool) -> str:
    """Return what stands in the place of safetensors."""
    return "pickled weights (.bin), which sani never loads" if pickled else "no weights"


def _sentences(path: Path, names: set[str]) -> Iterable[str | None]:
    """Yield a sentence of each kind of folder that this one may be, or None."""
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf and not any(name.endswith(".safetensors") for name in names):
        alone = "" if len(gguf) == 1 else f"put one of its {len(gguf)} files into a folder, and "
        yield (
            "holds GGUF, whose weights are quantized and packed; dequantize it once, and give the "
            f"new folder: {alone}sani dequantize {path if len(gguf) == 1 else 'FOLDER'} --out OUT"
        )
    yield _saved_states(path, names)
    yield _parts_of_training(path, names)
    if any(_SHARD.fullmatch(name) for name in names):
        yield (
            f"holds shards, and {WEIGHTS_INDEX} is missing, which says what is in each; copy it "
            "too, or load the shards where they were made and use save_pretrained"
        )
    consolidated = sorted(name for name in names if name.startswith("consolidated"))
    if consolidated:
        yield (
            f"holds {consolidated[0]}, the layout of Meta's and Mistral's own programs; convert it "
            "(transformers: convert_llama_weights_to_hf.py, convert_mistral_weights_to_hf.py), or "
            f"get the folder with {WEIGHTS}"
        )
    for name in sorted(names):
        for end, program in _OTHER_PROGRAMS.items():
            if name.endswith(end):
                yield (
                    f"holds weights of {program} and no safetensors; give the checkpoint that they "
                    "were exported from"
                )
    adapters = sum((path / name / ADAPTER_CONFIG).is_file() for name in names)
    if adapters:
        yield f"holds no model itself, but {adapters} adapters in folders; give one of these"


def _saved_states(path: Path, names: set[str]) -> str | None:
    """Return the sentence of a folder whose checkpoints lie in folders within it."""
    if "snapshots" in names and (path / "snapshots").is_dir():
        newest = max((path / "snapshots").iterdir(), key=lambda p: p.stat().st_mtime, default=None)
        inner = newest or path / "snapshots"
        return f"is the whole entry of a Hub cache; give one of its snapshots: {inner}"
    matches = (_SAVED_STATE.fullmatch(name) for name in names)
    steps = sorted(int(match[1]) for match in matches if match)
    if steps:
        return (
            f"holds saved states of training ({len(steps)}) and no model itself; give the newest, "
            f"{path / f'checkpoint-{steps[-1]}'}, or save the model there with save_model"
        )
    return None


def _parts_of_training(path: Path, names: set[str]) -> str | None:
    """Return the sentence of a folder with the parts that processes of a training wrote."""
    folders = [path, *(path / name for name in sorted(names) if (path / name).is_dir())]
    for folder in folders:
        if any(folder.glob("*.distcp")):
            return (
                "holds a sharded state of FSDP (.distcp) and no whole weights; put them together: "
                f"accelerate merge-weights {folder} OUT, and copy config.json and the tokenizer's "
                "files there"
            )
    steps = sorted(name for name in names if name.startswith("global_step"))
    if steps or "zero_to_fp32.py" in names or any(path.glob("*_model_states.pt")):
        return (
            "holds a partitioned state of DeepSpeed and no whole weights; put them together: "
            f"python zero_to_fp32.py {path} OUT --safe_serialization, and copy config.json and the "
            "tokenizer's files there"
        )
    return None


def refuse_quantized(path: Path, names: set[str]) -> None:
    """Refuse weights that are codes of numbers: no neuron of them can be reset or compared.

    Raises:
        CheckpointError: If the configuration, or a file beside it, says that they are.
    """
    config = read_json(path, "config.json")
    quantization = config.get("quantization_config")
    mlx = "quantization" in config
    beside = names & {"quantize_config.json", "quant_config.json"}  # of early GPTQ and AWQ
    if not quantization and not beside and not mlx:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    or_else = ", or its dequantize() saved" if method == "bitsandbytes" else ""
    by = f" ({QUANTIZERS[method]})" if method in QUANTIZERS else " (MLX)" if mlx else ""
    raise CheckpointError(
        f"model folder {path} is quantized{by}; neurons of quantized weights cannot be reset: "
        f"give the checkpoint it was quantized from{or_else}"
    )


def refuse_other_adapter(path: Path, names: set[str], config: dict[str, object]) -> None:
    """Refuse an adapter that is not one of PEFT's, or that cannot become part of weights.

    Args:
        path: The folder.
        names: Names of its entries.
        config: Its ``adapter_config.json``.

    Raises:
        CheckpointError: If it is one of these.
    """
    if "adapters.safetensors" in names or "fine_tune_type" in config:
        raise CheckpointError(
            f"model folder {path} holds an adapter of MLX; merge it there (mlx_lm.fuse "
            "--dequantize), and give the merged folder"
        )
    kind = str(config.get("peft_type"))
    if kind in _PROMPTS:
        raise CheckpointError(
            f"model folder {path} holds an adapter of prompts ({kind}), which no weights can take "
            "up: there is nothing to erase or repair; forget it by leaving it out, and give the "
            "model below it"
        )
    if config.get("layer_replication"):
        raise CheckpointError(
            f"model folder {path}: the adapter replicates layers of its base (layer_replication), "
            "so its base has fewer layers and is no control; merge both (peft: merge_and_unload; "
            "the base with an untrained adapter), and give the merged folders"
        )


def no_folder(path: Path) -> str:
    """Return the sentence for a path where no folder is."""
    problem = "is a file, not a folder" if path.exists() else "does not exist"
    hub = ""
    is_alone = path.name == str(path) or not path.parent.exists()
    if HUB_NAME.fullmatch(str(path)) and is_alone and not path.exists():
        hub = (
            f". If it is a name on the Hugging Face hub: hf download {path} --local-dir "
            f"models/{path.name}, on a machine with a network, then give models/{path.name}"
        )
    return (
        f"model folder {path} {problem}; sani reads local folders only (no download): copy "
        f"config.json, {WEIGHTS} and the tokenizer files into one{hub}"
    )
