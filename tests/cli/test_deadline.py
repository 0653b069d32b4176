"""SIGTERM: a command that cleans up has the time to, and one that hangs is ended."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sani.cli.main import main

PROGRAM = """
import sys, time
import sani.corpus.readers
from sani.cli.main import main

def work(*arguments, **options):
    print("began", flush=True)
    {work}

sani.corpus.readers.read_corpus = work
sys.exit(main({arguments}))
"""
HANGS = {
    "one C function": "sum(range(10**13))",  # it holds the interpreter's lock and asks for nothing
    "what swallows the interrupt": (
        "while True:\n        try: time.sleep(60)\n        except BaseException: pass"
    ),
}


def terminated(tmp_path: Path, work: str, arguments: str) -> tuple[int, float, str]:
    """Return the exit code, the seconds after SIGTERM and the output of a command."""
    output = tmp_path / "output"
    with output.open("wb") as file:
        program = PROGRAM.format(work=work, arguments=arguments)
        process = subprocess.Popen(
            [sys.executable, "-c", program, "scan", "x"], stdout=file, stderr=file
        )
    try:
        while "began" not in output.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        return process.wait(timeout=15), time.monotonic() - sent, output.read_text()
    finally:
        process.kill()


@pytest.mark.parametrize("arguments", ['["scan", "x"]', ""])
@pytest.mark.parametrize("hang", HANGS)
def test_sigterm_ends_a_command_that_hangs_within_five_seconds(
    tmp_path: Path, hang: str, arguments: str
) -> None:
    code, seconds, output = terminated(tmp_path, HANGS[hang], arguments)
    assert code == -signal.SIGKILL
    assert seconds < 5
    assert output.endswith("finished stages are kept, and sani run goes on with --resume\n")


@pytest.mark.parametrize("arguments", ['["scan", "x"]', ""])
def test_sigterm_lets_a_command_clean_up(tmp_path: Path, arguments: str) -> None:
    clean = "try: time.sleep(60)\n    finally: time.sleep(1)\n    print('cleaned')"
    code, seconds, output = terminated(tmp_path, clean.replace("\n    print", "; print"), arguments)
    assert code == 130
    assert seconds < 5
    assert "cleaned\ninterrupted; " in output


def test_a_command_leaves_no_process_and_no_signal_pipe_behind() -> None:
    assert main(["--version"]) == 0
    assert signal.set_wakeup_fd(-1) == -1
    children = Path("/proc/self/task").glob("*/children")
    assert not [
        child
        for listed in children
        for child in listed.read_text().split()
        if b"import os, select" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
