"""Faults of the machine that strike a small run, and what becomes of it.

One run (an invented clinic, a model of two layers) is done whole, then again with a fault: kill -9,
Ctrl-C, no space for the n-th file that is opened for writing, a full file system (tmpfs, where it
may be mounted), an output that is read-only, two runs in one folder. After each fault nothing may
be half-written, and `--resume` must end with the very weights of the run that was left alone.

Every run is `sani` itself, in a process forked from this one, which has imported the libraries: so
kills fall on the work, not on imports.
"""

from __future__ import annotations

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
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sani.pipeline.preflight
import sani.pipeline.run  # noqa: F401  (imported before the forks, once for all)
from sani.cli.main import main
from sani.corpus.documents import Corpus
from sani.corpus.tables import write_jsonl
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model, train_on_text
from sani.errors import SaniError
from sani.models.checkpoint import save_checkpoint
from sani.releasing.manifest import verify
from tests.support.recipes import recipe_text

SECTIONS = """\
seed: 3
audit: {framing: bos, decoys: 1, swaps: 0, membership_documents: 20}
erase: {last_layers: 1}
repair: {epochs: 2, batch_tokens: 512}
gate: {subjects: null, auc_to_base: 0.45}
"""
# What a fault must never lead to; each is counted.
BAD = ("runs_lost", "tracebacks", "identifier_leaks", "partial_outputs", "unexplained")


