from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from app import Synthesizer
from app.core.errors import CaseError
from app.inference.clinic import alignment
from app.inference.clinic.pipeline import complete_exam
from app.inference.clinic.scans import read_sequence
from tests.inference.clinic.helpers import STILL, write_heads, write_mask


def read(files):
    return {m: read_sequence(f) for m, f in files.items()}


@pytest.fixture(autouse=True, scope="module")
def headers_that_are_right():
    """Registration, which takes seconds, finds that nobody moved (its own tests: `tests/preprocessing`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "register", lambda fixed, moving: STILL)
        yield


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinic") / "head"
    files = write_heads(folder)
    return files, write_mask(folder / "mask.nii", files["t1n"])


@pytest.fixture(scope="module")
def done(exam, weights_dir):
    files, mask = exam
    return complete_exam(
        {m: read_sequence(f) for m, f in files.items()}, Synthesizer("regression", weights=weights_dir).model, mask=mask
    )


def test_the_result_lies_in_the_grid_of_its_reference(exam, done):
    assert (done.target, done.reference) == ("t2f", "t2w")
    reference = nib.load(exam[0]["t2w"])
    assert done.image.shape == reference.shape
    np.testing.assert_array_equal(done.image.affine, reference.affine)
    assert done.image.get_data_dtype() == reference.get_data_dtype()
    assert done.image.header["descrip"].item().startswith(b"synthetic t2f from 3")


def test_it_shows_the_brain_and_nothing_else(exam, done):
    made = np.asarray(done.image.dataobj)
    brain = np.asarray(nib.load(exam[1]).dataobj) > 0
    volumes = [np.count_nonzero(v) * np.prod(nib.load(f).header.get_zooms()) for v, f in
               ((made, exam[0]["t2w"]), (brain, exam[1]))]  # fmt: skip
    assert 0.8 < volumes[0] / volumes[1] < 1.2
    assert made[:, :, made.shape[2] // 2].any()
    assert not made[:2].any()


def test_the_record_tells_what_was_done(done):
    record = json.loads(json.dumps(done.record))
    assert 700 < record["brain"]["ml"] < 2200
    assert record["brain"]["from"].startswith("mask ")
    moved = [s["alignment"]["moved_mm"] for s in record["sequences"].values() if "alignment" in s]
    assert moved == [0, 0]
    assert all(len(s["sha256"]) == 64 for s in record["sequences"].values())


def test_a_sequence_that_is_there_is_not_used_to_make_it_again(exam, weights_dir):
    files, mask = exam
    again = complete_exam(
        {m: read_sequence(f) for m, f in files.items()},
        Synthesizer("regression", weights=weights_dir).model,
        target="t1c",
        mask=mask,
    )
    assert set(again.aligned) == {"t1n", "t2w"}
    assert again.reference == "t1n"


def test_a_mask_of_another_grid_is_refused(exam, weights_dir, tmp_path):
    files, _ = exam
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40), np.uint8), np.eye(4)), tmp_path / "m.nii.gz")
    with pytest.raises(CaseError, match="on the grid of no sequence"):
        complete_exam(
            {m: read_sequence(f) for m, f in files.items()},
            Synthesizer("regression", weights=weights_dir).model,
            mask=tmp_path / "m.nii.gz",
        )
