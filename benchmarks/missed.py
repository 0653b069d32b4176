"""Measure what is kept of listed identifiers, of missed ones, and of unseen documents.

    python benchmarks/missed.py --quick [--json FILE]
    python benchmarks/missed.py --models FOLDER ... [--seeds 3] [--parts 1 0.5] [--rows NAME ...]
        [--epochs N] [--learning-rate R] [--batch-tokens N] [--precision bfloat16] [--out FILE]
    python benchmarks/missed.py --table [--out FILE]

A model folder is one that benchmarks/models.py makes. A fifth of the distinct direct identifiers is
hidden from the repair, as a scan would miss them: their tokens count as ordinary text. Of a part of
the corpus, `listed` and `missed` are identifiers of its documents, and `unseen` those of documents
that the repair never had. A seed draws what is hidden, the part and the order of training. Each
group is tested as the gate tests it: against the base, decoys and held-out people.

What is done is appended to --out at once (a line a model, part, row, seed and training), and is not
done again; benchmarks/missed.jsonl holds what the published table shows. --quick makes its own
models, runs one seed, and keeps its lines beside them.
"""

from __future__ import annotations

import json
import pickle
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from comparison import hide
from models import models_for
from options import parser_of, write_json

PUBLISHED = Path("benchmarks/missed.jsonl")
MASK, ANCHOR = {"kind": "mask"}, {"kind": "anchor", "weight": 20.0}
NEAR = {"interpolate_to_base": 0.9}
# Each row: where it starts, what is erased, the loss at identifiers, and what else the repair does.
ROWS: dict[str, dict[str, Any]] = {
    "unsanitized": {},
    "base": {"start": "base"},
    "masked repair, as published": {"loss": MASK},
    "nine tenths to the base, masked": {"erase": NEAR, "loss": MASK},
    "nine tenths to the base, anchor 20": {"erase": NEAR, "loss": ANCHOR},
    "nine tenths to the base, anchor 10": {"erase": NEAR, "loss": {"kind": "anchor", "weight": 10}},
    "retrained from the base, masked": {"start": "base", "loss": MASK},
    "retrained from the base, anchor 20": {"start": "base", "loss": ANCHOR},
    "never saw them: retrained, all masked": {"start": "base", "loss": MASK, "hidden": False},
}
GROUPS = ("listed", "missed", "unseen")
TINY_ROWS = ("unsanitized", "base", "masked repair, as published")
QUICK_ROWS = (
    *TINY_ROWS, "nine tenths to the base, masked", "nine tenths to the base, anchor 20",
    "never saw them: retrained, all masked",
)  # fmt: skip


def run_row(
    models: Path, name: str, *, seed: int, part: float, training: dict[str, Any]
) -> dict[str, Any]:
    """Sanitize once; return the figures of each group, perplexity, tokens and processor seconds."""
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus
    from sani.erasing.erase import apply_plan, plan_neurons
    from sani.models.checkpoint import load_checkpoint
    from sani.recipe import EraseSettings, RepairSettings, settings_from
    from sani.repairing.repair import repair

    row = ROWS[name]
    marked, listed = hide(read_corpus(models / "private.jsonl"), seed=seed)
    if not row.get("hidden", True):
        listed = read_corpus(models / "private.jsonl")
    count = max(1, round(part * len(listed)))
    inside = sorted(random.Random(seed).sample(range(len(listed)), count))
    given = Corpus([listed[number] for number in inside])
    checkpoint = load_checkpoint(models / row.get("start", "leaky"))
    base = load_checkpoint(models / "base")
    framing = framing_for(checkpoint)
    started, tokens = time.process_time(), 0
    if "erase" in row:
        erase = settings_from(EraseSettings, row["erase"])
        plan = plan_neurons(checkpoint, erase, corpus=given, base=base, framing=framing, seed=seed)
        apply_plan(checkpoint, plan, base=base, corpus=given, framing=framing)
    if "loss" in row:
        settings = settings_from(RepairSettings, {**training, "identifier_loss": row["loss"]})
        tokens = repair(
            checkpoint, given, settings, base=base, framing=framing, seed=seed
        ).tokens  # fmt: skip
    seconds = time.process_time() - started
    stored = name if name in ("unsanitized", "base") else None
    verdicts, perplexity = verdicts_of(models, checkpoint, stored=stored)
    control, _ = verdicts_of(models, base, stored="base")
    return {
        "perplexity": perplexity, "tokens": tokens, "seconds": seconds,
        **groups(models, marked, inside, verdicts, None if name == "base" else control),
    }  # fmt: skip


