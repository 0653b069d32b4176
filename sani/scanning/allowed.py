"""Values that the user knows to be no identifiers: no detector marks them.

What people marked stays marked: a value that the annotation or the gold sample holds is no longer
on the list, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sani.corpus.documents import ANNOTATION, TERM_SOURCE, Corpus, Document, Span
from sani.errors import ScanError
from sani.scanning.terms import read_list
from sani.text.folding import fold_text


def read_allowed(path: Path | None, annotated: Iterable[Corpus]) -> frozenset[str]:
    """Return the values of a list, folded, without those that people marked.

    Args:
        path: One value a line; None for an empty list.
        annotated: Corpora whose annotation is kept.

    Raises:
        ScanError: If the file cannot be read, or holds no value.
    """
    if path is None:
        return frozenset()
    values = {fold_text(line.strip()) for line in read_list(path, "allow").splitlines()} - {""}
    if not values:
        raise ScanError(f"allow: {path} holds no value; expected one a line")
    marked = {
        fold_text(document.value(span).strip())
        for corpus in annotated
        for document in corpus
        for span in document.spans
        if span.source == ANNOTATION
    }
    return frozenset(values - marked)


def is_allowed(span: Span, document: Document, allowed: frozenset[str]) -> bool:
    """Return whether a span marks nothing but a value of the list; a term never does."""
    return span.source != TERM_SOURCE and fold_text(document.value(span).strip()) in allowed
