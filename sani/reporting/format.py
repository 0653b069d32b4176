"""What a section of a report is, and how figures are put into words: the same in every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

STAGE_NAMES = {
    "base": "base (control)",
    "before": "before",
    "erased": "after erase",
    "after": "after (sanitized)",
}
KIND_NAMES = ("direct", "indirect")
MOST_CHARTED = 40  # labels

Cells = tuple[str, ...]


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
    """A checkpoint of the run in words."""
    return STAGE_NAMES.get(stage, stage.replace("round-", "round "))


def rate(rate: Mapping[str, Any] | None) -> str:
    """A rate with its numerator, denominator and interval; a dash where nothing was tried."""
    if not rate or rate["value"] is None:
        return "-"
    return (
        f"{rate['value']:.1%} ({rate['hits']}/{rate['trials']}; "
        f"{100 * rate['low']:.1f} to {rate['high']:.1%})"
    )


def estimate(estimate: Mapping[str, Any] | None) -> str:
    """A mean with its interval; a dash where there is none."""
    if not estimate or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} (one subject, no interval)"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def number(value: float | None) -> str:
    """Four digits, or that it is not known."""
    return "unknown" if value is None else f"{value:.4g}"


def by_kind(audits: Mapping[str, Any], scope: str = "") -> Iterator[tuple[Cells, Any]]:
    """(kind and checkpoint, figures) for every kind and stage that has the scope."""
    for kind in KIND_NAMES:
        for stage, audit in audits.items():
            for form, suffix in (("figures", ""), ("jointly", ", masked jointly")):
                figures = (audit[form] or {}).get(kind + scope)
                if figures is not None:
                    yield (kind + scope.replace(":", ", "), stage_name(stage) + suffix), figures


def sampled(report: Mapping[str, Any]) -> str:
    """The (n, p) of the audit."""
    settings = report["audit_settings"]
    return f"({settings['queries']}, {settings['probability']})"


def p_value(value: float | None) -> str:
    """A p of a test; none where nothing changed, and never quite zero."""
    return "no change" if value is None else "< 1e-300" if value < 1e-300 else f"{value:.2g}"


def worst_labels(report: Mapping[str, Any]) -> list[str]:
    """All labels, those of which the sanitized checkpoint gives the largest share first."""
    figures = report["audits"]["after"]["figures"]
    left = {
        label: figures[f"label:{label}"]["discoverable"]["value"] or 0.0
        for label in report["scan"]["labels"]
    }
    return sorted(left, key=lambda label: (-left[label], label))
