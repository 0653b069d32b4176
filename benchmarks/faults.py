"""What becomes of a run when the machine fails it, and of inputs that are broken.

    python benchmarks/faults.py [--quick] [--json FILE]

One small run (an invented clinic, a model of two layers) is done whole, then again and again with
a fault: kill -9 and Ctrl-C at random moments, no space for the n-th file that is opened for
writing, a full file system (tmpfs, where it may be mounted), an output that is read-only, and two
runs in one folder. After each fault nothing may stand there half-written, and `--resume` must end
with the very weights of the run that was left alone. Then recipes and corpora, broken by
Hypothesis: each must be refused with exit code 1 or 2 and a sentence that tells no value.

Every run is `sani` itself, in a process forked from this one, which has imported the libraries:
so kills fall on the work, not on imports. Two lines of such work go on at once. `--quick` tries no
fewer writes: one run is stopped at each in turn and taken up again, where otherwise each of them
is the end of a run of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork of a process with worker threads would hang

import torch
from broken_inputs import break_corpora, break_recipes

import sani.pipeline.preflight
import sani.pipeline.run  # noqa: F401  (imported before the forks, once for all)
from sani.cli.main import main
from sani.corpus.documents import Corpus
from sani.corpus.tables import write_jsonl
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model, train_on_text
from sani.errors import SaniError
from sani.machine.device import quiet_libraries
from sani.models.checkpoint import save_checkpoint
from sani.releasing.manifest import verify

RECIPE = """\
version: 2
seed: 3
model: {{path: {folder}/leaky, base: {folder}/base}}
corpus: {{path: {folder}/private.jsonl, held_out: {folder}/held_out.jsonl}}
audit: {{framing: bos, decoys: 1, swaps: 0, membership_documents: 20}}
erase: {{last_layers: 1}}
repair: {{epochs: 2, batch_tokens: 512}}
gate: {{auc_excess: 0.4}}
"""


class Clinic:
    """The models, documents and recipe of one run, and what may not come out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        public, private, held_out = invent_clinics((5, 2, 2), seed=5)
        if _wait(_fork(lambda: self._make_models(public, private), folder / "log")) != 0:
            raise RuntimeError((folder / "log").read_text())
        write_jsonl(private, folder / "private.jsonl")
        write_jsonl(held_out, folder / "held_out.jsonl")
        self.recipe.write_text(RECIPE.format(folder=folder))
        known = (folder / "base" / "tokenizer.json").read_text()
        self.secrets = {s for s in _secrets(private) if s not in known}
        self._import_what_a_run_does()

    def _make_models(self, public: Corpus, private: Corpus) -> int:
        texts = [document.text for document in public]
        model = new_model(texts, vocab_size=500, layers=2, hidden=32, context=256,
                          folder=self.folder / "tokenizer", seed=0)  # fmt: skip
        save_checkpoint(model, self.folder / "base")
        train_on_text(model, [d.text for d in private], epochs=4, seed=1)
        save_checkpoint(model, self.folder / "leaky")
        return 0

    def _import_what_a_run_does(self) -> None:
        imported, out = self.folder / "imported", self.folder / "imports"

        def work() -> int:
            code = main(["run", str(self.recipe), "--out", str(out)])
            imported.write_text("\n".join(sys.modules))
            return code

        if _wait(_fork(work, self.folder / "log")) not in (0, 3):
            raise RuntimeError((self.folder / "log").read_text())
        for name in imported.read_text().split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _secrets(corpus: Corpus) -> set[str]:
    values = {d.value(s) for d in corpus for s in d.spans if s.kind == "direct"}
    return {v for v in values | {n for d in corpus for n in (d.id, d.subject_id)} if len(v) >= 5}


# ---- one run, with a fault -------------------------------------------------------------------


