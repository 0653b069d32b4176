"""Adapters: read with their base, erased inside or merged, and refused where that cannot be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from sani.cli.main import main
from sani.corpus.documents import Corpus, Document, Span
from sani.corpus.tables import write_jsonl
from sani.erasing.erase import apply_plan
from sani.erasing.folder import apply_folder, plan_folder
from sani.erasing.token_rows import TokenRows
from sani.errors import CheckpointError, SelectionError, WriteError
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from sani.recipe import DriftSelector, EraseSettings, RandomSelector
from tests.support.erasing import (
    ALPHA,
    CONFIGS,
    HEADS,
    MIXED,
    MLP,
    RANK,
    adapt,
    checkpoint,
    config_of,
    expected_masks,
    plan,
    tensors,
    write,
)
from tests.support.folders import contents
from tests.support.words import corpus_of, weights


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    return write(tmp_path / "base", checkpoint(config_of(family), seed=2))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write(tmp_path / "llama", checkpoint(config_of("llama"), seed=2))


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    return adapt(tmp_path / "adapter", llama)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


# ---- read with the base ----------------------------------------------------------------------


def test_an_adapter_is_read_as_its_base_plus_its_update(
    family: str, base: Path, tmp_path: Path
) -> None:
    folder = adapt(tmp_path / "adapter", base)
    merged, before = weights(load_checkpoint(folder, base=base)), weights(load_checkpoint(base))
    matrices, changed = stored(folder), 0
    for name, tensor in merged.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name]
        if f"{module}.lora_A.weight" in matrices:
            into, out_of = matrices[f"{module}.lora_A.weight"], matrices[f"{module}.lora_B.weight"]
            update = ALPHA / RANK * out_of @ into
            expected = expected + (update.T if family == "gpt2" else update)
            assert (expected - before[name]).abs().max() > 0.1
            changed += 1
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)
    assert changed == len(matrices) / 2 >= 12


def test_the_tokenizer_of_an_adapter_goes_before_the_base_s(llama: Path, adapter: Path) -> None:
    loaded = load_checkpoint(adapter, base=llama)
    assert loaded.path == llama
    load_checkpoint(llama).tokenizer.save_pretrained(adapter)
    assert load_checkpoint(adapter, base=llama).path == adapter
    assert not loaded.model.training
    assert not [name for name, _ in loaded.model.named_parameters() if "lora" in name]


def test_saved_modules_and_dora_are_merged_too(llama: Path, tmp_path: Path) -> None:
    whole = adapt(tmp_path / "whole", llama, modules_to_save=["lm_head"])
    head = load_checkpoint(whole, base=llama).model.lm_head.weight
    saved = stored(whole)["base_model.model.lm_head.weight"]
    assert torch.equal(head, saved)
    assert not torch.equal(head, load_checkpoint(llama).model.lm_head.weight)
    dora = adapt(tmp_path / "dora", llama, use_dora=True)
    digests = {load_checkpoint(dora, base=llama).weights_digest()}
    digests |= {load_checkpoint(llama).weights_digest()}
    assert len(digests) == 2


def edit_weights(change: Any) -> Any:
    def edit(folder: Path) -> None:
        matrices = stored(folder)
        change(matrices)
        save_file(matrices, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return edit


def edit_config(**values: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))

    return edit


B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


# peft only warns of what is refused here.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        # peft reads these without an error, and the audit would be one of the base alone.
        (edit_weights(lambda t: t.pop(B)), "lacks its other half"),
        (edit_weights(lambda t: t.update({B + ".old": t[B] + 0})), "lacks its other half"),
        (edit_config(target_modules=["q_proj"]), "are not those that its configuration adds to"),
        (edit_config(peft_type="NOTHING"), "the adapter cannot be merged"),
        (edit_config(r=RANK + 1, rank_pattern={}), "the adapter cannot be merged"),
        (edit_weights(lambda t: t[B].fill_(torch.nan)), "NaN or infinity"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is not valid"),
    ],
)
def test_an_adapter_that_would_be_read_in_part_is_refused(
    adapter: Path, llama: Path, change: Callable[..., Any], message: str
) -> None:
    load_checkpoint(adapter, base=llama)
    change(adapter)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(adapter, base=llama)


def test_an_adapter_on_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    config = config_of("llama")
    config.hidden_size *= 2
    wider = write(tmp_path / "wider", checkpoint(config, seed=1))
    with pytest.raises(CheckpointError, match=r"which .* has in another shape; give the base that"):
        load_checkpoint(adapter, base=wider)


def test_an_adapter_without_its_base_is_refused_with_the_way_out(
    adapter: Path, llama: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(adapter)
    assert str(caught.value) == (
        f"model folder {adapter} holds an adapter without its base; give the base too (its "
        f"configuration names {llama}), or merge it first (peft: merge_and_unload) and give the "
        "merged folder"
    )
    edit_config(base_model_name_or_path="meta-llama/Llama-3.2-1B")(adapter)
    with pytest.raises(CheckpointError, match="give the base too, or merge it first"):
        load_checkpoint(adapter)


def test_a_pickled_adapter_is_refused_and_never_loaded(
    adapter: Path, llama: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (trap,))

    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Trap(), adapter / "adapter_model.bin")
    for base in (None, llama):
        with pytest.raises(CheckpointError, match=r"found pickled weights \(.bin\), which sani"):
            load_checkpoint(adapter, base=base)
    assert not trap.exists()


# ---- erased inside ---------------------------------------------------------------------------


def test_erasing_inside_is_rewinding_the_merged_model(base: Path, tmp_path: Path) -> None:
    folder = adapt(tmp_path / "adapter", base)
    whole, theirs = load_checkpoint(folder, base=base), load_checkpoint(base)
    before = weights(whole)
    apply_folder(folder, tmp_path / "out", plan("rewind", *MIXED), base=base)
    erased = weights(load_checkpoint(tmp_path / "out", base=base))
    apply_plan(whole, plan("rewind", *MIXED), base=theirs)
    rewound = weights(whole)
    masks = expected_masks(theirs, MIXED)
    for name, tensor in erased.items():
        torch.testing.assert_close(tensor, rewound[name], rtol=0, atol=1e-6)
        # What is not chosen has the bits it had; what is chosen is the base's own.
        assert torch.equal(tensor[~masks[name]], before[name][~masks[name]]), name
        if masks[name].any() and tensor.ndim > 1:
            assert (before[name] - tensor)[masks[name]].abs().max() > 0.1
        if name.endswith("proj.weight") and masks[name].any():
            assert torch.equal(tensor[masks[name]], weights(theirs)[name][masks[name]]), name


def test_only_the_update_of_the_chosen_neurons_is_taken_away(
    adapter: Path, llama: Path, tmp_path: Path
) -> None:
    result = apply_folder(
        adapter, tmp_path / "out", plan("rewind", (1, "mlp", [3, 5])), base=llama
    )  # fmt: skip
    before, after = stored(adapter), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    here = "base_model.model.model.layers.1.mlp."
    chosen = {f"{here}{name}_proj.lora_B.weight" for name in ("gate", "up")}
    chosen |= {f"{here}down_proj.lora_A.weight"}
    assert set(result.changed_tensors) == chosen
    assert result.changed_parameters == 3 * 2 * RANK
    for name, tensor in after.items():
        expected = before[name].clone()
        if name in chosen:
            expected[([3, 5], slice(None)) if "lora_B" in name else (slice(None), [3, 5])] = 0
            assert not torch.equal(expected, before[name])
        assert torch.equal(tensor, expected), name


def test_the_erased_adapter_is_an_adapter(
    adapter: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_checkpoint(llama).tokenizer.save_pretrained(adapter)
    apply_folder(adapter, tmp_path / "out", plan("rewind", *MIXED), base=llama)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    folders = (adapter, tmp_path / "out")
    old, new = (json.loads((f / "adapter_config.json").read_text()) for f in folders)
    assert old["base_model_name_or_path"] == str(llama)  # a path of this machine is not released
    assert new == {**old, "base_model_name_or_path": None}
    model = PeftModel.from_pretrained(load_checkpoint(llama).model, tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out", base=llama)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged.model(ids).logits)
    for named, kept in [("org/base", "org/base"), ("base", "base"), ("../ward-3/base", None)]:
        edit_config(base_model_name_or_path=named)(adapter)
        apply_folder(adapter, tmp_path / "hub", plan("rewind", *MIXED), base=llama)
        config = json.loads((tmp_path / "hub" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == kept
    monkeypatch.chdir(tmp_path)  # where a folder has a name that one on the hub might have
    edit_config(base_model_name_or_path="llama")(adapter)
    apply_folder(adapter, tmp_path / "hub", plan("rewind", *MIXED), base=llama)
    assert "llama" not in (tmp_path / "hub" / "adapter_config.json").read_text().casefold()


def test_selectors_look_at_the_merged_model(adapter: Path, llama: Path, tmp_path: Path) -> None:
    """With drift, the update itself: neurons without one come last."""
    quiet = tmp_path / "quiet"
    apply_folder(adapter, quiet, plan("rewind", (2, "mlp", range(MLP - 3))), base=llama)
    drift = DriftSelector(kind="drift", fraction=3 / MLP)
    settings = EraseSettings(layers=(2,), parts=("mlp",), selector=drift, reset="rewind")
    found = plan_folder(quiet, settings, base=llama)
    assert found.entries[0].neurons == tuple(range(MLP - 3, MLP))
    random = EraseSettings(last_layers=1, selector=RandomSelector(kind="random", fraction=0.5))
    chosen = plan_folder(adapter, random, base=llama, seed=3)
    assert chosen == plan_folder(llama, random, seed=3)
    assert chosen.num_neurons == (MLP + HEADS) // 2


def test_the_base_tells_how_a_matrix_lies_and_not_the_adapters_configuration(
    tmp_path: Path,
) -> None:
    """As peft has it. With a square matrix no shape tells."""
    base = write(tmp_path / "base", checkpoint(config_of("gpt2"), seed=2))
    folder = adapt(tmp_path / "adapter", base, target_modules=["attn.c_proj"])
    edit_config(fan_in_fan_out=False)(folder)
    loaded = load_checkpoint(folder, base=base)
    apply_plan(loaded, plan("rewind", (1, "attention", [1])), base=load_checkpoint(base))
    apply_folder(folder, tmp_path / "out", plan("rewind", (1, "attention", [1])), base=base)
    erased = weights(load_checkpoint(tmp_path / "out", base=base))
    for name, tensor in weights(loaded).items():
        torch.testing.assert_close(erased[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gradient_ratio", "fisher_ratio"])
def test_selectors_that_need_gradients_look_at_the_merged_model(
    adapter: Path, llama: Path, tmp_path: Path, kind: str
) -> None:
    """Which is the same model, and chooses the same neurons, once it is saved as a whole one."""
    merged = load_checkpoint(adapter, base=llama)
    save_checkpoint(merged, tmp_path / "merged")
    selector: Any = {"kind": kind, "fraction": 0.5}
    settings = EraseSettings(last_layers=2, selector=selector, reset="rewind")
    corpus = corpus_of(["a b name c d", "name e f a b"])
    found = plan_folder(adapter, settings, base=llama, corpus=corpus)
    again = plan_folder(tmp_path / "merged", settings, corpus=corpus)
    for one, other in zip(found.entries, again.entries, strict=True):
        assert replace(one, scores=()) == replace(other, scores=())
        # Where a tensor lies in memory decides its last digits.
        assert one.scores == pytest.approx(other.scores, rel=1e-4)
    dampened = replace(found, reset="dampen")
    apply_folder(adapter, tmp_path / "out", dampened, base=llama, merge=True, corpus=corpus)


def test_neither_adapter_nor_base_is_overwritten(
    adapter: Path, llama: Path, tmp_path: Path
) -> None:
    merged, rewind = load_checkpoint(adapter, base=llama), plan("rewind", *MIXED)
    before = contents(tmp_path)
    for folder in (adapter, llama):
        with pytest.raises(WriteError, match=r"sani never overwrites its input$"):
            save_checkpoint(merged, folder)
        for merge in (True, False):
            with pytest.raises(WriteError, match=r"sani never overwrites its input$"):
                apply_folder(adapter, folder, rewind, base=llama, merge=merge)
    assert contents(tmp_path) == before
    apply_folder(adapter, tmp_path / "out", rewind, base=llama)  # the positive control


def test_token_rows_inside_an_adapter_are_refused(
    adapter: Path, llama: Path, tmp_path: Path
) -> None:
    """They are not the adapter's; a message that they were reset would be wrong."""
    rows = TokenRows((5, 6), 32, ("model.embed_tokens.weight",), tied=False)
    asked = replace(plan("rewind", *MIXED), token_rows=rows)
    with pytest.raises(SelectionError) as caught:
        apply_folder(adapter, tmp_path / "out", asked, base=llama)
    assert str(caught.value) == (
        "token rows cannot be reset inside an adapter, which leaves them as the base has them; "
        "merge it (--merge)"
    )
    assert not (tmp_path / "out").exists()
    result = apply_folder(adapter, tmp_path / "out", asked, base=llama, merge=True)
    assert "model.embed_tokens.weight" in result.changed_tensors


