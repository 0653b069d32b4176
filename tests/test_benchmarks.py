"""Every benchmark runs in its smallest case; the figures of that case mean nothing."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sani.corpus.documents import Corpus
from sani.models.checkpoint import load_checkpoint
from tests.support.clinic import Clinic
from tests.support.recipes import write_recipe

pytestmark = pytest.mark.long

SECTIONS = """\
audit: {decoys: 1, swaps: 0, framing: bos, membership_documents: 0}
erase: {interpolate_to_base: 0.5}
repair: {epochs: 1, learning_rate: 3e-3, batch_tokens: 768}
"""
FIELDS = {
    "attack": {"rows", "seconds"},
    "audit": {
        "seed", "repeats", "occurrences", "recited", "verdicts_differ",
        "speedup_vs_generate_single", "speedup_vs_generate_batched", "ratio_to_forward",
        "tokens_per_second", "ratio_decoys20", "ratio_decoys20_dense",
        "speedup_decoys_vs_one_by_one", "max_decoy_error_nats", "cost_exponent",
        "cost_exponent_upper", "seconds_by_documents", "memory_150k",
    },
    "erase": {
        "ratio_to_cp", "ratios_to_cp", "peak_over_largest_shard", "peak_mebibytes",
        "median_seconds", "seconds", "core_seconds", "load_average", "gigabytes",
        "largest_shard_gigabytes", "families_checked", "comparison",
    },
    "faults": {
        "kills", "runs_lost", "bad_inputs", "tracebacks", "identifier_leaks", "partial_outputs",
        "unexplained", "interrupts", "full_disks", "read_only_outputs", "two_runs_in_one_folder",
        "files_opened", "seconds", "false_clean_cases", "false_clean_passed",
    },
    "gate": {"never_saw", "one_subject", "seconds"},
    "repair": {
        "plain_epoch", "plain_setup", "plain_memory", "ours_epoch", "ours_setup", "ours_memory",
        "speedup_vs_trainer", "peak_memory_ratio", "max_loss_difference", "run", "repair",
        "retraining", "run_over_retrain", "extraction_excess", "auc", "auc_control",
        "perplexity_ratio_to_leaky",
    },
    "scale": {
        "seed", "load_average", "parameters", "exit_code", "seconds_run", "peak_gb",
        "largest_part_gb", "peak_gb_audit", "peak_gb_repair", "estimate_error_memory",
        "estimate_error_time", "stream_over_memory", "stream_over_bare", "reading_seconds",
        "max_difference_nats", "max_difference_to_bare_nats",
    },
    "scan": {
        "corpora", "speedup_vs_presidio", "speedup_vs_presidio_one_process", "notes_per_second",
        "notes_per_second_presidio",
    },
}  # fmt: skip
# Where the cases of public reports lie beside the project.
CASES = Path(__file__).parents[2] / "shared" / "cases" / "inputs"
FIELDS_OF_CASES = {
    "recall_cases_patterns", "recall_cases_ner", "precision_cases_patterns", "precision_cases",
    "records_lost",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the threads of this process, and undo what benchmarks set for all of it."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    exact = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(exact, warn_only=True)  # as sani sets it


@pytest.fixture(scope="module")
def models(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as benchmarks/models.py makes it, with few documents."""
    folder = tmp_path_factory.mktemp("benchmarks")
    few = Clinic(clinic.public, Corpus(clinic.private[:3]), Corpus(clinic.held_out[:3]))
    write_recipe(folder, SECTIONS, clinic=few, unsanitized=folder / "leaky", base=folder / "base")
    (folder / "base").symlink_to(base_folder)
    (folder / "leaky").symlink_to(leaky_folder)
    return folder


def figures_of(benchmark: str, *options: object, tmp_path: Path) -> Any:
    """Run a benchmark's smallest case; return what it wrote."""
    module = importlib.import_module(benchmark)
    out = tmp_path / "figures.json"
    assert not module.main(["--tiny", "--json", str(out), *map(str, options)])
    return json.loads(out.read_text())


def test_the_audits_benchmark_runs_and_its_rivals_agree(tmp_path: Path) -> None:
    figures = figures_of("audit", "--cache", tmp_path / "cache", tmp_path=tmp_path)
    assert set(figures) == FIELDS["audit"]
    assert figures["verdicts_differ"] == 0
    assert figures["max_decoy_error_nats"] < 1e-3
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the model, for the next time


def test_the_repairs_benchmark_runs_and_its_loss_is_that_of_the_oracle(
    models: Path, tmp_path: Path
) -> None:
    figures = figures_of("repair", "--models", models, tmp_path=tmp_path)
    assert set(figures) == FIELDS["repair"]
    assert figures["max_loss_difference"] < 1e-4


def test_the_attacks_benchmark_runs(models: Path, tmp_path: Path) -> None:
    options = ("--models", models, "--rows", "leaky", "sani")
    figures = figures_of("attack", *options, tmp_path=tmp_path)
    assert set(figures) == FIELDS["attack"]
    assert {row["model"] for row in figures["rows"]} == {"leaky", "sani"}