def _fork(work: Callable[[], int], log: Path) -> int:
    """Do something in a process of its own, its output to a file; the process's number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        # An earlier fork's are closed when they are let go of; the descriptors must stay open.
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class Faults:
    """Counts what faults do to runs."""

    def __init__(self, clinic: Clinic, work: Path, *, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self._clinic = clinic
        self._work = work
        self._chance = chance
        began = time.monotonic()
        out, opened = work / "whole", work / "opened"
        code = _wait(self._start(out, before=lambda: _full_from(out, None, opened)))
        if code not in (0, 3):
            raise RuntimeError((work / "whole.log").read_text())
        self.seconds = time.monotonic() - began
        self.files_opened = opened.stat().st_size
        self._weights = _weights(out)
        self.bytes = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())

    def side_by_side(self, *lines: Callable[[Faults], None]) -> None:
        """Each line of work in a process of its own; what they count comes together here."""
        processes = [
            _fork(partial(self._line, line, number), self._work / f"line-{number}.log")
            for number, line in enumerate(lines)
        ]
        for number, process in enumerate(processes):
            code, log = _wait(process), (self._work / f"line-{number}.log").read_text()
            print(log, end="", flush=True)
            if code != 0:
                raise RuntimeError(f"line {number} of the work ended with {code}")
            counts, notes = json.loads((self._work / f"line-{number}.json").read_text())
            self.counts.update(counts)
            self.notes += notes

    def _line(self, line: Callable[[Faults], None], number: int) -> int:
        """In a fork: the line on counts and a folder of its own."""
        result, self._work = self._work / f"line-{number}.json", self._work / f"line-{number}"
        self._work.mkdir(exist_ok=True)
        self._chance.seed(number)
        self.counts, self.notes = Counter(), []
        line(self)
        result.write_text(json.dumps([self.counts, self.notes]))
        return 0

    @property
    def place(self) -> Path:
        """Where this line of work keeps its files."""
        return self._work

    def _start(
        self,
        out: Path,
        *options: str,
        before: Callable[[], None] = lambda: None,
        log: str | None = None,
    ) -> int:
        def work() -> int:
            before()
            return main(["run", str(self._clinic.recipe), "--out", str(out), *options])

        return _fork(work, self._work / f"{log or out.name}.log")

    def kill(self) -> None:
        """kill -9 at a random moment, then resume."""
        out = self._new("kill")
        process = self._start(out)
        time.sleep(self._chance.uniform(0, self.seconds))
        os.kill(process, signal.SIGKILL)
        self.counts["kills" if _wait(process) < 0 else "kills_too_late"] += 1
        self._judge(out)

    def interrupt(self) -> None:
        """Ctrl-C at a random moment: exit code 1 and a sentence; then resume."""
        out = self._new("interrupt")
        process = self._start(out)
        time.sleep(self._chance.uniform(0.05, 0.9) * self.seconds)
        os.kill(process, signal.SIGINT)
        code = _wait(process)
        if code not in (0, 3):
            self.counts["interrupts"] += 1
            self._refused(code, out, "goes on with --resume")
        self._judge(out)

    def no_space_for(self, number: int) -> None:
        """The file opened ``number``-th for writing, and all after it, find no space."""
        out = self._new("full")
        code = _wait(self._start(out, before=lambda: _full_from(out, number, None)))
        self.counts["full_disks"] += 1
        self._refused(code, out, "No space left on device", "free space")
        self._judge(out)

    def no_space_in_turn(self, *, most: int | None = None) -> None:
        """One run that finds no space at its first write, resumed at the next, and so on.

        Once a stage is finished, or a state of training is whole, a resumed run begins behind it:
        its writes are counted anew.
        """
        out = self._new("turns")
        number, kept = 1, _kept(out)
        while most is None or number <= most:
            place = partial(_full_from, out, number, None)
            code = _wait(self._start(out, "--resume", before=place))
            if code in (0, 3):
                break
            self.counts["full_disks"] += 1
            self._refused(code, out, "No space left on device", "free space")
            self._epoch_audit(out)
            number = number + 1 if _kept(out) == kept else 1
            kept = _kept(out)
        self._judge(out)

    def small_disk(self, size: int) -> None:
        """A file system of ``size`` bytes, made larger before the run is resumed."""
        place = self._new("disk")
        with _mounted(place, f"size={size}") as mounted:
            if not mounted:
                self.counts["no_right_to_mount"] += 1
                return
            code = _wait(self._start(place / "run"))
            self.counts["full_disks"] += 1
            self._refused(code, place / "run", "No space left on device", "free space")
            subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
            self._judge(place / "run")

    def read_only(self) -> None:
        """An output that cannot be written."""
        place = self._new("read-only")
        with _mounted(place, "ro") as mounted:
            if not mounted:
                place.chmod(0o500)
            code = _wait(self._start(place / "run"))
            self.counts["read_only_outputs"] += 1
            self._refused(code, place / "run", "cannot write to")
            place.chmod(0o700) if not mounted else None

    def two_at_once(self, *options: str) -> None:
        """Two runs in one folder: one does the work, the other is told so."""
        out = self._new("two")
        processes = [self._start(out, *options, log=f"{out.name}{one}") for one in "ab"]
        codes = [_wait(process) for process in processes]
        logs = [(self._work / f"{out.name}{one}.log").read_text() for one in "ab"]
        told = ("in use by another run", "is there already and not empty")
        refused = [
            code == 1 and any(t in log for t in told) for code, log in zip(codes, logs, strict=True)
        ]
        self.counts["two_runs_in_one_folder"] += 1
        if sum(refused) != 1 or not {0, 3} & set(codes):
            self._note("runs_lost", f"two at once: {codes} {logs}")
        self._judge(out)

    def _new(self, name: str) -> Path:
        self.counts["runs"] += 1
        return self._work / f"{name}-{self.counts['runs']}"

    def _refused(self, code: int, out: Path, *reasons: str) -> None:
        """An exit code of 1 and a last line that says why, or a note of what was there."""
        text = (self._work / f"{out.name}.log").read_text()
        last = text.splitlines()[-1] if text.strip() else ""
        if "Traceback" in text or "a defect of sani" in text:
            self._note("tracebacks", f"{out.name}: {last}")
        elif code != 1 or not any(reason in last for reason in reasons):
            self._note("unexplained", f"{out.name}: exit code {code}: {last}")

    def _judge(self, out: Path) -> None:
        """Nothing half-written, nobody named; then resume to the same weights and look again."""
        self._epoch_audit(out)
        code = _wait(self._start(out, "--resume"))
        if code not in (0, 3) or _weights(out) != self._weights:
            log = (self._work / f"{out.name}.log").read_text()
            self._note("runs_lost", f"{out.name}: exit code {code}: {log[-300:]}")
        self._epoch_audit(out)
        leftovers = [p for p in out.rglob(".*") if ".partial" in p.name or ".old" in p.name]
        if leftovers:
            self._note("partial_outputs", f"{out.name}: {leftovers[0].name} after the resume")
        shutil.rmtree(out, ignore_errors=True)

    def _epoch_audit(self, out: Path) -> None:
        log = self._work / f"{out.name}.log"
        files = [f for f in out.rglob("*") if f.is_file() and f.parent.name != "private"]
        files = [f for f in files if "private" not in f.relative_to(out).parts]
        for file in [*files, *([log] if log.exists() else [])]:
            content = file.read_bytes()
            if any(secret.encode() in content for secret in self._clinic.secrets):
                self._note("identifier_leaks", str(file))
        if "Traceback" in (log.read_text() if log.exists() else ""):
            self._note("tracebacks", log.read_text()[-300:])
        for problem in _half_written(out):
            self._note("partial_outputs", f"{out.name}: {problem}")

    def _note(self, count: str, text: str) -> None:
        self.counts[count] += 1
        self.notes.append(f"{count}: {text}")
        print(f"  {count}: {text}", flush=True)


def _kept(out: Path) -> set[Path]:
    """What a resumed run does not do again."""
    return {*out.glob("*.json"), *out.glob("sanitized"), *out.glob("private/*/checkpoint-*/whole")}


def _half_written(out: Path) -> Iterator[str]:
    for file in out.glob("*.json"):
        try:
            json.loads(file.read_text())
        except ValueError:
            yield file.name
    if (out / "sanitized").exists():
        try:
            found = verify(out / "sanitized")
            if found.added or found.missing or found.changed:
                yield "sanitized: not as its manifest says"
        except SaniError as error:
            yield f"sanitized: {error}"


def _weights(out: Path) -> str | None:
    file = out / "sanitized" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _full_from(out: Path, number: int | None, tally: Path | None) -> None:
    """In this process, refuse the ``number``-th file or folder of the run and all after it.

    An audit hook of Python sees every opening and may refuse it, as the kernel does; what
    safetensors writes by itself it does not see: `small_disk` is for that.
    """
    seen = 0
    place = str(out)
    counted = tally.open("wb", buffering=0) if tally else None

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.mkdir") or not str(arguments[0]).startswith(place):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if counted:
            counted.write(b".")
        seen += 1
        if number is not None and seen >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(refuse)


@contextlib.contextmanager
def _mounted(place: Path, options: str) -> Iterator[bool]:
    """A tmpfs at a place while the block runs; False where this user may not mount."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


