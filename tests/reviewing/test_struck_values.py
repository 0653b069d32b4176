"""From a review to the scan of the next run, by the real detectors."""

import json
from pathlib import Path

from sani.corpus.documents import Corpus, Document
from sani.recipe import ScanSettings
from sani.reviewing.material import FORMAT, material_of
from sani.reviewing.outcome import apply_review, write_outcome
from sani.scanning.detection import detect


def test_the_scan_marks_no_struck_value_any_more(tmp_path: Path) -> None:
    text = "Patient: Ana Ruiz. MRN: 12345678. Call 555-123-4567."
    bare = Corpus([Document("0", "0", text), Document("1", "1", text.replace("Ana", "Eva"))])
    scanned = detect(bare, ScanSettings(patterns=True))
    material = material_of(scanned)
    number = next(n for n, value in enumerate(material.values) if "555" in value)
    review = {"version": FORMAT, "digest": material.digest, "struck": [number], "documents": []}
    (tmp_path / "review.json").write_text(json.dumps(review))
    outcome = apply_review(scanned, tmp_path / "review.json")
    _, allow = write_outcome(outcome, tmp_path / "private")
    again = detect(bare, ScanSettings(patterns=True, allow=allow))

    def values(documents: Corpus) -> set[str]:
        return {document.value(span) for document in documents for span in document.spans}

    assert values(scanned) - values(again) == {material.values[number]}
