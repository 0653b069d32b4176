"""The outcome of a review: the gold sample, the values to allow, and how good the scan was.

What a page saves holds numbers of documents and values, offsets and labels; no text of a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sani.atomic import check_new_file, write_text
from sani.corpus.documents import ANNOTATION, Corpus, Document, Kind, Span, by_turn
from sani.corpus.records import RecordError, check_offsets
from sani.corpus.tables import write_jsonl
from sani.counting import counted, verb
from sani.errors import ScanError
from sani.intervals import Rate
from sani.reviewing.draw import reviewed_spans
from sani.reviewing.material import FORMAT, Material, key_of, material_of
from sani.reviewing.page import make_private_folder
from sani.reviewing.size import design_effect, documents_needed
from sani.scanning.allowed import is_allowed
from sani.scanning.evaluation import Evaluation, evaluate
from sani.scanning.labels import kind_by_value, kind_of_label, scan_label
from sani.scanning.terms import read_list

GOLD_FILE, ALLOW_FILE = "gold.jsonl", "allow.txt"
LEAST_RECALL = 0.9  # the limit that is proposed: what was measured is no reason for a lower one


class _SavedDocument(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    number: int
    complete: bool
    spans: list[tuple[int, int, str]]


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    version: int
    digest: str
    struck: list[int]
    documents: list[_SavedDocument]


@dataclass(frozen=True)
class Review:
    """A review that was applied.

    Attributes:
        gold: The documents that the person completed, with the spans as they corrected them.
        allowed: The struck values that stand nowhere in the gold sample as an identifier.
        not_allowed: Number of struck values that do: they stay marked.
        incomplete: Number of documents that were changed and not completed: they are not gold.
        scanned: The scan held against the gold sample.
        with_allowed: The same scan without the allowed values.
        design: By how much the variance of the recall grows since misses of a document are alike.
        documents_needed: Documents to complete for the wanted interval; None if unknown.
        documents_at_hand: Documents of the corpus.
    """

    gold: Corpus
    allowed: tuple[str, ...] = field(repr=False)
    not_allowed: int
    incomplete: int
    scanned: Evaluation
    with_allowed: Evaluation
    design: float
    documents_needed: int | None
    documents_at_hand: int

    @property
    def recall(self) -> Rate:
        """Direct identifiers that the scan covers whole, once the struck values are allowed."""
        return self.with_allowed.recall

    @property
    def has_recall(self) -> bool:
        """True if the gold sample marks a direct identifier: only then it measures a recall."""
        return self.recall.trials > 0

    @property
    def in_words(self) -> str:
        """The number of documents and identifiers that the figures stand on."""
        documents, spans = len(self.gold), self.gold.num_spans
        return f"{counted(documents, 'document')} reviewed, with {counted(spans, 'identifier')}"

    def sentences(self, interval: float) -> Iterator[str]:
        """Yield what to know beside the figures: documents needed, values, documents left out."""
        if self.documents_needed is None:
            yield (
                "The recall is unknown: no complete document marks a direct identifier. Complete "
                "more documents."
            )
        elif self.documents_needed <= len(self.gold):
            yield f"The interval of ±{interval:g} is reached."
        else:
            yield (
                f"An interval of ±{interval:g} needs about {self.documents_needed} complete "
                f"documents (design effect {self.design:.1f})."
            )
            if self.documents_needed > self.documents_at_hand:
                yield f"The corpus has only {self.documents_at_hand}: review all of them."
        if self.allowed or self.not_allowed:
            yield (
                f"Struck values: {len(self.allowed)} allowed; {self.not_allowed} stay marked, "
                "since a complete document marks them as identifiers."
            )
        if self.incomplete:
            yield (
                f"{counted(self.incomplete, 'document')} {verb(self.incomplete, 'was', 'were')} "
                "changed and not completed: not gold."
            )

    def recipe_lines(self, gold: Path | None, allow: Path | None) -> str:
        """Return the lines for the recipe, given the files that `write_outcome` wrote."""
        scan = {"gold": str(gold) if gold and self.has_recall else None}
        scan["allow"] = str(allow) if allow else None
        given = {key: value for key, value in scan.items() if value}
        sections: dict[str, object] = {"scan": given} if given else {}
        if scan["gold"]:
            sections["gate"] = {"scan_recall": LEAST_RECALL}
        if not sections:
            return ""
        return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True).rstrip()

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain data; holds no value of the corpus."""
        return {
            "documents": len(self.gold),
            "incomplete": self.incomplete,
            "identifiers": self.gold.num_spans,
            "recall": asdict(self.recall),
            "precision": asdict(self.scanned.precision),
            "precision_with_allowed": asdict(self.with_allowed.precision),
            "design_effect": self.design,
            "documents_needed": self.documents_needed,
            "allowed": len(self.allowed),
            "not_allowed": self.not_allowed,
        }


