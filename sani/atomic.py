"""Write a file or a folder whole or not at all.

Both are written beside their path, as ``.NAME.partial``, and renamed once they are complete. A
reader therefore sees the old one or the new one, and after a crash, a full disk or Ctrl-C the old
one still stands. What a killed process left behind is removed by the next write to the same path.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sani.errors import WriteError

PARTIAL = ".{}.partial"
# Errors that more space does not mend: the path itself is wrong.
_WRONG_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, advice: str = "") -> Iterator[Path]:
    """Yield the path of an empty file to fill, which is then renamed to ``path``.

    Args:
        path: Where the file stands once the block ends; replaced if there is one.
        mode: Rights of the file, before the umask.
        advice: End of the error's sentence; how to get space or another path, if empty.

    Raises:
        WriteError: If it cannot be written. Nothing is left of it then.
    """
    partial = path.with_name(PARTIAL.format(path.name))
    try:
        partial.unlink(missing_ok=True)
        # The rights are given here: a file that is made first and narrowed later can be read in
        # between.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error, advice=advice) from None
    finally:  # also after an interrupt, or an error of the caller
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, mode: int = 0o666, advice: str = "") -> None:
    """Write a text file in UTF-8; arguments and errors as for `new_file`."""
    with new_file(path, mode=mode, advice=advice) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which is then renamed to ``folder``.

    Its files get the rights that new files usually get; safetensors gives its own fewer.

    Raises:
        WriteError: If it cannot be written. What stood at ``folder`` stands there still then.
    """
    staging = folder.with_name(PARTIAL.format(folder.name))
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        mask = os.umask(0o077)  # it can only be read by setting it
        os.umask(mask)
        for file in staging.iterdir():
            if file.is_file():
                file.chmod(0o666 & ~mask)
            _flush(file)
        _replace_folder(staging, folder)
    except OSError as error:
        raise write_error(folder, error, whole=True) from None
    finally:  # also after an interrupt, or an error of the caller
        shutil.rmtree(staging, ignore_errors=True)


def check_new_file(path: Path) -> None:
    """Refuse a path where no new file can be made, before work begins.

    Raises:
        WriteError: If something is there already, or the parent folder is not.
    """
    if os.path.lexists(path):
        raise WriteError(f"{path} already exists; choose another file")
    if not path.parent.is_dir():
        raise WriteError(
            f"cannot write {path}: its parent folder {path.parent} does not exist; create it or "
            "choose another file"
        )


def check_new_folder(path: Path, *, inputs: Sequence[Path] = ()) -> None:
    """Refuse a path where no new folder can be made, before work begins.

    An empty folder counts as new, and missing parents are made by the write.

    Args:
        path: The folder to write.
        inputs: Folders that are read: ``path`` may neither be nor lie in one of them.

    Raises:
        WriteError: If it is no such path.
    """
    check_no_input(path, inputs)
    if any(folder.resolve() in path.resolve().parents for folder in inputs):
        raise WriteError(f"{path} is inside the model's folder; choose a folder outside it")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WriteError(f"{path} already exists and is not empty; choose another folder")
    # The new folder is made beside its path, so the nearest parent must be writable.
    parent = path.absolute()
    while not os.path.lexists(parent) or (parent == path.absolute() and parent.is_dir()):
        parent = parent.parent
    if not parent.is_dir():
        raise WriteError(f"cannot write {path}: {parent} is no folder; choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteError(
            f"cannot write {path}: the folder {parent} cannot be written; choose another folder"
        )


def check_no_input(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write a folder where it would replace one that is read.

    Args:
        path: The folder to write.
        inputs: Folders that are read.

    Raises:
        WriteError: If ``path`` is one of them, or one of them lies in it.
    """
    for folder in inputs:
        if path.resolve() == folder.resolve():
            raise WriteError(f"{path} is the model itself; sani never overwrites its input")
        if path.resolve() in folder.resolve().parents:
            raise WriteError(
                f"{path} holds the model's folder {folder}; sani never overwrites its input"
            )


def write_error(
    path: Path, error: Exception, *, whole: bool = False, advice: str = ""
) -> WriteError:
    """Return the error to show where ``path`` could not be written.

    Args:
        path: The file or folder.
        error: What the system or a library said; its text is shown only where it is the system's.
        whole: Say that nothing was left half-written.
        advice: As for `new_file`.
    """
    reason = getattr(error, "strerror", None) or type(error).__name__
    if not advice:
        wrong_path = getattr(error, "errno", None) in _WRONG_PATH
        advice = "choose another --out" if wrong_path else "free space or choose another --out"
    left = " nothing was left half-written:" if whole else ""
    return WriteError(f"cannot write {path} ({reason});{left} {advice}")


def _replace_folder(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; what stood there is removed once the new one stands."""
    # A folder that is not empty cannot be renamed over, as a file can: the old one steps aside.
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may get there before its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
