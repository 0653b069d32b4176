"""The run folder: results of finished stages, and the private part.

`private/` (mode 0700) is the only folder where an identifier may stand in clear. Every result file
is written whole or not at all, so a stage is finished if and only if its file exists. In a run of
several processes the main one alone reads and writes; its answers go to all others.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sani.atomic import new_file, write_text
from sani.counting import counted
from sani.errors import RunError
from sani.machine import distributed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PRIVATE = "private"
RECIPE = "recipe.resolved.yaml"
DIGESTS = "results.json"  # in private/: the digest of every result file
_RESUME = "free space and --resume"
_Arrays = TypeVar("_Arrays", bound="DataclassInstance")
_Record = TypeVar("_Record")


class RunFolder:
    """One run's files. Make it with `open_run`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.private = path / PRIVATE
        self._key = b""

    def finished(self, stage: str) -> bool:
        """Return True if a stage's result file exists."""
        return distributed.on_main((self.path / f"{stage}.json").is_file)

    def load(self, stage: str) -> Any:
        """Return a finished stage's result as plain data, or None."""
        return distributed.on_main(lambda: self._load(stage))

    def _load(self, stage: str) -> Any:
        text = self._read(stage)
        return None if text is None else json.loads(text)

    def _read(self, stage: str) -> str | None:
        path = self.path / f"{stage}.json"
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        check_result(self.path, stage, text, required=True)
        return text

    def load_as(self, stage: str, kind: type[_Record]) -> _Record | None:
        """Return a finished stage's result as a typed record, or None if it is not finished.

        Args:
            stage: Name of the result file, without ``.json``.
            kind: A dataclass or Pydantic model with the file's fields.

        Raises:
            RunError: If the file does not fit the type, as of another version of sani.
        """
        text = distributed.on_main(lambda: self._read(stage))
        if text is None:
            return None
        try:
            return TypeAdapter(kind).validate_json(text)
        except ValidationError as error:
            field = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
            raise RunError(
                f"{self.path / f'{stage}.json'} does not fit this version of sani: "
                f"{error.error_count()} of its fields do not fit, the first is {field}; start "
                "again in another --out"
            ) from None

    def load_finished(self, stage: str, kind: type[_Record]) -> _Record:
        """Return a stage's result as a typed record.

        Raises:
            RunError: If the stage is not finished, or its file does not fit the type.
        """
        record = self.load_as(stage, kind)
        if record is None:
            raise RunError(f"{self.path} holds no {stage}.json; finish the run with --resume")
        return record

    def save(self, stage: str, data: Any) -> None:
        """Write a stage's result; this finishes the stage."""
        text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        distributed.on_main(lambda: self._save(stage, text))

    def _save(self, stage: str, text: str) -> None:
        self.keep_digest(stage, text)
        write_text(self.path / f"{stage}.json", text, advice=_RESUME)

    def keep_digest(self, stage: str, text: str) -> None:
        """Keep the digest of a result file that is about to be written, in the private part.

        Whoever may change the result file need not be able to change ``private/``. The digest of
        the file that stands there is kept too, since this process may end between both writes.
        """
        self._keep(stage, _sha256(text), self.path / f"{stage}.json")

    def _keep(self, name: str, digest: str, file: Path) -> None:
        known = _kept_digests(self.path)
        if known.get(name, [])[:1] == [digest]:
            return
        before = known.get(name, [])[:1] if file.is_file() else []
        known[name] = [digest, *before]
        write_text(self.private / DIGESTS, json.dumps(known, indent=1) + "\n", advice=_RESUME)

    def save_arrays(self, name: str, arrays: Any) -> None:
        """Write a dataclass of arrays (an audit's verdicts one by one) into the private part."""
        distributed.on_main(lambda: self._save_arrays(name, arrays))

    def _save_arrays(self, name: str, arrays: Any) -> None:
        path = self.private / f"{name}.npz"
        with new_file(path, advice=_RESUME) as partial:
            with partial.open("wb") as file:
                np.savez_compressed(file, **vars(arrays))
            self._keep(path.name, hashlib.sha256(partial.read_bytes()).hexdigest(), path)

    def load_arrays(self, name: str, kind: type[_Arrays]) -> _Arrays | None:
        """Return the arrays that `save_arrays` wrote under this name, or None."""
        return distributed.on_main(lambda: self._load_arrays(name, kind))

    def _load_arrays(self, name: str, kind: type[_Arrays]) -> _Arrays | None:
        path = self.private / f"{name}.npz"
        if not path.is_file():
            return None
        content = path.read_bytes()
        kept = _kept_digests(self.path).get(path.name, [])
        if hashlib.sha256(content).hexdigest() not in kept:
            raise RunError(
                f"{path} is not as this run wrote it; put the file back, or start again in another "
                "--out"
            )
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            if set(arrays.files) != {field.name for field in fields(kind)}:
                raise RunError(
                    f"{path} was written by another version of sani, which keeps other figures; "
                    "start again in another --out"
                )
            return kind(**{name: arrays[name] for name in arrays.files})

    def make_private_folder(self, name: str) -> Path:
        """Make a folder in the private part, unless it exists, and return its path."""
        path = self.private / name
        distributed.on_main(lambda: path.mkdir(exist_ok=True))
        return path

    def remove_private_folder(self, name: str) -> None:
        """Remove a folder of the private part, if it exists."""
        path = self.private / name
        distributed.on_main(lambda: shutil.rmtree(path, ignore_errors=True))

    def rename_private_folder(self, name: str, new: str) -> None:
        """Rename a folder of the private part; one that stood at the new name is removed.

        Nothing happens if the folder does not exist: an earlier process may have renamed it.
        """
        distributed.on_main(lambda: self._rename_private_folder(name, new))

    def _rename_private_folder(self, name: str, new: str) -> None:
        if (self.private / name).exists():
            shutil.rmtree(self.private / new, ignore_errors=True)
            os.replace(self.private / name, self.private / new)

    def digest(self, text: str) -> str:
        """Return a short digest keyed by this run's secret: no value can be guessed from it."""
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:12]

    def subject_digest(self, subject: str) -> str:
        """Return the keyed digest that stands for a subject wherever `private/` ends."""
        return self.digest(f"subject\x00{subject}")

    def read_key(self) -> None:
        """Read this run's secret, or make it."""
        self._key = distributed.on_main(self._read_key)

    def _read_key(self) -> bytes:
        path = self.private / "key"
        if not path.exists():
            with new_file(path, mode=0o600, advice=_RESUME) as partial:
                partial.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()


