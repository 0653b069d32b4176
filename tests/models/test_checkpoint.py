"""Model folders: what is written, that it is written whole or not at all, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    MistralConfig,
    Qwen2Config,
)

from sani.erasing.reinit import fresh_model
from sani.errors import CheckpointError, WriteError
from sani.models.bases import architecture_difference
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.models.folder import open_folder
from sani.models.folder_files import TOKENIZER_FILES
from tests.support.architectures import EVERY, tiny_config, tiny_tokenizer
from tests.support.folders import (
    CANARY,
    COMMON,
    CONFIGS,
    LEFTOVERS,
    WORDS,
    contents,
    no_space,
    small_files,
    write_source,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "ward-3" / "source", CONFIGS["tied"]())


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[0, 2, 3, 4, 9, 2, 5]])).logits


def adds(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


# ---- save and load ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", sorted(CONFIGS))
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, config: str) -> None:
    source = write_source(tmp_path / "source", CONFIGS[config]())
    loaded = load_checkpoint(source)
    reference = AutoModelForCausalLM.from_pretrained(source, local_files_only=True)
    assert logits(reference).abs().max() > 1e-2
    assert torch.equal(logits(loaded.model), logits(reference))
    assert not loaded.model.training

    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[3, 5] += 1
    save_checkpoint(loaded, tmp_path / "result")
    again = load_checkpoint(tmp_path / "result")
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert not torch.equal(logits(again.model), logits(reference))
    assert again.weights_digest() == loaded.weights_digest()
    text = "a b name c a"
    assert again.tokenizer(text) == loaded.tokenizer(text)
    plain = AutoTokenizer.from_pretrained(tmp_path / "result", local_files_only=True)
    assert plain(text)["input_ids"] == [3, 4, 2, 5, 3]


@pytest.mark.parametrize("change", ["value", "sign of zero", "name"])
def test_the_digest_sees_every_bit(source: Path, change: str) -> None:
    loaded = load_checkpoint(source)
    digest = loaded.weights_digest()
    assert load_checkpoint(source).weights_digest() == digest
    weight = loaded.model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        if change == "value":
            weight[3, 3] = torch.nextafter(weight[3, 3], torch.tensor(9.0))
        elif change == "sign of zero":
            weight[3, 3] = 0.0
            digest = loaded.weights_digest()
            weight[3, 3] = -0.0
        else:
            mlp = loaded.model.model.layers[1].mlp
            mlp.up_proj, mlp.gate_proj = mlp.gate_proj, mlp.up_proj
    assert loaded.weights_digest() != digest


@pytest.mark.parametrize("config", ["tied", "gpt2"])
def test_tied_weights_stay_tied(tmp_path: Path, config: str) -> None:
    source = write_source(tmp_path / "source", CONFIGS[config]())
    loaded = load_checkpoint(source)
    save_checkpoint(loaded, tmp_path / "result")
    assert "lm_head.weight" not in load_file(tmp_path / "result" / "model.safetensors")
    model = load_checkpoint(tmp_path / "result").model
    embedding = model.get_input_embeddings().weight
    assert embedding.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    before = logits(model)
    with torch.no_grad():
        embedding[7] = 0
    assert (logits(model)[..., 7] == 0).all()
    assert (before[..., 7] != 0).all()


def test_half_precision_and_shards_are_read_in_full_precision(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", CONFIGS["untied"]())
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    for file in source.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(source, max_shard_size="3KB")
    assert (source / "model.safetensors.index.json").exists()
    assert len(list(source.glob("model-*.safetensors"))) > 1
    loaded = load_checkpoint(source)
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].float()), name


@pytest.mark.parametrize("config", ["tied", "untied", "gpt2"])
def test_each_weight_is_written_in_the_type_that_it_came_in(tmp_path: Path, config: str) -> None:
    source = write_source(tmp_path / "source", CONFIGS[config]())
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:
            parameter.data = parameter.data.float() + 2**-20  # no bfloat16 holds it
        elif "bias" in name:
            parameter.data = parameter.data.half()
    model.save_pretrained(source)
    before = load_file(source / "model.safetensors")
    assert len({tensor.dtype for tensor in before.values()}) > 1
    loaded = load_checkpoint(source)
    digest, type_ = loaded.weights_digest(), loaded.model.config.dtype
    save_checkpoint(loaded, tmp_path / "result")
    after = load_file(tmp_path / "result" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name
    assert json.loads((tmp_path / "result" / "config.json").read_text())["dtype"] == "bfloat16"
    # Who saves goes on with the same model.
    assert loaded.weights_digest() == digest
    assert loaded.model.config.dtype == type_
    assert load_checkpoint(tmp_path / "result").weights_digest() == digest


def half(folder: Path, name: str, *, dtype: Any = torch.bfloat16) -> Path:
    """A family's tiny model in half precision, as transformers writes it."""
    fresh_model(tiny_config(name), seed=1).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", EVERY)
