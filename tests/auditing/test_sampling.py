"""Text that a model writes itself: a seed's own, other numbers other texts; short terms."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sani.auditing.identifier_index import IdentifierIndex
from sani.auditing.sampling import sample_documents
from sani.cli.main import main
from sani.corpus.documents import TERM_SOURCE, Corpus, Document, Span
from sani.corpus.readers import read_corpus
from sani.errors import AuditError
from sani.models.checkpoint import Checkpoint, load_checkpoint

STORIES = Path(__file__).parents[3] / "shared/models/stories260K"


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The model without the same weights in other formats, which lie beside it."""
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not there")
    folder = tmp_path_factory.mktemp("stories") / "model"
    shutil.copytree(STORIES, folder, ignore=shutil.ignore_patterns("*.bin"))
    return load_checkpoint(folder)


def test_a_pretrained_model_writes_its_own_text_and_recites_its_names(stories: Checkpoint) -> None:
    texts = sample_documents(stories, 40, new_tokens=120, seed=3)
    again = sample_documents(stories, 20, first=20, new_tokens=120, seed=3)
    other = sample_documents(stories, 20, new_tokens=120, seed=4)
    assert [d.text for d in texts][20:] == [d.text for d in again]
    assert not {d.text for d in texts} & {d.text for d in other}
    assert len({d.text for d in texts}) == len({d.id for d in texts}) == 40
    names = Counter(
        name for d in texts for name in set(re.findall(r"\b(?:Lily|Tim|Tom)\b", d.text))
    )
    assert names["Lily"] > 0
    assert sum(names.values()) >= 10


def test_a_model_without_a_token_to_begin_with_is_refused(stories: Checkpoint) -> None:
    with pytest.raises(AuditError, match="no token to begin with"):
        sample_documents(stories, 1, framing="none")


def test_the_command_writes_a_file_of_its_owner_that_reads_back(
    stories: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "own.jsonl"
    arguments = [
        "sample",
        str(stories.path),
        "--out",
        str(out),
        "--documents",
        "3",
        "--new-tokens",
        "40",
    ]
    assert main(arguments) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    wanted = sample_documents(stories, 3, new_tokens=40)
    assert [d.text for d in read_corpus(out)] == [d.text for d in wanted]
    assert main(arguments) == 1  # never over a file


def test_a_short_term_is_searched_for_and_a_short_name_is_not() -> None:
    text = "Tim met Tom"
    spans = (Span(0, 3, "TERM", "direct", TERM_SOURCE), Span(8, 11, "NAME"))
    index = IdentifierIndex(Corpus([Document("1", "1", text, spans)]))
    assert len(index) == 1
    assert index.too_short == {"NAME": 1}
    assert [hit.identifier for hit in index.find("then Tim and Tom")] == [0]
