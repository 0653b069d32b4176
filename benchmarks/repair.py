"""What the repair costs and gives, against plain `Trainer` and against retraining from the base.

    python benchmarks/repair.py --quick [--json FILE]
    python benchmarks/models.py meddocan        # without --quick, first: the base, the leaky model
    python benchmarks/repair.py [--json FILE]

speed    an epoch with the last third of the layers trained, against full fine-tuning by plain
         `Trainer` (padding, one loss over all positions) on the same tokens; peak memory beside it
oracle   the greatest difference between the repair's loss, with every trick on, and the loss of
         each window read alone with all layers and the whole projection
outcome  audits, erase and repair as in recipes/meddocan.yaml (with --quick, as in the recipe of
         `sani demo`); what they all cost against retraining from the base for as long as the
         fine-tuning took

Each measurement of speed is a process of its own, with one thread. Its seconds are those that the
process had the processor, so that other jobs on the machine do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from models import models_for
from options import parser_of, peak, write_json
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from sani.auditing.audit import AuditResult, audit
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.demo.demo import LEAKY_EPOCHS
from sani.erasing.erase import erase
from sani.machine.device import make_deterministic, quiet_libraries
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.neurons import Layout
from sani.pipeline.stages import GATE_AUDIT_OVERRIDES
from sani.recipe import (
    AllSelector,
    EraseSettings,
    MaskObjective,
    RepairSettings,
    load_recipe,
)
from sani.repairing.dataset import make_examples
from sani.repairing.example_source import ExampleSource
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.objective import Objective
from sani.repairing.repair import repair
from sani.repairing.teacher_states import Teachers
from sani.repairing.trainable import frozen_layers
from sani.text.batches import Batch, make_batches
from sani.text.framing import framing_named
from sani.text.tokens import encode

RECIPE = Path("recipes/meddocan.yaml")
FINE_TUNING_EPOCHS = 42  # of benchmarks/models.py
EPOCHS = 6  # of recipes/meddocan.yaml; what is computed once is spread over them
MASK = MaskObjective(kind="mask")


@dataclass(frozen=True)
class Size:
    """Amount of work.

    Attributes:
        repeats: Measurements of speed, of which the median counts.
        documents: Documents of the measurements of speed; None is all.
        oracle_documents: Documents of the comparison of losses.
        retraining_epochs: Epochs from which the cost of retraining is extrapolated.
        repair_epochs: Epochs of the repair; None is the recipe's.
    """

    repeats: int
    documents: int | None
    oracle_documents: int
    retraining_epochs: int
    repair_epochs: int | None = None


SIZES = {
    "full": Size(3, None, 10, 2),
    "quick": Size(1, 60, 10, 1),
    "tiny": Size(1, 4, 2, 1, repair_epochs=1),
}


def last_third(checkpoint: Checkpoint) -> RepairSettings:
    """Return the settings of a repair that trains the last third of the layers."""
    layers = checkpoint.model.config.num_hidden_layers
    return RepairSettings(
        identifier_loss=MASK, last_layers=max(1, layers // 3), epochs=2, learning_rate=1e-4
    )


def windows_of(checkpoint: Checkpoint, corpus: Corpus) -> list[Batch]:
    """Return every window of every document, one a batch."""
    return make_batches(
        encode(corpus, checkpoint.tokenizer),
        framing_named("bos", checkpoint.tokenizer),
        context_tokens=checkpoint.context_tokens,
        batch_tokens=1,
    )


class Clock(TrainerCallback):
    """Times at which the steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.process_time())


