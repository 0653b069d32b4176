"""Speed and exactness of the audit, each against a rival or a floor in the same run.

    python benchmarks/audit.py [--quick] [--json FILE] [--model DIR --corpus FILE]

The same checkpoint and occurrences throughout: without --model, a small Llama that is trained here
on an invented clinic until it recites part of it, and cached in --cache. Rivals and floor:

- generate, one prompt at a time, as MUSE, LLM-PBE and garak do: greedy, with a KV cache;
- generate, left-padded batches of prompts sorted by length, as OpenUnlearning does;
- the floor: the model's body alone, no vocabulary projection, on the very batches of the audit;
- decoys one by one: a forward pass for each decoy behind its own context.

Times are the median of repeats, rivals and ours in turn; the interval is their range. Not timed:
reading the corpus, loading the model. Ours includes tokenizing, batching and the verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `sani` itself does

import numpy as np
import torch
from options import parser_of, peak, write_json
from rivals import Candidates, generate, margin, naive_candidates, one_by_one, prompts

from sani.auditing.audit import audit
from sani.auditing.occurrences import Occurrences
from sani.auditing.rows import Row
from sani.auditing.scoring import score_occurrences
from sani.auditing.teacher_forcing import ScoreRequest, score
from sani.corpus.documents import Corpus, Document
from sani.corpus.readers import read_corpus
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model, train_on_text
from sani.machine.device import default_device, quiet_libraries
from sani.models import families
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.recipe import AuditSettings
from sani.text.batches import token_batches
from sani.text.framing import framing_named
from sani.text.packing import framed_windows
from sani.text.tokens import encode
from sani.values.decoys import DecoyMaker

SEED = 7
FRAMING = "bos"
BATCH = 32
PADDING_LINES = 14


@dataclass(frozen=True)
class Size:
    """Amount of work.

    Attributes:
        documents: Documents that the model recites.
        epochs: Epochs in which it learns them.
        repeats: Measurements of which the median counts.
        usual: Documents of usual density, for the cost of decoys.
        one_by_one: Documents whose decoys are scored one by one.
        growth: Sizes of corpora over which the cost of an audit grows.
        memory: Sizes of corpora of which the peak memory is measured.
        vocabulary: Tokens of the vocabulary when memory is measured.
    """

    documents: int
    epochs: int
    repeats: int
    usual: int
    one_by_one: int
    growth: tuple[int, ...]
    memory: tuple[int, int]
    vocabulary: int


SIZES = {
    "full": Size(60, 40, 5, 60, 4, (100, 1000, 10_000), (40, 320), 150_000),
    "quick": Size(24, 40, 3, 15, 4, (100, 300, 1000), (40, 320), 150_000),
    "tiny": Size(3, 2, 1, 2, 1, (4, 8), (4, 8), 5000),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, help="a checkpoint that recites --corpus")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--limit", type=int, default=None, help="documents of --corpus")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/benchmarks"), help="where the model made is kept"
    )
    parser.add_argument("--memory", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    quiet_libraries()
    torch.set_num_threads(2)
    if arguments.memory:
        print(json.dumps(peak_memory(*arguments.memory)))
        return
    size = SIZES[arguments.size]
    if arguments.model:
        checkpoint = load_checkpoint(arguments.model, device=default_device())
        corpus = read_corpus(arguments.corpus, limit=arguments.limit)
    else:
        checkpoint, corpus = reciting_model(size, arguments.cache)
    print(
        f"seed {SEED}, {torch.get_num_threads()} threads, {default_device()}; "
        f"{len(corpus)} documents, "
        f"{corpus.num_spans} occurrences"
    )
    figures: dict[str, Any] = {"seed": SEED, "repeats": size.repeats}
    figures |= against_generate(checkpoint, corpus, size.repeats)
    figures |= against_forward(checkpoint, corpus, size.repeats)
    figures |= with_decoys(checkpoint, corpus, size)
    figures |= growth(size.growth)
    figures |= memory(size.memory, size.vocabulary)
    write_json(figures, arguments.json)


def reciting_model(size: Size, cache: Path) -> tuple[Checkpoint, Corpus]:
    """Return a Llama of 4 layers, width 256, that recites part of an invented clinic; the clinic.

    The trained model is loaded from the cache if it is there.
    """
    public, private = invent_clinics([40, 40], seed=SEED)
    private = Corpus(private[: size.documents])
    folder = cache / f"audit-{size.documents}-{size.epochs}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as tokenizer:
            model = new_model(
                [document.text for document in public],
                vocab_size=2000,
                layers=4,
                hidden=256,
                context=512,
                folder=Path(tokenizer),
                seed=SEED,
            )
            texts = [document.text for document in private]
            train_on_text(
                model, texts, epochs=size.epochs, learning_rate=2e-3, batch_tokens=1024, seed=SEED
            )
            cache.mkdir(parents=True, exist_ok=True)
            save_checkpoint(model, folder)
    return load_checkpoint(folder, device=default_device()), private


# --- exactly the same questions, asked three ways -------------------------------------------------


def ours(checkpoint: Checkpoint, corpus: Corpus, *, decoys: int = 0) -> Occurrences:
    """Tokenize, score and judge, as `sani audit` does once it knows the framing."""
    settings = AuditSettings(decoys=decoys, swaps=0)
    maker = DecoyMaker([corpus], seed=SEED) if decoys else None
    return score_occurrences(
        checkpoint,
        corpus,
        encode(corpus, checkpoint.tokenizer),
        framing_named(FRAMING, checkpoint.tokenizer),
        settings,
        maker=maker,
    )


def against_generate(checkpoint: Checkpoint, corpus: Corpus, repeats: int) -> dict[str, Any]:
    pairs = prompts(checkpoint, corpus, FRAMING)
    verdicts: dict[str, Any] = {}

    def keep(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            verdicts[name] = run()

        return timed

    times = measure(
        {
            "ours": keep("ours", lambda: ours(checkpoint, corpus).greedy.tolist()),
            "batched": keep("batched", lambda: generate(checkpoint, pairs, batch=BATCH)),
        },
        repeats,
    )
    times |= measure({"single": keep("single", lambda: generate(checkpoint, pairs, batch=1))}, 1)
    differ = sum(
        len({verdicts[name][i] for name in ("ours", "single", "batched")}) > 1
        for i in range(len(pairs))
    )
    recited = sum(verdicts["ours"])
    print(f"greedy verdicts: {recited} of {len(pairs)} recited; {differ} differ between the three")
    for i in range(len(pairs)):
        if len({verdicts[name][i] for name in verdicts}) > 1:
            print(f"  occurrence {i}: {[(n, v[i]) for n, v in verdicts.items()]}, "
                  f"margin {margin(checkpoint, *pairs[i]):.2e} nats")  # fmt: skip
    return {
        "occurrences": len(pairs),
        "recited": recited,
        "verdicts_differ": differ,
        "speedup_vs_generate_single": ratio(
            "generate, one at a time, over ours", times["single"], times["ours"]
        ),
        "speedup_vs_generate_batched": ratio(
            f"generate, {BATCH} at a time, over ours", times["batched"], times["ours"]
        ),
    }


def against_forward(checkpoint: Checkpoint, corpus: Corpus, repeats: int) -> dict[str, Any]:
    """Time the audit without decoys against the model's body alone, on the same batches."""
    framing = framing_named(FRAMING, checkpoint.tokenizer)
    rows = [
        framed.tokens(item)
        for item in encode(corpus, checkpoint.tokenizer)
        for framed in framed_windows(item, framing, context_tokens=checkpoint.context_tokens)
    ]
    batches = []
    for batch in token_batches([len(r) for r in rows], budget=AuditSettings().batch_tokens):
        ids = torch.zeros(len(batch), max(len(rows[i]) for i in batch), dtype=torch.long)
        for number, i in enumerate(batch):
            ids[number, : len(rows[i])] = torch.tensor(rows[i])
        batches.append(ids.to(checkpoint.model.device))

    @torch.inference_mode()
    def floor() -> None:
        for ids in batches:
            families.hidden_states(checkpoint.model, input_ids=ids, attention_mask=None)

    times = measure({"floor": floor, "ours": lambda: ours(checkpoint, corpus)}, repeats)
    tokens = sum(map(len, rows))
    seconds = statistics.median(times["ours"])
    print(f"audit without decoys: {tokens} tokens, {tokens / seconds:,.0f} tokens a second")
    return {
        "ratio_to_forward": ratio("audit over bare forward", times["ours"], times["floor"]),
        "tokens_per_second": tokens / seconds,
    }


