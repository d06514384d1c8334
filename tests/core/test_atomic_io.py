from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core import atomic_io
from app.core.atomic_io import save_bytes, save_together, sweep
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


@pytest.fixture(params=["unnamed", "named", "no locks"])
def way(request, monkeypatch):
    """Each way of writing a file."""
    if request.param != "unnamed":
        monkeypatch.setattr(atomic_io, "_write_unnamed", lambda *_: False)
    if request.param == "no locks":

        def none(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", none)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("length", [255, 250])
def test_a_name_of_full_length_is_written_and_replaced(tmp_path, length):
    path = tmp_path / ("x" * length)
    for content in (b"one", b"two"):
        save_bytes(content, path)
        assert path.read_bytes() == content
    save_together({path: b"three"})
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        for content in (b"one", b"two"):
            save_bytes(content, tmp_path / "a")
            assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


@pytest.mark.usefixtures("way")
def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(OutputError, match="shorten"):
        save_bytes(b"one", tmp_path / ("x" * 256))


class TestSweep:
    @pytest.fixture
    def killed(self, tmp_path):
        """A folder in which a process was killed while it wrote."""
        script = (
            "import os, sys, time; from pathlib import Path; from app.core import atomic_io;"
            "atomic_io._write_unnamed = lambda *_: False;"
            "os.fsync = lambda _: (print('writing', flush=True), time.sleep(60));"
            "atomic_io.save_bytes(b'half', Path(sys.argv[1], 'a.nii.gz'))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        with process, process.stdout:
            process.stdout.readline()
            yield tmp_path, process
            process.kill()

    def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(self, killed):
        folder, process = killed
        (part,) = folder.iterdir()
        sweep(folder)
        assert part.exists()
        process.kill()
        process.wait()
        sweep(folder)
        assert list(folder.iterdir()) == []

    def test_what_version_0_1_left_goes_too(self, tmp_path):
        gone = subprocess.run(["sh", "-c", "echo $$"], check=True, capture_output=True, text=True).stdout.strip()
        for number in (gone, str(os.getpid())):
            (tmp_path / f".a-t2f.nii.gz.{number}.part").write_bytes(b"half")
        sweep(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [f".a-t2f.nii.gz.{os.getpid()}.part"]

    def test_nothing_else_is_touched(self, tmp_path):
        part = ".tetrad-0123456789abcdef.part"
        (tmp_path / "folder" / part).mkdir(parents=True)
        (tmp_path / part).symlink_to("elsewhere")
        names = ["a.part", ".tetrad-0123456789abcdef", ".tetrad-0123456789abcdeg.part", ".profile.12.part", "elsewhere"]
        for name in names:
            (tmp_path / name).touch()
        sweep(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {*names, "folder", part}
        sweep(tmp_path / "none")

    def test_without_locks_age_decides(self, tmp_path, monkeypatch):
        def none(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", none)
        old, new = (tmp_path / f".tetrad-{digit * 16}.part" for digit in "01")
        for path in (old, new):
            path.touch()
        os.utime(old, (0, 0))
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [new]


@pytest.mark.skipif(sys.platform != "linux", reason="needs unnamed files")
@pytest.mark.parametrize("old", ["file", "link", "nothing"])
def test_alone_no_other_name_is_ever_there(tmp_path, monkeypatch, old):
    path, names = tmp_path / "a.bin", set()
    if old == "link":
        path.symlink_to("elsewhere")
    elif old == "file":
        path.write_bytes(b"one")
    real = os.link

    def link(*arguments, **options):
        names.update(p.name for p in tmp_path.iterdir())
        real(*arguments, **options)
        names.update(p.name for p in tmp_path.iterdir())

    monkeypatch.setattr(os, "link", link)
    save_bytes(b"two", path, alone=True)
    assert names == {"a.bin"}
    assert (path.read_bytes(), path.is_symlink()) == (b"two", False)


def test_alone_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    save_bytes(b"old", path)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_bytes(b"new", path, alone=True)
    assert path.read_bytes() == b"old"


def test_alone_a_folder_of_that_name_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="folder of that name"):
        save_bytes(b"new", tmp_path / "a", alone=True)


def test_what_another_machine_swept_away_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_io, "_write_unnamed", lambda *_: False)
    real, swept = atomic_io._write, []

    def write(content, stream):
        real(content, stream)
        if not swept:
            swept.append(stream.name)
            Path(stream.name).unlink()

    monkeypatch.setattr(atomic_io, "_write", write)
    save_bytes(b"one", tmp_path / "a")
    assert swept
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
