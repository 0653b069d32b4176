"""Prompts of the audit by generation: nothing, headings, document openings, the user's lines."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from sani.corpus.documents import Corpus
from sani.errors import AuditError
from sani.models.checkpoint import Checkpoint
from sani.recipe import GenerationSettings
from sani.text.framing import Framing
from sani.text.tokens import Encoded, encode, overlapping

PROMPTS = ("empty", "headings", "openings", "file")
HEADING_SHARE = 0.1  # of the documents, in which a line must recur to be a heading
OPENING_TOKENS = 32  # ours: enough to name the document, too few to give its identifiers
FILE_SAMPLES = 1000  # ours: where no other kind of prompt says how many


@dataclass(frozen=True)
class Prompt:
    """One sample to draw.

    Attributes:
        kind: One of `PROMPTS`.
        number: Number of the sample among those of its kind; with the seed it fixes the random
            numbers.
        tokens: Tokens that the model reads, framing included.
    """

    kind: str
    number: int
    tokens: tuple[int, ...]


def make_prompts(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: GenerationSettings,
    framing: Framing,
    *,
    encoded: Sequence[Encoded] | None = None,
) -> list[Prompt]:
    """Return every sample to draw; the samples of a kind are spread evenly over its prompts.

    Headings are the lines, each up to its first identifier, that recur in at least `HEADING_SHARE`
    of the documents and with two subjects or more. An opening is the first tokens of a document,
    as they stand, and at most half of it.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: The documents.
        settings: Samples of each kind.
        framing: The tokens before each prompt.
        encoded: The documents as tokens; made from ``corpus`` if None.

    Raises:
        AuditError: If the file of prompts cannot be read or holds none.
    """
    tokenizer = checkpoint.tokenizer
    if encoded is None:
        encoded = encode(corpus, tokenizer)
    openings = [tuple(item.ids[: min(OPENING_TOKENS, len(item.ids) // 2)]) for item in encoded]
    lines = read_prompts(settings.file) if settings.file else []
    choices: dict[str, tuple[list[tuple[int, ...]], int]] = {
        "empty": ([()], settings.empty),
        "headings": (_headings(corpus, encoded), settings.headings),
        "openings": ([opening for opening in openings if opening], settings.openings),
        "file": (
            [tuple(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in lines],
            max(
                max(settings.empty, settings.headings, settings.openings) or FILE_SAMPLES,
                len(lines),
            ),
        ),
    }
    nothing = framing.prefix or _first_token(tokenizer, encoded)
    return [
        Prompt(kind, number, (*framing.prefix, *chosen) or nothing)
        for kind, (prompts, samples) in choices.items()
        for number in range(samples if prompts else 0)
        for chosen in [prompts[number * len(prompts) // samples]]
    ]


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file, one a line; empty lines are skipped.

    Raises:
        AuditError: If the file cannot be read or holds no prompt.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise AuditError(
            f"audit.generation.file {path} is a pipe or a device, which may never end; give a file"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise AuditError(
            f"audit.generation.file {path} cannot be read ({reason}); give a text file with one "
            "prompt a line"
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise AuditError(f"audit.generation.file {path} holds no prompt; write one a line")
    return lines


def fit_prompts(
    prompts: Sequence[Prompt], framing: Framing, *, new_tokens: int, context_tokens: int
) -> tuple[list[Prompt], int]:
    """Cut prompts on the left, behind the framing, so that they and their continuations fit.

    Args:
        prompts: Samples to draw.
        framing: The tokens before each prompt, which are never cut.
        new_tokens: Wanted tokens of a continuation.
        context_tokens: The model's longest input. A continuation gets at least half of it.

    Returns:
        The prompts, and the tokens of a continuation.

    Raises:
        AuditError: If there is no room for a continuation.
    """
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    new_tokens = min(new_tokens, max(context_tokens - longest, context_tokens // 2))
    if new_tokens < 1:
        raise AuditError(f"a context of {context_tokens} tokens leaves no room to sample")
    room = context_tokens - new_tokens
    lead = framing.prefix[-room:]

    def cut(tokens: tuple[int, ...]) -> tuple[int, ...]:
        over = len(tokens) - room
        return (*lead, *tokens[len(lead) + over :]) if over > 0 else tokens

    return [Prompt(p.kind, p.number, cut(p.tokens)) for p in prompts], new_tokens


def _first_token(tokenizer: Any, encoded: Sequence[Encoded]) -> tuple[int, ...]:
    """Return the token to begin with where nothing stands before a document."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (int(token),)
    counts = Counter(item.ids[0] for item in encoded if item.ids)
    return (min(counts, key=lambda token: (-counts[token], token)),)


def _headings(corpus: Corpus, encoded: Sequence[Encoded]) -> list[tuple[int, ...]]:
    """Return each recurring line as it is tokenized most often; commonest line first."""
    tokens: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    documents: Counter[str] = Counter()
    subjects: dict[str, set[str]] = defaultdict(set)
    for document, item in zip(corpus, encoded, strict=True):
        here: set[str] = set()
        for line in re.finditer(r"[^\n\r]+", document.text):
            # An identifier is never part of a prompt: the heading ends where the first one begins.
            touched = [
                max(span.start, line.start())
                for span in document.spans
                if span.start < line.end() and span.end > line.start()
            ]
            text = document.text[line.start() : min([line.end(), *touched])]
            heading = text.strip()
            if not any(map(str.isalpha, heading)):
                continue
            start = line.start() + len(text) - len(text.lstrip())
            first, last = overlapping(item.starts, item.ends, start, start + len(heading))
            while last > first and item.ends[last - 1] > start + len(heading):
                last -= 1  # a token that reaches into what follows would give it away
            if last > first:
                here.add(heading)
                tokens[heading][tuple(item.ids[first:last])] += 1
        documents.update(here)
        for heading in here:
            subjects[heading].add(document.subject_id)
    enough = ceil(HEADING_SHARE * len(corpus))
    headings = [
        heading
        for heading in sorted(documents, key=lambda heading: (-documents[heading], heading))
        if documents[heading] >= enough and len(subjects[heading]) >= 2
    ]
    return list(dict.fromkeys(tokens[heading].most_common(1)[0][0] for heading in headings))