def apply_review(corpus: Corpus, path: Path, *, interval: float = 0.05) -> Review:
    """Read what the page saved, and hold the scan against it.

    Args:
        corpus: The documents that the page was made of, with the same findings.
        path: The file that the page saved.
        interval: As for `sani.reviewing.page.write_page`.

    Raises:
        ScanError: If the file is none that the page saved, belongs to other documents, has a span
            outside its text, or neither completes a document nor strikes a value.
    """
    material = material_of(corpus)
    saved = _read(path, material)
    completed = [item for item in saved.documents if item.complete]
    if not completed and not saved.struck:
        raise ScanError(
            f"{path}: no document is complete and no value is struck, so there is nothing to apply"
        )
    kinds = _kinds(corpus)
    gold = Corpus([_corrected(corpus[i.number], i.spans, kinds) for i in completed])
    marked = {key_of(span, document) for document in gold for span in document.spans}
    values = dict.fromkeys(material.values[number] for number in sorted(set(saved.struck)))
    keys = {value: key_of(Span(0, len(value), ""), Document("", "", value)) for value in values}
    allowed = tuple(value for value in values if keys[value] not in marked)
    folded = frozenset(keys[value] for value in allowed)
    scans = [corpus[item.number] for item in completed]
    before = [reviewed_spans(document) for document in scans]
    after = [
        [span for span in spans if not _is_struck(span, document, folded)]
        for spans, document in zip(before, scans, strict=True)
    ]
    each = [evaluate([d], [s]).entities for d, s in zip(gold, after, strict=True)]
    counts = [(tally.gold_matched, tally.gold) for tally in each]
    return Review(
        gold=gold,
        allowed=allowed,
        not_allowed=len(values) - len(allowed),
        incomplete=len(saved.documents) - len(completed),
        scanned=evaluate(gold, before),
        with_allowed=evaluate(gold, after),
        design=design_effect(counts),
        documents_needed=documents_needed(counts, interval),
        documents_at_hand=len(corpus),
    )


def write_outcome(review: Review, folder: Path) -> tuple[Path | None, Path | None]:
    """Write the gold sample and the allowed values, each of mode 0600, if there are any.

    Args:
        review: The review.
        folder: Where to; made with mode 0700 if it is not there.

    Returns:
        The two files; None for one that would be empty.

    Raises:
        WriteError: If one of them is there already, or cannot be written.
    """
    make_private_folder(folder)
    gold = folder / GOLD_FILE if len(review.gold) else None
    allow = folder / ALLOW_FILE if review.allowed else None
    for path in filter(None, (gold, allow)):
        check_new_file(path)
    if gold:
        write_jsonl(review.gold, gold)
    if allow:
        write_text(allow, "".join(f"{value}\n" for value in review.allowed), mode=0o600)
    return gold, allow


def _read(path: Path, material: Material) -> _Saved:
    text = read_list(path, "review")
    try:
        saved = _Saved.model_validate_json(text)
    except ValidationError:  # its own words would quote the file
        saved = None
    if saved is None:
        raise ScanError(
            f"{path}: it is not what the page of sani review saves, or not all of it; save it again"
        )
    if saved.version != FORMAT:
        raise ScanError(f"{path}: it was saved by another version of sani; make a new page")
    if saved.digest != material.digest:
        raise ScanError(
            f"{path}: it is a review of other documents, or of another scan of them; give the file "
            "of which the page was made"
        )
    _check_numbers(path, saved, material)
    return saved


def _check_numbers(path: Path, saved: _Saved, material: Material) -> None:
    """Refuse numbers and spans that fit no document, and labels that the page does not offer."""
    numbers = [item.number for item in saved.documents]
    known = range(len(material.corpus))
    if len(set(numbers)) < len(numbers) or any(number not in known for number in numbers):
        raise ScanError(f"{path}: it names a document twice, or one that is not there")
    if any(number not in range(len(material.values)) for number in saved.struck):
        raise ScanError(f"{path}: it strikes a value that is not there")
    for place, item in enumerate(saved.documents, start=1):
        for start, end, label in item.spans:
            if label not in material.labels:
                raise ScanError(
                    f"{path}: document {place} of it has a label that the page does not offer"
                )
            try:
                check_offsets(start, end, material.corpus[item.number].text)
            except RecordError as problem:
                raise ScanError(
                    f"{path}: a span of document {place} of it does not fit the text: {problem}"
                ) from None


def _corrected(
    document: Document, spans: Sequence[tuple[int, int, str]], kinds: Mapping[str, Kind]
) -> Document:
    """Return a document with the spans of the review, as if people had annotated it from scratch.

    A span that the scan marked in the same way keeps its kind.
    """
    before = {(span.start, span.end, span.label): span.kind for span in document.spans}
    corrected: list[Span] = []
    for start, end, label in spans:
        value = document.text[start:end]
        kind = before.get((start, end, label)) or kind_by_value(label, value)
        kind = kind or kinds.get(label) or kind_of_label(scan_label(label))
        corrected += by_turn(Span(start, end, label, kind, ANNOTATION), document)
    return replace(document, spans=tuple(sorted(set(corrected))))


def _kinds(corpus: Corpus) -> dict[str, Kind]:
    """Return the kind of each label of the corpus: direct if any of its spans is."""
    kinds: dict[str, Kind] = {}
    for document in corpus:
        for span in document.spans:
            if kinds.get(span.label) != "direct":
                kinds[span.label] = span.kind
    return kinds


def _is_struck(span: Span, document: Document, allowed: frozenset[str]) -> bool:
    """Return whether the scan would not mark a span if these values were allowed."""
    return span.source != ANNOTATION and is_allowed(span, document, allowed)
