"""The whole job on a model that really recites: what it writes, what it must never write."""

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sani import run
from sani.cli.main import main
from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.models.checkpoint import load_checkpoint
from sani.recipe import load_recipe
from sani.releasing.manifest import verify
from sani.reporting import report as report_module
from sani.reporting.stored_report import read_report
from tests.support.clinic import Clinic
from tests.support.recipes import write_recipe
from tests.support.sharing import Shared

SECTIONS = """\
seed: 3
audit: {decoys: 4}
erase: {last_layers: 2, selector: {kind: all}, reset: reinit}
repair: {epochs: 4, learning_rate: 3e-3, batch_tokens: 768}
gate: {subjects: null, discoverable_beyond_control: 2, auc_to_base: 0.45, perplexity_ratio: 2.0}
"""


@pytest.fixture(scope="session")
def recipe(clinic: Clinic, base_folder: Path, leaky_folder: Path, shared: Shared) -> Path:
    """A recipe for the leaky model of the tests, with its documents."""

    def write(folder: Path) -> None:
        write_recipe(folder, SECTIONS, clinic=clinic, unsanitized=leaky_folder, base=base_folder)

    return shared("job", write) / "recipe.yaml"


def sani(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run the command as users do, in a process of its own."""
    command = [sys.executable, "-m", "sani", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    if check:
        assert done.returncode in (0, 3), done.stderr.decode()
    return done


@pytest.fixture(scope="session")
def finished(recipe: Path, shared: Shared) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """A finished run and what its process printed. Do not write."""

    def work(folder: Path) -> None:
        done = sani("run", recipe, "--out", folder / "run")
        (folder / "printed").write_bytes(pickle.dumps(done))

    folder = shared("finished", work)
    return folder / "run", pickle.loads((folder / "printed").read_bytes())


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


# What a run does.


def test_the_leaky_model_recites_and_the_sanitized_one_does_not(
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
) -> None:
    out, done = finished
    report = load(out, "report.json")
    before, after = report["audits"]["before"], report["audits"]["after"]
    control = report["audits"]["base"]
    assert before["figures"]["direct"]["greedy"]["value"] >= 0.6
    assert before["figures"]["direct"]["discoverable"]["value"] >= 0.9
    assert before["figures"]["direct"]["auc"]["value"] > 0.95
    for name in ("greedy", "discoverable"):
        rate, limit = after["figures"]["direct"][name], control["figures"]["direct"][name]
        assert rate["value"] <= limit["high"]
    assert after["figures"]["direct"]["auc"]["value"] < before["figures"]["direct"]["auc"]["value"]
    assert report["changes"]["cured"] > 0.9 * before["figures"]["direct"]["greedy"]["hits"]
    assert done.returncode == (0 if report["gate"]["holds"] else 3)
    assert report["gate"]["holds"], report["gate"]["checks"]


def test_sanitized_is_a_checkpoint_that_transformers_loads_with_a_true_manifest(
    finished: tuple[Path, subprocess.CompletedProcess[bytes]], base_folder: Path
) -> None:
    folder = finished[0] / "sanitized"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("Patient", return_tensors="pt")
    assert model.generate(ids["input_ids"], max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
    manifest = load(folder, "manifest.json")
    there = {file.name for file in folder.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == there
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["gate"] == load(finished[0], "report.json")["gate"]
    bom = (folder / "bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(bom) is None
    assert load(finished[0], "audit-before.json")["weights_digest"] in bom
    assert not [name for name in there if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


@pytest.mark.long
def test_a_checkpoint_in_half_precision_is_audited_and_released_in_half_precision(
    recipe: Path, leaky_folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(leaky_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    for file in leaky_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "half")
    text = recipe.read_text().replace(str(leaky_folder), str(tmp_path / "half"))
    text = text.replace("epochs: 4", "epochs: 1").replace("decoys: 4", "decoys: 1")
    (tmp_path / "recipe.yaml").write_text(text)
    code = main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")])
    assert code in (0, 3)
    for place in ("sanitized", "private/erase", "private/repair"):
        saved = load_file(tmp_path / "run" / place / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
        assert load(tmp_path / "run" / place, "config.json")["dtype"] == "bfloat16"
    audited = load(tmp_path / "run", "audit-after.json")["weights_digest"]
    assert load_checkpoint(tmp_path / "run" / "sanitized").weights_digest() == audited
    assert load(tmp_path / "run", "erase.json")["weights_digest"] != audited


def test_a_run_leaves_only_what_it_should_and_private_is_private(
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
) -> None:
    out, _ = finished
    assert {file.name for file in out.iterdir()} == {
        "private", "sanitized", "recipe.resolved.yaml", "scan.json", "erase.json", "repair.json",
        "audit-base.json", "audit-before.json", "audit-erased.json", "audit-after.json",
        "memory.json",
        "report.json", "report.md", "report.html", "junit.xml", "report.sarif",
    }  # fmt: skip
    assert stat.S_IMODE((out / "private").stat().st_mode) == 0o700
    assert not (out / "private" / "trainer").exists()


# No identifier leaves `private/`.


def secrets_of(corpus: Corpus) -> set[str]:
    """Everything in a corpus that names someone: values of five characters or more, and ids."""
    values = {document.value(span) for document in corpus for span in document.spans}
    ids = {name for document in corpus for name in (document.id, document.subject_id)}
    return {value for value in values | ids if len(value) >= 5}


def leaks(places: Iterable[Path], streams: Iterable[bytes], secrets: set[str]) -> list[str]:
    """Every place where a secret stands, as bytes of any common form, or in a path."""
    found = []
    needles = set()
    for secret in secrets:
        escaped = json.dumps(secret)[1:-1]
        for form in (secret, secret.casefold(), secret.upper(), escaped):
            needles |= {form.encode(), form.encode("utf-16-le"), form.encode("utf-16-be")}
    for place in places:
        for file in [place, *place.rglob("*")]:
            if "private" in file.relative_to(place).parts:
                continue
            content = file.read_bytes() if file.is_file() else b""
            name = str(file.relative_to(place)).encode()
            if any(needle in content or needle in name for needle in needles):
                found.append(str(file))
    found += ["a stream" for stream in streams if any(needle in stream for needle in needles)]
    return found


def unknown_to_the_tokenizer(clinic: Clinic, base_folder: Path) -> set[str]:
    """The private clinic's secrets, less what the public tokenizer has as a word of its own."""
    public = (base_folder / "tokenizer.json").read_text()
    found = {secret for secret in secrets_of(clinic.private) if secret not in public}
    assert len(found) > 0.9 * len(secrets_of(clinic.private))
    return found


def test_no_byte_of_output_outside_private_holds_an_identifier(
    clinic: Clinic,
    base_folder: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
) -> None:
    out, done = finished
    secrets = unknown_to_the_tokenizer(clinic, base_folder)
    assert leaks([out], [done.stdout, done.stderr], secrets) == []
    assert b"report.html" in done.stdout


@pytest.mark.parametrize("form", ["text", "name", "json", "utf-16", "stream"])
def test_the_canary_test_fails_when_a_leak_is_put_in(
    clinic: Clinic, base_folder: Path, tmp_path: Path, form: str
) -> None:
    secrets = unknown_to_the_tokenizer(clinic, base_folder)
    secret = max(secrets)
    streams = []
    match form:
        case "text":
            (tmp_path / "report.md").write_text(f"kept: {secret}!")
        case "name":
            (tmp_path / secret.replace("/", "-")).write_text("")
            secrets = {secret.replace("/", "-")}
        case "json":
            (tmp_path / "report.json").write_text(json.dumps({"kept": [secret]}))
        case "utf-16":
            (tmp_path / "log").write_bytes(secret.encode("utf-16"))
        case "stream":
            streams = [f"error: {secret}".encode()]
    assert len(leaks([tmp_path], streams, secrets)) == 1


def test_the_canary_test_fails_when_the_report_really_leaks(
    clinic: Clinic,
    base_folder: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same report, written by code that names a document by its id, is found out."""
    report = read_report(finished[0])
    secrets = unknown_to_the_tokenizer(clinic, base_folder)
    report_module.write_report(tmp_path, report)
    assert leaks([tmp_path], [], secrets) == []
    render = vars(report_module)["render"]
    guilty = clinic.private[0].id
    monkeypatch.setattr(report_module, "render", lambda *a: render(*a) + guilty)
    report_module.write_report(tmp_path, report)
    assert {Path(place).name for place in leaks([tmp_path], [], secrets)} == {
        "report.md", "report.html",
    }  # fmt: skip


def test_a_broken_document_is_reported_without_its_content(
    clinic: Clinic, recipe: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    rows = [json.loads(line) for line in (recipe.parent / "private.jsonl").read_text().splitlines()]
    rows[3]["spans"][0]["end"] = 10**6
    rows[5]["id"] = rows[4]["id"]
    rows[6]["text"] = None
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(map(json.dumps, rows)))
    command = ["run", str(recipe), "--out", str(tmp_path / "run")]
    assert main([*command, "--set", f"corpus.path={broken}"]) == 1
    out, error = capfdbinary.readouterr()
    assert b"line 4" in error
    assert b"line 6" in error
    assert leaks([], [out, error], secrets_of(clinic.private)) == []
    assert not (tmp_path / "run").exists()


# Repeatable, and it survives.


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "sanitized" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.long
def test_same_recipe_and_seed_give_the_same_bytes_and_another_seed_does_not(
    recipe: Path, finished: tuple[Path, subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    for name, options in (("again", ()), ("other", ("--set", "seed=4"))):
        out = tmp_path / name
        sani("run", recipe, "--out", out, *options)
    assert weights(tmp_path / "again") == weights(finished[0])
    assert weights(tmp_path / "other") != weights(finished[0])


@pytest.mark.long
def test_killed_in_the_middle_of_repair_it_resumes_to_the_same_bytes(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sani", "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(out.glob("private/trainer/checkpoint-*/whole")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "sanitized").exists()
    assert not (out / "repair.json").exists()
    assert main(["run", str(recipe), "--out", str(out)]) == 1
    assert "--resume" in capsys.readouterr().err
    sani("run", recipe, "--out", out, "--resume")
    assert weights(out) == weights(finished[0])


def test_a_finished_run_resumed_runs_no_stage_again(
    recipe: Path, finished: tuple[Path, subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    kept = [file for file in out.rglob("*") if not file.name.startswith(("report.", "junit"))]
    before = {file: file.stat().st_mtime_ns for file in kept if file.name != "lock"}
    result = run(load_recipe(recipe), out, resume=True)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert result.gate_holds == load(out, "report.json")["gate"]["holds"]


def test_a_sanitized_folder_that_is_not_of_the_audited_weights_is_replaced(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    leaky_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    shutil.copyfile(leaky_folder / "model.safetensors", out / "sanitized" / "model.safetensors")
    assert weights(out) != weights(finished[0])
    run(load_recipe(recipe), out, resume=True)
    assert weights(out) == weights(finished[0])


@pytest.mark.false_clean
def test_a_manifest_written_for_leaky_weights_does_not_release_them(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    leaky_folder: Path,
    tmp_path: Path,
) -> None:
    """Whoever swaps the weights writes their digest into the manifest, too."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    place = out / "sanitized" / "model.safetensors"
    shutil.copyfile(leaky_folder / "model.safetensors", place)
    manifest = load(out, "sanitized/manifest.json")
    manifest["files"][place.name] = hashlib.sha256(place.read_bytes()).hexdigest()
    (out / "sanitized" / "manifest.json").write_text(json.dumps(manifest))
    assert verify(out / "sanitized").holds  # the control: no manifest can tell
    assert run(load_recipe(recipe), out, resume=True).gate_holds
    assert weights(out) == weights(finished[0])
    assert verify(out / "sanitized").holds


@pytest.mark.parametrize("stage", ["audit-after", "audit-base", "repair", "scan"])
def test_a_result_file_that_was_changed_is_not_believed(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "sanitized")
    file = out / f"{stage}.json"
    before = file.read_text()
    file.write_text(before.replace(": 1", ": 2", 1))
    assert file.read_text() != before
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    assert f"{stage}.json is not as this run wrote it" in capsys.readouterr().err
    assert not (out / "sanitized").exists()
    file.write_text(before)
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 0


def test_a_changed_report_is_noticed_and_not_rendered(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    assert main(["verify", str(out / "sanitized")]) == 0
    assert "The run's report: as written." in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    report = (out / "report.json").read_text()
    (out / "report.json").write_text(report.replace('"cured": ', '"cured": 1'))
    pages = (out / "report.md").read_text()
    for private in (True, False):  # whoever gets a copy of the run gets no private part
        if not private:
            shutil.rmtree(out / "private")
        assert main(["report", str(out)]) == 1
        assert "its digest differs from the one" in capsys.readouterr().err
    assert (out / "report.md").read_text() == pages
    assert main(["verify", str(out / "sanitized")]) == 3
    shown = capsys.readouterr().out
    assert "The run's report: changed." in shown
    assert "report.json beside the folder is not the one that the manifest names" in shown
    (out / "report.json").unlink()
    assert main(["verify", str(out / "sanitized")]) == 0
    assert "The run's report: not beside it." in capsys.readouterr().out


def test_weights_swapped_behind_a_stage_are_never_released(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "sanitized")
    place = out / "private" / "repair" / "model.safetensors"
    shutil.copyfile(leaky_folder / "model.safetensors", place)
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    assert "the weights are not those that repair left there" in capsys.readouterr().err
    assert not (out / "sanitized").exists()


def test_a_folder_that_no_run_wrote_is_not_resumed(
    recipe: Path, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(leaky_folder, out / "sanitized")
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    assert "there is nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_an_identifier_in_a_text_file_of_the_checkpoint_is_refused(
    clinic: Clinic,
    recipe: Path,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    guilty = tmp_path / "model"
    shutil.copytree(leaky_folder, guilty)
    spans = [(d, s) for d in clinic.private for s in d.spans if s.label == "NAME"]
    secret = max((d.value(s) for d, s in spans), key=len)
    if name.endswith(".json"):
        data = load(guilty, name) | {"note": f"tuned for {secret}"}
        (guilty / name).write_text(json.dumps(data))
    else:
        (guilty / name).write_text(f"You care for {secret}.")
    out = tmp_path / "x"
    code = main(["run", str(recipe), "--out", str(out), "--set", f"model.path={guilty}"])
    error = capsys.readouterr().err
    assert code == 1
    assert f"{name} holds " in error
    assert "identifiers or ids of the corpus" in error
    assert secret not in error
    assert not (out / "sanitized").exists()


def test_a_run_folder_refuses_what_does_not_belong_to_it(
    clinic: Clinic,
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, _ = finished
    assert main(["run", str(recipe), "--out", str(out)]) == 1
    assert "already exists and is not empty; continue it with --resume" in capsys.readouterr().err
    assert main(["run", str(recipe), "--out", str(out), "--resume", "--set", "seed=9"]) == 1
    assert "belongs to another recipe" in capsys.readouterr().err
    with (out / "private" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    assert "is in use by another run" in capsys.readouterr().err
    documents = recipe.parent / "private.jsonl"
    original = documents.read_bytes()
    try:
        write_jsonl(clinic.private[:-1], documents)
        assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 1
    finally:
        documents.write_bytes(original)
    assert "corpus changed since this run began" in capsys.readouterr().err


def test_a_base_that_is_the_checkpoint_itself_is_no_control(
    recipe: Path, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", str(recipe), "--out", str(tmp_path / "x"), "--set",
                 f"model.base={leaky_folder}"])  # fmt: skip
    assert code == 1
    assert "has the same weights as model.path, so it is no control" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_base_in_another_type_with_the_same_weights_is_no_control(
    recipe: Path, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(leaky_folder, tmp_path / "half")
    model = AutoModelForCausalLM.from_pretrained(leaky_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    both = (leaky_folder, tmp_path / "half")
    for path, base in (both, both[::-1]):
        arguments = ["run", str(recipe), "--out", str(tmp_path / f"run-{base.name}"), "--set"]
        settings = [f"model.path={path}", "--set", f"model.base={base}"]
        assert main([*arguments, *settings, "--set", "audit.framing=bos"]) == 1
        assert "model.base: has the same weights as model.path" in capsys.readouterr().err
        assert not (tmp_path / f"run-{base.name}" / "sanitized").exists()


def test_a_base_saved_again_with_the_same_weights_is_found_out(
    recipe: Path, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(leaky_folder, base)
    place = base / "model.safetensors"
    save_file(load_file(place), place, metadata={"format": "pt", "note": "saved again"})
    assert place.read_bytes() != (leaky_folder / "model.safetensors").read_bytes()
    out = tmp_path / "x"
    assert main(["run", str(recipe), "--out", str(out), "--set", f"model.base={base}"]) == 1
    assert "has the same weights as model.path, so it is no control" in capsys.readouterr().err
    assert not (out / "sanitized").exists()


def test_held_out_documents_that_are_in_the_corpus_are_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = recipe.parent / "private.jsonl"
    code = main(["run", str(recipe), "--out", str(tmp_path / "x"), "--set",
                 f"corpus.held_out={held_out}"])  # fmt: skip
    assert code == 1
    assert "documents also stand in the corpus" in capsys.readouterr().err


def test_an_added_token_that_holds_an_identifier_is_refused(
    clinic: Clinic,
    recipe: Path,
    leaky_folder: Path,
    base_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    guilty, base = tmp_path / "model", tmp_path / "base"
    shutil.copytree(base_folder, base)
    shutil.copytree(leaky_folder, guilty)
    secret = next(
        document.value(span)
        for document in clinic.private
        for span in document.spans
        if span.label == "MRN"
    )
    data = load(guilty, "tokenizer.json")
    data["added_tokens"][1]["content"] = f"<{secret}>"
    data["model"]["vocab"][f"<{secret}>"] = data["model"]["vocab"].pop("</s>")
    (guilty / "tokenizer.json").write_text(json.dumps(data))
    config = load(guilty, "tokenizer_config.json") | {"eos_token": f"<{secret}>"}
    (guilty / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # a base must have the same tokens
        shutil.copy(guilty / name, base / name)
    models = ["--set", f"model.path={guilty}", "--set", f"model.base={base}"]
    code = main(["run", str(recipe), "--out", str(tmp_path / "x"), *models])
    error = capsys.readouterr().err
    assert code == 1
    assert "holds 1 identifiers or ids of the corpus" in error
    assert secret not in error
    assert not (tmp_path / "x" / "sanitized").exists()


# The masked-only recipe is shown for what it is.


@pytest.mark.long
def test_a_repair_that_only_masks_leaves_the_memory_and_the_gate_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masked"
    repair = "repair={identifier_loss: {kind: mask}, epochs: 2, batch_tokens: 768}"
    samples = "audit.generation={empty: 40, headings: 40, openings: 40, new_tokens: 64}"
    options = ["--set", "erase=null", "--set", repair, "--set", samples]
    assert main(["run", str(recipe), "--out", str(out), *options]) == 3
    report = load(out, "report.json")
    assert report["audits"]["after"]["figures"]["direct"]["greedy"]["value"] > 0.3
    assert "DOES NOT HOLD" in capsys.readouterr().out
    assert "DOES NOT HOLD" in (out / "sanitized" / "README.md").read_text()
    failed = {check["name"] for check in report["gate"]["checks"] if not check["holds"]}
    assert {"greedy_beyond_control.direct", "discoverable_beyond_control.direct"} <= failed
    assert "sampled_beyond_control.direct" in failed
    junit = (out / "junit.xml").read_text()
    assert 'failures="' in junit
    assert 'name="sampled_beyond_control.direct"' in junit
    # What it writes by itself is named in the private part, place by place, and nowhere else.
    test = report["audits"]["after"]["control_tests"]["direct"]["sampled"]
    risk = out / "private" / "at-risk.json"
    assert risk.stat().st_mode & 0o777 == 0o600
    named = load(out, "private/at-risk.json")["direct"]["sampled"]
    documents = {d.id: d.text for d in read_corpus(recipe.parent / "private.jsonl")}
    values = {documents[n["document"]][n["start"] : n["end"]].lower() for n in named}
    assert len(values) == test["count"] > test["limit"]
    said = (out / "report.md").read_text()
    assert f"Written by itself (direct): {test['count']} of {test['searched']} values" in said
    assert main(["verify", str(out / "sanitized")]) == 3


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_interrupted_by_the_user_it_ends_with_one_line(
    recipe: Path, tmp_path: Path, ctrl_c: None
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sani", "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / "audit-before.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.decode().splitlines()[-1] == "interrupted; sani run goes on with --resume"
    assert b"Traceback" not in error


# Only checked: a checkpoint that is sanitized already, or said to be.


def only_check(recipe: Path, model: Path, unsanitized: Path, out: Path, *more: str) -> int:
    """The exit code of the same recipe with neither erase nor repair."""
    options = ["erase=null", "repair=null", f"model.path={model}",
               f"model.unsanitized={unsanitized}", *more]  # fmt: skip
    asked = [word for option in options for word in ("--set", option)]
    return main(["run", str(recipe), "--out", str(out), *asked])


def change_a_weight(folder: Path) -> None:
    """Change one number, by little: the very weights of the unsanitized one are no candidate."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def failed(out: Path) -> set[str]:
    """Names of the limits that do not hold."""
    checks = load(out, "report.json")["gate"]["checks"]
    return {check["name"] for check in checks if not check["holds"]}


@pytest.mark.long
def test_a_sanitized_checkpoint_is_checked_and_nothing_in_it_changed(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = finished[0] / "sanitized", tmp_path / "run"
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    assert only_check(recipe, model, leaky_folder, out) == 0
    shown = capsys.readouterr().out
    assert "Only checked: this run changed nothing." in " ".join(shown.split())
    assert f"Checkpoint: {model}" in shown
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert {file.name for file in out.iterdir()} == {
        "private", "recipe.resolved.yaml", "scan.json", "audit-base.json", "audit-before.json",
        "memory.json", "audit-after.json",
        "report.json", "report.md", "report.html", "junit.xml", "report.sarif",
    }  # fmt: skip
    assert not list(out.rglob("*.safetensors"))
    report, whole = load(out, "report.json"), load(finished[0], "report.json")
    *checks, leftovers = report["gate"]["checks"]
    assert leftovers["name"] == "leftovers"
    assert leftovers["holds"]
    for mine, its in zip(checks, whole["gate"]["checks"], strict=True):
        assert mine == {**its, "measured": pytest.approx(its["measured"], rel=1e-6)}
    for stage in ("base", "before", "after"):
        assert report["audits"][stage]["figures"] == whole["audits"][stage]["figures"]
    assert only_check(recipe, model, leaky_folder, out, "seed=4") == 1  # belongs to another recipe
    assert main(["report", str(out)]) == 0


@pytest.mark.long
def test_a_leaky_checkpoint_does_not_pass_by_a_tokenizer_that_cuts_otherwise(
    recipe: Path, leaky_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(leaky_folder, model)
    change_a_weight(model)
    data = load(model, "tokenizer.json")
    data["model"]["merges"] = []  # the same vocabulary, and every letter is a token
    (model / "tokenizer.json").write_text(json.dumps(data))
    assert only_check(recipe, model, leaky_folder, tmp_path / "run") == 1
    assert "its tokenizer cuts text otherwise" in capsys.readouterr().err


@pytest.mark.long
def test_a_check_with_the_wrong_corpus_does_not_hold(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    leaky_folder: Path,
    tmp_path: Path,
) -> None:
    """Every rate is zero, and the one before recites none of it either."""
    swapped = [f"corpus.{key}={recipe.parent / name}.jsonl"
               for key, name in (("path", "held_out"), ("held_out", "private"))]  # fmt: skip
    limits = "gate={subjects: null, auc_to_base: 0.45, perplexity_ratio: null}"
    sanitized, out = finished[0] / "sanitized", tmp_path / "run"
    assert only_check(recipe, sanitized, leaky_folder, out, *swapped, limits) == 3
    assert failed(out) == {"positive_control.direct"}


@pytest.mark.long
def test_a_check_whose_models_do_not_belong_together_is_refused(
    recipe: Path,
    finished: tuple[Path, subprocess.CompletedProcess[bytes]],
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean, again, other = finished[0] / "sanitized", tmp_path / "again", tmp_path / "other"
    shutil.copytree(base_folder, again)
    place = again / "model.safetensors"
    save_file(load_file(place), place, metadata={"format": "pt", "note": "saved again"})
    shutil.copytree(leaky_folder, other)
    change_a_weight(other)
    data = load(other, "tokenizer.json")
    one, two = list(data["model"]["vocab"])[-2:]
    data["model"]["vocab"][one], data["model"]["vocab"][two] = (
        data["model"]["vocab"][two], data["model"]["vocab"][one]
    )  # fmt: skip
    (other / "tokenizer.json").write_text(json.dumps(data))
    for number, (model, unsanitized, sentence) in enumerate((
        (base_folder, leaky_folder, "model.base: has the same weights as model.path, so it is no"),
        (again, leaky_folder, "model.base: has the same weights as model.path, so it is no"),
        (clean, base_folder, "model.base: has the same weights as model.unsanitized, so it is"),
        (clean, other, "does not fit the checkpoint: their tokenizers have different vocabularies"),
        (other, leaky_folder, "their tokenizers have different vocabularies"),
    )):  # fmt: skip
        out = tmp_path / str(number)
        assert only_check(recipe, model, unsanitized, out) == 1
        assert sentence in capsys.readouterr().err
        assert not (out / "report.json").exists()
