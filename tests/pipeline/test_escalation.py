"""Escalation: what is tried, what is kept, when it stops; and repairs that stop at the gate."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sani import run
from sani.cli.main import main
from sani.corpus.tables import write_jsonl
from sani.demo.demo import new_model
from sani.erasing.reinit import fresh_model
from sani.errors import RecipeError, RepairError, RunError, UnsavedError
from sani.intervals import Estimate, rate
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from sani.pipeline.context import RunContext
from sani.pipeline.escalation import best_of, climb
from sani.recipe import QUICK, EscalationSettings, RepairSettings, dump_recipe, load_recipe
from sani.repairing.repair import repair
from sani.repairing.training_job import EpochAudit
from sani.reporting.escalation import cells
from sani.reporting.schema import Measured, RungFigures, json_schema
from sani.reporting.stored_report import read_report
from sani.runfolder import RunFolder, open_run
from tests.support.clinic import Clinic
from tests.support.recipes import gate_on_totals, recipe_text, write_recipe
from tests.support.sharing import Shared
from tests.support.words import ANCHOR, checkpoint, corpus_of, gpt2, settings_of

SECTIONS = (
    """\
seed: 3
strategy: escalate
audit: {decoys: 0, swaps: 0, framing: bos, membership_documents: 0}
repair: {epochs: 3, learning_rate: 3e-3, batch_tokens: 768}
"""
    + gate_on_totals("2.0").replace("control\n", "0.05\n")
    + """\
escalation:
  ladder:
  - name: mask alone
    repair: {identifier_loss: {kind: mask}, epochs: 1, early_stop: gate}
  - name: far too fast
    repair: {identifier_loss: {kind: mask}, epochs: 1, learning_rate: 1e+4}
  - name: last half
    erase: {last_layers: half}
  - name: retraining
    erase: {interpolate_to_base: 1.0}
    repair: {identifier_loss: {kind: mask}}
