"""Streaming a model that is larger than memory: peak memory, and time against memory and a floor.

    python benchmarks/scale.py [--quick] [--json FILE] [--folder DIR] [--experts N]

A bfloat16 checkpoint of random weights with the shape of Llama-3.1-8B (16 GB; with --quick that of
Llama-3.2-1B) is made in DIR, and a base that differs in its last two layers. One `sani run` with
`placement: stream` audits both, resets the last layer in the files, repairs the last two layers
with an adapter, and audits again. Its peaks are those of its report. Five times the size of the
checkpoint must be free. Then, with the 1B shape, an audit's reading is timed against the same
reading of the model in memory, and against a bare streamed forward pass: a loop over the files that
does nothing else. With --experts the run is of a mixture of as many experts a layer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erase import in_file
from options import parser_of, write_json

SEED = 0
WORDS = ("the", "patient", "was", "seen", "today", "with", "pain", "and", "fever", "since", "three")
NAMES = ("Ada Quill", "Bo Fenwick", "Cy Marlow", "Di Harrow")
RECIPE = """\
version: 2
seed: 0
placement: stream
model: {{path: {folder}/model, base: {folder}/base}}
corpus: {{path: {folder}/private.jsonl, held_out: {folder}/held_out.jsonl}}
audit: {{framing: bos, decoys: 2, swaps: 0, membership_documents: 0}}
erase: {{last_layers: 1, selector: {{kind: all}}, reset: reinit}}
repair:
  identifier_loss: {{kind: anchor, weight: 2.0}}
  last_layers: 2
  adapter: {{rank: 16, alpha: 32}}
  epochs: 1
"""


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama, and the number of documents that are audited."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    tied: bool
    experts: int = 1
    documents: int = 4
    words: int = 40


SHAPES = {
    "8B": Shape(4096, 14336, 32, 32, 128256, tied=False, documents=2, words=30),
    "1B": Shape(2048, 8192, 16, 32, 128256, tied=True),
    "tiny": Shape(64, 128, 4, 4, 512, tied=False),
}
RUN_OF = {"full": "8B", "quick": "1B", "tiny": "tiny"}
TIMED_OF = {"full": "1B", "quick": "1B", "tiny": "tiny"}


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--experts", type=int, default=1)
    options = parser.parse_args(words)
    figures: dict[str, Any] = {"seed": SEED, "load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        shape = replace(SHAPES[RUN_OF[options.size]], experts=options.experts)
        folder = Path(scratch) / "run"
        figures |= run_streamed(folder, shape)
        print(json.dumps(figures, indent=1), flush=True)
        timed = SHAPES[TIMED_OF[options.size]]
        if timed != shape:
            folder = Path(scratch) / "timed"
            make(folder, timed)
        figures |= time_reading(folder / "model", timed)
    print(json.dumps(figures, indent=1))
    write_json(figures, options.json)


# ---- material --------------------------------------------------------------------------------


def make(folder: Path, shape: Shape) -> None:
    """Write the checkpoint, its base, documents and a recipe."""
    from sani.corpus.documents import Corpus
    from sani.corpus.tables import write_jsonl

    folder.mkdir()
    write_model(folder / "model", shape)
    # The base is the checkpoint, linked, with other weights in the files of the last two layers.
    write_model(folder / "base", shape, like=folder / "model")
    write_jsonl(Corpus(documents(shape, 0)), folder / "private.jsonl")
    write_jsonl(Corpus(documents(shape, 1)), folder / "held_out.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))


def documents(shape: Shape, first: int) -> list[Any]:
    """Return short notes, each with a name in it."""
    from sani.corpus.documents import Document, Span

    notes = []
    for number in range(shape.documents):
        name = NAMES[(2 * first + number) % len(NAMES)]
        before = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(shape.words // 2))
        start = len(before) + 1
        text = f"{before} {name} {before}"
        span = Span(start, start + len(name), "NAME")
        notes.append(Document(f"{first}-{number}", f"{first}-{number}", text, spans=(span,)))
    return notes


def config_of(shape: Shape) -> Any:
    from transformers import LlamaConfig, MixtralConfig

    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": max(1, shape.heads // 4), "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192, "tie_word_embeddings": shape.tied,
        "bos_token_id": 0, "eos_token_id": 1, "dtype": "bfloat16",
    }  # fmt: skip
    if shape.experts > 1:
        return MixtralConfig(**sizes, num_local_experts=shape.experts)
    return LlamaConfig(**sizes)


def write_model(folder: Path, shape: Shape, like: Path | None = None) -> None:
    """Write random weights, a file for each layer; all but the last two are links with ``like``."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sani.models.building import skeleton

    config = config_of(shape)
    config.save_pretrained(folder)
    words = ["<s>", "</s>", "<unk>", *WORDS, *(word for name in NAMES for word in name.split())]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in skeleton(config).named_parameters():
        part = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        groups.setdefault(part, {}).update(in_file(name, tuple(tensor.shape)))
    chance = torch.Generator().manual_seed(SEED + (like is not None))
    index: dict[str, str] = {}
    last = {str(shape.layers - 1), str(shape.layers - 2)}
    for number, (part, shapes) in enumerate(groups.items()):
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        index.update(dict.fromkeys(shapes, file))
        if like is not None and part not in last:
            (folder / file).symlink_to(like / file)
            continue
        tensors = {}
        for name, size in shapes.items():
            scale = 0.02 if len(size) > 1 else 0.0
            tensor = torch.empty(size, dtype=torch.bfloat16)
            tensors[name] = tensor.normal_(0, scale, generator=chance) + (len(size) == 1)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


# ---- the run ---------------------------------------------------------------------------------


