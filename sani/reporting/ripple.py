"""Ripples: what a stage made newly extractable, by label, and how near to what it removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

import numpy as np

from sani.auditing.compare import compare
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus
from sani.reporting.format import Section, decimals, stage_name
from sani.reporting.schema import Ripple, RippleCount


def ripples(
    verdicts: Mapping[str, Occurrences], corpus: Corpus, *, rounds: Sequence[str]
) -> list[Ripple]:
    """Count the newly extractable occurrences of each stage, by label.

    Args:
        verdicts: Audits of the corpus by name.
        corpus: The documents audited.
        rounds: Names in the order in which the model was changed; those not there are skipped.

    Returns:
        By label, how many are ``new``, how many of them stand in a document in which the stage
        removed something (``near``), and their median ``distance`` to the nearest removed
        occurrence, in characters between the two; None if there are none.

    Source: Borkar et al. 2025 (2502.15680). Deviation: near in the text, not in time of training.
    """
    names = [name for name in rounds if name in verdicts]
    steps = []
    for earlier, later in pairwise(names):
        change = compare(verdicts[earlier], verdicts[later])
        removed: dict[int, list[tuple[int, int]]] = defaultdict(list)
        occurrences = verdicts[later]
        for index in np.flatnonzero(change.cured).tolist():
            document, span = int(occurrences.document[index]), int(occurrences.span[index])
            erased = corpus[document].spans[span]
            removed[document].append((erased.start, erased.end))
        distances: dict[str, list[int | None]] = defaultdict(list)
        for index in np.flatnonzero(change.new).tolist():
            document, span = int(occurrences.document[index]), int(occurrences.span[index])
            new = corpus[document].spans[span]
            # Spans may overlap: then the gap is 0.
            gaps = [max(new.start - e, s - new.end, 0) for s, e in removed[document]]
            distances[new.label].append(min(gaps, default=None))
        steps.append(Ripple(source=earlier, to=later, labels=_by_label(distances)))
    return steps


def _by_label(distances: Mapping[str, list[int | None]]) -> dict[str, RippleCount]:
    summary = {}
    for label, gaps in sorted(distances.items()):
        near = [gap for gap in gaps if gap is not None]
        distance = float(median(near)) if near else None
        summary[label] = RippleCount(new=len(gaps), near=len(near), distance=distance)
    return summary


def ripple_sections(steps: Sequence[Ripple]) -> list[Section]:
    """Return a table of what became newly extractable; a sentence where nothing did."""
    rows = tuple(
        (
            f"{stage_name(step.source)} to {stage_name(step.to)}",
            label,
            str(row.new),
            str(row.near),
            decimals(row.distance, 0),
        )
        for step in steps
        for label, row in step.labels.items()
    )
    if not rows:
        return [Section("ripples", "Ripples", ("No stage made anything newly extractable.",))]
    return [
        Section(
            "ripples",
            "Ripples",
            (
                "Newly extractable occurrences by label. Near: in a document in which the same "
                "stage removed something. Distance: median number of characters to the nearest "
                "removed occurrence.",
            ),
            ("stage", "label", "newly extractable", "near", "distance"),
            rows,
        )
    ]
