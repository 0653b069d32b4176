"""Recipes: what is read, what is refused and in which words, and that nothing heavy is imported."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sani.errors import RecipeError
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings, Recipe, RepairSettings, dump_recipe, load_recipe
from sani.recipe.versions import DELETED_IN_2, RENAMED_IN_2

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = """\
version: 2
model: {path: m, base: b}
corpus: {path: c.jsonl, held_out: h.jsonl}
erase: {last_layers: 1}
"""
TOP = (
    "attack, audit, corpus, erase, escalation, gate, model, output, placement, repair, rounds, "
    "scan, seed, strategy, "
    "version"
)
AUDIT = ", ".join(sorted(AuditSettings.model_fields))


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads a text as the recipe r.yaml."""
    monkeypatch.chdir(tmp_path)

    def reader(text: str, *overrides: str) -> Recipe:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return load_recipe("r.yaml", overrides=overrides)

    return reader


@pytest.fixture
def refusal(read: Any) -> Any:
    """The lines with which a recipe is refused."""

    def reader(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            read(text, *overrides)
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        return str(caught.value).split("\n")

    return reader


# ---- what is read ----------------------------------------------------------------------------


def test_a_recipe_is_read_and_defaults_are_filled_in(read: Any) -> None:
    recipe = read(GOOD + "repair: {identifier_loss: {kind: anchor, weight: 2}, epochs: 3}\n")
    assert recipe.model.path == Path("m")
    assert recipe.model.base == Path("b")
    assert (recipe.erase.last_layers, recipe.erase.parts) == (1, ("mlp", "attention"))
    assert (recipe.erase.selector.kind, recipe.erase.reset) == ("all", "reinit")
    assert (recipe.repair.epochs, recipe.repair.identifier_loss.weight) == (3, 2.0)
    assert (recipe.audit.queries, recipe.gate.greedy, recipe.gate.auc_to_base) == (
        1000,
        None,
        0.05,
    )


def test_a_recipe_is_frozen_all_the_way_down(read: Any) -> None:
    recipe = read(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.erase.selector.kind = "random"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e3", 1000.0), ("1.e-3", 1e-3), ("3E-04", 3e-4), ("2", 2.0), (".5", 0.5)],
)
def test_numbers_are_read_as_numbers(read: Any, text: str, value: float) -> None:
    recipe = read(GOOD + f"repair: {{learning_rate: {text}}}\n")
    assert recipe.repair.learning_rate == value


def test_our_yaml_rules_do_not_leak_into_the_library(read: Any) -> None:
    read(GOOD)
    assert yaml.safe_load("3e-4") == "3e-4"  # plain PyYAML keeps its own reading
    assert yaml.safe_dump("3e-4") == "3e-4\n...\n"


FULL = """\
version: 2
seed: 7
model: {path: '1e5', base: 'off'}
corpus:
  path: año/😀.csv
  format: csv
  kinds: {'NO': direct, '010': indirect, '1e5': direct, random: indirect, ÁGE: indirect}
  limit: 12
  held_out: '3E-04'
audit: {queries: 5, probability: 1e-9, generation: {empty: 7, kinds: [direct, indirect]}}
erase: {layers: [3, 0], parts: [attention], selector: {kind: random, fraction: 1}, reset: rewind}
repair: {identifier_loss: {kind: mask}, learning_rate: 12e-22, last_layers: 2}
gate: {kinds: [indirect, direct], greedy: 0.0, discoverable: null, perplexity_ratio: 1.5}
"""


@pytest.mark.parametrize("text", [GOOD, FULL])
def test_what_is_written_back_is_read_as_the_same(read: Any, text: str) -> None:
    recipe = read(text)
    written = dump_recipe(recipe)
    assert read(written) == recipe
    assert dump_recipe(read(written)) == written


def test_every_field_stands_in_the_written_recipe(read: Any) -> None:
    def names(schema: Any, node: Any) -> Any:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        return set(node["properties"])

    schema = Recipe.model_json_schema()
    written = yaml.safe_load(dump_recipe(read(FULL)))
    assert set(written) == names(schema, schema)
    for section in ("model", "corpus", "audit", "gate"):
        assert set(written[section]) == names(schema, schema["properties"][section])


words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x00"))
awkward = st.sampled_from(["1e5", "-2E+7", "yes", "NO", "null", "~", "010", "1_0", "=", "<<", "#"])


@given(path=words | awkward, base=words | awkward, label=words | awkward, rate=st.floats(1e-300, 1))
@settings(max_examples=60, deadline=None)
def test_any_text_and_number_survives_writing(
    tmp_path_factory: pytest.TempPathFactory, path: Any, base: Checkpoint, label: Any, rate: Any
) -> None:
    data = {
        "version": 2,
        "model": {"path": path, "base": base},
        "corpus": {"path": path, "held_out": base, "kinds": {label: "indirect"}},
        "repair": {"learning_rate": rate},
    }
    recipe = Recipe.model_validate_json(json.dumps(data))
    file = tmp_path_factory.mktemp("r") / "r.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_every_shipped_recipe_is_read() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert files, "recipes/ holds no recipe"
    for file in files:
        recipe = load_recipe(file)
        assert load_recipe(file, overrides=["seed=5"]).seed == 5
        assert recipe.version == 2


# ---- what is refused, in whole words ---------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "lines"),
    [
        ("eras: {}\n", ["eras: unknown key; did you mean 'erase'?"]),
        ("mbeki: 1\n", [f"(not shown): unknown key; known: {TOP}"]),
        ("audit: {Mbeki: 1}\n", ["audit.(not shown): unknown key; known: " + AUDIT]),
        ("xyz: 1\n", [f"(not shown): unknown key; known: {TOP}"]),
        ("audit: {decoy: 3}\n", ["audit.decoy: unknown key; did you mean 'decoys'?"]),
        (
            "audit: {generation: {new_token: 1}}\n",
            ["audit.generation.new_token: unknown key; did you mean 'new_tokens'?"],
        ),
        ("mask: 1\n", [f"(not shown): unknown key; known: {TOP}"]),
        ("all: 1\n", [f"(not shown): unknown key; known: {TOP}"]),
        ("float: 1\n", [f"(not shown): unknown key; known: {TOP}"]),
        (
            "gate: {anchor: 1}\n",
            [
                "gate.(not shown): unknown key; known: attacks, attacks_auc_excess, auc_excess, "
                "auc_to_base, discoverable, discoverable_beyond_control, greedy, "
                "greedy_beyond_control, kinds, perplexity_ratio, sampled_beyond_control, "
                "scan_recall, subjects"
            ],
        ),
        (
            "repair: {identifier_loss: {kind: mask, weight: 3}}\n",
            ["repair.identifier_loss.weight: unknown key; known: kind"],
        ),
        (
            "repair: {identifier_loss: {kind: anchor, wieght: 3}}\n",
            ["repair.identifier_loss.wieght: unknown key; did you mean 'weight'?"],
        ),
        (
            "repair: {identifier_loss: {kind: ancor}}\n",
            [
                "repair.identifier_loss.kind: expected one of mask, anchor, gradient_difference, "
                "unlikelihood, npo; did you mean 'anchor'?"
            ],
        ),
        (
            "repair: {identifier_loss: {kind: 3}}\n",
            [
                "repair.identifier_loss.kind: expected one of mask, anchor, gradient_difference, "
                "unlikelihood, npo"
            ],
        ),
        (
            "repair: {identifier_loss: {}}\n",
            ["repair.identifier_loss: expected a section with a kind"],
        ),
        (
            "repair: {identifier_loss: mask}\n",
            ["repair.identifier_loss: input should be an object"],
        ),
        ("audit: 3\n", ["audit: input should be an object"]),
        ("audit:\n", ["audit: input should be an object"]),
        (
            "gate: {greedy: contrl}\n",
            [
                "gate.greedy: input should be 'control'",
                "gate.greedy: input should be a valid number",
            ],
        ),
        (
            "gate: {greedy: 2}\n",
            [
                "gate.greedy: input should be 'control'",
                "gate.greedy: input should be less than or equal to 1",
            ],
        ),
        (
            "gate: {kinds: [dirct]}\n",
            ["gate.kinds.0: input should be 'direct' or 'indirect'"],
        ),
        ("seed: -1\n", ["seed: input should be greater than or equal to 0"]),
        ("seed: 2147483648\n", ["seed: input should be less than 2147483648"]),
    ],
)
def test_a_wrong_key_or_value_is_named_by_its_path(
    refusal: Any, extra: str, lines: list[str]
) -> None:
    assert refusal(GOOD + extra) == [f"r.yaml: {line}" for line in lines]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("last_layers: 1", "last_layers: 1, layers: [1]", ["erase: give exactly one of last_layers "
          "and layers"]),
        ("last_layers: 1", "reset: zero", ["erase: give exactly one of last_layers and layers"]),
        ("last_layers: 1", "last_layers: 0", [
            "erase.last_layers: input should be greater than or equal to 1",
            "erase.last_layers: input should be 'half' or 'all'"]),
        ("last_layers: 1", "layers: [1, 1]", ["erase: layers must be distinct numbers from 0 "
          "upwards"]),
        ("last_layers: 1", "layers: [0, -1]", ["erase: layers must be distinct numbers from 0 "
          "upwards"]),
        ("last_layers: 1", "layers: [1], parts: [mlp, mlp]", ["erase: parts must be distinct"]),
        ("last_layers: 1", "layers: [1], selector: {kind: random}", ["erase.selector.fraction: "
          "missing"]),
        ("last_layers: 1", "layers: [1], selector: {kind: all, fraction: 1}", [
          "erase.selector.fraction: unknown key; known: kind"]),
        ("last_layers: 1", "layers: [1], selector: {kind: randm}", ["erase.selector.kind: expected "
          "one of random, all, magnitude, drift, activation_ratio, gradient_ratio, fisher_ratio, "
          "integrated_gradients, hard_concrete; did you mean 'random'?"]),
        ("version: 2\n", "", ["version: missing"]),
        ("version: 2\n", "version: 3\n", ["version: input should be 2"]),
        ("model: {path: m, base: b}\n", "", ["model: missing"]),
        ("held_out: h.jsonl", "held_out: h, kinds: {random: x, NAME: direct}", [
          "corpus.kinds.(not shown): input should be 'direct' or 'indirect'"]),
    ],
)  # fmt: skip
def test_a_section_that_makes_no_sense_is_named(
    refusal: Any, old: str, new: str, lines: list[str]
) -> None:
    assert GOOD.count(old) == 1
    assert refusal(GOOD.replace(old, new)) == [f"r.yaml: {line}" for line in lines]


