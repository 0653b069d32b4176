"""Count what becomes of a run when the machine fails it, and of inputs that are broken.

    python benchmarks/faults.py [--quick] [--json FILE]

It also counts false cleans: the tests marked false_clean, each with a model that recites or with a
folder that was tampered with. false_clean_passed are those that the gate let pass all the same.
--quick leaves out the long ones.

The faults and the broken inputs are those of the tests (tests/support/faults.py and
broken_inputs.py), in greater number: twenty kills at random moments, every write refused once, a
thousand broken recipes and a thousand broken corpora. tests/pipeline/test_faults.py does a few of
each. Two lines of such work go on at once. --quick refuses no fewer writes: one run is stopped at
each in turn and taken up again, where otherwise each of them is the end of a run of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork of a process with worker threads would hang
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from options import parser_of, write_json

from sani.machine.device import quiet_libraries
from tests.support.broken_inputs import break_corpora, break_recipes
from tests.support.faults import BAD, Faults, Job

ROOT = Path(__file__).resolve().parent.parent
COUNTED = ("kills", "runs_lost", "bad_inputs", "tracebacks", "identifier_leaks", "partial_outputs",
           "unexplained", "interrupts", "full_disks", "read_only_outputs",
           "two_runs_in_one_folder")  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Number of faults.

    Attributes:
        kills: Runs that are killed, those that ended before not counted.
        interrupts: Runs that Ctrl-C is sent to.
        writes: Writes of one run that are refused in turn; None is all.
        every_write: Refuse each write in a run of its own, too.
        disks: File systems that are too small.
        inputs: Broken recipes, and broken corpora.
    """

    kills: int
    interrupts: int
    writes: int | None
    every_write: bool
    disks: int
    inputs: int


SIZES = {
    "full": Size(20, 20, None, True, 32, 1000),
    "quick": Size(20, 4, None, False, 4, 1000),
    "tiny": Size(1, 1, 2, False, 1, 5),
}


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Return counts of all faults and broken inputs, and of what they led to."""
    quiet_libraries()
    torch.set_num_threads(1)
    began = time.monotonic()
    job = Job(folder)
    faults = Faults(job, folder, chance=random.Random(7))
    print(f"one run: {faults.seconds:.1f} s, {faults.files_opened} files opened", flush=True)

    def stopped(line: Faults) -> None:
        while line.counts["kills"] < size.kills:
            line.kill()
        for _ in range(size.interrupts):
            line.interrupt()
        line.two_at_once()
        line.two_at_once("--resume")
        print(f"kills, Ctrl-C and locks: {time.monotonic() - began:.0f} s", flush=True)
        break_recipes(job.recipe, line.folder, examples=size.inputs, counts=line.counts)
        print(f"recipes: {time.monotonic() - began:.0f} s", flush=True)

    def filled(line: Faults) -> None:
        line.no_space_in_turn(max_writes=size.writes)
        for number in range(1, line.files_opened + 1 if size.every_write else 1):
            line.no_space_for(number)
        for part in range(1, size.disks + 1):
            line.small_disk(line.bytes * part // (size.disks + 1))
        line.read_only()
        print(f"disks: {time.monotonic() - began:.0f} s", flush=True)
        break_corpora(line.folder, examples=size.inputs, counts=line.counts)
        print(f"corpora: {time.monotonic() - began:.0f} s", flush=True)

    faults.side_by_side(stopped, filled)
    counts = {name: faults.counts[name] for name in COUNTED}
    return {**counts, "files_opened": faults.files_opened, "seconds": time.monotonic() - began}


def false_cleans(folder: Path, size: str) -> dict[str, int]:
    """Run the tests marked false_clean; return how many there are, and how many fail."""
    marked = "false_clean" if size == "full" else "false_clean and not long"
    chosen = ["tests/auditing/test_permutation.py"] if size == "tiny" else ["tests"]
    results = folder / "false-clean.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked,
               f"--junit-xml={results}", *chosen]  # fmt: skip
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    (suite,) = ET.parse(results).getroot().iter("testsuite")
    run, skipped, failed, broken = (
        int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")
    )
    return {"false_clean_cases": run - skipped, "false_clean_passed": failed + broken}


def main(words: Sequence[str] | None = None) -> int:
    options = parser_of(__doc__).parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), SIZES[options.size])
        result |= false_cleans(Path(folder), options.size)
    print(json.dumps(result, indent=1))
    write_json(result, options.json)
    return int(any(result[name] for name in (*BAD, "false_clean_passed")))


if __name__ == "__main__":
    raise SystemExit(main())