def check_new_run(path: Path) -> None:
    """Refuse a path where no new run can begin.

    Raises:
        RunError: If something stands there that is no empty folder.
    """
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        if (path / RECIPE).is_file():
            advice = "continue it with --resume, or choose another --out"
        else:
            advice = "it is no run folder: choose another --out"
        raise RunError(f"{path} already exists and is not empty; {advice}")


def check_is_run(path: Path) -> None:
    """Refuse a path that is no run folder.

    Raises:
        RunError: If there is no such folder, or no run wrote it.
    """
    if not path.is_dir():
        raise RunError(f"{path}: there is no such folder; give the folder that sani run wrote")
    if not any((path / name).is_file() for name in (RECIPE, "report.json")):
        raise RunError(f"{path} is no run folder; give the folder that sani run wrote")


def check_result(run: Path, stage: str, text: str, *, required: bool = False) -> None:
    """Refuse a result file that is not as its run wrote it.

    Args:
        run: The run folder.
        stage: Name of the file, without ``.json``.
        text: What the file holds.
        required: Refuse it too if no digest of it is kept in ``private/``.

    Raises:
        RunError: If its digest is another than the one that the run kept.
    """
    kept = _kept_digests(run).get(stage)
    if _sha256(text) not in (kept or []) and (required or kept is not None):
        raise RunError(
            f"{run / f'{stage}.json'} is not as this run wrote it: its digest differs from the one "
            "that private/ keeps; put the file back, or start again in another --out"
        )


