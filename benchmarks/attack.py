"""Every attack on every model: leaky, masked only, sani's default, retrained from the base.

    python benchmarks/attack.py [--quick | --small] [--models FOLDER] [--rows NAME ...]
        [--learning-rate R] [--set '{...}'] [--json FILE]

FOLDER is one that benchmarks/models.py makes: base/, leaky/, private.jsonl, held_out.jsonl. The
repaired models and the result of each attack are cached in FOLDER/attacks. --quick takes the
attacks' quick settings, two rows and models of its own, which it makes; --small takes few steps and
prompts, for a model that takes long; --learning-rate is that of every repair, where the rows' are
too high, --set changes settings of attacks, JSON by the name of the attack.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import models_for
from options import parser_of, write_json

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
TINY: dict[str, Any] = {
    "documents": 2,
    "decoys": 1,
    "quantize": {"bits": [4]},
    "relearn": {"steps": 2, "points": 1, "texts": ["harmless"], "learning_rates": [1e-3]},
    "prompting": {"occurrences": 20, "prefixes": [25]},
    "sampling": {"occurrences": 2, "samples": 2, "prefix": 25},
    "layers": {"layers": 1},
}


def made(name: str, folder: Path, rate: float | None) -> tuple[Path, float]:
    """Return a row's checkpoint, made unless it is there; and the seconds of a repair's epoch."""
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
    path, seconds = folder / "attacks" / f"{name.replace(' ', '-')}-{code}", 0.0
    if erased is None and repaired is None:
        return folder / start, seconds
    if not path.is_dir():
        corpus, base = read_corpus(folder / "private.jsonl"), load_checkpoint(folder / "base")
        checkpoint = load_checkpoint(folder / start)
        if erased:
            erase_settings = settings_from(EraseSettings, erased)
            erase(checkpoint, corpus, erase_settings, base=base, framing="bos", seed=0)
        rates = {"learning_rate": rate} if rate else {}
        settings = settings_from(RepairSettings, {**(repaired or {}), **rates})
        started = time.perf_counter()
        repair(checkpoint, corpus, settings, base=base, framing="bos", seed=0)
        seconds = (time.perf_counter() - started) / settings.epochs
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(checkpoint, path)
    return path, seconds


def digest(settings: Any) -> str:
    """Return a name of settings, so that nothing made for other ones is used."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def attacked(
    name: str,
    folder: Path,
    *,
    size: str = "full",
    rate: float | None = None,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run all attacks on one row and on the base, which is attacked once for all rows."""
    from sani.attacking.attack import attack
    from sani.auditing.utility import measure_utility
    from sani.corpus.readers import read_corpus
    from sani.models.checkpoint import load_checkpoint
    from sani.recipe import QUICK, AttackSettings, AuditSettings, settings_from

    path, epoch = made(name, folder, rate)
    models = {
        key: load_checkpoint(path)
        for key, path in (
            ("sanitized", path), ("unsanitized", folder / "leaky"), ("base", folder / "base"),
        )
    }  # fmt: skip
    values = {
        "quick": QUICK.model_dump(mode="json"),
        "full": AttackSettings().model_dump(mode="json"),
        "small": SMALL,
        "tiny": TINY,
    }[size]
    changes = {name: {**values.get(name, {}), **new} for name, new in (changes or {}).items()}
    settings = settings_from(AttackSettings, {**values, **changes})
    held_out, sanitized = read_corpus(folder / "held_out.jsonl"), models["sanitized"]
    utility = measure_utility(sanitized, held_out, AuditSettings(), framing="bos")
    code = digest(settings.model_dump(mode="json"))
    cache = folder / "attacks" / f"{code}-{path.name}"
    cache.mkdir(parents=True, exist_ok=True)
    for done in sorted((folder / "attacks").glob(f"{code}-*/*-base.json")):
        if not (cache / done.name).exists():
            shutil.copyfile(done, cache / done.name)
    attacks = attack(
        models,
        read_corpus(folder / "private.jsonl"),
        settings,
        audit=AuditSettings(framing="bos"),
        held_out=held_out,
        attacked=("sanitized", "base"),
        folder=cache,
        on_step=lambda stage, done, total: print(
            f"{name}: {stage} ({done} of {total})", flush=True
        ),
    ).to_json()
    return {"attacks": attacks, "epoch_seconds": epoch, "perplexity": utility.perplexity}


def rows_of(name: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one entry an attack and variant, as --json writes them."""
    entries = []
    for attack_name, variants in data["attacks"]["attacks"].items():
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
    """Return greedy / (n, p) / AUC, a row an attack and variant, a column a model or the base."""
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


def main(words: Sequence[str] | None = None) -> None:
    from sani.machine.device import quiet_libraries

    parser = parser_of(__doc__, models=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS))
    parser.add_argument("--small", action="store_const", const="small", dest="size")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--set", type=json.loads, dest="changes")
    arguments = parser.parse_args(words)
    quiet_libraries()
    models = models_for(arguments.size, arguments.models)
    entries, seconds = [], {}
    for name in arguments.rows or (QUICK_ROWS if arguments.size == "quick" else ROWS):
        data = attacked(
            name,
            models,
            size=arguments.size,
            rate=arguments.learning_rate,
            changes=arguments.changes,
        )
        print(f"{name}: held-out perplexity {data['perplexity']:.2f}", flush=True)
        seconds[name] = {"attacks": data["attacks"]["seconds"], "epoch": data["epoch_seconds"]}
        entries += rows_of(name, data)
    print(table(entries))
    print(f"seconds, of attacks and of an epoch of the repair where it was run now: {seconds}")
    write_json({"rows": entries, "seconds": seconds}, arguments.json)


if __name__ == "__main__":
    main()