def test_every_family_keeps_its_types(name: str, tmp_path: Path) -> None:
    source = half(tmp_path / "source", name)
    loaded = load_checkpoint(source)
    save_checkpoint(loaded, tmp_path / "result")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("source", "result"))
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype, key
        assert torch.equal(after[key], tensor), key
    assert sum(tensor.dtype == torch.bfloat16 for tensor in before.values()) > 10
    config = json.loads((tmp_path / "result" / "config.json").read_text())
    inner = [value for value in config.values() if isinstance(value, dict)]
    nested = [value["dtype"] for value in inner if "dtype" in value]
    assert {config["dtype"], *nested} == {"bfloat16"}
    assert load_checkpoint(tmp_path / "result").weights_digest() == loaded.weights_digest()


def test_a_tied_tensor_has_its_type_by_whatever_name_the_files_call_it(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", CONFIGS["tied"]())
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    own = load_file(source / "model.safetensors")
    own["lm_head.weight"] = own.pop("model.embed_tokens.weight")
    save_file(own, source / "model.safetensors", metadata={"format": "pt"})
    save_checkpoint(load_checkpoint(source), tmp_path / "result")
    after = load_file(tmp_path / "result" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "result" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_interrupt_amid_the_conversion_leaves_the_model_in_full_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(half(tmp_path / "source", "llama"))
    digest, calls, to = loaded.weights_digest(), [], torch.Tensor.to

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return to(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(loaded, tmp_path / "result")
    assert len(calls) == 10
    assert loaded.weights_digest() == digest
    assert not (tmp_path / "result").exists()


def test_a_number_too_large_for_its_type_is_refused(tmp_path: Path) -> None:
    loaded = load_checkpoint(half(tmp_path / "source", "llama", dtype=torch.float16))
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        loaded.model.get_parameter(name)[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=f"tensor '{name}' holds numbers that are too large"):
        loaded.round_weights()


def test_a_base_in_full_precision_is_known_behind_the_rounding(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", CONFIGS["untied"]())
    whole = load_checkpoint(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(source)
    rounded = load_checkpoint(source)
    assert rounded.weights_digest() != whole.weights_digest()
    assert rounded.has_weights_of(whole)
    assert whole.has_weights_of(rounded)
    with torch.no_grad():
        rounded.model.get_input_embeddings().weight[3, 3] *= 1.01
    assert not rounded.has_weights_of(whole)
    assert not whole.has_weights_of(rounded)


def test_the_same_weights_are_known_tied_or_not(tmp_path: Path) -> None:
    tied = load_checkpoint(write_source(tmp_path / "tied", CONFIGS["tied"]()))
    own = load_file(tmp_path / "tied" / "model.safetensors")
    shutil.copytree(tmp_path / "tied", tmp_path / "untied")
    config = json.loads((tmp_path / "tied" / "config.json").read_text())
    (tmp_path / "untied" / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": False})
    )
    own["lm_head.weight"] = own["model.embed_tokens.weight"].clone()
    save_file(own, tmp_path / "untied" / "model.safetensors", metadata={"format": "pt"})
    untied = load_checkpoint(tmp_path / "untied")
    assert untied.has_weights_of(tied)
    assert tied.has_weights_of(untied)
    assert architecture_difference(tied, untied) is None
    with torch.no_grad():
        untied.model.lm_head.weight[2, 2] += 1
    assert not untied.has_weights_of(tied)


def test_a_save_that_fails_leaves_the_model_in_full_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", CONFIGS["untied"]())
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    loaded = load_checkpoint(source)
    digest = loaded.weights_digest()
    monkeypatch.setattr(type(loaded.model), "save_pretrained", no_space)
    refused_save(tmp_path, loaded)
    assert loaded.weights_digest() == digest


def test_rounding_is_to_the_nearest_value_that_the_files_hold(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", CONFIGS["untied"]())
    whole = load_checkpoint(source)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    half = load_checkpoint(source)
    for loaded in (whole, half):
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.copy_(torch.linspace(0.3, 0.7, parameter.numel()).view_as(parameter))
    exact = {name: tensor.clone() for name, tensor in whole.model.named_parameters()}
    whole.round_weights()
    half.round_weights()
    for name, tensor in half.model.named_parameters():
        assert torch.equal(whole.model.get_parameter(name), exact[name])
        assert torch.equal(tensor, exact[name].bfloat16().float())
        assert not torch.equal(tensor, exact[name])


LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (CONFIGS["tied"](), 32),
        (CONFIGS["gpt2"](), 32),
        (MistralConfig(**COMMON, sliding_window=8), 32),
        (MistralConfig(**COMMON, sliding_window=None), 32),
        (MistralConfig(**COMMON, sliding_window=4096), 32),
        (Qwen2Config(**COMMON, sliding_window=8, use_sliding_window=False), 32),
        (Qwen2Config(**COMMON, sliding_window=8, use_sliding_window=True), 32),
        (tiny_config("phi3"), 64),
        (tiny_config("phi3", original_max_position_embeddings=16, rope_scaling=LONG), 16),
        (tiny_config("gemma3", sliding_window=12), 64),  # nested
        (BloomConfig(vocab_size=16, hidden_size=16, n_layer=1, n_head=2), 2048),  # no end
        (tiny_config("roberta"), 64 - 1),
    ],
)
def test_the_context_ends_where_the_positions_do(config: Any, tokens: int) -> None:
    found = Checkpoint(fresh_model(config, seed=0), None, Path("nowhere"))
    assert found.context_tokens == tokens


# ---- what goes into the result ---------------------------------------------------------------


def test_only_files_of_the_allow_list_are_written(tmp_path: Path, source: Path) -> None:
    for name in LEFTOVERS:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(CANARY)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "merges.txt").write_text("#version: 0.2\n")
    result = tmp_path / "result"
    save_checkpoint(load_checkpoint(source), result, finish=adds("MODEL_CARD.md", "card"))
    assert set(contents(result)) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "merges.txt",
        "MODEL_CARD.md",
    }
    assert not [path for path in result.rglob("*") if path.is_dir()]
    assert not set(LEFTOVERS) & set(TOKENIZER_FILES)
    assert CANARY.encode() in b"".join(contents(source).values())
    assert CANARY.encode() not in b"".join(contents(result).values())
    assert (result / "MODEL_CARD.md").read_text() == "card"


def test_no_path_of_the_source_is_written(tmp_path: Path, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["_name_or_path"] = str(source)
    (source / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(source)
    assert loaded.model.config._name_or_path == str(source)  # it is there to be written
    save_checkpoint(loaded, tmp_path / "result")
    assert set(contents(tmp_path / "result")) > {"config.json", "model.safetensors"}
    for name, content in contents(tmp_path / "result").items():
        assert b"ward-3" not in content, name
        assert str(tmp_path).encode() not in content, name


def test_an_old_result_is_replaced_by_the_new_one_alone(tmp_path: Path, source: Path) -> None:
    loaded, result = load_checkpoint(source), tmp_path / "result"
    save_checkpoint(loaded, result, finish=adds("old.md", "old"))
    assert "old.md" in contents(result)
    (tmp_path / ".result.partial").mkdir()  # of a run that was killed
    (tmp_path / ".result.partial" / "rest").write_text(CANARY)
    save_checkpoint(loaded, result)
    assert not {"old.md", "rest"} & set(contents(result))
    assert sorted(os.listdir(tmp_path)) == ["result", "ward-3"]


# ---- whole or not at all ---------------------------------------------------------------------


def refused_save(tmp_path: Path, loaded: Any, place: str = "result") -> str:
    with pytest.raises(WriteError) as caught:
        save_checkpoint(loaded, tmp_path / place, finish=adds("new.md", "new"))
    assert caught.value.__suppress_context__
    return str(caught.value).replace(str(tmp_path), "TMP")


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("step", ["weights", "tokenizer", "flush", "rename"])
def test_a_full_disk_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, step: str, there_before: bool
) -> None:
    loaded, result = load_checkpoint(source), tmp_path / "result"
    if there_before:
        save_checkpoint(loaded, result, finish=adds("old.md", "old"))
    before = contents(tmp_path)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.zero_()
    reason = "No space left on device"
    if step == "weights":  # a real refusal by the kernel, in the middle of the file
        assert (source / "model.safetensors").stat().st_size > 4000
        with small_files(4000):
            message = refused_save(tmp_path, loaded)
        reason = "SafetensorError"
    else:
        if step == "rename":
            rename = os.rename

            def fails_on_the_new_one(old: Any, new: Any) -> None:
                no_space() if str(old).endswith(".partial") else rename(old, new)

            monkeypatch.setattr(os, "rename", fails_on_the_new_one)
        elif step == "tokenizer":
            monkeypatch.setattr(shutil, "copyfile", no_space)
        else:
            monkeypatch.setattr(os, "fsync", no_space)
        message = refused_save(tmp_path, loaded)
        monkeypatch.undo()
    assert message == (
        f"cannot write TMP/result ({reason}); nothing was left half-written: free space or choose "
        "another --out"
    )
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == (["result", "ward-3"] if there_before else ["ward-3"])
    save_checkpoint(loaded, result, finish=adds("new.md", "new"))  # with space again
    assert set(contents(result)) > {"new.md"}
    assert "old.md" not in contents(result)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused_save(tmp_path, load_checkpoint(source), "file/result") == (
        "cannot write TMP/file/result (Not a directory); nothing was left half-written: choose "
        "another --out"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckpointError])
def test_an_interrupt_leaves_nothing_half_written(
    tmp_path: Path, source: Path, error: type
) -> None:
    def stops(folder: Path) -> None:
        assert (folder / "model.safetensors").exists()
        raise error

    with pytest.raises(error):
        save_checkpoint(load_checkpoint(source), tmp_path / "result", finish=stops)
    assert os.listdir(tmp_path) == ["ward-3"]


# ---- what is refused -------------------------------------------------------------------------


def refusal(path: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    return str(caught.value)


LOCAL = (
    "sani reads local folders only (no download): copy config.json, model.safetensors and the "
    "tokenizer files into one"
)


def test_what_is_no_folder_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_folder(source).path == source
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for path in ("ward-3/missing", tmp_path / "missing"):
        assert refusal(path) == f"model folder {path} does not exist; {LOCAL}"
    for name in ("gpt2", "org/some-1B"):
        local = f"models/{name.rpartition('/')[2]}"
        assert refusal(name) == (
            f"model folder {name} does not exist; {LOCAL}. If it is a name on the Hugging Face "
            f"hub: hf download {name} --local-dir {local}, on a machine with a network, then give "
            f"{local}"
        )
    assert refusal("file") == f"model folder file is a file, not a folder; {LOCAL}"


def remove(*names: Any) -> Any:
    return lambda folder: [(folder / name).unlink() for name in names]


def rename(old: Any, new: Any) -> Any:
    return lambda folder: (folder / old).rename(folder / new)


def edit_config(**values: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return edit


def write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def edit_weights(edit: Any) -> Any:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def set_value(name: str, value: Any) -> Any:
    def edit(tensors: Any) -> None:
        tensors[name].view(-1)[5] = value

    return edit_weights(edit)


def both(*changes: Any) -> Any:
    return lambda folder: [change(folder) for change in changes]


FAST = (
    "has no tokenizer.json; sani needs a fast tokenizer, which alone can tell where a token stands "
    "in the text: save one with AutoTokenizer(...).save_pretrained"
)
SAFE = "save it with save_pretrained(..., safe_serialization=True)"
CUT = "is cut off or damaged (SafetensorError); copy or download it again"
NO_JSON = "is not valid JSON in UTF-8 without a byte order mark; copy it again, or correct it"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), " has no config.json; is it a checkpoint folder?"),
        (
            both(remove("config.json"), write("adapter_config.json", "{}")),
            ": expected adapter_model.safetensors, found no weights; save it with peft's "
            "save_pretrained(..., safe_serialization=True)",
        ),
        (
            write("adapter_config.json", "{}"),
            " holds an adapter beside a model; merge it (peft: merge_and_unload), or remove the "
            "adapter's files if it is merged already",
        ),
        (
            rename("model.safetensors", "pytorch_model.bin"),
            ": expected model.safetensors, found pickled weights (.bin), which sani never loads; "
            + SAFE,
        ),
        (
            remove("model.safetensors"),
            f": expected model.safetensors, found no weights; {SAFE}",
        ),
        (remove("tokenizer.json"), f" {FAST}"),
        (both(remove("tokenizer.json"), write("vocab.txt", "a\nb\n")), f" {FAST}"),
        (write("config.json", '{"model_type": '), f": config.json {NO_JSON}"),
        (
            edit_config(quantization_config={"quant_method": "gptq", "bits": 4}),
            " is quantized (GPTQ); neurons of quantized weights cannot be reset: give the "
            "checkpoint it was quantized from",
        ),
        (
            write("model.safetensors", "garbage"),
            f": model.safetensors {CUT}",
        ),
        (set_value(NORM, float("nan")), f": tensor '{NORM}' holds NaN or infinity"),
        (set_value(NORM, float("inf")), f": tensor '{NORM}' holds NaN or infinity"),
        (set_value(NORM, float("-inf")), f": tensor '{NORM}' holds NaN or infinity"),
        (
            edit_weights(lambda tensors: tensors.pop(NORM)),
            ": 1 tensors are missing and 0 have another shape than config.json says (the first is "
            f"'{NORM}'); are config.json and the weights of one model, and whole?",
        ),
    ],
)
def test_a_folder_that_is_no_plain_checkpoint_is_refused(
    source: Path, change: Callable[..., Any], message: str
) -> None:
    load_checkpoint(source)
    change(source)
    assert refusal(source) == f"model folder {source}{message}"