"""
)


@pytest.fixture(scope="module")
def few(clinic: Clinic) -> Clinic:
    """A clinic of few documents, since each rung reads them all several times."""
    return clinic.with_few(6, held_out=4)


@pytest.fixture(scope="module")
def recipe(few: Clinic, base_folder: Path, leaky_folder: Path, shared: Shared) -> Path:
    """A ladder whose first rung leaks, whose second fails, and whose third is well."""

    def write(folder: Path) -> None:
        write_recipe(folder, SECTIONS, clinic=few, unsanitized=leaky_folder, base=base_folder)

    return shared("ladder", write) / "recipe.yaml"


@pytest.fixture(scope="module")
def climbed(recipe: Path, shared: Shared) -> Path:
    """A finished escalation. Do not write."""

    def work(folder: Path) -> None:
        assert run(load_recipe(recipe), folder / "run").gate_holds

    return shared("climbed", work) / "run"


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


# What is tried and kept.


def test_it_climbs_until_the_gate_holds(climbed: Path) -> None:
    leaking, failed, held = (load(climbed, f"rung-{number}.json") for number in (1, 2, 3))
    assert leaking["audit"]["figures"]["direct"]["greedy"]["value"] > 0.3  # it can see a leak
    assert not leaking["holds"]
    assert failed["failed"].startswith("the repair diverged at step ")
    assert failed["checks"] == []
    assert held["holds"]
    assert not (climbed / "rung-4.json").exists()
    found = load(climbed, "escalation.json")
    assert (found["best"], found["stopped"], found["not_tried"]) == (3, "holds", ["retraining"])
    assert found["tokens"] == sum(rung["tokens"] for rung in (leaking, failed, held))
    assert failed["tokens"] == leaking["tokens"] > 0  # what failed is not free
    assert found["seconds"] == sum(rung["seconds"] for rung in (leaking, failed, held))


def test_what_follows_is_of_the_rung_that_was_kept(climbed: Path) -> None:
    held, after = load(climbed, "rung-3.json"), load(climbed, "audit-after.json")
    assert after["figures"] == held["audit"]["figures"]
    digest = load_checkpoint(climbed / "sanitized").weights_digest()
    assert digest == held["weights_digest"] == load(climbed, "repair.json")["weights_digest"]
    assert load(climbed, "erase.json") == held["erase"]
    judged = load(climbed, "report.json")["gate"]["checks"]
    assert judged == held["checks"]


def test_a_run_folder_has_one_result_a_rung_and_the_weights_of_one(climbed: Path) -> None:
    assert {file.name for file in climbed.iterdir()} == {
        "private", "sanitized", "recipe.resolved.yaml", "scan.json", "erase.json", "repair.json",
        "rung-1.json", "rung-2.json", "rung-3.json", "escalation.json", "memory.json",
        "audit-base.json", "audit-before.json", "audit-after.json",
        "report.json", "report.md", "report.html", "junit.xml", "report.sarif",
    }  # fmt: skip
    assert [place.parent.name for place in (climbed / "private").rglob("*.safetensors")] == [
        "repair"
    ]


def test_the_report_says_what_was_tried_and_what_it_cost(
    climbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_report(climbed).to_json()["escalation"]  # fits the schema, too
    assert "TriedRung" in json_schema()["$defs"]
    assert [rung["holds"] for rung in found["rungs"]] == [False, False, True]
    assert main(["report", str(climbed)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    text = (climbed / "report.md").read_text()
    page = re.sub(r"</?a\b[^>]*>", "", (climbed / "report.html").read_text())  # to the glossary
    for form in (printed, text, page):
        assert "What was tried" in form
        assert "The gate holds, so nothing further was tried. 3 rungs took" in form
        assert "Kept: rung 3, last half. The rule: The first rung whose gate holds." in form
        assert "Not tried: retraining." in form
    seconds = load(climbed, "rung-3.json")["seconds"]
    assert (
        "| 3. last half (kept) | all of last half, reinit | anchor to base, weight 20, 3 epochs at "
        "0.003 | 2.1% | 2.1% | - |"
    ) in text
    assert f"| {seconds:.1f} | {load(climbed, 'rung-3.json')['tokens']} | none: the gate" in text
    assert "| failed: the repair diverged at step" in text
    assert "escalation, 3 rungs" in page


def test_a_rung_is_what_a_plain_run_with_its_settings_gives(
    recipe: Path, climbed: Path, tmp_path: Path
) -> None:
    options = [
        "strategy=once", "escalation=null", "erase={last_layers: half}",
    ]  # fmt: skip
    run(load_recipe(recipe, overrides=options), tmp_path / "plain")
    plain, rung = (load(place, "repair.json") for place in (tmp_path / "plain", climbed))
    assert plain["weights_digest"] == rung["weights_digest"]
    assert plain["curve"] == rung["curve"]
    erased = load(tmp_path / "plain", "erase.json")
    assert erased["weights_digest"] == load(climbed, "erase.json")["weights_digest"]


@pytest.mark.long
def test_the_best_is_kept_when_the_budget_is_spent(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second rung leaks more than the first, and after it the tokens are spent."""
    out = tmp_path / "run"
    first = "{name: last layer, erase: {last_layers: 1}, repair: {last_layers: 1, epochs: 1}}"
    second = "{identifier_loss: {kind: mask}, epochs: 1}"
    third = f"{{erase: {{interpolate_to_base: 1.0}}, repair: {second}}}"
    ladder = f"[{first}, {{repair: {second}}}, {third}]"
    tokens = load_tokens(recipe)
    options = [f"escalation.ladder={ladder}", f"escalation.tokens={2 * tokens}"]
    arguments = [part for option in options for part in ("--set", option)]
    assert main(["run", str(recipe), "--out", str(out), *arguments]) == 3
    leaked = [load(out, f"rung-{n}.json")["audit"]["figures"]["direct"] for n in (1, 2)]
    assert leaked[0]["discoverable"]["hits"] < leaked[1]["discoverable"]["hits"]
    assert not (out / "rung-3.json").exists()
    found = load(out, "escalation.json")
    assert (found["best"], found["stopped"], found["not_tried"]) == (1, "budget", ["rung 3"])
    digest = load_checkpoint(out / "sanitized").weights_digest()
    assert digest == load(out, "rung-1.json")["weights_digest"]
    assert not list((out / "private").glob("rung-*"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "The budget was spent before the gate held. 2 rungs took" in shown
    assert "Not tried: rung 3." in shown


def load_tokens(recipe: Path) -> int:
    """Tokens of the corpus."""
    from sani.corpus.readers import read_corpus
    from sani.text.tokens import encode

    settings = load_recipe(recipe)
    tokenizer = load_checkpoint(settings.model.path).tokenizer
    return sum(len(item.ids) for item in encode(read_corpus(settings.corpus.path), tokenizer))


@pytest.mark.long
def test_retraining_begins_with_every_weight_of_the_base(
    recipe: Path, few: Clinic, base_folder: Path, tmp_path: Path
) -> None:
    ladder = (
        "[{erase: {interpolate_to_base: 1.0}, repair: {identifier_loss: {kind: mask}, epochs: 1}}]"
    )
    out = tmp_path / "run"
    run(load_recipe(recipe, overrides=[f"escalation.ladder={ladder}"]), out)
    retrained = load_checkpoint(base_folder)
    settings = RepairSettings.model_validate(
        {
            "identifier_loss": {"kind": "mask"},
            "epochs": 1,
            "learning_rate": 3e-3,
            "batch_tokens": 768,
        }
    )
    repair(retrained, few.private, settings, framing="bos", seed=3)
    assert load(out, "rung-1.json")["weights_digest"] == retrained.weights_digest()
    assert "every weight was set to the base" in (out / "report.md").read_text()
    assert "Retrained: every weight" in (out / "sanitized" / "README.md").read_text()


@pytest.mark.long
def test_without_a_base_it_climbs_too(recipe: Path, tmp_path: Path) -> None:
    limits = ("{greedy: 0.0, discoverable: 0.0, greedy_beyond_control: null, "
              "discoverable_beyond_control: null, subjects: null, auc_to_base: null, "
              "perplexity_ratio: 2.0}")  # fmt: skip
    options = ["model.base=null", f"gate={limits}", "escalation={tokens: 1}", "repair.epochs=1"]
    out = tmp_path / "run"
    assert not run(load_recipe(recipe, overrides=options), out).gate_holds
    (tried,) = load(out, "report.json")["escalation"]["rungs"]
    assert tried["settings"]["repair"]["identifier_loss"]["to"] == "counterfactual"
    assert tried["failed"] is None
    assert load(out, "escalation.json")["not_tried"] == [
        "last half", "last half, stronger", "half of every layer",
    ]  # fmt: skip


@pytest.mark.long
def test_only_a_rung_that_holds_otherwise_is_attacked_and_it_must_hold_then_too(
    recipe: Path, tmp_path: Path
) -> None:
    """Attacks on two documents try too few occurrences to hold, so no rung ends it."""
    quick = QUICK.model_copy(update={"documents": 2}).model_dump_json()
    options = [f"attack={quick}", "gate.attacks=0.5", "escalation.tokens=9000000"]
    ladder = load_recipe(recipe).model_dump(mode="json")["escalation"]["ladder"]
    options.append(f"escalation.ladder={json.dumps([ladder[0], ladder[2]])}")
    out = tmp_path / "run"
    assert not run(load_recipe(recipe, overrides=options), out).gate_holds
    leaking, attacked = (load(out, f"rung-{number}.json") for number in (1, 2))
    assert leaking["attack"] is None
    assert "No attack was run." in [
        c["reason"] for c in leaking["checks"] if c["name"] == "attacks"
    ]
    broken = {check["name"] for check in attacked["checks"] if not check["holds"]}
    assert broken
    assert all(name.startswith("attack.") for name in broken)
    assert load(out, "attack.json") == attacked["attack"]  # and not attacked once more
    assert load(out, "report.json")["gate"]["checks"] == attacked["checks"]
    assert load(out, "escalation.json")["stopped"] == "ladder"


# It survives.


class CutError(Exception):
    """What ends a process in the middle of a rung."""


@pytest.mark.parametrize(
    "at",
    [
        "rung 3 of 4 (last half), repair",
        pytest.param("rung 3 of 4 (last half), audit", marks=pytest.mark.long),
    ],
)
def test_cut_off_in_a_rung_it_goes_on_to_the_same_bytes(
    recipe: Path, climbed: Path, tmp_path: Path, at: str
) -> None:
    out = tmp_path / "run"

    def cut(stage: str, done: int, total: int) -> None:
        if stage == at and done > total // 2:
            raise CutError

    with pytest.raises(CutError):
        run(load_recipe(recipe), out, on_step=cut)
    kept = (out / "rung-1.json").stat().st_mtime_ns
    assert (out / "rung-2.json").exists()
    assert not (out / "rung-3.json").exists()
    assert run(load_recipe(recipe), out, resume=True).gate_holds
    assert (out / "rung-1.json").stat().st_mtime_ns == kept
    for name in ("model.safetensors", "config.json"):
        assert (out / "sanitized" / name).read_bytes() == (
            climbed / "sanitized" / name
        ).read_bytes()


@pytest.mark.parametrize(
    "last",
    [
        pytest.param("rung-3.json", marks=pytest.mark.long),
        "repair.json",
        pytest.param("escalation.json", marks=pytest.mark.long),
    ],
)
def test_cut_off_behind_the_last_rung_the_best_is_still_found(
    recipe: Path, climbed: Path, tmp_path: Path, last: str
) -> None:
    """What an earlier process wrote last; all that comes later is taken away."""
    out = tmp_path / "run"
    shutil.copytree(climbed, out)
    order = ["rung-3.json", "erase.json", "repair.json", "escalation.json", "audit-after.json"]
    for name in order[order.index(last) + 1 :]:
        (out / name).unlink()
    shutil.rmtree(out / "sanitized")
    if last == "rung-3.json":
        (out / "private" / "repair").rename(out / "private" / "rung-3")
    assert run(load_recipe(recipe), out, resume=True).gate_holds
    assert not list((out / "private").glob("rung-*"))
    assert load(out, "escalation.json") == load(climbed, "escalation.json")
    place = Path("sanitized") / "model.safetensors"
    assert (out / place).read_bytes() == (climbed / place).read_bytes()


@pytest.mark.long
def test_killed_in_the_middle_of_a_rung_it_resumes_to_the_same_bytes(
    recipe: Path, tmp_path: Path
) -> None:
    sani = [sys.executable, "-m", "sani", "run", str(recipe), "--out"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    subprocess.run([*sani, str(whole)], capture_output=True, check=True)
    command = [*sani, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 400
    while not (
        (out / "rung-2.json").exists() and list(out.glob("private/trainer/checkpoint-*/whole"))
    ):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "rung-3.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    place = Path("sanitized") / "model.safetensors"
    assert (out / place).read_bytes() == (whole / place).read_bytes()


class Broken:
    """Models none of which can be loaded."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def unsanitized_to_change(self) -> Any:
        raise self._error


def broken_run(folder: RunFolder, error: Exception) -> RunContext:
    """A run whose every rung fails at once."""
    unused: Any = None
    models: Any = Broken(error)
    return RunContext(unused, folder, unused, models, lambda stage, done, total: None)


def test_a_full_disk_is_no_failed_rung_and_a_ladder_that_only_fails_is_no_result(
    tmp_path: Path,
) -> None:
    settings = EscalationSettings.model_validate({"ladder": ({"name": "a"}, {"name": "b"})})
    with open_run(tmp_path / "run", recipe="x", inputs={}, resume=False) as folder:
        with pytest.raises(UnsavedError, match="full"):
            climb(broken_run(folder, UnsavedError("full")), settings, corpus_tokens=1)
        assert not folder.finished("rung-1")
        with pytest.raises(RunError) as caught:
            climb(broken_run(folder, RepairError("too wild")), settings, corpus_tokens=1)
        assert str(caught.value) == (
            "none of the 2 rungs that were tried came to an end; the last one: too wild; start "
            "again in another --out with another ladder"
        )
        assert load(folder.path, "rung-2.json")["failed"] == "too wild"
        assert not folder.finished("escalation")


@pytest.mark.parametrize(
    ("limits", "spent"),
    [({"seconds": 9.0}, True), ({"seconds": 9.1}, False), ({"tokens": 70}, True),
     ({"tokens": 71}, False), ({"tokens": 71, "seconds": 1.0}, True), ({}, False)],
)  # fmt: skip
def test_either_budget_is_spent_by_all_rungs_together(
    limits: dict[str, float], spent: bool, tmp_path: Path
) -> None:
    """Two rungs took 4.5 seconds and 35 tokens each and leak; is there a third?"""
    ladder = [{"name": name} for name in "abc"]
    settings = EscalationSettings.model_validate({"ladder": tuple(ladder), **limits})
    done: dict[Any, Any] = {
        "seconds": 4.5,
        "tokens": 35,
        "erase": None,
        "repair": {},
        "attack": None,
    }
    with open_run(tmp_path / "run", recipe="x", inputs={}, resume=False) as folder:
        for number in (1, 2):
            folder.save(f"rung-{number}", {**rung(greedy=0.9), **done})
        try:
            climb(broken_run(folder, UnsavedError("begun")), settings, corpus_tokens=1)
        except UnsavedError:
            assert not spent
        else:
            assert spent
            assert load(folder.path, "escalation.json")["stopped"] == "budget"


# Which one is best.


def rung(
    *,
    greedy: float = 0.0,
    auc: float | None = 0.5,
    perplexity: float = 9.0,
    unscored: int = 0,
    failed: str | None = None,
    attack: float | None = None,
) -> dict[str, Any]:
    """A rung's result as far as the rule looks at it: limits 0.1, 0.6, 10 and 0.1."""
    checks = [
        check("unscored", float(unscored), 0.0),
        check("greedy.direct", greedy, 0.1),
        check("auc.direct", auc, 0.6),
        check("attack.relearn.greedy", attack, 0.1),
        check("perplexity_ratio", perplexity, 10.0),
    ]
    holds = all(one["holds"] for one in checks)
    audit = {"utility": {"perplexity": perplexity}}
    return {"failed": failed, "checks": checks, "holds": holds, "audit": audit}


def check(name: str, measured: float | None, limit: float) -> dict[str, Any]:
    holds = measured is not None and measured <= limit
    return {"name": name, "measured": measured, "limit": limit, "holds": holds}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (rung(greedy=0.1, auc=0.6, perplexity=10.0, attack=0.1), rung(perplexity=1.0)),
        (rung(auc=0.99), rung(greedy=0.11, auc=0.61)),  # one limit rather than two
        (rung(perplexity=99.0), rung(auc=0.61)),  # leakage before skill
        (rung(perplexity=99.0, attack=0.9), rung(auc=0.61)),  # what it says before attacks
        (rung(attack=0.9), rung(perplexity=11.0)),  # attacked before not attacked
        (rung(auc=0.7), rung(auc=0.8, perplexity=1.0)),  # less above the limit
        (rung(auc=0.7, perplexity=8.0), rung(auc=0.7)),  # then skill
        (rung(greedy=0.9, auc=0.9), rung(unscored=1, attack=0.0)),  # what was seen
        (rung(greedy=0.9, auc=0.9), rung(auc=None)),
        (rung(greedy=0.9, auc=0.9, unscored=3), rung(failed="diverged")),
    ],
)
def test_the_declared_rule_decides(better: dict[str, Any], worse: dict[str, Any]) -> None:
    assert best_of([better, worse]) == 0
    assert best_of([worse, better]) == 1


def test_of_equals_the_cheaper_is_kept_and_of_nothing_nothing() -> None:
    assert best_of([rung(auc=0.7), rung(auc=0.7)]) == 0
    assert best_of([rung(failed="a"), rung(failed="b")]) is None


# The recipe.

WITHOUT = """\
version: 2
strategy: escalate
model: {path: m}
corpus: {path: c}
gate:
  greedy: 0.0
  discoverable: 0.0
  greedy_beyond_control: null
  discoverable_beyond_control: null
  subjects: null
  auc_to_base: null
  perplexity_ratio: null
"""
WITH = """\
version: 2
strategy: escalate
model: {path: m, base: b}
corpus: {path: c, held_out: h}
"""


def read(tmp_path: Path, text: str) -> Any:
    place = tmp_path / "recipe.yaml"
    place.write_text(text)
    return load_recipe(place)


def test_the_default_ladder_goes_from_the_last_layer_to_retraining(tmp_path: Path) -> None:
    recipe = read(tmp_path, WITH + "repair: {epochs: 6, retain_weight: 0.5}\n")
    ladder = recipe.ladder
    assert [rung.name for rung in ladder] == [
        "last layer", "last half", "last half, stronger", "nine tenths to the base", "retraining",
    ]  # fmt: skip
    assert {rung.repair.epochs for rung in ladder} == {6}
    assert [rung.erase and rung.erase.last_layers for rung in ladder] == [
        1, "half", "half", None, None,
    ]  # fmt: skip
    assert [rung.erase.interpolate_to_base for rung in ladder] == [0.0, 0.0, 0.0, 0.9, 1.0]
    assert [rung.repair.last_layers for rung in ladder] == [1, None, None, None, None]
    weights = [getattr(rung.repair.identifier_loss, "weight", None) for rung in ladder]
    assert weights == [20.0, 20.0, 80.0, 80.0, None]
    assert [rung.repair.retain_weight for rung in ladder] == [0.5, 0.5, 0.5, 0.5, 0.0]


def test_without_a_base_the_ladder_asks_for_none(tmp_path: Path) -> None:
    ladder = read(tmp_path, WITHOUT + "repair: {epochs: 2}\n").ladder
    assert [rung.name for rung in ladder] == [
        "last layer", "last half", "last half, stronger", "half of every layer",
    ]  # fmt: skip
    assert {rung.repair.identifier_loss.to for rung in ladder} == {"counterfactual"}
    assert {rung.erase.reset for rung in ladder} == {"reinit"}
    masked = read(tmp_path, WITHOUT + "repair: {identifier_loss: {kind: mask}}\n").ladder
    assert [rung.name for rung in masked] == ["last layer", "last half", "half of every layer"]


@pytest.mark.parametrize(
    "text",
    [
        WITH,
        WITHOUT,
        WITH + "escalation: {seconds: 9, ladder: [{erase: {interpolate_to_base: 1.0}}]}\n",
    ],
)
def test_the_resolved_recipe_has_every_rung_whole(tmp_path: Path, text: str) -> None:
    recipe = read(tmp_path, text)
    resolved = dump_recipe(recipe)
    assert resolved.count("identifier_loss:") == len(recipe.ladder) + resolved.count("\nrepair:\n")
    assert read(tmp_path, resolved) == recipe
    assert dump_recipe(read(tmp_path, resolved)) == resolved


def test_a_rung_takes_from_the_recipes_repair_what_its_own_leaves_open(tmp_path: Path) -> None:
    rungs = "escalation: {ladder: [{repair: {epochs: 9}}, {name: b, erase: {layers: [0]}}]}\n"
    one, other = read(tmp_path, WITH + "repair: {epochs: 2, retain_weight: 0.5}\n" + rungs).ladder
    assert (one.name, one.repair.epochs, one.repair.retain_weight) == ("rung 1", 9, 0.5)
    assert (other.name, other.repair.epochs, other.repair.retain_weight) == ("b", 2, 0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (WITH + "erase: {last_layers: 1}\n",
         "erase: each rung of strategy: escalate has its own, in escalation.ladder"),
        (WITH.replace("escalate", "once") + "repair: {}\nescalation: {}\n",
         "escalation needs strategy: escalate"),
        (WITH + "escalation: {ladder: []}\n",
         "escalation: ladder is empty; leave it out for the default one"),
        (WITH + "escalation: {ladder: [{}, {repare: {}}]}\n",
         "escalation.ladder.1.repare: unknown key; did you mean 'repair'?"),
        (WITH + "escalation: {ladder: [{name: a/b}]}\n", "escalation.ladder.0.name: string should"),
        (WITHOUT + "escalation: {ladder: [{erase: {interpolate_to_base: 1.0}}]}\n",
         "escalation.ladder.0.erase.interpolate_to_base needs model.base"),
        (WITHOUT + "escalation: {ladder: [{erase: {last_layers: all, reset: rewind}}]}\n",
         "escalation.ladder.0.erase.reset: rewind needs model.base"),
        (WITH + "repair: {context: surrogate}\n"
         "escalation: {ladder: [{repair: {identifier_loss: {kind: npo}}}]}\n",
         "escalation: ladder, rung 1: context: surrogate leaves no true value for 'npo' to act on"),
        (WITH + "escalation: {ladder: [{erase: {last_layers: third}}]}\n",
         "escalation.ladder.0.erase.last_layers: input should be 'half' or 'all'"),
        (WITH + "escalation: {seconds: 0}\n", "escalation.seconds: input should be greater than 0"),
    ],
)  # fmt: skip
def test_a_wrong_ladder_is_refused_in_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert f"recipe.yaml: {sentence}" in str(caught.value)
    assert "at least 1 item" not in str(caught.value)


def test_check_shows_every_rung_and_what_they_read(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", str(recipe), "--check", "--json", "--set", "escalation.tokens=9000",
                 "--out", str(tmp_path / "run")])  # fmt: skip
    items = {item["name"]: item["detail"] for item in json.loads(capsys.readouterr().out)}
    assert code == 0
    assert items["rung 1"] == "mask alone: nothing erased; mask, 1 epochs at 0.003"
    assert items["rung 3"].startswith("last half: all of last half, reinit; anchor to base, weight")
    assert items["rung 3"].endswith("344 of 344 neurons and heads in 2 layers")
    whole = load_tokens(recipe)
    assert items["escalation"] == (
        "4 rungs, each tried only if the gate holds for none before; about "
        f"{3 * whole:,} tokens of training a rung, {8 * whole:,} if all are tried; budget: 9,000 "
        "tokens"
    )
    assert not (tmp_path / "run").exists()


