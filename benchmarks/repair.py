"""What the repair costs and gives, against plain `Trainer` and against retraining from the base.

    python benchmarks/models.py meddocan        # first: the base and the leaky model
    python benchmarks/repair.py [--quick] [--json FILE]

speed    an epoch with the last third of the layers trained, against full fine-tuning by plain
         `Trainer` (padding, one loss over all positions) on the same tokens; peak memory beside it
oracle   the greatest difference between the repair's loss, with every trick on, and the loss of
         each window read alone with all layers and the whole projection
outcome  audits, erase and repair as in recipes/meddocan.yaml; what they all cost against retraining
         from the base for as long as the fine-tuning took

Each measurement of speed is a process of its own, with one thread. Its seconds are those that the
process had the processor, so that other jobs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from sani.auditing.audit import AuditResult, audit
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.erasing.erase import erase
from sani.machine.device import make_deterministic, quiet_libraries
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.neurons import Layout
from sani.pipeline.run import GATE_AUDIT_OVERRIDES
from sani.recipe import (
    AllSelector,
    EraseSettings,
    MaskObjective,
    RepairSettings,
    load_recipe,
)
from sani.repairing.dataset import Examples, Teachers
from sani.repairing.frozen_layers import hidden_states
from sani.repairing.objective import Objective
from sani.repairing.repair import frozen_part, repair
from sani.text.batches import Batch, make_batches
from sani.text.tokens import encode, framing_named

FINE_TUNING_EPOCHS = 42  # of benchmarks/models.py
EPOCHS = 6  # of recipes/meddocan.yaml; what is computed once is spread over them
LAST_THIRD = RepairSettings(
    identifier_loss=MaskObjective(kind="mask"), last_layers=2, epochs=2, learning_rate=1e-4
)
RECIPE = Path("recipes/meddocan.yaml")


def windows_of(checkpoint: Checkpoint, corpus: Corpus) -> list[Batch]:
    """Every window of every document, one a batch."""
    return make_batches(
        encode(corpus, checkpoint.tokenizer),
        framing_named("bos", checkpoint.tokenizer),
        context_tokens=checkpoint.context_tokens,
        batch_tokens=1,
    )


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.process_time())


def plain(checkpoint: Checkpoint, corpus: Corpus, folder: str) -> tuple[list[float], int]:
    """Full fine-tuning as `Trainer` does it, two epochs; when its steps ended, and their number."""
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
    """The repair with the last third trained, likewise."""
    ends: list[float] = []
    result = repair(
        checkpoint, corpus, LAST_THIRD, framing="bos",
        on_step=lambda done, steps: ends.append(time.process_time()),
    )  # fmt: skip
    if result.activation_cache == "none":
        raise SystemExit("the states of the untrained layers were not kept")
    return ends, len(ends) // 2


def child(kind: str, folder: Path, limit: int | None) -> None:
    """One measurement, as a line of JSON."""
    checkpoint = load_checkpoint(folder / "leaky")
    corpus = read_corpus(folder / "private.jsonl", limit=limit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    ends, steps = (plain if kind == "plain" else ours)(checkpoint, corpus, str(folder))
    epoch = ends[-1] - ends[steps - 1]
    setup = max(0.0, ends[steps - 1] - begin - epoch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"epoch": epoch, "setup": setup, "memory": (peak - before) / 1024}))


def speed(folder: Path, *, repeats: int, limit: int | None) -> dict[str, float]:
    """Seconds of an epoch and MiB, ours and plain, in turns."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for kind, results in found.items():
            command = [sys.executable, __file__, "--child", kind, "--models", str(folder)]
            if limit is not None:
                command += ["--limit", str(limit)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    figures = {
        f"{kind}_{name}": median(result[name] for result in results)
        for kind, results in found.items()
        for name in ("epoch", "setup", "memory")
    }
    cost = figures["ours_epoch"] + figures["ours_setup"] / EPOCHS
    return {
        **figures,
        "speedup_vs_trainer": figures["plain_epoch"] / cost,
        "peak_memory_ratio": figures["ours_memory"] / figures["plain_memory"],
    }


def loss_difference(folder: Path, *, limit: int) -> float:
    """The repair's loss with every trick on, less that of each window read alone."""
    checkpoint = load_checkpoint(folder / "leaky")
    erase(
        checkpoint, EraseSettings(last_layers=1, selector=AllSelector(kind="all"), reset="reinit")
    )
    corpus = read_corpus(folder / "private.jsonl", limit=limit)
    model = checkpoint.model
    settings = LAST_THIRD.model_copy(update={"pack": True, "activation_cache": "memory"})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    frozen = frozen_part(model, Layout(model.config, shapes), last_layers=2)
    examples = Examples(
        checkpoint, corpus, settings, framing_named("bos", checkpoint.tokenizer),
        teachers=Teachers(), frozen=frozen, folder=folder, seed=0,
    )  # fmt: skip
    objective, total, tokens = Objective(settings), 0.0, 0
    for number in range(len(examples)):
        (example,) = examples.read(number, epoch=0)
        counts = objective.counts(example.batch)
        with torch.no_grad(), frozen.skipped(example.frozen):
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


def outcome(folder: Path, *, epochs: int) -> dict[str, float]:
    """Erase and repair as the recipe says, and what is left, against the base and retraining."""
    recipe = load_recipe(RECIPE)
    corpus = read_corpus(folder / "private.jsonl")
    held_out = read_corpus(folder / "held_out.jsonl")
    base, checkpoint = load_checkpoint(folder / "base"), load_checkpoint(folder / "leaky")
    begin = time.process_time()

    def measured(model: Checkpoint) -> AuditResult:
        return audit(model, corpus, recipe.audit, held_out=held_out)

    before, control = measured(checkpoint), measured(base)
    erase(checkpoint, recipe.erase, corpus=corpus)
    less = recipe.audit.model_copy(update={**GATE_AUDIT_OVERRIDES, "framing": before.framing})
    audit(checkpoint, corpus, less, held_out=held_out)  # as a run does
    audited = time.process_time()
    repair(checkpoint, corpus, recipe.repair, base=base, framing="bos")
    repairing = time.process_time() - audited
    after = measured(checkpoint)
    cost = time.process_time() - begin
    begin = time.process_time()
    retrained = load_checkpoint(folder / "base")
    again = recipe.repair.model_copy(
        update={"epochs": epochs, "identifier_loss": MaskObjective(kind="mask")}
    )
    repair(retrained, corpus, again, framing="bos")
    retraining = (time.process_time() - begin) / epochs * FINE_TUNING_EPOCHS
    left, never = after.figures["direct"], control.figures["direct"]
    return {
        "run": cost,
        "repair": repairing,
        "retraining": retraining,
        "run_over_retrain": cost / retraining,
        "extraction_excess": max(
            left.greedy.value - never.greedy.value,
            left.discoverable.value - never.discoverable.value,
        ),
        "auc": left.auc.value,
        "auc_control": never.auc.value,
        "perplexity_ratio_to_leaky": after.utility.perplexity / before.utility.perplexity,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer documents and repeats")
    parser.add_argument("--models", type=Path, default=Path("runs/meddocan"))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    make_deterministic()
    if arguments.child:
        child(arguments.child, arguments.models, arguments.limit)
        return
    found = speed(
        arguments.models, repeats=1 if arguments.quick else 3, limit=30 if arguments.quick else None
    )
    found["max_loss_difference"] = loss_difference(arguments.models, limit=10)
    found |= outcome(arguments.models, epochs=1 if arguments.quick else 2)
    for name, value in found.items():
        print(f"{name:28} {value:.6g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