def test_a_recipe_of_version_1_is_refused_with_the_table_of_new_names(refusal: Any) -> None:
    old = "repair: {at_identifiers: {kind: mask}}\n"
    first, *table = refusal(GOOD.replace("version: 2", "version: 1") + old)
    assert first == (
        "r.yaml: version: 1 is an older format, which this sani does not read. Rename or delete "
        "these keys (in escalation.ladder too) and set version: 2"
    )
    rows = dict(re.split(" +-> ", line.strip()) for line in table)
    assert rows["repair.at_identifiers"] == "repair.identifier_loss"
    assert rows["repair.warmup_fraction"] == "deleted; always 0.1"
    assert len(table) == len(rows) == len(RENAMED_IN_2) + len(DELETED_IN_2)


def test_the_table_of_version_2_names_keys_that_exist_and_those_that_do_not(
    read: Any, refusal: Any
) -> None:
    """Each new name is read in a recipe, each old one refused as unknown."""
    given = {
        "erase.interpolate_to_base": "0.5",
        "repair.identifier_loss": "{kind: mask}",
        "repair.retain_weight": "1.0",
        "repair.activation_cache": "none",
    }
    read(GOOD, *(f"{new}={given[new]}" for new in RENAMED_IN_2.values()))
    kinds = {"vote": "integrated_gradients", "cap": "hard_concrete", "penalty": "hard_concrete"}
    for old in [*RENAMED_IN_2, *DELETED_IN_2]:
        section, key = old.rsplit(".", 1)
        variant = []
        if section == "erase.selector":
            variant = [f"erase.selector={{kind: {kinds[key]}, fraction: 0.5}}"]
        if section == "repair.identifier_loss":
            variant = ["repair.identifier_loss.kind=npo"]
        (line,) = refusal(GOOD, *variant, f"{old}=1")
        assert line.startswith(f"r.yaml: {old}: unknown key"), line