def with_decoys(checkpoint: Checkpoint, corpus: Corpus, size: Size) -> dict[str, Any]:
    """Time 20 decoys: on notes of usual density, and on ours, which are all identifiers."""
    ratios = {}
    for name, model, documents in (
        ("ratio_decoys20", *usual_notes(size.usual)),
        ("ratio_decoys20_dense", checkpoint, corpus),
    ):
        encoded = encode(documents, model.tokenizer)
        tokens, spans = sum(len(item.ids) for item in encoded), documents.num_spans
        print(
            f"decoys: {len(documents)} documents, an identifier every {tokens / spans:.0f} tokens"
        )
        times = measure(
            {
                "none": partial(ours, model, documents),
                "decoys": partial(ours, model, documents, decoys=20),
            },
            size.repeats,
        )
        ratios[name] = ratio("20 decoys over none", times["decoys"], times["none"])
    few = Corpus(corpus[: size.one_by_one])
    candidates = naive_candidates(checkpoint, few, FRAMING, decoys=20, seed=SEED)
    slow: list[float] = []
    fast: list[float] = []
    few_times = measure(
        {
            "slow": lambda: slow.extend(one_by_one(checkpoint, candidates)),
            "fast": lambda: fast.extend(shared_prefix(checkpoint, candidates)),
        },
        1,
    )
    error = float(np.abs(np.array(slow) - np.array(fast)).max())
    print(f"{len(slow)} decoys: largest difference to one-by-one scores {error:.1e} nats")
    return {
        **ratios,
        "speedup_decoys_vs_one_by_one": ratio(
            "decoys one by one over shared prefix", few_times["slow"], few_times["fast"]
        ),
        "max_decoy_error_nats": error,
    }