def plain(checkpoint: Checkpoint, corpus: Corpus, folder: str) -> tuple[list[float], int]:
    """Fine-tune fully with `Trainer`, two epochs; return the ends of the steps, and how many."""
    items = []
    for batch in windows_of(checkpoint, corpus):
        labels = batch.ids[0].clone()
        labels[1:][~batch.ordinary[0, :-1]] = -100
        items.append({"input_ids": batch.ids[0], "labels": labels})

    def collate(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        def padded(name: str, value: int) -> Any:
            rows = [item[name] for item in chosen]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

        labels = padded("labels", -100)
        lengths = torch.tensor([len(item["input_ids"]) for item in chosen])
        seen = torch.arange(labels.shape[1])[None] < lengths[:, None]
        return {
            "input_ids": padded("input_ids", 0), "labels": labels, "attention_mask": seen.long(),
        }  # fmt: skip

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-4,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=1000,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        checkpoint.model, arguments, data_collator=collate, train_dataset=items, callbacks=[clock]
    )
    trainer.train()
    return clock.ends, len(clock.ends) // 2


def ours(checkpoint: Checkpoint, corpus: Corpus, folder: str) -> tuple[list[float], int]:
    """Repair with the last third trained, likewise."""
    ends: list[float] = []
    result = repair(
        checkpoint, corpus, last_third(checkpoint), framing="bos",
        on_step=lambda done, steps: ends.append(time.process_time()),
    )  # fmt: skip
    if result.activation_cache == "none":
        raise SystemExit("the states of the untrained layers were not cached: free some memory")
    return ends, len(ends) // 2


def child(kind: str, folder: Path, limit: int | None) -> None:
    """Measure once, and print a line of JSON."""
    checkpoint = load_checkpoint(folder / "leaky")
    corpus = read_corpus(folder / "private.jsonl", limit=limit)
    before = reset_peak()
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        ends, steps = (plain if kind == "plain" else ours)(checkpoint, corpus, scratch)
    epoch = ends[-1] - ends[steps - 1]
    setup = max(0.0, ends[steps - 1] - begin - epoch)
    memory = peak() - before
    print(json.dumps({"epoch": epoch, "setup": setup, "memory": memory}))


