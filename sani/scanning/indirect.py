r"""Indirect identifiers: words and n-grams that fewer than k subjects use.

Boutet et al. 2025 (2501.02407): in the bipartite graph of subjects and the n-grams of their
documents, an n-gram of degree below k points at its subjects. Counted by DuckDB, out of core:
n-grams are kept as 64-bit hashes in a temporary folder (0700) that is deleted at the end, so no
word is written to disk, and memory has a limit. DuckDB was chosen over Polars by measurement:
equally fast, and the one of the two whose memory can be bounded.

Rules, ours where the paper is silent: a word is a run of letters, marks and digits, in lower case;
a word of fewer than `MIN_WORD_CHARACTERS` is left out; words with digits count only with `numbers`,
since dates, numbers and codes are the recognizers' task; a word that more than half of the subjects
use is a stop-word, and no n-gram of two or more holds one; sentence marks and line ends break
n-grams; n-grams that hold a word that is indirect by itself are not marked again.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import regex

from sani.corpus.documents import Document, Span
from sani.errors import ScanError
from sani.recipe import IndirectSettings

SOURCE = "k-anonymity"
LABEL = "NGRAM"
STOP_FRACTION = 0.5
MIN_WORD_CHARACTERS = 3  # ours: shorter words are articles, prepositions and units
FEWEST_SUBJECTS = 4  # below twice this, half of the subjects is too few to call a word a stop-word
MEMORY = "1GB"
_BATCH = 2_000
_BREAKS = ".;:!?\n"
# One expression for Python and for DuckDB (RE2): words, and the marks that break n-grams.
_TOKEN = rf"[\p{{L}}\p{{M}}\p{{N}}]+|[{_BREAKS}]"
_token = regex.compile(_TOKEN)


def check_subjects(documents: Sequence[Document], settings: IndirectSettings) -> None:
    """Refuse documents of fewer than k subjects.

    Raises:
        ScanError: If there are fewer: every word would be indirect.
    """
    subjects = len({document.subject_id for document in documents})
    if subjects < settings.k:
        raise ScanError(
            f"indirect: {subjects} subjects are fewer than k = {settings.k}, so every word would "
            "be indirect; give more documents, their subject_id, or leave it out"
        )


def find_indirect(
    documents: Sequence[Document],
    settings: IndirectSettings,
    *,
    memory: str = MEMORY,
    threads: int = 1,
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[Span]]:
    """Find the indirect spans of each document; they may overlap those it has.

    Args:
        documents: All documents; a subject is told by ``subject_id``.
        settings: k, n and the rules.
        memory: The most that the engine may hold, as DuckDB writes it; the rest goes to disk.
        threads: Of the engine.
        on_step: Called with documents done and documents in all.

    Raises:
        ScanError: If there are fewer than k subjects: every word would be indirect.
    """
    check_subjects(documents, settings)
    subjects = {subject: n for n, subject in enumerate(sorted({d.subject_id for d in documents}))}
    spans: list[list[Span]] = [[] for _ in documents]
    with tempfile.TemporaryDirectory(prefix="sani-") as folder:
        engine = _engine(Path(folder), memory=memory, threads=threads)
        try:
            _load(engine, documents, subjects, settings)
            _count(engine, settings, num_subjects=len(subjects))
            for document, places in _places(engine):
                spans[document] = _spans(documents[document].text, places)
                if on_step:
                    on_step(document + 1, len(documents))
        except duckdb.Error as error:
            raise ScanError(
                f"indirect: the engine stopped ({type(error).__name__}); free space in the "
                "temporary folder (TMPDIR), or scan fewer documents"
            ) from None
        finally:
            engine.close()
    return spans


def _engine(folder: Path, *, memory: str, threads: int) -> Any:
    engine = duckdb.connect(
        str(folder / "grams.duckdb"),
        config={
            "memory_limit": memory,
            "threads": threads,
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    engine.execute("SET enable_progress_bar = false")
    return engine


def _load(
    engine: Any,
    documents: Sequence[Document],
    subjects: dict[str, int],
    settings: IndirectSettings,
) -> None:
    """Fill table ``words``: document, subject, each token's hash, or null for a breaking mark."""
    import pyarrow as pa

    salt = secrets.randbits(63)  # of this scan alone: a word cannot be guessed from its hash
    eligible = f"regexp_matches(x, '^[\\p{{L}}\\p{{M}}{'' if not settings.numbers else '0-9'}]+$')"
    engine.execute("CREATE TABLE words (document INTEGER, subject INTEGER, hashes UBIGINT[])")
    for first in range(0, len(documents), _BATCH):
        part = documents[first : first + _BATCH]
        texts = pa.table(
            {
                "document": pa.array(range(first, first + len(part)), pa.int32()),
                "subject": pa.array([subjects[d.subject_id] for d in part], pa.int32()),
                "text": [_readable(document.text) for document in part],
            }
        )
        engine.register("texts", texts)
        engine.execute(
            "INSERT INTO words SELECT document, subject, list_transform("
            f"regexp_extract_all(text, '{_TOKEN}'), lambda x: CASE WHEN {eligible} "
            f"THEN (hash(x, {salt}) & ~1::UBIGINT) | (length(x) >= {MIN_WORD_CHARACTERS})::UBIGINT "
            "END) "
            "FROM texts"
        )
        engine.unregister("texts")


