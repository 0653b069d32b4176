"""The figures of a run that the advice follows, read from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sani.auditing.record import CheckpointAudit
from sani.gate import Check
from sani.gate.advice import Facts
from sani.gate.learning_rate import rate_fault, usual_rate
from sani.recipe import Recipe
from sani.repairing.repair import ROUNDED
from sani.reporting.escalation import escalation
from sani.reporting.schema import Stage
from sani.reporting.stage_files import EraseFile, RepairFile
from sani.runfolder import RunFolder
from sani.scanning.record import ScanRecord


def facts_of(
    folder: RunFolder,
    recipe: Recipe,
    checks: Sequence[Check],
    audits: Mapping[Stage, CheckpointAudit],
) -> Facts:
    """Return what the advice follows."""
    climb = escalation(folder)
    repair = folder.load_as("repair", RepairFile)
    erase = folder.load_as("erase", EraseFile)
    # Where nothing was erased the size is not known, and no other rate is advised.
    size = erase.changed_parameters / erase.fraction if erase and erase.fraction else math.inf
    usual = usual_rate(size)
    ways = [rung.settings.erase for rung in climb.rungs] if climb else []
    return Facts(
        recipe=recipe,
        checks=checks,
        audits={str(stage): audit for stage, audit in audits.items()},
        scan=folder.load_finished("scan", ScanRecord),
        is_rounded=repair is not None and any(ROUNDED in note for note in repair.notes),
        rungs_left=climb is not None and climb.stopped == "budget",
        retrained=any(erase is not None and erase.interpolate_to_base == 1 for erase in ways),
        rate=rate_fault(repair.curve, rate=recipe.repair.learning_rate, usual=usual)
        if repair and recipe.repair
        else None,
        usual_rate=usual,
        seconds=repair.seconds if repair else None,
    )
