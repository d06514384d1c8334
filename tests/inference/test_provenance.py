from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.data.nifti_reader import load_volume, read_grid
from app.inference.provenance import expected_of, inputs_digest, inputs_of, mark_expectation, mark_inputs
from app.preprocessing.expected_quality import Estimate, Expectation

SUMS = {"t1n": "a" * 64, "t1c": "b" * 64, "t2w": "c" * 64}


def test_the_digest_tells_every_change_and_no_order():
    digest = inputs_digest(SUMS)
    assert len(digest) == 16
    assert inputs_digest(dict(reversed(SUMS.items()))) == digest
    others = [SUMS | {"t1n": "d" * 64}, SUMS | {"t1n": SUMS["t1c"], "t1c": SUMS["t1n"]}, {"t1n": SUMS["t1n"]},
              {"t1n": SUMS["t1n"], "t1c": SUMS["t1c"], "t2f": SUMS["t2w"]}]  # fmt: skip
    assert len({digest, *map(inputs_digest, others)}) == 5


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mark_outlives_the_disk(tmp_path, kind, phantom):
    image = kind(phantom.volumes["t1n"].astype(np.int16), phantom.affine)
    nib.save(image, tmp_path / "a.nii.gz")
    assert inputs_of(read_grid(tmp_path / "a.nii.gz")) is None
    mark_inputs(image, SUMS)
    nib.save(image, tmp_path / "a.nii.gz")
    assert inputs_of(load_volume(tmp_path / "a.nii.gz").grid) == inputs_digest(SUMS)


@pytest.mark.parametrize("text", [b"", b"scan of A. Person", b"inputs 0123", b"inputs 0123456789abcdeg", b"\xff" * 24])
def test_another_text_is_no_mark(tmp_path, phantom, text):
    image = nib.Nifti1Image(phantom.volumes["t1n"].astype(np.int16), phantom.affine)
    image.header["aux_file"] = text
    nib.save(image, tmp_path / "a.nii.gz")
    assert inputs_of(read_grid(tmp_path / "a.nii.gz")) is None


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_expected_ssim_is_read_again(tmp_path, kind, phantom):
    image = kind(phantom.volumes["t1n"].astype(np.int16), phantom.affine)
    for expectation, known in ((Expectation(Estimate(0.6123, 0.5, 0.7), None), 0.612), (Expectation(None, None), None)):
        mark_expectation(image, expectation)
        nib.save(image, tmp_path / "a.nii.gz")
        assert expected_of(read_grid(tmp_path / "a.nii.gz")) == known
    image.header["intent_name"] = b"T-score"
    nib.save(image, tmp_path / "a.nii.gz")
    assert expected_of(read_grid(tmp_path / "a.nii.gz")) is None
