"""Adapter in, adapter out: a LoRA that recites people is sanitized within, and PEFT loads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sani import run
from sani.errors import RecipeError
from sani.models.checkpoint import load_checkpoint
from sani.pipeline.preflight import check
from sani.recipe import load_recipe
from sani.releasing.manifest import verify
from tests.support.clinic import Clinic
from tests.support.recipes import write_recipe

SECTIONS = """\
seed: 3
output: adapter
audit: {decoys: 3}
erase: {interpolate_to_base: 0.9}
repair: {epochs: 2, learning_rate: 3e-3, batch_tokens: 768}
gate: {perplexity_ratio: 2.0}
"""
REWIND = "erase: {last_layers: all, reset: rewind, selector: {kind: random, fraction: 0.5}}"
SPANS = 24  # direct identifiers that greedy text is asked for
Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def leaky_adapter(clinic: Clinic, base_folder: Path, shared: Shared) -> Path:
    """A LoRA on the base, trained on the private notes by PEFT alone. Do not write."""

    def train(folder: Path) -> None:
        loaded = load_checkpoint(base_folder)
        torch.manual_seed(0)
        lora = LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(loaded.model, lora)
        bos = loaded.tokenizer.bos_token_id
        texts = [
            [bos, *loaded.tokenizer(document.text, add_special_tokens=False).input_ids]
            for document in clinic.private
        ]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(80):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / 80)
            for start in range(0, len(texts), 8):
                part = texts[start : start + 8]
                width = max(map(len, part))
                ids = torch.tensor([text + [bos] * (width - len(text)) for text in part])
                seen = torch.tensor([[n < len(text) for n in range(width)] for text in part])
                loss = model(
                    input_ids=ids,
                    attention_mask=seen.long(),
                    labels=torch.where(seen, ids, -100),
                ).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.save_pretrained(str(folder / "adapter"))

    return shared("leaky-adapter", train) / "adapter"


@pytest.fixture(scope="module")
def finished(
    clinic: Clinic,
    base_folder: Path,
    leaky_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("adapter-run")
    recipe = write_recipe(
        folder, SECTIONS, clinic=clinic, unsanitized=leaky_adapter, base=base_folder
    )
    run(load_recipe(recipe), folder / "run")
    return folder / "run"


def recited(clinic: Clinic, base: Path, adapter: Path | None) -> int:
    """Count the identifiers that PEFT's own greedy text says behind the text before them."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    spans = [(d, s) for d in clinic.private for s in d.spans if s.kind == "direct"][:SPANS]
    said = 0
    for document, span in spans:
        before, value = document.text[: span.start].rstrip(), document.text[span.start : span.end]
        ids = tokenizer(before, add_special_tokens=False).input_ids
        prompt = torch.tensor([[tokenizer.bos_token_id, *ids]])
        written = model.eval().generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )
        said += value in tokenizer.decode(written[0, prompt.shape[1] :])
    return said


@pytest.mark.long
def test_the_adapter_that_comes_out_is_the_model_that_was_audited(
    finished: Path, clinic: Clinic, base_folder: Path, leaky_adapter: Path
) -> None:
    report = json.loads((finished / "report.json").read_text())
    before, after = (report["audits"][stage]["figures"]["direct"] for stage in ("before", "after"))
    assert before["greedy"]["value"] > 0.5  # the positive control
    assert after["greedy"]["value"] < 0.1
    sanitized = finished / "sanitized"
    assert {file.name for file in sanitized.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "bom.json",
        "manifest.json",
    }
    digest = load_checkpoint(sanitized, base=base_folder).weights_digest()
    assert digest == report["audits"]["after"]["weights_digest"]
    leaked, left, control = (
        recited(clinic, base_folder, each) for each in (leaky_adapter, sanitized, None)
    )
    assert leaked > SPANS / 2
    assert left <= control + 1
    assert verify(sanitized).changed == ()
    assert "PeftModel.from_pretrained" in (sanitized / "README.md").read_text()
    assert str(base_folder) not in (sanitized / "adapter_config.json").read_text()
    names = {file: load_file(file / "adapter_model.safetensors").keys() for file in
             (leaky_adapter, sanitized)}  # fmt: skip
    assert names[leaky_adapter] == names[sanitized]


