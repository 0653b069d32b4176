"""What `test_ranks` runs, in one process and in several: repairs, an audit, attacks and a scan.

    accelerate launch ... -m tests.machine.distributed_program FOLDER LEAKY_FOLDER JOB ...

Each job leaves what it found in a file of the folder, one for each rank.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sani.attacking.attack import attack
from sani.auditing.audit import audit
from sani.corpus.documents import Corpus
from sani.demo.clinic import invent_clinics
from sani.errors import SaniError
from sani.machine import distributed
from sani.machine.device import quiet_libraries
from sani.models.checkpoint import load_checkpoint
from sani.recipe import (
    QUICK,
    AnchorObjective,
    AuditSettings,
    NpoObjective,
    RepairSettings,
    ScanSettings,
    settings_from,
)
from sani.repairing import trainer, training_job
from sani.repairing.repair import repair
from sani.scanning.detection import detect
from tests.support.encoder_decoders import checkpoint as two_texts
from tests.support.encoder_decoders import pairs
from tests.support.masked import checkpoint as masked
from tests.support.words import ANCHOR, MASK, TEXTS, checkpoint, corpus_of, gpt2, llama, settings_of

DECOYS = AnchorObjective(kind="anchor", to="decoys")
COUNTERFACTUAL = AnchorObjective(kind="anchor", to="counterfactual")
ADAPTER = settings_from(RepairSettings, {"adapter": {"kind": "lora", "rank": 2}}).adapter
DORA = settings_from(RepairSettings, {"adapter": {"kind": "dora", "rank": 2}}).adapter
REPAIRS: dict[str, dict[str, Any]] = {
    "mask": {"objective": MASK},
    "anchor": {"objective": ANCHOR, "weight_decay": 0.1},
    "row": {"objective": ANCHOR, "texts": TEXTS[:1]},  # so that a rank has nothing to do
    "retain": {"objective": COUNTERFACTUAL, "retain_weight": 0.5},
    "last": {"objective": ANCHOR, "last_layers": 1, "retain_weight": 0.5},
    "disk": {"objective": ANCHOR, "last_layers": 1, "activation_cache": "disk"},
    "npo": {"objective": NpoObjective(kind="npo")},
    "decoys": {"objective": DECOYS},
    "adapter": {"objective": ANCHOR, "adapter": ADAPTER},
    "dora": {"objective": ANCHOR, "adapter": DORA, "last_layers": 1},
    "checkpointing": {"objective": ANCHOR, "gradient_checkpointing": True},
    "packed": {"objective": ANCHOR, "pack": True},
    "alone": {"objective": ANCHOR, "pack": False},
    "gpt2": {"objective": ANCHOR},
    "bert": {"objective": ANCHOR},  # rows are masked anew each epoch
    "t5": {"objective": ANCHOR, "retain_weight": 0.5},
}
Found = dict[str, Any]


def repaired(name: str, folder: Path | None = None, **changes: Any) -> Found:
    """Weights and curve of one repair of a model of words."""
    asked = {"epochs": 2, **REPAIRS[name.split("-")[0]]}
    texts = asked.pop("texts", TEXTS * 3)
    training_job.WEIGHT_DECAY = asked.pop("weight_decay", 0.0)
    makers: dict[str, Callable[..., Any]] = {
        "gpt2": partial(checkpoint, gpt2()),
        "bert": masked,
        "t5": partial(two_texts, "t5"),
    }
    make = makers.get(name, partial(checkpoint, llama()))
    sick, base = make(seed=1), make(seed=2)
    for module in sick.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # ranks draw other dropout than one process
    corpus = pairs(texts) if name == "t5" else corpus_of(texts)
    begin = {name: tensor.clone() for name, tensor in sick.model.state_dict().items()}
    result = repair(
        sick, corpus, settings_of(**asked), base=base, unsanitized=base,
        folder=folder, **changes,
    )  # fmt: skip
    return {
        "begin": begin,
        "weights": dict(sick.model.state_dict()),
        "curve": result.curve,
        "notes": result.notes,
        "steps": result.steps,
        "fraction": result.trained_fraction,
    }


class StoppedError(Exception):
    """As if the process had been killed."""


def resumed(folder: Path, *, stop: bool) -> Found:
    """A repair that is stopped in the middle, or one that goes on from there."""

    def on_step(done: int, total: int) -> None:
        if stop and done == total // 2:
            raise StoppedError

    try:
        return repaired("anchor", folder, on_step=on_step)
    except StoppedError:
        return {}


def short_of_memory(*, always: bool) -> Found:
    """A repair in which only the last rank runs out of memory."""
    plain = vars(trainer)["hidden_states"]
    calls: list[int] = []

    def hungry(*arguments: Any) -> Any:
        calls.append(1)
        if distributed.rank() == distributed.world_size() - 1 and (always or len(calls) == 1):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(*arguments)

    vars(trainer)["hidden_states"] = hungry
    try:
        return repaired("anchor")
    except SaniError as error:
        return {"error": str(error)}
    finally:
        vars(trainer)["hidden_states"] = plain


def diverged() -> Found:
    """A repair in which only the last rank's loss is not a number, at its third step."""
    plain = vars(trainer)["hidden_states"]
    calls: list[int] = []

    def mad(*arguments: Any) -> Any:
        calls.append(1)
        sick = distributed.rank() == distributed.world_size() - 1 and len(calls) == 3
        return plain(*arguments) * (float("nan") if sick else 1.0)

    vars(trainer)["hidden_states"] = mad
    try:
        return repaired("anchor")
    finally:
        vars(trainer)["hidden_states"] = plain


