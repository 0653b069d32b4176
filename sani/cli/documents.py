"""Commands that make or look at documents: scan, sample."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sani.cli import console
from sani.cli.options import (
    DETECTORS,
    DOCUMENTS,
    OUTPUT,
    Framing,
    Json,
    Limit,
    Model,
    Seed,
    settings_from_options,
)
from sani.errors import UsageError
from sani.machine import distributed


def scan(
    corpus: Annotated[Path, typer.Argument(help="Documents: a file or a folder.")],
    limit: Limit = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of the documents, if the file's name does not tell it: jsonl, parquet, "
            "csv, arrow, i2b2, brat, fhir or text.",
            rich_help_panel=DOCUMENTS,
        ),
    ] = None,
    subject_pattern: Annotated[
        str | None,
        typer.Option(
            help="For text files: regular expression with a group 'subject', for the path.",
            rich_help_panel=DOCUMENTS,
        ),
    ] = None,
    patterns: Annotated[
        bool,
        typer.Option(
            "--patterns",
            help="Detect identifiers by pattern: Presidio's patterns and clinical ones.",
            rich_help_panel=DETECTORS,
        ),
    ] = False,
    ner: Annotated[
        str | None,
        typer.Option(
            help="Detect names with a spaCy pipeline, or with the model in a "
            "token-classification folder.",
            rich_help_panel=DETECTORS,
        ),
    ] = None,
    terms: Annotated[
        Path | None,
        typer.Option(
            help="Detect confidential terms from a file: one a line, or CSV.",
            rich_help_panel=DETECTORS,
        ),
    ] = None,
    propagate: Annotated[
        str | None,
        typer.Option(
            help="Mark each detected value also elsewhere: in documents of the same 'subject', or "
            "in the whole 'corpus'.",
            rich_help_panel=DETECTORS,
        ),
    ] = None,
    indirect: Annotated[
        int | None,
        typer.Option(
            "--indirect",
            min=2,
            metavar="K",
            help="Mark n-grams that fewer than K subjects use as indirect identifiers.",
            rich_help_panel=DETECTORS,
        ),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Compare what the detectors mark with the corpus's own spans.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file for the documents with all spans. It holds the identifiers in clear.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps positions and labels for the next scan.",
            show_default="~/.cache/sani",
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no cache.")] = False,
    num_proc: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes. The result does not depend on it.",
            show_default="1",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the identifiers that a corpus marks and, with detectors, those that a scan finds."""
    from sani.atomic import check_new_file
    from sani.corpus.readers import read_corpus
    from sani.corpus.tables import write_jsonl
    from sani.recipe import ScanSettings
    from sani.scanning.detection import estimate
    from sani.scanning.scan import scan as scan_corpus

    settings = settings_from_options(
        ScanSettings,
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
        raise UsageError(
            "--evaluate only compares, so it has no documents to write: leave --out away, or scan "
            "again without --evaluate"
        )
    if out:
        distributed.on_main(lambda: check_new_file(out))
    documents = read_corpus(
        corpus, format=cast(Any, format), limit=limit, subject_pattern=subject_pattern
    )
    cache_folder = None if no_cache else cache or _cache_folder()
    with console.reporter() as on_step:
        if evaluate:
            quality = estimate(documents, settings, cache_folder=cache_folder, on_step=on_step)
        else:
            result = scan_corpus(documents, settings, cache_folder=cache_folder, on_step=on_step)
    if evaluate:
        data = quality.to_json()
        console.show_json(data) if as_json else console.show_evaluation(data)
        return
    if out:
        write_jsonl(result.corpus, out)
        console.say(f"{out} holds identifiers in the clear (mode 0600): keep it with the records")
    inventory = result.inventory.to_json()
    console.show_json(inventory) if as_json else console.show_inventory(inventory)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sani"


def sample(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(help="JSONL file to write. It may hold identifiers.", rich_help_panel=OUTPUT),
    ],
    documents: Annotated[int, typer.Option(min=1, help="Number of texts.")] = 1000,
    first: Annotated[
        int,
        typer.Option(min=0, help="Number of the first text. Other numbers give other texts."),
    ] = 0,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of a text.")
    ] = 256,
    framing: Framing = "auto",
    seed: Seed = 0,
) -> None:
    """Let the model write text, to scan and repair with where its own records are gone."""
    from sani.pipeline.folders import sample_folder

    with console.reporter() as on_step:
        texts = sample_folder(
            model,
            documents,
            out=out,
            first=first,
            new_tokens=new_tokens,
            framing=framing,
            seed=seed,
            on_step=partial(on_step, "sample"),
        )
    console.say(f"{len(texts)} texts in {out} (mode 0600): they hold what the model recites")
