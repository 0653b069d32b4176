"""Erase and repair against repair alone, random choice, the field's rivals and retraining.

    python benchmarks/comparison.py [--models FOLDER ...] [--seeds 3] [--rows NAME] [--first N]
        [--out FILE]
    python benchmarks/comparison.py --table [--out FILE]

A model folder is one that benchmarks/models.py makes: base/, leaky/, private.jsonl, held_out.jsonl.
Every row is run with every seed: the seed draws the identifiers that are hidden from the repair (a
fifth of the distinct direct ones, as a detector would miss them: their tokens count as ordinary
text), the erase and the order of training. All rows read the same tokens: the same documents for
the same epochs, but for those that say otherwise. What is done is appended to --out at once, and is
not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HIDDEN = 0.2
HALF = {"last_layers": 3, "reset": "reinit"}
EPOCHS = 4
TRAINING = {"epochs": EPOCHS, "learning_rate": 2e-3}
MASK = {"kind": "mask"}
ANCHOR = {"kind": "anchor", "weight": 5.0}
SELECTORS = (
    "random", "magnitude", "drift", "activation_ratio", "gradient_ratio", "integrated_gradients",
    "fisher_ratio", "hard_concrete",
)  # fmt: skip
Row = dict[str, Any]


def rows() -> Iterator[Row]:
    """Every row, the most telling first: its name, and what it does."""
    half, objectives = {**HALF, "selector": ALL}, (("anchored", ANCHOR), ("masked", MASK))
    yield row("leaky")
    yield row("base (control)", start="base")
    for name, objective in objectives:
        yield row(f"{name} repair alone", repair=objective)
        yield row(f"all of the last half, {name}", erase=half, repair=objective)
    yield row("all of the last half, no repair", erase=half)
    yield row("retrained from the base, masked", start="base", repair=MASK)
    yield row("a tenth of the corpus: retrained, masked", start="base", repair=MASK, part=0.1)
    yield row("a tenth of the corpus: anchored repair alone", repair=ANCHOR, part=0.1)
    yield row("a tenth of the corpus: all of the last half, anchored",
              erase=half, repair=ANCHOR, part=0.1)  # fmt: skip
    for rival in ("gradient_difference", "npo", "unlikelihood"):
        yield row(f"{rival} alone", repair={"kind": rival})
    for name, objective in objectives:
        for selector in SELECTORS:
            erase = {**HALF, "selector": {"kind": selector, "fraction": 0.25}}
            yield row(f"{selector} 0.25 of the last half, {name}", erase=erase, repair=objective)
    for reset in ("rewind", "zero", "dampen", "mean"):
        yield row(f"all of the last half, {reset}, anchored",
                  erase={**half, "reset": reset}, repair=ANCHOR)  # fmt: skip
    for name, objective in objectives:
        for depth in (1, 2, 3, 6):
            for fraction in (0.1, 0.5, 1.0):
                erase = {"last_layers": depth, "selector": {"kind": "random", "fraction": fraction}}
                yield row(f"random {fraction} of the last {depth}, {name}",
                          erase=erase, repair=objective)  # fmt: skip


ALL = {"kind": "all"}


def row(
    name: str,
    *,
    start: str = "leaky",
    erase: dict[str, Any] | None = None,
    repair: dict[str, Any] | None = None,
    part: float = 1.0,
) -> Row:
    return {"name": name, "start": start, "erase": erase, "repair": repair, "part": part}


# --- one row, one seed --------------------------------------------------------------------------


def run_row(models: Path, row: Row, *, seed: int, held_out_documents: int = 20) -> dict[str, Any]:
    """Sanitize once and measure: figures of listed and of hidden identifiers, utility, seconds."""
    from sani.auditing.audit import audit
    from sani.checkpoint import load_checkpoint
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus
    from sani.erasing.erase import erase
    from sani.recipe import settings_from
    from sani.repairing.repair import repair

    corpus = read_corpus(models / "private.jsonl")
    held_out = read_corpus(models / "held_out.jsonl", limit=held_out_documents)
    audited, given = hide(corpus, seed=seed)
    chance = random.Random(seed)
    count = max(1, round(row["part"] * len(given)))
    given = Corpus([given[n] for n in sorted(chance.sample(range(len(given)), count))])
    checkpoint = load_checkpoint(models / row["start"])
    base = load_checkpoint(models / "base")
    started = time.perf_counter()
    plan = None
    if row["erase"]:
        settings = settings_from("EraseSettings", row["erase"])
        plan = erase(checkpoint, settings, corpus=given, base=base, framing="bos", seed=seed).plan
    if row["repair"]:
        settings = settings_from("RepairSettings", {**TRAINING, "at_identifiers": row["repair"]})
        repair(checkpoint, given, settings, base=base, framing="bos", seed=seed)
    seconds = time.perf_counter() - started
    settings = settings_from(
        "AuditSettings", {"framing": "bos", "swaps": 0, "membership_documents": 0}
    )
    result = audit(checkpoint, audited, settings, held_out=held_out, control_framing="bos", seed=0)
    found: dict[str, Any] = {"perplexity": result.utility.perplexity, "seconds": seconds}
    found["neurons"] = plan.num_neurons if plan else 0
    for name, kind in (("listed", "direct"), ("hidden", "indirect")):
        figures = result.figures[kind]
        found[name] = {
            "occurrences": figures.greedy.trials,
            "greedy": figures.greedy.value,
            "discoverable": figures.discoverable.value,
            "auc": figures.auc.value,
        }
    return found


def hide(corpus: Any, *, seed: int) -> tuple[Any, Any]:
    """The corpus to audit, and the one to repair with.

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
        kept = tuple(
            s for s in document.spans if s.kind != "direct" or document.value(s) not in hidden
        )
        given.append(replace(document, spans=kept))
    return Corpus(audited), Corpus(given)


