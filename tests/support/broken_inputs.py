"""Recipes and corpora, broken by Hypothesis, and how `sani` refuses each.

Every value that could name someone is a canary: none of them may be told.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from sani.cli.main import main
from sani.errors import SaniError
from sani.recipe import load_recipe

CANARIES = ("Wolańska-Mbeki", "555-0199-73", "PT4471990")
JUNK = st.one_of(
    st.sampled_from(CANARIES),
    st.sampled_from([None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf")]),
    st.sampled_from(["", "\0", "\ud800"]),
    st.lists(st.sampled_from([*CANARIES, 1, None]), max_size=3),
    st.dictionaries(st.sampled_from(["kind", "path", "x"]), st.sampled_from(CANARIES), max_size=2),
    st.text(max_size=8).map(lambda text: text + CANARIES[1]),
)  # fmt: skip


ODD = [b"\0", b"\xff\xfe", b"{", b"}", b'"', b"'", b",", b"\n", b": ", b"&a *a ", b"*Mbeki ", b"#",
       b"!!python/object:os.system ", b"!<x> ", b"|", b"<![CDATA[", b"<", b"\t", b"\xed\xa0\x80",
       b"- ", CANARIES[0].encode()]  # fmt: skip


@st.composite
def broken_data(draw: Callable[..., Any], data: Any) -> Any:
    """Draw a nested value with one to three entries removed, renamed or replaced by junk."""
    data = json.loads(json.dumps(data))
    for _ in range(draw(st.integers(1, 3))):
        entries = [(holder, key) for holder in _holders(data) for key in _keys(holder)]
        if not entries:
            break
        holder, key = entries[draw(st.integers(0, len(entries) - 1))]
        match draw(st.sampled_from(["junk", "junk", "take out", "rename", "section"])):
            case "take out":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[f"{key}s"] = holder.pop(key)
            case "section":
                holder[key] = {"kind": draw(JUNK)}
            case _:
                holder[key] = draw(JUNK)
    return data


def _holders(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list):
        yield data
        for inner in data.values() if isinstance(data, dict) else data:
            yield from _holders(inner)


def _keys(holder: Any) -> Sequence[Any]:
    return list(holder) if isinstance(holder, dict) else range(len(holder))


@st.composite
def broken_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """Draw bytes that are cut, or into which others are put, at one to three positions."""
    odd = st.sampled_from(ODD)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["put in", "put in", "cut out", "cut off"])):
            case "put in":
                content = content[:at] + draw(odd) + content[at:]
            case "cut out":
                content = content[:at] + content[at + draw(st.integers(1, 40)) :]
            case _:
                content = content[:at]
    return content


def recipes_broken(clinic_recipe: Path) -> st.SearchStrategy[bytes]:
    """Return recipes that are broken in their structure or in their text."""
    text = clinic_recipe.read_text()
    whole = yaml.safe_load(text)
    dumped = broken_data(whole).map(
        lambda data: yaml.dump(data, allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    return dumped | broken_bytes(text.encode())


def corpora_broken() -> st.SearchStrategy[tuple[str, bytes]]:
    """Return names and contents of files: JSONL, CSV, FHIR, XML and BRAT."""
    note = f"Seen: {CANARIES[0]}, tel. {CANARIES[1]}, no. {CANARIES[2]}."
    spans = [{"start": note.index(c), "end": note.index(c) + len(c), "label": "X", "kind": "direct"}
             for c in CANARIES]  # fmt: skip
    rows = [{"id": f"{CANARIES[2]}/{n}", "subject_id": CANARIES[0], "text": note, "spans": spans}
            for n in range(3)]  # fmt: skip
    lines = "\n".join(map(json.dumps, rows)).encode()
    quoted = json.dumps(spans).replace('"', '""')
    table = f'id,subject_id,text,spans\n{CANARIES[2]},{CANARIES[0]},"{note}","{quoted}"\n'.encode()
    fhir = {"resourceType": "DocumentReference", "id": CANARIES[2],
            "subject": {"reference": f"Patient/{CANARIES[0]}"},
            "content": [{"attachment": {"contentType": "text/plain", "data": "U2Vlbg=="}}],
            }  # fmt: skip
    xml = (f'<?xml version="1.0"?><r><TEXT><![CDATA[{note}]]></TEXT><TAGS><NAME id="P0" start="6" '
           f'end="20" text="{CANARIES[0]}" TYPE="PATIENT"/></TAGS></r>').encode()  # fmt: skip
    brat = f"T1\tNAME 6 20\t{CANARIES[0]}\n".encode()

    def dumped(data: Any) -> bytes:
        return "\n".join(map(json.dumps, data if isinstance(data, list) else [data])).encode()

    named: list[st.SearchStrategy[tuple[str, bytes]]] = [
        st.tuples(st.just(name), strategy)
        for name, strategy in {
            "a.jsonl": broken_data(rows).map(dumped) | broken_bytes(lines),
            "a.csv": broken_bytes(table),
            "a.ndjson": broken_data(fhir).map(dumped) | broken_bytes(json.dumps(fhir).encode()),
            "a.jsonl.gz": broken_bytes(lines),
            "a.parquet": broken_bytes(b"PAR1" + lines + b"PAR1"),
            "i2b2/a.xml": broken_bytes(xml),
            "brat/a.ann": broken_bytes(brat),
        }.items()
    ]
    return st.one_of(*named)


def break_recipes(recipe: Path, folder: Path, *, examples: int, counts: Counter[str]) -> None:
    """Run the command on many broken recipes, and count what it makes of each."""
    path = folder / "broken.yaml"

    def is_refused() -> bool:
        try:
            load_recipe(path)
        except SaniError:
            return True
        except Exception:
            return True  # for the command to show
        return False

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        assume(is_refused())
        refused(["run", str(path), "--out", str(folder / "none"), "--check"], counts)

    _examples(recipes_broken(recipe), attempt, examples)


def break_corpora(folder: Path, *, examples: int, counts: Counter[str]) -> None:
    """Run the command on many broken corpora, and count what it makes of each."""

    def attempt(named: tuple[str, bytes]) -> None:
        name, content = named
        corpora = folder / "corpora"
        shutil.rmtree(corpora, ignore_errors=True)
        (corpora / name).parent.mkdir(parents=True)
        (corpora / name).write_bytes(content)
        if name.startswith("brat"):
            (corpora / "brat" / "a.txt").write_text(f"Seen: {CANARIES[0]}, once.")
        target = corpora / name if "/" not in name else (corpora / name).parent
        assume(refused(["scan", str(target)], counts, accepted=True))

    _examples(corpora_broken(), attempt, examples)


def _examples(strategy: st.SearchStrategy[Any], attempt: Callable[[Any], None], n: int) -> None:
    checked = settings(
        max_examples=n,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    checked(seed(0)(given(strategy)(attempt)))()


ERROR_LINE = re.compile(r"^error: ", re.MULTILINE)  # progress and notes may stand before it


def refused(arguments: list[str], counts: Counter[str], *, accepted: bool = False) -> bool:
    """Run a command on a broken input, count what it did, and return if it refused the input."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(arguments)
    text = output.getvalue()
    if code in (0, 3) and accepted:
        return False
    counts["bad_inputs"] += 1
    named = any(part in text for canary in CANARIES for part in (canary, canary.casefold()))
    if named or "Mbeki" in text:
        counts["identifier_leaks"] += 1
        print(f"  identifier_leaks: {text[:300]!r}", flush=True)
    if "Traceback" in text or "a defect of sani" in text:
        counts["tracebacks"] += 1
        print(f"  tracebacks: {text[:300]!r}", flush=True)
    elif code not in (1, 2) or not ERROR_LINE.search(text):
        counts["unexplained"] += 1
        print(f"  unexplained: {code} {text[:300]!r}", flush=True)
    return True