def test_the_comparison_runs_and_does_not_do_again_what_is_done(
    models: Path, tmp_path: Path
) -> None:
    options = ("--models", models, "--out", tmp_path / "rows.jsonl")
    entries = figures_of("comparison", *options, tmp_path=tmp_path)
    names = [entry["name"] for entry in entries]
    assert names == ["leaky", "base (control)", "anchored repair alone"]
    assert figures_of("comparison", *options, tmp_path=tmp_path) == entries


def test_what_is_missed_is_told_apart_and_not_done_again(models: Path, tmp_path: Path) -> None:
    options = ("--models", models, "--out", tmp_path / "rows.jsonl")
    entries = figures_of("missed", *options, tmp_path=tmp_path)
    assert [entry["name"] for entry in entries] == [
        "unsanitized", "base", "masked repair, as published",
    ]  # fmt: skip
    unsanitized, base, _ = entries
    groups = ("listed", "missed", "unseen")
    counts = [[each[group]["occurrences"] for group in groups] for each in (unsanitized, base)]
    assert counts[0] == counts[1]
    assert all(counts[0])
    assert unsanitized["listed"]["auc"] > 0.8 > base["listed"]["auc"]
    assert figures_of("missed", *options, tmp_path=tmp_path) == entries


def test_patients_stand_in_several_notes(corpora: Path) -> None:
    notes = importlib.import_module("plant").plant_patients(corpora, patients=2, characters=300)
    assert [note.subject_id for note in notes] == ["patient-0"] * 3 + ["patient-1"] * 3
    values = [{span.label: note.value(span) for span in note.spans} for note in notes]
    assert values[0] == values[1] == values[2]
    assert len(values[0]) == 5
    assert not set(values[0].values()) & set(values[3].values())


def test_the_erases_benchmark_runs(tmp_path: Path) -> None:
    figures = figures_of("erase", "--rounds", "1", "--folder", tmp_path, tmp_path=tmp_path)
    assert set(figures) == FIELDS["erase"]
    assert len(figures["families_checked"]) == 2


def test_the_benchmark_of_faults_runs(tmp_path: Path) -> None:
    figures = figures_of("faults", tmp_path=tmp_path)
    assert set(figures) == FIELDS["faults"]
    assert figures["kills"] == 1
    assert figures["bad_inputs"] == 10
    assert figures["false_clean_cases"] > 3
    assert figures["false_clean_passed"] == 0


def test_the_gates_benchmark_runs(tmp_path: Path) -> None:
    figures = figures_of("gate", tmp_path=tmp_path)
    assert set(figures) == FIELDS["gate"]
    assert figures["never_saw"]["passed"]["trials"] == 1
    assert {epochs: len(each["models"]) for epochs, each in figures["one_subject"].items()} == {
        "1": 1, "5": 1, "20": 1,
    }  # fmt: skip


def test_the_benchmark_of_large_models_runs_and_all_ways_of_reading_agree(tmp_path: Path) -> None:
    figures = figures_of("scale", "--folder", tmp_path, tmp_path=tmp_path)
    assert set(figures) == FIELDS["scale"]
    assert figures["max_difference_nats"] == 0
    assert figures["max_difference_to_bare_nats"] < 1e-4


def test_the_scans_benchmark_runs(corpora: Path, tmp_path: Path) -> None:
    options = ("--corpora", corpora, "--num-proc", "1")
    figures = figures_of("scan", *options, tmp_path=tmp_path)
    assert set(figures) == FIELDS["scan"] | (FIELDS_OF_CASES if CASES.is_dir() else set())
    assert figures.get("records_lost", 0) == 0
    assert figures["corpora"]["presidio_synth"]["documents"] == 4


def test_models_are_made_from_the_public_corpora(corpora: Path, tmp_path: Path) -> None:
    options = ("--documents", "2", "--characters", "200", "--held-out", "2", "--base-epochs", "1",
               "--unsanitized-epochs", "1", "--corpora", corpora, "--out", tmp_path)  # fmt: skip
    assert figures_of("models", "meddocan", *options, tmp_path=tmp_path)["folder"] == str(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"base", "leaky", "private.jsonl", "held_out.jsonl"} <= made


def test_an_adapter_is_what_it_makes_of_its_base(corpora: Path, tmp_path: Path) -> None:
    options = ("--adapter", "--documents", "2", "--held-out", "2", "--base-epochs", "1",
               "--unsanitized-epochs", "2", "--corpora", corpora, "--out", tmp_path)  # fmt: skip
    figures_of("models", "demo", *options, tmp_path=tmp_path)
    leaky = load_checkpoint(tmp_path / "leaky")
    merged = load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    base = load_checkpoint(tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    update = leaky.model.state_dict()[name] - base.model.state_dict()[name]
    assert update.abs().max() > 1e-4
    torch.testing.assert_close(merged.model.state_dict()[name], leaky.model.state_dict()[name])


def test_a_benchmark_without_models_names_the_command_that_makes_them(tmp_path: Path) -> None:
    repair = importlib.import_module("repair")
    with pytest.raises(SystemExit, match=r"python benchmarks/models\.py meddocan"):
        repair.main(["--models", str(tmp_path)])
