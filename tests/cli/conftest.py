"""Reports of runs have blank charts here."""

from collections.abc import Iterator

import pytest

from tests.support.charts import blank_charts


@pytest.fixture(scope="package", autouse=True)
def charts() -> Iterator[None]:
    """Do not lay charts out."""
    with blank_charts():
        yield
