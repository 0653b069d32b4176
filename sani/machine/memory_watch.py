"""Peak memory of a process by stage, sampled while it runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

INTERVAL = 0.1  # seconds between two samples


class MemoryWatch:
    """Samples the resident memory of this process in a thread, as a context.

    Attributes:
        peaks: The largest sample of each stage, in bytes.
    """

    def __init__(self, stage: str) -> None:
        """Begin in a stage of this name."""
        self.peaks: dict[str, int] = {}
        self._stage = stage
        self._process = psutil.Process()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_end, daemon=True)

    def enter(self, stage: str) -> None:
        """Count what comes from here on to another stage."""
        if stage != self._stage:
            self._sample()
            self._stage = stage
            self._sample()

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self._sample()

    def _sample_until_end(self) -> None:
        while not self._end.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        stage, resident = self._stage, int(self._process.memory_info().rss)
        self.peaks[stage] = max(self.peaks.get(stage, 0), resident)
