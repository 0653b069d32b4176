"""Ages as text has them: which are above 89, an identifier of HIPAA Safe Harbor."""

from __future__ import annotations

import re

OLDEST_COMMON_AGE = 89
# "92 months" in the languages of the scan; "92 male" and "92M" are ages in years.
_MONTHS = r"[\W_]*(?:mo|mes|mês|mie|mån|měs|maand|мес)"
_NUMBER = re.compile(rf"(?<!\d)(?<!\d[.,])(\d{{2,3}})(?!\d|[.,]\d|{_MONTHS})")
# From ninety on in en, de, nl, es, pt, it and fr, where a hundred may be one of days too.
_IN_WORDS = re.compile(
    r"ninet(?:y|ies)|neunzig|negentig|noventa|novant|nonante|hundred|hundert|honderd|\bcien(?:to)?\b|\bcento\b|\bcent\b"
    r"|quatre[- ]vingts?[- ](?:dix|onze|douze|treize|quatorze|quinze|seize)"
)


def is_over_89(value: str) -> bool:
    """Return whether a value that is known to be an age says more than 89 years.

    Months are no years; other units are not told from years, so 95 days counts. Numbers in words
    ("ninety-two") are read in the languages of the scan.
    """
    lower = value.lower()
    digits = any(int(number) > OLDEST_COMMON_AGE for number in _NUMBER.findall(lower))
    return digits or _IN_WORDS.search(lower) is not None
