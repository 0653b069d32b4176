"""Every command that reads records takes `--column`, and says what it did not read."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from sani.cli.main import main
from sani.corpus.documents import Document
from sani.corpus.readers import read_corpus
from sani.demo.demo import new_model
from sani.models.checkpoint import save_checkpoint
from sani.recipe import load_recipe
from tests.support.clinic import Clinic
from tests.support.recipes import recipe_text

COLUMNS = ["--column", "id=note_id", "--column", "subject_id=mrn", "--column", "text=note"]
SEPARATOR = "its cells are separated by the semicolon, as its header shows"
UNREAD = "fields that are not read, with the number of records: ward ("


def write_table(path: Path, documents: Iterable[Document]) -> Path:
    """Documents with their spans as a table of a hospital may have them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["note_id", "mrn", "note", "spans", "ward"])
        for document in documents:
            spans = [
                {"start": span.start, "end": span.end, "label": span.label, "kind": span.kind}
                for span in document.spans
            ]
            row = [document.id, document.subject_id, document.text, json.dumps(spans), "3B"]
            writer.writerow(row)
    return path


@pytest.fixture(scope="module")
def tables(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables under other names, and two small models."""
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "private.csv", clinic.private[:6])
    write_table(folder / "held_out.csv", clinic.held_out[:3])
    texts = [document.text for document in clinic.public]
    for seed, name in enumerate(("base", "leaky")):
        model = new_model(texts, vocab_size=300, layers=2, hidden=32, context=256,
                          folder=folder / "tokenizer", seed=seed)  # fmt: skip
        save_checkpoint(model, folder / name)
    return folder


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    model, base = str(folder / "leaky"), ["--base", str(folder / "base")]
    corpus = ["--corpus", str(folder / "private.csv")]
    held_out = ["--held-out", str(folder / "held_out.csv")]
    few = ["--framing", "bos"]
    return {
        "scan": ["scan", str(folder / "private.csv"), "--annotated-only"],
        "audit": [
            "audit", model, *corpus, *held_out, *few, "--decoys", "1", "--swaps", "1"
        ],
        "attack": ["attack", model, *corpus, *base, *held_out, *few, "--quick", "--only", "layers"],
        "erase": [
            "erase", model, *corpus, *few, "--dry-run", "--selector", "activation_ratio",
            "--fraction", "0.1", "--last-layers", "1",
        ],
        "repair": ["repair", model, *corpus, *base, *few, "--epochs", "1", "--out", str(out)],
        "init": ["init", model, *corpus, *base, *held_out, "--no-time", "--out", str(out)],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["scan", "audit", "attack", "erase", "repair", "init"])
def test_a_command_reads_columns_of_other_names_and_says_what_it_does_not_read(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / ("recipe.yaml" if name == "init" else "out")
    command = commands(tables, out)[name]
    assert main([*command, "--column", "note"]) == 2
    assert main([*command, *COLUMNS]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert SEPARATOR in printed.err
    assert UNREAD in printed.err
    assert printed.err.count("note: ") >= 2
    if name == "init":
        settings = load_recipe(out).corpus
        assert settings.columns == {"id": "note_id", "subject_id": "mrn", "text": "note"}
        assert len(read_corpus(settings.path, columns=settings.columns)) == 6


def test_without_the_names_a_command_says_how_to_give_them(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", str(tables / "private.csv")]) == 1
    assert "--column text=NAME" in capsys.readouterr().err


def test_a_check_of_a_recipe_shows_the_notes(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe_text(
        "audit: {decoys: 1}\nrepair: {epochs: 1}\n",
        folder=tables,
        unsanitized=tables / "leaky",
        base=tables / "base",
        corpus="private.csv",
        held_out="held_out.csv",
    )
    (tmp_path / "recipe.yaml").write_text(text)
    names = "corpus.columns={id: note_id, subject_id: mrn, text: note}"
    check = ["run", str(tmp_path / "recipe.yaml"), "--check", "--json"]
    assert main([*check, "--set", names]) == 0, capsys.readouterr().err
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert items["corpus"]["holds"]
    assert f"corpus: {SEPARATOR}" in items["corpus"]["detail"]
    assert f"corpus.held_out: {SEPARATOR}" in items["corpus"]["detail"]
    assert main([*check, "--set", "corpus.columns={note: text}"]) == 1
    assert "corpus.columns" in capsys.readouterr().err
    # A run says the same, here before it is refused for its base.
    same = ["--set", f"model.base={tables / 'leaky'}", "--out", str(tmp_path / "run")]
    assert main(["run", str(tmp_path / "recipe.yaml"), "--set", names, *same]) == 1
    printed = capsys.readouterr().err
    assert f"note: corpus: {SEPARATOR}" in printed
    assert "model.base: has the same weights" in printed
