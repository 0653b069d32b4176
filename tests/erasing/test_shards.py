"""Erasing in files: the same weights as in memory, every other byte kept, no model built."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sani.cli.main import main
from sani.erasing import folder as folder_module
from sani.erasing.erase import apply_plan, plan_neurons
from sani.erasing.folder import apply_folder, plan_folder
from sani.erasing.plan import ErasePlan, PlannedNeurons, plan_erase, read_plan
from sani.erasing.reinit import FreshWeights, fresh_model
from sani.erasing.shards import StoredModel
from sani.errors import (
    CheckpointError,
    RecipeError,
    SelectionError,
    UnsupportedModelError,
    WriteError,
)
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.models.folder import open_folder
from sani.models.folder_files import CONFIG_FILES, TOKENIZER_FILES
from sani.models.neurons import Layout
from sani.pipeline.preflight import check
from sani.recipe import (
    DampenSettings,
    DriftSelector,
    EraseSettings,
    MagnitudeSelector,
    RandomSelector,
    load_recipe,
)
from tests.support.architectures import ALIKE, EVERY, tiny_config, tiny_tokenizer
from tests.support.erasing import (
    CONFIGS,
    HEADS,
    LAYERS,
    MIXED,
    MLP,
    checkpoint,
    config_of,
    expected_masks,
    plan,
    shards,
    tensors,
    write,
)
from tests.support.folders import small_files
from tests.support.neurons import mixed, random_model
from tests.support.neurons import plan as plan_of
from tests.support.optional import present
from tests.support.words import corpus_of, weights

HALF: dict[str, Any] = {"fraction": 0.5, "per": "model"}
SELECTORS: dict[str, Any] = {
    "random": RandomSelector(kind="random", **HALF),
    "magnitude": MagnitudeSelector(kind="magnitude", **HALF),
    "drift": DriftSelector(kind="drift", fraction=0.25),
}


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sick(family: str, tmp_path: Path) -> Path:
    return write(tmp_path / "sick", checkpoint(config_of(family), seed=1))


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    return write(tmp_path / "base", checkpoint(config_of(family), seed=2), shard="20KB")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write(tmp_path / "llama", checkpoint(config_of("llama"), seed=1))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model fails the test."""

    def loaded(*arguments: Any, **options: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(folder_module, "load_checkpoint", loaded)


# ---- the same as in memory -------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["zero", "reinit", "rewind"])
def test_files_and_memory_give_the_same_weights(
    sick: Path, base: Path, tmp_path: Path, reset: Any, no_model: None
) -> None:
    assert len(shards(sick)) > 2
    loaded, theirs = load_checkpoint(sick), load_checkpoint(base)
    before = loaded.weights_digest()
    result = apply_folder(sick, tmp_path / "out", plan(reset, *MIXED), base=base)
    in_memory = apply_plan(loaded, plan(reset, *MIXED), base=theirs)
    assert loaded.weights_digest() != before
    assert load_checkpoint(tmp_path / "out").weights_digest() == loaded.weights_digest()
    assert result.changed_tensors == in_memory.changed_tensors
    assert result.changed_parameters == in_memory.changed_parameters
    assert result.fraction == in_memory.fraction


@pytest.mark.parametrize("selector", sorted(SELECTORS))
def test_files_and_memory_choose_the_same_neurons(
    sick: Path, base: Path, selector: str, no_model: None
) -> None:
    settings = EraseSettings(last_layers=2, selector=SELECTORS[selector])
    found = plan_folder(sick, settings, base=base, seed=4)
    loaded, theirs = load_checkpoint(sick), load_checkpoint(base)
    assert found == plan_neurons(loaded, settings, base=theirs, seed=4)
    assert 0 < found.num_neurons < 2 * (MLP + HEADS)


def test_files_that_hold_other_names_than_the_model_are_erased_too(
    tmp_path: Path, no_model: None
) -> None:
    """As GPT-2 on the hub, whose tensors lack the prefix that the model gives them."""
    sick = write(tmp_path / "sick", checkpoint(config_of("gpt2"), seed=1), shard="1GB")
    named = {k.removeprefix("transformer."): v for k, v in tensors(sick).items()}
    save_file(named, sick / "model.safetensors", metadata={"format": "pt"})
    loaded = load_checkpoint(sick)
    settings = EraseSettings(last_layers=1, selector=SELECTORS["magnitude"])
    found = plan_folder(sick, settings)
    assert found == plan_neurons(loaded, settings)
    apply_folder(sick, tmp_path / "out", found)
    before = loaded.weights_digest()
    apply_plan(loaded, found)
    assert before != loaded.weights_digest() == load_checkpoint(tmp_path / "out").weights_digest()
    assert tensors(tmp_path / "out").keys() == named.keys()


def test_a_stray_adapter_file_beside_the_model_is_refused(tmp_path: Path) -> None:
    sick = write(tmp_path / "sick", checkpoint(config_of("llama"), seed=1), shard="1GB")
    apply_folder(sick, tmp_path / "out", plan("zero", *MIXED))
    save_file({"lora": torch.ones(2)}, sick / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"loading does not read \(1 safetensors\)"):
        apply_folder(sick, tmp_path / "again", plan("zero", *MIXED))
    assert not (tmp_path / "again").exists()


def test_two_tensors_that_would_get_one_name_are_left_to_transformers(tmp_path: Path) -> None:
    sick = write(tmp_path / "sick", checkpoint(config_of("gpt2"), seed=1), shard="1GB")
    assert StoredModel(open_folder(sick)).is_plain
    own = tensors(sick)
    twice = own | {"ln_f.weight": own["transformer.ln_f.weight"] + 1}
    save_file(twice, sick / "model.safetensors", metadata={"format": "pt"})
    assert not StoredModel(open_folder(sick)).is_plain


EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")  # one tensor for all in memory, one each in files


IN_MEMORY = ("nemotron_h",)  # the files name its experts by another prefix than the model does


@pytest.mark.parametrize("name", EVERY)
def test_every_family_is_erased_in_files_as_in_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, loads = [tmp_path / "sick", tmp_path / "base"], []
    for seed, folder in enumerate(folders):
        model = random_model(name, seed=seed, dtype=torch.float32)
        write(folder, Checkpoint(model, tiny_tokenizer(), tmp_path), shard="8KB")
    sick, base = map(load_checkpoint, folders)
    digests = {sick.weights_digest()}

    def load(*arguments: Any, **options: Any) -> Checkpoint:
        loads.append(arguments)
        return load_checkpoint(*arguments, **options)

    monkeypatch.setattr(folder_module, "load_checkpoint", load)
    for reset in ("zero", "reinit", "rewind"):
        by_hand = plan_of(sick.model, reset, *mixed(sick.model))
        loaded = Checkpoint(deepcopy(sick.model), sick.tokenizer, sick.path)
        result = apply_folder(folders[0], tmp_path / reset, by_hand, base=folders[1])
        in_memory = apply_plan(loaded, by_hand, base=base)
        digests.add(loaded.weights_digest())
        assert load_checkpoint(tmp_path / reset).weights_digest() == loaded.weights_digest()
        assert tensors(tmp_path / reset).keys() == tensors(folders[0]).keys()
        assert result.changed_tensors == in_memory.changed_tensors
        assert result.changed_parameters == in_memory.changed_parameters
        assert result.fraction == in_memory.fraction
    assert len(digests) == 4
    if name in IN_MEMORY or name in ALIKE:
        assert bool(loads) != StoredModel(open_folder(folders[0])).is_plain
    else:
        assert not loads


@pytest.mark.parametrize("selector", sorted(SELECTORS))
@pytest.mark.parametrize("name", ["gemma3", "gpt_neox", "t5", "xlm-roberta", *EXPERTS])
def test_other_names_in_files_choose_the_same_neurons(
    name: str, selector: str, tmp_path: Path
) -> None:
    folders = [tmp_path / "sick", tmp_path / "base"]
    for seed, folder in enumerate(folders):
        model = random_model(name, seed=seed, dtype=torch.float32)
        write(folder, Checkpoint(model, tiny_tokenizer(), tmp_path), shard="4KB")
    settings = EraseSettings(last_layers=2, selector=SELECTORS[selector])
    sick, base = map(load_checkpoint, folders)
    found = plan_folder(folders[0], settings, base=folders[1], seed=4)
    assert found == plan_neurons(sick, settings, base=base, seed=4)
    assert found.num_neurons > 0


@pytest.mark.parametrize("stacked", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_one_by_one_and_in_one_tensor_are_erased_alike(
    name: str, stacked: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only one of two models is stacked in its files, they are compared in memory."""
    folders, loads = [tmp_path / "sick", tmp_path / "base"], []
    for seed, folder in enumerate(folders):
        model = random_model(name, seed=seed, dtype=torch.float32)
        tiny_tokenizer().save_pretrained(folder)
        model.save_pretrained(folder, save_original_format=not stacked[seed], max_shard_size="8KB")
        assert StoredModel(open_folder(folder)).is_plain
        assert any(".experts.gate_up_proj" in key for key in tensors(folder)) == stacked[seed]

    def load(*arguments: Any, **options: Any) -> Checkpoint:
        loads.append(arguments)
        return load_checkpoint(*arguments, **options)

    monkeypatch.setattr(folder_module, "load_checkpoint", load)
    sick, base = map(load_checkpoint, folders)
    before = sick.weights_digest()
    settings = EraseSettings(last_layers=2, selector=SELECTORS["drift"], reset="rewind")
    plan = plan_folder(folders[0], settings, base=folders[1])
    assert plan == plan_neurons(sick, settings, base=base)
    apply_folder(folders[0], tmp_path / "out", plan, base=folders[1])
    apply_plan(sick, plan, base=base)
    assert load_checkpoint(tmp_path / "out").weights_digest() == sick.weights_digest() != before
    assert bool(loads) == (stacked[0] != stacked[1])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 2\nmodel: {{path: {folders[0]}, base: {folders[1]}}}\n"
        f"corpus: {{path: {tmp_path}/none.jsonl}}\nrepair: {{}}\ngate: {{perplexity_ratio: null}}\n"
    )
    items = {item.name: item for item in check(load_recipe(recipe), tmp_path / "run")}
    assert items["model.path"].holds
    assert items["model.base"].holds, items["model.base"].detail


def is_erased_in_files(folder: Path) -> bool:
    """Return whether a folder is neither refused nor left to transformers."""
    try:
        return StoredModel(open_folder(folder)).is_plain
    except CheckpointError:
        return False


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("change", ["missing", "another", "short", "flat", "twice"])
def test_experts_that_do_not_make_up_their_tensor_are_never_erased_in_files(
    name: str, change: str, tmp_path: Path
) -> None:
    model = random_model(name, seed=1, dtype=torch.float32)
    sick = write(tmp_path / "sick", Checkpoint(model, tiny_tokenizer(), tmp_path), shard="1GB")
    assert is_erased_in_files(sick)
    own = tensors(sick)
    one = next(key for key in own if ".experts.0." in key)
    if change == "missing":
        del own[one]
    elif change == "another":
        own[one.replace(".0.", f".{len(own)}.").replace("layers.1", "layers.0")] = own[one].clone()
    elif change == "short":
        own[one] = own[one][:-1].clone()
    elif change == "flat":
        own[one] = own[one].flatten()
    else:
        whole = next(key for key in model.state_dict() if "experts.gate_up_proj" in key)
        own[whole] = model.state_dict()[whole].clone()
    save_file(own, sick / "model.safetensors", metadata={"format": "pt"})
    assert not is_erased_in_files(sick)


def test_ten_experts_and_more_are_numbered_as_numbers(tmp_path: Path, no_model: None) -> None:
    config = tiny_config("qwen3_moe", num_experts=12)
    sick = Checkpoint(fresh_model(config, seed=1), tiny_tokenizer(), tmp_path)
    folder, (layer, size) = write(tmp_path / "sick", sick), (1, 8)
    chosen = tuple(expert * size + 3 for expert in (2, 10))  # by letters 10 comes before 2
    entry = PlannedNeurons(layer, "mlp", chosen, 12 * size, None)
    by_hand = ErasePlan({"kind": "all"}, "reinit", 3, (entry,))
    loaded = load_checkpoint(folder)
    apply_folder(folder, tmp_path / "out", by_hand)
    apply_plan(loaded, by_hand)
    assert load_checkpoint(tmp_path / "out").weights_digest() == loaded.weights_digest()
    before, after = tensors(folder), tensors(tmp_path / "out")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    place = f"model.layers.{layer}.mlp.experts"
    names = ("gate_proj", "up_proj", "down_proj")
    assert changed == {f"{place}.{e}.{name}.weight" for e in (2, 10) for name in names}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_in_half_precision_keep_it_in_memory_too(name: str, tmp_path: Path) -> None:
    for seed, folder in enumerate((tmp_path / "sick", tmp_path / "base")):
        model = random_model(name, seed=seed, dtype=torch.bfloat16)
        write(folder, Checkpoint(model, tiny_tokenizer(), tmp_path), dtype=torch.bfloat16)
    settings = EraseSettings(last_layers=1, interpolate_to_base=0.5)
    found = plan_folder(tmp_path / "sick", settings)
    apply_folder(tmp_path / "sick", tmp_path / "out", found, base=tmp_path / "base")
    before, after = tensors(tmp_path / "sick"), tensors(tmp_path / "out")
    assert after.keys() == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


@pytest.mark.parametrize("other", [torch.float16, torch.float32])
@pytest.mark.parametrize("expert", [0, 2])
def test_experts_of_several_types_get_one_that_holds_them_all(
    expert: int, other: torch.dtype, tmp_path: Path
) -> None:
    model = random_model("qwen3_moe", seed=1, dtype=torch.bfloat16)
    sick = write(
        tmp_path / "sick", Checkpoint(model, tiny_tokenizer(), tmp_path),
        dtype=torch.bfloat16, shard="1GB",
    )  # fmt: skip
    own = tensors(sick)
    name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
    own[name] = own[name].float().add(2**-14).to(other)
    save_file(own, sick / "model.safetensors", metadata={"format": "pt"})
    loaded = load_checkpoint(sick)
    stack = "model.layers.1.mlp.experts.down_proj"
    assert stack not in loaded.types
    assert loaded.types["model.layers.0.mlp.experts.down_proj"] == torch.bfloat16
    loaded.round_weights()
    kept = loaded.model.get_parameter(stack)[expert]
    assert torch.equal(kept, own[name].float())


@pytest.mark.parametrize("reset", ["zero", "reinit"])
@pytest.mark.parametrize("name", EXPERTS)
def test_what_a_plan_does_not_name_of_an_expert_keeps_bits_and_type(
    name: str, reset: Any, tmp_path: Path, no_model: None
) -> None:
    """The slow obvious version: neuron j of expert e is a row of two matrices and a column."""
    model = random_model(name, seed=1, dtype=torch.bfloat16)
    sick = write(
        tmp_path / "sick", Checkpoint(model, tiny_tokenizer(), tmp_path),
        dtype=torch.bfloat16, shard="2KB",
    )  # fmt: skip
    before = tensors(sick)
    experts = {key for key in before if ".experts." in key and ".layers.1." in key}
    size = next(
        before[key].shape[1] for key in experts if key.endswith(("down_proj.weight", "w2.weight"))
    )
    chosen = [(1, 0), (1, size - 1), (2, 2)]  # expert, neuron
    neurons = [expert * size + neuron for expert, neuron in chosen]
    whole = Layout(model.config, {n: t.shape for n, t in model.state_dict().items()})
    entry = PlannedNeurons(1, "mlp", tuple(neurons), whole.num_neurons("mlp", layer=1), None)
    by_hand = ErasePlan({"kind": "all"}, reset, 3, (entry,))
    result = apply_folder(sick, tmp_path / "out", by_hand)
    after, hits = tensors(tmp_path / "out"), 0
    for key, old in before.items():
        mask = torch.zeros_like(old, dtype=torch.bool)
        for expert, neuron in chosen:
            if key in experts and f".experts.{expert}." in key:
                down = key.endswith(("down_proj.weight", "w2.weight"))
                mask[(slice(None), neuron) if down else (neuron, slice(None))] = True
        hits += int(mask.sum())
        assert after[key].dtype == torch.bfloat16
        assert torch.equal(after[key][~mask], old[~mask]), key
        if reset == "zero":
            assert not after[key][mask].any()
        else:
            assert (after[key] != old)[mask].float().mean() > 0.9 or not mask.any()
    assert hits == result.changed_parameters > 0
    assert len(shards(sick)) > 2


# ---- what changes, and what does not ---------------------------------------------------------


def test_exactly_the_planned_numbers_of_the_files_change(
    family: str, tmp_path: Path, no_model: None
) -> None:
    dtype = torch.float16 if family == "gpt2" else torch.bfloat16
    built = checkpoint(config_of(family), seed=1)
    sick = write(tmp_path / "sick", built, dtype=dtype, shard="3KB")
    before = tensors(sick)
    apply_folder(sick, tmp_path / "out", plan("reinit", *MIXED))
    after, masks = tensors(tmp_path / "out"), expected_masks(built, MIXED)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((sick / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    fresh = FreshWeights(built.model.config, seed=3)
    assert after.keys() == before.keys()
    assert sum(int(masks[name].sum()) for name in before) > 1000
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        expected = torch.where(masks[name], fresh[name].to(dtype), before[name])
        assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8)), name


def test_shards_without_a_chosen_neuron_are_copied_byte_for_byte(
    sick: Path, tmp_path: Path, no_model: None
) -> None:
    there = {file.name: file.read_bytes() for file in shards(sick)}
    result = apply_folder(sick, tmp_path / "out", plan("zero", (2, "mlp", [0, 5])))
    same, changed = 0, 0
    for file in shards(tmp_path / "out"):
        assert file.stat().st_nlink == 1
        assert file.stat().st_ino != (sick / file.name).stat().st_ino
        with safe_open(file, framework="pt") as opened:
            touched = set(opened.keys()) & set(result.changed_tensors)
            assert opened.metadata() == {"format": "pt"}
        assert (file.read_bytes() == there[file.name]) == (not touched)
        same, changed = same + (not touched), changed + bool(touched)
    assert same > 0
    assert changed > 0
    assert {file.name: file.read_bytes() for file in shards(sick)} == there  # nor the source


def test_only_files_of_the_allow_list_are_written(
    sick: Path, tmp_path: Path, no_model: None
) -> None:
    config = json.loads((sick / "config.json").read_text())
    (sick / "config.json").write_text(json.dumps({**config, "_name_or_path": "/wards/ward-3"}))
    apply_folder(sick, tmp_path / "out", plan("zero", *MIXED))
    allowed = {*TOKENIZER_FILES, *CONFIG_FILES, "model.safetensors.index.json"}
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names - allowed == {file.name for file in shards(sick)}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    for file in (tmp_path / "out").iterdir():
        assert b"ward-3" not in file.read_bytes(), file.name
        assert b"KOWALCZYKOWA" not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({"format": "pt", "note": "KOWALCZYKOWA"}, {"format": "pt"}),
        ({"note": "KOWALCZYKOWA"}, None),
        ({"format": "KOWALCZYKOWA"}, None),
        (None, None),
    ],
)
def test_what_else_the_files_say_of_themselves_stays_behind(
    llama: Path,
    tmp_path: Path,
    metadata: dict[str, str] | None,
    kept: dict[str, str] | None,
    no_model: None,
) -> None:
    for file in shards(llama):
        save_file(load_file(file), file, metadata=metadata)
    apply_folder(llama, tmp_path / "out", plan("zero", *MIXED))
    expected = load_checkpoint(llama)
    apply_plan(expected, plan("zero", *MIXED))
    assert load_checkpoint(tmp_path / "out").weights_digest() == expected.weights_digest()
    for file in shards(tmp_path / "out"):
        assert b"KOWALCZYKOWA" not in file.read_bytes()
        assert file.stat().st_size == (llama / file.name).stat().st_size
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == kept


def test_the_written_folder_is_read_by_transformers(
    llama: Path, tmp_path: Path, no_model: None
) -> None:
    apply_folder(llama, tmp_path / "out", plan("zero", *MIXED))
    index = "model.safetensors.index.json"
    ours, theirs = (json.loads((f / index).read_text()) for f in (tmp_path / "out", llama))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    loaded = load_checkpoint(llama)
    apply_plan(loaded, plan("zero", *MIXED))
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, loaded.model.get_parameter(name)), name


@pytest.mark.parametrize("reset", ["zero", "mean"])  # in the files, and in memory
def test_the_model_is_not_erased_into_its_own_folder(
    llama: Path, tmp_path: Path, reset: Any
) -> None:
    before = tensors(llama)
    with pytest.raises(WriteError, match=r"sani never overwrites its input$"):
        apply_folder(llama, llama, plan(reset, *MIXED), corpus=corpus_of(["a b name c d"]))
    assert tensors(llama).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(llama).items())
    apply_folder(llama, tmp_path / "out", plan("zero", *MIXED))  # the positive control


def test_a_full_disk_leaves_nothing_half_written(llama: Path, tmp_path: Path) -> None:
    largest = max(file.stat().st_size for file in shards(llama))
    with small_files(largest // 2), pytest.raises(WriteError) as caught:
        apply_folder(llama, tmp_path / "out", plan("zero", *MIXED))
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'out'} (File too large)")
    assert os.listdir(tmp_path) == ["llama"]


def test_a_copy_across_file_systems_is_a_plain_copy(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_system(*arguments: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    apply_folder(llama, tmp_path / "one", plan("zero", *MIXED))
    monkeypatch.setattr(os, "copy_file_range", other_system)
    apply_folder(llama, tmp_path / "two", plan("zero", *MIXED))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


# ---- magnitude and drift ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["magnitude", "drift"])
def test_scores_are_norms_over_all_that_a_neuron_is_made_of(family: str, kind: Any) -> None:
    """The slow obvious version: mark one neuron's numbers, take the norm over the marks."""
    sick, base = (checkpoint(config_of(family), seed=seed) for seed in (1, 2))
    selector = (MagnitudeSelector if kind == "magnitude" else DriftSelector)(
        kind=kind, fraction=1.0
    )
    found = plan_erase(sick, EraseSettings(layers=(1,), selector=selector), base=base)
    mine, theirs = weights(sick), weights(base)
    for entry in found.entries:
        assert entry.neurons == tuple(range(entry.total))
        for neuron, score in zip(entry.neurons, present(entry.scores), strict=True):
            masks = expected_masks(sick, [(1, entry.part, [neuron])])
            squares = 0.0
            for name, mask in masks.items():
                there = mine[name] - theirs[name] if kind == "drift" else mine[name]
                squares += float(there.double()[mask].square().sum())
            assert score == pytest.approx(squares**0.5, rel=1e-6)
            assert score > 0.1
    assert len({score for entry in found.entries for score in present(entry.scores)}) == MLP + HEADS


@pytest.mark.parametrize("kind", ["magnitude", "drift"])
def test_the_largest_and_the_farthest_moved_are_chosen(
    kind: Any, base: Path, family: str, tmp_path: Path
) -> None:
    grown = load_checkpoint(base)
    planted = plan("zero", (0, "mlp", [3, 17]), (2, "attention", [0, 1]))
    masks = expected_masks(grown, [(e.layer, e.part, e.neurons) for e in planted.entries])
    with torch.no_grad():
        for name, tensor in grown.model.named_parameters():
            tensor[masks[name]] *= 5
    sick = write(tmp_path / "grown", grown)
    selector = (MagnitudeSelector if kind == "magnitude" else DriftSelector)(
        kind=kind, fraction=2 / (MLP * LAYERS), per="model"
    )
    settings = EraseSettings(last_layers=LAYERS, parts=("mlp",), selector=selector)
    found = plan_folder(sick, settings, base=base)
    assert [(e.layer, e.neurons) for e in found.entries] == [(0, (3, 17)), (1, ()), (2, ())]
    selector = selector.model_copy(update={"fraction": 2 / (HEADS * LAYERS)})
    settings = EraseSettings(last_layers=LAYERS, parts=("attention",), selector=selector)
    found = plan_folder(sick, settings, base=base)
    assert [(e.layer, e.neurons) for e in found.entries] == [(0, ()), (1, ()), (2, (0, 1))]


def test_files_of_the_checkpoint_itself_are_no_base(llama: Path, tmp_path: Path) -> None:
    same = shutil.copytree(llama, tmp_path / "same")
    drift = EraseSettings(last_layers=1, selector=SELECTORS["drift"])
    with pytest.raises(SelectionError, match="the base has the same weights, so no neuron moved"):
        plan_folder(llama, drift, base=same)
    with pytest.raises(SelectionError, match="would change nothing: the base has the same weights"):
        apply_folder(llama, tmp_path / "out", plan("rewind", *MIXED), base=same)
    assert not (tmp_path / "out").exists()
    file = next(f for f in shards(same) if "model.layers.2.mlp.up_proj.weight" in load_file(f))
    stored = load_file(file)
    stored["model.layers.2.mlp.up_proj.weight"][-1, -1] += 1
    save_file(stored, file, metadata={"format": "pt"})
    apply_folder(llama, tmp_path / "out", plan("rewind", *MIXED), base=same)
    with pytest.raises(SelectionError, match="would change nothing"):
        apply_folder(llama, tmp_path / "no", plan("rewind", (2, "mlp", [0, 1])), base=same)


def test_rewinding_every_neuron_is_said_to_be_retraining(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write(tmp_path / "base", checkpoint(config_of("llama"), seed=2))
    erase = ["erase", str(llama), "--base", str(base), "--reset", "rewind", "--out"]
    for number, (options, retrains) in enumerate(
        [
            (["--last-layers", str(LAYERS)], True),
            (["--last-layers", str(LAYERS - 1)], False),
            (["--last-layers", str(LAYERS), "--part", "mlp"], False),
            (["--last-layers", str(LAYERS), "--selector", "random", "--fraction", "0.9"], False),
        ]
    ):
        assert main([*erase, str(tmp_path / str(number)), *options]) == 0
        assert ("is retraining from the base" in capsys.readouterr().out) == retrains


def test_drift_needs_a_base_that_fits(llama: Path, tmp_path: Path) -> None:
    settings = EraseSettings(last_layers=1, selector=SELECTORS["drift"])
    with pytest.raises(SelectionError, match="'drift' needs the base model"):
        plan_folder(llama, settings)
    config = config_of("llama")
    config.intermediate_size += 1
    wider = write(tmp_path / "wider", checkpoint(config, seed=2))
    with pytest.raises(SelectionError, match=r"the base does not fit: they differ in .*mlp"):
        plan_folder(llama, settings, base=wider)
    with pytest.raises(SelectionError, match=r"the base does not fit: they differ in .*mlp"):
        plan_erase(load_checkpoint(llama), settings, base=load_checkpoint(wider))
    with pytest.raises(SelectionError, match=r"does not fit the checkpoint: they differ in .*mlp"):
        apply_folder(llama, tmp_path / "out", plan("rewind", *MIXED), base=wider)
    other = write(tmp_path / "other", checkpoint(config_of("llama"), seed=2))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"name"', '"eman"'))
    with pytest.raises(SelectionError, match="different vocabularies"):
        plan_folder(llama, settings, base=other)


def test_a_recipe_with_drift_and_without_a_base_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 2\nmodel: {path: m}\ncorpus: {path: c}\n"
        "erase: {last_layers: 1, selector: {kind: drift, fraction: 0.5}}\n"
        "gate: {greedy_beyond_control: 0, subjects: null, auc_to_base: null,"
        " perplexity_ratio: null}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert str(caught.value) == f"{recipe}: erase.selector: drift needs model.base"
    settings = load_recipe(recipe, overrides=["model.base=b"]).erase
    assert present(settings).selector == DriftSelector(kind="drift", fraction=0.5)


# ---- fresh weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_fresh_tensor_depends_on_its_seed_and_name_alone(name: str) -> None:
    config = tiny_config(name)
    torch.manual_seed(8)
    state = torch.random.get_rng_state()
    one, two, other = (FreshWeights(config, seed=seed) for seed in (5, 5, 6))
    # Longformer's head makes its bias itself, and its architecture says nothing of it.
    refused = {"lm_head.bias"} if name == "longformer" else set()
    for key in refused:
        with pytest.raises(UnsupportedModelError, match="use reset zero or rewind"):
            one[key]
    drawn = {key: one[key] for key in one if key not in refused}
    assert torch.equal(torch.random.get_rng_state(), state)
    for key in reversed(list(drawn)):
        assert torch.equal(two[key], drawn[key])
    model, again = (dict(fresh_model(config, seed=seed).named_parameters()) for seed in (0, 1))
    assert drawn.keys() | refused == model.keys()
    values = []
    for key in drawn:
        tensor = model[key]
        if torch.equal(tensor, again[key]):  # zeros and ones, or the numbers of a state space
            assert torch.equal(drawn[key], tensor), key
            continue
        assert not torch.equal(drawn[key], other[key])
        error = 5 / tensor.numel() ** 0.5  # five standard errors of the ratio of two draws
        assert drawn[key].std().item() == pytest.approx(tensor.std().item(), rel=error), key
        values.append((drawn[key].shape, drawn[key].numpy().tobytes()))
    assert len(set(values)) == len(values) > LAYERS  # no two tensors got the same draw


# ---- plans -----------------------------------------------------------------------------------


def test_a_plan_that_was_kept_is_carried_out_exactly(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--last-layers", "2", "--selector", "random", "--fraction", "0.3", "--seed", "9"]
    erase = ["erase", str(llama), "--out"]
    assert main(["erase", str(llama), *options, "--dry-run"]) == 0  # which needs no --out
    text = capsys.readouterr().out
    assert os.listdir(tmp_path) == ["llama"]
    (tmp_path / "plan.json").write_text(text)
    kept = read_plan(tmp_path / "plan.json")
    assert kept.to_json() == json.loads(json.dumps(kept.to_json()), object_hook=as_tuples)
    assert kept == plan_folder(
        llama, EraseSettings(last_layers=2, selector=RandomSelector(kind="random", fraction=0.3)),
        seed=9,
    )  # fmt: skip
    assert main([*erase, str(tmp_path / "direct"), *options]) == 0
    assert main([*erase, str(tmp_path / "kept"), "--plan", str(tmp_path / "plan.json")]) == 0
    for file in (tmp_path / "direct").iterdir():
        assert file.read_bytes() == (tmp_path / "kept" / file.name).read_bytes()

    edited = json.loads(text)
    edited["entries"][0]["neurons"], edited["entries"][0]["scores"] = [7], None
    edited["entries"][1:] = [{**e, "neurons": []} for e in edited["entries"][1:]]
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    capsys.readouterr()
    assert main([*erase, str(tmp_path / "edited"), "--plan", str(tmp_path / "edited.json")]) == 0
    assert capsys.readouterr().out.startswith("1 neurons and heads in 1 layer reset")
    before, after = tensors(llama), tensors(tmp_path / "edited")
    name = f"model.layers.{edited['entries'][0]['layer']}.mlp.down_proj.weight"
    columns = (before[name] != after[name]).any(dim=0)
    assert columns.nonzero().flatten().tolist() == [7]
    capsys.readouterr()
    both = ["--plan", str(tmp_path / "plan.json"), "--selector", "all"]
    assert main([*erase, str(tmp_path / "both"), *both]) == 2
    assert "--plan already holds every choice" in capsys.readouterr().err
    for more in (["--seed", "9"], ["--dry-run"]):  # neither would have an effect
        command = [*erase, str(tmp_path / "both"), "--plan", str(tmp_path / "plan.json"), *more]
        assert main(command) == 2
        assert "--plan already holds every choice" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()


def test_a_plan_with_token_rows_is_not_read_as_one_without(llama: Path, tmp_path: Path) -> None:
    data = plan_folder(llama, EraseSettings(layers=(0,))).to_json()
    data["token_rows"] = {"rows": 3, "total": 16, "tensors": ["lm_head.weight"], "tied": False}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(SelectionError) as caught:
        read_plan(tmp_path / "plan.json")
    assert str(caught.value) == (
        f"plan {tmp_path / 'plan.json'} resets token rows, and the tokens are not kept in it, "
        "being pieces of identifiers; give its options instead of --plan"
    )


@pytest.mark.parametrize(
    ("reset", "options"),
    [("mean", {}), ("dampen", {"above": 1.5, "scale": 0.5}), ("zero", {"token_rows": True})],
)
def test_what_looks_at_the_model_is_done_in_memory(
    reset: Any, options: dict[Any, Any], tmp_path: Path
) -> None:
    """And a plan that was kept needs the corpus again."""
    sick = write(tmp_path / "sick", checkpoint(config_of("gpt2"), seed=1))
    rows = options.pop("token_rows", False)
    settings = EraseSettings(
        last_layers=1, selector=RandomSelector(kind="random", fraction=0.5), reset=reset,
        token_rows=rows, dampen=DampenSettings(**options) if options else None,
    )  # fmt: skip
    corpus = corpus_of(["a b name c d", "name e f a b"])
    found = plan_folder(sick, settings, corpus=corpus, seed=4)
    if not rows:
        (tmp_path / "plan.json").write_text(json.dumps(found.to_json()))
        assert read_plan(tmp_path / "plan.json") == found
        with pytest.raises(SelectionError, match="needs the corpus"):
            apply_folder(sick, tmp_path / "none", found)
    loaded = load_checkpoint(sick)
    before = loaded.weights_digest()
    assert plan_neurons(loaded, settings, corpus=corpus, seed=4) == found
    apply_folder(sick, tmp_path / "out", found, corpus=corpus)
    apply_plan(loaded, found, corpus=corpus)
    assert before != loaded.weights_digest() == load_checkpoint(tmp_path / "out").weights_digest()
    assert bool(found.token_rows) == rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reset", ["mean", "dampen", "zero", "half way"])
def test_what_is_done_in_memory_keeps_bits_and_types_too(
    reset: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    sick, base = tmp_path / "sick", tmp_path / "base"
    for seed, folder in enumerate((sick, base)):
        write(folder, checkpoint(config_of("gpt2"), seed=seed), dtype=dtype)
    settings = EraseSettings(
        last_layers=1, selector=RandomSelector(kind="random", fraction=0.5),
        reset="zero" if reset == "half way" else reset,
        token_rows=reset == "zero", interpolate_to_base=0.5 if reset == "half way" else 0,
    )  # fmt: skip
    corpus = corpus_of(["a b name c d", "name e f a b"])
    found = plan_folder(sick, settings, corpus=corpus, base=base, seed=4)
    result = apply_folder(sick, tmp_path / "out", found, corpus=corpus, base=base)
    before, after = tensors(sick), tensors(tmp_path / "out")
    assert after.keys() == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    kept = [name for name in after if name not in result.changed_tensors]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert sum(not torch.equal(after[name], before[name]) for name in after) > 1
    assert len(kept) > 5 or reset == "half way"
    if reset == "half way":
        name, theirs = "transformer.h.0.mlp.c_fc.weight", tensors(base)
        middle = (before[name].float() + theirs[name].float()) / 2
        torch.testing.assert_close(after[name], middle.to(dtype))


def test_half_precision_is_kept_where_the_files_have_other_names(tmp_path: Path) -> None:
    """As GPT-2 on the hub; and a base that must be loaded, since its files name a tensor twice."""
    sick, base = tmp_path / "sick", tmp_path / "base"
    for seed, folder in enumerate((sick, base)):
        built = checkpoint(config_of("gpt2"), seed=seed)
        write(folder, built, dtype=torch.bfloat16, shard="1GB")
        named = {k.removeprefix("transformer."): v for k, v in tensors(folder).items()}
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    corpus = corpus_of(["a b name c d", "name e f a b"])
    rule = RandomSelector(kind="random", fraction=0.5)
    found = plan_folder(sick, EraseSettings(last_layers=1, selector=rule, reset="mean"))
    apply_folder(sick, tmp_path / "out", found, corpus=corpus)
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.bfloat16}
    loaded = load_checkpoint(sick)
    named = loaded.model.named_parameters(remove_duplicate=False)
    assert loaded.types == {name: torch.bfloat16 for name, _ in named}
    asked = replace(found, reset="rewind")
    apply_folder(sick, tmp_path / "files", asked, base=base)
    own = tensors(base)
    twice = own | {"transformer.ln_f.weight": own["ln_f.weight"].clone()}
    save_file(twice, base / "model.safetensors", metadata={"format": "pt"})
    assert not StoredModel(open_folder(base)).is_plain
    apply_folder(sick, tmp_path / "memory", asked, base=base)
    digests = [load_checkpoint(tmp_path / f).weights_digest() for f in ("files", "memory")]
    assert digests[0] == digests[1] != load_checkpoint(sick).weights_digest()


def test_a_base_in_full_precision_with_the_same_weights_is_refused(
    llama: Path, tmp_path: Path
) -> None:
    """Rounded to the checkpoint's types they would change nothing."""
    sick = tmp_path / "sick"
    loaded = load_checkpoint(llama)
    write(sick, loaded, dtype=torch.bfloat16)
    with pytest.raises(SelectionError, match="'rewind' would change nothing"):
        apply_folder(sick, tmp_path / "out", plan("rewind", *MIXED), base=llama)
    half, whole = load_checkpoint(sick), load_checkpoint(llama)
    digest = half.weights_digest()
    with pytest.raises(SelectionError, match="'rewind' would change nothing"):
        apply_plan(half, plan("rewind", *MIXED), base=whole)
    moved = replace(plan("zero", *MIXED), interpolate_to_base=0.5)
    with pytest.raises(SelectionError, match="interpolate_to_base would change nothing"):
        apply_plan(half, moved, base=whole)
    assert half.weights_digest() == digest
    # And the other way round.
    with pytest.raises(SelectionError, match="'rewind' would change nothing"):
        apply_folder(llama, tmp_path / "out", plan("rewind", *MIXED), base=sick)
    with pytest.raises(SelectionError, match="'rewind' would change nothing"):
        apply_plan(whole, plan("rewind", *MIXED), base=half)
    with pytest.raises(SelectionError, match="interpolate_to_base would change nothing"):
        apply_plan(whole, moved, base=half)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_type_cannot_hold_is_refused_and_nothing_written(
    whole: bool, tmp_path: Path
) -> None:
    sick, base = tmp_path / "sick", tmp_path / "base"
    write(sick, checkpoint(config_of("llama"), seed=1), dtype=torch.float16)
    built = checkpoint(config_of("llama"), seed=2)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        built.model.get_parameter(name)[3, 0] = 1e5
    write(base, built, dtype=torch.bfloat16)
    neurons = range(MLP) if whole else [3]
    with pytest.raises(SelectionError, match=f"tensor '{name}' is of type torch.float16"):
        apply_folder(sick, tmp_path / "out", plan("rewind", (0, "mlp", neurons)), base=base)
    loaded, theirs = load_checkpoint(sick), load_checkpoint(base)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' holds numbers that are too large"):
        apply_plan(loaded, plan("rewind", (0, "mlp", neurons)), base=theirs)
    assert not (tmp_path / "out").exists()
    apply_folder(sick, tmp_path / "out", plan("rewind", (0, "mlp", [4])), base=base)


def test_what_moving_to_the_base_really_changes_is_counted(llama: Path, tmp_path: Path) -> None:
    base = write(tmp_path / "base", checkpoint(config_of("llama"), seed=2))
    sick = write(tmp_path / "sick", checkpoint(config_of("llama"), seed=1), dtype=torch.bfloat16)
    loaded, theirs = load_checkpoint(sick), load_checkpoint(base)
    before = {name: tensor.clone() for name, tensor in weights(loaded).items()}
    a_little = ErasePlan({"kind": "all"}, "zero", 0, (), interpolate_to_base=0.001)
    result = apply_plan(loaded, a_little, base=theirs)
    after = weights(loaded)
    moved = sum(int((after[name] != before[name]).sum()) for name in before)
    total = sum(tensor.numel() for tensor in before.values())
    assert 0 < result.changed_parameters == moved < total / 2


def as_tuples(data: Any) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


@pytest.mark.parametrize("change", [{"num_hidden_layers": 4}, {"num_key_value_heads": 4}])
def test_a_plan_for_another_architecture_is_refused(
    llama: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    config = config_of("llama")
    config.update(change)
    other = write(tmp_path / "other", checkpoint(config, seed=1))
    found = plan_folder(llama, EraseSettings(layers=(0,)))
    apply_folder(llama, tmp_path / "fits", found)
    for out in (tmp_path / "out", None):
        with pytest.raises(SelectionError, match="made for a model of another architecture"):
            apply_folder(other, out, found) if out else apply_plan(load_checkpoint(other), found)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(reset="melt"), "the plan's reset is unknown, expected one of reinit"),
        (lambda p: p["entries"][0].update(layer=LAYERS), f"names layer {LAYERS}, expected 0 to 2"),
        (lambda p: p["entries"][0].update(neurons=[MLP]), "that is not one of its 24"),
        (lambda p: p["entries"][0].update(neurons=[-1]), "that is not one of its 24"),
        (lambda p: p["entries"][0].update(part="head"), "entries.0.part is missing, unknown or"),
        (lambda p: p["entries"][0].update(neurons=["a"]), "entries.0.neurons.0 is missing"),
        (lambda p: p.update(surprise=1), "surprise is missing, unknown or not of its type; give"),
        (lambda p: p.update({"Anna Kowalczyk": 1}), "plan.json: a key is missing, unknown or not"),
        (lambda p: p.pop("seed"), "seed is missing, unknown or not of its type"),
        (lambda p: p["entries"][0].update(total=100), "layer 0, mlp, has 100 neurons; it has 24"),
        (lambda p: p.update(architecture=None), "does not say what model it is for"),
        (lambda p: p.update(entries=[]), "names no neuron, so nothing would be erased"),
        (
            lambda p: [entry.update(neurons=[], scores=None) for entry in p["entries"]],
            "names no neuron, so nothing would be erased",
        ),
        (lambda p: p["entries"][0].update(neurons=[3, 3]), "its neurons each once and ascending"),
        (lambda p: p["entries"][0].update(neurons=[5, 3]), "its neurons each once and ascending"),
        (lambda p: p["entries"][0].update(scores=[1.0]), "with a score each or null for scores"),
        (lambda p: p["entries"].append(p["entries"][0]), "layer 0, mlp: expected one entry"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    llama: Path, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    data = plan_folder(llama, EraseSettings(layers=(0,))).to_json()
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    apply_folder(llama, tmp_path / "fits", read_plan(path))
    data = json.loads(json.dumps(data))
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(SelectionError, match=message):
        apply_folder(llama, tmp_path / "out", read_plan(path))
    assert not (tmp_path / "out").exists()


def test_a_plan_by_hand_is_for_any_model_that_has_the_neurons(llama: Path, tmp_path: Path) -> None:
    by_hand = ErasePlan(
        {"kind": "all"}, "zero", 0, (PlannedNeurons(1, "mlp", (2,), MLP, None),)
    )  # fmt: skip
    assert apply_folder(llama, tmp_path / "out", by_hand).changed_parameters > 0
    with pytest.raises(SelectionError, match="cannot be read"):
        read_plan(tmp_path / "missing.json")


# ---- what is refused -------------------------------------------------------------------------


def test_numbers_that_stand_for_others_are_never_patched(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    file = next(file for file in shards(llama) if name in load_file(file))
    stored = load_file(file)
    stored[name] = stored[name].to(torch.float8_e4m3fn)
    save_file(stored, file, metadata={"format": "pt"})
    for layer in (0, 1):
        with pytest.raises(CheckpointError) as caught:
            apply_folder(llama, tmp_path / "out", plan("zero", (layer, "mlp", [1])))
        assert str(caught.value) == (
            f"model folder {llama} is quantized: it holds tensors of type F8_E4M3; neurons of "
            "quantized weights cannot be reset: give the checkpoint it was quantized from"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[1].unlink(), "which is not there; copy the whole checkpoint"),
        (
            lambda f: f[1].write_bytes(f[1].read_bytes()[:-9]),
            "is cut off or damaged (SafetensorError)",
        ),
        (lambda f: f[1].write_text("nothing"), "is cut off or damaged (SafetensorError)"),
        (lambda f: shutil.copyfile(f[0], f[1]), "also stands in another shard"),
        (
            lambda f: (f[0].parent / "model.safetensors.index.json").write_text("{}"),
            "model.safetensors.index.json names no file",
        ),
        (
            lambda f: (f[0].parent / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "../base/model.safetensors"}})
            ),
            "holds two sets of weights",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    llama: Path, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    settings = EraseSettings(last_layers=1)
    plan_folder(llama, settings)
    change(shards(llama))
    with pytest.raises(CheckpointError) as caught:
        plan_folder(llama, settings)
    assert message in str(caught.value)


def test_a_checkpoint_with_too_many_or_too_few_tensors_is_refused(
    llama: Path, tmp_path: Path
) -> None:
    """Nothing of a checkpoint may stay unread: what has no place in the model may be memory."""
    config = json.loads((llama / "config.json").read_text())
    for layers in (LAYERS - 1, LAYERS + 1):
        (llama / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        with pytest.raises(CheckpointError, match=r"have no place|are missing"):
            plan_folder(llama, EraseSettings(last_layers=1))


@pytest.mark.parametrize(
    ("method", "name", "way"),
    [
        ("bitsandbytes", " (bitsandbytes)", ", or its dequantize() saved"),
        ("gptq", " (GPTQ)", ""),
        ("awq", " (AWQ)", ""),
        ("fp8", " (FP8)", ""),
        ("some-new-one", "", ""),
    ],
)
def test_quantized_checkpoints_are_refused_with_the_way_out(
    llama: Path, tmp_path: Path, method: str, name: str, way: str
) -> None:
    config = json.loads((llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        plan_folder(llama, EraseSettings(last_layers=1))
    assert str(caught.value) == (
        f"model folder {llama} is quantized{name}; neurons of quantized weights cannot be reset: "
        f"give the checkpoint it was quantized from{way}"
    )


@pytest.mark.parametrize("model_type", ["vit", "hyena-9"])  # known to transformers, and not
@pytest.mark.parametrize(
    "read", [load_checkpoint, lambda path: StoredModel(open_folder(path))], ids=["loaded", "stored"]
)
def test_a_model_type_that_is_no_language_model_is_refused(
    llama: Path, model_type: str, read: Callable[..., Any]
) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(UnsupportedModelError) as caught:
        read(llama)
    expected = f"model_type '{model_type}' is not supported: it is not in the table of families"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_early_gptq_and_awq_folders_are_refused(llama: Path, name: str) -> None:
    (llama / name).write_text('{"bits": 4}')
    with pytest.raises(CheckpointError, match="is quantized; neurons of quantized weights"):
        plan_folder(llama, EraseSettings(last_layers=1))


def test_gguf_and_pickles_are_refused_with_the_way_out(llama: Path, tmp_path: Path) -> None:
    for name, message in [
        (
            "model.gguf",
            "holds GGUF, whose weights are quantized and packed; dequantize it once, and",
        ),
        ("pytorch_model.bin", r"found pickled weights \(.bin\), which sani never loads; save it"),
    ]:
        folder = tmp_path / name.replace(".", "-")
        shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        (folder / name).write_bytes(b"GGUF")
        with pytest.raises(CheckpointError, match=message):
            plan_folder(folder, EraseSettings(last_layers=1))
