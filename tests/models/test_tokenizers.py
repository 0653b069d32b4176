"""A tokenizer that draws at random, and begin tokens that only a configuration names."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from sani.auditing.audit import audit
from sani.models.checkpoint import load_checkpoint
from sani.models.tokenizers import switch_off_random_steps
from sani.recipe import AuditSettings
from sani.text.framing import framing_named, framing_of, framings_of
from tests.support.clinic import Clinic


def edit_json(place: Path, change: Any) -> None:
    data = json.loads(place.read_text())
    change(data)
    place.write_text(json.dumps(data))


def cut(tokenizer: Any) -> set[tuple[int, ...]]:
    """All ways in which one text is cut, of many."""
    return {tuple(tokenizer.backend_tokenizer.encode("ababab").ids) for _ in range(50)}


def test_every_random_step_is_switched_off_and_named() -> None:
    bpe = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5)
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5)]
    unigram = models.Unigram(pieces, 0, alpha=0.1, nbest_size=5)
    for model, words in ((bpe, "BPE dropout"), (unigram, "sampling of unigram pieces")):
        tokenizer = SimpleNamespace(backend_tokenizer=Tokenizer(model))
        assert len(cut(tokenizer)) > 1  # it was on
        assert switch_off_random_steps(tokenizer) == (words,)
        assert len(cut(tokenizer)) == 1
        assert switch_off_random_steps(tokenizer) == ()


@pytest.mark.false_clean
def test_a_tokenizer_that_cuts_at_random_hides_nothing_and_is_named(
    clinic: Clinic, leaky_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(leaky_folder, tmp_path / "model"))
    edit_json(folder / "tokenizer.json", lambda data: data["model"].update(dropout=0.3))
    settings = AuditSettings(decoys=0, swaps=0, framing="bos")
    whole = audit(load_checkpoint(leaky_folder), clinic.private, settings)
    found = audit(load_checkpoint(folder), clinic.private, settings)
    assert found.figures["direct"].greedy == whole.figures["direct"].greedy
    assert whole.notes == []
    assert len(found.notes) == 1
    assert "cuts words at random (BPE dropout); this was switched off" in found.notes[0]
    # As transformers loads it, the same model seems to recite far less.
    random = AutoTokenizer.from_pretrained(folder)
    seen = audit(replace(load_checkpoint(folder), tokenizer=random), clinic.private, settings)
    hits = [result.figures["direct"].greedy.hits for result in (seen, whole)]
    assert hits[0] < 0.7 * hits[1]


# ---- begin tokens ----------------------------------------------------------------------------


def without_begin_token(folder: Path) -> int:
    """Let the tokenizer forget which token begins a text; return its number."""
    number = int(load_checkpoint(folder).tokenizer.bos_token_id)
    edit_json(folder / "tokenizer_config.json", lambda data: data.pop("bos_token", None))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            edit_json(folder / name, lambda data: data.pop("bos_token_id", None))
    return number


@pytest.mark.false_clean
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_begin_token_that_only_a_configuration_names_is_tried(
    clinic: Clinic, leaky_folder: Path, base_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(leaky_folder, tmp_path / "model"))
    number = without_begin_token(folder)
    settings = AuditSettings(decoys=0, swaps=0)
    nameless = load_checkpoint(folder)
    assert nameless.tokenizer.bos_token_id is None
    assert nameless.begin_tokens == ()
    missed = audit(nameless, clinic.private, settings)
    edit_json(folder / name, lambda data: data.update(bos_token_id=number))
    named = load_checkpoint(folder)
    assert named.begin_tokens == (number,)
    found = audit(named, clinic.private, settings)
    expected = audit(load_checkpoint(leaky_folder), clinic.private, settings)
    assert expected.framing == "bos"
    assert found.framing == f"bos-{number}"
    assert f"eos-bos-{number}" in found.framings_tried
    assert found.figures["direct"].greedy == expected.figures["direct"].greedy
    assert missed.figures["direct"].greedy.hits < found.figures["direct"].greedy.hits
    # The base need not name it: by its number every tokenizer has the framing.
    base = load_checkpoint(base_folder)
    assert framing_of(base, found.framing).prefix == (number,)
    assert [f.name for f in framings_of(base)].count("bos") == 1
    assert f"bos-{number}" not in [f.name for f in framings_of(base)]  # it has it by its name


def test_a_begin_token_that_the_model_has_no_row_for_is_none(
    leaky_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(leaky_folder, tmp_path / "model"))
    edit_json(folder / "config.json", lambda data: data.update(bos_token_id=10**6))
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert load_checkpoint(folder).begin_tokens == ()
    tokenizer = load_checkpoint(folder).tokenizer
    assert framing_named("eos-bos-7", tokenizer).prefix == (tokenizer.eos_token_id, 7)
