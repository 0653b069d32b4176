"""The command line: parse, call one library function, print, choose the exit code.

Exit codes: 0 done and the gate holds, 1 an error, 2 wrong usage, 3 the gate does not hold. Under
``accelerate launch`` each rank has them, and the launcher ends with 1 for any that is not 0.
Heavy libraries are imported inside the commands, so that `sani --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from sani import __version__
from sani.cli import console
from sani.errors import SaniError, UsageError
from sani.machine import distributed

GATE_FAILED = 3
BY_RANK = ("run", "audit", "repair", "scan")  # commands whose work ranks share
_INTERRUPTED = 130  # what Typer makes of Ctrl-C

app = typer.Typer(
    help="Audit, erase and repair language models that recite identifiers of the people in "
    "their training data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="Folder of the checkpoint.")]
CorpusOption = Annotated[
    Path, typer.Option("--corpus", help="Documents with spans: a file, or an XML or BRAT folder.")
]
Base = Annotated[
    Path | None, typer.Option(help="The public model it was fine-tuned from: control and anchor.")
]
HeldOut = Annotated[
    Path | None, typer.Option(help="Documents it was not trained on, to measure utility.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read only this many documents.")]
Framing = Annotated[
    str, typer.Option(help="What stands before a document: auto, bos, eos, tokenizer or none.")
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
NewFolder = Annotated[Path, typer.Option("--out", help="Folder for the new checkpoint.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        console.show(f"sani {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.Exit(2)
    together = context.invoked_subcommand in BY_RANK
    distributed.start(together=together)
    if not (together or distributed.main()):
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/<name of the recipe> if absent.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take up an interrupted run.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Look at everything, run nothing, write nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, over the recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Do the whole job of a recipe; exit code 3 if its gate does not hold."""
    from sani.recipe import load_recipe

    settings = load_recipe(recipe, overrides=overrides or ())
    folder = out or Path("runs") / recipe.stem
    if check:
        raise typer.Exit(_check(settings, folder, as_json=as_json))
    raise typer.Exit(_run(settings, folder, resume=resume, as_json=as_json))


def _check(settings: Any, out: Path, *, as_json: bool) -> int:
    from dataclasses import asdict

    from sani.machine.device import quiet_libraries
    from sani.pipeline.preflight import check

    quiet_libraries()
    items = check(settings, out)
    if as_json:
        console.show_json([asdict(item) for item in items])
    else:
        rows = [[item.name, "ok" if item.holds else "NO", item.detail] for item in items]
        console.show_table("Check (nothing was written)", ["what", "", "found"], rows)
    return 0 if all(item.holds for item in items) else 1


def _run(settings: Any, out: Path, *, resume: bool, as_json: bool) -> int:
    from sani.pipeline.run import run as run_recipe

    if resume and not out.exists():
        console.say(f"{out} is not there, so there is nothing to resume: this run is new")
    with console.reporter() as on_step:
        result = run_recipe(settings, out, resume=resume, on_step=on_step)
    _warn_of_files_not_released(settings.model.path, checked=settings.only_checks)
    if as_json:
        console.show_json(result.report)
    else:
        _show_report(result.report, out)
        place = settings.model.path if settings.only_checks else out / "sanitized"
        console.show(f"Checkpoint: {place}" + _warning(result.gate_holds))
    return 0 if result.gate_holds else GATE_FAILED


def _warn_of_files_not_released(model: Path, *, checked: bool = False) -> None:
    from sani.releasing.identifiers_in_files import files_not_released

    found = ", ".join(f"{kind} ({count})" for kind, count in files_not_released(model).items())
    if found:
        console.say(f"{'Not judged' if checked else 'Left behind'} in {model}: {found}")


def _warning(gate_holds: bool) -> str:
    return "" if gate_holds else " (do not share it: the gate does not hold)"


