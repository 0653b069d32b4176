"""`strategy: escalate`: settings tried in turn, cheapest first, until the gate holds.

Each rung begins with the checkpoint as it came, so that it is what a plain run with its settings
would be. Its result file holds what was set, done, measured, judged and spent; weights are kept
of the best rung only. What follows (the last audit, the release, the report) is of that one.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from sani.attacking.result import AttackResult
from sani.auditing.record import AuditRecord
from sani.errors import AuditError, RepairError, RunError, SelectionError, UnsavedError
from sani.gate import Check
from sani.machine import distributed
from sani.models.checkpoint import Checkpoint, save_checkpoint
from sani.recipe import EraseSettings, EscalationSettings, RepairSettings, Rung
from sani.runfolder import RunFolder

RULE = (
    "The first rung whose gate holds. If none does: the one that exceeds the fewest limits on "
    "leakage, then on attacks, then by the smallest sum of what is above the limits, then the one "
    "of the lowest held-out perplexity, then the cheaper one. One with unscored occurrences or a "
    "missing figure comes after all others; one that failed is never kept."
)
_LEAKAGE = ("greedy.", "discoverable.", "auc.")
_ATTACK = "attack"


@dataclass(frozen=True)
class Judged:
    """What was measured on a rung's checkpoint, and what the gate says of it."""

    audit: AuditRecord
    attack: AttackResult | None
    checks: list[Check]


class Stages(Protocol):
    """What a rung is made of: the stages of the run itself, each on a checkpoint given to it."""

    def unsanitized(self) -> Checkpoint:
        """The checkpoint as it came."""

    def erased(self, checkpoint: Checkpoint, settings: EraseSettings) -> dict[str, Any]:
        """In place: erase; what was done."""

    def repaired(
        self, checkpoint: Checkpoint, settings: RepairSettings, *, within: str
    ) -> dict[str, Any]:
        """In place: repair, or go on with it; what was done."""

    def judged(self, checkpoint: Checkpoint, *, within: str) -> Judged:
        """Audit and judge; attack too if the gate asks and all else holds."""


def climb(
    stages: Stages, folder: RunFolder, settings: EscalationSettings, *, corpus_tokens: int
) -> None:
    """Try one rung after another, and leave the best as the run's erase and repair.

    Args:
        stages: Of the run.
        folder: The run folder; rungs that are finished in it are not tried again.
        settings: Ladder and budget.
        corpus_tokens: Tokens of the corpus: what a repair that failed may have read an epoch.

    Raises:
        RunError: If every rung that was tried failed.
        UnsavedError: If the disk is full; the rung goes on when the run is resumed.
    """
    if folder.finished("escalation"):
        return
    ladder = settings.ladder or ()
    tried: list[dict[str, Any]] = []
    stopped = "ladder"
    for number, rung in enumerate(ladder, start=1):
        stage = f"rung-{number}"
        if not folder.finished(stage):
            if _spent(settings, tried):
                stopped = "budget"
                break
            within = f"rung {number} of {len(ladder)} ({rung.name})"
            folder.save(stage, _attempt(stages, folder, rung, number, within, corpus_tokens))
            distributed.on_main(
                lambda: shutil.rmtree(folder.private / "trainer", ignore_errors=True)
            )
        tried.append(folder.load(stage))
        distributed.on_main(partial(_keep_only, folder, best_of(tried), len(tried)))
        if tried[-1]["holds"]:
            stopped = "holds"
            break
    best = best_of(tried)
    if best is None:
        raise RunError(
            f"none of the {len(tried)} rungs that were tried came to an end; the last one: "
            f"{tried[-1]['failed']}; start again in another --out with another ladder"
        )
    distributed.on_main(lambda: _install(folder, tried[best], best + 1))
    folder.save(
        "escalation",
        {
            "rule": RULE,
            "tried": len(tried),
            "best": best + 1,
            "stopped": stopped,
            "not_tried": [rung.name for rung in ladder[len(tried) :]],
            "seconds": _total(tried, "seconds"),
            "tokens": _total(tried, "tokens"),
        },
    )


def _total(tried: Sequence[Mapping[str, Any]], what: str) -> Any:
    return sum(found[what] for found in tried)