# --- all rows -----------------------------------------------------------------------------------


def compare(
    folders: list[Path], chosen: list[Row], *, seeds: range, out: Path, **options: Any
) -> list[dict[str, Any]]:
    """Run what is not done yet, seed by seed; every result in ``out``, old ones included."""
    from sani.errors import SaniError

    done = read(out)
    known = {(entry["models"], entry["name"], entry["seed"]) for entry in done}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for row in chosen:
            for models in folders:
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
        for name in ("listed", "hidden")
    )
    return f"{head}{figures}{entry['perplexity']:9.1f}{entry['seconds']:7.1f} s"


def table(entries: list[dict[str, Any]]) -> str:
    """Means over the seeds, with half of the 95 % t-interval, a section a model."""
    from scipy.stats import t

    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        groups[entry["models"]][entry["name"]].append(entry)

    def cell(values: list[float], digits: int) -> str:
        text = f"{mean(values):.{digits}f}"
        if len(values) > 1:
            half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
            text += f" ±{half:.{digits}f}"
        return text

    lines = []
    for models, named in groups.items():
        lines += [
            f"\n**{models}**\n",
            "| row | seeds | listed: greedy | (1000, 0.5) | AUC | hidden: greedy | (1000, 0.5) "
            "| AUC | perplexity | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, found in named.items():
            cells = [
                cell([entry[side][figure] for entry in found], 3)
                for side in ("listed", "hidden")
                for figure in ("greedy", "discoverable", "auc")
            ]
            cells.append(cell([entry["perplexity"] for entry in found], 1))
            cells.append(f"{mean(entry['seconds'] for entry in found):.0f}")
            lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--first", type=int, help="only so many of them")
    parser.add_argument("--out", type=Path, default=Path("runs/compare/rows.jsonl"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        from sani.runtime import quiet_libraries

        quiet_libraries()
        chosen = [row for row in rows() if arguments.rows in row["name"]][: arguments.first]
        compare(arguments.models, chosen, seeds=range(arguments.seeds), out=arguments.out)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
