"""The documentation's promises: every command and every Python block in it is run."""

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sani.cli.main import main
from sani.corpus.documents import Corpus
from sani.corpus.tables import write_jsonl
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model
from sani.models.checkpoint import Checkpoint, save_checkpoint
from sani.releasing.manifest import write_manifest
from tests.support.charts import blank_charts
from tests.support.pages import ROOT, SANI, Command, blocks, commands, options_of, pages
from tests.support.releases import REPORT, make_keys

# Commands that are not run here as they stand, each with what runs it instead or why nothing can.
# The options of those of sani are checked all the same.
ELSEWHERE = {
    "make demo": "its target is checked below; sani demo runs in CI and at release, by hand",
    "sani demo": "trains for minutes: `make demo` in CI; the test of the demo reads its recipe",
    "openssl": "another program; the keys it makes are read in tests/releasing",
    "pip install": "needs a network",
    "hf download": "needs a network",
}
LONG = ("docs/quickstart.md", "docs/audit.md", "docs/attacks.md", "docs/python.md")
# What makes a real command small enough for a test; nothing else of it is changed.
SMALLER = {
    "audit": ["--decoys", "1", "--swaps", "1", "--framing", "bos", "--limit", "3"],
    "run": [
        "--set", "repair.epochs=1", "--set", "audit={decoys: 1, swaps: 1, framing: bos}",
        "--set", "corpus.limit=3",
    ],
    "init": ["--no-time"],
    "sample": ["--new-tokens", "8"],
    "repair": ["--epochs", "1"],
    "attack": ["--limit", "2", "--framing", "bos"],
}  # fmt: skip
SMALL_VALUES = {"--samples": "4", "--documents": "2"}
PAGES = pages()
COMMANDS = {
    f"{page}: {command}": command
    for page, text in PAGES.items()
    for _, block in blocks(text, "console")
    for command in commands(block)
}


def elsewhere(command: Command) -> str | None:
    """The entry of `ELSEWHERE` that a command begins with."""
    return next((e for e in ELSEWHERE if f"{command} ".startswith(f"{e} ")), None)


def smaller(command: Command) -> list[str]:
    """The command's arguments, with less to do; other words and options stay as they are."""
    words = list(command.words[1:])
    for option, value in SMALL_VALUES.items():
        if option in words:
            words[words.index(option) + 1] = value
    whole = "--check" in words or "--try-next" in words
    return words if whole else words + SMALLER.get(words[0], [])


