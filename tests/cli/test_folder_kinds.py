"""Every command reads and refuses the same folders, in the same words, and writes what loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sani.cli.main import main
from tests.support.checkpoint_kinds import KINDS, make, write_base

TEXTS = ["a b nam c d e f", "nam f g a b", "d nam h a", "g a b nam e"]
OFF = ("auc_excess", "greedy_beyond_control", "discoverable_beyond_control",
       "sampled_beyond_control", "subjects", "auc_to_base", "perplexity_ratio")  # fmt: skip
REFUSED = sorted(name for name, kind in KINDS.items() if kind.refused is not None)
READ = sorted(KINDS.keys() - set(REFUSED))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = []
    for number, text in enumerate(TEXTS):
        start = text.index("nam") + 4
        span = {"start": start, "end": start + 1, "label": "NAME", "kind": "direct"}
        rows.append({"id": f"d{number}", "subject_id": f"s{number}", "text": text, "spans": [span]})
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "corpus.jsonl"


def recipe(folder: Path, base: Path, corpus: Path) -> Path:
    path = corpus.with_name("recipe.yaml")
    path.write_text(
        f"version: 2\nmodel: {{path: {folder}, base: {base}}}\ncorpus: {{path: {corpus}}}\n"
        "audit: {decoys: 0, swaps: 0, framing: bos, membership_documents: 0}\n"
        "erase: {last_layers: 1}\nrepair: {epochs: 1}\n"
        "gate: {greedy: 1.0, discoverable: 1.0, "
        + ", ".join(f"{name}: null" for name in OFF)
        + "}\n"
    )
    return path


def arguments(command: str, folder: Path, base: Path, corpus: Path, *, adapter: bool) -> list[str]:
    """Return a command line that takes a folder; whatever is written goes beside the corpus."""
    out = corpus.with_name("out")
    read = ["--corpus", corpus]
    each: dict[str, list[object]] = {
        "audit": ["audit", folder, *read, "--decoys", 0, "--swaps", 0],
        "erase": ["erase", folder, "--last-layers", 1, "--reset", "zero", "--out", out],
        "repair": ["repair", folder, *read, "--epochs", 1, "--framing", "bos", "--out", out],
        "init": ["init", folder, *read, "--no-time", "--out", out],
        "attack": ["attack", folder, *read, "--only", "sampling", "--framing", "bos", "--quick"],
        "sample": ["sample", folder, "--documents", 1, "--new-tokens", 4, "--framing", "bos",
                   "--out", out],
        "check": ["run", recipe(folder, base, corpus), "--out", out, "--check", "--json"],
        "run": ["run", recipe(folder, base, corpus), "--out", out],
    }  # fmt: skip
    words = each[command]
    if adapter and command not in ("check", "run"):
        words += ["--base", base]
        merges = command == "erase" and (folder / "adapter_config.json").exists()
        words += ["--merge"] if merges else []
    return [str(word) for word in words]


COMMANDS = ("audit", "erase", "repair", "init", "attack", "sample", "check")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_every_command_refuses_a_folder_in_the_same_words(
    name: str, base: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[name]
    folder = make(name, tmp_path / "model", base)
    sentences = {}
    for command in COMMANDS:
        capsys.readouterr()
        assert main(arguments(command, folder, base, corpus, adapter=kind.adapter)) == 1, command
        said = capsys.readouterr()
        if command == "check":
            problems = [item["detail"] for item in json.loads(said.out) if not item["holds"]]
            assert set(problems[1:]) <= {"as model.path"}
            sentences[command] = problems[0]
        else:
            sentences[command] = " ".join(said.err.partition("error: ")[2].split())
        assert not corpus.with_name("out").exists(), command
    assert kind.refused is not None
    assert kind.refused in sentences["audit"]
    assert sentences == dict.fromkeys(COMMANDS, sentences["audit"])


def loads(folder: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    info = loaded[1]
    assert {key: names for key, names in info.items() if key.endswith("_keys") and names} == {}
    AutoTokenizer.from_pretrained(folder)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READ)
def test_every_command_reads_a_folder_and_what_it_writes_loads(
    name: str, base: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(name, tmp_path / "model", base)
    results: dict[str, Callable[[Path], object]] = {
        "erase": loads, "repair": loads, "run": lambda out: loads(out / "sanitized")
    }  # fmt: skip
    for command in (*COMMANDS, "run"):
        place = tmp_path / command
        place.mkdir()
        beside = Path(place / "corpus.jsonl")
        beside.write_bytes(corpus.read_bytes())
        code = main(arguments(command, folder, base, beside, adapter=KINDS[name].adapter))
        # A gate that does not hold is no refusal: 3.
        assert code in ((0, 3) if command == "run" else (0,)), (command, capsys.readouterr().err)
        if command in results:
            results[command](place / "out")