@app.command()
def scan(
    corpus: Annotated[Path, typer.Argument(help="Documents: a file or a folder.")],
    limit: Limit = None,
    format: Annotated[
        str | None, typer.Option(help="How they are written, where the name does not tell.")
    ] = None,
    subject_pattern: Annotated[
        str | None,
        typer.Option(help="For text files: expression with a group 'subject', on the path."),
    ] = None,
    patterns: Annotated[
        bool, typer.Option("--patterns", help="Look by pattern: Presidio's and clinical ones.")
    ] = False,
    ner: Annotated[
        str | None,
        typer.Option(help="Look for names: a spaCy pipeline, or a token-classification folder."),
    ] = None,
    terms: Annotated[
        Path | None, typer.Option(help="Look for confidential terms: one a line, or CSV.")
    ] = None,
    propagate: Annotated[
        str | None,
        typer.Option(help="Look for found values in the same 'subject', or in all the 'corpus'."),
    ] = None,
    indirect: Annotated[
        int | None,
        typer.Option("--indirect", min=2, metavar="K", help="Mark n-grams of fewer subjects."),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Hold the detectors against the corpus's own spans."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the documents with all spans, in clear, as JSONL.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where offsets and labels are kept for the next scan; ~/.cache/sani."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep nothing.")] = False,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes; same result.")] = 1,
    as_json: Json = False,
) -> None:
    """Count identifiers: those the corpus marks and, if asked, those that a scan finds."""
    from sani.corpus.readers import read_corpus
    from sani.corpus.tables import write_jsonl
    from sani.machine.device import quiet_libraries
    from sani.scanning.detection import detect, estimate
    from sani.scanning.inventory import scan as take_inventory

    settings = _settings(
        "ScanSettings",
        patterns=patterns,
        ner=ner,
        terms=str(terms) if terms else None,
        propagate=propagate,
        indirect={"k": indirect} if indirect else None,
        num_proc=num_proc,
    )
    if evaluate and not (patterns or ner or terms):
        raise UsageError("--evaluate needs a detector: give --patterns, --ner or --terms")
    if evaluate and out:
        raise UsageError("--evaluate compares and marks nothing; give --out to a scan of its own")
    if out and distributed.on_main(lambda: out.exists() or not out.parent.is_dir()):
        raise SaniError(f"--out {out} is there already, or its folder is not; choose another file")
    documents = read_corpus(
        corpus, format=cast(Any, format), limit=limit, subject_pattern=subject_pattern
    )
    quality = None
    if settings.detects:
        quiet_libraries()
        with console.reporter() as on_step:
            kept = None if no_cache else cache or _cache_folder()
            if evaluate:
                quality = estimate(documents, settings, cache_folder=kept, on_step=on_step)
            else:
                documents = detect(documents, settings, cache_folder=kept, on_step=on_step)
    if out:
        distributed.on_main(lambda: write_jsonl(documents, out))
        console.say(f"{out} holds identifiers in the clear (mode 0600): keep it where records are")
    if quality is not None:
        data = quality.to_json()
        console.show_json(data) if as_json else console.show_evaluation(data)
        return
    inventory = take_inventory(documents)
    if as_json:
        console.show_json(inventory.to_json())
    else:
        console.show_inventory(inventory.to_json())


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sani"


@app.command()
def audit(
    model: Model,
    corpus: CorpusOption,
    base: Base = None,
    held_out: HeldOut = None,
    limit: Limit = None,
    before: Annotated[
        list[Path] | None,
        typer.Option(help="An earlier round of the same model, oldest first; may be repeated."),
    ] = None,
    pretraining: Annotated[
        Path | None,
        typer.Option(help="Documents that only the base may have seen: are they leaked?"),
    ] = None,
    decoys: Annotated[int, typer.Option(min=0, help="Decoys per occurrence.")] = 8,
    swaps: Annotated[int, typer.Option(min=0, help="Other subjects' values, likewise.")] = 4,
    framing: Framing = "auto",
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Also sample: so many continuations of each kind of prompt."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Further prompts for sampling, one a line.")
    ] = None,
    seed: Seed = 0,
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Exit with 3 if more than this fraction of the occurrences of direct identifiers "
            "is recited greedily or (n, p)-discoverable, or any could not be scored.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what a checkpoint recites of a corpus, beside the base as control."""
    from sani.corpus.readers import read_corpus
    from sani.pipeline.inputs import Documents, read_others
    from sani.pipeline.run import audit_models
    from sani.reporting.contents import audit_sections
    from sani.reporting.format import STAGE_NAMES

    asked: dict[str, Any] = {"decoys": decoys, "swaps": swaps, "framing": framing}
    if samples or prompts:
        number = samples or 1000
        asked["generation"] = {
            "empty": number, "headings": number, "openings": number,
            "file": str(prompts) if prompts else None,
        }  # fmt: skip
    settings = _settings("AuditSettings", **asked)
    read = read_corpus(corpus, limit=limit)
    documents = Documents(
        read,
        read_others("--held-out", held_out, read),
        read_others("--pretraining", pretraining, read),
    )
    models = {"model": model}
    for number, folder in reversed(list(enumerate(before or [], start=1))):
        models[f"round {number}"] = folder
    if base is not None:
        models["base"] = base
    with console.reporter() as on_step:
        found = audit_models(models, documents, settings, seed=seed, on_step=on_step)
    if as_json:
        console.show_json(found)
    else:
        console.show_audits(found["audits"], STAGE_NAMES)
        for section in audit_sections(found):
            console.show_section(section)
        for name, data in found["audits"].items():
            for reason, count in data["unscored"].items():
                console.show(f"{name}: {count} occurrences not scored: {reason}")
    raise typer.Exit(_over(found["audits"]["model"], fail_above))