def test_several_problems_are_reported_together(refusal: Any) -> None:
    text = (
        GOOD
        + "audit: {queries: 'yes', decoys: '4', generation: {empty: 1.5, new_token: 1}}\nsed: 1\n"
    )
    assert sorted(refusal(text)) == [
        "r.yaml: audit.decoys: input should be a valid integer",
        "r.yaml: audit.generation.empty: input should be a valid integer",
        "r.yaml: audit.generation.new_token: unknown key; did you mean 'new_tokens'?",
        "r.yaml: audit.queries: input should be a valid integer",
        "r.yaml: sed: unknown key; did you mean 'seed'?",
    ]


def test_rules_across_sections_are_reported_together(refusal: Any) -> None:
    lines = refusal(
        "version: 2\nmodel: {path: m}\ncorpus: {path: c}\n"
        "erase: {last_layers: 1, reset: rewind}\nrepair: {}\n"
        "gate: {greedy: control, auc_excess: 0.05}\n"
    )
    assert lines == [
        "r.yaml: erase.reset: rewind needs model.base",
        "r.yaml: repair.identifier_loss: anchor to base needs model.base",
        "r.yaml: gate: 'control' needs model.base; without one, give fractions, as in greedy: 0.0",
        "r.yaml: gate.auc_excess needs model.base; without one, set it to null",
        "r.yaml: gate.perplexity_ratio needs corpus.held_out; without held-out documents, set "
        "it to null",
    ]


