"""Adapters that stay adapters: the model in memory is the base and their matrices, nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sani.erasing.erase import apply_plan
from sani.erasing.folder import apply_folder
from sani.erasing.plan import ErasePlan
from sani.errors import CheckpointError, RepairError, SelectionError
from sani.models.adapter_change import change_adapter
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.repairing.repair import repair, train
from tests.support.erasing import MIXED, adapt, checkpoint, config_of, plan, write
from tests.support.words import ANCHOR, corpus_of, settings_of, weights

IDS = torch.arange(12)[None]


@pytest.fixture(params=["gpt2", "llama", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "base", checkpoint(config_of(request.param), seed=2))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write(tmp_path / "llama", checkpoint(config_of("llama"), seed=2))


def kept(adapter: Path, base: Path) -> Checkpoint:
    return load_checkpoint(adapter, base=base, keep_adapter=True)


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def served(adapter: Path, base: Path) -> torch.Tensor:
    """Logits of the adapter on its base, by PEFT alone, not merged."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        return torch.as_tensor(model.eval()(IDS).logits)


def logits(loaded: Checkpoint) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(loaded.model(IDS).logits)


def moved(share: float, *entries: Any) -> ErasePlan:
    chosen = plan("rewind" if entries else "reinit", *entries)  # the default of a section erase
    return replace(chosen, interpolate_to_base=share)


