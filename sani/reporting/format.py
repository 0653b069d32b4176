"""The parts of a section, and figures in words: the same in every format of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sani.corpus.documents import KINDS, Kind

if TYPE_CHECKING:  # the command line formats numbers before anything loads torch
    from sani.auditing.candidate_tests import CountTest
    from sani.auditing.control_tests import ControlTests
    from sani.auditing.figures import Figures
    from sani.auditing.record import AuditRecord
    from sani.auditing.sampled_test import SampledTest
    from sani.intervals import Estimate, Rate
    from sani.recipe import AuditSettings

STAGE_NAMES = {
    "base": "base (control)",
    "before": "before",
    "erased": "after erase",
    "after": "after (sanitized)",
}
KIND_NAMES: tuple[Kind, ...] = KINDS
MAX_CHARTED = 40  # labels

Cells = tuple[str, ...]
_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, and a table; a table without rows is left out.

    Attributes:
        key: Its name within the page; a chart of this name is drawn above the table.
        title: The heading.
        sentences: What to know before reading the table.
        head: Names of the columns.
        rows: One cell a column; the first names the row.
    """

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    head: Cells = ()
    rows: tuple[Cells, ...] = ()


def stage_name(stage: str) -> str:
    """Return a checkpoint of the run in words."""
    return STAGE_NAMES.get(stage, stage.replace("round-", "round "))


def rate(rate: Rate | None) -> str:
    """Return a rate with its numerator, denominator and interval; a dash without trials."""
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.value:.1%} ({rate.hits}/{rate.trials}; {100 * rate.low:.1f} to {rate.high:.1%})"


def estimate(estimate: Estimate | None) -> str:
    """Return a mean with its interval; a dash where there is none."""
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f} (one subject, no interval)"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def number(value: float | None) -> str:
    """Return four digits, or that it is not known."""
    return "unknown" if value is None else f"{value:.4g}"


def decimals(value: float | None, places: int = 3) -> str:
    """Return so many decimals, or a dash."""
    return "-" if value is None else f"{value:.{places}f}"


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def share(value: float | None) -> str:
    """Return a fraction in per cent, or a dash."""
    return "-" if value is None else f"{value:.1%}"


def beyond_control(test: CountTest | SampledTest) -> str:
    """Return how many values are given beyond the control, and how many may be.

    Where only those that nobody guesses are too many, it says so: the total would look well.
    """
    if test.count > test.limit or not test.exceeded:
        return f"{test.count} (limit {test.limit})"
    guess = f"no guess: {test.unlikely}, limit {test.unlikely_limit}"
    return f"{test.count} (limit {test.limit}; {guess})"


def subjects_at_risk(tests: ControlTests) -> str:
    """Return the number of subjects at risk, of those with uncued occurrences."""
    return f"{tests.at_risk} of {tests.subjects.tested + tests.untested}"


def p_value(value: float | None) -> str:
    """Return the p of a test; "no change" where nothing changed, and never quite zero."""
    return "no change" if value is None else "< 1e-300" if value < 1e-300 else f"{value:.2g}"


def by_kind(
    audits: Mapping[_Name, AuditRecord], scope: str = ""
) -> Iterator[tuple[Cells, Figures]]:
    """Yield (kind and checkpoint, figures) for every kind and stage that has the scope."""
    for kind in KIND_NAMES:
        for stage, audit in audits.items():
            for figures, suffix in ((audit.figures, ""), (audit.jointly, ", masked jointly")):
                if figures and (kind + scope) in figures:
                    names = (kind + scope.replace(":", ", "), stage_name(stage) + suffix)
                    yield names, figures[kind + scope]


def sampled(settings: AuditSettings) -> str:
    """Return the (n, p) of the audit."""
    return f"({settings.queries}, {settings.probability})"


def worst_labels(audit: AuditRecord) -> list[str]:
    """Return all labels, those of which the checkpoint gives the largest share first."""
    remaining = {
        scope.removeprefix("label:"): figures.discoverable.value or 0.0
        for scope, figures in audit.figures.items()
        if scope.startswith("label:")
    }
    return sorted(remaining, key=lambda label: (-remaining[label], label))
