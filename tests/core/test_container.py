from __future__ import annotations

from pathlib import Path

import pytest

from app.core import container
from app.core.container import is_lost_with_container, mount_of, read_mounts

TABLE = r"""1 0 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l
2 1 0:51 / /proc rw - proc proc rw
3 1 8:1 /data/out /output rw,relatime - ext4 /dev/sda1 rw
4 1 8:1 /data/in /in\040put ro - ext4 /dev/sda1 ro
5 1 0:60 / /tmp rw - tmpfs tmpfs rw
damaged
"""


@pytest.fixture
def table(tmp_path) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(TABLE)
    return file


def test_mounts_are_read(table, tmp_path):
    mounts = read_mounts(table)
    assert mounts[Path("/")] == "overlay"
    assert mounts[Path("/in put")] == "ext4"
    assert len(mounts) == 5
    assert read_mounts(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("folder", "mount"),
    [("/output", "/output"), ("/output/a/b", "/output"), ("/output-report", "/"), ("/in put/x", "/in put"), ("/", "/")],
)
def test_the_innermost_mount_counts(table, folder, mount):
    assert mount_of(Path(folder), read_mounts(table)) == Path(mount)


@pytest.mark.parametrize("layered", [True, False])
def test_only_a_containers_own_files_are_lost(table, monkeypatch, layered):
    mounts = read_mounts(table)
    if not layered:
        mounts[Path("/")] = "ext4"
    monkeypatch.setattr(container, "read_mounts", lambda: mounts)
    monkeypatch.setattr(container, "_MARKS", ())
    assert is_lost_with_container(Path("/output-report")) is layered
    assert not is_lost_with_container(Path("/output/report"))
    monkeypatch.setattr(container, "_MARKS", ("/",))
    assert is_lost_with_container(Path("/output-report"))