def test_each_rule_across_sections_can_be_met(read: Any) -> None:
    recipe = read(
        "version: 2\nmodel: {path: m}\ncorpus: {path: c}\nerase: {last_layers: 1}\n"
        "repair: {identifier_loss: {kind: mask}}\n"
        "gate: {greedy: 0.0, discoverable: 0.01, auc_excess: null, perplexity_ratio: null}\n"
    )
    assert recipe.gate.greedy == 0.0
    assert recipe.model.base is None


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["erase=null"],
            "give erase, repair or both; with neither, model.path is only checked, and needs "
            "model.unsanitized, the checkpoint that it was made from: a checkpoint that recites "
            "nothing counts as clean only if the same audit finds what the unsanitized one recites",
        ),
        (
            ["erase=null", "model.unsanitized=u", "rounds=2"],
            "rounds: with neither erase nor repair there is nothing to repeat; leave it out",
        ),
        (
            ["model.unsanitized=u"],
            "model.unsanitized is for a recipe with neither erase nor repair; with one of them, "
            "model.path itself is the unsanitized checkpoint",
        ),
        (
            ["erase=null", "strategy=escalate", "model.unsanitized=u"],
            "model.unsanitized is for a recipe with neither erase nor repair; with one of them, "
            "model.path itself is the unsanitized checkpoint",
        ),
        (
            ["gate.sampled_beyond_control=3"],
            "gate.sampled_beyond_control: a number needs a section audit.generation",
        ),
        (
            ["gate.kinds=[direct, indirect]", "audit.generation={}"],
            "gate.sampled_beyond_control: the gate judges what is searched for; set "
            "audit.generation.kinds to [direct, indirect]",
        ),
        (
            ["model.base=null", "audit.unlearning_depth=true", "gate.auc_excess=null"],
            "audit.unlearning_depth needs model.base; without one, set it to false",
        ),
        (["audit.decoys=0"], "gate.greedy_beyond_control needs audit.decoys of at least 1"),
        (
            [
                f"gate.{name}=null"
                for name in (
                    "greedy_beyond_control",
                    "discoverable_beyond_control",
                    "subjects",
                    "auc_to_base",
                )
            ],
            "gate: at least one of greedy_beyond_control, discoverable_beyond_control, subjects, "
            "auc_to_base, greedy, discoverable and auc_excess must be a limit",
        ),
        (
            ["corpus.held_out=null"],
            "gate.perplexity_ratio needs corpus.held_out; without held-out documents, set it to "
            "null",
        ),
        (["model.base=null", "gate={auc_excess: 0.05}"],
         "gate.auc_excess needs model.base; without one, set it to null"),
        (["model.base=null", "gate={discoverable: control, greedy: 0.0}"],
         "gate: 'control' needs model.base; without one, give fractions, as in greedy: 0.0"),
    ],
)  # fmt: skip
def test_a_rule_across_sections_alone(
    read: Any, refusal: Any, overrides: list[str], line: str
) -> None:
    read(GOOD)
    assert refusal(GOOD, *overrides) == [f"r.yaml: {line}"]