def audited(leaky: Path) -> Found:
    """An audit of a model that recites, with held-out documents and sampling."""
    _, private, held_out = invent_clinics([20, 8, 5], seed=11)
    settings = AuditSettings.model_validate_json(
        '{"decoys": 4, "generation": {"empty": 12, "headings": 12, "openings": 12}}'
    )
    found = audit(load_checkpoint(leaky), private, settings, held_out=held_out)
    generation = found.generation
    return {
        "framing": found.framing,
        "tried": found.framings_tried,
        "occurrences": vars(found.occurrences),
        "documents": vars(found.documents),
        "utility": vars(found.utility),
        "hits": generation.one_by_one.hits if generation else None,
        "greedy": found.figures["direct"].greedy,
    }


def attacked(leaky: Path) -> Found:
    """Every attack, in its quick form; guided by itself."""
    _, private, held_out = invent_clinics([20, 8, 5], seed=11)
    models = {name: load_checkpoint(leaky) for name in ("sanitized", "unsanitized")}
    settings = QUICK.model_copy(update={"documents": 4})
    behind_bos = AuditSettings(framing="bos")
    result = attack(models, private, settings, audit=behind_bos, held_out=held_out)
    return dict(result.to_json()["attacks"])


def scanned(folder: Path) -> Found:
    """What a scan finds, twice, the second time from its cache."""
    (corpus,) = invent_clinics([8], seed=4)
    bare = Corpus([type(d)(d.id, d.subject_id, d.text) for d in corpus])
    settings = ScanSettings(patterns=True)
    once = detect(bare, settings, cache_folder=folder)
    again = detect(bare, settings, cache_folder=folder)
    return {"once": list(once), "again": list(again)}


def do(job: str, out: Path, leaky: Path) -> Found:
    """One job."""
    match job:
        case "stop" | "resume":
            return resumed(out / "trainer", stop=job == "stop")
        case "memory" | "no memory":
            return short_of_memory(always=job == "no memory")
        case "nan":
            return diverged()
        case "audit":
            return audited(leaky)
        case "attack":
            return attacked(leaky)
        case "scan":
            return scanned(out / "cache")
        case "wait":
            (out / f"waiting-{distributed.rank()}").write_text(str(os.getpid()))
            if distributed.rank() == 1:
                time.sleep(600)
            return {"found": distributed.gather(distributed.rank())}
        case "count":
            return {"count": distributed.world_size(), "sharded": distributed.sharded()}
    return repaired(job)


def main() -> None:
    """Do the jobs."""
    out, leaky, *jobs = sys.argv[1:]
    quiet_libraries()
    torch.set_num_threads(1)
    distributed.start(together=True)
    for job in jobs:
        found = do(job, Path(out), Path(leaky))
        torch.save(found, Path(out) / f"{job}-{distributed.rank()}.pt")
    distributed.finish()


if __name__ == "__main__":
    main()
