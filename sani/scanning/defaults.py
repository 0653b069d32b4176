"""The detectors where nobody names any: one rule for `sani scan`, `sani init` and its recipes.

A corpus that is annotated counts as it is. Records that nobody has annotated are scanned with
patterns, names by an installed spaCy pipeline, and propagation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from sani.corpus.documents import Corpus
from sani.recipe import ScanSettings
from sani.scanning.pipelines import (
    LANGUAGES,
    MANY,
    best_pipeline,
    installed_pipelines,
    language_of,
)

INSTALL = (
    "names that stand after no heading, title or listed given name are missed: no spaCy pipeline "
    "is installed; install one of the language of the records, for English: pip install "
    "'sani-llm[ner]'"
)

UNKNOWN_RECALL = (
    "how many identifiers the scan missed (its recall) is not known: annotate 20 to 50 notes by "
    "hand, completely, and name them in scan.gold; what it missed is trained on as ordinary text"
)


def default_settings(corpora: Sequence[Corpus], *, annotated: bool | None = None) -> ScanSettings:
    """Return the detectors for some corpora that are scanned in the same way.

    Args:
        corpora: The records and, if there are any, the held-out documents.
        annotated: Whether their annotation is all that counts; None where each of them marks
            something: one without any span is scanned, and all others with it.

    Returns:
        No detector for annotated corpora, else all that need nothing from the user.
    """
    if annotated is None:
        annotated = all(corpus.num_spans for corpus in corpora)
    if annotated:
        return ScanSettings()
    pipelines = installed_pipelines()
    pipeline = best_pipeline(pipelines, language_of(chain(*corpora)) if pipelines else None)
    return ScanSettings(patterns=True, ner=pipeline.name if pipeline else None, propagate="subject")


def settings_in_words(settings: ScanSettings, corpora: Sequence[Corpus]) -> Iterator[str]:
    """Yield what a scan with these settings looks for, and what it is known to miss.

    Args:
        settings: The detectors.
        corpora: The corpora that are scanned.
    """
    if not settings.detects:
        yield "scanned with: nothing; the annotation of the documents is all that counts"
        return
    parts = ["patterns"] if settings.patterns else []
    if settings.ner:
        parts.append(f"names by {' and '.join(settings.ner_models)}")
    if settings.terms:
        parts.append("your list of terms")
    if settings.structure:
        parts.append("header fields that the documents show")
    if settings.propagate == "corpus":
        parts.append("propagation of each value to all documents")
    elif settings.propagate:
        known = any(document.subject_id != document.id for corpus in corpora for document in corpus)
        where = "to the documents of its subject" if known else "within its document"
        parts.append(f"propagation of each value {where}")
    if settings.indirect:
        parts.append("rare words and n-grams")
    yield f"scanned with: {', '.join(parts)}"
    yield from _gaps(settings, corpora)


def _gaps(settings: ScanSettings, corpora: Sequence[Corpus]) -> Iterator[str]:
    """Yield what to install so that more names are marked."""
    if not settings.ner:
        if not installed_pipelines():
            yield INSTALL
        return
    languages = {pipeline.name: pipeline.language for pipeline in installed_pipelines()}
    known = {name: languages[name] for name in settings.ner_models if languages.get(name)}
    notes = language_of(chain(*corpora))
    if len(known) < len(settings.ner_models) or not notes or {notes, MANY} & set(known.values()):
        return
    for name, language in known.items():
        yield (
            f"{name} is for {LANGUAGES.get(language, language)}, and the documents look "
            f"{LANGUAGES[notes]}: it misses names, and marks ordinary words; install a pipeline of "
            "their language"
        )
