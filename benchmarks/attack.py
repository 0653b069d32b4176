"""Every attack on every model: leaky, masked only, sani's default, retrained from the base.

    python benchmarks/attack.py [--quick | --small] [--models FOLDER] [--rows NAME ...]
        [--learning-rate R] [--set '{...}'] [--json FILE]

FOLDER is one that benchmarks/models.py makes: base/, leaky/, private.jsonl, held_out.jsonl. What
is made on the way (the repaired models) and each attack's result lie in FOLDER/attacks and are
found again. --quick takes the attacks' quick settings and two rows, --small few steps and prompts,
for a model that takes long; --learning-rate is that of every repair, where the rows' are too high,
--set changes settings of attacks, JSON by the name of the attack.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

MASK = {"identifier_loss": {"kind": "mask"}, "epochs": 4, "learning_rate": 2e-3}
ANCHOR = {"identifier_loss": {"kind": "anchor", "weight": 20.0}, "epochs": 6, "learning_rate": 4e-3}
ERASE = {"last_layers": 3}
ROWS: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = {
    "leaky": ("leaky", None, None),
    "sani": ("leaky", {"interpolate_to_base": 0.5}, ANCHOR),
    "last layers erased": ("leaky", ERASE, ANCHOR),
    "masked only": ("leaky", None, MASK),
    "retrained": ("base", None, MASK),
}
"""Name -> where it starts, the erase, the repair: what `sani init` writes for a model that does no
better than its base, and those of recipes/meddocan*.yaml."""

QUICK_ROWS = ("leaky", "sani")
SMALL: dict[str, Any] = {
    "documents": 24,
    "decoys": 2,
    "relearn": {"steps": 24, "points": 2, "batch_tokens": 1024},
    "prompting": {"occurrences": 60, "prefixes": [25, 100]},
    "sampling": {"occurrences": 10, "samples": 20, "prefix": 25},
    "layers": {"layers": 2},
}  # fmt: skip


def made(name: str, folder: Path, rate: float | None) -> tuple[Path, float]:
    """A row's checkpoint, made unless it is there; and the seconds of one epoch of its repair."""
    from sani.corpus.readers import read_corpus
    from sani.erasing.erase import erase
    from sani.models.checkpoint import load_checkpoint, save_checkpoint
    from sani.recipe import (
        EraseSettings,
        RepairSettings,
        settings_from,
    )
    from sani.repairing.repair import repair

    start, erased, repaired = ROWS[name]
    code = digest([ROWS[name], rate])
    place, seconds = folder / "attacks" / f"{name.replace(' ', '-')}-{code}", 0.0
    if erased is None and repaired is None:
        return folder / start, seconds
    if not place.is_dir():
        corpus, base = read_corpus(folder / "private.jsonl"), load_checkpoint(folder / "base")
        checkpoint = load_checkpoint(folder / start)
        if erased:
            settings = settings_from(EraseSettings, erased)
            erase(checkpoint, settings, corpus=corpus, base=base, framing="bos", seed=0)
        rates = {"learning_rate": rate} if rate else {}
        settings = settings_from(RepairSettings, {**(repaired or {}), **rates})
        started = time.perf_counter()
        repair(checkpoint, corpus, settings, base=base, framing="bos", seed=0)
        seconds = (time.perf_counter() - started) / settings.epochs
        place.parent.mkdir(exist_ok=True)
        save_checkpoint(checkpoint, place)
    return place, seconds


