from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.core.errors import VolumeError
from app.data.nifti_reader import load_volume, read_grid

DATA = np.random.default_rng(0).integers(1, 1000, (32, 33, 34)).astype(np.float32)
AFFINE = np.array([[-1.0, 0, 0, 16], [0, 0, 1.1, -20], [0, -0.9, 0, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_it_is_read_as_the_same_nifti(tmp_path, name):
    nib.save(nib.MGHImage(DATA, AFFINE), tmp_path / name)
    nib.save(nib.Nifti1Image(DATA, AFFINE), tmp_path / "a.nii.gz")
    other, expected = load_volume(tmp_path / name), load_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(other.data, expected.data)
    assert other.grid.same_as(expected.grid)
    assert int(other.grid.header["sform_code"]) == 1


def test_damage_is_named(tmp_path):
    nib.save(nib.MGHImage(DATA, AFFINE), tmp_path / "a.mgh")
    content = (tmp_path / "a.mgh").read_bytes()
    (tmp_path / "a.mgh").write_bytes(content[:5000])
    with pytest.raises(VolumeError, match="ends before its last voxel"):
        load_volume(tmp_path / "a.mgh")
    (tmp_path / "a.mgh").write_bytes(content[:4] + b"\xff" * 300)
    with pytest.raises(VolumeError, match=r"a\.mgh"):
        read_grid(tmp_path / "a.mgh")