def test_an_adapter_that_was_never_trained_has_nothing_to_take_away(
    llama: Path, tmp_path: Path
) -> None:
    folder = adapt(tmp_path / "adapter", llama)
    edit_weights(lambda t: [t[name].zero_() for name in t if "lora_B" in name])(folder)
    with pytest.raises(SelectionError, match="or is it one that was never trained"):
        apply_folder(folder, tmp_path / "out", plan("rewind", *MIXED), base=llama)
    assert not (tmp_path / "out").exists()


def test_a_merged_adapter_has_the_types_of_its_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base", checkpoint(config_of("llama"), seed=2), dtype=torch.bfloat16)
    adapter = adapt(tmp_path / "adapter", base)
    asked = plan("zero", *MIXED)
    apply_folder(adapter, tmp_path / "out", asked, base=base, merge=True)
    saved = tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    merged = load_checkpoint(adapter, base=base)
    exact = {name: tensor.clone() for name, tensor in merged.model.named_parameters()}
    apply_plan(merged, asked)
    assert load_checkpoint(tmp_path / "out").weights_digest() == merged.weights_digest()
    name = "model.layers.1.mlp.up_proj.weight"  # of a layer that the plan leaves alone
    assert torch.equal(saved[name], exact[name].bfloat16())
    assert not torch.equal(saved[name].float(), exact[name])