def digest(asked: Any) -> str:
    """Names what was asked, so that nothing made for other settings is taken for it."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def attacked(
    name: str,
    folder: Path,
    *,
    kind: str = "full",
    rate: float | None = None,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All attacks on one row and on the base, which is attacked once for all rows."""
    from sani.attacking.attack import attack
    from sani.auditing.audit import measure_utility
    from sani.corpus.readers import read_corpus
    from sani.models.checkpoint import load_checkpoint
    from sani.recipe import QUICK, AttackSettings, AuditSettings, settings_from
    from sani.text.tokens import framing_named

    place, epoch = made(name, folder, rate)
    models = {
        key: load_checkpoint(path)
        for key, path in (("sanitized", place), ("leaky", folder / "leaky"),
                          ("base", folder / "base"))
    }  # fmt: skip
    known = {"quick": QUICK, "full": AttackSettings()}
    asked = known[kind].model_dump(mode="json") if kind in known else SMALL
    changes = {name: {**asked.get(name, {}), **new} for name, new in (changes or {}).items()}
    settings = settings_from(AttackSettings, {**asked, **changes})
    held_out, sanitized = read_corpus(folder / "held_out.jsonl"), models["sanitized"]
    utility = measure_utility(
        sanitized, held_out, framing_named("bos", sanitized.tokenizer), AuditSettings()
    )
    code = digest(settings.model_dump(mode="json"))
    kept = folder / "attacks" / f"{code}-{place.name}"
    kept.mkdir(parents=True, exist_ok=True)
    for done in sorted((folder / "attacks").glob(f"{code}-*/*-base.json")):
        if not (kept / done.name).exists():
            shutil.copyfile(done, kept / done.name)
    found = attack(
        models,
        read_corpus(folder / "private.jsonl"),
        settings,
        framing="bos",
        held_out=held_out,
        attacked=("sanitized", "base"),
        folder=kept,
        on_step=lambda what, done, total: print(f"{name}: {what} ({done} of {total})", flush=True),
    )
    return {"found": found, "epoch_seconds": epoch, "perplexity": utility.perplexity}


def rows_of(name: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry an attack and variant, as --json writes them."""
    entries = []
    for attack_name, variants in data["found"]["attacks"].items():
        for variant, row in variants.items():
            one, control = row["models"]["sanitized"], row["models"]["base"]
            entries.append(
                {
                    "model": name,
                    "perplexity": data["perplexity"],
                    "attack": attack_name,
                    "variant": variant,
                    "extraction": value(one, "greedy"),
                    "extraction_control": value(control, "greedy"),
                    "discoverable": value(one, "discoverable"),
                    "discoverable_control": value(control, "discoverable"),
                    "auc": value(one, "auc"),
                    "auc_control": value(control, "auc"),
                    "occurrences": one["greedy"]["trials"] if one["greedy"] else None,
                    "not_run": one["not_run"] or control["not_run"],
                }
            )
    return entries


def value(figures: dict[str, Any], name: str) -> float | None:
    return figures[name]["value"] if figures[name] else None


def table(entries: list[dict[str, Any]]) -> str:
    """Greedy / (n, p) / AUC, a row an attack and variant, a column a model; the base is one."""
    models = [*dict.fromkeys(entry["model"] for entry in entries), "base (control)"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        row = rows.setdefault((entry["attack"], entry["variant"]), {})
        row[entry["model"]] = entry["not_run"] or cell(entry, "")
        row["base (control)"] = cell(entry, "_control")
    lines = [f"| attack | {' | '.join(models)} |", "|---" * (1 + len(models)) + "|"]
    for (attack, variant), row in rows.items():
        cells = " | ".join(row.get(model, "") for model in models)
        lines.append(f"| {attack}, {variant} | {cells} |")
    return "\n".join(lines)


def cell(entry: dict[str, Any], side: str) -> str:
    figures = [entry[name + side] for name in ("extraction", "discoverable", "auc")]
    return " / ".join("-" if value is None else f"{value:.3f}".lstrip("0") for value in figures)


def main() -> None:
    from sani.machine.device import quiet_libraries

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/meddocan"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS))
    parser.add_argument("--quick", action="store_const", const="quick", dest="kind", default="full")
    parser.add_argument("--small", action="store_const", const="small", dest="kind")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--set", type=json.loads, dest="changes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    quiet_libraries()
    entries, seconds = [], {}
    for name in arguments.rows or (QUICK_ROWS if arguments.kind == "quick" else ROWS):
        data = attacked(
            name,
            arguments.models,
            kind=arguments.kind,
            rate=arguments.learning_rate,
            changes=arguments.changes,
        )
        print(f"{name}: held-out perplexity {data['perplexity']:.2f}", flush=True)
        seconds[name] = {"attacks": data["found"]["seconds"], "epoch": data["epoch_seconds"]}
        entries += rows_of(name, data)
    print(table(entries))
    print(f"seconds, of attacks and of an epoch of the repair where it was run now: {seconds}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": entries, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
