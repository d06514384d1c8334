from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.data.nifti_reader import read_grid
from app.data.origin import made_by_tetrad, origin_of


@pytest.mark.parametrize(
    "text,ours",
    [
        ("synthetic t1c from 3, tetrad 0.1.0, unet-t1c a1ff9e7b mean", True),
        ("confidence of synthetic t2f from 1, tetrad 0.2.0, unet 4e564c79", True),
        ("synthetic t1c from 3, other 1.0", False),
        ("made from synthetic t1c, tetrad", False),
        ("tetrad", False),
        ("6.0.5:9e026117", False),
        ("", False),
    ],
)
def test_the_header_says_what_made_the_image(tmp_path, text, ours):
    image = nib.Nifti1Image(np.ones((32, 32, 32), np.int16), np.eye(4))
    image.header["descrip"] = text.encode()
    nib.save(image, tmp_path / "a.nii.gz")
    grid = read_grid(tmp_path / "a.nii.gz")
    assert origin_of(grid) == text
    assert made_by_tetrad(grid) is ours
