"""Identifiers by any token-classification checkpoint in a folder, whatever its tagging scheme.

Tags may be BIO, BIOES, BILOU or bare classes. Nothing is thrown away for breaking the scheme: every
token with a class is part of an identifier, and the scheme only tells where one ends and the next
begins. Deviation: models that were published with a Viterbi search over the tags are read without
it, since the search may only take marked tokens away or move their ends.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sani.corpus.documents import Span
from sani.errors import ScanError
from sani.machine.device import default_device, quiet_libraries
from sani.scanning.labels import bare_label, kind_of, scan_label, scan_labels
from sani.scanning.windows import Window, windows

SOURCE = "ner"
NOTHING = "O"  # of a mapping: the class is no identifier
_OPENING, _CLOSING = ("B-", "S-", "U-"), ("E-", "L-", "S-", "U-")
_NUMBERED = re.compile(r"(?i)label_\d+")  # the library's name for a class without one
_WITHIN = " \t.'\u2019-"  # may stand between the words of one name
_STRIDE = 64  # tokens that two windows share, at most
# A window of characters has fewer tokens: a model for longer texts reads it at once.
_LONGEST = 4096
_TOKENS_A_BATCH = 8192


@dataclass(frozen=True, slots=True)
class _Tag:
    """A class of the model: the scan's label ("" for none), and if it opens or closes a span."""

    label: str
    opens: bool
    closes: bool


