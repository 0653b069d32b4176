"""Ripples: what a stage made newly extractable, by label, and how near to what it removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from sani.auditing.compare import compare
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus
from sani.reporting.format import Section, stage_name


def ripples(
    verdicts: Mapping[str, Occurrences], corpus: Corpus, *, rounds: Sequence[str]
) -> list[dict[str, Any]]:
    """For each stage: the newly extractable occurrences by label.

    Args:
        verdicts: Audits of the corpus by name.
        corpus: The documents audited.
        rounds: Names in the order in which the model was changed; those not there are passed by.

    Returns:
        ``from``, ``to`` and, by label, how many are ``new``, how many of them stand in a document
        in which the stage removed something (``near``), and the ``distance`` of these to the
        nearest such occurrence: characters between the two, the median; None if there are none.

    Source: Borkar et al. 2025 (2502.15680). Deviation: near in the text, not in time of training.
    """
    names = [name for name in rounds if name in verdicts]
    found = []
    for earlier, later in pairwise(names):
        change = compare(verdicts[earlier], verdicts[later])
        removed: dict[int, list[tuple[int, int]]] = defaultdict(list)
        place = verdicts[later]
        for index in np.flatnonzero(change.cured).tolist():
            document, span = int(place.document[index]), int(place.span[index])
            where = corpus[document].spans[span]
            removed[document].append((where.start, where.end))
        distances: dict[str, list[int | None]] = defaultdict(list)
        for index in np.flatnonzero(change.new).tolist():
            document, span = int(place.document[index]), int(place.span[index])
            where = corpus[document].spans[span]
            gaps = [max(where.start - e, s - where.end, 0) for s, e in removed[document]]
            distances[where.label].append(min(gaps, default=None))
        found.append({"from": earlier, "to": later, "labels": _by_label(distances)})
    return found


def _by_label(distances: Mapping[str, list[int | None]]) -> dict[str, dict[str, Any]]:
    summary = {}
    for label, gaps in sorted(distances.items()):
        near = [gap for gap in gaps if gap is not None]
        distance = float(median(near)) if near else None
        summary[label] = {"new": len(gaps), "near": len(near), "distance": distance}
    return summary


def ripple_sections(found: Sequence[Mapping[str, Any]]) -> list[Section]:
    """A table of what became newly extractable; a sentence where nothing did."""
    rows = tuple(
        (
            f"{stage_name(step['from'])} to {stage_name(step['to'])}",
            label,
            str(row["new"]),
            str(row["near"]),
            "-" if row["distance"] is None else f"{row['distance']:.0f}",
        )
        for step in found
        for label, row in step["labels"].items()
    )
    if not rows:
        return [Section("ripples", "Ripples", ("No stage made anything newly extractable.",))]
    return [
        Section(
            "ripples",
            "Ripples",
            (
                "Newly extractable by label; near: in a document in which the same stage removed "
                "something; distance: characters to the nearest of that, median.",
            ),
            ("stage", "label", "newly extractable", "near", "distance"),
            rows,
        )
    ]
