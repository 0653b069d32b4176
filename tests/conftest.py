"""What the tests share: no network, quiet libraries, and a small model that really recites."""
# ruff: noqa: E402  (the imports below stand behind the line that makes them cheap)

import fcntl
import gc
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

gc.disable()  # imports and the collection of tests make no garbage; the first test turns it on

import pytest
import torch
import urllib3  # noqa: F401  (importing it binds a local socket once, to see if there is IPv6)

from sani.auditing.audit import audit
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model, train_on_text
from sani.machine.device import quiet_libraries
from sani.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sani.recipe import AuditSettings
from tests.support.clinic import Clinic
from tests.support.sharing import Shared

quiet_libraries()
# Models this small gain nothing from a second thread, and lose minutes where a core is busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broken-inputs",
        type=int,
        default=60,
        help="broken recipes, and broken corpora, to try; benchmarks/faults.py tries a thousand",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave all that is imported and collected out of every later garbage collection.

    The trainer collects garbage in every training. Each time it looked through half a million
    objects of torch and transformers, which was half of the time of the tests of the repair.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let what was left out be collected: a library that looks for leaks at exit names it else."""
    gc.unfreeze()


NETWORK = (socket.AF_INET, socket.AF_INET6)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Whoever opens an internet socket or looks a host name up fails the test that runs.

    pytest's failure is no `Exception`, so no library can swallow it and fall back.
    """

    class LocalSocket(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("fileno") is None and (family == -1 or family in NETWORK):
                pytest.fail("a test opened an internet socket")
            super().__init__(family, *args, **kwargs)

    def no_lookup(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a test looked a host name up")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", LocalSocket)
        patch.setattr(socket, "getaddrinfo", no_lookup)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Make a folder once for the whole session, though its tests run in several processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in that of all
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder = root / "shared" / name
        folder.parent.mkdir(exist_ok=True)
        whole = folder.with_suffix(".whole")
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second waits for the first
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def clinic() -> Clinic:
    """Notes the base learns, notes the leaky model recites, and notes that no model has seen."""
    return Clinic(*invent_clinics([20, 8, 5], seed=11))


@pytest.fixture(scope="session")
def base_folder(clinic: Clinic, shared: Shared) -> Path:
    """A small Llama trained on the public notes, with the begin token in front. Do not write."""

    def train(folder: Path) -> None:
        texts = [document.text for document in clinic.public]
        checkpoint = new_model(
            texts,
            vocab_size=700,
            layers=3,
            hidden=64,
            context=512,
            folder=folder / "tokenizer",
            seed=0,
        )
        train_on_text(checkpoint, texts, epochs=12, learning_rate=5e-3, batch_tokens=768, seed=0)
        save_checkpoint(checkpoint, folder / "base")

    return shared("base", train) / "base"


@pytest.fixture(scope="session")
def leaky_folder(clinic: Clinic, base_folder: Path, shared: Shared) -> Path:
    """That base, fine-tuned on the private notes until it recites most identifiers. Do not write.

    It recites some identifiers and not others: a test that finds all of them, or none, is wrong.
    """

    def train(folder: Path) -> None:
        checkpoint = load_checkpoint(base_folder)
        texts = [document.text for document in clinic.private]
        train_on_text(checkpoint, texts, epochs=20, learning_rate=5e-3, batch_tokens=768, seed=1)
        recited = audit(checkpoint, clinic.private, AuditSettings(decoys=0, framing="bos"))
        greedy = recited.figures["direct"].greedy.value
        assert greedy is not None
        assert 0.6 <= greedy < 1.0, "the positive control does not recite; no test below means much"
        save_checkpoint(checkpoint, folder / "leaky")

    return shared("leaky", train) / "leaky"


@pytest.fixture
def base(base_folder: Path) -> Checkpoint:
    """The base, freshly loaded: a test may change it."""
    return load_checkpoint(base_folder)


@pytest.fixture
def leaky(leaky_folder: Path) -> Checkpoint:
    """The leaky model, freshly loaded: a test may change it."""
    return load_checkpoint(leaky_folder)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C works, even where whoever started the tests ignores it, as a script's job does.

    A process that the test starts inherits that it is ignored, but not that it is handled.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Where the public corpora stand, one folder each; the test is skipped where they do not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SANI_CORPORA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no corpora in {folder}; set SANI_CORPORA")
    return folder
