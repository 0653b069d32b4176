"""Rounds of erase and repair: what each one targeted, did and left."""

from __future__ import annotations

from sani.auditing.occurrences import Occurrences
from sani.counting import counted, verb
from sani.reporting.escalation import cells, measured_by
from sani.reporting.format import Section, decimals, sampled
from sani.reporting.schema import Report, Round, Rounds
from sani.reporting.stage_files import RoundFile, RoundsFile
from sani.runfolder import RunFolder


def rounds_made(folder: RunFolder) -> Rounds | None:
    """Read the rounds of a run; None if it had but one."""
    result = folder.load_as("rounds", RoundsFile)
    if result is None:
        return None
    names = [f"round-{number + 1}" for number in range(result.rounds)]
    rounds = [_round(folder.load_finished(name, RoundFile)) for name in names]
    return Rounds(
        max_rounds=result.max_rounds,
        rounds=rounds,
        seconds=sum(each.seconds for each in rounds),
        tokens=sum(each.tokens for each in rounds),
    )


def _round(result: RoundFile) -> Round:
    entries = result.erase.plan.entries if result.erase else []
    measured = measured_by(result.audit)
    return Round(
        targeted=result.targeted,
        neurons=sum(len(entry.neurons) for entry in entries),
        figures=measured.figures,
        jointly=measured.jointly,
        perplexity=measured.perplexity,
        remaining=result.remaining,
        tokens=result.repair.tokens if result.repair else 0,
        seconds=result.seconds,
    )


def rounds_between(folder: RunFolder) -> dict[str, Occurrences]:
    """Load the verdicts after every round but the last, which are those of the whole run."""
    result = folder.load_as("rounds", RoundsFile)
    names = [f"round-{number}" for number in range(1, result.rounds)] if result else []
    verdicts = {name: folder.load_arrays(name, Occurrences) for name in names}
    return {name: each for name, each in verdicts.items() if each is not None}


def rounds(report: Report) -> Section:
    """Return the section round by round, without rows if the run had but one."""
    result, title = report.rounds, "Rounds"
    if result is None:
        return Section("rounds", title)
    kinds = report.gate_settings.kinds
    of = f" ({' / '.join(kinds)})" if len(kinds) > 1 else ""
    remaining = result.rounds[-1].remaining
    return Section(
        "rounds",
        title,
        (
            "A round erases and repairs again. Its selector looks at the occurrences that are "
            "still extractable and that the base does not give. "
            f"{len(result.rounds)} of at most {result.max_rounds} rounds took "
            f"{result.seconds:.0f} s and {result.tokens} tokens of training. "
            + (
                f"{counted(remaining, 'occurrence')} {verb(remaining, 'remains', 'remain')}."
                if remaining
                else "Nothing extractable remains."
            ),
        ),
        (
            "round", "targeted", "neurons reset", f"greedy{of}",
            f"{sampled(report.audit_settings)}{of}", f"AUC{of}", "perplexity", "remaining",
            "seconds",
        ),
        tuple(
            (
                str(number),
                "-" if number == 1 else str(each.targeted),
                str(each.neurons),
                *cells(each, kinds),
                str(each.remaining),
                decimals(each.seconds, 1),
            )
            for number, each in enumerate(result.rounds, start=1)
        ),
    )  # fmt: skip
