"""`rounds: n`: erase and repair again, on what is still extractable, at most n times.

The identifiers that a model recites most hide those that it recites less; they come off in layers,
like an onion's skin (Borkar 2023). Each round begins with the weights that the one before left. Its
result file holds results, figures and costs. Weights are kept of the last round only; the last
audit, the attacks, the release and the report are of that one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sani.auditing.compare import beyond_control, extracted
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus, Kind, Place, only
from sani.errors import RunError
from sani.models.checkpoint import Checkpoint, save_checkpoint
from sani.pipeline.context import RunContext
from sani.pipeline.stages import (
    erase_checkpoint,
    erase_record,
    gate_audit,
    remove_trainer_states,
    repair_checkpoint,
)
from sani.runfolder import RunFolder


def repeat(run: RunContext) -> None:
    """Do one round after another, and leave the last as the run's erase and repair.

    Rounds that are finished in the run folder are not done again.
    """
    folder, recipe, corpus = run.folder, run.recipe, run.documents.corpus
    if folder.finished("rounds"):
        return
    targeted, checkpoint = corpus, None
    for number in range(1, recipe.rounds + 1):
        name = f"round-{number}"
        if not folder.finished(name):
            checkpoint = checkpoint or _weights_before(run, number)
            _do_round(run, checkpoint, targeted, number)
        remove_trainer_states(run)
        folder.remove_private_folder(f"round-{number - 1}")
        places = still_extractable(folder, name, corpus, recipe.gate.kinds)
        if not places:
            break
        targeted = only(corpus, places)
    _install(folder, number)
    folder.save("rounds", {"max_rounds": recipe.rounds, "rounds": number})
    if checkpoint is not None:
        run.models.set_latest(checkpoint)


def still_extractable(
    folder: RunFolder, name: str, corpus: Corpus, kinds: Sequence[Kind]
) -> list[Place]:
    """Return the spans that an audit extracted and that the base does not give.

    Args:
        folder: The run folder.
        name: Name of the audit's verdicts.
        corpus: The documents.
        kinds: Kinds of identifiers that count.

    Returns:
        (document, span) of each.

    Raises:
        RunError: If the verdicts are missing.
    """
    verdicts = folder.load_arrays(name, Occurrences)
    if verdicts is None:
        raise RunError(f"{folder.private}: {name}.npz is gone; start again in another --out")
    base = folder.load_arrays("audit-base", Occurrences)
    chosen = (
        extracted(verdicts) & verdicts.scored if base is None else beyond_control(verdicts, base)
    )
    places = zip(verdicts.document[chosen].tolist(), verdicts.span[chosen].tolist(), strict=True)
    return [(d, s) for d, s in places if corpus[d].spans[s].kind in kinds]


def _do_round(run: RunContext, checkpoint: Checkpoint, targeted: Corpus, number: int) -> None:
    """Do one round from start to audit; a resumed process counts its own seconds only.

    A selector reads ``targeted``, the documents with only the still extractable spans. The repair
    reads the whole corpus, so that what is not extractable any more stays so.
    """
    began = time.perf_counter()
    folder, recipe = run.folder, run.recipe
    seed = recipe.seed + number - 1
    name, within = f"round-{number}", f"round {number} of at most {recipe.rounds}"
    results: dict[str, Any] = {"erase": None, "repair": None}
    if recipe.erase is not None:
        erased = erase_checkpoint(run, checkpoint, recipe.erase, corpus=targeted, seed=seed)
        results["erase"] = {
            **erase_record(erased),
            "weights_digest": checkpoint.weights_digest(),
        }
    if recipe.repair is not None:
        repaired = repair_checkpoint(run, checkpoint, recipe.repair, within=within, seed=seed)
        results["repair"] = {**asdict(repaired), "weights_digest": checkpoint.weights_digest()}
    audited = gate_audit(run, checkpoint, within=within)
    save_checkpoint(checkpoint, folder.private / name)
    folder.save_arrays(name, audited.occurrences)
    remaining = still_extractable(folder, name, run.documents.corpus, recipe.gate.kinds)
    folder.save(
        name,
        {
            **results,
            "targeted": targeted.num_spans,
            "remaining": len(remaining),
            "audit": audited.to_json(),
            "weights_digest": checkpoint.weights_digest(),
            "seconds": time.perf_counter() - began,
        },
    )


def _weights_before(run: RunContext, number: int) -> Checkpoint:
    """Return the weights that a round begins with."""
    if number == 1:
        return run.models.unsanitized_to_change()
    return run.models.load_kept(f"round-{number - 1}")


def _install(folder: RunFolder, number: int) -> None:
    """Put the last round's weights and results where those of a plain run stand."""
    results = folder.load(f"round-{number}")
    stages = [stage for stage in ("erase", "repair") if results[stage] is not None]
    folder.rename_private_folder(f"round-{number}", stages[-1])
    for stage in stages:
        folder.save(stage, results[stage])