@pytest.mark.long
def test_a_resumed_run_goes_on_with_the_adapter(
    finished: Path, tmp_path: Path, leaky_adapter: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "sanitized")
    for name in ("repair", "audit-after", "report", "memory"):
        (out / f"{name}.json").unlink()
    shutil.rmtree(out / "private/repair")
    run(load_recipe(finished.parent / "recipe.yaml"), out, resume=True)
    first, again = (
        (each / "sanitized/adapter_model.safetensors").read_bytes() for each in (finished, out)
    )
    assert first == again
    assert first != (leaky_adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    "sections",
    [
        SECTIONS.replace("erase: {interpolate_to_base: 0.9}", REWIND),
        SECTIONS.replace("seed: 3", "seed: 3\nrounds: 2"),
        "output: adapter\nstrategy: escalate\naudit: {decoys: 1}\n"
        "repair: {epochs: 1, batch_tokens: 768}\n"
        "gate: {perplexity_ratio: null, auc_excess: null}\n",
    ],
    ids=["rewind", "rounds", "escalate"],
)
def test_every_way_of_a_run_ends_with_an_adapter(
    sections: str, clinic: Clinic, base_folder: Path, leaky_adapter: Path, tmp_path: Path
) -> None:
    few = clinic.with_few(4)
    recipe = write_recipe(
        tmp_path, sections, clinic=few, unsanitized=leaky_adapter, base=base_folder
    )
    result = run(load_recipe(recipe), tmp_path / "run")
    loaded = load_checkpoint(tmp_path / "run/sanitized", base=base_folder)
    assert loaded.weights_digest() == result.report.audits["after"].weights_digest
    assert loaded.weights_digest() != result.report.audits["before"].weights_digest


# ---- what no adapter can hold is refused before the run -----------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["erase={last_layers: 1}"], "erase.reset: output: adapter can only take the adapter's"),
        (
            ["erase={last_layers: 1, reset: rewind, token_rows: true}"],
            "erase.token_rows: with output: adapter the rows",
        ),
        (["repair={adapter: {rank: 2}}"], "repair.adapter: with output: adapter the adapter of"),
        (
            ["erase=null", "repair=null", "model.unsanitized=u"],
            "output: nothing is written of a checkpoint that is only checked",
        ),
    ],
)
def test_recipes_that_ask_for_more_than_an_adapter_are_refused(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    changes: list[str],
    message: str,
) -> None:
    recipe = write_recipe(
        tmp_path, SECTIONS, clinic=clinic, unsanitized=leaky_folder, base=base_folder
    )
    load_recipe(recipe)
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, overrides=changes)


def test_check_names_what_this_adapter_cannot_do(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0])
    model = get_peft_model(load_checkpoint(base_folder).model, lora)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.fill_(0.01)
    model.save_pretrained(str(tmp_path / "adapter"))

    def detail(unsanitized: Path, sections: str) -> tuple[bool, str]:
        recipe = write_recipe(
            tmp_path, sections, clinic=clinic, unsanitized=unsanitized, base=base_folder
        )
        items = check(load_recipe(recipe), tmp_path / "run")
        return next((item.holds, item.detail) for item in items if item.name == "output")

    adapter = tmp_path / "adapter"
    assert detail(adapter, SECTIONS) == (
        True,
        "the adapter stays one: plain LoRA on 1 module of the base",
    )
    for unsanitized, sections, message in [
        (leaky_folder, SECTIONS, "holds a whole model and no adapter; leave output out"),
        (
            adapter,
            SECTIONS.replace("interpolate_to_base: 0.9", "last_layers: 1, reset: rewind"),
            "updates none of the chosen neurons",
        ),
        (
            adapter,
            SECTIONS.replace("epochs: 2", "epochs: 2, last_layers: 1"),
            "the adapter changes nothing in the layers of repair.last_layers",
        ),
    ]:
        holds, said = detail(unsanitized, sections)
        assert not holds
        assert message in said