# ---- all of it -------------------------------------------------------------------------------

COUNTED = ("kills", "runs_lost", "bad_inputs", "tracebacks", "identifier_leaks", "partial_outputs",
           "unexplained", "interrupts", "full_disks", "read_only_outputs",
           "two_runs_in_one_folder")  # fmt: skip


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Every fault and every broken input, counted."""
    quiet_libraries()
    torch.set_num_threads(1)
    began = time.monotonic()
    clinic = Clinic(folder)
    faults = Faults(clinic, folder, chance=random.Random(7))
    print(f"one run: {faults.seconds:.1f} s, {faults.files_opened} files opened", flush=True)

    def stopped(line: Faults) -> None:
        while line.counts["kills"] < 20:
            line.kill()
        for _ in range(4 if quick else 20):
            line.interrupt()
        line.two_at_once()
        line.two_at_once("--resume")
        print(f"kills, Ctrl-C and locks: {time.monotonic() - began:.0f} s", flush=True)
        break_recipes(clinic.recipe, line.place, examples=1000, counts=line.counts)
        print(f"recipes: {time.monotonic() - began:.0f} s", flush=True)

    def filled(line: Faults) -> None:
        line.no_space_in_turn()
        for number in range(1, 1 if quick else line.files_opened + 1):
            line.no_space_for(number)
        parts = 4 if quick else 32
        for part in range(1, parts + 1):
            line.small_disk(line.bytes * part // (parts + 1))
        line.read_only()
        print(f"disks: {time.monotonic() - began:.0f} s", flush=True)
        break_corpora(line.place, examples=1000, counts=line.counts)
        print(f"corpora: {time.monotonic() - began:.0f} s", flush=True)

    faults.side_by_side(stopped, filled)
    found = {name: faults.counts[name] for name in COUNTED}
    return {**found, "files_opened": faults.files_opened, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer moments; under five minutes")
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = measure(Path(place), quick=options.quick)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    bad = ("runs_lost", "tracebacks", "identifier_leaks", "partial_outputs", "unexplained")
    raise SystemExit(any(result[name] for name in bad))
