"""Count false alarms of the gate's tests, and how often one person who was read is caught.

    python benchmarks/gate.py [--quick] [--json FILE] [--models FOLDER]

Never saw: the base, trained on the records with every identifier masked from the loss; such a model
must pass. One subject: the base, trained on the documents of one subject as they are, once, five
and twenty times; such a model must be caught. Every model is audited as a run does it, and judged
by the default limits but for perplexity. Base and notes are invented here; with --models they are
those of a folder that benchmarks/models.py made.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from options import parser_of, write_json

from sani.auditing.audit import AuditResult, audit
from sani.auditing.control_tests import ControlTests, control_tests_by_kind
from sani.auditing.record import record_of, verdicts_of
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model, train_on_text
from sani.gate.memory import check_memory
from sani.intervals import Rate, rate
from sani.machine.device import quiet_libraries
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.recipe import AuditSettings, GateSettings, MaskObjective, RepairSettings
from sani.repairing.repair import repair

SETTINGS = AuditSettings(membership_documents=0, swaps=0)
EPOCHS = (1, 5, 20)  # over the documents of one subject


@dataclass(frozen=True)
class Size:
    """Number of subjects in the public, private and held-out notes, and of models of each sort."""

    subjects: tuple[int, int, int]
    base_epochs: int
    never_saw: int
    one_subject: int


@dataclass(frozen=True)
class Training:
    """The training of a model from the base, masked or as the text is."""

    masked_epochs: int
    learning_rate: float
    batch_tokens: int


@dataclass(frozen=True)
class Material:
    """A base, the records that it never saw, and people who stand in no record."""

    base: Checkpoint
    private: Corpus
    held_out: Corpus
    training: Training


SIZES = {
    "full": Size((40, 40, 20), 8, 20, 5),
    "quick": Size((30, 30, 12), 6, 4, 2),
    "tiny": Size((4, 4, 3), 1, 1, 1),
}


@dataclass(frozen=True)
class Judged:
    """One model: the checks that do not hold, and its figures."""

    failed: list[str]
    subjects_above: int
    largest: float | None
    largest_allowed: float | None
    auc_to_base: float | None
    greedy_beyond: int
    held_out_auc: float | None


def invented(size: Size, folder: Path) -> Material:
    """Invent notes, and train a base on the public ones."""
    public, private, held_out = invent_clinics(list(size.subjects), seed=11)
    texts = [document.text for document in public]
    base = new_model(texts, vocab_size=700, layers=3, hidden=64, context=512, folder=folder, seed=0)
    training = Training(masked_epochs=4, learning_rate=5e-3, batch_tokens=768)
    _train(base, texts, training, epochs=size.base_epochs, seed=0)
    return Material(base, private, held_out, training)


def read_material(folder: Path) -> Material:
    """Read the base and the notes that benchmarks/models.py wrote into a folder."""
    return Material(
        load_checkpoint(folder / "base"),
        read_corpus(folder / "private.jsonl"),
        read_corpus(folder / "held_out.jsonl"),
        Training(masked_epochs=6, learning_rate=4e-3, batch_tokens=2048),
    )


class Laboratory:
    """Notes, a base, and its audit; every other model is compared with it."""

    def __init__(self, material: Material) -> None:
        self.base, self.training = material.base, material.training
        self.private, self.held_out = material.private, material.held_out
        self.control = self._audited(self.base)

    def _audited(self, checkpoint: Checkpoint) -> AuditResult:
        # A run reads every model behind the framing that was worst for the unsanitized one, too.
        return audit(
            checkpoint, self.private, SETTINGS,
            held_out=self.held_out, control_framing="bos", seed=0,
        )  # fmt: skip

    def _copy(self) -> Checkpoint:
        return replace(self.base, model=copy.deepcopy(self.base.model))

    def never_saw(self, seed: int) -> Judged:
        """Judge a model that read the records with every identifier masked."""
        model = self._copy()
        settings = RepairSettings(
            identifier_loss=MaskObjective(kind="mask"),
            epochs=self.training.masked_epochs,
            learning_rate=self.training.learning_rate,
            batch_tokens=self.training.batch_tokens,
        )
        repair(model, self.private, settings, framing="bos", seed=seed)
        return self._judged(model)

    def one_subject(self, number: int, epochs: int) -> Judged:
        """Judge a model that read the documents of one subject so many times."""
        names = sorted({document.subject_id for document in self.private})
        name = names[(7 * number) % len(names)]
        model = self._copy()
        texts = [document.text for document in self.private if document.subject_id == name]
        _train(model, texts, self.training, epochs=epochs, seed=number)
        return self._judged(model)

    def _judged(self, model: Checkpoint) -> Judged:
        result = self._audited(model)
        tests = self._tests(self.private, result)
        record = replace(record_of(result), control_tests={"direct": tests})
        checks = check_memory("direct", GateSettings(), record)
        return Judged(
            failed=[check.name for check in checks if not check.holds],
            subjects_above=tests.subjects.above,
            largest=tests.subjects.largest,
            largest_allowed=tests.subjects.limit,
            auc_to_base=tests.auc_to_base.value,
            greedy_beyond=tests.greedy.count,
            held_out_auc=tests.held_out_auc.value if tests.held_out_auc else None,
        )

    def _tests(self, corpus: Corpus, result: AuditResult) -> ControlTests:
        by_kind = control_tests_by_kind(
            corpus,
            verdicts_of(result),
            verdicts_of(self.control),
            held_out=self.held_out,
            seed=0,
        )
        return by_kind["direct"][0]


def _train(
    model: Checkpoint, texts: list[str], training: Training, *, epochs: int, seed: int
) -> None:
    train_on_text(
        model,
        texts,
        epochs=epochs,
        learning_rate=training.learning_rate,
        batch_tokens=training.batch_tokens,
        seed=seed,
    )


def measure(size: Size, models: Path | None, folder: Path) -> dict[str, Any]:
    """Make, audit and judge every model.

    Args:
        size: Number of models, and size of the invented notes.
        models: Folder of the base and the notes; they are invented if None.
        folder: Where an invented base's tokenizer is kept.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    began = time.monotonic()
    laboratory = Laboratory(read_material(models) if models else invented(size, folder))
    clean = list(_shown("never saw", (laboratory.never_saw(s) for s in range(size.never_saw))))
    read = {
        epochs: list(
            _shown(
                f"one subject, {epochs} times",
                (laboratory.one_subject(number, epochs) for number in range(size.one_subject)),
            )
        )
        for epochs in EPOCHS
    }
    return {
        "never_saw": _summary(clean, passed=True),
        "one_subject": {str(epochs): _summary(each, passed=False) for epochs, each in read.items()},
        "seconds": time.monotonic() - began,
    }


