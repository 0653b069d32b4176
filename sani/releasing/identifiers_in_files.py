"""A search of a checkpoint folder's texts for identifiers, before they are released.

Identifiers hide beside the weights too: in a token that was added, a chat template, a field of a
configuration, the metadata of a safetensors file. What training left in the folder stays there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sani.corpus.documents import ANNOTATION, KINDS, TERM_SOURCE, Corpus, Kind
from sani.errors import CheckpointError
from sani.models.folder_files import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    TEMPLATES,
    TOKENIZER_FILES,
    is_adapter,
    tokenizer_files,
)
from sani.releasing.released_files import INDEX, may_be_released, searched_texts
from sani.releasing.spellings import SHORTEST, Spellings
from sani.text.folding import fold_text

LONG_NUMBER_DIGITS = 6
LONG_NUMBER = 10**6  # sizes of models have fewer digits, or are round
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
TOKENIZER_SIZES = ("model_max_length", "max_length")
# Fields by which generation favours or forbids certain tokens. They change what is written without
# a change of the weights, which alone are audited, and the tokens may be those of names.
STEERS_TOKENS = (
    "sequence_bias", "bad_words_ids", "force_words_ids", "constraints", "forced_decoder_ids",
    "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip


def check_texts(
    folder: Path, corpus: Corpus, *, base: Path | None = None, also: Iterable[str] = ()
) -> None:
    """Refuse a checkpoint folder in whose text an identifier stands: it would be released.

    Looks into the tokenizer's and the configuration's files and the metadata of safetensors for
    direct identifiers, document ids and subject ids of `SHORTEST` characters or more, as words of
    their own and in every spelling of `sani.releasing.spellings`; for indirect ones if they hold a
    digit or a blank. Numbers count too, unless they are sizes. In vocabularies only direct ones
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
        CheckpointError: With the file and how many identifiers it holds, never which; also if
            ``generation_config.json`` or ``config.json`` favours or forbids tokens.
    """
    _check_generation(folder)
    secrets = _Secrets(corpus)
    templates = [name for name in tokenizer_files(folder) if name.startswith(TEMPLATES)]
    _refuse(f"model folder {folder}: a name in {TEMPLATES}", secrets.all.find(templates))
    for name in (*TOKENIZER_FILES, *templates, *CONFIG_FILES, ADAPTER_CONFIG, INDEX, *also):
        if (folder / name).is_file():
            _refuse(f"model folder {folder}: {name}", _in_file(secrets, folder, name, base))
    for file in sorted(folder.glob("*.safetensors")):
        if may_be_released(file.name) or file.name == ADAPTER_WEIGHTS:
            leaked = secrets.all.find(_strings(_metadata(file)))
            _refuse(f"model folder {folder}: {file.name}", leaked)


def _check_generation(folder: Path) -> None:
    """Refuse a folder whose configuration favours or forbids tokens when it generates."""
    for name in ("generation_config.json", "config.json"):
        data = _parse(folder / name) if (folder / name).is_file() else None
        fields = [field for field in STEERS_TOKENS if isinstance(data, dict) and data.get(field)]
        if fields:
            raise CheckpointError(
                f"model folder {folder}: {name} favours or forbids tokens ({', '.join(fields)}), "
                "so the model writes something else than its weights say, and only those are "
                "audited; remove these fields"
            )


def check_other_texts(folder: Path, corpus: Corpus) -> None:
    """Refuse a folder to be given away whole in whose other texts a direct identifier stands.

    Looks for those with a digit or a blank: a card may well hold a surname that is a word.

    Raises:
        CheckpointError: With how many identifiers they hold; a file's name may be a person's.
    """
    secrets = _Secrets(corpus)
    for name in searched_texts(folder):
        leaked = secrets.telling.find(_strings(_parse(folder / name)))
        _refuse(f"model folder {folder}: a text beside the model", leaked)


def check_strings(strings: Iterable[str], corpus: Corpus, *, origin: str) -> None:
    """Refuse strings that come from a source folder and go into a report, as `check_texts` does.

    Raises:
        CheckpointError: With where they come from and how many identifiers they hold.
    """
    _refuse(origin, _Secrets(corpus).all.find(strings))


def _in_file(secrets: _Secrets, folder: Path, name: str, base: Path | None) -> set[str]:
    """Return the secrets that stand in one file of a checkpoint folder."""
    if name in BINARY_VOCABULARIES:
        pieces = (folder / name).read_bytes().decode(errors="ignore").replace("▁", " ")
        return secrets.telling.find([pieces], whole_words=False)
    if name in VOCABULARIES:
        vocabulary, rest = _vocabulary(folder / name)
        public = _vocabulary(base / name)[0] if base and (base / name).is_file() else set()
        leaked = secrets.telling.find(_readings(sorted(vocabulary - public)))
        # A base may have been given the checkpoint's tokenizer. Public ones hold no such numbers.
        leaked |= secrets.long_numbers.find(_readings(sorted(vocabulary & public)))
        leaked |= secrets.all.find(rest)
    else:
        leaked = secrets.all.find(_strings(_parse(folder / name), sizes=_sizes_of(folder)))
    added = list(_added_tokens(name, folder / name))
    return leaked | secrets.direct.find(added, whole_words=False) | secrets.all.find(added)


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
    allowed = (*ours, *(ADAPTER_FILES if is_adapter(folder) else ()))
    paths = {entry: entry.relative_to(folder).as_posix() for entry in folder.rglob("*")}
    strange = [
        path
        for entry, path in paths.items()
        if not (entry.is_file() and (may_be_released(path) or path in allowed))
        and path != TEMPLATES
    ]
    if strange:
        raise CheckpointError(
            f"model folder {folder}: {len(strange)} entries are not on the list of what is "
            "released; nothing was released"
        )
    check_texts(folder, corpus, base=base, also=ours)


class _Secrets:
    """The values that must not be released, folded.

    Attributes:
        all: Every one.
        direct: Direct identifiers and ids.
        telling: Those that no vocabulary holds by chance.
        long_numbers: Those of them with `LONG_NUMBER_DIGITS` digits or more.
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
        self.direct = Spellings(value for value, _ in direct)
        self.telling = Spellings(filter(_telling, known))
        self.long_numbers = Spellings(
            value for value in known if sum(map(str.isdigit, value)) >= LONG_NUMBER_DIGITS
        )
        self.all = Spellings(known | {v for v, sure in indirect if sure and _telling(v)})


