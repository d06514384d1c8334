from __future__ import annotations

import pytest

from app.core.atomic_io import save_bytes
from app.core.errors import OutputError


def test_writing_replaces_whole_and_leaves_no_other_name(tmp_path):
    path = tmp_path / "a.bin"
    save_bytes(b"one", path)
    save_bytes(b"two", path)
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_rename_is_the_way_where_unnamed_files_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("app.core.atomic_io._write_unnamed", lambda *_: False)
    path = tmp_path / "a.bin"
    save_bytes(b"one", path)
    save_bytes(b"two", path)
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_write_that_fails_keeps_the_old_file_and_nothing_else(tmp_path, monkeypatch, unnamed):
    path = tmp_path / "a.bin"
    save_bytes(b"old", path)
    if not unnamed:
        monkeypatch.setattr("app.core.atomic_io._write_unnamed", lambda *_: False)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_bytes(b"new", path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