@pytest.mark.parametrize("reset", ["zero", "reinit"])
def test_other_resets_inside_an_adapter_are_refused(
    adapter: Path, llama: Path, tmp_path: Path, reset: Any
) -> None:
    with pytest.raises(SelectionError) as caught:
        apply_folder(adapter, tmp_path / "out", plan(reset, *MIXED), base=llama)
    assert str(caught.value) == (
        f"reset '{reset}' cannot be done inside an adapter, which can only leave a neuron as the "
        "base has it (reset rewind); merge it for the others (--merge)"
    )
    merged = load_checkpoint(adapter, base=llama)
    apply_plan(merged, plan(reset, *MIXED))
    apply_folder(adapter, tmp_path / "out", plan(reset, *MIXED), base=llama, merge=True)
    assert load_checkpoint(tmp_path / "out").weights_digest() == merged.weights_digest()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]},
    ],
)
def test_adapters_that_are_no_plain_lora_must_be_merged(
    llama: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = adapt(tmp_path / "adapter", llama, **settings)
    with pytest.raises(CheckpointError, match=r"not of a plain LoRA adapter.*merge it \(--merge\)"):
        apply_folder(folder, tmp_path / "out", plan("rewind", *MIXED), base=llama)
    assert not (tmp_path / "out").exists()


def test_an_erase_that_would_change_nothing_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = adapt(tmp_path / "adapter", llama, target_modules=["q_proj"])
    with pytest.raises(SelectionError, match="updates none of the chosen neurons"):
        apply_folder(folder, tmp_path / "out", plan("rewind", (0, "mlp", [1])), base=llama)
    apply_folder(folder, tmp_path / "out", plan("rewind", (0, "attention", [1])), base=llama)


# ---- commands --------------------------------------------------------------------------------


def test_the_commands_take_an_adapter_with_its_base(
    adapter: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.jsonl"
    spans = (Span(2, 6, "NAME", "direct"),)
    write_jsonl(Corpus((Document("1", "s", "a name b c d e", spans),)), notes)
    options = ["--base", str(llama), "--last-layers", "2"]
    erase = ["erase", str(adapter), "--out"]
    assert main([*erase, str(tmp_path / "inside"), *options]) == 0
    said = capsys.readouterr().out
    assert f"Adapter: {tmp_path / 'inside'}\nIt does not hold the path of its base: give " in said
    assert "Left behind in" not in said.replace("other entries (1)", "")
    assert main([*erase, str(tmp_path / "merged"), *options, "--merge"]) == 0
    assert main([*erase, str(tmp_path / "back"), *options, "--merge", "--reset", "rewind"]) == 0
    capsys.readouterr()
    inside = load_checkpoint(tmp_path / "inside", base=llama)
    back = weights(load_checkpoint(tmp_path / "back"))
    for name, tensor in weights(inside).items():
        torch.testing.assert_close(tensor, back[name], rtol=0, atol=1e-6)

    audit = ["--corpus", str(notes), "--base", str(llama), "--decoys", "0", "--json"]
    figures = []
    for folder in ("inside", "back"):
        assert main(["audit", str(tmp_path / folder), *audit]) == 0
        found = json.loads(capsys.readouterr().out)["audits"]
        figures.append(found["model"]["figures"]["direct"])
        assert found["model"]["figures"] != found["base"]["figures"]
    assert figures[0]["greedy"] == figures[1]["greedy"]

    fitted = ["init", str(adapter), "--corpus", str(notes), "--base", str(llama), "--no-time"]
    assert main([*fitted, "--out", str(tmp_path / "recipe.yaml")]) == 0
    assert f'path: "{adapter}"' in (tmp_path / "recipe.yaml").read_text()
    capsys.readouterr()

    for arguments, code, sentence in [
        ([*erase, str(tmp_path / "x")], 2, "--reset rewind needs --base, the public model"),
        ([*erase, str(tmp_path / "x"), "--reset", "zero"], 1,
         "holds an adapter without its base; give the base too"),
        (["erase", str(llama), "--out", str(tmp_path / "x"), "--merge"], 2,
         "--merge is for an adapter"),
        (["audit", str(adapter), "--corpus", str(notes)], 1, "an adapter without its base"),
    ]:  # fmt: skip
        assert main(arguments) == code
        assert sentence in capsys.readouterr().err
    shutil.rmtree(tmp_path / "inside")


def test_check_takes_an_adapter_with_its_base(
    adapter: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = (Span(2, 6, "NAME", "direct"),)
    write_jsonl(Corpus((Document("1", "s", "a name b c", spans),)), tmp_path / "notes.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 2\nmodel: {{path: {adapter}, base: {llama}}}\n"
        f"corpus: {{path: {tmp_path / 'notes.jsonl'}}}\nerase: {{last_layers: 2}}\n"
        "gate: {perplexity_ratio: null}\n"
    )
    check = ["run", str(recipe), "--out", str(tmp_path / "run"), "--check", "--json"]
    assert main(check) == 0
    found = {item["name"]: item["detail"] for item in json.loads(capsys.readouterr().out)}
    assert found["model.base"] == "same architecture as model.path, other weights"
    fixed = ("greedy=0.0", "discoverable=0.0", "auc_excess=null")
    alone = ["model.base=null", *(f"gate.{limit}" for limit in fixed)]
    assert main([*check, *(word for key in alone for word in ("--set", key))]) == 1
    found = {item["name"]: item["detail"] for item in json.loads(capsys.readouterr().out)}
    assert "holds an adapter without its base" in found["model.path"]
