"""Results print as a table, in a terminal and in a notebook, and hold no identifier."""

from pathlib import Path

import pytest

from sani import (
    AuditSettings,
    EraseSettings,
    RepairSettings,
    ScanSettings,
    audit,
    erase,
    load_checkpoint,
    repair,
    scan,
)
from sani.corpus.documents import Corpus
from sani.models.checkpoint import Checkpoint
from sani.recipe import MaskObjective
from sani.tabular import Tabular
from tests.support.clinic import Clinic


def check(result: Tabular, clinic: Clinic) -> None:
    frame = result.to_frame()
    assert len(frame)
    text, page = str(result), result._repr_html_()
    assert "<table" in page
    for name in frame.columns:
        assert name in text
        assert name in page
    for document in clinic.private:
        for span in document.spans:
            value = document.value(span)
            assert len(value) < 6 or value not in text + page


def test_each_result_of_a_sanitization_is_a_table(clinic: Clinic, leaky: Checkpoint) -> None:
    corpus = Corpus(clinic.private[:4])
    audited = audit(leaky, corpus, AuditSettings(decoys=2, swaps=0, framing="bos"))
    frame = audited.to_frame()
    greedy = audited.figures["direct"].greedy
    assert frame.loc["direct", "occurrences"] == greedy.trials
    assert frame.loc["direct", "greedy"] == greedy.value
    assert list(frame.index) == list(audited.figures)
    scanned = scan(corpus, ScanSettings(patterns=True))
    assert scanned.to_frame()["occurrences"].sum() == scanned.inventory.occurrences
    erased = erase(leaky, corpus, EraseSettings(last_layers=1))
    counts = erased.to_frame().set_index(["layer", "part"])["neurons"].to_dict()
    assert counts == {(e.layer, e.part): len(e.neurons) for e in erased.plan.entries}
    repaired = repair(
        leaky, corpus, RepairSettings(epochs=1, identifier_loss=MaskObjective(kind="mask"))
    )
    assert len(repaired.to_frame()) == repaired.steps
    for result in (audited, scanned, erased, repaired):
        check(result, clinic)


def test_loading_a_checkpoint_prints_nothing(
    leaky_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_checkpoint(leaky_folder)
    assert capfd.readouterr() == ("", "")