def test_weights_of_another_shape_are_refused(source: Path) -> None:
    edit_config(intermediate_size=32)(source)
    assert refusal(source).startswith(f"model folder {source}")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    exact = write_source(tmp_path / "exact", CONFIGS["tied"]())
    assert len(load_checkpoint(exact).tokenizer) == len(WORDS)
    source = write_source(tmp_path / "source", CONFIGS["tied"](), words=[*WORDS, "extra"])
    assert refusal(source) == (
        f"model folder {source}: the tokenizer has 12 tokens, the model 11; give the tokenizer "
        "that it was trained with"
    )


def test_pickles_beside_the_weights_are_never_loaded(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (trap,))

    torch.save(Trap(), tmp_path / "copy" / "training_args.bin")
    torch.load(tmp_path / "copy" / "training_args.bin", weights_only=False)
    assert trap.exists()  # the trap works
    trap.unlink()
    loaded = load_checkpoint(tmp_path / "copy")
    assert loaded.weights_digest() == load_checkpoint(source).weights_digest()
    torch.save(Trap(), tmp_path / "copy" / "pytorch_model.bin")
    assert "weight files that loading does not read (1 bin)" in refusal(tmp_path / "copy")
    assert not trap.exists()


def test_remote_code_is_never_run(source: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    code = f"open({str(trap)!r}, 'w')\nfrom transformers import LlamaForCausalLM as Mine\n"
    (source / "modeling_mine.py").write_text(code)
    edit_config(auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})(source)
    load_checkpoint(source)
    assert not trap.exists()


def test_an_eager_configuration_does_not_change_what_is_read(tmp_path: Path) -> None:
    """Eager attention would add a mask of booleans as 0 and 1, and see the future."""
    from sani.auditing.rows import Row
    from sani.auditing.teacher_forcing import score

    folder = write_source(tmp_path / "model", CONFIGS["tied"]())
    row = Row([1, 2, 3, 4, 5, 6])
    row.add_branch(2, [7, 8, 9], [0, 1, 2])
    row.reads.append((4, 6, 3))
    plain = score(load_checkpoint(folder).model, [row], num_slots=4, batch_tokens=64)
    for key in ("attn_implementation", "_attn_implementation"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: "eager"}))
        found = score(load_checkpoint(folder).model, [row], num_slots=4, batch_tokens=64)
        assert abs(found.log_probability - plain.log_probability).max() < 1e-5
    eager = load_checkpoint(folder).model
    eager.set_attn_implementation("eager")
    found = score(eager, [row], num_slots=4, batch_tokens=64)
    assert abs(found.log_probability - plain.log_probability).max() < 1e-5


def test_tensors_that_the_configuration_has_no_place_for_are_refused(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "model", CONFIGS["tied"]())
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="have no place in the model"):
        load_checkpoint(folder)
