"""Identity of a run: the same in every format, without paths, and never an identifier."""

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sani.corpus.documents import Corpus, Document, Span
from sani.recipe import Recipe
from sani.reporting.card import model_card
from sani.reporting.identity import NOT_SHOWN, identity
from sani.reporting.process import what_ran
from sani.reporting.schema import Report
from sani.runfolder import RunFolder
from tests.support.charts import blank_charts
from tests.support.reports import corpus_of, finished_run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Recipe, Report]:
    """A finished run with its folder and its recipe."""
    with blank_charts():
        return finished_run(tmp_path_factory.mktemp("identity") / "run", corpus_of(6, 8))


def test_every_format_says_what_ran(done: tuple[RunFolder, Recipe, Report]) -> None:
    folder, _, report = done
    words = what_ran(report)
    origin = report.provenance
    assert words.startswith("Model: model (weights 1); base: public-base (weights 0); corpus: ")
    assert f"notes.jsonl (digest {origin.corpus_digest})" in words
    for name in ("report.md", "report.html"):
        assert words in (folder.path / name).read_text()
    assert words in model_card(report)
    suite = ElementTree.fromstring((folder.path / "junit.xml").read_text())
    assert suite.get("timestamp") == origin.date
    assert float(suite.get("time", "")) == origin.seconds == pytest.approx(4 * 2.0 + 0.5 + 1.0)
    assert str(folder.path.parent) not in (folder.path / "report.json").read_text()


def test_the_date_is_that_of_the_last_audit(done: tuple[RunFolder, Recipe, Report]) -> None:
    folder, recipe, _ = done
    os.utime(folder.path / "audit-after.json", (0, 86400))
    assert identity(folder, recipe, corpus_of(6, 8)).date == "1970-01-02T00:00:00+00:00"


def test_a_name_that_holds_an_identifier_is_not_shown(
    done: tuple[RunFolder, Recipe, Report],
) -> None:
    folder, recipe, _ = done
    text = "Maria Velasquez came."
    corpus = Corpus([Document("d", "s", text, (Span(0, 15, "NAME", "direct"),))])
    model = recipe.model.model_copy(update={"path": Path("models") / "Maria Velasquez"})
    named = identity(folder, recipe.model_copy(update={"model": model}), corpus)
    assert (named.model, named.base) == (NOT_SHOWN, "public-base")
