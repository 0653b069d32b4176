"""Erasing a large checkpoint in its files: time against `cp -r`, memory against a shard.

    python benchmarks/erase.py [--quick] [--json FILE] [--folder DIR] [--experts N]

A sharded bfloat16 Llama of 20 GB (4 GB with --quick) is made in DIR (a temporary folder if absent)
and removed at the end; twice its size must be free. With --experts it is a Mixtral of as many
numbers, whose files hold each expert by itself. Each round copies the folder with `cp -r` and
then erases from it. Both begin with the source out of the page cache and everything written, and
end when every new file is on the disk. A time is that of the whole process, the seconds that Python
takes to start included; memory is its peak resident memory. `ratio_to_cp` is of the default erase;
on a busy machine compare seconds of a core too, since `cp` waits for the disk and hardly computes.
Without --quick, the first round also has commands that change every shard, or read all twice.

Then, for every family, as tiny as in the tests: the folder erased in files holds the very weights
of one that is erased in memory. Last, the first rows of benchmarks/comparison.py on a tiny
model of an invented clinic, one seed: the comparison in small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from options import parser_of, write_json

COMMANDS: dict[str, list[str]] = {
    "default": [],
    "random half, all layers": ["--selector", "random", "--fraction", "0.5", "--reset", "zero"],
    "magnitude, all layers": ["--selector", "magnitude", "--fraction", "0.1", "--reset", "zero"],
}
DEFAULT = "default"
WORDS = 32000
SEED = 0


@dataclass(frozen=True)
class Size:
    """Size of the synthetic checkpoint, and the amount of what is checked beside it.

    Attributes:
        heads: Attention heads, four to a key and value head.
        families: Families that are checked; None is all.
        rows: Rows of the comparison in small.
        epochs: Epochs in which its model learns the private notes.
    """

    hidden: int
    intermediate: int
    layers: int
    shards: int
    heads: int = 32
    experts: int = 1
    families: int | None = None
    rows: int = 8
    epochs: int = 20


SIZES = {
    "full": Size(hidden=4096, intermediate=14336, layers=45, shards=4),
    "quick": Size(hidden=2048, intermediate=8192, layers=30, shards=4),
    "tiny": Size(
        hidden=128, intermediate=256, layers=4, shards=2, heads=4, families=2, rows=3, epochs=1
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", type=int, default=1)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    size = replace(SIZES[options.size], experts=options.experts)
    if options.make is not None:
        make(options.make, size)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), size, options)
    with tempfile.TemporaryDirectory() as folder:
        figures["families_checked"] = check_families(Path(folder), size.families)
        figures["comparison"] = compare_in_small(Path(folder), size)
    print(json.dumps(figures, indent=1))
    write_json(figures, options.json)


def measure(folder: Path, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Time the erase in files against `cp -r`, and measure its memory."""
    source, out = folder / "model", folder / "out"
    # In a process of its own: a child's peak memory is at least its parent's.
    quick = [] if options.size == "full" else [f"--{options.size}"]
    experts = ["--experts", str(size.experts)]
    subprocess.run([sys.executable, __file__, "--make", str(source), *quick, *experts], check=True)
    files = sorted(source.glob("*.safetensors"))
    largest, total = max(f.stat().st_size for f in files), sum(f.stat().st_size for f in files)
    print(f"{total / 1e9:.2f} GB in {len(files)} shards, the largest {largest / 1e9:.2f} GB")
    layers = ["--last-layers", str(size.layers)]
    arms = {"cp": ["cp", "-r", str(source), str(out)]}
    for name, arguments in COMMANDS.items():
        erase = [sys.executable, "-m", "sani", "erase", str(source), "--out", str(out)]
        arms[name] = [*erase, *arguments, *(layers if arguments else [])]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    cores: dict[str, list[float]] = {name: [] for name in arms}
    peaks: dict[str, int] = dict.fromkeys(arms, 0)
    for number in range(options.rounds):
        for name in ("cp", DEFAULT) if number or options.size != "full" else arms:
            evict(source)
            elapsed, core, peak = run(arms[name], out)
            seconds[name].append(elapsed)
            cores[name].append(core)
            peaks[name] = max(peaks[name], peak)
            print(
                f"round {number + 1}, {name}: {elapsed:.2f} s ({core:.2f} s of a core), peak "
                f"{peak / 2**20:.0f} MiB",
                flush=True,
            )
            if name == DEFAULT:
                check_result(source, out, size)
            shutil.rmtree(out)
    median = {name: statistics.median(values) for name, values in seconds.items() if values}
    ratios = {
        name: statistics.median(
            ours / copy for ours, copy in zip(seconds[name], seconds["cp"], strict=False)
        )
        for name in COMMANDS
        if seconds[name]
    }
    return {
        "ratio_to_cp": ratios[DEFAULT],
        "ratios_to_cp": ratios,
        "peak_over_largest_shard": max(peaks[name] for name in COMMANDS) / largest,
        "peak_mebibytes": {name: peak / 2**20 for name, peak in peaks.items() if peak},
        "median_seconds": median,
        "seconds": seconds,
        "core_seconds": cores,
        "load_average": os.getloadavg()[0],
        "gigabytes": total / 1e9,
        "largest_shard_gigabytes": largest / 1e9,
    }


