"""Hostile and odd NIfTI files: each is read right or refused by one sentence, whatever its bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.errors import VolumeError
from app.data.nifti_reader import file_sha256, find_emptiness, load_volume, read_grid

DATA = np.random.default_rng(0).integers(1, 1000, (32, 33, 34)).astype(np.int16)
PLAIN = nib.Nifti1Image(DATA, np.diag([-1.0, -1, 1, 1])).to_bytes()


def _with(raw: bytes, place: int, form: str, *values: float) -> bytes:
    content = bytearray(raw)
    struct.pack_into("<" + form, content, place, *values)
    return bytes(content)


def _extended(size: int, code: int, body: bytes = b"") -> bytes:
    """The plain file with one extension of this size, its body sparse."""
    extension = struct.pack("<2i", size, code) + body
    head = _with(PLAIN[:348], 108, "f", 352 + size) + b"\x01\0\0\0"
    return head + extension + bytes(size - len(extension)) + PLAIN[352:]


@pytest.mark.parametrize("offset", [1e38, -1.0, np.nan, np.inf, 352.5, 16.0])
@pytest.mark.parametrize("packed", [False, True])
def test_a_place_of_the_voxels_that_cannot_be(tmp_path, offset, packed):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    raw = _with(PLAIN, 108, "f", offset)
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    with pytest.raises(VolumeError, match=r"byte|between header and voxels|cannot be read"):
        read_grid(path)


@pytest.mark.parametrize("missing", [1, 300, 1000])
def test_a_file_that_lacks_its_last_bytes(tmp_path, missing):
    (tmp_path / "a.nii").write_bytes(PLAIN[:-missing])
    with pytest.raises(VolumeError, match="ends before its last voxel"):
        read_grid(tmp_path / "a.nii")


@pytest.mark.parametrize("body", [b"<CIFTI><broken", b'<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><a>&c;</a>'])
def test_extensions_of_others_are_not_parsed(tmp_path, body):
    for name in ("a.nii", "a.nii.gz"):
        raw = _extended(1024, 32, body)
        (tmp_path / name).write_bytes(gzip.compress(raw, 1) if name.endswith("gz") else raw)
        volume = load_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.data, DATA)
        assert not volume.grid.header.extensions


def test_a_huge_extension_is_refused_unread(tmp_path):
    path = tmp_path / "a.nii"
    with path.open("wb") as stream:
        stream.write(_with(PLAIN[:348], 108, "f", 352 + 2**31) + b"\x01\0\0\0" + struct.pack("<2i", 2**31 - 16, 4))
        stream.truncate(352 + 2**31 + len(PLAIN))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VolumeError, match="more than 256 MB"):
        read_grid(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


@pytest.mark.parametrize(
    "rows", [((1, 0, 0, 0), (2, 0, 0, 0), (0, 0, 1, 0)), ((1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0))]
)
def test_axes_that_do_not_span_a_volume(tmp_path, rows):
    raw = _with(_with(PLAIN, 252, "2h", 0, 1), 280, "12f", *np.ravel(rows).astype(float))
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(VolumeError, match="axes do not span a volume"):
        read_grid(tmp_path / "a.nii")


@pytest.mark.parametrize(
    "dims", [(3, -32, 33, 34), (7, 1, 1, 1, 1, 1, 1, 1), (0, 32, 33, 34), (9, 32, 33, 34), (3, 0, 0, 0)]
)
def test_absurd_shapes(tmp_path, dims):
    (tmp_path / "a.nii").write_bytes(_with(PLAIN, 40, f"{len(dims)}h", *dims))
    with pytest.raises(VolumeError):
        read_grid(tmp_path / "a.nii")


@pytest.mark.parametrize("code", [32, 128, 1536, 1792, 2048, 2304, 77])
def test_types_that_are_no_plain_numbers(tmp_path, code):
    (tmp_path / "a.nii").write_bytes(_with(PLAIN, 70, "h", code))
    with pytest.raises(VolumeError):
        load_volume(tmp_path / "a.nii")


def test_names_do_not_decide(tmp_path):
    (tmp_path / "a.nii").write_bytes(gzip.compress(PLAIN, 1))
    (tmp_path / "b.nii.gz").write_bytes(PLAIN)
    for name in ("a.nii", "b.nii.gz"):
        np.testing.assert_array_equal(load_volume(tmp_path / name).data, DATA)
        assert find_emptiness(read_grid(tmp_path / name)) is None


def test_a_pair(tmp_path):
    nib.save(nib.Nifti1Pair(DATA, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.hdr")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.hdr").data, DATA)
    (tmp_path / "a.img").unlink()
    with pytest.raises(VolumeError, match=r"a\.img is not beside it"):
        read_grid(tmp_path / "a.hdr")


def test_the_checksum_of_a_pair_is_of_both_files(tmp_path):
    nib.save(nib.Nifti1Pair(DATA, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.hdr")
    both = (tmp_path / "a.hdr").read_bytes() + (tmp_path / "a.img").read_bytes()
    scanned = read_grid(tmp_path / "a.hdr")
    expected = hashlib.sha256(both).hexdigest()
    assert load_volume(tmp_path / "a.hdr", scanned=scanned).sha256 == file_sha256(tmp_path / "a.hdr") == expected
    os.utime(tmp_path / "a.img", (1, 1))
    with pytest.raises(VolumeError, match="was changed while it was read"):
        load_volume(tmp_path / "a.hdr", scanned=scanned)


def test_a_plain_file_is_sampled_without_mapping_it(tmp_path):
    for name, values in (("a.nii", DATA), ("b.nii", np.full_like(DATA, 3))):
        nib.save(nib.Nifti1Image(values[..., None], np.eye(4)), tmp_path / name)
    assert find_emptiness(read_grid(tmp_path / "a.nii")) is None
    assert "same value" in (find_emptiness(read_grid(tmp_path / "b.nii")) or "")


def test_analyze_does_not_say_left_from_right(tmp_path):
    nib.save(nib.AnalyzeImage(DATA, np.eye(4)), tmp_path / "a.hdr")
    with pytest.raises(VolumeError, match="left from right"):
        read_grid(tmp_path / "a.hdr")


def test_nifti_2(tmp_path):
    nib.save(nib.Nifti2Image(DATA, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii.gz").data, DATA)


class TestAnyBytes:
    @settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
    def test_a_header_with_other_bytes(self, tmp_path, changes, packed):
        raw = bytearray(PLAIN)
        for place, value in changes:
            raw[place] = value
        _read_whatever(tmp_path / "a.nii.gz", gzip.compress(bytes(raw), 1) if packed else bytes(raw))

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(PLAIN)), st.binary(max_size=64), st.booleans())
    def test_a_file_that_ends_early_or_goes_on_otherwise(self, tmp_path, length, more, packed):
        raw = PLAIN[:length] + more
        _read_whatever(tmp_path / "a.nii", gzip.compress(raw, 1)[: max(1, length)] if packed else raw)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=2000))
    def test_any_file(self, tmp_path, content):
        _read_whatever(tmp_path / "a.nii.gz", content)


def _read_whatever(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        find_emptiness(read_grid(path))
        load_volume(path)
    except VolumeError as error:
        assert str(path) in str(error)
