"""Write a model folder as a copy of another one, some tensors of which are changed in the copy.

No model is built. Files are copied by the kernel. One tensor at a time is read from the copy,
changed and written back; whatever is not changed keeps its bits and its type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path

from torch import Tensor

from sani.models.folder import ModelFolder
from sani.models.folder_files import WEIGHTS, WEIGHTS_INDEX, copy_files, copy_large, files_beside
from sani.models.safetensors_files import StoredWeights, plain_name

Patch = Callable[[str, Tensor], None]


def copy_patched(weights: StoredWeights, folder: Path, names: Sequence[str], patch: Patch) -> None:
    """Copy all files into a folder, and change some tensors in the copies.

    Files to patch come first; while one copy is patched the next is made. Of the files' own
    metadata only the format goes along.

    Args:
        weights: The tensors of the files.
        folder: Folder of the copies.
        names: Tensors to change, in this order within a file.
        patch: Changes a tensor of that name in place.
    """
    places = {name: weights.place(name) for name in names}
    touched = {place.file for place in places.values()}
    # One thread copies while this one patches, so that the disk is never idle; files to patch
    # first, since the others need no second look.
    files = sorted(weights.files, key=lambda path: path not in touched)
    copier = ThreadPoolExecutor(max_workers=1)
    try:
        copies = {p: copier.submit(copy_large, p, folder / p.name) for p in files}
        for path, copy in copies.items():
            copy.result()
            with (folder / path.name).open("r+b") as file:
                _rewrite_header(file)
                for name in (name for name in names if places[name].file == path):
                    tensor = places[name].read(file)
                    patch(name, tensor)
                    places[name].write(file, tensor)
    finally:
        copier.shutdown(cancel_futures=True)


def copy_other_files(source: ModelFolder, folder: Path) -> None:
    """Write all but the weights of a whole model's folder: tokenizer, configuration, index."""
    from transformers import GenerationConfig

    path = source.path
    copy_files(path, folder, files_beside(path, source.family))
    source.config.save_pretrained(folder)
    if (path / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(path, local_files_only=True).save_pretrained(folder)
    if [file.name for file in source.weight_files] != [WEIGHTS]:
        text = json.dumps(source.stored.index(), indent=2)
        (folder / WEIGHTS_INDEX).write_text(text + "\n", encoding="utf-8")


def _rewrite_header(file: BufferedIOBase) -> None:
    """In place: of metadata only the format stays, since it may say anything.

    Names lose the modules that training wrapped around theirs. No tensor is moved.
    """
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    metadata, allowed = header.pop("__metadata__", None), {"format": "pt"}
    plain = {plain_name(name): place for name, place in header.items()}
    if metadata in (None, allowed) and plain == header:
        return
    header = plain
    if metadata is not None and metadata.get("format") == "pt":
        header = {"__metadata__": allowed, **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Padded with blanks to its old length: offsets count from behind the header.
    file.seek(8)
    file.write(text.ljust(size))