@dataclass(frozen=True, slots=True)
class _Token:
    """One token as the model sees it: its tag, the probability, the distance to the edge."""

    tag: _Tag
    score: float
    edge: int


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of the text, with the surest label of its tokens that is one."""

    start: int
    end: int
    label: str
    score: float
    opens: bool
    closes: bool


class TransformersNer:
    """A token-classification checkpoint: long texts windowed by tokens, batched, on the device.

    A token that stands in two windows is judged in the one where it is further from the edge. A
    word is an identifier if any of its tokens is; its label is that of the surest.

    Args:
        folder: It holds ``config.json``, safetensors and a fast tokenizer.
        labels: Class of the model, without the tag's prefix -> label of the scan, or ``O`` for
            none; a class that it lacks goes by ``labels.yaml``.

    Raises:
        ScanError: If the folder holds no such checkpoint, or none of its classes is a known label.
    """

    language = ""
    words: Container[str] = ()

    def __init__(self, folder: Path, labels: Mapping[str, str] | None = None) -> None:
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        from sani.models.folder import ModelFolder
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
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:  # padding is masked: any token will do
            self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(0)
        self._model.to(default_device()).eval()
        self.forks = self._model.device.type == "cpu"
        self._length = min(_positions(self._model), self._tokenizer.model_max_length, _LONGEST)
        names = [name for _, name in sorted(self._model.config.id2label.items())]
        self.classes = frozenset(map(bare_label, names)) - {NOTHING}
        self._tags = [_tag(name, labels or {}) for name in names]
        _check_classes(self.classes, labels or {}, folder)
        self.name = f"transformers {ModelFolder(folder).digest} {self._tags}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Find the spans of each text; the score is the probability of the label."""
        spans: list[list[Span]] = [[] for _ in texts]
        pieces = [(number, window) for number, text in enumerate(texts) for window in windows(text)]
        words_of = self._words([window.text for _, window in pieces])
        for (number, window), words in zip(pieces, words_of, strict=True):
            spans[number] += _spans(texts[number], window, words)
        return spans

    def _words(self, texts: list[str]) -> Iterator[list[_Word]]:
        """Yield the words of each text."""
        tokens: list[dict[tuple[int, int], _Token]] = [{} for _ in texts]
        if texts:
            encoded = self._tokenizer(
                texts,
                truncation=True,
                max_length=self._length,
                stride=min(_STRIDE, self._length // 4),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
            for rows in _batches([len(ids) for ids in encoded["input_ids"]]):
                self._judge(encoded, rows, tokens)
        for text, of_text in zip(texts, tokens, strict=True):
            yield _whole_words(text, of_text)

    def _judge(
        self, encoded: Any, rows: Sequence[int], tokens: list[dict[tuple[int, int], _Token]]
    ) -> None:
        """Add what the model says of the tokens of some windows."""
        import torch

        batch = self._tokenizer.pad(
            {key: [encoded[key][row] for row in rows] for key in ("input_ids", "attention_mask")},
            return_tensors="pt",
        ).to(self._model.device)
        with torch.inference_mode():
            logits = self._model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits  # [windows, tokens, classes]
        scores, choices = torch.softmax(logits.float(), dim=-1).max(dim=-1)
        for row, chosen, sure in zip(rows, choices.tolist(), scores.tolist(), strict=True):
            of_text = tokens[encoded["overflow_to_sample_mapping"][row]]
            special, offsets = encoded["special_tokens_mask"][row], encoded["offset_mapping"][row]
            places = [place for place, is_special in enumerate(special) if not is_special]
            for place in places:
                start, end = offsets[place]
                edge = min(place - places[0], places[-1] - place)
                known = of_text.get((start, end))
                if end > start and (known is None or edge >= known.edge):
                    of_text[start, end] = _Token(self._tags[chosen[place]], sure[place], edge)


def _tag(name: str, labels: Mapping[str, str]) -> _Tag:
    """Return what a class of the model means."""
    bare = bare_label(name)
    label = labels.get(bare, "" if bare == NOTHING else scan_label(bare))
    label = "" if label == NOTHING else label
    prefix = name[:2] if bare != name else ""
    return _Tag(label, prefix in _OPENING, prefix in _CLOSING)


def _check_classes(classes: frozenset[str], labels: Mapping[str, str], folder: Path) -> None:
    """Refuse a model of whose classes it is not known what they are.

    Raises:
        ScanError: If all its classes are unknown, or one has nothing but a number for a name.
    """
    unknown = {name for name in classes - set(labels) if scan_label(name) not in scan_labels()}
    unnamed = sorted(name for name in unknown if _NUMBERED.fullmatch(name))
    if unnamed or (unknown and unknown == classes):
        shown = unnamed or sorted(unknown)
        raise ScanError(
            f"ner: {folder}: the scan does not know what its classes are: "
            f"{', '.join(shown[:12])}; say it for each in scan.ner_labels of the recipe, as in "
            f"{{{shown[0]}: NAME}}, with O for what is no identifier"
        )


def _positions(model: Any) -> int:
    """Return how many tokens a model reads at once.

    RoBERTa and its kin number positions from behind that of the padding: their configuration names
    two more than they can read.
    """
    length = int(getattr(model.config, "max_position_embeddings", 0) or 512)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return min(length, int(module.num_embeddings) - int(module.padding_idx) - 1)
    return length


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of windows that go through the model together, the longest first."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _whole_words(text: str, tokens: dict[tuple[int, int], _Token]) -> list[_Word]:
    """Join tokens where letters or digits touch; the surest label that is one wins."""
    words: list[_Word] = []
    for (start, end), token in sorted(tokens.items()):
        tag = token.tag
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if words and words[-1].end == start and text[start - 1 : start + 1].isalnum():
            first = words.pop()
            label, score = tag.label, token.score
            if first.label and (not label or first.score >= score):
                label, score = first.label, first.score
            words.append(_Word(first.start, end, label, score, first.opens, tag.closes))
        elif start < end:
            words.append(_Word(start, end, tag.label, token.score, tag.opens, tag.closes))
    return words


def _spans(text: str, window: Window, words: list[_Word]) -> Iterator[Span]:
    """Yield the identifiers of a window that are its own, with places in the whole text."""
    for run in _runs(window.text, words):
        if share := window.share(run[0].start, run[-1].end):
            start, end = (window.offset + place for place in share)
            label, score = run[0].label, max(word.score for word in run)
            kind = kind_of(label, text[start:end])
            yield Span(start, end, label, kind, SOURCE, round(score, 4))


def _runs(text: str, words: list[_Word]) -> Iterator[list[_Word]]:
    """Yield neighbouring words of one label, unless their tags say that they are two names."""
    run: list[_Word] = []
    for word in words:
        if run and (
            word.label != run[0].label
            or word.opens
            or run[-1].closes
            or text[run[-1].end : word.start].strip(_WITHIN)
        ):
            yield run
            run = []
        if word.label:
            run.append(word)
    if run:
        yield run