def run_streamed(folder: Path, shape: Shape) -> dict[str, Any]:
    """Run the recipe in a process of its own; return its peaks, times, and the estimates."""
    from sani.models.folder import open_folder
    from sani.models.parts import largest_part
    from sani.pipeline.placement import memory_needed
    from sani.pipeline.preflight import time_of_run
    from sani.pipeline.run_inputs import RunInputs
    from sani.recipe import load_recipe

    make(folder, shape)
    recipe, out = folder / "recipe.yaml", folder / "out"
    command = [sys.executable, "-m", "sani", "run", str(recipe)]
    started = time.perf_counter()
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr.decode()[-2000:])
    peaks = json.loads((out / "memory.json").read_text())["peaks"]
    loaded = load_recipe(recipe)
    needed = memory_needed(RunInputs(loaded), "stream")
    estimate = time_of_run(loaded, lambda stage, done, total: None).total
    opened = open_folder(folder / "model")
    audits = max(peak for stage, peak in peaks.items() if stage.startswith(("load", "audit")))
    return {
        "parameters": opened.stored.num_parameters,
        "exit_code": done.returncode,
        "seconds_run": seconds,
        "peak_gb": {stage: peak / 1e9 for stage, peak in peaks.items()},
        "largest_part_gb": largest_part(opened) / 1e9,
        "peak_gb_audit": audits / 1e9,
        "peak_gb_repair": peaks["repair"] / 1e9,
        "estimate_error_memory": needed / max(peaks.values()) - 1,
        "estimate_error_time": estimate / seconds - 1,
    }


# ---- reading ---------------------------------------------------------------------------------


def time_reading(folder: Path, shape: Shape) -> dict[str, Any]:
    """Time an audit's reading of some texts: streamed, in memory, and as a bare loop over files."""
    import torch

    from sani.auditing.rows import Row
    from sani.auditing.teacher_forcing import score
    from sani.models.checkpoint import load_checkpoint

    chance = torch.Generator().manual_seed(SEED)
    length, number = (128, 8) if shape.hidden > 64 else (16, 4)
    texts = torch.randint(2, len(WORDS), (number, length), generator=chance)
    rows = []
    for index, text in enumerate(texts.tolist()):
        row = Row(text)
        row.reads += [(at, text[at + 1], index * length + at) for at in range(length - 1)]
        rows.append(row)

    def read(model: Any) -> tuple[float, Any]:
        started = time.perf_counter()
        scores = score(model, rows, num_slots=number * length, batch_tokens=2 * length)
        return time.perf_counter() - started, scores.log_probability

    seconds: dict[str, list[float]] = {"stream": [], "bare": [], "memory": []}
    found: dict[str, Any] = {}
    streamed = load_checkpoint(folder, placement="stream").model
    for _ in range(3):
        elapsed, found["stream"] = read(streamed)
        seconds["stream"].append(elapsed)
        started = time.perf_counter()
        found["bare"] = bare_pass(folder, texts.split(2))
        seconds["bare"].append(time.perf_counter() - started)
    del streamed
    whole = load_checkpoint(folder).model
    for _ in range(3):
        elapsed, found["memory"] = read(whole)
        seconds["memory"].append(elapsed)
    best = {name: min(times) for name, times in seconds.items()}
    pieces = found["stream"].reshape(number, length)[:, :-1]
    return {
        "stream_over_memory": best["stream"] / best["memory"],
        "stream_over_bare": best["stream"] / best["bare"],
        "reading_seconds": seconds,
        "max_difference_nats": float(abs(found["stream"] - found["memory"])[:-1].max(
            where=~(found["memory"][:-1] != found["memory"][:-1]), initial=0.0
        )),
        "max_difference_to_bare_nats": float(abs(pieces - found["bare"]).max()),
    }  # fmt: skip


def bare_pass(folder: Path, batches: Sequence[Any]) -> Any:
    """Compute log-probabilities of a Llama's next tokens with a loop over its files, [texts, n-1].

    One layer's module is filled from the files, and runs for all batches before the next.
    """
    import torch
    from safetensors import safe_open
    from torch.nn import functional
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import (
        LlamaDecoderLayer,
        LlamaRMSNorm,
        LlamaRotaryEmbedding,
    )

    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]

    def tensor(name: str) -> Any:
        with safe_open(folder / index[name], "pt") as file:
            return file.get_tensor(name).float()

    with torch.inference_mode():
        embedding = tensor("model.embed_tokens.weight")
        states = [functional.embedding(batch, embedding) for batch in batches]
        del embedding
        rotary = LlamaRotaryEmbedding(config)
        layer = LlamaDecoderLayer(config, 0).eval()
        for number in range(config.num_hidden_layers):
            prefix = f"model.layers.{number}."
            names = [name for name in index if name.startswith(prefix)]
            layer.load_state_dict(
                {name.removeprefix(prefix): tensor(name) for name in names}, assign=True
            )
            for place, state in enumerate(states):
                positions = torch.arange(state.shape[1])[None]
                angles = rotary(state, positions)
                states[place] = layer(state, position_embeddings=angles, position_ids=positions)
        norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        norm.load_state_dict({"weight": tensor("model.norm.weight")})
        tied = config.tie_word_embeddings
        head = tensor("model.embed_tokens.weight" if tied else "lm_head.weight")
        pieces = []
        for batch, state in zip(batches, states, strict=True):
            logits = functional.linear(norm(state)[:, :-1], head)
            chosen = logits.gather(2, batch[:, 1:, None])[..., 0]
            pieces.append(chosen - logits.logsumexp(2))
    return torch.cat(pieces).double().numpy()


if __name__ == "__main__":
    main()