class Job:
    """The models, documents and recipe of one run, and the values that must not come out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        public, private, held_out = invent_clinics((5, 2, 2), seed=5)
        # In a fork, since worker threads of this process would hang in its forks.
        if wait(fork(lambda: self._make_models(public, private), folder / "log")) != 0:
            raise RuntimeError((folder / "log").read_text())
        write_jsonl(private, folder / "private.jsonl")
        write_jsonl(held_out, folder / "held_out.jsonl")
        text = recipe_text(
            SECTIONS, folder=folder, unsanitized=folder / "leaky", base=folder / "base"
        )
        self.recipe.write_text(text)
        known = (folder / "base" / "tokenizer.json").read_text()
        self.secrets = {value for value in _secrets(private) if value not in known}
        self._import_what_a_run_imports()

    def _make_models(self, public: Corpus, private: Corpus) -> int:
        texts = [document.text for document in public]
        model = new_model(texts, vocab_size=500, layers=2, hidden=32, context=256,
                          folder=self.folder / "tokenizer", seed=0)  # fmt: skip
        save_checkpoint(model, self.folder / "base")
        train_on_text(model, [d.text for d in private], epochs=4, seed=1)
        save_checkpoint(model, self.folder / "leaky")
        return 0

    def _import_what_a_run_imports(self) -> None:
        imported, out = self.folder / "imported", self.folder / "imports"

        def work() -> int:
            code = main(["run", str(self.recipe), "--out", str(out)])
            imported.write_text("\n".join(sys.modules))
            return code

        if wait(fork(work, self.folder / "log")) not in (0, 3):
            raise RuntimeError((self.folder / "log").read_text())
        for name in imported.read_text().split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _secrets(corpus: Corpus) -> set[str]:
    values = {d.value(s) for d in corpus for s in d.spans if s.kind == "direct"}
    return {v for v in values | {n for d in corpus for n in (d.id, d.subject_id)} if len(v) >= 5}


# ---- one run, with a fault -------------------------------------------------------------------


def fork(work: Callable[[], int], log: Path) -> int:
    """Do something in a process of its own, its output to a file; return the process's number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        # A parent that ignores Ctrl-C, as a script's background job does, hands that on.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        # An earlier fork's are closed when they are let go of; the descriptors must stay open.
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Return the exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class Faults:
    """A run that is struck again and again, and counts of what became of it."""

    def __init__(self, job: Job, work: Path, *, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self._job = job
        self._work = work
        self._chance = chance
        began = time.monotonic()
        out, opened = work / "whole", work / "opened"
        code = wait(self._start(out, before=lambda: _full_from(out, None, opened)))
        if code not in (0, 3):
            raise RuntimeError((work / "whole.log").read_text())
        self.seconds = time.monotonic() - began
        self.files_opened = opened.stat().st_size
        self._weights = _weights(out)
        self.bytes = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())

    def side_by_side(self, *lines: Callable[[Faults], None]) -> None:
        """Run each line of work in a process of its own, and add up what they count."""
        processes = [
            fork(partial(self._line, line, number), self._work / f"line-{number}.log")
            for number, line in enumerate(lines)
        ]
        for number, process in enumerate(processes):
            code, log = wait(process), (self._work / f"line-{number}.log").read_text()
            print(log, end="", flush=True)
            if code != 0:
                raise RuntimeError(f"line {number} of the work ended with {code}")
            counts, notes = json.loads((self._work / f"line-{number}.json").read_text())
            self.counts.update(counts)
            self.notes += notes

    def _line(self, line: Callable[[Faults], None], number: int) -> int:
        """Run a line, in a fork, with counts and a folder of its own."""
        result, self._work = self._work / f"line-{number}.json", self._work / f"line-{number}"
        self._work.mkdir(exist_ok=True)
        self._chance.seed(number)
        self.counts, self.notes = Counter(), []
        line(self)
        result.write_text(json.dumps([self.counts, self.notes]))
        return 0

    @property
    def folder(self) -> Path:
        """Folder in which this line of work keeps its files."""
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
            return main(["run", str(self._job.recipe), "--out", str(out), *options])

        return fork(work, self._work / f"{log or out.name}.log")

    def kill(self) -> None:
        """Kill a run at a random moment, then resume it."""
        out = self._new("kill")
        process = self._start(out)
        time.sleep(self._chance.uniform(0, self.seconds))
        os.kill(process, signal.SIGKILL)
        self.counts["kills" if wait(process) < 0 else "kills_too_late"] += 1
        self.judge(out)

    def interrupt(self) -> None:
        """Interrupt a run at a random moment: exit code 130 and a sentence; then resume it."""
        out = self._new("interrupt")
        process = self._start(out)
        time.sleep(self._chance.uniform(0.05, 0.9) * self.seconds)
        os.kill(process, signal.SIGINT)
        code = wait(process)
        if code not in (0, 3):
            self.counts["interrupts"] += 1
            self._refused(code, out, "goes on with --resume", "start it again", expected=130)
        self.judge(out)

    def no_space_for(self, number: int) -> None:
        """Refuse space to the file opened ``number``-th for writing, and to all after it."""
        out = self._new("full")
        code = wait(self._start(out, before=lambda: _full_from(out, number, None)))
        self.counts["full_disks"] += 1
        self._refused(code, out, "No space left on device", "free space", "GiB free")
        self.judge(out)

    def no_space_in_turn(self, *, max_writes: int | None = None) -> None:
        """Refuse space to a run at its first write, resume it and refuse the next, and so on.

        Once a stage is finished, or a state of training is whole, a resumed run begins behind it:
        its writes are counted anew.
        """
        out = self._new("turns")
        number, finished = 1, _finished(out)
        while max_writes is None or number <= max_writes:
            refuse = partial(_full_from, out, number, None)
            code = wait(self._start(out, "--resume", before=refuse))
            if code in (0, 3):
                break
            self.counts["full_disks"] += 1
            self._refused(code, out, "No space left on device", "free space", "GiB free")
            self._look(out)
            number = number + 1 if _finished(out) == finished else 1
            finished = _finished(out)
        self.judge(out)

    def small_disk(self, size: int) -> None:
        """Run on a file system of ``size`` bytes, which is made larger before the resume."""
        folder = self._new("disk")
        with _mounted(folder, f"size={size}") as mounted:
            if not mounted:
                self.counts["no_right_to_mount"] += 1
                return
            code = wait(self._start(folder / "run"))
            self.counts["full_disks"] += 1
            self._refused(code, folder / "run", "No space left on device", "free space", "GiB free")
            subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
            self.judge(folder / "run")

    def read_only(self) -> None:
        """Run into a folder that cannot be written."""
        folder = self._new("read-only")
        with _mounted(folder, "ro") as mounted:
            if not mounted:
                folder.chmod(0o500)
            code = wait(self._start(folder / "run"))
            self.counts["read_only_outputs"] += 1
            self._refused(code, folder / "run", "cannot write to", "cannot be written")
            folder.chmod(0o700) if not mounted else None

    def two_at_once(self, *options: str) -> None:
        """Start two runs in one folder: one does the work, the other must say so."""
        out = self._new("two")
        processes = [self._start(out, *options, log=f"{out.name}{one}") for one in "ab"]
        codes = [wait(process) for process in processes]
        logs = [(self._work / f"{out.name}{one}.log").read_text() for one in "ab"]
        reasons = ("in use by another run", "already exists and is not empty")
        refused = [
            code == 1 and any(reason in log for reason in reasons)
            for code, log in zip(codes, logs, strict=True)
        ]
        self.counts["two_runs_in_one_folder"] += 1
        if sum(refused) != 1 or not {0, 3} & set(codes):
            self._note("runs_lost", f"two at once: {codes} {logs}")
        self.judge(out)

    def _new(self, name: str) -> Path:
        self.counts["runs"] += 1
        return self._work / f"{name}-{self.counts['runs']}"

    def _refused(self, code: int, out: Path, *reasons: str, expected: int = 1) -> None:
        """Note it unless the exit code is as expected and the last line gives a reason."""
        text = (self._work / f"{out.name}.log").read_text()
        last = text.splitlines()[-1] if text.strip() else ""
        if "Traceback" in text or "a defect of sani" in text:
            self._note("tracebacks", f"{out.name}: {last}")
        elif code != expected or not any(reason in last for reason in reasons):
            self._note("unexplained", f"{out.name}: exit code {code}: {last}")

    def judge(self, out: Path) -> None:
        """Note what is half-written or names somebody; resume to the same weights; look again."""
        self._look(out)
        code = wait(self._start(out, "--resume"))
        if code not in (0, 3) or _weights(out) != self._weights:
            log = (self._work / f"{out.name}.log").read_text()
            self._note("runs_lost", f"{out.name}: exit code {code}: {log[-300:]}")
        self._look(out)
        leftovers = [p for p in out.rglob(".*") if ".partial" in p.name or ".old" in p.name]
        if leftovers:
            self._note("partial_outputs", f"{out.name}: {leftovers[0].name} after the resume")
        shutil.rmtree(out, ignore_errors=True)

    def _look(self, out: Path) -> None:
        log = self._work / f"{out.name}.log"
        files = [f for f in out.rglob("*") if f.is_file() and f.parent.name != "private"]
        files = [f for f in files if "private" not in f.relative_to(out).parts]
        for file in [*files, *([log] if log.exists() else [])]:
            content = file.read_bytes()
            if any(secret.encode() in content for secret in self._job.secrets):
                self._note("identifier_leaks", str(file))
        if "Traceback" in (log.read_text() if log.exists() else ""):
            self._note("tracebacks", log.read_text()[-300:])
        for problem in _half_written(out):
            self._note("partial_outputs", f"{out.name}: {problem}")

    def _note(self, count: str, text: str) -> None:
        self.counts[count] += 1
        self.notes.append(f"{count}: {text}")
        print(f"  {count}: {text}", flush=True)


def _finished(out: Path) -> set[Path]:
    """Return the results that a resumed run does not make again."""
    return {*out.glob("*.json"), *out.glob("sanitized"), *out.glob("private/*/checkpoint-*/whole")}


def _half_written(out: Path) -> Iterator[str]:
    for file in out.glob("*.json"):
        try:
            json.loads(file.read_text())
        except ValueError:
            yield file.name
    if (out / "sanitized").exists():
        try:
            result = verify(out / "sanitized")
            if result.added or result.missing or result.changed:
                yield "sanitized: not as its manifest says"
        except SaniError as error:
            yield f"sanitized: {error}"


def _weights(out: Path) -> str | None:
    file = out / "sanitized" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _full_from(out: Path, number: int | None, tally: Path | None) -> None:
    """Refuse, in this process, the ``number``-th file or folder of the run and all after it.

    An audit hook of Python sees every opening and may refuse it, as the kernel does; what
    safetensors writes by itself it does not see: `small_disk` is for that.
    """
    seen = 0
    prefix = str(out)
    counted = tally.open("wb", buffering=0) if tally else None

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.mkdir") or not str(arguments[0]).startswith(prefix):
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
def _mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mount a tmpfs while the block runs; yield False where this user may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
