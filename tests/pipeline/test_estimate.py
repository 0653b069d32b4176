"""The estimated time of a run is that of the run, within a factor of 1.5."""

import time
from pathlib import Path

import pytest

from sani import run
from sani.pipeline.estimate import RunTime
from sani.pipeline.preflight import check, time_of_run
from sani.recipe import load_recipe
from tests.support.clinic import Clinic
from tests.support.recipes import write_recipe

SECTIONS = """\
seed: 3
audit: {generation: {empty: 40, headings: 40, openings: 40, new_tokens: 32}}
erase: {interpolate_to_base: 0.9}
repair: {epochs: 6, learning_rate: 3e-3, batch_tokens: 768}
gate: {perplexity_ratio: 1.03}
"""
FACTOR = 1.5


@pytest.mark.long
def test_it_is_within_a_factor_of_one_and_a_half(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both in seconds of the processor, since others may use this machine too."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    recipe = load_recipe(
        write_recipe(tmp_path, SECTIONS, clinic=clinic, unsanitized=leaky_folder, base=base_folder)
    )
    steps = []
    estimate = time_of_run(recipe, lambda *step: steps.append(step))
    report = run(recipe, tmp_path / "run").report
    seconds = {
        "audits": sum(audit.seconds for audit in report.audits.values()),
        "repair": report.repair.seconds if report.repair else 0.0,
    }
    print({n: (estimate.seconds[n], s) for n, s in seconds.items()})
    for name, measured in seconds.items():
        assert measured / FACTOR < estimate.seconds[name] < measured * FACTOR, name
    assert steps[0][0] == "measure the scan"
    assert estimate.first == estimate.total


def test_the_stages_and_what_is_left_out_are_named() -> None:
    once = RunTime({"scan": 0.2, "audits": 100.0, "repair": 20.0}, 120.2)
    assert once.in_words == "about 2 minutes on this machine (audits 2 minutes, repair 20 seconds)"
    several = RunTime({"audits": 50.0, "repair": 50.0}, 40.0, ("attacks",))
    assert several.in_words == (
        "about 40 seconds if the first attempt holds, else about 2 minutes on this machine "
        "(audits 50 seconds, repair 50 seconds); not counted: attacks"
    )


def test_a_check_measures_only_what_is_in_order(
    clinic: Clinic, base_folder: Path, leaky_folder: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path, SECTIONS, clinic=clinic.with_few(3), unsanitized=leaky_folder, base=base_folder
    )
    wrong = load_recipe(recipe, overrides=["erase.last_layers=70"])
    assert "time" not in [item.name for item in check(wrong, tmp_path / "run", measure=True)]
    items = check(load_recipe(recipe), tmp_path / "run", measure=True)
    assert items[-1].name == "time"
    assert items[-1].detail.startswith("about ")
