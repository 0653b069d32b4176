"""Rounds: erase and repair again on what is still extractable, until nothing is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sani import run
from sani.auditing.audit import audit
from sani.auditing.membership import DocumentScores
from sani.cli.main import main
from sani.corpus.documents import Corpus, Document, Place, Span, only
from sani.erasing.erase import erase
from sani.errors import RecipeError, RunError
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.pipeline.preflight import check
from sani.pipeline.rounds import still_extractable
from sani.recipe import load_recipe
from sani.repairing.repair import repair
from sani.reporting.stored_report import read_report
from sani.runfolder import RunFolder
from tests.support.clinic import Clinic
from tests.support.occurrences import verdicts
from tests.support.recipes import gate_on_totals, write_recipe
from tests.support.sharing import Shared

SECTIONS = """\
seed: 3
rounds: 3
audit: {decoys: 0, swaps: 0, framing: bos, membership_documents: 0}
erase: {last_layers: 1, selector: {kind: gradient_ratio, fraction: 0.25}}
repair: {identifier_loss: {kind: mask}, epochs: 2, learning_rate: 3e-3, batch_tokens: 768}
""" + gate_on_totals("9.0")


@pytest.fixture(scope="module")
def few(clinic: Clinic) -> Clinic:
    """A clinic of few documents, since each round reads them all several times."""
    return clinic.with_few(6)


@pytest.fixture(scope="module")
def recipe(few: Clinic, base_folder: Path, leaky_folder: Path, shared: Shared) -> Path:
    """Masking alone, with little erased: it leaves much, each time less."""

    def write(folder: Path) -> None:
        write_recipe(folder, SECTIONS, clinic=few, unsanitized=leaky_folder, base=base_folder)

    return shared("rounds", write) / "recipe.yaml"


@pytest.fixture(scope="module")
def repeated(recipe: Path, shared: Shared) -> Path:
    """A finished run of three rounds. Do not write."""
    return shared("repeated", lambda folder: run(load_recipe(recipe), folder / "run")) / "run"


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def left(checkpoint: Checkpoint, base: Checkpoint, corpus: Corpus, recipe: Path) -> list[Place]:
    """What it gives and the base does not, one by one."""
    settings = load_recipe(recipe).audit
    found, control = (audit(c, corpus, settings).occurrences for c in (checkpoint, base))
    return [
        (int(found.document[n]), int(found.span[n]))
        for n in range(len(found.document))
        if (found.greedy[n] or found.discoverable[n])
        and not (control.greedy[n] or control.discoverable[n])
        and corpus[found.document[n]].spans[found.span[n]].kind == "direct"
    ]


def test_a_round_begins_where_the_last_one_ended_and_targets_what_remained(
    recipe: Path, repeated: Path, few: Clinic, leaky: Checkpoint, base: Checkpoint
) -> None:
    """By hand, round after round: the same weights."""
    settings = load_recipe(recipe)
    assert settings.erase is not None
    places, counts = left(leaky, base, few.private, recipe), []
    targeted = few.private
    for number in (1, 2, 3):
        seed = settings.seed + number - 1
        erase(leaky, targeted, settings.erase, framing="bos", seed=seed)
        repair(leaky, few.private, settings.repair, framing="bos", seed=seed)
        found = load(repeated, f"round-{number}.json")
        assert found["weights_digest"] == leaky.weights_digest()
        assert found["targeted"] == targeted.num_spans
        counts.append(len(places))
        places = left(leaky, base, few.private, recipe)
        assert found["remaining"] == len(places)
        targeted = only(few.private, places)
    assert counts[0] > counts[1] > counts[2] > len(places)  # and so each had something to do
    digest = load_checkpoint(repeated / "sanitized").weights_digest()
    assert digest == leaky.weights_digest() == load(repeated, "repair.json")["weights_digest"]
    after, last = load(repeated, "audit-after.json"), load(repeated, "round-3.json")
    assert after["figures"] == last["audit"]["figures"]


def test_what_the_base_gives_too_is_not_counted_as_still_extractable(tmp_path: Path) -> None:
    spans = (Span(0, 3, "NAME"), Span(4, 8, "NAME"), Span(9, 13, "DATE", "indirect"))
    corpus = Corpus([Document("1", "1", "Ana Sanz 1970", spans)])
    folder = RunFolder(tmp_path)
    folder.private.mkdir()
    folder.save_arrays("round-1", verdicts("gsg"))
    assert still_extractable(folder, "round-1", corpus, ["direct"]) == [(0, 0), (0, 1)]
    with pytest.raises(RunError, match=r"another version of sani.*another --out"):
        folder.load_arrays("round-1", DocumentScores)
    folder.save_arrays("audit-base", verdicts("s--"))
    assert still_extractable(folder, "round-1", corpus, ["direct"]) == [(0, 1)]


def test_it_ends_as_soon_as_nothing_is_extractable(recipe: Path, tmp_path: Path) -> None:
    strong = {"identifier_loss": {"kind": "anchor", "weight": 20.0}, "epochs": 4}
    options = [
        "rounds=50", "erase={last_layers: all}",
        f"repair={json.dumps({**strong, 'learning_rate': 0.003, 'batch_tokens': 768})}",
    ]  # fmt: skip
    run(load_recipe(recipe, overrides=options), tmp_path / "run")
    done = load(tmp_path / "run", "rounds.json")["rounds"]
    rounds = [load(tmp_path / "run", f"round-{n}.json")["remaining"] for n in range(1, done + 1)]
    assert done < 50
    assert rounds[-1] == 0
    assert all(rounds[:-1])


def test_a_run_folder_has_one_result_a_round_and_the_weights_of_the_last(repeated: Path) -> None:
    assert {file.name for file in repeated.glob("*.json")} == {
        "scan.json", "erase.json", "repair.json", "rounds.json", "round-1.json", "round-2.json",
        "memory.json",
        "round-3.json", "audit-base.json", "audit-before.json", "audit-after.json", "report.json",
    }  # fmt: skip
    places = [place.parent.name for place in (repeated / "private").rglob("*.safetensors")]
    assert places == ["repair"]


def test_the_report_shows_what_each_round_left_and_brought_up(
    repeated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_report(repeated).to_json()  # fits the schema, too
    assert [step["to"] for step in found["onion"]] == ["round-1", "round-2", "after"]
    assert [step["from"] for step in found["ripples"]] == ["before", "round-1", "round-2"]
    rounds = found["rounds"]["rounds"]
    assert found["rounds"]["tokens"] == sum(each["tokens"] for each in rounds) > 0
    assert all(each["neurons"] for each in rounds)
    page = (repeated / "report.html").read_text()
    assert main(["report", str(repeated)]) == 3
    printed = " ".join(capsys.readouterr().out.split())
    sentence = f"3 of at most 3 rounds took {found['rounds']['seconds']:.0f} s"
    for form in (page, (repeated / "report.md").read_text(), printed):
        assert sentence in form
        assert f"{rounds[-1]['remaining']} occurrences remain." in form
    assert "round 2 to after (sanitized)" in page


class CutError(Exception):
    """What ends a process in the middle of a round."""


@pytest.mark.parametrize(
    "at",
    [
        "round 2 of at most 3, repair",
        pytest.param("round 2 of at most 3, audit", marks=pytest.mark.long),
    ],
)
def test_cut_off_in_a_round_it_goes_on_to_the_same_bytes(
    recipe: Path, repeated: Path, tmp_path: Path, at: str
) -> None:
    out = tmp_path / "run"

    def cut(stage: str, done: int, total: int) -> None:
        if stage == at and done > total // 2:
            raise CutError

    with pytest.raises(CutError):
        run(load_recipe(recipe), out, on_step=cut)
    kept = (out / "round-1.json").stat().st_mtime_ns
    assert not (out / "round-2.json").exists()
    run(load_recipe(recipe), out, resume=True)
    assert (out / "round-1.json").stat().st_mtime_ns == kept
    place = Path("sanitized") / "model.safetensors"
    assert (out / place).read_bytes() == (repeated / place).read_bytes()


@pytest.mark.parametrize("last", ["round-3.json", "erase.json", "repair.json"])
def test_cut_off_behind_the_last_round_it_goes_on(
    recipe: Path, repeated: Path, tmp_path: Path, last: str
) -> None:
    """What an earlier process wrote last; all that comes later is taken away."""
    out = tmp_path / "run"
    shutil.copytree(repeated, out)
    order = ["round-3.json", "erase.json", "repair.json", "rounds.json", "audit-after.json"]
    for name in order[order.index(last) + 1 :]:
        (out / name).unlink()
    shutil.rmtree(out / "sanitized")
    if last == "round-3.json":
        (out / "private" / "repair").rename(out / "private" / "round-3")
    run(load_recipe(recipe), out, resume=True)
    assert load(out, "rounds.json") == load(repeated, "rounds.json")
    place = Path("sanitized") / "model.safetensors"
    assert (out / place).read_bytes() == (repeated / place).read_bytes()


def test_weights_that_another_hand_changed_between_rounds_are_refused(
    recipe: Path, base_folder: Path, tmp_path: Path
) -> None:
    def cut(stage: str, done: int, total: int) -> None:
        if stage.startswith("round 2"):
            raise CutError

    with pytest.raises(CutError):
        run(load_recipe(recipe), tmp_path / "run", on_step=cut)
    weights = "model.safetensors"
    shutil.copyfile(base_folder / weights, tmp_path / "run" / "private" / "round-1" / weights)
    with pytest.raises(RunError, match="not those that the round left there"):
        run(load_recipe(recipe), tmp_path / "run", resume=True)


def test_one_round_is_a_plain_run(recipe: Path, repeated: Path, tmp_path: Path) -> None:
    run(load_recipe(recipe, overrides=["rounds=1"]), tmp_path / "run")
    plain, first = load(tmp_path / "run", "repair.json"), load(repeated, "round-1.json")
    assert plain["weights_digest"] == first["weights_digest"]
    assert not (tmp_path / "run" / "rounds.json").exists()


def test_only_an_erase_can_be_repeated_too(recipe: Path, tmp_path: Path) -> None:
    options = ["repair=null", "rounds=2"]
    run(load_recipe(recipe, overrides=options), tmp_path / "run")
    digest = load_checkpoint(tmp_path / "run" / "sanitized").weights_digest()
    assert digest == load(tmp_path / "run", "erase.json")["weights_digest"]
    assert digest == load(tmp_path / "run", "round-2.json")["weights_digest"]


def test_an_escalation_has_no_rounds(recipe: Path) -> None:
    options = ["strategy=escalate", "erase=null"]
    with pytest.raises(RecipeError, match="rounds: strategy: escalate"):
        load_recipe(recipe, overrides=options)


def test_the_check_tells_what_rounds_read(
    recipe: Path, few: Clinic, leaky: Checkpoint, tmp_path: Path
) -> None:
    items = {item.name: item for item in check(load_recipe(recipe), tmp_path / "run")}
    tokens = 2 * sum(len(leaky.tokenizer(document.text).input_ids) for document in few.private)
    assert items["rounds"].holds
    assert items["rounds"].detail.startswith("3 at most, each only if the one before left anything")
    assert f"about {tokens:,} tokens of training a round" in items["rounds"].detail
    once = check(load_recipe(recipe, overrides=["rounds=1"]), tmp_path / "run")
    assert "rounds" not in {item.name for item in once}
