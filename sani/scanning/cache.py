"""The findings of earlier scans, by the document's content and all that decides the result.

An SQLite file of mode 0600; its folder, if made here, has mode 0700. Keys are digests keyed by a
secret of that folder, so that a short text cannot be guessed from its key; entries hold offsets,
labels and scores, no value.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

from sani.corpus.documents import Span
from sani.errors import ScanError


class SpanCache:
    """Spans by document content. Use as a context manager.

    Args:
        folder: Where it lies; made if it is not there.
        detector: Tells the detector and its settings from every other.

    Raises:
        ScanError: If the folder cannot be written, or holds a damaged cache.
    """

    def __init__(self, folder: Path, *, detector: str) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key = _secret(folder / "key") + hashlib.sha256(detector.encode()).digest()
            place = folder / "spans.sqlite"
            os.close(os.open(place, os.O_RDWR | os.O_CREAT, 0o600))
            self._entries = sqlite3.connect(place, timeout=60.0)
            with self._entries:
                self._entries.execute(
                    "CREATE TABLE IF NOT EXISTS spans (key BLOB PRIMARY KEY, spans TEXT) "
                    "WITHOUT ROWID"
                )
        except (OSError, ValueError, sqlite3.Error) as error:
            raise ScanError(
                f"cache {folder}: it cannot be used ({type(error).__name__}); delete the folder or "
                "name another with --cache"
            ) from None

    def __enter__(self) -> SpanCache:
        """Return the cache."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._entries.close()

    def load(self, texts: Iterable[str]) -> list[tuple[Span, ...] | None]:
        """Return the spans of each text; None for one that is not known."""
        spans = []
        for text in texts:
            row = self._entries.execute(
                "SELECT spans FROM spans WHERE key = ?", (self._digest(text),)
            ).fetchone()
            try:
                spans.append(None if row is None else spans_from_json(row[0]))
            except (ValueError, TypeError):  # a damaged entry is none
                spans.append(None)
        return spans

    def save(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> None:
        """Keep the spans of these texts."""
        rows = [
            (self._digest(text), spans_to_json(spans_of_text))
            for text, spans_of_text in zip(texts, spans, strict=True)
        ]
        with self._entries:
            self._entries.executemany("INSERT OR REPLACE INTO spans VALUES (?, ?)", rows)

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=32).digest()


def spans_to_json(spans: Iterable[Span]) -> str:
    """Write spans as a compact text."""
    return json.dumps([astuple(span) for span in spans], separators=(",", ":"))


def spans_from_json(text: str) -> tuple[Span, ...]:
    """Read spans from `spans_to_json`'s text."""
    return tuple(Span(*values) for values in json.loads(text))


def _secret(place: Path) -> bytes:
    """Return the folder's 32 secret bytes, made at first use, by whoever comes first.

    Raises:
        ValueError: If the file holds anything else.
    """
    if not place.exists():
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(temporary, place)  # never over another's, never half-written
        temporary.unlink()
    secret = place.read_bytes()
    if len(secret) != 32:
        raise ValueError("not a key")
    return secret
