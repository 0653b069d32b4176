"""Results that print as a table, in a terminal and in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class Tabular(ABC):
    """A result with a table of figures; it holds numbers and labels, never an identifier."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Return the figures as a table."""

    def __str__(self) -> str:
        """Return the table as text."""
        return str(self.to_frame().to_string(na_rep="-", float_format="{:.4g}".format))

    def _repr_html_(self) -> str:
        """Return the table as HTML, for a notebook."""
        return str(self.to_frame().to_html(na_rep="-", float_format="{:.4g}".format))