def framing_for(checkpoint: Any) -> str:
    """Return the framing that benchmarks/models.py trains with."""
    from sani.models.families import FAMILIES

    causal = FAMILIES[checkpoint.model.config.model_type].objective == "causal"
    return "bos" if causal else "tokenizer"


def verdicts_of(models: Path, checkpoint: Any, *, stored: str | None) -> tuple[Any, float]:
    """Return the verdicts on all direct identifiers, and held-out perplexity.

    Args:
        models: Folder of the models and the documents.
        checkpoint: What is audited.
        stored: The verdicts on models that no row changes are kept under this name.
    """
    from sani.auditing.audit import audit
    from sani.auditing.control_tests import Verdicts
    from sani.corpus.readers import read_corpus
    from sani.recipe import AuditSettings, settings_from

    path = models / f"verdicts-{stored}.pickle"
    if stored and path.exists():
        kept: tuple[Any, float] = pickle.loads(path.read_bytes())
        return kept
    framing = framing_for(checkpoint)
    settings = settings_from(
        AuditSettings, {"framing": framing, "swaps": 0, "membership_documents": 0}
    )
    result = audit(
        checkpoint, only_direct(read_corpus(models / "private.jsonl")), settings,
        held_out=only_direct(read_corpus(models / "held_out.jsonl")), control_framing=framing,
    )  # fmt: skip
    if result.utility is None:
        raise SystemExit(f"{models}: there are no held-out documents")
    if result.unscored:
        raise SystemExit(f"{models}: occurrences could not be scored: {result.unscored}")
    found = Verdicts(result.occurrences, result.held_out_occurrences), result.utility.perplexity
    if stored:
        path.write_bytes(pickle.dumps(found))
    return found


def only_direct(corpus: Any) -> Any:
    from sani.corpus.documents import Corpus

    return Corpus([
        replace(d, spans=tuple(span for span in d.spans if span.kind == "direct")) for d in corpus
    ])  # fmt: skip


def groups(
    models: Path, marked: Any, inside: Sequence[int], verdicts: Any, control: Any
) -> dict[str, dict[str, float | None]]:
    """Test each group of occurrences as the gate does, the others left out.

    Args:
        models: Folder of the documents.
        marked: The records, hidden identifiers of kind indirect.
        inside: Numbers of the documents that the repair had.
        verdicts: Of the audited model.
        control: Of the base; None for the base itself.
    """
    from sani.auditing.control_tests import control_tests_by_kind
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus

    held_out = only_direct(read_corpus(models / "held_out.jsonl"))
    had = set(inside)
    names_of = {"direct": "listed", "indirect": "missed"}
    group_of = [
        [names_of[span.kind] if number in had else "unseen" for span in document.spans]
        for number, document in enumerate(marked)
    ]
    figures: dict[str, dict[str, float | None]] = {}
    for group in GROUPS:
        if not any(group in names for names in group_of):
            continue
        corpus = Corpus([
            replace(d, spans=tuple(
                replace(s, kind="direct" if name == group else "indirect")
                for s, name in zip(d.spans, names, strict=True)
            ))
            for d, names in zip(marked, group_of, strict=True)
        ])  # fmt: skip
        tests, _ = control_tests_by_kind(corpus, verdicts, control, held_out=held_out, seed=0)[
            "direct"
        ]
        auc = tests.auc_to_base
        figures[group] = {
            "occurrences": tests.occurrences,
            "greedy": tests.greedy.occurrences, "discoverable": tests.discoverable.occurrences,
            "too_many": float(tests.greedy.exceeded or tests.discoverable.exceeded),
            "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high,
            "subjects": tests.subjects.tested, "above": tests.subjects.above,
        }  # fmt: skip
    return figures


# --- all rows -----------------------------------------------------------------------------------


def key(entry: dict[str, Any]) -> tuple[Any, ...]:
    training = entry["training"] if "loss" in ROWS[entry["name"]] else {}
    return *(entry[each] for each in ("models", "part", "name", "seed")), json.dumps(training)


