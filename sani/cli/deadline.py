"""SIGTERM ends a command within five seconds, whatever it is doing.

Python runs a signal's handler between two of its own steps. A long step of a library comes first: a
large matrix product, a regular expression, a number with a billion digits. So a small process
stands beside the command. The interpreter writes each signal's number into a pipe at once, without
waiting for such a step (`signal.set_wakeup_fd`). From there the small process knows of SIGTERM; if
the command still runs four seconds later, it is killed. What is written whole or not at all stays
so, and finished stages are kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SECONDS = 4.0
_DONE = b"\0"  # no signal has this number

# It sees neither sani nor its folder, and starts in milliseconds. Pool workers of the command may
# hold the pipe open, so that its end is known by its parent's number, too.
_PROGRAM = """
import os, select, signal, sys, time
parent, seconds = int(sys.argv[1]), float(sys.argv[2])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
deadline = None
while os.getppid() == parent:
    wait = 1.0 if deadline is None else min(0.1, deadline - time.monotonic())
    if wait <= 0:
        children = []
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    children += map(int, file.read().split())
        except OSError:
            pass
        os.write(2, b"killed: it did not end within %d seconds of SIGTERM; finished stages are "
                    b"kept, and sani run goes on with --resume\\n" % seconds)
        for process in [parent, *children]:
            if process != os.getpid():
                try:
                    os.kill(process, signal.SIGKILL)
                except OSError:
                    pass
        break
    if select.select([0], [], [], wait)[0]:
        signals = os.read(0, 512)
        if not signals or 0 in signals:
            break
        if signal.SIGTERM in signals and deadline is None:
            deadline = time.monotonic() + seconds
"""


@contextmanager
def deadline_after_sigterm(*, until_exit: bool) -> Iterator[None]:
    """Kill this process if it still runs `SECONDS` after a SIGTERM that came within.

    Args:
        until_exit: The process ends behind the block, so after a SIGTERM its end has the same
            deadline. Otherwise leaving the block ends it.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    program = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), str(SECONDS)]
    watcher = subprocess.Popen(program, stdin=reading, stdout=subprocess.DEVNULL)
    os.close(reading)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        if not until_exit:
            signal.set_wakeup_fd(before)
            with suppress(OSError):
                os.write(writing, _DONE)
            os.close(writing)
            watcher.wait()


def _forget_in_fork() -> None:
    """Let a fork's signals be its own: pools end their workers with SIGTERM."""
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_fork)
