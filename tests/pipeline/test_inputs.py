"""Inputs that a run refuses to judge, because a low figure of them would mean nothing."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sani import run
from sani.cli.main import main
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.errors import CheckpointError, RecipeError, RunError
from sani.models.checkpoint import load_checkpoint
from sani.pipeline.candidates import check_scale
from sani.pipeline.inputs import read_documents
from sani.pipeline.preflight import check
from sani.recipe import Recipe, ScanSettings, load_recipe
from tests.support.clinic import Clinic
from tests.support.recipes import gate_on_totals, write_recipe

ONLY_CHECKED = """\
seed: 3
audit: {decoys: 1, swaps: 0, framing: bos, membership_documents: 0}
""" + gate_on_totals("null")


def edit_config(folder: Path, **values: Any) -> None:
    place = folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | values))


# ---- only checked ----------------------------------------------------------------------------


@pytest.fixture
def candidate(leaky_folder: Path, tmp_path: Path) -> Path:
    """A copy of the leaky model, which is said to be sanitized."""
    return Path(shutil.copytree(leaky_folder, tmp_path / "candidate"))


@pytest.fixture
def recipe(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, candidate: Path, tmp_path: Path
) -> Recipe:
    """A recipe that only checks the candidate."""
    path = write_recipe(
        tmp_path, ONLY_CHECKED, clinic=clinic, unsanitized=candidate, base=base_folder
    )
    text = path.read_text().replace(", base:", f", unsanitized: {leaky_folder}, base:")
    path.write_text(text)
    return load_recipe(path)


def refusal(recipe: Recipe, out: Path) -> str:
    """The one sentence of the run, before it wrote a figure, and of ``--check`` too."""
    with pytest.raises(RecipeError) as caught:
        run(recipe, out)
    assert not (out / "report.json").exists()
    return str(caught.value)


def problems(recipe: Recipe, out: Path) -> list[str]:
    """Return what ``--check`` says is not in order, each problem once."""
    details = [item.detail for item in check(recipe, out) if not item.holds]
    return [detail for detail in details if not detail.startswith("as ")]


def save_again(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    metadata = {"format": "pt", "note": "saved again"}
    save_file(tensors, folder / "model.safetensors", metadata=metadata)


def change_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_differ_by_little_are_audited_and_leak(
    recipe: Recipe, candidate: Path, tmp_path: Path
) -> None:
    """The positive control: the checkpoint does recite, and nothing is refused for its own sake."""
    change_a_weight(candidate)
    assert problems(recipe, tmp_path / "run") == []
    result = run(recipe, tmp_path / "run")
    checks = {check.name: check for check in result.report.gate.checks}
    assert not checks["greedy.direct"].holds
    assert checks["leftovers"].holds


@pytest.mark.false_clean
@pytest.mark.parametrize("change", [lambda folder: None, save_again])
def test_the_unsanitized_weights_are_no_candidate(
    recipe: Recipe, candidate: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(candidate)
    message = refusal(recipe, tmp_path / "run")
    assert message.startswith("model.path: has the same weights as model.unsanitized")
    if change is not save_again:  # which only loading both can tell
        assert problems(recipe, tmp_path / "run") == [message]


@pytest.mark.false_clean
@pytest.mark.parametrize(
    ("field", "value"), [("rms_norm_eps", 1e30), ("max_position_embeddings", 8)]
)
def test_one_number_of_the_configuration_hides_nothing(
    recipe: Recipe, candidate: Path, tmp_path: Path, field: str, value: float
) -> None:
    """With an epsilon of 1e30 the leaky weights recite nothing: the gate would hold."""
    change_a_weight(candidate)
    edit_config(candidate, **{field: value})
    message = refusal(recipe, tmp_path / "run")
    assert f"config.json differs from that of model.unsanitized in {field}" in message
    assert problems(recipe, tmp_path / "run") == [message]


@pytest.mark.false_clean
def test_what_training_left_beside_a_candidate_does_not_hold(
    recipe: Recipe, candidate: Path, tmp_path: Path
) -> None:
    change_a_weight(candidate)
    (candidate / "optimizer.pt").write_bytes(b"moments")
    (candidate / "checkpoint-10").mkdir()
    (candidate / "train.jsonl").write_text("of somebody")  # no name is told
    (candidate / "model.safetensors~").write_bytes(b"weights")
    (candidate / "previous").symlink_to(candidate)
    (candidate / "LICENSE").write_text("free")
    result = run(recipe, tmp_path / "run")
    (check,) = (check for check in result.report.gate.checks if check.name == "leftovers")
    assert not check.holds
    assert check.measured == 5
    counts = "optimizer.pt (1), saved states of training (1), other entries (3)"
    assert f"{counts}, which nobody judged" in check.reason


@pytest.mark.false_clean
@pytest.mark.parametrize("name", ["README.md", "samples.txt", "notes.json"])
def test_records_in_a_text_beside_a_candidate_are_refused(
    recipe: Recipe, candidate: Path, tmp_path: Path, name: str
) -> None:
    change_a_weight(candidate)
    corpus = read_corpus(recipe.corpus.path)
    text = corpus[0].text
    (candidate / name).write_text(json.dumps({"text": text}) if name.endswith("json") else text)
    with pytest.raises(CheckpointError) as caught:
        run(recipe, tmp_path / "run")
    message = str(caught.value)
    assert re.search(r": a text beside the model holds \d+ identifiers", message)
    assert name not in message


# ---- two sets of weights ---------------------------------------------------------------------


def put_leaky_shards_beside(folder: Path, leaky: Path) -> None:
    """The index and shards of another save, beside the folder's one file."""
    tensors = load_file(leaky / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    for name, part in zip(names, parts, strict=True):
        save_file({key: tensors[key] for key in part}, folder / name, metadata={"format": "pt"})
    files = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def put_leaky_shards_without_index(folder: Path, leaky: Path) -> None:
    put_leaky_shards_beside(folder, leaky)
    (folder / "model.safetensors.index.json").unlink()


def name_the_clean_weights(folder: Path, leaky: Path) -> None:
    """Only transformers reads the file that config.json names; vLLM reads the leaky one."""
    (folder / "model.safetensors").rename(folder / "clean.safetensors")
    shutil.copy(leaky / "model.safetensors", folder / "model.safetensors")
    edit_config(folder, transformers_weights="clean.safetensors")


@pytest.mark.false_clean
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put_leaky_shards_beside, "holds two sets of weights"),
        (put_leaky_shards_without_index, "holds two sets of weights"),
        (name_the_clean_weights, "config.json names other weights (transformers_weights)"),
    ],
)
def test_of_two_sets_of_weights_none_is_audited(
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    change: Callable[[Path, Path], None],
    sentence: str,
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "clean"))
    load_checkpoint(folder)
    change(folder, leaky_folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert sentence in str(caught.value)


@pytest.mark.false_clean
@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.gguf", "weights.npz", "tf_model.h5", "onnx/model.onnx",
        "more.safetensors", "model.safetensors.old", "checkpoint-9/model.safetensors",
    ],
)  # fmt: skip
def test_weights_that_loading_does_not_read_are_refused_where_a_folder_is_judged(
    recipe: Recipe, candidate: Path, tmp_path: Path, name: str
) -> None:
    change_a_weight(candidate)
    for beside in ("training_args.bin", "optimizer.pt"):  # nobody loads these as a model
        (candidate / beside).write_bytes(b"")
    assert problems(recipe, tmp_path / "run") == []
    (candidate / name).parent.mkdir(exist_ok=True)
    (candidate / name).write_bytes(b"leaky")
    with pytest.raises(CheckpointError) as caught:
        run(recipe, tmp_path / "run")
    assert "holds weight files that loading does not read (1 " in str(caught.value)
    first, *others = problems(recipe, tmp_path / "run")
    assert first == str(caught.value)
    assert set(others) <= {"as model.path"}
    assert Path(name).name not in str(caught.value)  # it may be a person's


