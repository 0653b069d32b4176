"""Charts that are built from a report's figures but not laid out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytest
from matplotlib.figure import Figure

BLANK = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'


@contextmanager
def blank_charts() -> Iterator[None]:
    """Let matplotlib write blank charts: its layout is two of the three seconds of a small report.

    For tests of runs. The charts themselves are tested in tests/reporting, and every process that
    a test starts draws them whole.
    """

    def write_blank(figure: Figure, file: TextIO, **options: Any) -> None:
        file.write(BLANK)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", write_blank)
        yield
