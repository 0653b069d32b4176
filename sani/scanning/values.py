"""The most frequent values of each label, for the person who looks at what a scan marks.

They are identifiers in clear: they go into a file of mode 0600 in a folder ``private/``, and
nowhere else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from sani.atomic import write_error, write_text
from sani.corpus.documents import Corpus, Kind
from sani.text.folding import fold_text

MOST = 50  # values of a label
_HEAD = ("label", "kind", "occurrences", "subjects", "sources", "value")


@dataclass(frozen=True)
class FrequentValue:
    """A value that is marked, however it is written.

    Attributes:
        label: Its label.
        kind: ``direct`` if any occurrence is.
        occurrences: Spans.
        subjects: Subjects in whose documents it stands.
        sources: Who marked it.
        value: As it is written where it first stands; its representation is hidden.
    """

    label: str
    kind: Kind
    occurrences: int
    subjects: int
    sources: tuple[str, ...]
    value: str

    def __repr__(self) -> str:
        """Return counts only, never the value."""
        return f"FrequentValue({self.label}, {self.occurrences} occurrences)"


def frequent_values(corpus: Corpus, *, most: int = MOST) -> list[FrequentValue]:
    """Return the values of each label that most subjects share, then those that occur most often.

    What many subjects share is more often an ordinary word than a name, so it stands first.
    """
    counts: Counter[tuple[str, str]] = Counter()
    written: dict[tuple[str, str], str] = {}
    kinds: dict[tuple[str, str], set[Kind]] = defaultdict(set)
    subjects: dict[tuple[str, str], set[str]] = defaultdict(set)
    sources: dict[tuple[str, str], set[str]] = defaultdict(set)
    for document in corpus:
        for span in document.spans:
            value = document.value(span)
            key = (span.label, fold_text(value))
            counts[key] += 1
            written.setdefault(key, value)
            kinds[key].add(span.kind)
            subjects[key].add(document.subject_id)
            sources[key].add(span.source)
    by_label: dict[str, list[FrequentValue]] = defaultdict(list)
    for key in sorted(counts, key=lambda key: (key[0], -len(subjects[key]), -counts[key], key[1])):
        if len(by_label[key[0]]) < most:
            by_label[key[0]].append(
                FrequentValue(
                    label=key[0],
                    kind="direct" if "direct" in kinds[key] else "indirect",
                    occurrences=counts[key],
                    subjects=len(subjects[key]),
                    sources=tuple(sorted(sources[key])),
                    value=written[key],
                )
            )
    return [value for values in by_label.values() for value in values]


def write_values(path: Path, corpus: Corpus) -> None:
    """Write the most frequent values as a table with tabs, of mode 0600.

    Its folder is made with mode 0700 if it is not there.

    Raises:
        WriteError: If it cannot be written.
    """
    lines = ["\t".join(_HEAD)]
    for row in frequent_values(corpus):
        counts = (str(row.occurrences), str(row.subjects))
        lines.append(
            "\t".join(
                (row.label, row.kind, *counts, ", ".join(row.sources), " ".join(row.value.split()))
            )
        )
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None
    write_text(path, "\n".join(lines) + "\n", mode=0o600)