def reset_peak() -> float:
    """Forget the peak memory so far, where the system can; return the peak from here on, in MiB.

    Without it, what loading took may hide what the training of a small model takes.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc
    return peak()


def speed(folder: Path, *, repeats: int, limit: int | None) -> dict[str, float]:
    """Measure seconds of an epoch and MiB, ours and plain, in turns."""
    measured: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for kind, results in measured.items():
            command = [sys.executable, __file__, "--child", kind, "--models", str(folder)]
            if limit is not None:
                command += ["--limit", str(limit)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    figures = {
        f"{kind}_{name}": median(result[name] for result in results)
        for kind, results in measured.items()
        for name in ("epoch", "setup", "memory")
    }
    cost = figures["ours_epoch"] + figures["ours_setup"] / EPOCHS
    return {
        **figures,
        "speedup_vs_trainer": figures["plain_epoch"] / cost,
        "peak_memory_ratio": figures["ours_memory"] / figures["plain_memory"],
    }


def loss_difference(folder: Path, *, limit: int) -> float:
    """Return the repair's loss with every trick on, less that of each window read alone."""
    checkpoint = load_checkpoint(folder / "leaky")
    erase(
        checkpoint,
        None,
        EraseSettings(last_layers=1, selector=AllSelector(kind="all"), reset="reinit"),
    )
    corpus = read_corpus(folder / "private.jsonl", limit=limit)
    model = checkpoint.model
    settings = last_third(checkpoint).model_copy(
        update={"pack": True, "activation_cache": "memory"}
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    frozen = frozen_layers(
        model, Layout(model.config, shapes), last_layers=settings.last_layers or 1
    )
    examples = make_examples(
        ExampleSource(
            checkpoint, corpus, settings, framing_named("bos", checkpoint.tokenizer), Teachers(), 0
        ),
        frozen=frozen, folder=folder,
    )  # fmt: skip
    objective, total, tokens = Objective(settings), 0.0, 0
    for number in range(len(examples)):
        (example,) = examples.read(number, epoch=0)
        counts = objective.counts(example.batch)
        with torch.no_grad(), frozen.skipped(example.frozen_hidden):
            hidden = hidden_states(model, example.batch)
        _, terms = objective.loss(model, hidden, example, counts)
        total += terms["ordinary"] * counts["ordinary"]
        tokens += counts["ordinary"]
    slow = 0.0
    for batch in windows_of(checkpoint, corpus):
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits
        one_by_one = functional.cross_entropy(
            logits.flatten(0, 1).double(), batch.targets.flatten(), reduction="none"
        )
        slow += float(one_by_one[batch.ordinary.flatten()].sum())
    return abs(total - slow) / tokens


def outcome(folder: Path, size: Size) -> dict[str, float]:
    """Erase and repair as the recipe says; return cost and figures, with base and retraining."""
    demo = (folder / "recipe.yaml").is_file()  # the models of `sani demo`, with its recipe
    recipe = load_recipe(folder / "recipe.yaml" if demo else RECIPE)
    fine_tuning_epochs = LEAKY_EPOCHS if demo else FINE_TUNING_EPOCHS
    if recipe.erase is None or recipe.repair is None:
        raise SystemExit(f"the recipe of {folder} has no erase or no repair")
    settings = recipe.repair
    if size.repair_epochs:
        settings = settings.model_copy(update={"epochs": size.repair_epochs})
    corpus = read_corpus(folder / "private.jsonl")
    held_out = read_corpus(folder / "held_out.jsonl")
    base, checkpoint = load_checkpoint(folder / "base"), load_checkpoint(folder / "leaky")
    begin = time.process_time()

    def measured(model: Checkpoint) -> AuditResult:
        return audit(model, corpus, recipe.audit, held_out=held_out)

    before, control = measured(checkpoint), measured(base)
    erase(checkpoint, corpus, recipe.erase, base=base)
    less = recipe.audit.model_copy(update={**GATE_AUDIT_OVERRIDES, "framing": before.framing})
    audit(checkpoint, corpus, less, held_out=held_out)  # as a run does
    audited = time.process_time()
    repair(checkpoint, corpus, settings, base=base, framing="bos")
    repairing = time.process_time() - audited
    after = measured(checkpoint)
    cost = time.process_time() - begin
    begin = time.process_time()
    retrained = load_checkpoint(folder / "base")
    epochs = size.retraining_epochs
    again = settings.model_copy(update={"epochs": epochs, "identifier_loss": MASK})
    repair(retrained, corpus, again, framing="bos")
    retraining = (time.process_time() - begin) / epochs * fine_tuning_epochs
    if after.utility is None or before.utility is None:
        raise SystemExit(f"{folder}: there are no held-out documents")
    remaining, never = after.figures["direct"], control.figures["direct"]
    return {
        "run": cost,
        "repair": repairing,
        "retraining": retraining,
        "run_over_retrain": cost / retraining,
        "extraction_excess": max(
            known(remaining.greedy.value) - known(never.greedy.value),
            known(remaining.discoverable.value) - known(never.discoverable.value),
        ),
        "auc": known(remaining.auc.value),
        "auc_control": known(never.auc.value),
        "perplexity_ratio_to_leaky": after.utility.perplexity / before.utility.perplexity,
    }


def known(figure: float | None) -> float:
    """Return a figure that a corpus with direct identifiers gives."""
    if figure is None:
        raise SystemExit("the audit gave no figure: the corpus has no direct identifiers")
    return figure


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, models=True)
    parser.add_argument("--child", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    quiet_libraries()
    make_deterministic()
    if arguments.child:
        torch.set_num_threads(1)
        child(arguments.child, arguments.models, arguments.limit)
        return
    size, models = SIZES[arguments.size], models_for(arguments.size, arguments.models)
    torch.set_num_threads(1)
    figures = speed(models, repeats=size.repeats, limit=size.documents)
    figures["max_loss_difference"] = loss_difference(models, limit=size.oracle_documents)
    figures |= outcome(models, size)
    for name, value in figures.items():
        print(f"{name:28} {value:.6g}")
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
