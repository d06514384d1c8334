from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.core.errors import VolumeError
from app.data.formats.opening import open_image


def test_content_decides(tmp_path):
    data = np.ones((32, 32, 32), np.float32)
    nib.save(nib.MGHImage(data, np.eye(4)), tmp_path / "a.mgz")
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "b.nii.gz")
    assert open_image(tmp_path / "a.mgz").shape == open_image(tmp_path / "b.nii.gz").shape == (32, 32, 32)
    (tmp_path / "b.nii.gz").rename(tmp_path / "c.mha")
    assert open_image(tmp_path / "c.mha").header["sizeof_hdr"] == 348


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.nii.gz").write_text("<html>")
    with pytest.raises(VolumeError, match="web page"):
        open_image(tmp_path / "a.nii.gz")