def usual_notes(number: int) -> tuple[Checkpoint, Corpus]:
    """Return an untrained Llama of 20 million weights, and notes as dense as real ones.

    MEDDOCAN and TAB mark one in 40 to 50 tokens, the invented notes one in 20: identifier-free
    lines of other notes are put behind each. What a pass costs does not depend on the weights.
    """
    notes = invent_documents(2 * number)
    plain = [line for note in notes for line in plain_lines(note)]
    chance = random.Random(SEED)
    padded = [
        replace(note, text="\n".join([note.text, *chance.choices(plain, k=PADDING_LINES)]))
        for note in notes[:number]
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = new_model(
            [note.text for note in notes],
            vocab_size=4096,
            layers=6,
            hidden=512,
            context=1024,
            folder=Path(folder),
            seed=SEED,
        )
    return model, Corpus(padded)


def plain_lines(note: Document) -> list[str]:
    """Return the lines that no identifier touches."""
    lines, start = [], 0
    for line in note.text.splitlines(keepends=True):
        end = start + len(line)
        if line.strip() and not any(s.start < end and s.end > start for s in note.spans):
            lines.append(line.strip())
        start = end
    return lines


def growth(sizes: Sequence[int]) -> dict[str, Any]:
    """Time the whole audit over the number of documents, and fit an exponent."""
    documents = invent_documents(max(sizes))
    with tempfile.TemporaryDirectory() as folder:
        model = new_model(
            [d.text for d in documents[:100]],
            vocab_size=800,
            layers=1,
            hidden=32,
            context=256,
            folder=Path(folder),
            seed=SEED,
        )
        settings = AuditSettings(decoys=1, swaps=1)
        seconds = []
        for size in sizes:
            started = time.perf_counter()
            audit(model, Corpus(documents[:size]), settings, seed=SEED)
            seconds.append(time.perf_counter() - started)
            print(f"{size:6d} documents: {seconds[-1]:7.2f} s")
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    last = float(np.log(seconds[-1] / seconds[-2]) / np.log(sizes[-1] / sizes[-2]))
    print(f"cost grows with the corpus to the power {exponent:.2f} ({last:.2f} at the upper end)")
    return {
        "cost_exponent": exponent,
        "cost_exponent_upper": last,
        "seconds_by_documents": dict(zip(sizes, seconds, strict=True)),
    }


def invent_documents(number: int) -> list[Document]:
    """Return short notes of an invented clinic, each of another patient."""
    (clinic,) = invent_clinics([number], seed=SEED)
    return list(clinic[:number])


def memory(sizes: tuple[int, int], vocabulary: int) -> dict[str, Any]:
    """Measure peak memory with a large vocabulary, for two sizes of corpora."""
    peaks = {}
    for documents in sizes:
        command = [sys.executable, __file__, "--memory", str(vocabulary), str(documents)]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        peaks[documents] = figures = json.loads(out)
        print(
            f"vocabulary {vocabulary:,}, {documents} documents, {figures['tokens']} tokens: peak "
            f"{figures['added_mb']:.0f} MB above the loaded model; all logits at once would take "
            f"{figures['all_logits_mb']:.0f} MB"
        )
    return {"memory_150k": peaks}


def peak_memory(vocab_size: int, documents: int) -> dict[str, float]:
    from transformers import AutoModelForCausalLM, LlamaConfig

    corpus = Corpus(invent_documents(documents))
    with tempfile.TemporaryDirectory() as folder:
        small = new_model(
            [d.text for d in corpus[:20]],
            vocab_size=800,
            layers=1,
            hidden=32,
            context=256,
            folder=Path(folder),
            seed=SEED,
        )
    config = LlamaConfig.from_dict(small.model.config.to_dict() | {"vocab_size": vocab_size})
    wide = Checkpoint(AutoModelForCausalLM.from_config(config).eval(), small.tokenizer, small.path)
    ours(wide, Corpus(corpus[:1]))  # what libraries take for themselves
    before = peak()
    ours(wide, corpus)
    tokens = sum(len(item.ids) for item in encode(corpus, wide.tokenizer))
    return {
        "tokens": tokens,
        "added_mb": peak() - before,
        "all_logits_mb": tokens * vocab_size * 4 / 2**20,
    }


# --- decoys of one pass ----


def shared_prefix(checkpoint: Checkpoint, documents: Sequence[Candidates]) -> list[float]:
    """Return log p of every decoy from one row a document, decoys as a tree behind the text."""
    rows, ends, slot = [], [], 0
    for candidates in documents:
        row = Row(candidates.text)
        for position, tokens in candidates.decoys:
            row.add_branch(position, tokens, range(slot, slot + len(tokens)))
            slot += len(tokens)
            ends.append(slot)
        rows.append(row)
    scores = score(
        checkpoint.model, rows, num_slots=slot, batch_tokens=2**14, request=ScoreRequest()
    ).log_probability
    return [float(part.sum()) for part in np.split(scores, ends[:-1])]


# --- time ----------------------------------------------------------------------------------------


def measure(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time each job, the jobs in turn, after one unmeasured round where there are several."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(repeats + (repeats > 1)):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if number or repeats == 1:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(name: str, over: Sequence[float], under: Sequence[float]) -> float:
    """Return median over median, and print it with the range of the times."""
    value = statistics.median(over) / statistics.median(under)
    print(f"{name}: {statistics.median(over):.3f} s ({min(over):.3f} to {max(over):.3f}) / "
          f"{statistics.median(under):.3f} s ({min(under):.3f} to {max(under):.3f}) = "
          f"{value:.2f}")  # fmt: skip
    return value


if __name__ == "__main__":
    main()
