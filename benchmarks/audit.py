"""Speed and exactness of the audit, each against a rival or a floor in the same run.

    python benchmarks/audit.py [--quick] [--json FILE] [--model DIR --corpus FILE]

The same checkpoint and occurrences throughout: without --model, a small Llama that is trained here
on an invented clinic until it recites part of it. Rivals and floor:

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
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `sani` itself does

import numpy as np
import torch

from sani.auditing.audit import audit
from sani.auditing.occurrences import (
    Occurrences,
    document_windows,
    score_occurrences,
    text_row,
)
from sani.auditing.teacher_forcing import Asked, Row, score
from sani.corpus.documents import Corpus, Document
from sani.corpus.readers import read_corpus
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model, train_on_text
from sani.machine.device import default_device, quiet_libraries, token_batches
from sani.models import families
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.recipe import AuditSettings
from sani.text.tokens import encode, framing_named
from sani.values.decoys import DecoyMaker

SEED = 7
FRAMING = "bos"
BATCH = 32
PADDING_LINES = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--model", type=Path, help="a checkpoint that recites --corpus")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--limit", type=int, default=None, help="documents of --corpus")
    parser.add_argument("--memory", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(2)
    if arguments.memory:
        print(json.dumps(peak_memory(*arguments.memory)))
        return
    if arguments.model:
        checkpoint = load_checkpoint(arguments.model, device=default_device())
        corpus = read_corpus(arguments.corpus, limit=arguments.limit)
    else:
        checkpoint, corpus = reciting_model(documents=24 if arguments.quick else 60)
    repeats = 3 if arguments.quick else 5
    print(
        f"seed {SEED}, {torch.get_num_threads()} threads, {default_device()}; "
        f"{len(corpus)} documents, "
        f"{corpus.num_spans} occurrences"
    )
    found: dict[str, Any] = {"seed": SEED, "repeats": repeats}
    found |= against_generate(checkpoint, corpus, repeats)
    found |= against_forward(checkpoint, corpus, repeats)
    found |= with_decoys(checkpoint, corpus, repeats)
    found |= growth([100, 1000, 4000 if arguments.quick else 10_000])
    found |= memory()
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def reciting_model(*, documents: int) -> tuple[Checkpoint, Corpus]:
    """A Llama of 4 layers, width 256, that recites part of an invented clinic; that clinic."""
    public, private = invent_clinics([40, 40], seed=SEED)
    private = Corpus(private[:documents])
    with tempfile.TemporaryDirectory() as folder:
        model = new_model(
            [d.text for d in public],
            vocab_size=2000,
            layers=4,
            hidden=256,
            context=512,
            folder=Path(folder) / "tokenizer",
            seed=SEED,
        )
        texts = [d.text for d in private]
        train_on_text(model, texts, epochs=40, learning_rate=2e-3, batch_tokens=1024, seed=SEED)
        save_checkpoint(model, Path(folder) / "model")
        return load_checkpoint(Path(folder) / "model", device=default_device()), private


# --- exactly the same questions, asked three ways -------------------------------------------------


def ours(checkpoint: Checkpoint, corpus: Corpus, *, decoys: int = 0) -> Occurrences:
    """Tokenize, score, judge: what `sani audit` does once it knows the framing."""
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


def prompts(checkpoint: Checkpoint, corpus: Corpus) -> list[tuple[list[int], list[int]]]:
    """(all that stands before it in its window, its tokens) for every occurrence."""
    framing = framing_named(FRAMING, checkpoint.tokenizer)
    found = []
    for item in encode(corpus, checkpoint.tokenizer):
        cut = document_windows(checkpoint, item, framing)
        for first, last in item.spans:
            window = next(window for window in cut if last <= window.end)
            left = [*framing.prefix, *item.ids[window.start : first]]
            found.append((left, item.ids[first:last]))
    return found


def generate(
    checkpoint: Checkpoint, asked: Sequence[tuple[list[int], list[int]]], *, batch: int
) -> list[bool]:
    """Greedy generation from each prompt; whether the identifier comes out."""
    from transformers import GenerationConfig

    verdicts = [False] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(asked[i][0]) for i in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, i in enumerate(chosen):
            left = asked[i][0]
            ids[row, longest - len(left) :] = torch.tensor(left)
            mask[row, longest - len(left) :] = 1
        config = GenerationConfig(
            max_new_tokens=max(len(asked[i][1]) for i in chosen),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        place = checkpoint.model.device
        with torch.inference_mode():
            out = checkpoint.model.generate(
                input_ids=ids.to(place), attention_mask=mask.to(place), generation_config=config
            )
        for row, i in enumerate(chosen):
            tokens = asked[i][1]
            verdicts[i] = out[row, longest : longest + len(tokens)].tolist() == tokens
    return verdicts


def against_generate(checkpoint: Checkpoint, corpus: Corpus, repeats: int) -> dict[str, Any]:
    asked = prompts(checkpoint, corpus)
    verdicts: dict[str, Any] = {}

    def keep(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            verdicts[name] = run()

        return timed

    times = measure(
        {
            "ours": keep("ours", lambda: ours(checkpoint, corpus).greedy.tolist()),
            "batched": keep("batched", lambda: generate(checkpoint, asked, batch=BATCH)),
        },
        repeats,
    )
    times |= measure({"single": keep("single", lambda: generate(checkpoint, asked, batch=1))}, 1)
    differ = sum(
        len({verdicts[name][i] for name in ("ours", "single", "batched")}) > 1
        for i in range(len(asked))
    )
    recited = sum(verdicts["ours"])
    print(f"greedy verdicts: {recited} of {len(asked)} recited; {differ} differ between the three")
    for i in range(len(asked)):
        if len({verdicts[name][i] for name in verdicts}) > 1:
            print(f"  occurrence {i}: {[(n, v[i]) for n, v in verdicts.items()]}, "
                  f"margin {margin(checkpoint, *asked[i]):.2e} nats")  # fmt: skip
    return {
        "occurrences": len(asked),
        "recited": recited,
        "verdicts_differ": differ,
        "speedup_vs_generate_single": ratio(
            "generate, one at a time, over ours", times["single"], times["ours"]
        ),
        "speedup_vs_generate_batched": ratio(
            f"generate, {BATCH} at a time, over ours", times["batched"], times["ours"]
        ),
    }


@torch.inference_mode()
def margin(checkpoint: Checkpoint, left: list[int], tokens: list[int]) -> float:
    """How near to a tie: the smallest gap between the two likeliest tokens on the way, in nats."""
    ids = torch.tensor([[*left, *tokens[:-1]]], device=checkpoint.model.device)
    top = checkpoint.model(input_ids=ids).logits[0, len(left) - 1 :].topk(2, dim=1).values
    return float((top[:, 0] - top[:, 1]).min())


def against_forward(checkpoint: Checkpoint, corpus: Corpus, repeats: int) -> dict[str, Any]:
    """The audit without decoys against the body of the model alone, on the same batches."""
    framing = framing_named(FRAMING, checkpoint.tokenizer)
    rows = [
        text_row(item, window, framing).tokens
        for item in encode(corpus, checkpoint.tokenizer)
        for window in document_windows(checkpoint, item, framing)
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


def with_decoys(checkpoint: Checkpoint, corpus: Corpus, repeats: int) -> dict[str, Any]:
    """What 20 decoys cost: on notes of usual density, and on ours, which are all identifiers."""
    found = {}
    for name, model, documents in (
        ("ratio_decoys20", *usual_notes()),
        ("ratio_decoys20_dense", checkpoint, corpus),
    ):
        encoded = encode(documents, model.tokenizer)
        tokens, spans = sum(len(item.ids) for item in encoded), documents.num_spans
        print(
            f"decoys: {len(documents)} documents, an identifier every {tokens / spans:.0f} tokens"
        )
        times = measure(
            {
                "none": lambda m=model, d=documents: ours(m, d),
                "decoys": lambda m=model, d=documents: ours(m, d, decoys=20),
            },
            repeats,
        )
        found[name] = ratio("20 decoys over none", times["decoys"], times["none"])
    few = Corpus(corpus[:4])
    asked = naive_candidates(checkpoint, few, decoys=20)
    slow: list[float] = []
    fast: list[float] = []
    few_times = measure(
        {
            "slow": lambda: slow.extend(one_by_one(checkpoint, asked)),
            "fast": lambda: fast.extend(shared_prefix(checkpoint, asked)),
        },
        1,
    )
    error = float(np.abs(np.array(slow) - np.array(fast)).max())
    print(f"{len(slow)} decoys: largest difference to one-by-one scores {error:.1e} nats")
    return {
        **found,
        "speedup_decoys_vs_one_by_one": ratio(
            "decoys one by one over shared prefix", few_times["slow"], few_times["fast"]
        ),
        "max_decoy_error_nats": error,
    }


def usual_notes() -> tuple[Checkpoint, Corpus]:
    """Notes as dense with identifiers as real ones, and an untrained Llama of 20 million weights.

    MEDDOCAN and TAB mark one in 40 to 50 tokens, the invented notes one in 20: identifier-free
    lines of other notes are put behind each. What a pass costs does not depend on the weights.
    """
    notes = invent_documents(120)
    plain = [line for note in notes for line in plain_lines(note)]
    chance = random.Random(SEED)
    padded = [
        replace(note, text="\n".join([note.text, *chance.choices(plain, k=PADDING_LINES)]))
        for note in notes[:60]
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
    """The lines that no identifier touches."""
    found, start = [], 0
    for line in note.text.splitlines(keepends=True):
        end = start + len(line)
        if line.strip() and not any(s.start < end and s.end > start for s in note.spans):
            found.append(line.strip())
        start = end
    return found


def growth(sizes: Sequence[int]) -> dict[str, Any]:
    """Wall time of the whole audit over the number of documents, and its exponent."""
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
    """Short notes of an invented clinic, each of another patient."""
    (clinic,) = invent_clinics([number], seed=SEED)
    return list(clinic[:number])


def memory() -> dict[str, Any]:
    """Peak memory with a vocabulary of 150,000, for a corpus and for one eight times as long."""
    found = {}
    for documents in (40, 320):
        command = [sys.executable, __file__, "--memory", "150000", str(documents)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[documents] = json.loads(out)
        told = found[documents]
        print(
            f"vocabulary 150,000, {documents} documents, {told['tokens']} tokens: peak "
            f"{told['added_mb']:.0f} MB above the loaded model; all logits at once would take "
            f"{told['all_logits_mb']:.0f} MB"
        )
    return {"memory_150k": found}


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


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- decoys the slow way -------------------------------------------------------------------------


@dataclass
class Candidates:
    """A document as tokens, and what else could stand behind some of its places."""

    text: list[int]
    decoys: list[tuple[int, list[int]]]


def naive_candidates(checkpoint: Checkpoint, corpus: Corpus, *, decoys: int) -> list[Candidates]:
    """Every decoy's tokens, from the tokens of the document with the decoy in its place."""
    maker = DecoyMaker([corpus], seed=SEED)
    prefix = framing_named(FRAMING, checkpoint.tokenizer).prefix
    found = []
    for item in encode(corpus, checkpoint.tokenizer):
        document = corpus[item.document]
        candidates = Candidates([*prefix, *item.ids], [])
        for span, (first, last) in zip(document.spans, item.spans, strict=True):
            tail = document.text[span.end : item.ends[last - 1]]
            for value in maker.decoys(span.label, document.value(span), count=decoys):
                text = document.text[: span.start] + value + tail
                ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
                if ids[:first] == item.ids[:first]:
                    candidates.decoys.append((len(prefix) + first - 1, ids[first:]))
        found.append(candidates)
    return found


