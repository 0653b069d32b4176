"""Rounds of erase and repair: what each one looked at, did and left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sani.auditing.occurrences import Occurrences
from sani.reporting.escalation import cells, figures_of
from sani.reporting.format import Section, sampled
from sani.runfolder import RunFolder


def rounds_made(folder: RunFolder) -> dict[str, Any] | None:
    """The rounds of a run as `sani.reporting.schema.Rounds`; None if it had but one."""
    done = folder.load("rounds")
    if done is None:
        return None
    made = [_round(folder.load(f"round-{number + 1}")) for number in range(done["rounds"])]
    return {
        "asked": done["max_rounds"],
        "made": made,
        "seconds": sum(each["seconds"] for each in made),
        "tokens": sum(each["tokens"] for each in made),
    }


def _round(found: Mapping[str, Any]) -> dict[str, Any]:
    erase, repair = found["erase"], found["repair"]
    entries = erase["plan"]["entries"] if erase else []
    return {
        "looked_at": found["targeted"],
        "left": found["remaining"],
        "seconds": found["seconds"],
        **figures_of(found["audit"]),
        "neurons": sum(len(entry["neurons"]) for entry in entries),
        "tokens": repair["tokens"] if repair else 0,
    }


def rounds_between(folder: RunFolder) -> dict[str, Occurrences]:
    """The verdicts after every round but the last, which are those of the whole run."""
    done = folder.load("rounds")
    names = [f"round-{number}" for number in range(1, done["rounds"])] if done else []
    found = {name: folder.load_arrays(name, Occurrences) for name in names}
    return {name: verdicts for name, verdicts in found.items() if verdicts is not None}


def rounds(report: Mapping[str, Any]) -> Section:
    """Round by round; a section without rows if the run had but one."""
    found, title = report["rounds"], "Rounds"
    if found is None:
        return Section("rounds", title)
    kinds: Sequence[str] = report["gate_settings"]["kinds"]
    of = f" ({' / '.join(kinds)})" if len(kinds) > 1 else ""
    left = found["made"][-1]["left"]
    return Section(
        "rounds",
        title,
        (
            "Erase and repair again, on what surfaced: what is extractable and the base does not "
            f"give. {len(found['made'])} of at most {found['asked']} rounds took "
            f"{found['seconds']:.0f} s and {found['tokens']} tokens of training; "
            + (f"{left} occurrences are left." if left else "nothing extractable is left."),
        ),
        (
            "round", "surfaced before it", "neurons reset", f"greedy{of}",
            f"{sampled(report)}{of}", f"AUC{of}", "perplexity", "left", "seconds",
        ),
        tuple(
            (
                str(number),
                "-" if number == 1 else str(each["looked_at"]),
                str(each["neurons"]),
                *cells(each, kinds),
                str(each["left"]),
                f"{each['seconds']:.1f}",
            )
            for number, each in enumerate(found["made"], start=1)
        ),
    )  # fmt: skip
