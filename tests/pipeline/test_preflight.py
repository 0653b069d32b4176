"""`sani run --check` says what would stop a run, in the sentence of the run, and in no time."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sani import run
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.errors import RecipeError, SaniError
from sani.pipeline.preflight import check
from sani.pipeline.run_inputs import RunInputs
from sani.recipe import load_recipe
from tests.support.clinic import Clinic
from tests.support.recipes import gate_on_totals, write_recipe

SECTIONS = """\
seed: 3
audit: {decoys: 1, swaps: 0, framing: bos, membership_documents: 0}
erase: {last_layers: 1, selector: {kind: all}, reset: reinit}
repair: {epochs: 1, learning_rate: 3e-3, batch_tokens: 768}
""" + gate_on_totals("null")


@pytest.fixture
def recipe(clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path: Path) -> Path:
    """A recipe that is in order, for copies of the models that a test may break."""
    for name, folder in (("leaky", leaky_folder), ("base", base_folder)):
        shutil.copytree(folder, tmp_path / name)
    few = clinic.with_few(4)
    return write_recipe(
        tmp_path, SECTIONS, clinic=few, unsanitized=tmp_path / "leaky", base=tmp_path / "base"
    )


def problems(recipe: Path, out: Path, *overrides: str) -> list[str]:
    items = check(load_recipe(recipe, overrides=overrides), out)
    return [item.detail for item in items if not item.holds]


def refusal(recipe: Path, out: Path, *overrides: str) -> str:
    with pytest.raises(SaniError) as caught:
        run(load_recipe(recipe, overrides=overrides), out)
    return str(caught.value)


def test_what_is_in_order_is_checked_to_the_last_item(recipe: Path, tmp_path: Path) -> None:
    """The positive control: the run that follows it comes to its end."""
    out = tmp_path / "run"
    items = check(load_recipe(recipe), out)
    assert [item.name for item in items if not item.holds] == []
    assert [item.name for item in items][-1] == "models load"
    assert not out.exists()
    assert run(load_recipe(recipe), out).report.gate.checks


def something_in_out(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "something").touch()


def nan_in_the_base(folder: Path) -> None:
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def identifier_in_the_configuration(folder: Path) -> None:
    corpus = read_corpus(folder / "private.jsonl")
    values = {d.value(s) for d in corpus for s in d.spans if s.kind == "direct"}
    file = folder / "leaky" / "config.json"
    data = json.loads(file.read_text()) | {"note": max(values, key=len)}
    file.write_text(json.dumps(data))


def second_text(folder: Path) -> None:
    corpus = read_corpus(folder / "held_out.jsonl")
    both = Corpus([replace(document, source_text="A question.") for document in corpus])
    write_jsonl(both, folder / "held_out.jsonl")


def only_direct(folder: Path) -> None:
    corpus = read_corpus(folder / "private.jsonl")
    kept = [replace(d, spans=tuple(s for s in d.spans if s.kind == "direct")) for d in corpus]
    write_jsonl(Corpus(kept), folder / "private.jsonl")


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "overrides", "said"),
    [
        (something_in_out, [], "run already exists and is not empty"),
        (nan_in_the_base, [], "tensor 'model.norm.weight' holds NaN or infinity"),
        (identifier_in_the_configuration, [], "config.json holds 1 identifiers or ids"),
        (second_text, [], "document 0 has a source_text, and the model has no encoder for it"),
        (only_direct, ["gate.kinds=[direct, indirect]"],
         "gate.kinds: the corpus marks no indirect identifier"),
        (only_direct, ["audit.generation={kinds: [indirect]}"],
         "the corpus marks no indirect identifier long enough to search for"),
        (only_direct, ["attack={kinds: [indirect]}"],
         "none of the 4 documents under attack marks a indirect identifier"),
        (nothing, ["audit.framing=chat-user"], "framing 'chat-user': the tokenizer has no token"),
        (nothing, ["audit.generation={file: nowhere.txt}"],
         "audit.generation.file nowhere.txt cannot be read (No such file or directory)"),
        (nothing, ["scan={patterns: true, indirect: {k: 1000}}"],
         "subjects are fewer than k = 1000"),
        (nothing, ["scan={patterns: true, gold: GOLD}"],
         "the gold documents mark no direct identifier"),
        (nothing, ["scan={ner: no_such_pipeline}"],
         "ner: no_such_pipeline is no installed spaCy pipeline"),
    ],
)  # fmt: skip
def test_the_check_says_what_stops_the_run_in_the_same_sentence(
    recipe: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    overrides: list[str],
    said: str,
) -> None:
    change(tmp_path)
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"id": "1", "subject_id": "1", "text": "No name.", "spans": []}\n')
    overrides = [override.replace("GOLD", str(gold)) for override in overrides]
    out = tmp_path / "run"
    there = sorted(tmp_path.rglob("*"))
    began = time.process_time()
    told = problems(recipe, out, *overrides)
    seconds = time.process_time() - began
    assert [detail for detail in told if said in detail], told
    assert sorted(tmp_path.rglob("*")) == there
    assert refusal(recipe, out, *overrides) in told
    assert not (out / "audit-before.json").exists()
    assert seconds < 5


def test_held_out_conversations_are_rendered_for_both_models(recipe: Path, tmp_path: Path) -> None:
    """The records are plain text; only the held-out documents need a template."""
    span = {"start": 2, "end": 10, "label": "NAME"}
    turn = {"role": "user", "content": "A question that nobody has asked before.", "spans": [span]}
    line = {"id": "1", "subject_id": "1", "messages": [turn]}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(line) + "\n")
    told = problems(recipe, tmp_path / "run")
    assert [detail for detail in told if "the tokenizer has no chat template" in detail]
    assert refusal(recipe, tmp_path / "run") in told


def test_the_check_says_what_the_base_gets_to_read_conversations(
    recipe: Path, tmp_path: Path
) -> None:
    """A chat fine-tune added two tokens and a template; its public base has neither."""
    (told,) = (item.detail for item in check(load_recipe(recipe), tmp_path / "run")
               if item.name == "model.base")  # fmt: skip
    assert told == "same architecture as model.path, other weights"
    leaky = tmp_path / "leaky"
    tokenizer = AutoTokenizer.from_pretrained(leaky)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    model = AutoModelForCausalLM.from_pretrained(leaky)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(leaky)
    tokenizer.save_pretrained(leaky)
    turn = {"role": "user", "content": "A question that nobody has asked before.",
            "spans": [{"start": 2, "end": 10, "label": "NAME"}]}  # fmt: skip
    line = {"id": "1", "subject_id": "1", "messages": [turn]}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(line) + "\n")
    items = {item.name: item for item in check(load_recipe(recipe), tmp_path / "run")}
    assert [name for name, item in items.items() if not item.holds] == []
    assert items["model.base"].detail == (
        "same architecture as model.path, other weights; it gets 2 tokens that the checkpoint "
        "added; it reads conversations by the checkpoint's chat template"
    )


def test_a_full_disk_and_too_little_memory_stop_a_run_before_it_begins(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    free = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
        (told,) = problems(recipe, out)
        assert refusal(recipe, out) == told
        assert "GiB needed on the disk" in told
    with monkeypatch.context() as small:
        small.setattr("sani.pipeline.preflight.device_memory", lambda: 1000)
        (told,) = problems(recipe, out)
        assert refusal(recipe, out) == told
        assert "in memory, activations not counted" in told
    assert not out.exists()


def test_memory_is_that_of_the_weights_that_are_trained(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights: two models and three copies. One of three layers: two models and one copy."""
    number = RunInputs(load_recipe(recipe)).num_parameters
    monkeypatch.setattr("sani.pipeline.preflight.device_memory", lambda: 4 * 4 * number)
    (told,) = problems(recipe, tmp_path / "run")
    assert "in memory" in told
    assert problems(recipe, tmp_path / "run", "repair.last_layers=1") == []


def test_a_limit_on_the_scans_recall_needs_a_gold_sample(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"gate\.scan_recall needs scan\.gold"):
        load_recipe(recipe, overrides=["gate.scan_recall=0.9", "scan.patterns=true"])
