"""The README's promises: every command in it is run, or its options are known and a test named."""

import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from sani.cli.main import app, main
from sani.corpus.documents import Corpus
from sani.corpus.tables import write_jsonl
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model
from sani.models.checkpoint import save_checkpoint
from sani.releasing.manifest import write_manifest
from tests.support.releases import REPORT, make_keys

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = "# .github/workflows/sanitize.yml"
OTHER_CI = "# .gitlab-ci.yml"

# Commands that are not run here as they stand, each with what runs it instead or why nothing can.
# The options of those of sani are checked all the same.
ELSEWHERE = {
    "make demo": "its target is checked below; sani demo runs in CI and at release, by hand",
    "make test": "it is what runs this test",
    "sani demo": "trains for a minute: `make demo` in CI; its recipe is read in test_demo_recipe",
    "python benchmarks/models.py": "trains for 10 to 20 minutes on public corpora",
    "python benchmarks/faults.py": "five minutes; tests/pipeline/test_faults.py does a few of each",
    "sani run recipes/meddocan.yaml": "needs its models; in small by test_suggest_recipe.py (long)",
    "sani run recipes/meddocan-masked-only.yaml": "needs its models; likewise",
    "sani audit runs/tab/leaky": "needs its models; the same options run on models/fine-tuned",
    "openssl": "another program; the keys it makes are read in tests/releasing/test_release.py",
    "pip install": "needs a network",
    "hf download": "needs a network",
    "sani --install-completion": "writes to the user's shell; test_suggest_recipe.py completes",
    "accelerate launch": "two processes: tests/machine/test_distributed.py (long)",
}
# What makes a real command small enough for a test; nothing else of it is changed.
SMALLER = {
    ("sani", "audit"): ["--decoys", "2"],
    ("sani", "run"): ["--set", "repair.epochs=1", "--set", "audit.decoys=2"],
    ("sani", "init"): ["--no-time"],
    ("sani", "sample"): ["--documents", "2", "--new-tokens", "8"],
}
SMALL_VALUES = {"--samples": "4"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command line of the README, without what stands behind #."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def elsewhere(self) -> str | None:
        """The entry of `ELSEWHERE` that it begins with."""
        return next((e for e in ELSEWHERE if f"{self} ".startswith(f"{e} ")), None)


def commands() -> list[Command]:
    found = []
    for block in blocks("console"):
        text = block.replace("\\\n", " ")
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        found += [Command(tuple(shlex.split(line, comments=True))) for line in lines]
    return found


SANI: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
COMMANDS = commands()
RUN_HERE = [command for command in COMMANDS if command.elsewhere is None]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every path that the README names is there, small."""
    folder = tmp_path_factory.mktemp("readme")
    corpora: list[Corpus] = list(invent_clinics((4, 3, 2, 2), seed=5))
    names = ("public", "records", "held_out", "seen_by_the_base")
    for name, corpus in zip(names, corpora, strict=True):
        write_jsonl(corpus, folder / f"{name}.jsonl")
    shutil.copyfile(folder / "records.jsonl", folder / "part.jsonl")
    shutil.copyfile(folder / "held_out.jsonl", folder / "gold.jsonl")
    (folder / "prompts.txt").write_text("Patient:\nSeen today\n")
    texts = [document.text for document in corpora[0]]
    for seed, name in enumerate(("public-base", "fine-tuned", "last-round")):
        model = new_model(texts, vocab_size=400, layers=4, hidden=32, context=128,
                          folder=folder / "tokenizer", seed=seed)  # fmt: skip
        save_checkpoint(model, folder / "models" / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    released = folder / "runs" / "own" / "sanitized"
    shutil.copytree(folder / "models" / "fine-tuned", folder / "released")
    write_manifest(folder / "released", REPORT, weights_digest="0" * 64)
    make_keys(folder, "key")
    assert not released.exists()
    return folder


def smaller(command: Command) -> list[str]:
    """The command's arguments, with less to do; other words and options stay as they are."""
    words = list(command.words[1:])
    for option, value in SMALL_VALUES.items():
        if option in words:
            words[words.index(option) + 1] = value
    return words + SMALLER.get((command.words[0], command.words[1]), [])


def test_the_readme_has_commands_and_they_are_found() -> None:
    text = "".join(blocks("console"))
    assert len(COMMANDS) == len(re.findall(r"^\$ ", text, re.MULTILINE)) > 8
    assert RUN_HERE
    assert not [line for line in text.splitlines() if line and not line.startswith(("$ ", " "))]


def test_the_readmes_commands_do_what_it_says(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In the order of the README, in one folder, as a reader would type them."""
    folder = tmp_path / "here"
    shutil.copytree(workplace, folder)
    monkeypatch.chdir(folder)
    for command in RUN_HERE:
        assert command.words[0] == "sani", f"a command that no test runs: {command}"
        sanitized = next((Path(w) for w in command.words if w.endswith("sanitized")), None)
        if sanitized is not None:  # as a run whose gate held would have left it
            shutil.rmtree(sanitized, ignore_errors=True)
            shutil.copytree(workplace / "released", sanitized)
            if "verify" in command.words and "--key" in command.words:
                assert main(["sign", str(sanitized), "--key", "key.pem"]) == 0
        # Untrained models recite nothing: the positive control, and so the gate, cannot hold.
        expected = 3 if command.words[1] == "run" and "--check" not in command.words else 0
        code = main(smaller(command))
        error = capsys.readouterr().err
        assert code == expected, f"{command}: {error}"


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts} | {"--help"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_and_option_of_the_readme_is_there(command: Command) -> None:
    if command.words[0] != "sani" or command.words[1] not in SANI:
        assert command.elsewhere, f"a command that no test runs: {command}"
        return
    known = SANI[command.words[1]]
    used = {word.split("=")[0] for word in command.words if word.startswith("--")}
    assert used <= options_of(known)
    if command.elsewhere:
        context = known.make_context("sani", list(command.words[2:]), resilient_parsing=True)
        assert not context.args


def test_every_target_of_make_in_the_readme_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^\$ |`)make ([a-z -]+)", README, re.MULTILINE)
    assert named
    assert {target for words in named for target in words.split()} <= targets


def test_the_python_of_the_readme_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(workplace)
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
        assert "Rate(hits=0, trials=" in capsys.readouterr().out


# ---- jobs for CI -----------------------------------------------------------------------------

PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
STEP_KEYS = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory",
             "continue-on-error", "timeout-minutes"}  # fmt: skip
JOBS = [text for text in blocks("yaml") if text.startswith((CI, OTHER_CI))]


def scripts(job: Any) -> list[str]:
    """Every shell line of a GitHub workflow or a GitLab file."""
    if "jobs" in job:
        steps = [step for one in job["jobs"].values() for step in one["steps"]]
        return [line for step in steps for line in step.get("run", "").splitlines()]
    return [line for one in job.values() if isinstance(one, dict) for line in one.get("script", ())]


def lint(text: str) -> list[str]:
    """What is wrong with a CI job; `sani` may not be asked for what it does not have."""
    job = yaml.safe_load(text)
    problems = []
    if text.startswith(CI):
        problems += [key for key in ("name", "jobs") if key not in job]
        if not job.keys() & {"on", True}:  # YAML 1.1 reads `on` as true
            problems.append("on")
        for name, one in job.get("jobs", {}).items():
            problems += [f"{name}: {key}" for key in ("runs-on", "steps") if key not in one]
            for step in one.get("steps", ()):
                if ("run" in step) == ("uses" in step):
                    problems.append(f"{name}: a step runs or uses")
                problems += [f"{name}: {key}" for key in sorted(step.keys() - STEP_KEYS)]
                if "uses" in step and not re.fullmatch(r"[\w./-]+@v\d+", step["uses"]):
                    problems.append(f"{name}: {step['uses']} has no version")
    else:
        for name, one in job.items():
            if isinstance(one, dict) and not (one.keys() & {"script", "trigger"}):
                problems.append(f"{name}: no script")
    lines = [shlex.split(line) for line in scripts(job)]
    installed = [words[2] for words in lines if words[:2] == ["pip", "install"]]
    problems += [f"{name} is not this package" for name in installed if name != PACKAGE]
    asked = [words for words in lines if words and words[0] == "sani"]
    if not asked:
        problems.append("sani is never run")
    for words in asked:
        known = SANI.get(words[1])
        if known is None:
            problems.append(f"no command {words[1]}")
            continue
        unknown = {w.split("=")[0] for w in words if w.startswith("--")} - options_of(known)
        problems += [f"sani {words[1]} has no {name}" for name in sorted(unknown)]
        if {"||", ";", "|"} & set(words):
            problems.append(f"the exit code of sani {words[1]} is lost")
    return problems


def test_the_jobs_for_ci_are_in_order() -> None:
    if not JOBS:
        pytest.skip("the README has no CI job yet")
    assert {text.split("\n")[0] for text in JOBS} == {CI, OTHER_CI}
    assert {text.split("\n")[0]: lint(text) for text in JOBS} == {CI: [], OTHER_CI: []}


GOOD = f"""{CI}
name: sanitize
on: [push]
jobs:
  gate:
    runs-on: self-hosted
    steps:
      - uses: actions/checkout@v4
      - run: pip install {PACKAGE}
      - run: sani run recipe.yaml --out runs/ci
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("on: [push]\n", "", "on"),
        ("    runs-on: self-hosted\n", "", "gate: runs-on"),
        ("@v4", "", "gate: actions/checkout has no version"),
        ("--out", "--outt", "sani run has no --outt"),
        ("sani run", "sani sanitize", "no command sanitize"),
        ("runs/ci", "runs/ci || true", "the exit code of sani run is lost"),
        ("sani run recipe.yaml --out runs/ci", "echo", "sani is never run"),
        ("- run", "- uses: x@v1\n        run", "gate: a step runs or uses"),
        ("- run", "- when: always\n        run", "gate: when"),
        (f"install {PACKAGE}", "install sani", "sani is not this package"),
    ],
)
def test_a_job_that_is_not_in_order_is_found_out(old: str, new: str, problem: str) -> None:
    assert lint(GOOD) == []
    assert problem in lint(GOOD.replace(old, new, 1))
