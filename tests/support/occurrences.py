"""Verdicts of an audit that never ran."""

from dataclasses import fields

import numpy as np

from sani.auditing.occurrences import RAGGED, Occurrences


def verdicts(extracted: str) -> Occurrences:
    """Return verdicts, three a document, by one letter each: g greedy, s sampled, - neither."""
    number = len(extracted)
    blank = {field.name: np.full(number, np.nan) for field in fields(Occurrences)}
    return Occurrences(**blank | {
        "document": np.arange(number) // 3,
        "span": np.arange(number) % 3,
        "reason": np.array([""] * number),
        "greedy": np.array([letter == "g" for letter in extracted]),
        "discoverable": np.array([letter in "gs" for letter in extracted]),
        "num_tokens": np.zeros(number, dtype=np.int64),
        "num_decoys": np.zeros(number, dtype=np.int64),
        "cued": np.zeros(number, dtype=np.bool_),
        **{name: np.zeros(0) for name in RAGGED},
    })  # fmt: skip
