"""Streamed models: the numbers of those in memory to the last bit, one part read at a time."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sani.attacking.attack import attack
from sani.auditing.rows import Row
from sani.auditing.sampler import DEFAULT_SAMPLER
from sani.auditing.sampling import sample_documents
from sani.auditing.teacher_forcing import ScoreRequest, Scores, score
from sani.corpus.documents import Corpus, Document, Span
from sani.erasing.erase import erase
from sani.errors import CheckpointError, UnsupportedModelError
from sani.models import families
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from sani.models.folder import open_folder
from sani.models.parts import largest_part
from sani.models.passes import PassGroup, PausingPasses
from sani.models.streaming import (
    WeightStream,
    run_passes,
    stream_of,
    tensors_of,
)
from sani.recipe import complete_repair_settings
from sani.repairing.repair import repair
from tests.support.architectures import EVERY, tiny_tokenizer
from tests.support.folders import CONFIGS, write_source
from tests.support.neurons import random_model
from tests.support.optional import present

CPU = torch.device("cpu")


def rows_of(model: Any) -> list[Row]:
    """Rows of several lengths, with decoys that share tokens where the family has them."""
    chance = torch.Generator().manual_seed(0)
    end = min(16, model.get_input_embeddings().weight.shape[0])
    source: Any = ()
    if families.family_of(model.config).objective == "seq2seq":
        source = torch.randint(2, end, (7,), generator=chance).tolist()
    rows = []
    for number, length in enumerate((9, 6, 12)):
        tokens = torch.randint(2, end, (length,), generator=chance).tolist()
        first = 8 * number
        row = Row(tokens, source=source)
        row.reads += [(position, tokens[position], first + position) for position in range(3)]
        if not families.is_masked(model.config):
            row.add_branch(2, [7, 8, 9], [first + 3, first + 4, first + 5])
            row.add_branch(2, [7, 5], [first + 6, first + 7])
        rows.append(row)
    return rows


def scored(model: Any) -> Scores:
    """The scores of these rows, two of them in a batch."""
    request = ScoreRequest(num_ranked=24, num_sampled=24, sampler=DEFAULT_SAMPLER)
    return score(model, rows_of(model), num_slots=24, batch_tokens=24, request=request)


@pytest.mark.parametrize("name", EVERY)
def test_a_streamed_model_of_every_family_gives_the_numbers_of_one_in_memory(
    name: str, tmp_path: Path
) -> None:
    random_model(name).float().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    memory = load_checkpoint(tmp_path)
    streamed = load_checkpoint(tmp_path, placement="stream")
    expected, found = scored(memory.model), scored(streamed.model)
    assert np.isfinite(expected.log_probability).sum() >= 9
    assert (
        np.nanstd(expected.log_probability) > 0.1
    )  # it is no model that says the same of all tokens
    for field in ("log_probability", "sampled", "likeliest", "rank"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    assert streamed.weights_digest() == memory.weights_digest()
    again = load_checkpoint(tmp_path, placement="stream")
    assert streamed.has_weights_of(again)
    assert present(stream_of(streamed.model)).has_files_of(present(stream_of(again.model)))
    assert all(tensor.is_meta for tensor in streamed.model.parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_source(tmp_path / "model", CONFIGS["untied"]())


def test_one_part_is_in_memory_at_a_time_and_each_is_read_once_for_all_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_checkpoint(folder, placement="stream").model
    stream = present(stream_of(model))
    reads: list[str] = []
    held: list[int] = []
    read = stream._read

    def watched(names: Any) -> Any:
        reads.extend(names := list(names))
        return read(names)

    def measure(module: Any, inputs: Any) -> None:
        there = {id(p): p for p in model.parameters() if not p.is_meta}
        held.append(sum(4 * p.numel() for p in there.values()))

    monkeypatch.setattr(stream, "_read", watched)
    for module in model.modules():
        module.register_forward_pre_hook(measure)
    scored(model)
    assert max(held) == largest_part(open_folder(folder))  # a layer; all of the model is larger
    assert max(held) < sum(4 * p.numel() for p in model.parameters()) / 2
    layers = [name for name in reads if ".layers." in name]
    assert len(layers) == len(set(layers)) == 18
    # Three batches, texts and trees: without the pausing each would have read all layers.
    reads.clear()
    with torch.no_grad():
        for _ in range(3):
            model(input_ids=torch.tensor([[1, 2, 3]]))
    assert len([name for name in reads if ".layers." in name]) >= 3 * 18


def test_few_texts_are_held_at_a_time_where_memory_is_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_checkpoint(folder, placement="stream").model
    expected = scored(model)
    monkeypatch.setattr("sani.models.streaming.SWEEP_BYTES", 1)
    sweeps: list[int] = []
    run = PausingPasses.run

    def counted(self: Any, passes: Any, **options: Any) -> None:
        sweeps.append(len(passes))
        run(self, passes, **options)

    monkeypatch.setattr(PausingPasses, "run", counted)
    found = scored(model)
    np.testing.assert_array_equal(found.log_probability, expected.log_probability)
    assert len(sweeps) == 2  # a batch of two texts, and one of one; trees go with their texts
    assert max(sweeps) >= 2


def test_tied_weights_are_read_by_either_name(tmp_path: Path) -> None:
    tied = write_source(tmp_path / "tied", CONFIGS["tied"]())
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    model = load_checkpoint(tied, placement="stream").model
    tensors = dict(tensors_of(model))
    expected = load_checkpoint(tied).model.state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2"])
def test_kept_weights_are_trained_and_written_and_all_else_keeps_its_bytes(
    kind: str, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "model", CONFIGS[kind]())
    checkpoint = load_checkpoint(source, placement="stream")
    stream = present(stream_of(checkpoint.model))
    prefix = "transformer.h.1." if kind == "gpt2" else "model.layers.1."
    names = [name for name, _ in checkpoint.model.named_parameters() if name.startswith(prefix)]
    stream.keep(names)
    before = scored(checkpoint.model)
    assert not any(checkpoint.model.get_parameter(name).is_meta for name in names)
    with torch.no_grad():
        for name in names:
            checkpoint.model.get_parameter(name).add_(0.01)
    changed = scored(checkpoint.model)
    assert np.nanmax(abs(changed.log_probability - before.log_probability)) > 1e-3
    save_checkpoint(checkpoint, tmp_path / "out")
    written, original = (
        load_file(path / "model.safetensors") for path in (tmp_path / "out", source)
    )
    assert {name for name in original if not torch.equal(written[name], original[name])} == set(
        names
    )
    loaded = load_checkpoint(tmp_path / "out")
    np.testing.assert_array_equal(scored(loaded.model).log_probability, changed.log_probability)
    assert loaded.weights_digest() == checkpoint.weights_digest()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_that_the_model_stacks_are_written_one_by_one(name: str, tmp_path: Path) -> None:
    random_model(name).float().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model", placement="stream")
    names = [key for key, _ in checkpoint.model.named_parameters() if ".layers.1." in key]
    present(stream_of(checkpoint.model)).keep(names)
    with torch.no_grad():
        for key in names:
            checkpoint.model.get_parameter(key).mul_(1.5)
    save_checkpoint(checkpoint, tmp_path / "out")
    whole = load_checkpoint(tmp_path / "model")
    with torch.no_grad():
        for key in names:
            whole.model.get_parameter(key).mul_(1.5)
    assert load_checkpoint(tmp_path / "out").weights_digest() == whole.weights_digest()


def test_files_are_compared_in_the_coarser_of_their_types(folder: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder)
    for name, change in (("half", 0.0), ("other", 0.5)):
        shutil.copytree(folder, tmp_path / name)
        with torch.no_grad():
            whole.lm_head.weight[0, 0] += change
        whole.bfloat16().save_pretrained(tmp_path / name)
    streams = [load_checkpoint(path, placement="stream") for path in
               (folder, tmp_path / "half", tmp_path / "other")]  # fmt: skip
    memory = [load_checkpoint(path) for path in (folder, tmp_path / "half", tmp_path / "other")]
    for one in range(3):
        for other in range(3):
            same = streams[one].has_weights_of(streams[other])
            assert same == memory[one].has_weights_of(memory[other])
            assert same == ((one == 2) == (other == 2))


def test_an_adapter_is_not_streamed(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(CheckpointError, match="an adapter cannot be streamed; merge it first"):
        load_checkpoint(tmp_path / "adapter", base=folder, placement="stream")


# ---- passes ----------------------------------------------------------------------------------


def steps(log: list[str], passes: PausingPasses, name: str, layers: int) -> Callable[[], None]:
    def run() -> None:
        for layer in range(layers):
            passes.pause(layer)
            log.append(f"{name}{layer}")
        log.append(f"{name} ends")

    return run


def test_each_layer_runs_for_all_passes_before_the_next_in_their_order() -> None:
    log: list[str] = []
    passes = PausingPasses()
    runs = [steps(log, passes, name, layers) for name, layers in (("a", 2), ("b", 3), ("c", 0))]
    passes.run(runs, prepare=lambda layer: log.append(f"read {layer}"))
    assert log == [
        "c ends", "read 0", "a0", "b0", "read 1", "a1", "a ends", "b1", "read 2", "b2", "b ends",
    ]  # fmt: skip
    assert not passes.active


def test_an_error_in_one_pass_ends_all_and_the_next_run_works() -> None:
    log: list[str] = []
    passes = PausingPasses()

    def careful() -> None:
        try:
            passes.pause(0)
        finally:
            log.append("cleaned up")

    def fails() -> None:
        passes.pause(0)
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        passes.run([fails, careful], prepare=lambda layer: None)
    assert log == ["cleaned up"]
    passes.run([steps(log, passes, "a", 1)], prepare=lambda layer: None)
    assert log == ["cleaned up", "a0", "a ends"]


def test_a_pass_that_reads_the_model_twice_waits_for_the_others(folder: Path) -> None:
    model = load_checkpoint(folder, placement="stream").model
    whole = load_checkpoint(folder).model
    ids = torch.tensor([[1, 2, 3, 4]])
    outputs: dict[str, Any] = {}

    def once(name: str) -> None:
        outputs[name] = model(input_ids=ids).logits

    def twice(name: str) -> None:
        first = model(input_ids=ids).logits
        outputs[name] = model(input_ids=first.argmax(-1)).logits

    run_passes(model, [PassGroup([partial(twice, "b"), partial(once, "a")], 8)])
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        assert torch.equal(outputs["a"], expected)
        assert torch.equal(outputs["b"], whole(input_ids=expected.argmax(-1)).logits)


def test_a_file_that_ends_early_is_named(folder: Path) -> None:
    stream = WeightStream(open_folder(folder), device=CPU)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="it ends before tensor"):
        dict(stream.tensors())


# ---- what a streamed model is refused for ----------------------------------------------------


def test_work_that_needs_the_weights_in_memory_says_so(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, placement="stream")
    corpus = Corpus([Document("1", "1", "a b", spans=(Span(0, 1, "NAME"),))])
    attempts: list[Callable[[], Any]] = [
        lambda: erase(checkpoint),
        lambda: repair(checkpoint, corpus, complete_repair_settings(has_base=False)),
        lambda: attack({"sanitized": checkpoint}, corpus),
        lambda: sample_documents(checkpoint, 1, new_tokens=4),
    ]
    for attempt in attempts:
        with pytest.raises(UnsupportedModelError, match="load it with placement: memory"):
            attempt()