@pytest.mark.parametrize("value", ["'yes'", "yes", "'4'", "4.0", "1.5", "[4]", "true", "null", "0"])
def test_epochs_are_whole_numbers_and_nothing_looser(read: Any, refusal: Any, value: str) -> None:
    assert read(GOOD + "repair: {epochs: 4}\n").repair.epochs == 4
    (line,) = refusal(GOOD + f"repair: {{epochs: {value}}}\n")
    assert line in (
        "r.yaml: repair.epochs: input should be a valid integer",
        "r.yaml: repair.epochs: input should be greater than or equal to 1",
    )
    assert line.endswith("equal to 1") == (value == "0")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", "2020-01-01", "!!binary aGk="])
def test_what_json_does_not_know_is_refused(refusal: Any, value: str) -> None:
    assert refusal(GOOD + f"repair: {{learning_rate: {value}}}\n") == [
        "r.yaml: dates, infinities and other YAML extras have no place in a recipe; put such a "
        "value in quotes"
    ]


def test_settings_made_in_code_are_as_strict() -> None:
    assert RepairSettings(learning_rate=1e-3, epochs=2).epochs == 2
    for values in ({"learning_rate": float("inf")}, {"learning_rate": float("nan")}):
        with pytest.raises(ValidationError, match="finite number"):
            RepairSettings.model_validate(values)
    with pytest.raises(ValidationError, match="valid integer") as caught:
        RepairSettings.model_validate({"epochs": "4711998877"})
    assert "4711998877" not in str(caught.value)


WORD = "not valid YAML: a key must be a word; put numbers, yes, no, on and off in quotes"


