"""The jobs for CI in the documentation are in order, and ask sani for what it has."""

import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.pages import ROOT, SANI, blocks, options_of, pages

GITHUB = "# .github/workflows/sanitize.yml"
GITLAB = "# .gitlab-ci.yml"
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
STEP_KEYS = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory",
             "continue-on-error", "timeout-minutes"}  # fmt: skip
JOBS = [
    content
    for text in pages().values()
    for _, content in blocks(text, "yaml")
    if content.startswith((GITHUB, GITLAB))
]


def scripts(job: Any) -> list[str]:
    """Every shell line of a GitHub workflow or a GitLab file."""
    if "jobs" in job:
        steps = [step for one in job["jobs"].values() for step in one["steps"]]
        return [line for step in steps for line in step.get("run", "").splitlines()]
    return [line for one in job.values() if isinstance(one, dict) for line in one.get("script", ())]


def lint(text: str) -> list[str]:
    """Return the problems of a CI job; an option that `sani` does not have is one."""
    job = yaml.safe_load(text)
    problems = []
    if text.startswith(GITHUB):
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
    calls = [words for words in lines if words and words[0] == "sani"]
    if not calls:
        problems.append("sani is never run")
    for words in calls:
        if words[1] not in SANI:
            problems.append(f"no command {words[1]}")
            continue
        unknown = {w.split("=")[0] for w in words if w.startswith("--")} - options_of(words[1])
        problems += [f"sani {words[1]} has no {name}" for name in sorted(unknown)]
        if {"||", ";", "|"} & set(words):
            problems.append(f"the exit code of sani {words[1]} is lost")
    return problems


def test_the_jobs_for_ci_are_in_order() -> None:
    assert {text.split("\n")[0] for text in JOBS} == {GITHUB, GITLAB}
    assert {text.split("\n")[0]: lint(text) for text in JOBS} == {GITHUB: [], GITLAB: []}


GOOD = f"""{GITHUB}
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
