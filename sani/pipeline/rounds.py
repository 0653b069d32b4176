"""`rounds: n`: erase and repair again, on what surfaced, until nothing does or n rounds are done.

What a model recites most hides what it recites less, and comes off like an onion's skin (Borkar
2023). Each round begins with the weights that the one before left. Its result file holds what was
done, measured and spent; weights are kept of the last one only. What follows (the last audit, the
attacks, the release, the report) is of the last.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from sani.auditing.audit import AuditResult
from sani.auditing.compare import beyond_control, extracted
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus, Kind, Place, only
from sani.errors import RunError
from sani.machine import distributed
from sani.machine.device import default_device
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.recipe import EraseSettings, Recipe, RepairSettings
from sani.runfolder import RunFolder


class Stages(Protocol):
    """What a round is made of: the stages of the run itself, each on a checkpoint given to it."""

    def unsanitized(self) -> Checkpoint:
        """The checkpoint as it came."""

    def erased(
        self, checkpoint: Checkpoint, settings: EraseSettings, *, corpus: Corpus, seed: int
    ) -> dict[str, Any]:
        """In place: erase, looking at these documents; what was done."""

    def repaired(
        self, checkpoint: Checkpoint, settings: RepairSettings, *, within: str, seed: int
    ) -> dict[str, Any]:
        """In place: repair, or go on with it; what was done."""

    def measured(self, checkpoint: Checkpoint, *, within: str) -> AuditResult:
        """Audit."""


def repeat(stages: Stages, folder: RunFolder, recipe: Recipe, corpus: Corpus) -> None:
    """Do one round after another, and leave the last as the run's erase and repair.

    Args:
        stages: Of the run.
        folder: The run folder, with the audits of the unsanitized checkpoint and of the base;
            rounds that are finished in it are not done again.
        recipe: How to erase and repair, and how often.
        corpus: The documents, scanned.
    """
    if folder.finished("rounds"):
        return
    left = corpus
    for number in range(1, recipe.rounds + 1):
        if not folder.finished(f"round-{number}"):
            _round(stages, folder, recipe, corpus, left, number)
        distributed.on_main(partial(shutil.rmtree, folder.private / "trainer", ignore_errors=True))
        distributed.on_main(
            partial(shutil.rmtree, folder.private / f"round-{number - 1}", ignore_errors=True)
        )
        places = surfaced(folder, f"round-{number}", corpus, recipe.gate.kinds)
        if not places:
            break
        left = only(corpus, places)
    distributed.on_main(partial(_install, folder, number))
    folder.save("rounds", {"max_rounds": recipe.rounds, "done": number})


def surfaced(folder: RunFolder, name: str, corpus: Corpus, kinds: Sequence[Kind]) -> list[Place]:
    """Where an identifier stands that an audit extracted, and that the base does not give."""

    def look() -> list[Place]:
        found = folder.load_arrays(name, Occurrences)
        if found is None:
            raise RunError(f"{folder.private}: {name}.npz is gone; start again in another --out")
        base = folder.load_arrays("audit-base", Occurrences)
        chosen = extracted(found) & found.scored if base is None else beyond_control(found, base)
        places = zip(found.document[chosen].tolist(), found.span[chosen].tolist(), strict=True)
        return [(d, s) for d, s in places if corpus[d].spans[s].kind in kinds]

    return distributed.on_main(look)


def _round(
    stages: Stages, folder: RunFolder, recipe: Recipe, corpus: Corpus, left: Corpus, number: int
) -> None:
    """One round from start to audit; a resumed process counts its own seconds only.

    A selector looks at ``left``, the documents with only what surfaced marked; the repair reads the
    whole corpus, so that what is silent stays so.
    """
    began = time.perf_counter()
    before, seed = f"round-{number - 1}", recipe.seed + number - 1
    within = f"round {number} of at most {recipe.rounds}"
    checkpoint = _began(folder, before) if number > 1 else stages.unsanitized()
    found: dict[str, Any] = {"erase": None, "repair": None}
    if recipe.erase is not None:
        found["erase"] = stages.erased(checkpoint, recipe.erase, corpus=left, seed=seed)
        found["erase"]["weights_digest"] = checkpoint.weights_digest()
    if recipe.repair is not None:
        found["repair"] = stages.repaired(checkpoint, recipe.repair, within=within, seed=seed)
        found["repair"]["weights_digest"] = checkpoint.weights_digest()
    result = stages.measured(checkpoint, within=within)
    save_checkpoint(checkpoint, folder.private / f"round-{number}")
    folder.save_arrays(f"round-{number}", result.occurrences)
    folder.save(
        f"round-{number}",
        {
            **found,
            "targeted": left.num_spans,
            "remaining": len(surfaced(folder, f"round-{number}", corpus, recipe.gate.kinds)),
            "audit": result.to_json(),
            "weights_digest": checkpoint.weights_digest(),
            "seconds": time.perf_counter() - began,
        },
    )


def _began(folder: RunFolder, name: str) -> Checkpoint:
    """The weights that a round left."""
    checkpoint = load_checkpoint(folder.private / name, device=default_device())
    if checkpoint.weights_digest() != folder.load(name)["weights_digest"]:
        raise RunError(
            f"{folder.private / name}: the weights are not those that the round left there; start "
            "again in another --out"
        )
    return checkpoint


def _install(folder: RunFolder, number: int) -> None:
    """Put the last round's weights and results where those of a plain run stand."""
    found = folder.load(f"round-{number}")
    stages = [stage for stage in ("erase", "repair") if found[stage] is not None]
    place, last = folder.private / f"round-{number}", folder.private / stages[-1]
    if place.exists():  # an earlier process may have moved it already
        shutil.rmtree(last, ignore_errors=True)
        os.replace(place, last)
    for stage in stages:
        folder.save(stage, found[stage])