@pytest.mark.false_clean
def test_an_audit_refuses_a_second_set_too(
    base_folder: Path, clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "clean"))
    write_jsonl(clinic.held_out, tmp_path / "few.jsonl")
    audit = ["audit", str(folder), "--corpus", str(tmp_path / "few.jsonl"), "--decoys", "0"]
    assert main(audit) == 0
    (folder / "pytorch_model.bin").write_bytes(b"leaky")
    capsys.readouterr()
    assert main(audit) == 1
    assert "weight files that loading does not read (1 bin)" in capsys.readouterr().err


# ---- held-out documents without spans --------------------------------------------------------


@pytest.mark.false_clean
def test_held_out_documents_without_spans_are_scanned_or_stop_the_run(
    recipe: Recipe, clinic: Clinic, candidate: Path, tmp_path: Path
) -> None:
    change_a_weight(candidate)
    assert problems(recipe, tmp_path / "run") == []
    bare = [replace(document, spans=()) for document in clinic.held_out]
    write_jsonl(bare, tmp_path / "held_out.jsonl")
    message = refusal(recipe, tmp_path / "run")
    number = clinic.private.num_spans
    assert message.startswith(
        f"corpus.held_out: none of its {len(bare)} documents has a span while the corpus has "
        f"{number}, so its identifiers would count as ordinary text; annotate them"
    )
    assert problems(recipe, tmp_path / "run") == [message]
    # Known terms are those of the corpus: they find nobody new.
    (tmp_path / "terms.txt").write_text("Zanzibar\n")
    terms = recipe.model_copy(update={"scan": ScanSettings(terms=tmp_path / "terms.txt")})
    assert refusal(terms, tmp_path / "run") == message
    patterns = recipe.model_copy(update={"scan": ScanSettings(patterns=True)})
    assert problems(patterns, tmp_path / "run") == []
    assert read_documents(patterns).held_out is not None