def exit_code(command: Command) -> int:
    """Untrained models recite nothing: the positive control, and so the gate, cannot hold.

    For such a run there is no setting to try next.
    """
    name, words = command.words[1], command.words
    if "--try-next" in words:
        return 1
    judged = (name == "run" and "--check" not in words) or "--gate" in words
    return 3 if judged or (name == "report" and "--compare" not in words) else 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every path that the documentation names is there, small."""
    folder = tmp_path_factory.mktemp("documentation")
    corpora: list[Corpus] = list(invent_clinics((4, 2, 2, 1), seed=5))
    for name, corpus in zip(("public", "records", "held_out", "other"), corpora, strict=True):
        write_jsonl(corpus, folder / f"{name}.jsonl")
    for name, source in (
        ("part", "records"), ("gold", "held_out"), ("seen_by_the_base", "other"),
    ):  # fmt: skip
        shutil.copyfile(folder / f"{source}.jsonl", folder / f"{name}.jsonl")
    with (folder / "export.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["note_id", "mrn", "note"])
        writer.writerows([d.id, d.subject_id, d.text] for d in corpora[1])
    (folder / "prompts.txt").write_text("Patient:\nSeen today\n")
    for document in corpora[1]:
        note = folder / "notes" / document.subject_id / f"{document.id}.txt"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(document.text)
    texts = [document.text for document in corpora[0]]
    demo = folder / "runs" / "demo"
    names = ("models/public-base", "models/fine-tuned", "models/last-round", "models/candidate")
    for seed, name in enumerate(names):
        model = new_model(texts, vocab_size=400, layers=4, hidden=32, context=128,
                          folder=folder / "tokenizer", seed=seed)  # fmt: skip
        save_checkpoint(model, folder / name)
    for name, source in (("base", "models/public-base"), ("leaky", "models/fine-tuned")):
        shutil.copytree(folder / source, demo / name)
    for name, source in (("private", "records"), ("held_out", "held_out")):
        shutil.copyfile(folder / f"{source}.jsonl", demo / f"{name}.jsonl")
    write_adapter(model, folder / "models")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(folder / "models" / "fine-tuned", folder / "released")
    write_manifest(folder / "released", REPORT, weights_digest="0" * 64)
    make_keys(folder, "key")
    return folder


def write_adapter(model: Checkpoint, models: Path) -> None:
    """A LoRA adapter on the base whose update is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models / "public-base")
    adapted: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["up_proj", "q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)
    adapted.save_pretrained(models / "adapter")


class Reader:
    """Somebody who types what a page says, in one folder, and runs no command twice."""

    def __init__(self, workplace: Path, capsys: Any) -> None:
        self._workplace = workplace
        self._capsys = capsys
        self._done: set[Command] = set()

    def read(self, page: str, *, alone: bool = False) -> None:
        """Run a page's console and Python blocks in their order."""
        names: dict[str, Any] = {}
        for language, block in blocks(PAGES[page], "console", "python"):
            if language == "python":
                exec(compile(block, page, "exec"), names)
                continue
            for command in commands(block):
                if elsewhere(command) is None and command not in self._done:
                    self._done.add(command)
                    self._run(page, command)

    def _run(self, page: str, command: Command) -> None:
        words = command.words
        assert words[0] == "sani", f"{page}: a command that no test runs: {command}"
        if "--compare" in words:  # two runs, of which only one was made
            shutil.copytree(words[2], words[3], dirs_exist_ok=True)
        if words[1] in ("verify", "sign"):
            self._give_away(Path(words[2]), again=words[1] == "verify" and "--key" not in words)
        else:
            self._take_back()
        code = main(smaller(command))
        error = self._capsys.readouterr().err
        assert code == exit_code(command), f"{page}: {command}: {error}"

    def _give_away(self, released: Path, *, again: bool) -> None:
        """Put what a run whose gate held leaves in its place, without the run's report."""
        report, real = released.with_name("report.json"), released.with_name("real")
        if report.exists():
            report.rename(report.with_suffix(".hidden"))
            released.rename(real)
        if again or not released.exists():
            shutil.rmtree(released, ignore_errors=True)
            shutil.copytree(self._workplace / "released", released)

    def _take_back(self) -> None:
        """Put the run's own report and checkpoint back in their places."""
        for real in Path("runs").glob("*/real"):
            shutil.rmtree(real.with_name("sanitized"), ignore_errors=True)
            real.rename(real.with_name("sanitized"))
            real.with_name("report.hidden").rename(real.with_name("report.json"))


@pytest.fixture
def reader(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Iterator[Reader]:
    folder = tmp_path / "here"
    shutil.copytree(workplace, folder)
    monkeypatch.chdir(folder)
    with blank_charts():
        yield Reader(workplace, capsys)


def test_commands_and_pages_are_found() -> None:
    text = "".join(block for page in PAGES.values() for _, block in blocks(page, "console"))
    count = sum(len(commands(b)) for page in PAGES.values() for _, b in blocks(page, "console"))
    assert count == len(re.findall(r"^\$ ", text, re.MULTILINE)) > 30
    assert not [line for line in text.splitlines() if line and not line.startswith(("$ ", " "))]
    assert set(LONG) < set(PAGES)
    assert all(path.name in {Path(p).name for p in PAGES} for path in (ROOT / "docs").glob("*.md"))


def test_the_commands_and_python_of_all_pages_do_what_they_say(reader: Reader) -> None:
    """In the order of the site, in one folder, as a reader would type them."""
    for page in PAGES:
        if page not in LONG:
            reader.read(page)


@pytest.mark.long
@pytest.mark.parametrize("page", LONG)
def test_the_commands_and_python_of_a_long_page_do_what_they_say(page: str, reader: Reader) -> None:
    shutil.copytree("released", "runs/first/sanitized")
    if page == "docs/quickstart.md":  # it makes these itself
        for name in ("notes", "models", "runs/first"):
            shutil.rmtree(name)
        for name in ("gold", "held_out", "records"):
            Path(f"{name}.jsonl").unlink()
    reader.read(page)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_every_command_and_option_is_there(command: Command) -> None:
    if command.words[0] != "sani":
        assert elsewhere(command), f"a command that no test runs: {command}"
        return
    used = {word.split("=")[0] for word in command.words if word.startswith("--")}
    assert used <= options_of(command.words[1])
    if elsewhere(command):
        known = SANI[command.words[1]]
        context = known.make_context("sani", list(command.words[2:]), resilient_parsing=True)
        assert not context.args


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^\$ |`)make ([a-z -]+)", "\n".join(PAGES.values()), re.MULTILINE)
    assert named
    assert {target for words in named for target in words.split()} <= targets
