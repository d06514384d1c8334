from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from app.core.errors import VolumeError
from app.data.formats.contents import FileStamp, check_readable, foreign_kind, hash_files, read_content, read_head


@pytest.mark.parametrize(
    "content,what",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "Git LFS pointer.*git lfs pull"),
        (b"/annex/objects/SHA256E-s1--ab.nii.gz\n", "git-annex pointer.*datalad get"),
        (b"<!DOCTYPE html><html><body>login", "web page"),
        (b"  <html>", "web page"),
        (b"PK\x03\x04" + bytes(100), "zip archive.*unpack"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM file.*dcm2niix"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"MATLAB 5.0 MAT-file", "MATLAB"),
        (b"MATLAB 7.3 MAT-file" + bytes(500), "MATLAB"),
        (b"PK\x05\x06" + bytes(18), "empty zip"),
        (b"\xef\xbb\xbf<html>", "web page"),
        (b"%PDF-1.7", "PDF"),
        (b"BZh91AY", "bzip2"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (bytes(257) + b"ustar\x00" + bytes(100), "tar archive"),
        (bytes(600), "zeros"),
        (b"patient notes\nof today", "is text"),
        (bytes(range(1, 200)), "no known image"),
    ],
)
def test_what_is_no_image_is_named_as_what_it_is(content, what):
    with pytest.raises(AssertionError, match=what):
        raise AssertionError(foreign_kind(Path("a.nii.gz"), content))


def test_head_and_content_are_decompressed_by_content_not_by_name(tmp_path):
    data = bytes(range(256)) * 20
    for name, stored in (("a.nii", gzip.compress(data)), ("b.nii.gz", data)):
        path = tmp_path / name
        path.write_bytes(stored)
        head, compressed = read_head(path)
        assert (head, compressed) == (data[:1024], stored != data)
        assert read_content(path, len(data)) == (data, hashlib.sha256(stored).hexdigest())


def test_a_stream_that_is_longer_than_its_header_says_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(VolumeError, match="more data than its header says"):
        read_content(path, 1000)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_with_much_behind_its_end_is_not_read(tmp_path, packed):
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(bytes(10)) if packed else bytes(10))
    with path.open("r+b") as stream:
        stream.truncate(2**34)
    with pytest.raises(VolumeError, match="longer than its header says"):
        read_content(path, 1000)


def test_the_files_of_an_image_are_hashed_one_after_the_other(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    assert hash_files([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(b"ab").hexdigest()
    with pytest.raises(VolumeError, match="c cannot be read"):
        hash_files([tmp_path / "c"])


def test_links_folders_and_empty_files(tmp_path):
    (tmp_path / "link").symlink_to("../.git/annex/objects/x")
    (tmp_path / "empty").touch()
    for name, what in (("link", "datalad get"), ("empty", "0 bytes"), (".", "not a file")):
        with pytest.raises(VolumeError, match=what):
            check_readable(tmp_path / name)


def test_a_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = FileStamp.of(path)
    assert FileStamp.of(path).is_state_of(before)
    path.write_bytes(b"12")
    assert not FileStamp.of(path).is_state_of(before)


def test_another_number_or_another_mode_alone_is_no_change():
    stamp = FileStamp(size=9, changed=5, number=1, touched=7)
    assert replace(stamp, number=2).is_state_of(stamp)
    assert replace(stamp, touched=8).is_state_of(stamp)
    assert not replace(stamp, number=2, touched=8).is_state_of(stamp)
    assert not replace(stamp, changed=6).is_state_of(stamp)
