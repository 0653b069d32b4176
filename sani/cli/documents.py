"""Commands that make or look at documents: scan, review, sample."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sani.cli import console
from sani.cli.options import (
    DETECTORS,
    OUTPUT,
    Column,
    Format,
    Framing,
    Json,
    Limit,
    Model,
    Seed,
    SubjectPattern,
    cache_folder,
    columns_from,
    settings_from_options,
)
from sani.errors import UsageError
from sani.machine import distributed


def scan(
    corpus: Annotated[Path, typer.Argument(help="Documents: a file or a folder.")],
    limit: Limit = None,
    format: Format = None,
    column: Column = None,
    subject_pattern: SubjectPattern = None,
    patterns: Annotated[
        bool,
        typer.Option(
            "--patterns",
            help="Detect identifiers by pattern: Presidio's patterns and clinical ones.",
            rich_help_panel=DETECTORS,
        ),
    ] = False,
    ner: Annotated[
        list[str] | None,
        typer.Option(
            help="Detect names with a spaCy pipeline, or with the model in a "
            "token-classification folder. May be given several times.",
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
    structure: Annotated[
        bool,
        typer.Option(
            "--structure",
            help="Learn header fields from lines that recur, and mark their values.",
            rich_help_panel=DETECTORS,
        ),
    ] = False,
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
    allow: Annotated[
        Path | None,
        typer.Option(
            help="File of values that no detector marks, one a line. Annotation stays marked.",
            rich_help_panel=DETECTORS,
        ),
    ] = None,
    annotated_only: Annotated[
        bool,
        typer.Option(
            "--annotated-only",
            help="Look for nothing: count the annotation alone.",
            rich_help_panel=DETECTORS,
        ),
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Compare what the detectors mark with the corpus's own spans.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    errors: Annotated[
        Path | None,
        typer.Option(
            help="With --evaluate: HTML page with all errors. It holds identifiers in clear.",
            show_default="private/scan-errors.html",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
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
    """Find identifiers in documents that nobody has annotated, and count what is marked.

    If no detector is named, an annotated corpus is only counted.

    Any other one is then scanned with patterns, names by a spaCy pipeline, and propagation.
    """
    from sani.atomic import check_new_file
    from sani.corpus.readers import read_corpus
    from sani.corpus.tables import write_jsonl
    from sani.recipe import ScanSettings
    from sani.scanning.breakdown import write_mistakes
    from sani.scanning.defaults import default_settings, settings_in_words
    from sani.scanning.detection import estimate
    from sani.scanning.scan import scan as scan_corpus

    chosen = {
        "patterns": patterns or None,
        "ner": ner[0] if ner and len(ner) == 1 else ner or None,
        "terms": str(terms) if terms else None,
        "structure": structure or None,
        "propagate": propagate,
        "indirect": {"k": indirect} if indirect else None,
    }
    named = any(value is not None for value in chosen.values())
    if annotated_only and (named or evaluate or allow):
        raise UsageError("--annotated-only looks for nothing: leave the other options out")
    if evaluate and named and not (patterns or ner or terms):
        raise UsageError("--evaluate needs a detector: give --patterns, --ner or --terms")
    if evaluate and out:
        raise UsageError(
            "--evaluate only compares, so it has no documents to write: leave --out away, or scan "
            "again without --evaluate"
        )
    if errors and not evaluate:
        raise UsageError("--errors is a page of --evaluate: give both, or leave it away")
    if out:
        distributed.on_main(lambda: check_new_file(out))
    others = {"allow": str(allow) if allow else None, "num_proc": num_proc}
    settings = settings_from_options(ScanSettings, **chosen, **others)
    documents = read_corpus(
        corpus,
        format=cast(Any, format),
        limit=limit,
        subject_pattern=subject_pattern,
        columns=columns_from(column),
    )
    for note in documents.notes:
        console.say_note(note)
    if not (named or annotated_only):
        defaults = default_settings([documents], annotated=False if evaluate else None)
        settings = settings.model_copy(update=defaults.model_dump(exclude_unset=True))
    folder = None if no_cache else cache or cache_folder()
    with console.reporter() as on_step:
        if evaluate:
            quality = estimate(documents, settings, cache_folder=folder, on_step=on_step)
        else:
            result = scan_corpus(documents, settings, cache_folder=folder, on_step=on_step)
    if not evaluate:
        for note in result.corpus.notes if result.corpus is not documents else ():
            console.say_note(note)
    for line in settings_in_words(settings, [documents]):
        console.say(f"{line[0].upper()}{line[1:]}.")
    if evaluate:
        page = errors or Path("private") / "scan-errors.html"
        distributed.on_main(lambda: write_mistakes(quality.breakdown, page))
        console.say(f"{page} shows the errors in the clear (mode 0600): keep it private")
        rows = quality.breakdown.rows
        if as_json:
            console.show_json({**quality.to_json(), "by_language": [asdict(row) for row in rows]})
        else:
            console.show_evaluation(quality.to_json())
            console.show_by_language(rows)
        return
    if out:
        write_jsonl(result.corpus, out)
        console.say(f"{out} holds identifiers in the clear (mode 0600): keep it with the records")
    inventory = result.inventory.to_json()
    console.show_json(inventory) if as_json else console.show_inventory(inventory)


def review(
    corpus: Annotated[
        Path, typer.Argument(help="Documents with findings: the file that sani scan --out wrote.")
    ],
    apply: Annotated[
        Path | None,
        typer.Option(help="File review.json that the page saved. Without it a page is written."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file to write; with --apply the folder for gold.jsonl and allow.txt. "
            "They hold identifiers in clear.",
            show_default="private/review.html; with --apply private",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of documents to draw.",
            show_default="as many as the interval needs",
        ),
    ] = None,
    interval: Annotated[
        float,
        typer.Option(
            min=0.005,
            max=0.5,
            help="Wanted distance from the recall to either end of its 95 % interval.",
        ),
    ] = 0.05,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a scan without a gold sample: a person reviews its findings in a browser.

    It writes one HTML file that needs no network. What the page saves becomes, with --apply, a gold
    sample and an allow-list for the recipe.
    """
    from sani.corpus.readers import read_corpus
    from sani.reporting.next_steps import after_review, after_review_page
    from sani.reviewing.outcome import apply_review, write_outcome
    from sani.reviewing.page import write_page

    if apply and documents:
        raise UsageError("--documents is for the page: leave it out with --apply")
    scanned = read_corpus(corpus)
    if apply is None:
        path = out or Path("private") / "review.html"
        drawn = write_page(scanned, path, documents=documents, interval=interval, seed=seed)
        console.say(f"{path} holds identifiers in the clear (mode 0600): keep it private")
        counts = {"documents": len(drawn), "of": len(scanned)}
        if as_json:
            console.show_json(counts)
        else:
            console.show(f"{len(drawn)} of {len(scanned)} documents were drawn for the review.")
        console.show_next(after_review_page(path), as_json=as_json)
        return
    outcome = apply_review(scanned, apply, interval=interval)
    gold, allow = write_outcome(outcome, out or Path("private"))
    for path in filter(None, (gold, allow)):
        console.say(f"{path} holds identifiers in the clear (mode 0600): keep it private")
    if as_json:
        console.show_json(outcome.to_json())
    else:
        console.show_review(outcome, interval)
        console.show(outcome.recipe_lines(gold, allow))
    console.show_next(after_review(), as_json=as_json)


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
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the model that it is an adapter on."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Let the model write text, to scan and repair with where its own records are gone."""
    from sani.atomic import check_new_file

    check_new_file(out)  # before the heavy libraries are loaded
    from sani.pipeline.folders import sample_folder
    from sani.reporting.next_steps import after_sample

    with console.reporter() as on_step:
        texts = sample_folder(
            model,
            documents,
            out=out,
            base=base,
            first=first,
            new_tokens=new_tokens,
            framing=framing,
            seed=seed,
            on_step=partial(on_step, "sample"),
        )
    console.say(f"{len(texts)} texts in {out} (mode 0600): they hold what the model recites")
    console.show_next(after_sample(out))
