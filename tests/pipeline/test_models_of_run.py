"""A run reads each model folder and each file of documents once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sani import run
from sani.corpus import readers
from sani.models import checkpoint as checkpoint_module
from sani.models import folder as folder_module
from sani.models.folder import ModelFolder
from sani.recipe import load_recipe
from tests.support.clinic import Clinic
from tests.support.recipes import gate_on_totals, write_recipe

SECTIONS = """\
seed: 3
audit: {decoys: 1, swaps: 0, framing: bos, membership_documents: 0}
erase: {last_layers: 1, selector: {kind: all}, reset: reinit}
repair: {epochs: 1, learning_rate: 3e-3, batch_tokens: 768}
""" + gate_on_totals("null")
ATTACK = """\
attack:
  documents: 2
  quantize: {bits: [8]}
  layers: null
  prompting: null
  sampling: null
  guidance: null
  relearn: null
  neighbours: null
"""


@pytest.mark.parametrize("attack", ["", ATTACK])
def test_each_model_folder_is_loaded_once_and_each_file_hashed_and_read_once(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attack: str,
) -> None:
    recipe = write_recipe(
        tmp_path,
        SECTIONS + attack,
        clinic=clinic.with_few(4),
        unsanitized=leaky_folder,
        base=base_folder,
    )
    loads: Counter[str] = Counter()
    hashes: Counter[str] = Counter()
    reads: Counter[str] = Counter()

    def counted(counter: Counter[str], function: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            counter[str(path)] += 1
            return function(path, *arguments, **options)

        return call

    load_model = checkpoint_module._load_model

    def counted_load(folder: ModelFolder) -> Any:
        loads[str(folder.path)] += 1
        return load_model(folder)

    monkeypatch.setattr(checkpoint_module, "_load_model", counted_load)
    monkeypatch.setattr(folder_module, "_digest", counted(hashes, folder_module._digest))
    read_corpus = counted(reads, readers.read_corpus)
    monkeypatch.setattr("sani.pipeline.inputs.read_corpus", read_corpus)
    run(load_recipe(recipe), tmp_path / "run")
    assert loads == {str(leaky_folder): 1, str(base_folder): 1}
    of_folder = {Path(path).parent: count for path, count in hashes.items()}
    assert of_folder == {leaky_folder: 2, base_folder: 1}  # what is released, again at the end
    assert reads == {str(tmp_path / f"{name}.jsonl"): 1 for name in ("private", "held_out")}
