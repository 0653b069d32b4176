"""The end of a command: exit codes, and the sentence for each error, full disk and Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sani.cli import console
from sani.errors import SaniError, UsageError
from sani.machine import distributed

GATE_FAILED = 3
INTERRUPTED = 130  # as a shell has it, and what Typer makes of Ctrl-C


class CommandInterruptedError(Exception):
    """Ctrl-C or SIGTERM within a command that can say how it goes on; the text is that advice."""


@contextmanager
def resumable(folder: Path, command: str) -> Iterator[None]:
    """Within, an interrupt says that the command goes on with --resume, if it left a folder.

    Args:
        folder: The folder that the command resumes from.
        command: The command that goes on, such as ``sani run``.

    Raises:
        CommandInterruptedError: Instead of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        if folder.is_dir() and any(folder.iterdir()):
            raise CommandInterruptedError(f"{command} goes on with --resume") from None
        raise CommandInterruptedError("nothing was written: start it again") from None


@contextmanager
def handled_signals() -> Iterator[None]:
    """Within, SIGTERM ends a command as Ctrl-C does, so that it cleans up behind itself."""
    signal.signal(signal.SIGTERM, _interrupt)
    usual_hook, sys.unraisablehook = sys.unraisablehook, _repeat_interrupt
    try:
        yield
    finally:
        sys.unraisablehook = usual_hook
        if distributed.launched():  # this process ends anyway, and has said why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def report_error(error: Exception) -> int:
    """Print why a command failed, without a traceback, and return its exit code.

    The text of an unexpected error is not shown, since it may quote a record. With SANI_DEBUG=1
    the error is raised again, for those who may see records.
    """
    usage_code = getattr(error, "exit_code", None)
    if usage_code is not None and hasattr(error, "show"):  # Typer's own: wrong usage
        if distributed.claim("last words"):
            error.show(file=sys.stderr)
        return int(usage_code)
    if os.environ.get("SANI_DEBUG"):
        raise error
    if isinstance(error, SaniError):
        console.say_last(f"error: {error}")
        return 2 if isinstance(error, UsageError) else 1
    console.say_last(f"error: {_explanation(error)}")
    return 1


def report_interrupt(advice: str = "nothing was left half-written") -> int:
    """Print what becomes of an interrupted command, and return its exit code."""
    console.say_last(f"interrupted; {advice}")
    return INTERRUPTED


def _explanation(error: Exception) -> str:
    """Return what is known of an error that sani did not raise on purpose."""
    reason = _disk_trouble(error)
    if reason is not None:
        return (
            f"a file could not be written or read ({reason}); free space or check the file rights, "
            "then go on with --resume"
        )
    if distributed.is_lost_rank(error):
        return (
            "another process of this job ended without a message (killed, or out of memory?); go "
            "on with --resume"
        )
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
    return (
        f"{type(error).__name__} at {where}, a defect of sani or of a library below it; its text "
        "is not shown because it may quote a record (SANI_DEBUG=1 shows it)"
    )


_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
)  # fmt: skip
# safetensors and torch raise errors without such a number, with one of these texts.
_DISK_TEXTS = ("No space left on device", "StorageFull", "File too large", "inline_container.cc")


def _disk_trouble(error: BaseException | None) -> str | None:
    """Return the disk's reason, if the disk caused this error; never the name of a file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return error.strerror
        if any(text in str(error) for text in _DISK_TEXTS):
            return "No space left on device"
        error = error.__cause__ or error.__context__
    return None


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _repeat_interrupt(unraisable: Any) -> None:
    """Send a Ctrl-C again that came within a destructor, where Python can raise nothing.

    Python would print the error's text instead, which may quote a record.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        again = (threading.main_thread().ident, signal.SIGINT)
        threading.Timer(0.1, signal.pthread_kill, again).start()
