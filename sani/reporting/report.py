"""The report of a run: result files in, JSON, Markdown, HTML and JUnit out. Never reads a model.

`build_report` counts and never renders; everything else is a function of what it returns, so that
``report.json`` alone gives the same page again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np

from sani.atomic import write_text
from sani.auditing.compare import (
    beyond_control,
    compare,
    compare_audits,
    compare_pretraining,
)
from sani.auditing.generation import Hits
from sani.auditing.identifier_index import Identifier, IdentifierIndex
from sani.auditing.membership import DocumentScores
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus
from sani.gate import Check
from sani.recipe import Recipe
from sani.reporting.attacks import whether_tested
from sani.reporting.by_subject import against_control, by_subject
from sani.reporting.card import read_source_card
from sani.reporting.escalation import escalation
from sani.reporting.format import STAGE_NAMES, number
from sani.reporting.page import render
from sani.reporting.ripple import ripples
from sani.reporting.rounds import rounds_between, rounds_made
from sani.reporting.schema import SCHEMA_VERSION
from sani.runfolder import RunFolder

MOST_LISTED = 50
MOST_STEPS = 200
MAP_BINS = 64
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
    """Everything a run found, as ``report.json`` holds it; no identifier, no document id.

    Its shape is `sani.reporting.schema.Report`.
    """
    verdicts = _arrays(folder, "audit-{}", Occurrences)
    between = rounds_between(folder)
    steps = ("before", "erased", *between, "after")
    return {
        "schema_version": SCHEMA_VERSION,
        "gate": {
            "holds": bool(checks) and all(check.holds for check in checks),
            "checks": [check.to_json() for check in checks],
        },
        "scan": folder.load("scan"),
        **compare_audits(
            _audits(folder, "audit"),
            verdicts | between,
            _arrays(folder, "audit-{}-documents", DocumentScores),
            _arrays(folder, "audit-{}-generation", Hits),
            _searched(recipe, corpus),
            rounds=steps,
            seed=recipe.seed,
        ),
        "pretraining": compare_pretraining(
            _audits(folder, "pretraining"), _arrays(folder, "pretraining-{}", Occurrences)
        ),
        "changes": _changes(folder, corpus, verdicts),
        "ripples": ripples(verdicts | between, corpus, rounds=steps),
        "attacks": _attacked(folder.load("attack")),
        "subjects": by_subject(verdicts, corpus, folder.digest),
        "picture": against_control(verdicts, corpus),
        "escalation": escalation(folder),
        "rounds": rounds_made(folder),
        "erase": _erased(folder.load("erase")),
        "repair": _repaired(folder.load("repair")),
        "audit_settings": _without_paths(recipe.audit.model_dump()),
        "gate_settings": recipe.gate.model_dump(mode="json"),
        "without_limit": [
            name for name, limit in recipe.gate.model_dump().items() if limit is None
        ],
        "corpus_limit": recipe.corpus.limit,
        "recipe": _without_paths(recipe.model_dump()),
        "source_card": read_source_card(recipe.model.path, recipe.model.base),
        "not_tested": [
            *_not_attacked(folder.load("attack")),
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
            ElementTree.SubElement(case, "failure", message=message).text = check["reason"]
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _erased(erase: dict[str, Any] | None) -> dict[str, Any] | None:
    """The erase, with shares of stretches of neurons; ``erase.json`` has the neurons."""
    if erase is None:
        return None
    plan = erase["plan"]
    entries = [
        {
            "layer": entry["layer"],
            "part": entry["part"],
            "neurons": len(entry["neurons"]),
            "of": entry["total"],
            "map": _map(entry["neurons"], entry["total"]),
        }
        for entry in plan["entries"]
    ]
    found = plan.get("selector_result")
    if found is not None:
        found = {name: value for name, value in found.items() if name != "neurons"}
    return {
        "plan": {
            **{name: plan[name] for name in ("selector", "reset", "seed")},
            "interpolate_to_base": plan.get("interpolate_to_base", 0.0),
            "entries": entries,
            "token_rows": plan.get("token_rows"),
            "found": found,
        },
        "retrains": erase.get("retrains", False),
        **{name: erase[name] for name in ("changed_parameters", "fraction", "seconds")},
    }


def _map(neurons: Sequence[int], of: int) -> list[float]:
    """Share of each stretch of neighbouring neurons that was reset, at most `MAP_BINS` of them."""
    bins = min(MAP_BINS, of)
    whole = np.bincount(np.arange(of) * bins // of, minlength=bins)
    hit = np.bincount(np.asarray(neurons, dtype=np.int64) * bins // of, minlength=bins)
    return [round(float(share), 3) for share in hit / whole]


def _repaired(repair: dict[str, Any] | None) -> dict[str, Any] | None:
    """The repair, with means over neighbouring steps where there are more than `MOST_STEPS`."""
    if repair is None:
        return None
    curve = repair["curve"]
    width = max(1, -(-len(curve) // MOST_STEPS))
    groups = [curve[start : start + width] for start in range(0, len(curve), width)]
    return {
        **{name: repair[name] for name in ("steps", "tokens", "seconds", "trained_fraction")},
        "notes": repair.get("notes", []),
        "by_epoch": repair.get("by_epoch", []),
        "curve": [
            {
                name: fmean(entry[name] for entry in group if name in entry)
                for name in dict.fromkeys(name for entry in group for name in entry)
            }
            for group in groups
        ],
    }


def _attacked(attacks: dict[str, Any] | None) -> dict[str, Any] | None:
    """The attacks, without places on a disk."""
    if attacks is None:
        return None
    return {**attacks, "settings": _without_paths(attacks["settings"])}


def _not_attacked(attacks: dict[str, Any] | None) -> list[str]:
    """What no attack tried on the sanitized checkpoint."""
    if attacks is None:
        return [NOT_ATTACKED]
    names = (*attacks["not_run"], *attacks["attacks"])
    missing = [name for name in names if whether_tested(attacks, name) == "not tested"]
    return [f"attacks that were not run: {', '.join(missing)}"] if missing else []


def _without_paths(value: Any) -> Any:
    """Settings without places on a disk, whose names may tell who or where."""
    if isinstance(value, Mapping):
        return {name: _without_paths(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_without_paths(inner) for inner in value]
    place = isinstance(value, Path) or (isinstance(value, str) and "/" in value)
    return "(a path)" if place else value


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


def _changes(
    folder: RunFolder, corpus: Corpus, verdicts: Mapping[str, Occurrences]
) -> dict[str, Any]:
    """Before against after, with what is still or newly extractable named by digest."""
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
