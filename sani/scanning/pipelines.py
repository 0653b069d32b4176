"""The spaCy pipelines that are installed, and which of them fits the language of some notes.

The language is the one whose stop-words (spaCy's lists) make up most of the words. Nothing is
loaded but the pipelines' descriptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any

import regex

from sani.corpus.documents import Document
from sani.text.folding import fold_text

LANGUAGES = {
    "en": "English", "es": "Spanish", "de": "German", "fr": "French", "it": "Italian",
    "pt": "Portuguese", "nl": "Dutch",
}  # fmt: skip
MANY = "xx"  # spaCy's name for a pipeline of many languages
_SAMPLE, _CHARACTERS = 50, 2_000
_WORD = regex.compile(r"\p{L}+")


@dataclass(frozen=True)
class Pipeline:
    """A spaCy pipeline with a component for names.

    Attributes:
        name: Its package.
        language: In ISO 639-1, or `MANY`.
        score: F1 of its names, as its makers say; 0 if they do not.
    """

    name: str
    language: str
    score: float


@cache
def installed_pipelines() -> tuple[Pipeline, ...]:
    """Return the installed spaCy pipelines that find names, the best first."""
    if find_spec("spacy") is None:
        return ()
    from spacy.util import get_installed_models, get_package_path, load_meta

    pipelines = []
    for name in get_installed_models():
        try:
            meta: dict[str, Any] = load_meta(get_package_path(name) / "meta.json")
        except (OSError, ValueError):  # a package that is not whole is none
            continue
        if "ner" in meta.get("pipeline", meta.get("components", ())):
            score = (meta.get("performance") or {}).get("ents_f") or 0.0
            pipelines.append(Pipeline(name, meta["lang"], score))
    return tuple(sorted(pipelines, key=lambda pipeline: (-pipeline.score, pipeline.name)))


def best_pipeline(pipelines: Sequence[Pipeline], language: str | None) -> Pipeline | None:
    """Return the pipeline of the language, else one of many languages, else the first; or None.

    A pipeline of another language finds names too, fewer and beside more ordinary words.
    """
    fit = {language: 0, MANY: 1}
    return min(pipelines, key=lambda pipeline: fit.get(pipeline.language, 2), default=None)


def language_of(documents: Iterable[Document]) -> str | None:
    """Return the language of `LANGUAGES` that some documents are in; None if they hold no word."""
    first = islice(documents, _SAMPLE)
    return language_in(" ".join(document.text[:_CHARACTERS] for document in first))


def language_in(text: str) -> str | None:
    """Return the language of `LANGUAGES` whose stop-words a text uses most; None if it has none."""
    counts = _counts(text)
    language = max(counts, key=lambda one: counts[one], default=None)
    return language if language is not None and counts[language] else None


def is_foreign(text: str, language: str) -> bool:
    """Return whether a text uses twice as many stop-words of another language as of this one."""
    counts = _counts(text)
    return language in counts and max(counts.values()) > 2 * counts[language]


def _counts(text: str) -> dict[str, int]:
    """Return how many words of a text are stop-words of each language."""
    words = [word.lower() for word in _WORD.findall(text)]
    return {
        language: sum(word in stop_words for word in words)
        for language, stop_words in _stop_words().items()
    }


@cache
def stop_words(language: str | None) -> frozenset[str]:
    """Return the stop-words of a language, folded; none of one that is not known."""
    return frozenset(map(fold_text, _stop_words().get(language or "", ())))


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    if find_spec("spacy") is None:
        return {}
    from spacy.util import get_lang_class

    return {
        language: frozenset(get_lang_class(language).Defaults.stop_words) for language in LANGUAGES
    }
