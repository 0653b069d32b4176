"""Erase and repair against repair alone, random choice, the field's rivals and retraining.

    python benchmarks/comparison.py --quick [--json FILE]
    python benchmarks/comparison.py [--models FOLDER ...] [--seeds 3] [--rows NAME] [--first N]
        [--out FILE]
    python benchmarks/comparison.py --table [--out FILE]

A model folder is one that benchmarks/models.py makes: base/, leaky/, private.jsonl, held_out.jsonl.
Every row is run with every seed: the seed draws the identifiers that are hidden from the repair (a
fifth of the distinct direct ones, as a detector would miss them: their tokens count as ordinary
text), the part of the corpus, the erase and the order of training. All rows read the same tokens:
the same documents for the same epochs, but for those that say otherwise. With a part of the
corpus, `listed` and `hidden` are identifiers of the documents in that part, and `others` those of
documents that the repair never saw; so also where it reads other clean documents, or texts that
the leaky model wrote itself, marked by the scan's patterns. What is done is appended to --out at
once (a line a row, model and seed), and is not done again; benchmarks/comparison.jsonl holds what
the published results show. --quick runs the first rows with one seed, on models that it makes, and
keeps its lines beside them.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from models import models_for
from options import parser_of, write_json

HIDDEN = 0.2
QUICK_ROWS, TINY_ROWS = 6, 3
PUBLISHED = Path("benchmarks/comparison.jsonl")
TRAINING = {"epochs": 4, "learning_rate": 2e-3, "batch_tokens": 1024}
MASK = {"kind": "mask"}
ANCHOR = {"kind": "anchor", "weight": 20.0}
SKILL = 5.0
SELECTORS = (
    "random", "magnitude", "drift", "activation_ratio", "gradient_ratio", "integrated_gradients",
    "fisher_ratio", "hard_concrete",
)  # fmt: skip
Row = dict[str, Any]


def rows(layers: int = 6) -> Iterator[Row]:
    """Yield every row for a model of so many layers, the most telling first."""
    last = {"last_layers": layers // 2, "reset": "reinit"}
    half, objectives = {**last, "selector": ALL}, (("anchored", ANCHOR), ("masked", MASK))
    yield row("leaky")
    yield row("base (control)", start="base")
    for name, objective in objectives:
        yield row(f"{name} repair alone", repair=objective)
        yield row(f"all of the last half, {name}", erase=half, repair=objective)
    yield row("anchored repair alone, keeps skill", repair=ANCHOR, skill=SKILL)
    yield row("all of the last half, anchored, keeps skill", erase=half, repair=ANCHOR, skill=SKILL)
    yield row("half way to the base, anchored", erase={"interpolate_to_base": 0.5}, repair=ANCHOR)
    yield row("all of the last half, no repair", erase=half)
    yield row("retrained from the base, masked", start="base", repair=MASK)
    for part, share in (("a fifth", 0.2), ("a tenth", 0.1)):
        part = f"{part} of the corpus"
        yield row(f"{part}: leaky", part=share)
        yield row(f"{part}: base (control)", start="base", part=share)
        yield row(f"{part}: retrained, masked", start="base", repair=MASK, part=share)
        yield row(f"{part}: anchored repair alone", repair=ANCHOR, part=share)
        yield row(f"{part}: anchored repair alone, keeps skill",
                  repair=ANCHOR, part=share, skill=SKILL)  # fmt: skip
        yield row(f"{part}: all of the last half, anchored", erase=half, repair=ANCHOR, part=share)
        yield row(f"{part}: half way to the base, anchored",
                  erase={"interpolate_to_base": 0.5}, repair=ANCHOR, part=share)  # fmt: skip
    for name, texts in (("other clean documents", "clean"), ("the model's own texts", "own")):
        yield row(f"{name}: all of the last half, anchored",
                  erase=half, repair=ANCHOR, texts=texts)  # fmt: skip
    for rival in ("gradient_difference", "npo", "unlikelihood"):
        yield row(f"{rival} alone", repair={"kind": rival})
    for selector in SELECTORS:
        chosen = {"kind": selector, "fraction": 0.25, **FEWER.get(selector, {})}
        for name, objective in objectives:
            yield row(f"{selector} 0.25 of the last half, {name}",
                      erase={**last, "selector": chosen}, repair=objective)  # fmt: skip
    for name, objective in objectives:
        for depth in (1, 2, layers // 2, layers):
            for fraction in (0.1, 0.5, 1.0):
                if (depth, fraction) != (layers // 2, 1.0):  # all of the last half
                    chosen = {"kind": "random", "fraction": fraction}
                    yield row(f"random {fraction} of the last {depth}, {name}",
                              erase={"last_layers": depth, "selector": chosen},
                              repair=objective)  # fmt: skip
    for reset in ("rewind", "zero", "dampen", "mean"):
        yield row(f"all of the last half, {reset}, anchored",
                  erase={**half, "reset": reset}, repair=ANCHOR)  # fmt: skip


ALL = {"kind": "all"}
FEWER = {"integrated_gradients": {"occurrences": 50}, "hard_concrete": {"steps": 200}}  # for time


def row(
    name: str,
    *,
    start: str = "leaky",
    erase: dict[str, Any] | None = None,
    repair: dict[str, Any] | None = None,
    part: float = 1.0,
    texts: str = "records",
    skill: float = 0.0,
) -> Row:
    return {
        "name": name, "start": start, "erase": erase, "repair": repair, "part": part,
        "texts": texts, "skill": skill,
    }  # fmt: skip


# --- one row, one seed --------------------------------------------------------------------------


def run_row(models: Path, row: Row, *, seed: int, held_out_documents: int = 20) -> dict[str, Any]:
    """Sanitize once; return figures of listed and of hidden identifiers, utility, seconds."""
    from sani.auditing.audit import audit
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus
    from sani.erasing.erase import apply_plan
    from sani.models.checkpoint import load_checkpoint
    from sani.recipe import AuditSettings, RepairSettings, settings_from
    from sani.repairing.repair import repair

    corpus = read_corpus(models / "private.jsonl")
    others = list(read_corpus(models / "held_out.jsonl"))
    held_out, clean = Corpus(others[:held_out_documents]), others[held_out_documents:]
    audited, whole = hide(corpus, seed=seed)
    count = max(1, round(row["part"] * len(whole)))
    part = sorted(random.Random(seed).sample(range(len(whole)), count))
    given = Corpus([whole[number] for number in part])
    if row["texts"] != "records":
        part = []
        given = Corpus(clean[: len(whole)])
    if row["texts"] == "own":
        given = own_texts(load_checkpoint(models / "leaky"), len(whole), seed=seed)
    checkpoint = load_checkpoint(models / row["start"])
    base = load_checkpoint(models / "base")
    neurons, planning = 0, 0.0
    started = time.perf_counter()
    if row["erase"]:
        plan, planning = planned(models, checkpoint, row, given, base=base, seed=seed)
        started = time.perf_counter()
        apply_plan(checkpoint, plan, base=base, corpus=given, framing="bos")
        neurons = plan.num_neurons
    if row["repair"]:
        values = {**TRAINING, "identifier_loss": row["repair"], "retain_weight": row["skill"]}
        settings = settings_from(RepairSettings, values)
        leaky = load_checkpoint(models / "leaky") if row["skill"] else None
        repair(
            checkpoint, given, settings,
            base=base, unsanitized=leaky, framing="bos", seed=seed,
        )  # fmt: skip
    seconds = planning + time.perf_counter() - started
    audit_settings = settings_from(
        AuditSettings, {"framing": "bos", "swaps": 0, "membership_documents": 0}
    )
    result = audit(
        checkpoint, audited, audit_settings, held_out=held_out, control_framing="bos", seed=0
    )
    if result.utility is None:
        raise SystemExit(f"{models}: there are no held-out documents")
    verdicts = result.occurrences
    seen = np.isin(verdicts.document, part)
    kinds = np.array([
        audited[document].spans[span].kind
        for document, span in zip(verdicts.document, verdicts.span, strict=True)
    ])  # fmt: skip
    groups = {
        "listed": seen & (kinds == "direct"), "hidden": seen & (kinds == "indirect"),
        "others": ~seen,
    }  # fmt: skip
    return {
        "perplexity": result.utility.perplexity, "seconds": seconds, "planning": planning,
        "neurons": neurons, "tokens": result.tokens,
        **{name: figures(verdicts, chosen) for name, chosen in groups.items() if chosen.any()},
    }  # fmt: skip


def own_texts(checkpoint: Any, number: int, *, seed: int) -> Any:
    """Return texts that the leaky model writes, marked by the scan's patterns."""
    from sani.auditing.sampling import sample_documents
    from sani.recipe import ScanSettings
    from sani.scanning.detection import detect

    texts = sample_documents(checkpoint, number, new_tokens=500, framing="bos", seed=seed)
    return detect(texts, ScanSettings(patterns=True))