@torch.inference_mode()
def one_by_one(checkpoint: Checkpoint, asked: Sequence[Candidates]) -> list[float]:
    """log p of every decoy, from a plain forward pass for each."""
    found = []
    for candidates in asked:
        for place, tokens in candidates.decoys:
            ids = [*candidates.text[: place + 1], *tokens[:-1]]
            inputs = torch.tensor([ids], device=checkpoint.model.device)
            logits = checkpoint.model(input_ids=inputs).logits[0, place:].double()
            log_p = logits.log_softmax(dim=1)
            found.append(float(sum(log_p[row, token] for row, token in enumerate(tokens))))
    return found


def shared_prefix(checkpoint: Checkpoint, asked: Sequence[Candidates]) -> list[float]:
    """The same from one row a document, decoys as a tree behind the text."""
    rows, ends, slot = [], [], 0
    for candidates in asked:
        row = Row(candidates.text)
        for place, tokens in candidates.decoys:
            row.add_branch(place, tokens, range(slot, slot + len(tokens)))
            slot += len(tokens)
            ends.append(slot)
        rows.append(row)
    scores = score(
        checkpoint.model, rows, num_slots=slot, batch_tokens=2**14, asked=Asked()
    ).log_probability
    return [float(part.sum()) for part in np.split(scores, ends[:-1])]


# --- time ----------------------------------------------------------------------------------------


def measure(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, the jobs in turn, after one unmeasured round where there are several."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(repeats + (repeats > 1)):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if number or repeats == 1:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(name: str, over: Sequence[float], under: Sequence[float]) -> float:
    """Median over median, printed with the range of the times."""
    value = statistics.median(over) / statistics.median(under)
    print(f"{name}: {statistics.median(over):.3f} s ({min(over):.3f} to {max(over):.3f}) / "
          f"{statistics.median(under):.3f} s ({min(under):.3f} to {max(under):.3f}) = "
          f"{value:.2f}")  # fmt: skip
    return value


if __name__ == "__main__":
    main()