def test_a_kept_adapter_is_written_as_it_came(base: Path, tmp_path: Path) -> None:
    adapter = adapt(tmp_path / "adapter", base)
    save_checkpoint(kept(adapter, base), tmp_path / "out")
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    before, after = matrices(adapter), matrices(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert torch.equal(served(tmp_path / "out", base), served(adapter, base))
    save_checkpoint(load_checkpoint(adapter, base=base), tmp_path / "merged")  # without the wish
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_erasing_in_memory_is_erasing_the_adapter_s_files(
    base: Path, tmp_path: Path, share: float
) -> None:
    adapter = adapt(tmp_path / "adapter", base)
    loaded, theirs = kept(adapter, base), weights(load_checkpoint(base))
    merged = load_checkpoint(adapter, base=base)
    entries = MIXED if share < 1 else ()
    apply_plan(loaded, moved(share, *entries))
    save_checkpoint(loaded, tmp_path / "memory")
    result = apply_folder(adapter, tmp_path / "files", moved(share, *entries), base=base)
    in_memory, in_files = matrices(tmp_path / "memory"), matrices(tmp_path / "files")
    before = matrices(adapter)
    for name, tensor in in_files.items():
        assert torch.equal(tensor, in_memory[name]), name
        if share and name.endswith("lora_B.weight"):
            kept_rows = tensor.any(dim=1)  # rows that were not reset are scaled
            assert torch.equal(tensor[kept_rows], (before[name] * (1 - share))[kept_rows])
    assert bool(result.changed_parameters)
    # The slow obvious version: the same plan on merged weights.
    apply_plan(merged, moved(share, *entries), base=load_checkpoint(base))
    for name, tensor in weights(merged).items():
        torch.testing.assert_close(weights(loaded)[name], tensor, rtol=0, atol=2e-6)
    assert (logits(merged) - logits(load_checkpoint(adapter, base=base))).abs().max() > 0.1
    torch.testing.assert_close(served(tmp_path / "memory", base), logits(loaded), rtol=0, atol=1e-4)
    if share == 1:
        assert all(torch.equal(t, theirs[n]) for n, t in weights(loaded).items())


def test_a_repair_trains_the_adapter_s_own_matrices_and_nothing_else(
    base: Path, tmp_path: Path
) -> None:
    adapter = adapt(tmp_path / "adapter", base)
    loaded, theirs = kept(adapter, base), load_checkpoint(base)
    names = set(loaded.model.state_dict())
    result = repair(loaded, corpus_of(), settings_of(ANCHOR, epochs=24), base=theirs)
    losses = [step["ordinary"] for step in result.curve]
    assert sum(losses[-6:]) < sum(losses[:6])
    assert set(loaded.model.state_dict()) == names
    save_checkpoint(loaded, tmp_path / "out")
    before, after = matrices(adapter), matrices(tmp_path / "out")
    assert before.keys() == after.keys()
    assert not any(torch.equal(tensor, after[name]) for name, tensor in before.items())
    model = PeftModel.from_pretrained(load_checkpoint(base).model, tmp_path / "out")
    for name, tensor in model.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(tensor, weights(theirs)[name.replace(".base_layer", "")]), name
    torch.testing.assert_close(served(tmp_path / "out", base), logits(loaded), rtol=0, atol=1e-4)
    # What was trained is what was written: the loss goes on where it ended.
    again = kept(tmp_path / "out", base)
    on = repair(again, corpus_of(), settings_of(ANCHOR, epochs=1, learning_rate=1e-9), base=theirs)
    assert on.curve[0]["ordinary"] < sum(losses[:6]) / 6


def test_a_repair_of_the_last_layers_leaves_the_others_matrices(
    llama: Path, tmp_path: Path
) -> None:
    adapter = adapt(tmp_path / "adapter", llama)
    loaded = kept(adapter, llama)
    repair(loaded, corpus_of(), settings_of(ANCHOR, last_layers=1), base=load_checkpoint(llama))
    save_checkpoint(loaded, tmp_path / "out")
    before, after = matrices(adapter), matrices(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.2." in name}


def test_an_adapter_in_bfloat16_is_judged_as_it_is_written(llama: Path, tmp_path: Path) -> None:
    adapter = adapt(tmp_path / "adapter", llama)
    halves = {name: tensor.bfloat16() for name, tensor in matrices(adapter).items()}
    save_file(halves, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    loaded = kept(adapter, llama)
    repair(loaded, corpus_of(), settings_of(ANCHOR, epochs=2), base=load_checkpoint(llama))
    save_checkpoint(loaded, tmp_path / "out")
    assert {tensor.dtype for tensor in matrices(tmp_path / "out").values()} == {torch.bfloat16}
    torch.testing.assert_close(
        logits(load_checkpoint(tmp_path / "out", base=llama)), logits(loaded), rtol=0, atol=0
    )


def test_a_model_that_its_adapter_does_not_give_is_not_written(llama: Path, tmp_path: Path) -> None:
    """Whatever changed the merged weights: their figures would not be of what is written."""
    adapter = adapt(tmp_path / "adapter", llama)
    loaded = kept(adapter, llama)
    save_checkpoint(loaded, tmp_path / "control")
    with torch.no_grad():
        loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="is another model than the one in memory"):
        save_checkpoint(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    trained = kept(adapter, llama)
    train(trained, corpus_of(), settings_of(ANCHOR.model_copy(update={"to": "self"}), epochs=1))
    with pytest.raises(CheckpointError, match="is another model than the one in memory"):
        save_checkpoint(trained, tmp_path / "out")
    fresh = kept(adapter, llama)  # and where the base's files are others than those that were read
    other = write(tmp_path / "other", checkpoint(config_of("llama"), seed=9))
    for file in llama.glob("model*"):
        (other / file.name).replace(file)
    with pytest.raises(CheckpointError, match="is another model than the one in memory"):
        save_checkpoint(fresh, tmp_path / "out")


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, r"is not plain LoRA \(DoRA\)"),
    ({"modules_to_save": ["lm_head"]}, r"it holds 'base_model.model.lm_head.weight'"),
    ({"bias": "lora_only"}, r"it holds 'base_model.model.*bias'"),
    ({"trainable_token_indices": [3]}, r"it holds 'base_model.model.model.embed_tokens.*'"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_an_adapter_that_is_more_than_lora_is_refused(
    llama: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    adapter = adapt(tmp_path / "adapter", llama, **settings)
    load_checkpoint(adapter, base=llama)
    with pytest.raises(CheckpointError, match=message) as caught:
        kept(adapter, llama)
    assert str(caught.value).endswith(
        "leave output out: then it is merged, and a whole checkpoint is written"
    )


def test_a_whole_model_cannot_stay_an_adapter(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a whole model and no adapter; leave output"):
        load_checkpoint(llama, keep_adapter=True)
    with pytest.raises(CheckpointError, match="has no adapter of its own"):
        change_adapter(load_checkpoint(llama), {})


def wider(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, torch.inf) for name, tensor in tensors.items()}


def test_what_no_adapter_can_hold_is_refused_and_changes_nothing(
    llama: Path, tmp_path: Path
) -> None:
    adapter = adapt(tmp_path / "adapter", llama, target_modules=["q_proj"])
    loaded = kept(adapter, llama)
    digest = loaded.weights_digest()
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: apply_plan(loaded, plan("zero", *MIXED)), SelectionError, "inside an adapter"),
        (
            lambda: apply_plan(loaded, plan("rewind", (0, "mlp", [1]))),
            SelectionError,
            "updates none of the chosen neurons",
        ),
        (
            lambda: repair(
                loaded,
                corpus_of(),
                settings_of(ANCHOR, adapter={"rank": 2}),
                base=load_checkpoint(llama),
            ),
            RepairError,
            "leave repair.adapter out",
        ),
        (lambda: change_adapter(loaded, wider(matrices(adapter))), CheckpointError, "infinity"),
    ]
    for work, kind, message in cases:
        with pytest.raises(kind, match=message):
            work()
        assert loaded.weights_digest() == digest
    apply_plan(loaded, plan("rewind", (0, "attention", [1])))
    assert loaded.weights_digest() != digest