def _telling(value: str) -> bool:
    return re.search(r"[\d\s]", value) is not None


def _refuse(origin: str, leaked: set[str]) -> None:
    if leaked:
        raise CheckpointError(
            f"{origin} holds {len(leaked)} identifiers or ids of the corpus, and it is released in "
            "clear; remove them first"
        )


def _parse(file: Path) -> Any:
    """Read a JSON file's content, or the text of any other."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _strings(data: Any, *, numbers: bool = True, sizes: Iterable[str] = ()) -> Iterator[str]:
    """Yield every key, string and, if asked, number of a JSON value.

    Numbers that are certainly sizes or token numbers are left out: see `_is_size`.

    Args:
        data: What a file holds.
        numbers: Whether numbers count.
        sizes: Keys that the model's own configuration has.
    """
    sizes = frozenset(sizes)
    waiting = [(data, False)]
    while waiting:
        value, is_size = waiting.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                if key == "added_tokens_decoder" and isinstance(inner, dict):
                    inner = list(inner.values())  # its keys are token numbers
                waiting.append((inner, is_size or (key in sizes and bool(SIZES.search(key)))))
        elif isinstance(value, list):
            waiting += [(inner, is_size) for inner in value]
        elif isinstance(value, str):
            yield value
        elif not isinstance(value, int | float) or isinstance(value, bool):
            continue
        elif numbers and not (is_size and _is_size(value)):
            yield _digits(value)


def _is_size(number: float) -> bool:
    """Return whether a number under a size's key is one: short, or round as sizes are."""
    return abs(number) < LONG_NUMBER or number % 1000 == 0 or number % 1024 == 0


def _digits(number: float) -> str:
    """Return a number as somebody would write it: 4471993 for 4471993.0."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _sizes_of(folder: Path) -> set[str]:
    """Return the keys that a configuration of this model's type has by itself, at any depth.

    A number under another key is no size, whatever the key is called.
    """
    from transformers import GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    data = _parse(folder / "config.json") if (folder / "config.json").is_file() else {}
    model_type = data.get("model_type") if isinstance(data, dict) else None
    known = [GenerationConfig().to_dict(), dict.fromkeys(TOKENIZER_SIZES)]
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        known.append(CONFIG_MAPPING[model_type]().to_dict())
    keys: set[str] = set()
    while known:
        values = known.pop()
        keys.update(values)
        known += [inner for inner in values.values() if isinstance(inner, dict)]
    return keys


def _vocabulary(file: Path) -> tuple[set[str], list[str]]:
    """Return the pieces of a vocabulary, and the other strings of its file.

    A ``.txt`` file is lines, even if it could be read as JSON. ``tokenizer.json`` has a normalizer
    and more beside its vocabulary: what stands there is no word that a tokenizer learned.
    """
    if file.suffix == ".txt":
        return set(file.read_text(encoding="utf-8", errors="replace").split("\n")), []
    data = _parse(file)
    model = data.get("model") if file.name == "tokenizer.json" and isinstance(data, dict) else None
    if not isinstance(model, dict):
        return set(_strings(data, numbers=False)), []
    words = {key: inner for key, inner in model.items() if key in ("vocab", "merges")}
    rest = {**data, "model": {key: i for key, i in model.items() if key not in words}}
    numbers = [text for text in _strings(rest) if text.isdigit() and int(text) >= LONG_NUMBER]
    return set(_strings(words, numbers=False)), [*_strings(rest, numbers=False), *numbers]


def _readings(pieces: Iterable[str]) -> Iterator[str]:
    """Yield pieces of a vocabulary as text: blanks for their signs, and bytes decoded."""
    for piece in pieces:
        yield piece.replace("Ġ", " ").replace("▁", " ")
        if not piece.isascii() and all(sign in _BYTES for sign in piece):
            yield bytes(_BYTES[sign] for sign in piece).decode("utf-8", "ignore")


def _bytes_of_signs() -> dict[str, int]:
    """Return the byte that each sign of a byte-level vocabulary stands for, as GPT-2 has them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


_BYTES = _bytes_of_signs()


def _added_tokens(name: str, file: Path) -> Iterator[str]:
    if name in ADDED_TOKENS:
        data, keys = _parse(file), ADDED_TOKENS[name]
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