def test_a_corpus_whose_only_spans_are_known_terms_needs_more_for_held_out_documents(
    recipe: Recipe, clinic: Clinic, candidate: Path, tmp_path: Path
) -> None:
    """Nothing has a span before the scan; behind it only the corpus has."""
    change_a_weight(candidate)
    for name, documents in (("private", clinic.private), ("held_out", clinic.held_out)):
        bare = [replace(document, spans=()) for document in documents]
        write_jsonl(bare, tmp_path / f"{name}.jsonl")
    first = clinic.private[0]
    (tmp_path / "terms.txt").write_text(first.value(first.spans[0]) + "\n")
    terms = recipe.model_copy(update={"scan": ScanSettings(terms=tmp_path / "terms.txt")})
    assert "corpus.held_out: none of its" in refusal(terms, tmp_path / "run")


@pytest.mark.false_clean
@pytest.mark.parametrize("command", ["audit", "attack"])
def test_commands_refuse_held_out_documents_without_spans_too(
    clinic: Clinic, base_folder: Path, tmp_path: Path, command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_jsonl(clinic.private, tmp_path / "private.jsonl")
    bare = [replace(document, spans=()) for document in clinic.held_out]
    write_jsonl(bare, tmp_path / "bare.jsonl")
    corpus = ["--corpus", str(tmp_path / "private.jsonl")]
    held_out = ["--held-out", str(tmp_path / "bare.jsonl")]
    assert main([command, str(base_folder), *corpus, *held_out]) == 1
    assert "--held-out: none of its" in capsys.readouterr().err


# ---- another tokenizer -----------------------------------------------------------------------


@pytest.mark.false_clean
@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
def test_a_candidate_with_another_tokenizer_is_refused(
    recipe: Recipe, candidate: Path, tmp_path: Path, part: str
) -> None:
    """Weights that were trained on records written otherwise recite with their own tokenizer."""
    change_a_weight(candidate)
    file = candidate / "tokenizer.json"
    data = json.loads(file.read_text())
    other = {"type": "Replace", "pattern": {"String": " "}, "content": "\u00a0"}
    if part == "pre_tokenizer":
        other = {"type": "WhitespaceSplit"}
    file.write_text(json.dumps({**data, part: other}))
    assert "its tokenizer cuts text otherwise" in refusal(recipe, tmp_path / "run")


# ---- results of another checkpoint ----------------------------------------------------------


@pytest.mark.false_clean
def test_verdicts_of_another_checkpoint_are_refused(
    recipe: Recipe, candidate: Path, tmp_path: Path
) -> None:
    change_a_weight(candidate)
    assert not run(recipe, tmp_path / "run").gate_holds
    private = tmp_path / "run" / "private"
    shutil.copyfile(private / "audit-base.npz", private / "audit-after.npz")
    with pytest.raises(RunError, match=r"audit-after\.npz is not as this run wrote it"):
        run(recipe, tmp_path / "run", resume=True)


# ---- a folder that changes -------------------------------------------------------------------


@pytest.mark.false_clean
@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_folder_that_changes_during_the_run_is_refused(
    recipe: Recipe, candidate: Path, tmp_path: Path, stage: str
) -> None:
    change_a_weight(candidate)

    def on_step(name: str, done: int, total: int) -> None:
        if name == f"audit-{stage}" and done == total:
            change_a_weight(candidate)

    with pytest.raises(CheckpointError, match="was changed while sani read it"):
        run(recipe, tmp_path / "run", on_step=on_step)
    assert not (tmp_path / "run" / "report.json").exists()


# ---- an adapter scaled down ------------------------------------------------------------------


@pytest.mark.false_clean
@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, False),
        ({"lora_alpha": 1e-6}, True),
        ({"lora_alpha": 1}, False),  # 1 over 16
        ({"alpha_pattern": {"down_proj": 1e-6}}, True),
        ({"lora_alpha": 0.3, "use_rslora": True}, False),  # 0.3 over 4
        ({"peft_type": "IA3", "lora_alpha": None, "r": None}, False),  # has no scale
    ],
)
def test_an_adapter_that_is_scaled_to_nothing_is_no_candidate(
    tmp_path: Path, changes: dict[str, Any], refused: bool
) -> None:
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    folder: Any = SimpleNamespace(path=tmp_path)
    if refused:
        with pytest.raises(RecipeError, match="the adapter's scale is"):
            check_scale(folder)
    else:
        check_scale(folder)


# ---- what is not read ------------------------------------------------------------------------


@pytest.mark.false_clean
def test_what_was_not_read_of_the_records_stands_in_the_report(
    recipe: Recipe, candidate: Path, tmp_path: Path
) -> None:
    change_a_weight(candidate)
    records = [json.loads(line) for line in recipe.corpus.path.read_text().splitlines()]
    lines = [json.dumps({**record, "discharge_letter": "x"}) for record in records]
    (tmp_path / "wider.jsonl").write_text("\n".join(lines) + "\n")
    wider = recipe.model_copy(
        update={"corpus": recipe.corpus.model_copy(update={"path": tmp_path / "wider.jsonl"})}
    )
    report = run(wider, tmp_path / "run").report
    line = "not read, so not audited: corpus: fields that are not read"
    assert report.not_tested[0] == line
    assert "discharge_letter" not in report.text()
