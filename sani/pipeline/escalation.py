"""`strategy: escalate`: settings tried in turn, cheapest first, until the gate holds.

Each rung begins with the unsanitized checkpoint, so it gives what a plain run with its settings
would give. Its result file holds its settings, results, figures, checks and costs. Weights are kept
of the best rung only; the last audit, the release and the report are of that one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sani.errors import AuditError, RepairError, RunError, SelectionError, UnsavedError
from sani.models.checkpoint import save_checkpoint
from sani.pipeline.context import RunContext
from sani.pipeline.stages import (
    erase_checkpoint,
    erase_record,
    judge_checkpoint,
    remove_trainer_states,
    repair_checkpoint,
)
from sani.recipe import EscalationSettings, Rung
from sani.runfolder import RunFolder

RULE = (
    "The first rung whose gate holds. If none does: the one that exceeds the fewest limits on "
    "leakage, then on attacks, then by the smallest sum of what is above the limits, relative to "
    "each, then the one of the lowest held-out perplexity, then the cheaper one. One with unscored "
    "occurrences or a missing figure comes after all others; one that failed is never kept."
)
_LEAKAGE = (
    "greedy_beyond_control.",
    "discoverable_beyond_control.",
    "sampled_beyond_control.",
    "subjects.",
    "labels.",
    "auc_to_base.",
    "greedy.",
    "discoverable.",
    "auc.",
)
_ATTACK = "attack"


def climb(run: RunContext, settings: EscalationSettings, *, corpus_tokens: int) -> None:
    """Try one rung after another, and leave the best as the run's erase and repair.

    Rungs that are finished in the run folder are not tried again.

    Args:
        run: The run.
        settings: Ladder and budget.
        corpus_tokens: Number of tokens of the corpus: a repair that failed counts as one that
            read all of them in each epoch.

    Raises:
        RunError: If every rung that was tried failed.
        UnsavedError: If the disk is full; the rung goes on when the run is resumed.
    """
    folder = run.folder
    if folder.finished("escalation"):
        return
    ladder = settings.ladder or ()
    results: list[dict[str, Any]] = []
    stopped = "ladder"
    for number, rung in enumerate(ladder, start=1):
        stage = f"rung-{number}"
        if not folder.finished(stage):
            if _budget_is_spent(settings, results):
                stopped = "budget"
                break
            within = f"rung {number} of {len(ladder)} ({rung.name})"
            folder.save(stage, _try_rung(run, rung, number, within, corpus_tokens))
            remove_trainer_states(run)
        results.append(folder.load(stage))
        _remove_all_but(folder, best_of(results), len(results))
        if results[-1]["holds"]:
            stopped = "holds"
            break
    best = best_of(results)
    if best is None:
        raise RunError(
            f"none of the {len(results)} rungs that were tried came to an end; the last one: "
            f"{results[-1]['failed']}; start again in another --out with another ladder"
        )
    _install(folder, results[best], best + 1)
    folder.save(
        "escalation",
        {
            "rule": RULE,
            "tried": len(results),
            "best": best + 1,
            "stopped": stopped,
            "not_tried": [rung.name for rung in ladder[len(results) :]],
            "seconds": _total(results, "seconds"),
            "tokens": _total(results, "tokens"),
        },
    )


def _total(results: Sequence[Mapping[str, Any]], key: str) -> Any:
    return sum(result[key] for result in results)


def _budget_is_spent(settings: EscalationSettings, results: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if no further rung may begin; the first one always may."""
    limits = (("seconds", settings.seconds), ("tokens", settings.tokens))
    return bool(results) and any(
        limit is not None and _total(results, key) >= limit for key, limit in limits
    )