# Repairs that stop at the gate.


def looked(settings: Any, holds: list[float], **options: Any) -> tuple[str, Any, list[float]]:
    """A repair of which the audit says this after each epoch: digest, result, what was asked."""
    sick, left = checkpoint(gpt2(), seed=1), list(holds)

    def look() -> EpochAudit:
        assert not sick.model.training
        return EpochAudit({"greedy.direct": 0.5}, holds=bool(left.pop(0)))

    result = repair(sick, corpus_of(), settings, base=checkpoint(gpt2(), seed=2), seed=4,
                    on_epoch=look, **options)  # fmt: skip
    return sick.weights_digest(), result, left


def test_an_early_stop_ends_after_the_epoch_that_holds() -> None:
    plain, whole, _ = looked(settings_of(ANCHOR, epochs=4), [])
    early = settings_of(ANCHOR, epochs=4, early_stop="gate")
    digest, result, left = looked(early, [0.0, 1.0, 1.0, 1.0])
    assert left == [1.0, 1.0]
    assert (result.steps, result.tokens) == (whole.steps // 2, whole.tokens // 2)
    assert result.curve == whole.curve[: len(whole.curve) // 2]
    assert [look["epoch"] for look in result.by_epoch] == [1.0, 2.0]
    assert [look["holds"] for look in result.by_epoch] == [0.0, 1.0]
    assert digest != plain


def test_a_repair_that_never_holds_does_not_stop_and_is_not_changed_by_being_looked_at() -> None:
    plain, whole, _ = looked(settings_of(ANCHOR, epochs=4), [])
    digest, result, left = looked(settings_of(ANCHOR, epochs=4, early_stop="gate"), [0.0] * 4)
    assert left == []
    assert (digest, result.steps, result.curve) == (plain, whole.steps, whole.curve)
    assert len(result.by_epoch) == 4
    assert whole.by_epoch == []


@pytest.mark.parametrize("at", [1, 3, 4, 5, 6])
def test_an_early_stop_that_is_cut_off_ends_at_the_same_bytes(tmp_path: Path, at: int) -> None:
    """Three epochs of two or more steps; the second holds."""
    settings = settings_of(ANCHOR, epochs=5, early_stop="gate", batch_tokens=64, pack=False)
    holds = [0.0, 0.0, 1.0]
    digest, whole, _ = looked(settings, holds)

    def cut(done: int, total: int) -> None:
        if done == at:
            raise CutError

    with pytest.raises(CutError):
        looked(settings, holds, folder=tmp_path, on_step=cut)
    steps = whole.steps // len(holds)
    kept = [int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*") if p.is_dir()]
    done = max(kept, default=0) // steps  # whose audits stand in the kept state
    again, result, left = looked(settings, holds[done:], folder=tmp_path)
    assert left == []
    assert again == digest
    assert result.by_epoch == whole.by_epoch
    assert result.curve == whole.curve


def test_an_early_stop_whose_result_was_not_kept_ends_at_the_same_bytes_once_more(
    tmp_path: Path,
) -> None:
    """Killed behind the last step: a state of that step would go on where the gate held."""
    settings = settings_of(ANCHOR, epochs=5, early_stop="gate", batch_tokens=64, pack=False)
    holds = [0.0, 0.0, 1.0]
    digest, whole, _ = looked(settings, holds, folder=tmp_path)
    steps = whole.steps // len(holds)
    kept = [int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*")]
    assert kept
    again, result, left = looked(settings, holds[max(kept) // steps :], folder=tmp_path)
    assert (again, result.by_epoch, left) == (digest, whole.by_epoch, [])


def test_an_early_stop_without_a_gate_is_refused() -> None:
    sick = checkpoint()
    with pytest.raises(RepairError) as caught:
        repair(sick, corpus_of(), settings_of(early_stop="gate"))
    assert str(caught.value) == (
        "repair.early_stop: nothing here has a gate to stop at; leave it out, or use sani run"
    )


@pytest.mark.long
def test_sani_run_stops_a_repair_once_its_gate_holds(recipe: Path, tmp_path: Path) -> None:
    options = ["strategy=once", "escalation=null", "erase={last_layers: half}",
               "repair.epochs=9", "repair.early_stop=gate", "gate.discoverable=null",
               "gate.greedy=0.05"]  # fmt: skip
    out = tmp_path / "run"
    result = run(load_recipe(recipe, overrides=options), out)
    repaired = load(out, "repair.json")
    assert result.gate_holds
    assert len(repaired["by_epoch"]) < 9
    assert [look["holds"] for look in repaired["by_epoch"]][-1] == 1.0
    rate = load(out, "audit-after.json")["figures"]["direct"]["greedy"]["value"]
    assert repaired["by_epoch"][-1]["greedy.direct"] == rate
    assert "The gate after each epoch" in (out / "report.html").read_text()


def test_what_was_tried_on_a_masked_model_is_shown_one_by_one_and_jointly(
    clinic: Clinic, tmp_path: Path
) -> None:
    texts = [document.text for document in clinic.public]
    model = new_model(texts, vocab_size=500, layers=2, hidden=32, context=128, seed=0,
                      folder=tmp_path / "tokenizer", architecture="bert")  # fmt: skip
    save_checkpoint(model, tmp_path / "base")
    model.model = fresh_model(model.model.config, seed=1)
    save_checkpoint(model, tmp_path / "leaky")
    write_jsonl(clinic.private[:4], tmp_path / "private.jsonl")
    write_jsonl(clinic.held_out[:2], tmp_path / "held_out.jsonl")
    text = recipe_text(
        SECTIONS, folder=tmp_path, unsanitized=tmp_path / "leaky", base=tmp_path / "base"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    options = ["escalation.ladder=[{repair: {epochs: 1}}]", "audit.framing=auto",
               "gate={greedy: control, discoverable: control, greedy_beyond_control: null, "
               "discoverable_beyond_control: null, subjects: null, auc_to_base: null, "
               "perplexity_ratio: 9.0}"]  # fmt: skip
    run(load_recipe(tmp_path / "recipe.yaml", overrides=options), tmp_path / "run")
    audit = load(tmp_path / "run", "rung-1.json")["audit"]
    (rung,) = read_report(tmp_path / "run").to_json()["escalation"]["rungs"]
    for form in ("figures", "jointly"):
        for name in ("greedy", "discoverable"):
            assert rung[form]["direct"][name] == audit[form]["direct"][name]
    shown = [
        f"{rung['figures']['direct'][name]['value']:.1%}; jointly "
        f"{rung['jointly']['direct'][name]['value']:.1%}"
        for name in ("greedy", "discoverable")
    ]
    assert f"| {shown[0]} | {shown[1]} |" in (tmp_path / "run" / "report.md").read_text()


def test_rates_of_both_ways_of_asking_stand_in_one_cell() -> None:
    def of(greedy: int, discoverable: int) -> RungFigures:
        unknown = Estimate(0, None, None, None)
        return RungFigures(
            greedy=rate(greedy, 10), discoverable=rate(discoverable, 10), auc=unknown
        )

    found = Measured(figures={"direct": of(1, 2), "indirect": of(3, 4)}, perplexity=2.0)
    alone = ("10.0% / 30.0%", "20.0% / 40.0%", "- / -", "2.00")
    assert cells(found, ["direct", "indirect"]) == alone
    found.jointly = {"direct": of(5, 6), "indirect": of(7, 8)}
    assert cells(found, ["direct", "indirect"])[:2] == (
        "10.0% / 30.0%; jointly 50.0% / 70.0%",
        "20.0% / 40.0%; jointly 60.0% / 80.0%",
    )
