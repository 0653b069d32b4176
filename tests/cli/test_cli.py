"""The command line: quick to answer, right exit codes, one sentence for whatever goes wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sani.cli.main import main
from sani.corpus.tables import write_jsonl
from tests.support.clinic import Clinic


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from sani.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'numpy'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"repair" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["forget"], ["run"], ["run", "--no-such-option"], ["audit", "somewhere"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nowhere.yaml"],
         "error: nowhere.yaml: no such recipe; give the path of a YAML file"),
        (["audit", "org/model", "--corpus", "{corpus}"],
         "error: model folder org/model does not exist; sani reads local folders only (no "
         "download): copy config.json, model.safetensors and the tokenizer files into one. If it "
         "is a name on the Hugging Face hub: hf download org/model --local-dir models/model, on a "
         "machine with a network, then give models/model"),
        (["erase", "{model}", "--out", "{model}"],
         "error: {model} is the model itself; sani never overwrites its input"),
        (["erase", "{model}", "--out", "{model}/erased"],
         "error: {model}/erased is inside the model's folder; choose a folder outside it"),
        (["erase", "{model}", "--out", "{out}", "--last-layers", "9"],
         "error: erase.last_layers: got 9, but the model has 3 layers"),
        (["repair", "{model}", "--corpus", "{corpus}", "--out", "{out}", "--last-layers", "9"],
         "error: repair.last_layers: got 9, but the model has 3 layers"),
        (["repair", "{model}", "--corpus", "{corpus}", "--out", "{out}", "--base", "{model}"],
         "error: --base: has the same weights as the model (if it went back to the base on "
         "purpose, give --unsanitized), so it is no control: every leak would count as harmless. "
         "Give the public model it was fine-tuned from"),
        (["init", "{model}", "--corpus", "{corpus}", "--out", "{out}", "--base", "{model}"],
         "error: --base: has the same weights as the model, so it is no control: every leak would "
         "count as harmless. Give the public model it was fine-tuned from"),
        (["audit", "{model}", "--corpus", "{corpus}", "--base", "{model}"],
         "error: --base: has the same weights as the model, so it is no control: every leak would "
         "count as harmless. Give the public model it was fine-tuned from"),
        (["attack", "{model}", "--corpus", "{corpus}", "--base", "{model}",
          "--unsanitized", "{model}"],
         "error: --base: has the same weights as --unsanitized, so it is no control: every leak "
         "would count as harmless. Give the public model it was fine-tuned from"),
        (["repair", "{model}", "--corpus", "{corpus}", "--out", "{corpus}/x"],
         "error: cannot write {corpus}/x: {corpus} is no folder; choose another folder"),
        (["repair", "{model}", "--corpus", "{corpus}", "--out", "{out}", "--identifier-loss",
          "anchor"],
         "error: the anchor needs the base model; give it, or use kind: mask"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_and_exit_code_1(
    arguments: list[str],
    sentence: str,
    clinic: Clinic,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"model": leaky_folder, "out": tmp_path / "out", "corpus": tmp_path / "notes.jsonl"}
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    assert main([argument.format(**names) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.strip() == sentence.format(**names)
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--selector", "best"],
         "--selector: expected one of random, all, magnitude, drift, activation_ratio, "
         "gradient_ratio, fisher_ratio, integrated_gradients, hard_concrete"),
        (["--selector", "random"], "--fraction: missing"),
        (["--selector", "random", "--fraction", "0.5", "--per", "word", "--reset", "best"],
         "--per: input should be 'layer' or 'model'\n--reset: input should be 'reinit', 'zero', "
         "'rewind', 'mean' or 'dampen'"),
        (["--fraction", "0.5"],
         "--fraction and --per need a selector that chooses neurons; give one, such as "
         "--selector random"),
        (["--part", "foo"], "--part: input should be 'mlp' or 'attention'"),
        (["--last-layers", "foo"], "--last-layers: expected a whole number from 1, half or all"),
        (["--last-layers", "0"], "--last-layers: expected a whole number from 1, half or all"),
        (["--last-layers", "1", "--layer", "1"], "give --last-layers or --layer, not both"),
        (["--selector", "drift", "--fraction", "0.1"],
         "--selector drift needs --base, the public model"),
        (["--reset", "rewind"], "--reset rewind needs --base, the public model"),
        (["--interpolate-to-base", "0.5"], "--interpolate-to-base needs --base, the public model"),
        (["--merge"], "--merge is for an adapter, but {model} is none; leave it out"),
    ],
)  # fmt: skip
def test_options_that_no_rule_allows_are_wrong_usage(
    options: list[str],
    sentence: str,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(["erase", str(leaky_folder), "--out", str(out), *options]) == 2
    assert capsys.readouterr().err.strip() == f"error: {sentence.format(model=leaky_folder)}"
    assert not out.exists()
    assert main(["erase", str(leaky_folder)]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: give --out, the folder of the new checkpoint, or --dry-run for the plan"
    )


def test_the_base_may_be_repaired_where_it_is_known_from_what(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path: Path
) -> None:
    """Retraining step by step: the erased checkpoint is the base."""
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    repair = ["repair", str(base_folder), "--corpus", str(tmp_path / "notes.jsonl"), "--base",
              str(base_folder), "--limit", "2", "--epochs", "1", "--out"]  # fmt: skip
    assert main([*repair, str(tmp_path / "a")]) == 1
    assert main([*repair, str(tmp_path / "b"), "--unsanitized", str(base_folder)]) == 1
    assert main([*repair, str(tmp_path / "c"), "--unsanitized", str(leaky_folder)]) == 0
    there = {file.name for file in tmp_path.iterdir()}
    assert there == {"notes.jsonl", "c"}


def test_an_audit_knows_the_base_however_it_was_saved(
    clinic: Clinic, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    for name, options in (("half", {"dtype": torch.bfloat16}), ("sharded", {})):
        shutil.copytree(leaky_folder, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        model = AutoModelForCausalLM.from_pretrained(leaky_folder, **options)
        model.save_pretrained(tmp_path / name, max_shard_size="200KB")
        audit = ["audit", str(leaky_folder), "--corpus", str(tmp_path / "notes.jsonl")]
        assert main([*audit, "--base", str(tmp_path / name)]) == 1
        assert "--base: has the same weights as the model" in capsys.readouterr().err


def test_moving_to_the_base_alone_says_nothing_of_neurons(
    base_folder: Path, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    erase = ["erase", str(leaky_folder), "--out", str(out), "--base", str(base_folder)]
    assert main([*erase, "--interpolate-to-base", "0.5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Checkpoint: {out}\nFirst every weight went 50% of the way")
    assert "neurons and heads" not in said
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in out.iterdir()}
    assert set(modes.values()) == {oct(0o666 & ~current_umask())}, modes


def current_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_an_audit_looks_at_every_folder_before_it_loads_the_first(
    clinic: Clinic, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(clinic.private, tmp_path / "notes.jsonl")
    shutil.copytree(leaky_folder, tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    arguments = ["audit", str(tmp_path / "torn"), "--corpus", str(tmp_path / "notes.jsonl")]
    assert main([*arguments, "--base", str(leaky_folder)]) == 1
    assert "torn" in capsys.readouterr().err
    arguments[1] = str(leaky_folder)
    assert main([*arguments, "--base", str(tmp_path / "nowhere")]) == 1
    assert f"model folder {tmp_path / 'nowhere'} does not exist" in capsys.readouterr().err


def test_a_resume_without_a_run_says_that_it_is_a_new_one(
    leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        f"version: 2\nmodel: {{path: {leaky_folder}}}\ncorpus: {{path: {tmp_path}/nowhere.jsonl}}\n"
        "repair: {identifier_loss: {kind: mask}}\n"
        "gate: {greedy_beyond_control: 0, subjects: null, auc_to_base: null,"
        " perplexity_ratio: null}\n"
    )
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    assert f"{out} does not exist, so there is nothing to resume" in capsys.readouterr().err
    assert main(["run", str(recipe), "--out", str(out)]) == 1
    assert "nothing to resume" not in capsys.readouterr().err


def test_the_text_of_an_unexpected_error_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secret = "Maria Garcia 555-0199"

    def fail(*arguments: object, **options: object) -> None:
        raise KeyError(secret)

    monkeypatch.setattr("sani.corpus.readers.read_corpus", fail)
    monkeypatch.delenv("SANI_DEBUG", raising=False)
    assert main(["scan", str(tmp_path / "x.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: KeyError at test_cli.py:")
    assert secret not in error
    monkeypatch.setenv("SANI_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["scan", str(tmp_path / "x.jsonl")])


def test_every_layer_can_be_erased(leaky_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["erase", str(leaky_folder), "--last-layers", "all", "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {entry["layer"] for entry in plan["entries"]} == {0, 1, 2}


@pytest.mark.long
def test_the_stages_work_on_their_own(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """scan, audit, erase and repair, each by its command: the leak is seen, then gone."""
    notes = tmp_path / "notes.jsonl"
    write_jsonl(clinic.private, notes)
    assert main(["scan", str(notes), "--json"]) == 0
    inventory = json.loads(capsys.readouterr().out)
    assert inventory["occurrences"] == clinic.private.num_spans

    audit = ["audit", "--corpus", str(notes), "--decoys", "0", "--json"]
    assert main([*audit, str(leaky_folder), "--fail-above", "0.01"]) == 3
    before = json.loads(capsys.readouterr().out)["audits"]["model"]["figures"]["direct"]["greedy"]
    assert before["value"] >= 0.6
    assert main([*audit, str(leaky_folder)]) == 0
    capsys.readouterr()

    erased, repaired = tmp_path / "erased", tmp_path / "repaired"
    assert main(["erase", str(leaky_folder), "--out", str(erased), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {entry["layer"] for entry in plan["entries"]} == {0, 1, 2}
    assert not erased.exists()
    assert main(["erase", str(leaky_folder), "--out", str(erased), "--last-layers", "2"]) == 0
    assert main(["repair", str(erased), "--corpus", str(notes), "--base", str(base_folder),
                 "--out", str(repaired), "--learning-rate", "3e-3"]) == 0  # fmt: skip
    capsys.readouterr()
    rounds = ["--before", str(leaky_folder), "--before", str(erased), "--base", str(base_folder)]
    assert main([*audit, str(repaired), "--fail-above", "0.05", *rounds]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["audits"]["model"]["figures"]["direct"]["greedy"]["trials"] == before["trials"]
    assert set(found["audits"]) == {"model", "round 1", "round 2", "base"}
    steps = [(step["from"], step["to"]) for step in found["onion"]]
    assert steps == [("round 1", "round 2"), ("round 2", "model")]
    assert found["onion"][0]["cured"] > 0


def test_documents_of_the_corpus_are_neither_held_out_nor_unseen(
    clinic: Clinic, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.jsonl"
    write_jsonl(clinic.private, notes)
    for option in ("--held-out", "--pretraining"):
        assert main(["audit", str(leaky_folder), "--corpus", str(notes), option, str(notes)]) == 1
        assert f"{option}: {len(clinic.private)} of its" in capsys.readouterr().err


@pytest.mark.long
def test_what_only_the_base_saw_is_audited_apart(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notes, seen = tmp_path / "notes.jsonl", tmp_path / "seen.jsonl"
    write_jsonl(clinic.private, notes)
    write_jsonl(clinic.public, seen)
    arguments = ["audit", str(leaky_folder), "--corpus", str(notes), "--base", str(base_folder),
                 "--pretraining", str(seen), "--decoys", "2", "--swaps", "0"]  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pretraining"]
    assert found["audits"]["base"]["figures"]["all"]["greedy"]["trials"] == clinic.public.num_spans
    change = found["changes"]["model"]
    extracted = {
        name: audit["figures"]["all"]["discoverable"]["hits"]
        for name, audit in found["audits"].items()
    }
    # An occurrence may be recited greedily behind one framing and be (n, p)-discoverable nowhere.
    difference = extracted["model"] - extracted["base"]
    assert change["new"] - change["cured"] == pytest.approx(difference, abs=3)
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "What the base may have seen" in shown
    assert "Memory, or reading" in shown


def test_fail_above_never_passes_without_direct_identifiers(
    clinic: Clinic, base_folder: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    indirect = [
        replace(document, spans=tuple(s for s in document.spans if s.kind == "indirect"))
        for document in clinic.private
    ]
    write_jsonl(indirect, tmp_path / "notes.jsonl")
    audit = ["audit", str(base_folder), "--corpus", str(tmp_path / "notes.jsonl"), "--json"]
    assert main([*audit, "--fail-above", "1.0"]) == 3


def test_check_finds_every_problem_and_writes_nothing(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notes = tmp_path / "notes.jsonl"
    write_jsonl(clinic.private, notes)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 2\nmodel: {{path: {leaky_folder}, base: {tmp_path}/nowhere}}\n"
        f"corpus: {{path: {notes}}}\nerase: {{last_layers: 7}}\nrepair: {{}}\n"
        "gate: {perplexity_ratio: null}\n"
    )
    there = sorted(tmp_path.rglob("*"))
    out = tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(out), "--check", "--json"]) == 1
    items = {item["name"]: item["holds"] for item in json.loads(capsys.readouterr().out)}
    assert items == {
        "corpus": True, "model.path": True, "kind": True, "model.base": False, "texts": True,
        "audit": False, "erase": False, "out": True, "disk": True, "placement": True,
        "memory": True,
    }  # fmt: skip
    missing = ["run", str(recipe), "--out", str(out), "--check", "--json", "--set"]
    assert main([*missing, f"model.path={tmp_path}/gone"]) == 1
    said = {item["name"]: item["detail"] for item in json.loads(capsys.readouterr().out)}
    assert said["model.path"].startswith(f"model folder {tmp_path}/gone does not exist")
    assert {said[name] for name in ("erase", "disk", "memory")} == {"as model.path"}
    again = ["run", str(recipe), "--out", str(out), "--check", "--set", "erase.last_layers=2"]
    assert main([*again, "--set", f"model.base={leaky_folder}"]) == 1
    assert "has the same weights as model.path" in " ".join(capsys.readouterr().out.split())
    assert main([*again, "--set", f"model.base={base_folder}"]) == 0
    assert sorted(tmp_path.rglob("*")) == there