def _try_rung(
    run: RunContext, rung: Rung, number: int, within: str, corpus_tokens: int
) -> dict[str, Any]:
    """Do one rung from start to verdict; its weights are kept in the private part.

    A resumed process counts its own seconds only.

    Returns:
        The content of ``rung-NUMBER.json``.
    """
    began = time.perf_counter()
    result: dict[str, Any] = {
        "name": rung.name,
        "settings": rung.model_dump(mode="json"),
        **dict.fromkeys(("erase", "repair", "audit", "attack", "failed", "weights_digest")),
        "checks": [],
        "holds": False,
        "tokens": 0,
    }
    try:
        checkpoint = run.models.unsanitized_to_change()
        if rung.erase is not None:
            erased = erase_record(erase_checkpoint(run, checkpoint, rung.erase))
            result["erase"] = {**erased, "weights_digest": checkpoint.weights_digest()}
        result["tokens"] = rung.repair.epochs * corpus_tokens  # at most, if the repair fails
        repaired = asdict(repair_checkpoint(run, checkpoint, rung.repair, within=within))
        result["weights_digest"] = checkpoint.weights_digest()
        result["repair"] = {**repaired, "weights_digest": result["weights_digest"]}
        result["tokens"] = repaired["tokens"]
        judged = judge_checkpoint(run, checkpoint, within=within)
        weights = run.folder.private / f"rung-{number}"
        save_checkpoint(checkpoint, weights)
        result["audit"] = judged.audit.to_json()
        result["attack"] = judged.attack.to_json() if judged.attack else None
        result["checks"] = [check.to_json() for check in judged.checks]
        result["holds"] = all(check.holds for check in judged.checks)
    except UnsavedError:
        raise
    except (RepairError, SelectionError, AuditError) as error:
        result["failed"] = str(error)
    return {**result, "seconds": time.perf_counter() - began}


def best_of(results: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the best rung by `RULE`, or None if all of them failed."""
    finished = [number for number, result in enumerate(results) if result["failed"] is None]
    return min(finished, key=lambda number: (*_rank(results[number]), number), default=None)


def _rank(result: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a key that sorts rungs by `RULE`, the best first."""
    checks: list[Mapping[str, Any]] = result["checks"]
    leakage = [check for check in checks if check["name"].startswith(_LEAKAGE)]
    attacks = [check for check in checks if check["name"].startswith(_ATTACK)]
    missing = any(
        check["measured"] is None
        for check in checks
        if check in leakage or check["name"] == "perplexity_ratio"
    )
    unscored = any(not check["holds"] for check in checks if check["name"] == "unscored")
    failing = [check for check in leakage if not check["holds"]]
    utility = result["audit"]["utility"]
    return (
        not result["holds"],
        missing or unscored,
        len(failing),
        _failing_attacks(attacks),
        sum(_excess(check) for check in [*failing, *attacks]),
        utility["perplexity"] if utility else math.inf,
    )


def _failing_attacks(attacks: Sequence[Mapping[str, Any]]) -> float:
    """Return how many limits on attacks do not hold; infinity if one was not measured."""
    failing = [check for check in attacks if not check["holds"]]
    return math.inf if any(check["measured"] is None for check in failing) else len(failing)


def _excess(check: Mapping[str, Any]) -> float:
    """Return by how much a figure exceeds its limit, relative to it; 0 if it is not known."""
    if check["measured"] is None:
        return 0.0  # counted as missing already
    limit = check["limit"] or 0.0
    # Relative to the limit: counts of occurrences would outweigh every AUC. At least 1, since a
    # count may have the limit 0.
    return max(0.0, float(check["measured"] - limit)) / max(1.0, limit)


def _remove_all_but(folder: RunFolder, best: int | None, num_tried: int) -> None:
    """Remove the weights of all rungs so far but the best."""
    for number in range(num_tried):
        if number != best:
            folder.remove_private_folder(f"rung-{number + 1}")


def _install(folder: RunFolder, result: Mapping[str, Any], number: int) -> None:
    """Put a rung's weights and results where those of a plain run stand."""
    folder.rename_private_folder(f"rung-{number}", "repair")
    for stage in ("erase", "attack", "repair"):
        if result[stage] is not None:
            folder.save(stage, result[stage])
