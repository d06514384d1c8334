from __future__ import annotations

import os

import pytest

from app.registry.plain_files import NotPlainError, is_inside, open_plain, read_json


@pytest.mark.parametrize("name", ["a", "a.onnx", "sub/a.json", ".hidden"])
def test_places_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize("name", ["", ".", "..", "/dev/zero", "../a", "sub/../../a", "a\0b", "a\nb", "a\x1b[0m"])
def test_places_outside_or_no_places(name):
    assert not is_inside(name)


def test_a_plain_file_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_plain(tmp_path / name, tmp_path) as stream:
            assert stream.read() == b"content"


def test_what_would_never_end_or_never_begin_is_not(tmp_path):
    folder = tmp_path / "weights"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (tmp_path / "other").write_bytes(b"")
    (folder / "out").symlink_to("../other")
    (folder / "loop").symlink_to("loop")
    for name in ("folder", "pipe", "device", "out"):
        with pytest.raises(NotPlainError):
            open_plain(folder / name, folder)
    for name in ("loop", "none"):
        with pytest.raises(OSError):
            open_plain(folder / name, folder)


def test_a_linked_folder_is_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_text('{"b": 1}')
    (tmp_path / "link").symlink_to("real")
    assert read_json(tmp_path / "link" / "a.json", tmp_path / "link") == {"b": 1}


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"{", b"1" * 10_000])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json", tmp_path)


def test_what_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match="more than"):
        read_json(tmp_path / "a.json", tmp_path)