def _count(engine: Any, settings: IndirectSettings, *, num_subjects: int) -> None:
    """Fill table ``rare``: document, place of the first token, and n, of each n-gram to mark."""
    engine.execute(
        "CREATE TABLE grams AS SELECT document, subject, 1 AS n, place, hashes[place] AS gram "
        "FROM (SELECT *, generate_subscripts(hashes, 1) AS place FROM words) "
        "WHERE hashes[place] & 1 = 1"
    )
    engine.execute(
        "CREATE TABLE degrees AS SELECT gram, count(*) AS degree "
        "FROM (SELECT DISTINCT gram, subject FROM grams) GROUP BY gram"
    )
    engine.execute(
        f"CREATE TABLE known AS SELECT gram FROM degrees WHERE degree < {settings.k} OR "
        f"(degree > {STOP_FRACTION * num_subjects} AND {num_subjects} >= {2 * FEWEST_SUBJECTS})"
    )
    engine.execute(
        "CREATE TABLE rare AS SELECT document, place, n FROM grams "
        f"SEMI JOIN (SELECT gram FROM degrees WHERE degree < {settings.k}) USING (gram)"
    )
    for n in range(2, settings.n + 1):
        # No part may break, be too short, be a stop-word, or be indirect by itself.
        parts = [f"hashes[place + {offset}]" for offset in range(n)]
        fit = [f"{part} & 1 = 1 AND {part} NOT IN (SELECT gram FROM known)" for part in parts]
        engine.execute(
            "CREATE OR REPLACE TABLE grams AS "
            f"SELECT document, subject, place, hash({', '.join(parts)}) AS gram "
            "FROM (SELECT *, generate_subscripts(hashes, 1) AS place FROM words) "
            f"WHERE {' AND '.join(fit)}"
        )
        engine.execute(
            f"INSERT INTO rare SELECT document, place, {n} FROM grams SEMI JOIN "
            "(SELECT gram FROM (SELECT DISTINCT gram, subject FROM grams) GROUP BY gram "
            f"HAVING count(*) < {settings.k}) USING (gram)"
        )


def _places(engine: Any) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield each document's n-grams to mark: place of the first token, from 0, and n."""
    rows = engine.execute(
        "SELECT document, list(place - 1 ORDER BY place, n), list(n ORDER BY place, n) FROM rare "
        "GROUP BY document ORDER BY document"
    )
    while batch := rows.fetchmany(_BATCH):
        for document, places, lengths in batch:
            yield document, list(zip(places, lengths, strict=True))


def _spans(text: str, places: list[tuple[int, int]]) -> list[Span]:
    """Return the spans of the n-grams."""
    tokens = [match.span() for match in _token.finditer(_readable(text))]
    return [
        Span(tokens[place][0], tokens[place + n - 1][1], LABEL, "indirect", SOURCE)
        for place, n in places
    ]


def _readable(text: str) -> str:
    """Return the text in lower case, with a blank for each character that is disputed.

    Python and DuckDB know different versions of Unicode: what is a letter to one only would shift
    the places.
    """
    return lower(text) if text.isascii() else lower(text).translate(_disputed())


@cache
def _disputed() -> dict[int, str]:
    """Return the characters that Python's expression and DuckDB's take for a token differently."""
    codes = [code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    rows = duckdb.execute(
        f"SELECT code FROM (SELECT unnest(?::INTEGER[]) AS code) "
        f"WHERE regexp_full_match(chr(code), '{_TOKEN}')",
        [codes],
    ).fetchall()
    by_duckdb = {code for (code,) in rows}
    by_python = {code for code in codes if _token.fullmatch(chr(code))}
    return dict.fromkeys(by_duckdb ^ by_python, " ")


def lower(text: str) -> str:
    """Return the text in lower case, as long as it was: a letter that would become two stays."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(c if len(c.lower()) != 1 else c.lower() for c in text)
