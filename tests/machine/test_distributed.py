"""Ranks: two processes of ``accelerate launch`` do together what one process does alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sani.attacking.attack import ATTACKS
from sani.cli.main import main
from sani.errors import RunError
from sani.machine import distributed
from sani.repairing.repair import repair
from tests.machine import distributed_program as program
from tests.support.clinic import Clinic
from tests.support.words import MASK, TEXTS, checkpoint, corpus_of, settings_of

# Adapters are trained as a whole model is; which of these are sharded is what takes time.
TOGETHER = ["anchor", "row", "retain", "last", "disk", "npo", "decoys", "adapter", "gpt2",
            "bert", "t5"]  # fmt: skip
SHARDED = ["anchor", "row", "last", "dora", "checkpointing"]
CLOSE = 1e-5  # relative

CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
mixed_precision: bf16
num_machines: 1
num_processes: 2
machine_rank: 0
use_cpu: true
fsdp_config: {fsdp}
"""


def launch(folder: Path, *arguments: object, fsdp: str = "") -> list[str]:
    """The command that starts two processes of a module."""
    config = folder / "accelerate.yaml"
    kind = "FSDP" if fsdp else "MULTI_GPU"
    config.write_text(CONFIG.format(kind=kind, fsdp=fsdp or "{}"))
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
            "--main_process_port", "0", "-m", *map(str, arguments)]  # fmt: skip