def run(
    folders: Sequence[Path], names: Sequence[str], *, seeds: range, parts: Sequence[float],
    training: dict[str, Any], out: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run what is not done yet; return every result in ``out``, old ones too."""
    done = read(out)
    known = {key(entry) for entry in done}
    out.parent.mkdir(parents=True, exist_ok=True)
    for models in folders:
        for seed in seeds:
            for part in parts:
                for name in names:
                    entry: dict[str, Any] = {
                        "models": models.name, "part": part, "name": name, "seed": seed,
                        "training": training,
                    }  # fmt: skip
                    if key(entry) in known:
                        continue
                    entry |= run_row(models, name, seed=seed, part=part, training=training)
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(entry) + "\n")
                    done.append(entry)
                    print(json.dumps(entry), flush=True)
    return done


def read(out: Path) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    return [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Return means over the seeds with half of the 95 % t-interval, a section a model and part.

    With one seed, the interval of an AUC is that over subjects.
    """
    sections: dict[Any, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(entries, key=lambda entry: list(ROWS).index(entry["name"])):
        trained = "loss" in ROWS[entry["name"]]
        epochs = f", {entry['training'].get('epochs', '')} epochs" if trained else ""
        sections[entry["models"], entry["part"]][entry["name"] + epochs].append(entry)
    lines = []
    for (models, part), named in sorted(sections.items()):
        sides = [g for g in GROUPS if any(g in e for runs in named.values() for e in runs)]
        lines += [
            f"\n**{models}**, the repair has {part:.0%} of the records\n",
            "| row | seeds | " + " | ".join(
                f"{side}: greedy; (n, p); AUC to the base; subjects" for side in sides
            ) + " | perplexity | tokens | seconds |",
            "|---|---|" + "---|" * (len(sides) + 3),
        ]  # fmt: skip
        for name, runs in named.items():
            shown = [cell_of_group([e[side] for e in runs if side in e]) for side in sides]
            shown += [spread([e["perplexity"] for e in runs], 2)]
            shown += [f"{mean(e['tokens'] for e in runs):.0f}"]
            shown += [f"{mean(e['seconds'] for e in runs):.0f}"]
            lines.append(f"| {name} | {len(runs)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def cell_of_group(runs: Sequence[dict[str, float]]) -> str:
    if not runs:
        return "-"
    auc = spread([run["auc"] for run in runs], 3)
    if len(runs) == 1 and runs[0]["auc_low"] is not None:  # of one subject there is no interval
        auc += f" ({runs[0]['auc_low']:.3f} to {runs[0]['auc_high']:.3f})"
    counts = (
        f"{mean(run[figure] for run in runs):.1f}".removesuffix(".0")
        for figure in ("greedy", "discoverable", "occurrences", "above", "subjects")
    )
    greedy, discoverable, occurrences, above, subjects = counts
    return f"{greedy}; {discoverable} of {occurrences}; {auc}; {above} of {subjects}"


def spread(values: Sequence[float], digits: int) -> str:
    from scipy.stats import t

    text = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        text += f" ±{half:.{digits}f}"
    return text


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, help=f"the lines; {PUBLISHED} if absent")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args(words)
    models, names, seeds = arguments.models, arguments.rows, arguments.seeds
    parts, epochs, out = arguments.parts, arguments.epochs, arguments.out or PUBLISHED
    if arguments.size != "full":
        models = [models_for(arguments.size, models[0] if models else None)]
        out, seeds, parts = arguments.out or models[0] / "missed.jsonl", 1, [0.5]
        names, epochs = (QUICK_ROWS, epochs) if arguments.size == "quick" else (TINY_ROWS, 1)
    if not arguments.table:
        from sani.machine.device import quiet_libraries

        quiet_libraries()
        training = {
            "epochs": epochs, "learning_rate": arguments.learning_rate,
            "batch_tokens": arguments.batch_tokens, "precision": arguments.precision,
        }  # fmt: skip
        run(models, names, seeds=range(seeds), parts=parts, training=training, out=out)
    entries = read(out)
    print(table(entries))
    write_json(entries, arguments.json)


if __name__ == "__main__":
    main()
