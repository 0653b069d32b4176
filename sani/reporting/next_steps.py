"""The last line of each command that is no run: what to do next.

`sani.reporting.advice.next_line` is the line of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sani.auditing.record import AuditRecord
from sani.gate import Check
from sani.recipe import AuditSettings
from sani.releasing.manifest import Verification
from sani.reporting.format import subjects_at_risk


def after_check(out: Path, *, holds: bool) -> str:
    """Return the line after ``sani run --check``."""
    if holds:
        return f"Next: the same command without --check; it writes {out}."
    return "Next: correct what is marked NO, and check again."


def after_audit(audits: Mapping[str, AuditRecord], *, base: bool) -> str:
    """Return the line after ``sani audit``, whose first audit is that of the model."""
    figures = audits["model"].figures.get("direct")
    if not base:
        return "Next: the same with --base, or nobody can tell memory from what anyone would guess."
    if figures is None:
        return "Next: mark direct identifiers (sani scan), and audit again: there was none to find."
    if figures.greedy.hits or figures.discoverable.hits:
        return "Next: sani init writes a recipe that sanitizes this model and judges the result."
    return (
        "Next: a recipe with model.unsanitized (recipes/check-only.yaml) judges this model. An "
        "audit alone has no positive control, so a rate of 0 may mean a wrong corpus."
    )


def conclusion_of_audit(audits: Mapping[str, AuditRecord], settings: AuditSettings) -> str:
    """Return two sentences on what ``sani audit`` found: how much, and whether it is memory."""
    figures, base = audits["model"].figures.get("direct"), audits.get("base")
    if figures is None or not figures.greedy.trials:
        return (
            "No direct identifier could be scored. So this audit says nothing of whether the model "
            "recites any."
        )
    greedy, sampled = figures.greedy, figures.discoverable
    first = (
        f"Of {greedy.trials} direct identifiers the model recites {greedy.hits} greedily, and "
        f"{sampled.hits} are seen in {settings.queries} samples with probability "
        f"{settings.probability:g}."
    )
    if base is None:
        return f"{first} Without --base nobody can tell how many of these anyone could guess."
    of_base = base.figures["direct"].greedy.hits if "direct" in base.figures else 0
    given = f"the base, which never saw the records, recites {of_base}"
    tests = (audits["model"].control_tests or {}).get("direct")
    if tests is None:
        return f"{first} That is to be compared with the base: {given}."
    if tests.at_risk or tests.greedy.exceeded or tests.discoverable.exceeded:
        return (
            f"{first} This is memory: {given}, and {subjects_at_risk(tests)} subjects stand out "
            "more than chance allows."
        )
    return (
        f"{first} No memory was found, which is no proof that there is none: {given}, and no "
        "subject stands out more than chance allows."
    )


def after_plan() -> str:
    """Return the line after ``sani erase --dry-run``."""
    return "Next: the same command with --out and without --dry-run, or --plan with this plan."


def after_erase(out: Path) -> str:
    """Return the line after ``sani erase``."""
    return f"Next: sani repair {out} with --corpus, --base and --out. Share it only after an audit."


def after_repair(out: Path) -> str:
    """Return the line after ``sani repair``."""
    return f"Next: sani audit {out} with --corpus and --base, before you trust it."


def after_review_page(file: Path) -> str:
    """Return the line after ``sani review`` wrote its page."""
    return (
        f"Next: open {file} in a browser, save review.json into {file.parent}, and give it with "
        "--apply."
    )


def after_review() -> str:
    """Return the line after ``sani review --apply``."""
    return "Next: add these lines to the recipe; sani run scans and measures again with them."


def after_sample(file: Path) -> str:
    """Return the line after ``sani sample``."""
    return f"Next: sani scan {file} marks what to forget. It may hold identifiers: keep it private."


def after_attack(checks: Sequence[Check]) -> str:
    """Return the line after ``sani attack``."""
    failed = [check.name for check in checks if not check.holds]
    if failed:
        return (
            f"Next: do not share this checkpoint ({', '.join(failed)}). A recipe with a section "
            "attack judges attacks and advises settings."
        )
    return "Next: set gate.attacks and gate.attacks_auc_excess in the recipe, so that a run judges."


def after_comparison() -> str:
    """Return the line after ``sani report --compare``."""
    return (
        "Next: judge the better one once on other records of the same training, or say how many "
        "settings were tried."
    )


def after_verify(folder: Path, result: Verification) -> str:
    """Return the line after ``sani verify``."""
    if result.added or result.missing or result.changed:
        return "Next: find out who changed the files; release again with sani run --resume."
    if not result.holds:
        return f"Next: do not share {folder}; sani report on its run says what to try."
    if result.signature == "none":
        return f"Next: sani sign {folder} --key KEY, if others can write to the folder."
    return "Next: keep the verdict with the model; it is evidence for the person who decides."


def after_sign(folder: Path) -> str:
    """Return the line after ``sani sign``."""
    return f"Next: sani verify {folder} --key with the public key, where the model is received."