def run(command: list[str], out: Path) -> tuple[float, float, int]:
    """Return seconds until all is on the disk, seconds of a core, and peak memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # nobody else waits for it
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    for file in out.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    seconds = time.perf_counter() - started
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def evict(folder: Path) -> None:
    """Write everything to the disk, and drop the folder's files from the page cache."""
    os.sync()
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make(folder: Path, size: Size) -> None:
    """Make a sharded Llama or Mixtral; what is of one shape shares its random numbers."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

    from sani.models.building import skeleton

    folder.mkdir()
    sizes: dict[str, Any] = {
        "vocab_size": WORDS, "hidden_size": size.hidden,
        "intermediate_size": size.intermediate // size.experts, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "num_key_value_heads": size.heads // 4,
        "dtype": "bfloat16",
    }  # fmt: skip
    config: Any
    if size.experts > 1:
        config = MixtralConfig(
            **sizes, num_local_experts=size.experts, architectures=["MixtralForCausalLM"]
        )
    else:
        config = LlamaConfig(**sizes, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1").save_pretrained(folder)
    shapes = {
        stored: shape
        for name, tensor in skeleton(config).named_parameters()
        for stored, shape in in_file(name, tensor.shape)
    }
    total = sum(2 * shape.numel() for shape in shapes.values())
    groups: dict[int, list[str]] = {}
    filled = 0
    for name, shape in shapes.items():  # whichever shard the tensor's first byte falls into
        groups.setdefault(filled * size.shards // total, []).append(name)
        filled += 2 * shape.numel()
    chance = torch.Generator().manual_seed(0)
    drawn = {
        shape: torch.randn(shape, generator=chance).mul_(0.02).bfloat16()
        for shape in sorted(set(shapes.values()))
    }
    files: dict[str, str] = {}
    for number, names in groups.items():
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        files.update(dict.fromkeys(names, file))
        tensors = {name: drawn[shapes[name]].clone() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def in_file(name: str, shape: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and shapes by which the files hold a tensor: Mixtral's experts one by one."""
    layer, separator, _ = name.partition("mlp.experts.")
    if not separator:
        yield name.replace(".mlp.gate.", ".block_sparse_moe.gate."), shape
        return
    count, rows, columns = shape
    matrices = {"w2": (rows, columns)}
    if name.endswith("gate_up_proj"):
        matrices = dict.fromkeys(("w1", "w3"), (rows // 2, columns))
    for expert in range(count):
        for matrix, size in matrices.items():
            yield f"{layer}block_sparse_moe.experts.{expert}.{matrix}.weight", type(shape)(size)


def check_result(source: Path, out: Path, size: Size) -> None:
    """Exit unless the erased folder differs from the source where it should and nowhere else."""
    from safetensors import safe_open

    differing = set()
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "np") as old, safe_open(out / file.name, "np") as new:
            if old.keys() != new.keys():
                raise SystemExit(f"{file.name}: other tensors than before")
        if subprocess.run(["cmp", "-s", file, out / file.name], check=False).returncode:
            differing.add(file.name)
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    last = [f"model.layers.{size.layers - back}." for back in (1, 2, 3)]
    neurons = [name for name in index if "proj" in name or ".experts." in name]
    expected = {index[name] for name in neurons if name.startswith(tuple(last))}
    if differing != expected:
        raise SystemExit(f"shards {differing} differ, expected {expected}")


def compare_in_small(folder: Path, size: Size) -> list[dict[str, Any]]:
    """Run the comparison's main rows on an invented clinic and a tiny model that recites it."""
    import comparison

    from sani.corpus.tables import write_jsonl
    from sani.demo.clinic import invent_clinics
    from sani.demo.demo import new_model, train_on_text
    from sani.models.checkpoint import load_checkpoint, save_checkpoint

    public, private, held_out = invent_clinics([8, 4, 3], seed=SEED)
    write_jsonl(private, folder / "private.jsonl")
    write_jsonl(held_out, folder / "held_out.jsonl")
    texts, layers, made = [document.text for document in public], 4, folder / "tokenizer"
    model = new_model(
        texts, vocab_size=700, layers=layers, hidden=64, context=512, folder=made, seed=SEED
    )
    train: dict[str, Any] = {"learning_rate": 5e-3, "batch_tokens": 768, "seed": SEED}
    train_on_text(model, texts, epochs=8, **train)
    save_checkpoint(model, folder / "base")
    model = load_checkpoint(folder / "base")
    train_on_text(model, [document.text for document in private], epochs=size.epochs, **train)
    save_checkpoint(model, folder / "leaky")
    rows = list(comparison.rows(layers))[: size.rows]
    return comparison.compare([folder], rows, seeds=range(1), out=folder / "rows.jsonl")


def check_families(scratch: Path, number: int | None) -> list[str]:
    """Return the families of which a folder erased in files equals one erased in memory."""
    from sani.erasing.erase import apply_plan
    from sani.erasing.folder import apply_folder, plan_folder
    from sani.erasing.reinit import fresh_model
    from sani.machine.device import quiet_libraries
    from sani.models.checkpoint import load_checkpoint
    from sani.recipe import EraseSettings, MagnitudeSelector

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.support.architectures import ARCHITECTURES, tiny_config, tiny_tokenizer

    quiet_libraries()
    checked = []
    selector = MagnitudeSelector(kind="magnitude", fraction=0.5)
    for name in sorted(ARCHITECTURES)[:number]:
        folder, out = scratch / name, scratch / f"{name}-erased"
        fresh_model(tiny_config(name), seed=1).save_pretrained(folder, max_shard_size="8KB")
        tiny_tokenizer().save_pretrained(folder)
        plan = plan_folder(folder, EraseSettings(last_layers=2, selector=selector))
        apply_folder(folder, out, plan)
        loaded = load_checkpoint(folder)
        before = loaded.weights_digest()
        apply_plan(loaded, plan)
        if not before != loaded.weights_digest() == load_checkpoint(out).weights_digest():
            raise SystemExit(f"{name}: erased in files and in memory differ")
        checked.append(name)
    return checked


if __name__ == "__main__":
    main()
