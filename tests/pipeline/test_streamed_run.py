"""A streamed run: the weights, figures and verdict of one in memory, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sani import run
from sani.errors import SaniError
from sani.models.streaming import stream_of
from sani.pipeline.placement import memory_needed
from sani.pipeline.preflight import check
from sani.pipeline.run_inputs import RunInputs
from sani.recipe import Recipe, load_recipe
from sani.repairing import trainer
from tests.support.clinic import Clinic
from tests.support.recipes import recipe_text, write_recipe

SECTIONS = """\
seed: 3
placement: {placement}
audit: {{decoys: 3}}
erase: {{last_layers: 1, selector: {{kind: all}}, reset: reinit, interpolate_to_base: 0.5}}
repair:
  identifier_loss: {{kind: anchor, weight: 2.0}}
  retain_weight: 0.5
  last_layers: 1
  epochs: 2
  learning_rate: 3e-3
  batch_tokens: 768
gate: {{perplexity_ratio: 2.0}}
"""
STAGES = ("audit-before", "audit-base", "audit-erased", "audit-after", "erase", "repair")


@pytest.fixture(scope="module")
def folders(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The run folders of the same recipe, in memory and streamed."""
    out = {}
    for placement in ("memory", "stream"):
        folder = tmp_path_factory.mktemp(placement)
        sections = SECTIONS.format(placement=placement)
        recipe = write_recipe(
            folder, sections, clinic=clinic, unsanitized=leaky_folder, base=base_folder
        )
        out[placement] = folder / "run"
        run(load_recipe(recipe), out[placement])
    return out


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def without_time(value: Any) -> Any:
    """The content of a result file without seconds and keyed digests."""
    if isinstance(value, dict):
        named = value.items()
        return {k: without_time(v) for k, v in named if k not in ("seconds", "digest")}
    return [without_time(each) for each in value] if isinstance(value, list) else value


@pytest.mark.long
def test_a_streamed_run_gives_the_weights_and_figures_of_one_in_memory(
    folders: dict[str, Path],
) -> None:
    memory, stream = folders["memory"], folders["stream"]
    assert load(memory, "audit-before")["figures"]["direct"]["greedy"]["value"] > 0.5
    for stage in STAGES:
        assert without_time(load(stream, stage)) == without_time(load(memory, stage)), stage
    before, after = (load(stream, stage)["weights_digest"] for stage in ("erase", "repair"))
    assert before != after
    reports = [load(folder, "report") for folder in (memory, stream)]
    assert reports[0]["gate"] == reports[1]["gate"]
    assert [each["memory"]["placement"] for each in reports] == ["memory", "stream"]
    assert {"audit-before", "repair", "audit-after"} <= reports[1]["memory"]["peaks"].keys()
    assert min(reports[1]["memory"]["peaks"].values()) > 2**20
    page = (stream / "report.html").read_text()
    assert "Weights stayed in their files" in page
    assert 'aria-labelledby="memory_use-title"' in page
    weights = [(each / "sanitized/model.safetensors").read_bytes() for each in (memory, stream)]
    assert weights[0] == weights[1]


@pytest.mark.long
def test_an_interrupted_streamed_repair_goes_on_to_the_same_weights(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(folders["stream"], out)
    for name in ("repair", "audit-after", "report", "memory"):
        (out / f"{name}.json").unlink()
    shutil.rmtree(out / "private/repair")
    recipe = load_recipe(folders["stream"].parent / "recipe.yaml")
    steps = 0
    step = trainer.RepairTrainer.training_step

    def killed(self: Any, model: Any, *rest: Any, **named: Any) -> Any:
        nonlocal steps
        assert stream_of(model) is not None
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return step(self, model, *rest, **named)

    monkeypatch.setattr(trainer.RepairTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, resume=True)
    monkeypatch.undo()
    states = sorted((out / "private/trainer").glob("checkpoint-*"))
    assert states
    held = {file.name: file.stat().st_size for file in states[-1].iterdir()}
    whole = (folders["stream"] / "sanitized/model.safetensors").stat().st_size
    assert held["model.safetensors"] < whole  # only what is in memory
    run(recipe, out, resume=True)
    digests = [load(each, "repair")["weights_digest"] for each in (out, folders["stream"])]
    assert digests[0] == digests[1]


@pytest.fixture
def recipe_of(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path: Path
) -> Callable[[str], Recipe]:
    write_recipe(tmp_path, "", clinic=clinic, unsanitized=leaky_folder, base=base_folder)

    def make(sections: str) -> Recipe:
        text = recipe_text(sections, folder=tmp_path, unsanitized=leaky_folder, base=base_folder)
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml")

    return make


REPAIR = "repair: {last_layers: 1, epochs: 1}\n"
REFUSED = {
    "all layers": ("repair: {epochs: 1}\n", "set repair.last_layers"),
    "rounds": (f"rounds: 2\nerase: {{last_layers: 1}}\n{REPAIR}", "rounds: 1"),
    "a selector of texts": (
        f"erase: {{last_layers: 1, selector: {{kind: activation_ratio, fraction: 0.5}}}}\n{REPAIR}",
        "choose a selector that reads no documents",
    ),
    "attacks": (f"{REPAIR}attack: {{}}\n", "leave attack out"),
    "samples": (f"{REPAIR}audit: {{generation: {{}}}}\n", "audit.generation: null"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_needs_a_model_in_memory_is_refused_with_what_to_do(
    kind: str, recipe_of: Any, tmp_path: Path
) -> None:
    sections, advice = REFUSED[kind]
    items = {item.name: item for item in check(recipe_of(sections), tmp_path / "out")}
    assert items["placement"].holds  # there is room: auto stays in memory
    recipe = recipe_of("placement: stream\n" + sections)
    (item,) = [item for item in check(recipe, tmp_path / "out") if item.name == "placement"]
    assert not item.holds
    assert advice in item.detail
    with pytest.raises(SaniError, match="a streamed model cannot do all of this"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_auto_streams_where_memory_does_not_suffice(
    recipe_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(REPAIR)

    def detail() -> str:
        items = {item.name: item for item in check(recipe, tmp_path / "out")}
        return items["placement"].detail

    assert detail() == "all weights in memory, in float32"
    monkeypatch.setattr("sani.pipeline.placement.device_memory", lambda: 2**20)
    assert detail() == "weights stay in their files and are read layer by layer"


def test_too_little_memory_names_what_to_change_so_that_the_run_can_be_streamed(
    recipe_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("repair: {epochs: 1}\n")
    inputs = RunInputs(recipe)
    # As if libraries and hidden states needed nothing: those outweigh so small a model.
    for name in ("SWEEP_BYTES", "LIBRARIES", "WORKSPACE"):
        monkeypatch.setattr(f"sani.pipeline.placement.{name}", 0)
    streamed, whole = (memory_needed(inputs, each) for each in ("stream", "memory"))
    assert streamed < whole
    for module in ("placement", "preflight"):
        monkeypatch.setattr(f"sani.pipeline.{module}.device_memory", lambda: whole - 1)
    (item,) = [each for each in check(recipe, tmp_path / "out") if each.name == "memory"]
    assert not item.holds
    assert "streamed from its files it would fit: set placement: stream" in item.detail
    assert "set repair.last_layers" in item.detail
