"""The report of a run: result files in, JSON, Markdown, HTML and JUnit out. Never reads a model."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sani.auditing.generation import Hits
from sani.auditing.membership import DocumentScores
from sani.auditing.occurrences import Occurrences
from sani.auditing.search import Identifier, IdentifierIndex
from sani.checkpoint import write_text
from sani.corpus.documents import Corpus
from sani.gate import Check
from sani.recipe import Recipe
from sani.reporting.attacks import attack_sections
from sani.reporting.compare import (
    beyond_control,
    compare,
    compare_audits,
    compare_pretraining,
)
from sani.reporting.ripple import ripple_sections, ripples
from sani.reporting.sections import STAGE_NAMES, limits, number, sections, versions
from sani.runfolder import RunFolder

SCHEMA_VERSION = 2
MOST_LISTED = 50
_Arrays = TypeVar("_Arrays")

NOT_ATTACKED = (
    "relearning, quantization, guidance by the unsanitized checkpoint, and prompts made to bring "
    "identifiers up (no attack was run)"
)
NOT_TESTED = (
    "identifiers that the corpus does not mark",
    "an identifier written with other tokens or in another form than in its document",
    "documents that were not given to this run",
)
NOT_SAMPLED = "what the model recites when it is left to write (audit.generation)"


def build_report(
    folder: RunFolder, recipe: Recipe, corpus: Corpus, checks: Sequence[Check]
) -> dict[str, Any]:
    """Everything a run found, as ``report.json`` holds it; no identifier, no document id."""
    return {
        "schema_version": SCHEMA_VERSION,
        "gate": {
            "holds": bool(checks) and all(check.holds for check in checks),
            "checks": [check.to_json() for check in checks],
        },
        "scan": folder.load("scan"),
        **compare_audits(
            _audits(folder, "audit"),
            _arrays(folder, "audit-{}", Occurrences),
            _arrays(folder, "audit-{}-documents", DocumentScores),
            _arrays(folder, "audit-{}-generation", Hits),
            _searched(recipe, corpus),
            rounds=("before", "erased", "after"),
            seed=recipe.seed,
        ),
        "pretraining": compare_pretraining(
            _audits(folder, "pretraining"), _arrays(folder, "pretraining-{}", Occurrences)
        ),
        "changes": _changes(folder, corpus),
        "erase": _erased(folder.load("erase")),
        "repair": folder.load("repair"),
        "audit_settings": recipe.audit.model_dump(mode="json"),
        "gate_settings": recipe.gate.model_dump(mode="json"),
        "not_asked": [name for name, limit in recipe.gate.model_dump().items() if limit is None],
        "corpus_limit": recipe.corpus.limit,
        "attacks": folder.load("attack"),
        "ripples": ripples(
            _arrays(folder, "audit-{}", Occurrences), corpus, rounds=("before", "erased", "after")
        ),
        "not_tested": [
            *([] if recipe.attack else [NOT_ATTACKED]),
            *NOT_TESTED,
            *([] if recipe.audit.generation else [NOT_SAMPLED]),
        ],
        "provenance": {
            "seed": recipe.seed,
            "python": platform.python_version(),
            "versions": {
                name: version(name)
                for name in ("sani-llm", "torch", "transformers", "accelerate", "safetensors")
            },
            "recipe_digest": folder.digest((folder.path / "recipe.resolved.yaml").read_text()),
            "corpus_digest": folder.digest(corpus.digest()),
        },
    }


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``report.json``, ``report.md``, ``report.html`` and ``junit.xml``."""
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(folder / "report.json", text + "\n")
    write_text(folder / "report.md", render(report, "report.md.jinja"))
    write_text(folder / "report.html", render(report, "report.html.jinja"))
    write_text(folder / "junit.xml", junit(report))


def render(report: dict[str, Any], template: str) -> str:
    """A report as text, by one of the templates beside this module."""
    environment = Environment(
        loader=PackageLoader("sani.reporting"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(
        report=report,
        sections=[
            limits(report),
            *sections(report),
            *ripple_sections(report["ripples"]),
            *attack_sections(report["attacks"]),
        ],
        versions=versions(report["provenance"]),
    )


def junit(report: dict[str, Any]) -> str:
    """One test case for each limit of the gate."""
    checks = report["gate"]["checks"]
    failures = sum(not check["holds"] for check in checks)
    suite = ElementTree.Element(
        "testsuite", name="sani gate", tests=str(len(checks)), failures=str(failures)
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="sani.gate", name=check["name"])
        if not check["holds"]:
            message = f"{number(check['measured'])}, limit {number(check['limit'])}"
            ElementTree.SubElement(case, "failure", message=message).text = check["why"]
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _cell(text: str) -> str:
    """A label inside a Markdown table: nothing in it ends the cell or starts a tag."""
    escaped = html.escape(text, quote=False)
    return escaped.replace("|", "&#124;").replace("\n", " ").replace("\r", " ")


def _erased(erase: dict[str, Any] | None) -> dict[str, Any] | None:
    """The erase, with numbers of neurons in place of their lists, which ``erase.json`` has."""
    if erase is None:
        return None
    entries = [
        {
            "layer": entry["layer"],
            "part": entry["part"],
            "neurons": len(entry["neurons"]),
            "of": entry["of"],
        }
        for entry in erase["plan"]["entries"]
    ]
    found = erase["plan"].get("found")
    if found is not None:
        found = {name: value for name, value in found.items() if name != "neurons"}
    return {**erase, "plan": {**erase["plan"], "entries": entries, "found": found}}


def _audits(folder: RunFolder, name: str) -> dict[str, Any]:
    """The audits of one kind by stage."""
    return {
        stage: data for stage in STAGE_NAMES if (data := folder.load(f"{name}-{stage}")) is not None
    }


def _searched(recipe: Recipe, corpus: Corpus) -> tuple[Identifier, ...]:
    """The identifiers that sampling was searched for."""
    asked = recipe.audit.generation
    return IdentifierIndex(corpus, kinds=asked.kinds).identifiers if asked else ()


def _arrays(folder: RunFolder, name: str, kind: type[_Arrays]) -> dict[str, _Arrays]:
    """What the audits kept one by one, by stage."""
    return {
        stage: found
        for stage in STAGE_NAMES
        if (found := folder.load_arrays(name.format(stage), kind)) is not None
    }


def _changes(folder: RunFolder, corpus: Corpus) -> dict[str, Any]:
    """Before against after, with what is still or newly extractable named by digest."""
    verdicts = _arrays(folder, "audit-{}", Occurrences)
    after = verdicts["after"]
    change = compare(verdicts["before"], after)
    beyond = np.zeros_like(change.kept)
    if "base" in verdicts:
        beyond = beyond_control(after, verdicts["base"])

    def named(index: int) -> dict[str, Any]:
        document = corpus[int(after.document[index])]
        span = document.spans[int(after.span[index])]
        return {
            "document": int(after.document[index]),
            "label": span.label,
            "kind": span.kind,
            "digest": folder.digest(f"{span.label}\x00{document.value(span)}"),
        }

    return {
        **change.to_json(),
        "beyond_control": int(beyond.sum()),
        "beyond_control_listed": [named(i) for i in np.flatnonzero(beyond)[:MOST_LISTED]],
        "kept_listed": [named(i) for i in np.flatnonzero(change.kept)[:MOST_LISTED]],
        "new_listed": [named(i) for i in np.flatnonzero(change.new)[:MOST_LISTED]],
    }