def _over(data: dict[str, Any], fail_above: float | None) -> int:
    """Whether an audit breaks ``--fail-above``; no direct identifier is no pass either."""
    if fail_above is None:
        return 0
    figures = data["figures"].get("direct")
    rates = [figures[name]["value"] for name in ("greedy", "discoverable")] if figures else [None]
    holds = all(rate is not None and rate <= fail_above for rate in rates)
    return 0 if holds and not data["unscored"] else GATE_FAILED


@app.command()
def erase(
    model: Model,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the new checkpoint; not for --dry-run.")
    ] = None,
    last_layers: Annotated[
        str | None,
        typer.Option(
            help="The last this many layers, half or all; 3 if absent, none where only "
            "--interpolate-to-base is asked."
        ),
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(min=0, help="Or this layer, from 0; may be repeated.")
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(
            help="all, random, magnitude, drift, activation_ratio, gradient_ratio, fisher_ratio, "
            "integrated_gradients or hard_concrete; all if absent."
        ),
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of the neurons.")
    ] = None,
    per: Annotated[
        str | None, typer.Option(help="Of each layer, or of the whole model; layer if absent.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="mlp or attention; may be repeated; both if absent.")
    ] = None,
    reset: Annotated[
        str | None,
        typer.Option(
            help="reinit, zero, rewind (to the base), mean or dampen; reinit if absent, rewind in "
            "an adapter."
        ),
    ] = None,
    token_rows: Annotated[
        bool, typer.Option("--token-rows", help="Also rows of tokens that only identifiers have.")
    ] = False,
    interpolate_to_base: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="First all weights go this share of the way to the base's."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="The public model it was fine-tuned from: for drift, rewind, --interpolate-to-base, "
            "adapters."
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base, then erase.")
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Documents with spans, for selectors, resets and --token-rows that look at them."
        ),
    ] = None,
    framing: Framing = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same bytes; 0 if absent.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan as JSON and write nothing.")
    ] = False,
    kept_plan: Annotated[
        Path | None, typer.Option("--plan", help="Carry out this plan, as --dry-run printed it.")
    ] = None,
) -> None:
    """Stage one: reset selected neurons and write the erased checkpoint, or the erased adapter."""
    from sani.erasing.folder import apply_folder, plan_folder
    from sani.erasing.plan import read_plan
    from sani.machine.device import quiet_libraries
    from sani.models.checkpoint import is_adapter
    from sani.reporting import process

    quiet_libraries()
    given = (
        last_layers, layer, selector, fraction, per, part, reset, token_rows or None, interpolate_to_base,
        seed,
    )  # fmt: skip
    if kept_plan is not None and (dry_run or any(value is not None for value in given)):
        raise UsageError("--plan says already what is chosen; give no other choice beside it")
    if out is None and not dry_run:
        raise UsageError("give --out, the folder for the new checkpoint, or --dry-run for the plan")
    if selector in (None, "all") and (fraction, per) != (None, None):
        raise UsageError(
            "--fraction and --per are for a selector that chooses; give one, such as --selector "
            "random"
        )
    if merge and not is_adapter(model):
        raise UsageError(f"--merge is for an adapter, and {model} is none; leave it out")
    rule: dict[str, Any] = {"kind": selector or "all"}
    if fraction is not None:
        rule["fraction"] = fraction
    if per is not None:
        rule["per"] = per
    documents = None
    if corpus is not None:
        from sani.corpus.readers import read_corpus

        documents = read_corpus(corpus)
    inside = is_adapter(model) and not merge
    chosen: dict[str, Any] = {
        "selector": rule,
        "reset": reset or ("rewind" if inside else "reinit"),
        "token_rows": token_rows,
        "interpolate_to_base": interpolate_to_base or 0.0,
    }
    if layer:
        chosen["layers"] = layer
    if layer and last_layers is not None:
        raise UsageError("give --last-layers or --layer, not both")
    asks_for_neurons = any((selector, fraction, per, part, reset, token_rows))
    if last_layers is not None or not (layer or (interpolate_to_base and not asks_for_neurons)):
        number = last_layers or "3"
        if number not in ("half", "all") and not (number.isdecimal() and int(number)):
            raise UsageError("--last-layers: expected a whole number from 1, half or all")
        chosen["last_layers"] = int(number) if number.isdecimal() else number
    if part:
        chosen["parts"] = part
    settings = _settings("EraseSettings", **chosen)
    if kept_plan is None and settings.needs_base and base is None:
        raise UsageError(f"{_needing_base(chosen)} needs --base, the public model")
    if out is not None and not dry_run:
        _check_new(out, model)
    plan = (
        read_plan(kept_plan)
        if kept_plan is not None
        else plan_folder(
            model,
            settings,
            corpus=documents,
            base=base,
            framing=framing,
            seed=seed or 0,
        )
    )
    if out is None or dry_run:
        console.show_json(plan.to_json())
        if plan.token_rows is not None:
            console.say("token rows are counted in this plan, not named, so --plan will refuse it")
        return
    result = apply_folder(
        model, out, plan, base=base, merge=merge, corpus=documents, framing=framing
    )
    _warn_of_files_not_released(model)
    layers = len({entry.layer for entry in plan.entries if entry.neurons})
    if plan.num_neurons:
        console.show(
            f"{plan.num_neurons} neurons and heads in {layers} layer{'s' if layers != 1 else ''} "
            f"{'dampened' if plan.reset == 'dampen' else 'reset'} "
            f"({result.fraction:.1%} of the parameters)."
        )
    console.show(f"{'Adapter' if inside else 'Checkpoint'}: {out}")
    if inside:
        console.show("Where its base lies on this machine is not in it: give the base to load it.")
    if plan.interpolate_to_base:
        console.show(process.interpolate_to_base(plan.to_json()))
    if plan.retrains:
        console.show(process.retrains(plan.to_json()))
    for sentence in process.token_rows(plan.to_json()):
        console.show(sentence)