def _shown(name: str, models: Iterator[Judged]) -> Iterator[Judged]:
    for number, judged in enumerate(models):
        print(
            f"{name} {number}: {', '.join(judged.failed) or 'passes'}; AUC to base "
            f"{judged.auc_to_base:.3f}, largest subject {judged.largest:.2f} (at most "
            f"{judged.largest_allowed:.2f}), {judged.greedy_beyond} greedy beyond the base",
            flush=True,
        )
        yield judged


def _summary(models: list[Judged], *, passed: bool) -> dict[str, Any]:
    """Count the models that pass, or those that are caught, with the 95 % interval."""
    number: Rate = rate(sum(passed == (not each.failed) for each in models), len(models))
    return {
        ("passed" if passed else "caught"): asdict(number),
        "models": [asdict(each) for each in models],
    }


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", type=Path, help="folder of the base and notes")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(SIZES[arguments.size], arguments.models, Path(folder))
    clean = figures["never_saw"]["passed"]
    print(f"never saw the records: {clean['hits']} of {clean['trials']} pass")
    for epochs, each in figures["one_subject"].items():
        caught = each["caught"]
        print(f"one subject, {epochs} times: {caught['hits']} of {caught['trials']} are caught")
    print(f"{figures['seconds']:.0f} s")
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