PLANS: dict[str, tuple[Any, float]] = {}


def planned(
    models: Path, checkpoint: Any, row: Row, corpus: Any, *, base: Any, seed: int
) -> tuple[Any, float]:
    """Return a row's plan and its seconds; one plan serves rows that differ in the repair only."""
    from sani.erasing.erase import plan_neurons
    from sani.recipe import EraseSettings, settings_from

    key = f"{models} {row['erase']} {row['part']} {seed}"
    if key not in PLANS:
        PLANS.clear()
        settings = settings_from(EraseSettings, row["erase"])
        started = time.perf_counter()
        plan = plan_neurons(
            checkpoint, settings, corpus=corpus, base=base, framing="bos", seed=seed
        )
        PLANS[key] = plan, time.perf_counter() - started
    return PLANS[key]


def figures(verdicts: Any, chosen: Any) -> dict[str, Any]:
    """Return rates and AUC of the chosen occurrences, every one of which must have been scored."""
    if not verdicts.scored[chosen].all():
        raise SystemExit("an occurrence could not be scored")
    return {
        "occurrences": int(chosen.sum()),
        "greedy": float(verdicts.greedy[chosen].mean()),
        "discoverable": float(verdicts.discoverable[chosen].mean()),
        "auc": float(np.nanmean(verdicts.auc[chosen])),
    }