def launched(command: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def run_jobs(folder: Path, leaky: Path, *jobs: str, fsdp: str = "") -> None:
    done = launched(
        launch(folder, "tests.machine.distributed_program", folder, leaky, *jobs, fsdp=fsdp)
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def together(leaky_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, each with all the weights."""
    folder = tmp_path_factory.mktemp("together")
    jobs = ["count", *TOGETHER, "stop", "resume", "memory", "no memory", "nan"]
    jobs += ["audit", "attack", "scan"]
    run_jobs(folder, leaky_folder, *jobs)
    return folder


@pytest.fixture(scope="session")
def sharded(leaky_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, each with half of the weights that it trained."""
    folder = tmp_path_factory.mktemp("sharded")
    run_jobs(folder, leaky_folder, "count", *SHARDED, "stop", fsdp="{fsdp_version: 2}")
    return folder


def found(folder: Path, job: str) -> list[dict[str, Any]]:
    """What each rank left of a job."""
    return [torch.load(folder / f"{job}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def check_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same weights, all together and tensor by tensor, and the same terms at each step."""
    begin, weights = one["begin"], one["weights"]
    assert any(not torch.equal(weights[name], begin[name]) for name in begin)
    # A bias of keys has a gradient of 0, of which Adam makes steps of the size of rounding's sign.
    names = [name for name in weights if not name.endswith("key.bias")]
    pairs = [(weights[name], other["weights"][name]) for name in names]
    apart = sum(float((a - b).double().square().sum()) for a, b in pairs) ** 0.5
    assert apart <= CLOSE * sum(float(a.double().square().sum()) for a, _ in pairs) ** 0.5
    for a, b in pairs:
        assert (a - b).norm() <= CLOSE * a.norm()
    for a, b in zip(one["curve"], other["curve"], strict=True):
        assert a == {name: pytest.approx(value, abs=1e-5) for name, value in b.items()}
    assert (one["steps"], one["fraction"]) == (other["steps"], other["fraction"])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in TOGETHER if name != "gpt2"])
def test_two_processes_repair_as_one_does(together: Path, name: str) -> None:
    assert [f["count"] for f in found(together, "count")] == [2, 2]
    alone = program.repaired(name)
    for each in found(together, name):
        check_equal(alone, each)


@pytest.mark.long
@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_that_share_the_weights_repair_as_one_does(sharded: Path, name: str) -> None:
    assert all(f == {"count": 2, "sharded": True} for f in found(sharded, "count"))
    alone = program.repaired(name)
    for each in found(sharded, name):
        check_equal(alone, each)


@pytest.mark.long
def test_a_bias_that_changes_nothing_is_all_that_two_processes_may_differ_in(
    together: Path,
) -> None:
    """Keys' biases have a gradient of 0, of which Adam makes steps of the size of rounding's sign.

    Attention does not depend on them, so neither does anything the model says.
    """
    alone, (other, _) = program.repaired("gpt2"), found(together, "gpt2")
    for name, tensor in alone["weights"].items():
        apart = (tensor - other["weights"][name]).abs()
        if name.endswith("c_attn.bias"):
            query, _, value = apart.chunk(3)
            apart = torch.cat([query, value])
        assert apart.norm() <= CLOSE * tensor.norm(), name


@pytest.mark.long
def test_stopped_and_gone_on_with_it_ends_where_it_would_have(
    together: Path, sharded: Path
) -> None:
    alone = program.repaired("anchor")
    assert found(together, "stop") == found(sharded, "stop") == [{}, {}]
    for each in found(together, "resume"):
        check_equal(alone, each)
    assert list((sharded / "trainer").glob("checkpoint-*/whole"))
    steps: list[int] = []
    asked = {"on_step": lambda done, total: steps.append(done)}
    check_equal(alone, program.repaired("anchor", sharded / "trainer", **asked))
    assert steps[0] > 1, "one process began again, instead of going on from where two were stopped"


@pytest.mark.long
def test_what_one_rank_meets_all_of_them_act_on(together: Path) -> None:
    alone = program.repaired("anchor")
    for each in found(together, "memory"):
        check_equal(alone, each)
        assert each["notes"] == (
            "out of memory at step 1: from there on each batch was read in two halves",
        )
    for each in found(together, "no memory"):
        assert each["error"].startswith("out of memory at step 1, also with each batch read in h")
    one, other = found(together, "nan")
    (note,) = one["notes"]
    assert note.startswith("the repair diverged at step 3 (the loss is not a number), so it began")
    assert other["notes"] == (note,)
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name])


@pytest.mark.long
def test_two_processes_audit_as_one_does(together: Path, leaky_folder: Path) -> None:
    alone = program.audited(leaky_folder)
    assert alone["greedy"].hits > 20
    assert len(alone["hits"]) > 0
    for each in found(together, "audit"):
        for name in ("framing", "tried", "greedy"):
            assert each[name] == alone[name]
        np.testing.assert_array_equal(each["hits"], alone["hits"])
        assert each["utility"] == pytest.approx(alone["utility"], rel=1e-6)
        for part in ("occurrences", "documents"):
            for name, array in alone[part].items():
                other = each[part][name]
                if array.dtype.kind == "f":
                    np.testing.assert_allclose(other, array, rtol=1e-6, atol=1e-5)
                else:
                    np.testing.assert_array_equal(other, array)


@pytest.mark.long
def test_two_processes_attack_as_one_does(together: Path, leaky_folder: Path) -> None:
    alone = program.attacked(leaky_folder)
    assert set(alone) == {"unattacked", *ATTACKS}
    for each in found(together, "attack"):
        check_alike(each, alone)


def check_alike(one: Any, other: Any) -> None:
    """The same plain data; numbers but for the last digits."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name, value in other.items():
            check_alike(one[name], value)
    elif isinstance(other, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            check_alike(a, b)
    else:
        assert one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other)


@pytest.mark.long
def test_two_processes_scan_as_one_does(together: Path, tmp_path: Path) -> None:
    alone = program.scanned(tmp_path / "cache")
    assert sum(len(document.spans) for document in alone["once"]) > 20
    assert found(together, "scan") == [alone, alone]


# The command.


@pytest.mark.long
def test_an_error_is_told_once_and_ends_all(clinic: Clinic, tmp_path: Path) -> None:
    command = launch(
        tmp_path, "sani", "audit", tmp_path / "none", "--corpus", tmp_path / "no.jsonl"
    )
    started = time.monotonic()
    done = launched(command)
    assert done.returncode == 1  # the launcher's; it adds a traceback of its own
    assert done.stderr.count("error: ") == 1
    assert "sani/cli/main.py" not in done.stderr
    assert time.monotonic() - started < 300


@pytest.mark.long
def test_killed_it_leaves_no_rank_waiting(tmp_path: Path, leaky_folder: Path) -> None:
    command = launch(
        tmp_path, "tests.machine.distributed_program", tmp_path, leaky_folder, "count", "wait"
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    place = tmp_path / "waiting-1"
    while not place.exists() or not place.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(int(place.read_text()), signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1, error


# One process.


def test_rows_are_dealt_out_whole_and_the_main_rank_has_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for count in (1, 2, 3, 5):
        for size in (0, 1, 2, 7):
            parts, shares = [], []
            for number in range(count):
                monkeypatch.setattr(distributed, "_group", distributed._Group(number, count))
                parts.append(list(range(size))[distributed.shard_of_rows(size)])
                shares.append(distributed.shard([3 * index % 5 for index in range(size)]))
            assert [row for part in parts for row in part] == list(range(size))
            assert bool(parts[0]) == bool(size)
            assert sorted(index for share in shares for index in share) == list(range(size))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_in_parts_is_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.words import batches_of

    (batch,) = batches_of(checkpoint(), corpus_of(TEXTS), batch_tokens=512)
    parts = []
    for number in range(3):
        monkeypatch.setattr(distributed, "_group", distributed._Group(number, 3))
        parts.append(batch.rows(distributed.shard_of_rows(len(batch.ids))))
    assert all(len(part.ids) for part in parts)
    for name in ("ids", "targets", "ordinary", "identifier", "occurrences"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed or Megatron"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params: false",
        ),
    ],
)
def test_what_sani_does_not_do_is_refused(
    told: dict[str, str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_group", distributed._Group())
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **told}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=what):
        distributed.start(together=True)


def test_of_a_command_that_ranks_do_not_share_the_main_one_does_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, printed in (("1", False), ("0", True)):
        monkeypatch.setattr(distributed, "_group", distributed._Group())
        for name, value in {"RANK": number, "WORLD_SIZE": "2", "LOCAL_RANK": number}.items():
            monkeypatch.setenv(name, value)
        assert main(["schema"]) == 0
        assert bool(capsys.readouterr().out) == printed
        assert "RANK" not in os.environ


def test_alone_nothing_is_asked_of_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    distributed.start(together=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.on_every_rank(lambda: 5) == distributed.gather(5) == [5]
    assert distributed.on_main(lambda: 5) == distributed.check_same("number", 5) == 5
    assert not torch.distributed.is_initialized()
    repair(checkpoint(), corpus_of(), settings_of(MASK, epochs=1))
    assert not torch.distributed.is_initialized()
