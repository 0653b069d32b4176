"""Files and folders that are written whole or not at all."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from sani.atomic import new_file, new_folder, write_text
from sani.errors import WriteError
from tests.support.folders import no_space, small_files


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    write_text(path, "new, año")
    assert path.read_text(encoding="utf-8") == "new, año"
    with small_files(4000), pytest.raises(WriteError) as caught:
        write_text(path, "x" * 5000)
    assert str(caught.value) == (
        f"cannot write {path} (File too large); free space or choose another --out"
    )
    assert path.read_text(encoding="utf-8") == "new, año"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_file_in_a_wrong_place_is_refused_with_other_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError) as caught:
        write_text(tmp_path / "file" / "report.json", "new")
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'file' / 'report.json'} (Not a directory); choose another --out"
    )
    with pytest.raises(WriteError, match=r"\(No such file or directory\); write elsewhere$"):
        write_text(tmp_path / "missing" / "a.json", "new", advice="write elsewhere")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_the_old_file_alone(tmp_path: Path, error: type) -> None:
    path = tmp_path / "notes.jsonl"
    write_text(path, "old")

    def stop_in_the_middle() -> None:
        with new_file(path) as partial:
            partial.write_text("half of the n")
            raise error

    with pytest.raises(error):
        stop_in_the_middle()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.jsonl"]


def test_a_private_file_is_never_open_to_others_not_even_while_it_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "notes.jsonl"
    (tmp_path / ".notes.jsonl.partial").write_text("of a process that was killed")
    (tmp_path / ".notes.jsonl.partial").chmod(0o666)
    mask = os.umask(0o022)
    try:
        with new_file(path, mode=0o600) as partial:
            assert partial.read_bytes() == b""
            assert stat.S_IMODE(partial.stat().st_mode) == 0o600
            partial.write_text("new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        write_text(tmp_path / "report.json", "{}")
        assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o644
    finally:
        os.umask(mask)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_folder_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "model"
    with new_folder(folder) as staging:
        (staging / "old").write_text("old")
    rename = os.rename

    def fails_on_the_new_one(old: Any, new: Any) -> None:
        no_space() if str(old).endswith(".partial") else rename(old, new)

    monkeypatch.setattr(os, step, no_space if step == "fsync" else fails_on_the_new_one)
    with pytest.raises(WriteError) as caught, new_folder(folder) as staging:
        (staging / "new").write_text("new")
    assert str(caught.value) == (
        f"cannot write {folder} (No space left on device); nothing was left half-written: free "
        "space or choose another --out"
    )
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(folder) == ["old"]
    monkeypatch.undo()
    with new_folder(folder) as staging:
        (staging / "new").write_text("new")
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(folder) == ["new"]