def hide(corpus: Any, *, seed: int) -> tuple[Any, Any]:
    """Return the corpus to audit, and the one to repair with.

    In the first, direct identifiers are of kind direct if they are listed, indirect if hidden, and
    nothing else is marked. In the second, the hidden ones are not marked.
    """
    from sani.corpus.documents import Corpus

    values = sorted({d.value(s) for d in corpus for s in d.spans if s.kind == "direct"})
    hidden = set(random.Random(seed).sample(values, round(HIDDEN * len(values))))
    audited, given = [], []
    for document in corpus:
        direct = [span for span in document.spans if span.kind == "direct"]
        marked = tuple(
            replace(s, kind="indirect" if document.value(s) in hidden else "direct") for s in direct
        )
        audited.append(replace(document, spans=marked))
        listed = tuple(
            s for s in document.spans if s.kind != "direct" or document.value(s) not in hidden
        )
        given.append(replace(document, spans=listed))
    return Corpus(audited), Corpus(given)


# --- all rows -----------------------------------------------------------------------------------


def compare(
    folders: list[Path], chosen: list[Row], *, seeds: range, out: Path, **options: Any
) -> list[dict[str, Any]]:
    """Run what is not done yet, seed by seed; return every result in ``out``, old ones too."""
    from sani.errors import SaniError

    done = read(out)
    known = {(entry["models"], entry["name"], entry["seed"]) for entry in done}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for models in folders:
            for row in chosen:
                if (models.name, row["name"], seed) in known:
                    continue
                entry = {"models": models.name, "name": row["name"], "seed": seed}
                try:
                    entry |= run_row(models, row, seed=seed, **options)
                except SaniError as error:
                    print(f"{models.name} {row['name']}: refused: {error}", flush=True)
                    continue
                with out.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                done.append(entry)
                print(line(entry), flush=True)
    return done


def read(out: Path) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    return [json.loads(text) for text in out.read_text().splitlines()]


def line(entry: dict[str, Any]) -> str:
    head = f"{entry['models']:18}{entry['seed']:2} {entry['name']:52}"
    figures = "".join(
        f"{entry[name]['greedy']:7.3f}{entry[name]['discoverable']:7.3f}{entry[name]['auc']:7.3f} "
        for name in ("listed", "hidden", "others")
        if name in entry
    )
    return f"{head}{figures}{entry['perplexity']:9.1f}{entry['seconds']:7.1f} s"


def table(entries: list[dict[str, Any]]) -> str:
    """Return means over the seeds, with half of the 95 % t-interval, a section a model."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    order = [row["name"] for row in rows()]
    for entry in sorted(entries, key=lambda entry: order.index(entry["name"])):
        groups[entry["models"]][entry["name"]].append(entry)
    lines = []
    for models, named in sorted(groups.items()):
        for sides in (("listed", "hidden"), ("listed", "hidden", "others")):
            head = [f"{side}: greedy | (1000, 0.5) | AUC" for side in sides]
            lines += [
                f"\n**{models}{', a part of the corpus' if len(sides) > 2 else ''}**\n",
                f"| row | seeds | {' | '.join(head)} | perplexity | seconds |",
                "|---|---|" + "---|" * (3 * len(sides) + 2),
            ]
            for name, runs in named.items():
                if ("others" in runs[0]) == ("others" in sides):
                    lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells(runs, sides)))
    return "\n".join(lines)


def cells(runs: list[dict[str, Any]], sides: tuple[str, ...]) -> list[str]:
    """Return the cells of a row: figures of each side, perplexity, seconds."""
    from scipy.stats import t

    def cell(values: list[float], digits: int) -> str:
        if not values:
            return "-"
        text = f"{mean(values):.{digits}f}"
        if len(values) > 1:
            half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
            text += f" ±{half:.{digits}f}"
        return text

    shown = [
        cell([entry[side][figure] for entry in runs if side in entry], 3)
        for side in sides
        for figure in ("greedy", "discoverable", "auc")
    ]
    shown.append(cell([entry["perplexity"] for entry in runs], 1))
    shown.append(f"{mean(entry['seconds'] for entry in runs):.0f} |")
    return shown


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--first", type=int, help="only so many of them")
    parser.add_argument("--out", type=Path, help=f"the lines; {PUBLISHED} if absent")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args(words)
    models, seeds, first = arguments.models, arguments.seeds, arguments.first
    out, layers = arguments.out or PUBLISHED, 6
    if arguments.size != "full":
        models = [models_for(arguments.size, models[0] if models else None)]
        out, seeds, layers = arguments.out or models[0] / "comparison.jsonl", 1, 4
        first = first or (QUICK_ROWS if arguments.size == "quick" else TINY_ROWS)
    if not arguments.table:
        from sani.machine.device import quiet_libraries

        quiet_libraries()
        chosen = [row for row in rows(layers) if arguments.rows in row["name"]][:first]
        compare(models, chosen, seeds=range(seeds), out=out)
    entries = read(out)
    print(table(entries))
    write_json(entries, arguments.json)


if __name__ == "__main__":
    main()