def check_report(folder: Path, text: str) -> None:
    """Refuse a report whose digest is not the one that its run or its release states.

    Args:
        folder: The run folder.
        text: What its ``report.json`` holds.

    Raises:
        RunError: If it was changed since the run wrote it.
    """
    check_result(folder, "report", text)
    try:
        manifest = json.loads((folder / "sanitized" / "manifest.json").read_text(encoding="utf-8"))
        stated = manifest.get("report")
    except (OSError, ValueError, AttributeError):
        return  # nothing was released, or sani verify says what is wrong with it
    if stated != _sha256(text):
        raise RunError(
            f"{folder / 'report.json'} is not the report of {folder / 'sanitized'}: its digest "
            "differs from the one in the manifest there; make it again with sani run --resume"
        )


def _kept_digests(run: Path) -> dict[str, list[str]]:
    """Return the digests of a run's result files by stage; none where they cannot be read."""
    try:
        kept = json.loads((run / PRIVATE / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def open_run(
    path: Path, *, recipe: str, inputs: dict[str, str], resume: bool
) -> Iterator[RunFolder]:
    """Make a run folder, or open one to continue its run; hold its lock until the context ends.

    Args:
        path: The folder.
        recipe: The resolved recipe's text.
        inputs: Digests of the corpus and the models; a resumed run must have the same.
        resume: Continue a run that exists.

    Raises:
        RunError: If the folder is in use, exists and is not to be resumed, holds files that no run
            wrote, or belongs to another recipe or other inputs.
    """
    folder = RunFolder(path)
    with ExitStack() as lock:
        distributed.on_main(lambda: _open_and_lock(folder, recipe, inputs, lock, resume=resume))
        folder.read_key()
        yield folder


def _open_and_lock(
    folder: RunFolder, recipe: str, inputs: dict[str, str], lock: ExitStack, *, resume: bool
) -> None:
    """Make or open the folder, lock it until ``lock`` ends, and check that it is this run's."""
    path = folder.path
    if path.is_dir() and resume and not (path / PRIVATE / "inputs.json").exists():
        strange = [entry for entry in path.iterdir() if entry.name not in (PRIVATE, RECIPE)]
        if strange:
            raise RunError(
                f"{path} holds {counted(len(strange), 'entry', 'entries')} that no run of sani "
                "wrote, so there is nothing to resume; choose another --out"
            )
    if not resume:
        check_new_run(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder.private.mkdir(mode=0o700, exist_ok=True)
        folder.private.chmod(0o700)
        file = lock.enter_context((folder.private / "lock").open("w"))
    except OSError as error:
        raise RunError(f"cannot write to {path} ({error.strerror}); choose another --out") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunError(
            f"{path} is in use by another run; wait for it, or choose another --out"
        ) from None
    _check_same_run(folder, recipe, inputs)


def _check_same_run(folder: RunFolder, recipe: str, inputs: dict[str, str]) -> None:
    """Write recipe and inputs into a new folder; refuse others than those of an old one."""
    recipe_file, digests = folder.path / RECIPE, folder.private / "inputs.json"
    if not digests.exists():
        write_text(recipe_file, recipe)
        write_text(digests, json.dumps(inputs))
        return
    if not recipe_file.exists() or recipe_file.read_text(encoding="utf-8") != recipe:
        raise RunError(
            f"{folder.path} belongs to another recipe than the one given (compare with "
            f"{recipe_file}); resume with that one, or choose another --out"
        )
    known = json.loads(digests.read_text(encoding="utf-8"))
    changed = sorted(name for name in inputs if known.get(name) != inputs[name])
    if changed:
        raise RunError(
            f"{folder.path}: {' and '.join(changed)} changed since this run began; start again "
            "in another --out"
        )
