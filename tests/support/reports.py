"""A finished run folder whose figures are invented: no model is trained or loaded for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sani.auditing.audit import AuditResult
from sani.auditing.control_tests import AtRisk, control_tests_by_kind
from sani.auditing.figures import figures_by_scope
from sani.auditing.occurrences import Occurrences
from sani.auditing.record import CheckpointAudit, load_verdicts
from sani.auditing.utility import Utility
from sani.corpus.documents import KINDS, Corpus, Document, Kind, Span
from sani.corpus.tables import write_jsonl
from sani.gate import Check, judge
from sani.recipe import Recipe, dump_recipe
from sani.recipe.settings import Part
from sani.reporting.report import build_report, write_report
from sani.reporting.schema import Report
from sani.runfolder import RunFolder, open_run
from sani.scanning.inventory import take_inventory

HOSTILE = "<script>alert(1)</script>"
LABELS = (HOSTILE, "MRN", "$x$ | \"'&amp;\n")


def entry(layer: int, part: Part, neurons: Sequence[int], of: int) -> dict[str, Any]:
    """Return the reset neurons of a part of a layer, as erase.json has them."""
    return {"layer": layer, "part": part, "neurons": list(neurons), "total": of, "scores": None}


ENTRIES = [
    *(entry(layer, "mlp", range(100), 256) for layer in (2, 3)),
    *(entry(layer, "attention", (0, 3), 4) for layer in (2, 3)),
]


def corpus_of(documents: int, spans: int, *, seed: int = 0) -> Corpus:
    """Return invented documents of half as many subjects, each with ``spans`` values."""
    chance = np.random.default_rng(seed)
    notes = []
    for number in range(documents):
        values = [f"Zq{number:05d}x{index}y{chance.integers(10**6):06d}" for index in range(spans)]
        text = "Note. " + " ".join(values)
        starts = [text.index(value) for value in values]
        marks = tuple(
            Span(start, start + len(value), LABELS[index % 3], KINDS[index % 2])
            for index, (start, value) in enumerate(zip(starts, values, strict=True))
        )
        notes.append(Document(f"doc-{number:06d}", f"subject-{number // 2:06d}", text, marks))
    return Corpus(notes)


DECOYS = 19


def verdicts_of(corpus: Corpus, *, memory: float, seed: int) -> Occurrences:
    """Return verdicts on a model that knows the share ``memory`` of the values."""
    chance = np.random.default_rng(seed)
    number = corpus.num_spans
    known = chance.random(number) < memory
    surprise = np.where(known, 0.1, chance.gamma(4.0, 8.0, number))
    decoys = -chance.gamma(4.0, 8.0, (number, DECOYS))
    auc = (decoys < -surprise[:, None]).mean(axis=1)
    pairs = [(d, s) for d, document in enumerate(corpus) for s in range(len(document.spans))]
    return Occurrences(
        document=np.array([document for document, _ in pairs]),
        span=np.array([span for _, span in pairs]),
        reason=np.full(number, "", dtype=np.str_),
        cued=chance.random(number) < 0.2,
        greedy=known,
        log_probability=-surprise,
        sampled=-surprise,
        discoverable=surprise < 7.0,
        num_tokens=np.full(number, 2),
        ranks=np.where(np.repeat(known, 2), 1, 50),
        auc=auc,
        exposure=3 * auc,
        first=known.astype(float),
        chance=np.full(number, 1 / 9),
        swap_auc=auc,
        swap_first=known.astype(float),
        swap_chance=np.full(number, 1 / 5),
        num_decoys=np.full(number, DECOYS),
        decoy_number=np.tile(np.arange(DECOYS), number),
        decoy_log_probability=decoys.reshape(-1),
        decoy_greedy=np.zeros(number * DECOYS, dtype=np.bool_),
        decoy_discoverable=decoys.reshape(-1) > -7.0,
    )


def report_of(data: dict[str, Any]) -> Report:
    """Return the report that is given as plain data, as a test changed it."""
    return Report.model_validate_json(json.dumps(data))


def checks_of(folder: RunFolder, recipe: Recipe) -> list[Check]:
    """Judge a finished run again, as the pipeline does."""
    return judge(
        recipe.judged_gate,
        before=folder.load_finished("audit-before", CheckpointAudit),
        after=folder.load_finished("audit-after", CheckpointAudit),
        control=folder.load_finished("audit-base", CheckpointAudit),
    )


def at_risk_of(folder: RunFolder, recipe: Recipe, corpus: Corpus) -> dict[Kind, AtRisk]:
    """Return who is at risk in a finished run, as the pipeline does."""
    after, base = load_verdicts(folder, "after"), load_verdicts(folder, "base")
    assert after is not None
    tests = control_tests_by_kind(corpus, after, base, held_out=None, seed=recipe.seed)
    return {kind: risk for kind, (_, risk) in tests.items()}


def finished_run(
    out: Path, corpus: Corpus, *, entries: Sequence[dict[str, Any]] = ENTRIES
) -> tuple[RunFolder, Recipe, Report]:
    """Make a run folder as the pipeline leaves it, without models; return it and its report."""
    models = {"path": str(out.parent / "model"), "base": str(out.parent / "public-base")}
    write_jsonl(corpus, out.parent / "notes.jsonl")
    recipe = Recipe.model_validate_json(
        json.dumps(
            {
                "version": 2,
                "model": models,
                "corpus": {"path": str(out.parent / "notes.jsonl")},
                "erase": {"last_layers": 2},
                "repair": {},
                "gate": {"perplexity_ratio": None},
            }
        )
    )
    known = {"base": 0.0, "before": 0.9, "erased": 0.2, "after": 0.1}
    with open_run(out, recipe=dump_recipe(recipe), inputs={"corpus": "c"}, resume=False) as folder:
        for number, (stage, memory) in enumerate(known.items()):
            verdicts = verdicts_of(corpus, memory=memory, seed=number)
            folder.save_arrays(f"audit-{stage}", verdicts)
            result = AuditResult(
                framing="bos",
                framings=("bos",),
                framings_tried={},
                figures=figures_by_scope(corpus, verdicts, recipe.audit, seed=0),
                jointly=None,
                unscored=verdicts.count_unscored(),
                without_decoys=0,
                utility=Utility(tokens=900, perplexity=3.0 + number, accuracy=0.4),
                membership=None,
                tokens=1000,
                seconds=2.0,
                occurrences=verdicts,
                held_out_occurrences=None,
                documents=None,
                generation=None,
            )
            folder.save(f"audit-{stage}", {**result.to_json(), "weights_digest": str(number)})
        digest = folder.digest(corpus.digest())
        folder.save("scan", {**take_inventory(corpus).to_json(), "quality": None, "digest": digest})
        plan = {"selector": {"kind": "all"}, "reset": "reinit", "seed": 0, "entries": list(entries)}
        erase = {"plan": plan, "changed_tensors": [], "changed_parameters": 9, "fraction": 0.1}
        folder.save("erase", {**erase, "seconds": 0.5, "weights_digest": "2"})
        curve = [{"step": float(i), "ordinary": 3 / i, "anchor": 5 / i} for i in range(1, 500)]
        repair: dict[str, Any] = {
            "steps": 499,
            "tokens": 7,
            "seconds": 1.0,
            "trained_fraction": 1.0,
        }
        repair["notes"] = ["rounding left 48% of what the repair moved"]
        folder.save("repair", {**repair, "curve": curve, "weights_digest": "3"})
        risk = at_risk_of(folder, recipe, corpus)
        report = build_report(folder, recipe, corpus, checks_of(folder, recipe), risk)
        write_report(out, report)
    return folder, recipe, report
