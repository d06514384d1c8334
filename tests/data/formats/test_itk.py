from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.core.errors import VolumeError
from app.data.nifti_reader import file_sha256, find_emptiness, load_volume, read_grid
from app.data.nifti_writer import to_image

DATA = np.random.default_rng(0).integers(1, 1000, (32, 33, 34)).astype(np.int16)
AFFINE = np.array([[-0.9, 0.05, 0, 16], [0.05, 0, 1.1, -20], [0, -1.0, 0, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_it_is_read_as_the_same_nifti(tmp_path, name):
    affine = np.array([[-0.9, 0, 0, 16], [0, 0, 1.1, -20], [0, -1.0, 0, 30], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(DATA, affine), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / name))
    other, expected = load_volume(tmp_path / name), load_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(other.data, expected.data)
    assert other.grid.same_as(expected.grid, tolerance=1e-4)
    assert other.grid.header.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(to_image(other.data, other.grid).dataobj), DATA)


def test_colour_and_several_volumes_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([32, 32, 32], sitk.sitkVectorUInt8, 3), str(tmp_path / "colour.nrrd"))
    with pytest.raises(VolumeError, match="no plain numbers"):
        read_grid(tmp_path / "colour.nrrd")


def test_left_and_right_must_be_stated(tmp_path):
    header = b"NRRD0005\ntype: uchar\ndimension: 3\nsizes: 32 32 32\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(range(256)) * 128)
    with pytest.raises(VolumeError, match="left and right are unknown"):
        read_grid(tmp_path / "a.nrrd")


def test_the_checksum_is_of_header_and_voxels(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(DATA), str(tmp_path / "a.mhd"))
    (raw,) = tmp_path.glob("*raw")
    expected = hashlib.sha256((tmp_path / "a.mhd").read_bytes() + raw.read_bytes()).hexdigest()
    assert load_volume(tmp_path / "a.mhd").sha256 == file_sha256(tmp_path / "a.mhd") == expected
    raw.unlink()
    with pytest.raises(VolumeError, match="not beside it"):
        read_grid(tmp_path / "a.mhd")


def test_a_place_far_down_in_the_header_is_seen(tmp_path):
    comment = "# " + "x" * 5000
    header = f"NRRD0005\n{comment}\ntype: uchar\ndimension: 3\nspace: LPS\nsizes: 32 32 32\ndata file: /etc/passwd\n\n"
    (tmp_path / "a.nhdr").write_text(header)
    with pytest.raises(VolumeError, match="no single file beside it"):
        read_grid(tmp_path / "a.nhdr")


@pytest.mark.parametrize("place", ["/etc/passwd", "../other.raw", "..", "\0", "LIST", "im%03d.raw 1 3 1"])
def test_voxels_from_elsewhere_are_refused(tmp_path, place):
    header = f"ObjectType = Image\nNDims = 3\nDimSize = 32 32 32\nElementType = MET_UCHAR\nElementDataFile = {place}\n"
    (tmp_path / "a.mhd").write_text(header)
    with pytest.raises(VolumeError, match="no single file beside it"):
        read_grid(tmp_path / "a.mhd")


def test_damage_is_named(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0005\ntype: short\nspace: LPS\ndimension: three\n\n")
    with pytest.raises(VolumeError, match=r"a\.nrrd cannot be read"):
        read_grid(tmp_path / "a.nrrd")
    (tmp_path / "b.nrrd").write_bytes(
        b"NRRD0005\ntype: short\nspace: LPS\ndimension: 3\nsizes: 32 32 32\nencoding: raw\nendian: little\n\n"
        + bytes(100)
    )
    with pytest.raises(VolumeError, match=r"b\.nrrd"):
        load_volume(tmp_path / "b.nrrd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgh", "a.hdr"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(changes=[(82, 127)], length=1)
@given(changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=6), length=st.integers(0, 72000))
def test_any_bytes_are_read_or_refused(tmp_path, name, changes, length):
    path = tmp_path / name
    if name.endswith(("mgh", "hdr")):
        nib.save((nib.MGHImage if name.endswith("mgh") else nib.Nifti1Pair)(DATA, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(DATA), str(path))
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        raw[min(place, len(raw) - 1)] = value
    path.write_bytes(raw[:length] if length % 3 == 0 else raw)
    try:
        find_emptiness(read_grid(path))
        load_volume(path)
    except VolumeError as error:
        assert tmp_path.name in str(error)
