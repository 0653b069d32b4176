"""Ages: which say more than 89 years."""

import pytest

from sani.values.ages import is_over_89


@pytest.mark.parametrize(
    "value",
    ["90", "93-year-old", "92M", "92 male", "age 101", "91 años", "between 85 and 95", "95 d"],
)
def test_more_than_89_years(value: str) -> None:
    assert is_over_89(value)


@pytest.mark.parametrize(
    "value",
    ["89", "45-year-old", "9", "92 months", "100 meses", "96-month-old", "92 mo", "1932", "8.95"],
)
def test_not_more_than_89_years(value: str) -> None:
    assert not is_over_89(value)