def test_aliases_that_grow_without_end_are_refused_at_once(refusal: Any) -> None:
    """Ten lines that stand for 10**9 words; it took 16 seconds and 2.4 GB for fewer."""
    lines = ["audit: {x: &a0 [x,x,x,x,x,x,x,x,x,x]}"]
    lines += [f"y{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    began = time.monotonic()
    assert "an alias (*name) is not read" in refusal(GOOD + "\n".join(lines))[0]
    assert time.monotonic() - began < 2


ALIAS = ", line 5: not valid YAML: an alias (*name) is not read; write its content out"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "seed: 1\nseed: 2\n", ", line 6: not valid YAML: a key stands twice"),
        (GOOD + "seed: 1\n'seed': 2\n", ", line 6: not valid YAML: a key stands twice"),
        (
            GOOD + "audit: {queries: 1, queries: 1}\n",
            ", line 5: not valid YAML: a key stands twice",
        ),
        (GOOD + "NO: direct\n", f", line 5: {WORD}"),
        (GOOD + "010: direct\n", f", line 5: {WORD}"),
        (GOOD + "? [a]\n: 2\n", f", line 5: {WORD}"),
        (
            GOOD + "audit: *b\n",
            ALIAS,
        ),
        (
            GOOD + "audit: *Mbeki\n",
            ALIAS,
        ),
        (
            GOOD + "audit: !O'Brien x\n",
            ", line 5: not valid YAML: could not determine a constructor for the tag",
        ),
        (
            GOOD + "audit: !Mbeki x\n",
            ", line 5: not valid YAML: could not determine a constructor for the tag",
        ),
        (
            GOOD + "audit: &a [*a]\n",
            ALIAS,
        ),
        (
            GOOD + "audit: !!python/name:os.system\n",
            ", line 5: not valid YAML: could not determine a constructor for the tag",
        ),
        ("a: 1\n---\nb: 2", ", line 2: not valid YAML: but found another document"),
        ("a: [", ", line 1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("[" * 3000, ": not valid YAML: broken syntax"),
        ("\0", ": not valid YAML: broken syntax"),
        ("seed: !!int ''", ": not valid YAML: broken syntax"),
        ("seed: !!bool x", ": not valid YAML: broken syntax"),
        ("seed: !!timestamp x", ": not valid YAML: broken syntax"),
        ("", ": expected a mapping of sections, got an empty file"),
        ("- 1", ": expected a mapping of sections, got a list"),
        ("3", ": expected a mapping of sections, got a single value"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused(refusal: Any, text: str, line: str) -> None:
    assert refusal(text) == [f"r.yaml{line}"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: año".encode("latin-1"))
    for path, words in [
        (tmp_path / "none.yaml", "no such recipe; give the path of a YAML file"),
        (tmp_path, "cannot be read as UTF-8 text (IsADirectoryError)"),
        (latin, "cannot be read as UTF-8 text (UnicodeDecodeError)"),
    ]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert str(caught.value) == f"{path}: {words}"


def test_a_refused_value_is_not_repeated(refusal: Any) -> None:
    lines = refusal(GOOD + "seed: '4711998877'\naudit: {queries: KOWALCZYKOWA}\n")
    assert len(lines) == 2
    assert not any("4711998877" in line or "KOWALCZYKOWA" in line for line in lines)


# ---- overrides -------------------------------------------------------------------------------


def test_an_override_wins_over_the_file_and_the_file_over_the_default(read: Any) -> None:
    text = GOOD + "audit: {queries: 5, generation: {empty: 3}}\n"
    assert read(text).audit.queries == 5
    recipe = read(
        text,
        "audit.queries=6",
        "audit.generation.openings=5",
        "repair.identifier_loss.kind=mask",
        "repair.learning_rate=3e-4",
        "erase.last_layers=null",
        "erase.layers=[0, 1]",
        "erase.parts=[mlp]",
        "model.path=a=b",
        "seed=1",
        "seed=2",
    )
    assert recipe.audit.queries == 6
    assert (recipe.audit.generation.empty, recipe.audit.generation.openings) == (3, 5)
    assert recipe.repair.identifier_loss.kind == "mask"
    assert recipe.repair.learning_rate == 3e-4
    assert (recipe.erase.layers, recipe.erase.parts) == ((0, 1), ("mlp",))
    assert recipe.model.path == Path("a=b")
    assert recipe.seed == 2


def test_null_switches_a_section_off_and_a_later_key_on_again(read: Any) -> None:
    assert read(GOOD, "repair.epochs=1", "erase=null").erase is None
    assert read(GOOD, "erase=null", "erase.last_layers=2").erase.last_layers == 2
    assert read(GOOD, "gate.auc_excess=null").gate.auc_excess is None


FORM = "--set: expected section.key=value, as in --set repair.epochs=2"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", FORM),
        ("=3", FORM),
        ("", FORM),
        (".seed=3", FORM),
        ("audit.=3", FORM),
        ("audit..queries=3", FORM),
        ("version.x=3", "--set version.(not shown): 'version' is a value, not a section"),
        ("model.path.x=3", "--set model.path.(not shown): 'path' is a value, not a section"),
        ("erase.parts.0.x=3", "r.yaml: erase.parts: input should be a valid array"),
        (
            "seed=[",
            "--set seed, line 1: not valid YAML: expected the node content, but found "
            "'<stream end>'",
        ),
        ("seed={a: 1, a: 2}", "--set seed, line 1: not valid YAML: a key stands twice"),
        ("seed='3'", "r.yaml: seed: input should be a valid integer"),
        ("seed=", "r.yaml: seed: input should be a valid integer"),
        ("sede=3", "r.yaml: sede: unknown key; did you mean 'seed'?"),
        (
            "audit.generation.emty=3",
            "r.yaml: audit.generation.emty: unknown key; did you mean 'empty'?",
        ),
    ],
)
def test_a_bad_override_is_refused(refusal: Any, override: str, line: str) -> None:
    assert refusal(GOOD, override) == [line]


# ---- whatever comes --------------------------------------------------------------------------

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | awkward
keys = st.sampled_from(
    ["mask", "all", "random", "float", "kind", "weight", "path", "erase", "kinds", "", "epochs"]
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3)
)
sections = [
    "model",
    "corpus",
    "audit",
    "generation",
    "erase",
    "selector",
    "repair",
    "identifier_loss",
]
names = ["gate", "kinds", "kind", "mask", "anchor", "greedy", "layers", "parts", "float", "seed"]
places = st.lists(st.sampled_from(sections + names), min_size=1, max_size=4)


def outcome(path: Path, overrides: tuple[str, ...] = ()) -> bool:
    """True if it is read; any error but RecipeError goes through."""
    try:
        recipe = load_recipe(path, overrides=overrides)
    except RecipeError:
        return False
    assert isinstance(recipe, Recipe)
    return True


@given(place=places, value=values)
@example(place=["seed"], value=3)
@example(place=["mask"], value=1)
@settings(max_examples=150, deadline=None)
def test_a_mutated_recipe_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, place: Any, value: Any
) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(FULL, encoding="utf-8")
    node = data = load_recipe(path).model_dump(mode="json")
    for name in place[:-1]:
        node = node.setdefault(name, {}) if isinstance(node, dict) else {}
        node = node if isinstance(node, dict) else {}
    node[place[-1]] = value
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    read = outcome(path)
    if (place, value) == (["seed"], 3):
        assert read  # the positive control: a harmless change is read


@given(where=st.integers(0, len(FULL)), length=st.integers(0, 9), text=st.text(max_size=6))
@example(where=0, length=0, text="")
@settings(max_examples=150, deadline=None)
def test_a_mangled_text_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, where: Any, length: Any, text: Any
) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    text = text.encode("utf-8", "replace").decode()
    path.write_text(FULL[:where] + text + FULL[where + length :], encoding="utf-8")
    read = outcome(path)
    if not (length or text):
        assert read


@given(override=st.builds("{}={}".format, st.text(max_size=12) | keys, st.text(max_size=8)))
@settings(max_examples=60, deadline=None)
def test_any_override_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, override: Any
) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(FULL, encoding="utf-8")
    outcome(path, (override,))


def test_a_recipe_as_deep_as_the_stack_raises_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(FULL, encoding="utf-8")
    assert not outcome(path, (".".join("a" * 100_000) + "=1",))


def test_reading_recipes_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import sani.recipe; "
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'accelerate', 'scipy'}"
        " & {name.split('.')[0] for name in sys.modules})); assert 'pydantic' in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