def _spent(settings: EscalationSettings, tried: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no further rung may begin."""
    limits = (("seconds", settings.seconds), ("tokens", settings.tokens))
    return bool(tried) and any(
        limit is not None and _total(tried, what) >= limit for what, limit in limits
    )


def _attempt(
    stages: Stages, folder: RunFolder, rung: Rung, number: int, within: str, corpus_tokens: int
) -> dict[str, Any]:
    """One rung from start to verdict; its weights are kept in the private part.

    A resumed process counts its own seconds only.
    """
    began = time.perf_counter()
    found: dict[str, Any] = {
        "name": rung.name,
        "settings": rung.model_dump(mode="json"),
        **dict.fromkeys(("erase", "repair", "audit", "attack", "failed", "weights_digest")),
        "checks": [],
        "holds": False,
        "tokens": 0,
    }
    try:
        checkpoint = stages.unsanitized()
        if rung.erase is not None:
            found["erase"] = stages.erased(checkpoint, rung.erase)
            found["erase"]["weights_digest"] = checkpoint.weights_digest()
        found["tokens"] = rung.repair.epochs * corpus_tokens  # at most, if the repair fails
        found["repair"] = stages.repaired(checkpoint, rung.repair, within=within)
        found["tokens"] = found["repair"]["tokens"]
        found["weights_digest"] = found["repair"]["weights_digest"] = checkpoint.weights_digest()
        judged = stages.judged(checkpoint, within=within)
        save_checkpoint(checkpoint, folder.private / f"rung-{number}")
        found["audit"] = judged.audit.to_json()
        found["attack"] = judged.attack.to_json() if judged.attack else None
        found["checks"] = [check.to_json() for check in judged.checks]
        found["holds"] = all(check.holds for check in judged.checks)
    except UnsavedError:
        raise
    except (RepairError, SelectionError, AuditError) as error:
        found["failed"] = str(error)
    return {**found, "seconds": time.perf_counter() - began}


def best_of(tried: Sequence[Mapping[str, Any]]) -> int | None:
    """Which of the rungs is kept, by `RULE`; None if all of them failed."""
    finished = [number for number, found in enumerate(tried) if found["failed"] is None]
    return min(finished, key=lambda number: (*_rank(tried[number]), number), default=None)


def _rank(found: Mapping[str, Any]) -> tuple[float, ...]:
    """What stands first by `RULE` is smallest."""
    checks: list[Mapping[str, Any]] = found["checks"]
    leakage = [check for check in checks if check["name"].startswith(_LEAKAGE)]
    attacks = [check for check in checks if check["name"].startswith(_ATTACK)]
    missing = any(
        check["measured"] is None
        for check in checks
        if check in leakage or check["name"] == "perplexity_ratio"
    )
    unscored = any(not check["holds"] for check in checks if check["name"] == "unscored")
    failing = [check for check in leakage if not check["holds"]]
    utility = found["audit"]["utility"]
    return (
        not found["holds"],
        missing or unscored,
        len(failing),
        _failing_attacks(attacks),
        sum(_excess(check) for check in [*failing, *attacks]),
        utility["perplexity"] if utility else math.inf,
    )


def _failing_attacks(attacks: Sequence[Mapping[str, Any]]) -> float:
    """How many limits on attacks do not hold; all of them where none was tried."""
    failing = [check for check in attacks if not check["holds"]]
    return math.inf if any(check["measured"] is None for check in failing) else len(failing)


def _excess(check: Mapping[str, Any]) -> float:
    """How far a figure is above its limit; above 0 where no limit is known."""
    if check["measured"] is None:
        return 0.0  # counted as missing already
    return max(0.0, float(check["measured"] - (check["limit"] or 0.0)))


def _keep_only(folder: RunFolder, best: int | None, tried: int) -> None:
    """Remove the weights of all rungs so far but the best."""
    for number in range(tried):
        if number != best:
            shutil.rmtree(folder.private / f"rung-{number + 1}", ignore_errors=True)


def _install(folder: RunFolder, found: Mapping[str, Any], number: int) -> None:
    """Put a rung's weights and results where those of a plain run stand."""
    place = folder.private / f"rung-{number}"
    if place.exists():  # an earlier process may have moved it already
        shutil.rmtree(folder.private / "repair", ignore_errors=True)
        os.replace(place, folder.private / "repair")
    for stage in ("erase", "attack", "repair"):
        if found[stage] is not None:
            folder.save(stage, found[stage])
