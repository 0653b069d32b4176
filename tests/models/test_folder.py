"""A model folder that is opened once: its files, its digests, and that it is not overwritten."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sani
from sani.atomic import check_no_input
from sani.errors import UnsupportedModelError, WriteError
from sani.models import folder as folder_module
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from sani.models.families import FAMILIES
from sani.models.folder import open_folder
from tests.support.folders import CONFIGS, WORDS, contents, write_source
from tests.support.words import word_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", CONFIGS["tied"]())


def adapter_of(folder: Path, *, tokenizer: bool) -> Path:
    """An adapter's folder as far as `open_folder` looks into it."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    part = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    pair = {part.format("A"): torch.ones(2, 16), part.format("B"): torch.ones(16, 2)}
    save_file(pair, folder / "adapter_model.safetensors")
    if tokenizer:
        word_tokenizer(WORDS).save_pretrained(folder)
    return folder


# ---- one object a folder ---------------------------------------------------------------------


def test_the_digests_are_over_names_and_contents(source: Path) -> None:
    opened = open_folder(source)
    state = hashlib.sha256()
    for file in sorted(source.iterdir()):
        state.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    assert opened.digest == state.hexdigest()
    weights = hashlib.sha256((source / "model.safetensors").read_bytes()).digest()
    expected = hashlib.sha256(b"model.safetensors" + weights).hexdigest()
    assert opened.weights_digest == expected


def test_the_digests_see_every_file_that_is_read_and_no_other(source: Path) -> None:
    before = open_folder(source)
    (source / "optimizer.pt").write_bytes(b"left behind")
    assert open_folder(source).digest == before.digest
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert open_folder(source).digest != before.digest
    assert open_folder(source).weights_digest == before.weights_digest
    (source / "more.safetensors").write_bytes(b"another shard")
    assert open_folder(source, more_weights=True).weights_digest != before.weights_digest


def test_a_folder_is_hashed_and_its_configuration_read_once(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    hash_file = folder_module._digest

    def counted(file: Path) -> bytes:
        hashed.append(file.name)
        return hash_file(file)

    monkeypatch.setattr(folder_module, "_digest", counted)
    opened = open_folder(source)
    assert hashed == []
    digests = [opened.digest, opened.weights_digest, opened.digest, opened.weights_digest]
    assert digests[:2] == digests[2:]
    assert sorted(hashed) == sorted(file.name for file in source.iterdir())
    assert opened.config is opened.config
    assert opened.family is FAMILIES["llama"]


def test_an_opened_folder_is_loaded_without_another_look_at_it(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_folder(source)
    by_path = load_checkpoint(source)
    monkeypatch.setattr(folder_module, "open_folder", lambda *_, **__: pytest.fail("opened again"))
    first, second = load_checkpoint(opened), load_checkpoint(opened)
    assert first.weights_digest() == second.weights_digest() == by_path.weights_digest()
    assert first.model.config is not second.model.config  # one may be changed
    assert first.path == source


@pytest.mark.parametrize("tokenizer", [True, False])
def test_an_adapter_has_its_bases_model_and_its_own_weights(
    tmp_path: Path, source: Path, tokenizer: bool
) -> None:
    adapter = adapter_of(tmp_path / "adapter", tokenizer=tokenizer)
    opened = open_folder(adapter, base=source)
    assert opened.is_adapter
    assert opened.whole == opened.base == open_folder(source)
    assert opened.config.model_type == "llama"
    assert opened.weight_files == (adapter / "adapter_model.safetensors",)
    assert opened.tokenizer_path == (adapter if tokenizer else source)
    assert opened.digest != open_folder(source).digest
    whole = open_folder(source, base=adapter)  # a model of its own needs no base
    assert not whole.is_adapter
    assert whole.whole == whole


def test_a_family_that_is_not_known_is_refused_before_transformers_reads_it(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "unheard of"}))
    with pytest.raises(UnsupportedModelError, match="model_type 'unheard of' is not supported"):
        open_folder(source)


# ---- the input is never overwritten ----------------------------------------------------------


@pytest.mark.parametrize("way", ["itself", "by another name", "by a link", "a folder above it"])
def test_a_checkpoint_is_not_saved_over_the_folder_it_was_read_from(
    tmp_path: Path, source: Path, way: str
) -> None:
    (tmp_path / "link").symlink_to(source)
    folder = {
        "itself": source,
        "by another name": tmp_path / "missing" / ".." / "source",
        "by a link": tmp_path / "link",
        "a folder above it": tmp_path,
    }[way]
    checkpoint = sani.load_checkpoint(source)
    before = contents(tmp_path)
    with pytest.raises(WriteError) as caught:
        sani.save_checkpoint(checkpoint, folder)
    relation = "holds the model's folder" if folder == tmp_path else "is the model itself"
    assert str(caught.value).startswith(f"{folder} {relation}")
    assert str(caught.value).endswith("; sani never overwrites its input")
    assert contents(tmp_path) == before
    sani.save_checkpoint(checkpoint, str(tmp_path / "other"))  # the positive control
    assert load_checkpoint(tmp_path / "other").weights_digest() == checkpoint.weights_digest()


def test_a_folder_beside_the_source_or_inside_it_may_be_written(
    tmp_path: Path, source: Path
) -> None:
    for folder in (tmp_path / "source-2", source / "erased", tmp_path / "sour"):
        check_no_input(folder, [source])
    save_checkpoint(load_checkpoint(source), source / "erased")
    assert "erased" in os.listdir(source)