@app.command()
def sample(
    model: Model,
    out: Annotated[Path, typer.Option(help="JSONL file to write; it may hold identifiers.")],
    documents: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1000,
    first: Annotated[
        int, typer.Option(min=0, help="Number of the first; others are other texts.")
    ] = 0,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a text, at most.")] = 256,
    framing: Framing = "auto",
    seed: Seed = 0,
) -> None:
    """Text that the model writes itself, to scan and repair with where its records are gone."""
    from sani.auditing.sampling import sample_documents
    from sani.corpus.tables import write_jsonl
    from sani.machine.device import default_device, quiet_libraries
    from sani.models.checkpoint import load_checkpoint

    quiet_libraries()
    if out.exists() or not out.parent.is_dir():
        raise SaniError(f"--out {out} is there already, or its folder is not; choose another file")
    checkpoint = load_checkpoint(model, device=default_device())
    with console.reporter() as on_step:
        texts = sample_documents(
            checkpoint,
            documents,
            first=first,
            new_tokens=new_tokens,
            framing=framing,
            seed=seed,
            on_step=partial(on_step, "sample"),
        )
    write_jsonl(texts, out)
    console.say(f"{len(texts)} texts in {out} (mode 0600): what the model recites stands in it")


@app.command()
def repair(
    model: Model,
    corpus: CorpusOption,
    out: NewFolder,
    base: Base = None,
    identifier_loss: Annotated[
        str | None,
        typer.Option(
            help="anchor (where there is a base), mask, unlikelihood, npo, gradient_difference."
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Of anchor: base, self, counterfactual or decoys.")
    ] = None,
    unsanitized: Annotated[
        Path | None,
        typer.Option(help="The checkpoint before erasing, for npo, self and counterfactual."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Weight at identifiers; anchor 20, else 1.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the corpus.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    last_layers: Annotated[
        int | None, typer.Option(min=1, help="Train only the last this many layers.")
    ] = None,
    framing: Framing = "auto",
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Stage two: fine-tune with identifiers kept out of the loss; write the repaired checkpoint."""
    from sani.corpus.readers import read_corpus
    from sani.machine.device import default_device, make_deterministic, quiet_libraries
    from sani.models.checkpoint import load_checkpoint, save_checkpoint
    from sani.pipeline.inputs import check_control
    from sani.repairing.repair import repair as run_repair

    quiet_libraries()
    make_deterministic()
    objective: dict[str, Any] = {"kind": identifier_loss or ("anchor" if base else "mask")}
    if weight is not None:
        objective["weight"] = weight
    if to is not None:
        objective["to"] = to
    settings = _settings(
        "RepairSettings",
        identifier_loss=objective,
        epochs=epochs,
        learning_rate=learning_rate,
        last_layers=last_layers,
    )
    _check_new(out, model)
    checkpoint = load_checkpoint(model, base=base, device=default_device())
    public = load_checkpoint(base, device=default_device()) if base else None
    original = (
        load_checkpoint(unsanitized, base=base, device=default_device()) if unsanitized else None
    )
    if public is not None and original is not None:  # then the model may well be the base again
        check_control(original, public, name="--unsanitized")
    elif public is not None:
        name = "the model (if it went back to the base on purpose, give --unsanitized)"
        check_control(checkpoint, public, name=name)
    with console.reporter() as on_step:
        result = run_repair(
            checkpoint,
            read_corpus(corpus, limit=limit),
            settings,
            base=public,
            unsanitized=original,
            framing=framing,
            seed=seed,
            on_step=partial(on_step, "repair"),
        )
    distributed.on_main(lambda: save_checkpoint(checkpoint, out))
    _warn_of_files_not_released(model)
    for note in result.notes:
        console.show(f"Note: {note}.")
    console.show(
        f"{result.steps} steps over {result.tokens} tokens in {result.seconds:.0f} s. "
        f"Checkpoint: {out} (audit it before you trust it: sani audit)"
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folder; two of them with --compare.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Show two runs side by side; writes nothing.")
    ] = False,
    reveal: Annotated[
        bool,
        typer.Option(
            "--reveal",
            help="Also write what is still extractable in clear, for the owner of the records: "
            "private/revealed.jsonl, mode 0600.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Render a finished run's report again; exit code 3 if its gate does not hold."""
    if len(runs) != 1 + compare or (compare and reveal):
        raise UsageError("give one run folder, or two with --compare (without --reveal)")
    if compare:
        raise typer.Exit(_compare_runs(runs[0], runs[1], as_json=as_json))
    from sani.reporting.report import write_report
    from sani.reporting.schema import read_report

    folder = runs[0]
    found = read_report(folder)
    write_report(folder, found)
    console.show_json(found) if as_json else _show_report(found, folder)
    if reveal:
        from sani.machine.device import quiet_libraries
        from sani.pipeline.run import reveal_run

        quiet_libraries()
        place = reveal_run(folder)
        if place.stat().st_size:
            console.say(f"{place} holds identifiers in the clear (mode 0600)")
        else:
            console.say(f"{place} is empty: nothing was extracted, and none is beyond the base")
    raise typer.Exit(0 if found["gate"]["holds"] else GATE_FAILED)


def _compare_runs(first: Path, second: Path, *, as_json: bool) -> int:
    from dataclasses import asdict

    from sani.reporting.compare_runs import side_by_side

    sections = side_by_side(first, second)
    if as_json:
        console.show_json([asdict(section) for section in sections])
    else:
        for section in sections:
            console.show_section(section)
    return 0


def _show_report(report: dict[str, Any], folder: Path) -> None:
    """The compact table, the gate, and where the rest stands."""
    from sani.reporting.escalation import tried
    from sani.reporting.evidence import summary, untested
    from sani.reporting.rounds import rounds

    console.show_section(tried(report))
    console.show_section(rounds(report))
    console.show_section(summary(report))
    console.show_checks(report["gate"]["checks"])
    inventory = report["scan"]
    console.show(
        f"{inventory['documents']} documents, {inventory['documents_without_spans']} without "
        f"any span; {inventory['unmarked']} places look forgotten (see sani scan). "
        f"{report['changes']['beyond_control']} occurrences are extractable from the sanitized "
        "checkpoint and not from the base."
    )
    if inventory["quality"]:
        recall = inventory["quality"]["recall"]
        console.show(
            f"Estimated recall of the scan: {recall['value']:.1%} ({recall['hits']} of "
            f"{recall['trials']} direct gold identifiers found whole)."
        )
    console.show(f"Not tested: {'; '.join(untested(report))}.")
    holds = "holds" if report["gate"]["holds"] else "DOES NOT HOLD"
    console.show(f"The gate {holds}. Report: {folder / 'report.html'}")


@app.command()
def init(
    model: Model,
    corpus: CorpusOption,
    base: Base = None,
    held_out: HeldOut = None,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    no_time: Annotated[bool, typer.Option("--no-time", help="Do not measure the time.")] = False,
) -> None:
    """Write a commented recipe fitted to a model and a corpus."""
    from sani.pipeline.suggest_recipe import duration, fit, write_recipe

    if out.exists():
        raise SaniError(f"--out {out} is there already; choose another file")
    with console.reporter() as on_step:
        found = fit(
            model, corpus, base=base, held_out=held_out, measure=not no_time, on_step=on_step
        )
    write_recipe(out, found, model=model, corpus=corpus, base=base, held_out=held_out)
    takes = "" if found.seconds is None else f" A run takes {duration(found.seconds)}."
    console.show(f"Recipe: {out}.{takes} Next: sani run {out} --check")


@app.command()
def env(as_json: Json = False) -> None:
    """Print what this machine can do: device, memory, versions, the largest model."""
    from sani.machine.environment import describe_environment

    found = describe_environment(Path.cwd())
    if as_json:
        console.show_json(found)
    else:
        console.show_table("This machine", ["what", "found"], [list(row) for row in found.items()])


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from sani.recipe import Recipe

    console.show_json(Recipe.model_json_schema())


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that sani run wrote as sanitized/.")],
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM): the signature must be valid.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash a released checkpoint again; exit code 3 if it is not as its manifest says."""
    from dataclasses import asdict

    from sani.releasing.manifest import verify as verify_folder

    found = verify_folder(folder, public_key=key)
    if as_json:
        console.show_json(asdict(found))
    else:
        for what in ("added", "missing", "changed"):
            for name in getattr(found, what):
                console.show(f"{what}: {name}")
        console.show(
            f"{found.files} files in the manifest: {len(found.added)} added, "
            f"{len(found.missing)} missing, {len(found.changed)} changed. "
            f"Signature: {found.signature}"
            f"{NOT_SIGNED if found.signature in ('none', 'not checked') else ''}. "
            f"The gate of the run {'held' if found.gate_holds else 'DID NOT HOLD'}."
        )
    raise typer.Exit(0 if found.holds else GATE_FAILED)


@app.command()
def sign(
    folder: Annotated[Path, typer.Argument(help="Folder that sani run wrote as sanitized/.")],
    key: Annotated[Path, typer.Option(help="Private key (PEM, elliptic curve).")],
) -> None:
    """Sign a released checkpoint with a key of your own (pip install 'sani-llm[sign]')."""
    from sani.releasing.manifest import sign as sign_folder

    console.show(f"Signature: {sign_folder(folder, key)}")


@app.command()
def attack(
    model: Model,
    corpus: CorpusOption,
    base: Base = None,
    unsanitized: Annotated[
        Path | None, typer.Option(help="The unsanitized checkpoint: guidance, and what there was.")
    ] = None,
    held_out: HeldOut = None,
    neighbours: Annotated[
        Path | None, typer.Option(help="Other documents of the same subjects, with spans.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few documents, one or two variants of each attack.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this attack; may be repeated.")
    ] = None,
    framing: Framing = "auto",
    limit: Limit = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Keep what is done here, so that --resume goes on.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take up an interrupted one.")] = False,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Exit with 3 if an attack gets more than from the base, or if the unsanitized "
            "checkpoint (--unsanitized) recites nothing, so that nothing was shown.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Attack a sanitized checkpoint, and the base as control."""
    if gate and (unsanitized is None or base is None):
        raise UsageError(
            "--gate: give --base and --unsanitized, the unsanitized checkpoint; without them nothing "
            "tells a clean model from the wrong corpus or tokenizer"
        )
    from sani.attacking.attack import ATTACKS, BASE, SANITIZED, UNSANITIZED
    from sani.corpus.readers import read_corpus
    from sani.gate import judge_attacks, positive_control_of_attacks
    from sani.pipeline.inputs import Documents, read_others
    from sani.pipeline.run import attack_models
    from sani.recipe import QUICK, AttackSettings, settings_from
    from sani.reporting.attacks import attack_sections

    if unknown := set(only or ()) - set(ATTACKS):
        raise UsageError(f"--only {min(unknown)}: no such attack; there are {', '.join(ATTACKS)}")
    asked: dict[str, Any] = QUICK.model_dump(mode="json") if quick else {}
    asked |= {name: None for name in ATTACKS if only and name not in only}
    if neighbours and asked.get("neighbours", {}) is not None:
        asked["neighbours"] = {**asked.get("neighbours", {}), "documents": str(neighbours)}
    read = read_corpus(corpus, limit=limit)
    models = {SANITIZED: model}
    for name, folder in ((UNSANITIZED, unsanitized), (BASE, base)):
        if folder is not None:
            models[name] = folder
    with console.reporter() as on_step:
        found = attack_models(
            models,
            Documents(read, read_others("--held-out", held_out, read), None),
            settings_from(AttackSettings, asked),
            framing=framing,
            attacked=(SANITIZED, BASE) if quick and not gate else (SANITIZED, UNSANITIZED, BASE),
            seed=seed,
            out=out,
            resume=resume,
            on_step=on_step,
        )
    judged = [
        *([positive_control_of_attacks(found)] if gate else []),
        *judge_attacks("control", found),
    ]
    checks = [check.to_json() for check in judged]
    if as_json:
        console.show_json({**found, "checks": checks})
    else:
        for section in attack_sections(found):
            console.show_section(section)
        console.show_checks(checks)
    raise typer.Exit(0 if not gate or all(check["holds"] for check in checks) else GATE_FAILED)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where models and runs are kept.")] = Path("runs/demo"),
) -> None:
    """Invent a clinic, train a model that recites its patients, and sanitize it. No download."""
    from sani.demo.demo import demo_recipe
    from sani.recipe import load_recipe

    with console.reporter() as on_step:
        recipe = demo_recipe(out, on_step=on_step)
    console.say(f"sani run {recipe}")
    code = _run(load_recipe(recipe), out / "run", resume=False, as_json=False)
    raise typer.Exit(code)


Section = Literal["AuditSettings", "EraseSettings", "RepairSettings", "ScanSettings"]


def _settings(section: Section, **values: Any) -> Any:
    """A section of a recipe from options, checked by the same rules; unset options are left out.

    Raises:
        UsageError: With every problem, by its option.
    """
    from sani import recipe

    try:
        given = {key: value for key, value in values.items() if value is not None}
        return recipe.settings_from(getattr(recipe, section), given)
    except SaniError as error:
        text = re.sub(r"^options: ([\w.]+): ", _option, str(error), flags=re.MULTILINE)
        raise UsageError(text) from None


def _option(path: re.Match[str]) -> str:
    """The option for a key of the recipe, such as --selector for selector.kind."""
    *sections, key = [name for name in path[1].split(".") if not name.isdecimal()]
    name = sections[-1] if key == "kind" and sections else key
    singular = {"parts": "part", "layers": "layer"}
    return f"--{singular.get(name, name).replace('_', '-')}: "


def _needing_base(chosen: dict[str, Any]) -> str:
    if chosen["interpolate_to_base"]:
        return "--interpolate-to-base"
    return "--reset rewind" if chosen["reset"] == "rewind" else "--selector drift"


def _check_new(out: Path, model: Path) -> None:
    if out.resolve() == model.resolve():
        raise SaniError(f"--out {out} is the model itself; sani never overwrites its input")
    if model.resolve() in out.resolve().parents:
        raise SaniError(f"--out {out} is inside the model's folder; choose a place outside it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SaniError(f"--out {out} is there already and not empty; choose another folder")
    place = out.absolute()
    while not os.path.lexists(place) or (place == out.absolute() and place.is_dir()):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "cannot be written" if place.is_dir() else "is no folder"
        raise SaniError(f"--out {out}: {place} {what}; choose another folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback reaches the user.

    The text of an unexpected error is not shown, since it may quote a record; SANI_DEBUG=1 shows
    it to who may see records.
    """
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    # Threads that spin while they wait cost a shared machine up to ten times the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupted)  # a stopped job cleans up as Ctrl-C does
    usual_hook, sys.unraisablehook = sys.unraisablehook, _ignored
    try:
        code = app(args=arguments, standalone_mode=False)
        if code != _INTERRUPTED:
            distributed.finish()
    except SaniError as error:
        if os.environ.get("SANI_DEBUG"):
            raise
        console.say_last(f"error: {error}")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except typer.Exit as stop:
        distributed.finish()
        code = stop.exit_code
    except Exception as error:
        return _unexpected(error)
    finally:
        sys.unraisablehook = usual_hook
        if distributed.launched():  # it ends anyway, and has said why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if code == _INTERRUPTED:
        words = sys.argv[1:] if arguments is None else arguments
        command = next((word for word in words if not word.startswith("-")), "")
        way_on = f"sani {command} goes on with --resume" if command in RESUMES else HALF_WRITTEN
        console.say_last(f"interrupted; {way_on}")
        return 1
    return int(code or 0)


NOT_SIGNED = " (so whoever changed a file may have changed the manifest too)"
RESUMES = ("run", "attack")
HALF_WRITTEN = "nothing was left half-written"


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _ignored(found: Any) -> None:
    """Where Python can raise nothing (a destructor): a Ctrl-C comes again, no text is printed."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        again = (threading.main_thread().ident, signal.SIGINT)
        threading.Timer(0.1, signal.pthread_kill, again).start()


def _unexpected(error: Exception) -> int:
    usage = getattr(error, "exit_code", None)
    if usage is not None and hasattr(error, "show"):
        if distributed.first("last words"):
            error.show(file=sys.stderr)
        return int(usage)
    if os.environ.get("SANI_DEBUG"):
        raise error
    reason = _disk_trouble(error)
    if reason is not None:
        console.say_last(
            f"error: a file could not be written or read ({reason}); free space or look at the "
            "rights, then go on with --resume"
        )
        return 1
    if distributed.lost(error):
        console.say_last(
            "error: another rank ended without a word (killed, or out of memory?); go on with "
            "--resume"
        )
        return 1
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
    console.say_last(
        f"error: {type(error).__name__} at {where}, a defect of sani or of a library below it; "
        "its text is not shown because it may quote a record (SANI_DEBUG=1 shows it)"
    )
    return 1


_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
)  # fmt: skip
# How safetensors and torch put it, which have no such number.
_DISK_TEXTS = ("No space left on device", "StorageFull", "File too large", "inline_container.cc")


def _disk_trouble(error: BaseException | None) -> str | None:
    """What the disk said, if it is behind this error; never a file's name."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return error.strerror
        if any(text in str(error) for text in _DISK_TEXTS):
            return "No space left on device"
        error = error.__cause__ or error.__context__
    return None
