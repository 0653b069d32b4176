"""The files of a checkpoint folder that may be released, and that no identifier is in them.

Identifiers hide beside the weights too: in a token that was added, a chat template, a field of a
configuration, the metadata of a safetensors file. What training left in the folder stays there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import ahocorasick
from safetensors import SafetensorError, safe_open

from sani.corpus.documents import ANNOTATION, KINDS, TERM_SOURCE, Corpus, Kind
from sani.errors import CheckpointError
from sani.models.folder import ADAPTER_FILES, CONFIG_FILES, TOKENIZER_FILES, is_adapter
from sani.text.folding import fold_text

SHORTEST = 5
INDEX = "model.safetensors.index.json"
# Files that hold a vocabulary: a surname may be a word of any tokenizer, a record number may not.
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
BINARY_VOCABULARIES = tuple(name for name in TOKENIZER_FILES if name.endswith(".model"))
# Where tokens that were added to a tokenizer stand: under these keys, or all over the file.
ADDED_TOKENS = {
    "tokenizer.json": ("added_tokens",),
    "tokenizer_config.json": (
        "added_tokens_decoder",
        "additional_special_tokens",
        "extra_special_tokens",
    ),
    "special_tokens_map.json": None,
    "added_tokens.json": None,
}
# Fields of configurations whose whole numbers are sizes or token numbers.
SIZES = re.compile(
    r"(^n_inner|_token_ids?|_size|_dim|_positions?|_embeddings|_length|_window|_theta|_parameters)$"
)
BETWEEN = "\0"  # stands between strings that are searched as one text
# What training leaves beside a model, by pattern; anything else is counted without its name,
# which may be a patient's.
LEFTOVERS = {
    "optimizer.pt": "optimizer.pt",
    "scheduler.pt": "scheduler.pt",
    "rng_state*.pth": "rng_state.pth",
    "trainer_state.json": "trainer_state.json",
    "training_args.*": "training_args",
    "events.out.tfevents.*": "TensorBoard logs",
    ".ipynb_checkpoints": ".ipynb_checkpoints",
    "checkpoint-*": "saved states of training",
    "global_step*": "saved states of training",
    "wandb": "wandb logs",
    "mlruns": "MLflow logs",
    "*.log": "logs",
    "*.py": "code",
    "*.bin": "pickled weights",
    "*.pt": "pickled weights",
    "*.pth": "pickled weights",
    "README.md": "README.md",
}
OTHER = "other entries"


def may_be_released(name: str) -> bool:
    """Return whether a file of this name is on the allow-list, or is weights."""
    weights = name == INDEX or re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name)
    return bool(weights) or name in TOKENIZER_FILES or name in CONFIG_FILES


def files_not_released(folder: Path) -> dict[str, int]:
    """Count the entries of a checkpoint folder that are not released, by kind.

    TensorBoard logs are found in folders too. The names of files that training does not write are
    not told.
    """
    counts: Counter[str] = Counter()
    read = ADAPTER_FILES if is_adapter(folder) else ()
    for entry in folder.iterdir():
        if entry.is_file() and (may_be_released(entry.name) or entry.name in read):
            continue
        logs = entry.is_dir() and any(entry.rglob("events.out.tfevents.*"))
        counts["TensorBoard logs" if logs else _kind_of(entry.name)] += 1
    return dict(sorted(counts.items(), key=lambda item: (item[0] == OTHER, item[0])))


def _kind_of(name: str) -> str:
    return next((kind for pattern, kind in LEFTOVERS.items() if fnmatch(name, pattern)), OTHER)


def check_texts(
    folder: Path, corpus: Corpus, *, base: Path | None = None, also: Iterable[str] = ()
) -> None:
    """Refuse a checkpoint folder in whose text an identifier stands: it would be released.

    Looks into the tokenizer's and the configuration's files and the metadata of safetensors for
    direct identifiers, document ids and subject ids of `SHORTEST` characters or more, as words of
    their own; for indirect ones if they hold a digit or a blank. In vocabularies only direct ones
    with a digit or a blank count, and none that the base's vocabulary has; in added tokens, all
    direct ones, anywhere. Words without digit or blank that only a detector took for a name are
    looked for in the added tokens alone: it takes ordinary words for names too, and a release
    would fail for "Repair".

    Args:
        folder: The checkpoint.
        corpus: Every identifier of it is looked for.
        base: The public model: what is in its vocabulary is public. Its added tokens are not
            excused, since a base is often given the checkpoint's tokenizer to fit it.
        also: Names of further text files to look into.

    Raises:
        CheckpointError: With the file and how many identifiers it holds, never which.
    """
    secrets = _Secrets(corpus)
    for name in (*TOKENIZER_FILES, *CONFIG_FILES, INDEX, *also):
        if not (folder / name).is_file():
            continue
        if name in BINARY_VOCABULARIES:
            pieces = (folder / name).read_bytes().decode(errors="ignore").replace("▁", " ")
            leaked = _standing(secrets.telling, [pieces], whole_words=False)
        elif name in VOCABULARIES:
            public = set(_vocabulary(base / name)) if base and (base / name).is_file() else set()
            not_public = (piece for piece in _vocabulary(folder / name) if piece not in public)
            leaked = _standing(secrets.telling, not_public)
        else:
            leaked = _standing(secrets.all, _strings(_parse(folder / name)))
        if name in ADDED_TOKENS:
            added = list(_added_tokens(name, _parse(folder / name)))
            leaked |= _standing(secrets.direct, added, whole_words=False)
            leaked |= _standing(secrets.all, added)
        _refuse(folder, name, leaked)
    for file in sorted(folder.glob("*.safetensors")):
        if may_be_released(file.name):
            _refuse(folder, file.name, _standing(secrets.all, _strings(_metadata(file))))


def check_release(folder: Path, corpus: Corpus, *, base: Path | None, ours: Iterable[str]) -> None:
    """Refuse a folder about to be released that holds another file, or an identifier.

    Args:
        folder: The folder.
        corpus: As for `check_texts`.
        base: As for `check_texts`.
        ours: Names of the text files that sani wrote into it.

    Raises:
        CheckpointError: If it does.
    """
    ours = tuple(ours)
    entries = list(folder.iterdir())
    strange = [e for e in entries if not (may_be_released(e.name) or e.name in ours)]
    if strange or not all(entry.is_file() for entry in entries):
        raise CheckpointError(
            f"model folder {folder}: {len(strange) or 'some'} entries are not on the list of what "
            "is released; nothing was released"
        )
    check_texts(folder, corpus, base=base, also=ours)


class _Secrets:
    """The values that must not be released, folded.

    Attributes:
        all: Every one.
        direct: Direct identifiers and ids.
        telling: Those that no vocabulary holds by chance.
    """

    def __init__(self, corpus: Corpus) -> None:
        values: dict[Kind, set[tuple[str, bool]]] = {"direct": set(), "indirect": set()}
        for document in corpus:
            for s in document.spans:
                sure = s.source in (ANNOTATION, TERM_SOURCE)
                values[s.kind].add((fold_text(document.value(s)), sure))
            values["direct"] |= {(fold_text(n), True) for n in (document.id, document.subject_id)}
        direct, indirect = (
            {(value, sure) for value, sure in values[kind] if len(value) >= SHORTEST}
            for kind in KINDS
        )
        known = {value for value, sure in direct if sure or not value.isalpha()}
        self.direct = _automaton(value for value, _ in direct)
        self.telling = _automaton(filter(_telling, known))
        self.all = _automaton(known | {v for v, sure in indirect if sure and _telling(v)})


def _telling(value: str) -> bool:
    return re.search(r"[\d\s]", value) is not None


def _automaton(values: Iterable[str]) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for value in values:
        automaton.add_word(value, value)
    automaton.make_automaton()
    return automaton


def _standing(
    secrets: ahocorasick.Automaton, strings: Iterable[str], *, whole_words: bool = True
) -> set[str]:
    """Return the secrets that stand in one of the strings, whatever case, accents and blanks."""
    text = fold_text(BETWEEN.join(strings))
    if not len(secrets):
        return set()
    return {
        secret
        for last, secret in secrets.iter(text)
        if not (whole_words and _inside(text, last + 1 - len(secret), last + 1))
    }


def _inside(text: str, start: int, end: int) -> bool:
    """Return whether a word goes on before or after a stretch of the text."""
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    return re.match(r"\w", before) is not None or re.match(r"\w", after) is not None


def _refuse(folder: Path, name: str, leaked: set[str]) -> None:
    if leaked:
        raise CheckpointError(
            f"model folder {folder}: {name} holds {len(leaked)} identifiers or ids of the corpus, "
            "and it is released in clear; remove them first"
        )


def _parse(file: Path) -> Any:
    """Read a JSON file's content, or the text of any other."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _strings(data: Any, *, numbers: bool = True) -> Iterator[str]:
    """Yield every key, string and, if asked, whole number of a JSON value; sizes are left out."""
    waiting = [(data, numbers)]
    while waiting:
        value, counts = waiting.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                if key == "added_tokens_decoder" and isinstance(inner, dict):
                    inner = list(inner.values())  # its keys are token numbers
                waiting.append((inner, counts and not SIZES.search(key)))
        elif isinstance(value, list):
            waiting += [(inner, counts) for inner in value]
        elif isinstance(value, str) or (counts and isinstance(value, int)):
            yield str(value)


def _vocabulary(file: Path) -> Iterator[str]:
    """Read the pieces of a vocabulary, with blanks where the tokenizer writes a sign for them."""
    data = _parse(file)
    pieces = data.split("\n") if isinstance(data, str) else _strings(data, numbers=False)
    return (piece.replace("Ġ", " ").replace("▁", " ") for piece in pieces)


def _added_tokens(name: str, data: Any) -> Iterator[str]:
    if name in ADDED_TOKENS:
        keys = ADDED_TOKENS[name]
        if keys is not None and isinstance(data, dict):
            data = {key: data.get(key) for key in keys}
        yield from _strings(data, numbers=False)


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"model file {file} cannot be read ({type(error).__name__}); is it whole?"
        ) from None
