"""What is released: verified byte by byte, signed with one's own key, and nobody's name in it."""

import base64
import html
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from safetensors.torch import load_file, save_file

from sani.cli.main import main
from sani.corpus.documents import Corpus, Document, Span
from sani.errors import CheckpointError
from sani.gate import Check
from sani.recipe import GateSettings
from sani.releasing.identifiers_in_files import check_release, check_texts
from sani.releasing.manifest import MANIFEST, SIGNATURE, sign, verify, write_manifest
from sani.releasing.released_files import files_not_released
from tests.support.folders import CONFIGS, LEFTOVERS, write_source
from tests.support.releases import CHECKS, REPORT, make_keys, report_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as a training run leaves it."""
    return write_source(tmp_path / "source", CONFIGS["tied"]())


@pytest.fixture
def released(source: Path) -> Path:
    """The same with its manifest."""
    write_manifest(source, REPORT, weights_digest="0" * 64)
    return source


# ---- verify ----------------------------------------------------------------------------------


def test_a_folder_as_it_was_written_verifies(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(released)]) == 0
    shown = capsys.readouterr().out
    assert "0 added, 0 missing, 0 changed. Signature: none (so whoever changed a file" in shown
    assert "The gate of the run held." in shown
    shutil.copytree(released, released.with_name("copy"))
    assert main(["verify", str(released.with_name("copy"))]) == 0


def flip(file: Path) -> None:
    """One bit of the last byte, size and times as they were."""
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_new(file: Path) -> None:
    """Write an empty file in folders that are not there yet."""
    file.parent.mkdir(parents=True)
    file.write_text("")


def link_elsewhere(folder: Path) -> None:
    (folder / "config.json").rename(folder.with_name("elsewhere.json"))
    (folder / "config.json").symlink_to("nowhere")


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a bit of the weights": (lambda f: flip(f / "model.safetensors"), "changed"),
    "a blank in the config": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text() + " "),
        "changed",
    ),
    "a dead link": (link_elsewhere, "changed"),
    "a file gone": (lambda f: (f / "tokenizer.json").unlink(), "missing"),
    "another file": (lambda f: (f / "optimizer.pt").write_text(""), "added"),
    "a hidden file": (lambda f: (f / ".hidden").write_text(""), "added"),
    "a file further down": (
        lambda f: write_new(f / "a" / "b" / "c"),
        "added",
    ),
    "a second manifest": (
        lambda f: write_new(f / "a" / MANIFEST),
        "added",
    ),
    "a link to a folder": (lambda f: (f / "link").symlink_to(f.parent), "added"),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "added"),
    "a name for the terminal": (lambda f: (f / "a\x1b[2Jb").write_text(""), "added"),
    "a name that is no UTF-8": (
        lambda f: Path(os.fsdecode(bytes(f) + b"/\xff")).write_text(""),
        "added",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_named(
    released: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    apply, kind = CHANGES[change]
    assert verify(released).holds
    apply(released)
    assert main(["verify", str(released), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert {what for what in ("added", "missing", "changed") if found[what]} == {kind}
    assert len(found[kind]) == 1
    assert found[kind][0].isprintable()
    assert main(["verify", str(released)]) == 3
    assert f"{kind}: {found[kind][0]}\n" in capsys.readouterr().out


def test_a_checkpoint_whose_gate_did_not_hold_does_not_verify(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(source, report_of(holds=False), weights_digest="0")
    assert main(["verify", str(source)]) == 3
    assert "The gate of the run DID NOT HOLD" in capsys.readouterr().out


def edit_manifest(folder: Path, change: Callable[[Any], object]) -> None:
    """Change a manifest as whoever wants another verdict would."""
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


FORGED: dict[str, tuple[Callable[[Any], object], str]] = {
    "the verdict of checks that do not hold": (
        lambda d: d["gate"]["checks"][2].update(measured=4.0, holds=False),
        "The verdict is not the one that follows from its checks.",
    ),
    "the word of a check": (
        lambda d: d["gate"]["checks"][2].update(measured=4.0),
        "The check 'greedy_beyond_control.direct' is said to hold, and its numbers do not meet",
    ),
    "a lower limit that is not met": (
        lambda d: d["gate"]["checks"][1].update(measured=0.01),
        "The check 'positive_control.direct' is said to hold",
    ),
    "a figure that nobody measured": (
        lambda d: d["gate"]["checks"][6].update(measured=None),
        "The check 'labels.direct' is said to hold",
    ),
    "a check that was taken out": (
        lambda d: d["gate"]["checks"].pop(2),
        "There is no check 'greedy_beyond_control.direct'",
    ),
    "a positive control that was taken out": (
        lambda d: d["gate"]["checks"].pop(1),
        "There is no check 'positive_control.direct'",
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_the_verdict_is_derived_again_from_the_checks(
    released: Path, capsys: pytest.CaptureFixture[str], forged: str
) -> None:
    change, sentence = FORGED[forged]
    assert main(["verify", str(released)]) == 0
    edit_manifest(released, change)
    assert json.loads((released / MANIFEST).read_text())["gate"]["holds"] is True
    capsys.readouterr()
    assert main(["verify", str(released)]) == 3
    shown = capsys.readouterr().out
    assert sentence in shown
    assert "The gate of the run DID NOT HOLD" in shown


def test_a_manifest_without_checks_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(source, report_of(checks=[]), weights_digest="0")
    assert main(["verify", str(source)]) == 1
    assert "holds no check of the gate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "phrases"),
    [
        (GateSettings(), []),
        (GateSettings(greedy_beyond_control=0, auc_to_base=0.01, scan_recall=0.5), []),
        (
            GateSettings(greedy_beyond_control=7),
            ["greedy_beyond_control is 7, by default test"],
        ),
        (
            GateSettings(discoverable_beyond_control=None, auc_to_base=0.4),
            [
                "discoverable_beyond_control is no limit, by default test",
                f"auc_to_base is 0.4, by default {GateSettings().auc_to_base}",
            ],
        ),
        (GateSettings(subjects=None), ["subjects is no limit, by default test"]),
        (GateSettings(kinds=("indirect",)), ["kinds is indirect, by default direct"]),
        (GateSettings(kinds=("direct", "indirect")), []),
        (
            GateSettings(perplexity_ratio=None),
            ["perplexity_ratio is no limit, by default 1.03"],
        ),
    ],
)
def test_limits_weaker_than_the_defaults_are_told(
    source: Path, capsys: pytest.CaptureFixture[str], settings: GateSettings, phrases: list[str]
) -> None:
    checks = [*CHECKS, Check("scan_recall", 0.9, 0.5, True, "", at_least=True)]
    checks += [replace(c, name=c.name.replace("direct", "indirect")) for c in CHECKS[1:-1]]
    write_manifest(source, report_of(settings=settings, checks=checks), weights_digest="0")
    assert verify(source).weaker_limits == tuple(phrases)
    assert main(["verify", str(source)]) == 0
    shown = capsys.readouterr().out
    assert ("Weaker than the defaults: " in shown) == bool(phrases)
    assert all(phrase in " ".join(shown.split()) for phrase in phrases)


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"files": {}}', '{"schema_version": 2}', "\xff", "null", '{"files": 3'],
)
def test_what_is_no_manifest_is_an_error_and_no_pass(
    released: Path, capsys: pytest.CaptureFixture[str], manifest: str
) -> None:
    (released / MANIFEST).write_text(manifest, encoding="latin-1")
    assert main(["verify", str(released)]) == 1
    assert "is not a manifest of this version of sani" in capsys.readouterr().err


def test_a_folder_without_manifest_and_no_folder_are_errors(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(source)]) == 1
    assert "manifest.json cannot be read (No such file or directory)" in capsys.readouterr().err
    assert main(["verify", str(source / "config.json")]) == 1
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_an_error_and_no_pass(released: Path) -> None:
    (released / "closed").mkdir(mode=0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify(released)


# ---- signatures ------------------------------------------------------------------------------


def test_a_signature_is_valid_for_its_key_and_for_these_bytes_only(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = make_keys(tmp_path, "ours")
    _, other = make_keys(tmp_path, "other")
    assert main(["verify", str(released), "--key", str(public)]) == 3  # not signed yet
    assert main(["sign", str(released), "--key", str(private)]) == 0
    capsys.readouterr()
    assert main(["verify", str(released), "--key", str(public)]) == 0
    assert "Signature: valid." in capsys.readouterr().out
    assert main(["verify", str(released)]) == 0
    assert "Signature: not checked (so whoever" in capsys.readouterr().out
    assert main(["verify", str(released), "--key", str(other)]) == 3
    assert "Signature: not valid." in capsys.readouterr().out
    assert main(["sign", str(released), "--key", str(private)]) == 0  # once more
    assert verify(released, public_key=public).holds


def test_a_forged_manifest_passes_without_the_key_and_fails_with_it(
    released: Path, tmp_path: Path
) -> None:
    """What the signature is for: whoever swaps the weights can write the manifest again."""
    private, public = make_keys(tmp_path, "ours")
    sign(released, private)
    assert verify(released, public_key=public).holds
    flip(released / "model.safetensors")
    write_manifest(released, REPORT, weights_digest="0" * 64)
    assert verify(released).holds
    assert verify(released, public_key=public).signature == "not valid"
    assert not verify(released, public_key=public).holds


def test_a_broken_signature_is_not_valid(released: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "ours")
    sign(released, private)
    whole = (released / SIGNATURE).read_bytes()
    for broken in (b"", b"{}", b"\xff", whole[: len(whole) // 2]):
        (released / SIGNATURE).write_bytes(broken)
        assert verify(released, public_key=public).signature == "not valid"
    (released / SIGNATURE).write_bytes(whole)
    assert verify(released, public_key=public).holds


def test_a_changed_folder_is_not_signed(released: Path, tmp_path: Path) -> None:
    private, _ = make_keys(tmp_path, "ours")
    flip(released / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing: 0, changed: 1 since"):
        sign(released, private)
    assert not (released / SIGNATURE).exists()


def test_a_key_may_have_a_password_and_a_bad_key_is_one_sentence(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(tmp_path, "locked", b"open sesame")
    with pytest.raises(CheckpointError, match="its password in SANI_KEY_PASSWORD"):
        sign(released, private)
    monkeypatch.setenv("SANI_KEY_PASSWORD", "open sesame")
    sign(released, private)
    assert verify(released, public_key=public).holds
    for bad in (tmp_path / "nowhere", released / "config.json"):
        with pytest.raises(CheckpointError, match="expected an elliptic curve key"):
            verify(released, public_key=bad)


# ---- release_scan ----------------------------------------------------------------------------

NAME, NUMBER, SHORT, AGE, PLACE = "Kowalczyk Łucja", "4471-99-X", "Ann", "41 years", "London"

PHONE, SURNAME, LONG, ZEROS = "+44 20 7946 0958", "Wojciechowska", "9034471", "0044719930"


def corpus() -> Corpus:
    text = f"{NAME} {NUMBER} {SHORT} {AGE} {PLACE}"
    direct: list[tuple[str, Any]] = [(value, "direct") for value in (NAME, NUMBER, SHORT)]
    values = [*direct, (AGE, "indirect"), (PLACE, "indirect")]
    spans = [
        Span(text.index(value), text.index(value) + len(value), "X", kind) for value, kind in values
    ]
    other = f"{PHONE} {SURNAME}"
    marks = (Span(0, len(PHONE), "X"), Span(len(PHONE) + 1, len(other), "X"))
    return Corpus(
        [
            Document("note-90125", "32000", text, tuple(spans)),
            Document(LONG, ZEROS, other, marks),
        ]
    )


def edit(name: str, **fields: object) -> Any:
    def apply(folder: Path) -> None:
        data = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(data | fields))

    return apply


def edit_tokenizer(change: Any) -> Any:
    def apply(folder: Path) -> None:
        data = json.loads((folder / "tokenizer.json").read_text())
        change(data)
        (folder / "tokenizer.json").write_text(json.dumps(data))

    return apply


def with_metadata(value: str, *, file: str = "model.safetensors") -> Any:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors, folder / file, metadata={"format": "pt", "run": value})

    return apply


def text(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


LEAKS = {
    "a field of the config": edit("config.json", task=f"tuned for {NAME}"),
    "its case, accents and blanks": edit("config.json", task="x kowalczyk\n \u0141UCJA"),
    "a key of the config": edit("config.json", **{NAME: 1}),
    "a label, deep down": edit("config.json", id2label={"0": {"names": ["a", NAME]}}),
    "an id as a number": edit("config.json", cohort=32000),
    "an indirect identifier with a digit": edit("config.json", task=f"aged {AGE}"),
    "the generation config": edit("generation_config.json", stop_strings=[NUMBER]),
    "the chat template": text("chat_template.jinja", f"You care for {NAME}."),
    "a chat template in the tokenizer's config": edit(
        "tokenizer_config.json", chat_template=f"You care for {NAME}."
    ),
    "a document's id": edit("tokenizer_config.json", made_from="note-90125"),
    "an added token": edit_tokenizer(lambda d: d["added_tokens"][1].update(content=f"<{NAME}>")),
    "an added token in the config": edit(
        "tokenizer_config.json", added_tokens_decoder={"1": {"content": f"<{NUMBER}>"}}
    ),
    "an extra special token": edit("tokenizer_config.json", extra_special_tokens=[f"x{NAME}x"]),
    "the map of special tokens": edit("special_tokens_map.json", eos_token={"content": f"{NAME}_"}),
    "the file of added tokens": edit("added_tokens.json", **{f"##{NUMBER}": 11}),
    "a word of the vocabulary": edit_tokenizer(lambda d: d["model"]["vocab"].update({NUMBER: 9})),
    "a word with its blank sign": edit_tokenizer(
        lambda d: d["model"]["vocab"].update({"▁" + NAME.replace(" ", "▁"): 9})
    ),
    "a binary vocabulary": lambda f: (f / "tokenizer.model").write_bytes(
        b"\x0a\x12\x0a\x0bq" + NUMBER.encode() + b"q\x15"
    ),
    "the weights' metadata": with_metadata(f"trained on {NAME}"),
    "a number with a point": edit("config.json", cohort=9034471.0),
    "a number without its zeros": edit("config.json", cohort=44719930),
    "a negative number": edit("generation_config.json", cohort=-9034471),
    "a size that no model of this type has": edit("config.json", patient_size=9034471),
    "a size that is too long for one": edit("config.json", max_position_embeddings=9034471),
    "within sizes": edit("config.json", rope_parameters={"note": [9034471]}),
    "a number of the tokenizer": edit_tokenizer(lambda d: d.update(truncation={"x": 9034471})),
    "digits grouped otherwise": edit("config.json", task="cohort 9 034 471"),
    "a telephone number without blanks": edit("config.json", task="call +44-2079460958!"),
    "blanks instead of hyphens": edit("config.json", task="see 4471 99 X"),
    "other hyphens": edit("config.json", task="see 4471\u201199\u2012X"),
    "no hyphens": edit("config.json", task="see 447199X"),
    "underscores": edit("config.json", task="tuned_for_kowalczyk_\u0142ucja_2"),
    "a hyphen between names": edit("config.json", task="Kowalczyk-\u0141ucja"),
    "the other order of names": edit("config.json", task="by \u0141ucja Kowalczyk"),
    "the order of lists": edit("config.json", task="by \u0141UCJA, KOWALCZYK"),
    "an adapter's configuration": text("adapter_config.json", json.dumps({"task": NAME})),
    "an adapter's metadata": with_metadata(f"trained on {NAME}", file="adapter_model.safetensors"),
    "a name as one word": edit("config.json", task="ward/\u0141ucjaKowalczyk/v2"),
    "escapes of JSON": text("chat_template.jinja", json.dumps(NAME)),
    "escapes of the web": edit("config.json", task=quote(NAME)),
    "names of signs": edit("config.json", task=html.escape(NAME).replace("\u0141", "&#321;")),
    "base64": edit("config.json", task=base64.b64encode(f"of {NAME}".encode()).decode()),
    "base64 within other signs": edit(
        "config.json", task="x/" + base64.urlsafe_b64encode(f"{NUMBER}, {NAME}".encode()).decode()
    ),
    "base64 twice": edit(
        "config.json", task=base64.b64encode(base64.b64encode(NAME.encode())).decode()
    ),
    "base64 of the normalizer": edit_tokenizer(
        lambda d: d.update(normalizer={"map": base64.b64encode(SURNAME.encode()).decode()})
    ),
    "a rule of the normalizer": edit_tokenizer(
        lambda d: d.update(normalizer={"pattern": {"String": SURNAME}, "content": ""})
    ),
    "a line of vocab.txt": text("vocab.txt", f"[UNK]\n##{NUMBER}\n"),
    "the only line of vocab.txt": text("vocab.txt", LONG),
    "a word as bytes": edit_tokenizer(
        lambda d: d["model"]["vocab"].update({"Kowalczyk\u0120\u00c5\u0123ucja": 9})
    ),
    "the index": edit("model.safetensors.index.json", metadata={"note": NUMBER}),
}  # fmt: skip


@pytest.mark.parametrize("place", LEAKS)
def test_an_identifier_is_found_wherever_it_hides(source: Path, place: str) -> None:
    check_texts(source, corpus())
    LEAKS[place](source)
    with pytest.raises(CheckpointError, match=r"holds [12] identifiers or ids of the corpus") as e:
        check_texts(source, corpus())
    assert not [s for s in (NAME, NUMBER, AGE, "90125", "32000", LONG) if s in str(e.value)]


HARMLESS = {
    "a word that a name is part of": edit("config.json", task=f"{NAME}owa"),
    "a short name": edit("config.json", task=SHORT),
    "an indirect word": edit("config.json", task=PLACE),
    "a size": edit("config.json", vocab_size=32000, rope_parameters={"x": 32000}),
    "sizes that are long and round": edit(
        "config.json", max_position_embeddings=10485760, rope_parameters={"rope_theta": 5e6}
    ),
    "a surname in the vocabulary": edit_tokenizer(
        lambda d: d["model"]["vocab"].update({SURNAME: 9})
    ),
    "a longer number": edit("config.json", task="19034471 90344710"),
    "digits of two strings": edit("config.json", a=["9034", "471"]),
    "a token's number": edit("tokenizer_config.json", added_tokens_decoder={"32000": {}}),
    "a token's number in the vocabulary": edit_tokenizer(
        lambda d: d["model"]["vocab"].update({"a": 32000})
    ),
    "two strings side by side": edit("config.json", a=["41", "years"], b=["Kowalczyk", "Łucja"]),
    "what is left behind": text("README.md", NAME),
}


@pytest.mark.parametrize("place", HARMLESS)
def test_what_only_looks_alike_stops_no_release(source: Path, place: str) -> None:
    HARMLESS[place](source)
    check_texts(source, corpus())


def test_the_base_excuses_words_of_its_vocabulary_and_no_added_token(
    source: Path, tmp_path: Path
) -> None:
    word = edit_tokenizer(lambda d: d["model"]["vocab"].update({"32000": 9}))
    word(source)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json holds 1"):
        check_texts(source, corpus())
    base = write_source(tmp_path / "base", CONFIGS["tied"]())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json holds 1"):
        check_texts(source, corpus(), base=base)
    word(base)
    check_texts(source, corpus(), base=base)
    for folder in (source, base):
        LEAKS["an added token"](folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json holds 1"):
        check_texts(source, corpus(), base=base)


def test_no_base_excuses_a_record_number_in_the_vocabulary(source: Path, tmp_path: Path) -> None:
    base = write_source(tmp_path / "base", CONFIGS["tied"]())
    for folder in (source, base):
        edit_tokenizer(lambda d: d["model"]["vocab"].update({f"\u0120{LONG}": 9}))(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json holds 1"):
        check_texts(source, corpus(), base=base)


@pytest.mark.false_clean
@pytest.mark.parametrize("field", ["bad_words_ids", "sequence_bias", "suppress_tokens"])
def test_tokens_that_generation_favours_or_forbids_are_refused(source: Path, field: str) -> None:
    edit("generation_config.json", **{field: None})(source)
    check_texts(source, corpus())
    edit("generation_config.json", **{field: [[3, 4]]})(source)
    with pytest.raises(CheckpointError, match=rf"favours or forbids tokens \({field}\)"):
        check_texts(source, corpus())


def test_a_file_that_is_no_signature_is_none(released: Path) -> None:
    assert verify(released).holds
    (released / SIGNATURE).write_bytes(b"weights")
    result = verify(released)
    assert not result.holds
    assert [p for p in result.problems if "model.sig is no signature" in p]


@pytest.mark.parametrize("name", ["optimizer.pt", "notes.txt", "model.pt", "a/b", ".model.sig"])
def test_a_release_holds_nothing_that_is_not_on_the_list(source: Path, name: str) -> None:
    check_release(source, corpus(), base=None, ours=())
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("")
    with pytest.raises(CheckpointError, match="not on the list of what is released"):
        check_release(source, corpus(), base=None, ours=())


def test_our_own_texts_are_looked_into_too(source: Path) -> None:
    (source / "README.md").write_text(NAME)
    with pytest.raises(CheckpointError, match=r"README\.md holds 1"):
        check_release(source, corpus(), base=None, ours=["README.md"])


def test_what_training_left_is_named_by_kind_and_other_files_only_counted(source: Path) -> None:
    assert files_not_released(source) == {}
    left = [*LEFTOVERS, "pytorch_model.bin"]
    for name in left:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("")
    (source / f"letter to {NAME}.txt").write_text("")
    found = files_not_released(source)
    assert found == {
        ".ipynb_checkpoints": 1, "README.md": 1, "TensorBoard logs": 1, "code": 1, "logs": 1,
        "optimizer.pt": 1, "pickled weights": 1, "rng_state.pth": 1, "saved states of training": 1,
        "scheduler.pt": 1, "trainer_state.json": 1, "training_args": 1, "other entries": 4,
    }  # fmt: skip
    assert sum(found.values()) == len({Path(name).parts[0] for name in left}) + 1


def test_a_command_that_writes_a_checkpoint_says_what_it_left_behind(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (source / "optimizer.pt").write_text("")
    (source / f"{NAME}.txt").write_text("")
    assert main(["erase", str(source), "--out", str(out), "--last-layers", "1"]) == 0
    captured = capsys.readouterr()
    assert f"Left behind in {source}: optimizer.pt (1), other entries (1)\n" in captured.err
    assert NAME not in captured.out + captured.err
    assert not {"optimizer.pt", f"{NAME}.txt"} & {file.name for file in out.iterdir()}
