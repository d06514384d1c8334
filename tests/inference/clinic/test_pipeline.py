from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from app import Synthesizer
from app.core.errors import CaseError, DoubtfulError
from app.inference.clinic import alignment
from app.inference.clinic.pipeline import complete_exam
from app.inference.clinic.scans import read_sequence
from app.registry.manifest import change_spec, read_manifest
from tests.inference.clinic.helpers import STILL, write_heads, write_mask
from tests.preprocessing.quality import STRANGE, quality_model


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


def test_what_is_expected_stands_in_the_record(exam, weights_dir):
    files, mask = exam
    model = replace(Synthesizer("tiny", weights=weights_dir).model, expected_quality=quality_model(ranges=STRANGE))
    made = complete_exam(read(files), model, mask=mask)
    assert made.record["expected"]["ssim_brain"]["expected"] == 0.7
    assert made.warnings[0].startswith("the exam is unlike the exams that tiny learnt from")
    with pytest.raises(DoubtfulError, match="is expected to reach"):
        complete_exam(read(files), replace(model, min_expected_ssim=0.9), mask=mask)


@pytest.mark.parametrize(("thickest", "maker"), [(1.5, "tiny"), (9.0, "expert")])
def test_the_thickest_slices_choose_the_maker(exam, specialist_weights, thickest, maker):
    files, mask = exam
    change_spec(read_manifest(specialist_weights).entry("expert"), max_slice_mm=thickest)
    made = complete_exam(read(files), Synthesizer("tiny", weights=specialist_weights).model, mask=mask)
    assert made.record["model"] == maker
    assert f" {maker} " in made.image.header["descrip"].item().decode()


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
    assert record["brain"]["dice"] == {}
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


def test_a_slab_is_refused_whichever_sequence_it_is(exam, weights_dir, tmp_path):
    """A thin-slice slab becomes the anchor: its own box must not be taken for the whole brain."""
    files, mask = exam
    whole = nib.load(files["t1c"])
    data = np.asarray(whole.dataobj)
    kept = data.shape[2] * 6 // 10
    fine = np.repeat(data[..., :kept], 2, axis=2)
    affine = whole.affine @ np.diag([1, 1, 0.5, 1])
    slab = nib.Nifti1Image(fine, affine)
    slab.set_sform(affine, 1)
    slab.set_qform(affine, 1)
    nib.save(slab, tmp_path / "slab.nii.gz")
    sequences = read({**files, "t1c": tmp_path / "slab.nii.gz"})
    model = Synthesizer("regression", weights=weights_dir).model
    with pytest.raises(CaseError, match=r"t1c shows [5-8]\d % of the brain, 90 %"):
        complete_exam(sequences, model, mask=mask)


def test_a_mask_says_whose_it_is_where_the_patient_moved(exam, weights_dir, monkeypatch, tmp_path):
    files, _ = exam
    mask = write_mask(tmp_path / "mask.nii", files["t1n"])
    same = read({"t1n": files["t1n"], "t1c": files["t1n"], "t2w": files["t2w"]})
    moved = replace(STILL, transform=sitk.Euler3DTransform(STILL.transform), after=-0.9)
    moved.transform.SetTranslation([6.0, 0.0, 0.0])
    monkeypatch.setattr(alignment, "register", lambda fixed, moving: moved)
    model = Synthesizer("regression", weights=weights_dir).model
    with pytest.raises(CaseError, match=r"the grid of t1c, t1n, t2w, between which the patient moved by 6\.0 mm"):
        complete_exam(same, model, mask=mask)
    brains = [complete_exam(same, model, mask=mask, mask_of=m).brain for m in ("t1n", "t1c")]
    shifts = [np.argwhere(b).mean(axis=0)[0] for b in brains]
    assert abs(shifts[0] - shifts[1]) == pytest.approx(6, abs=0.3)
    other = write_mask(tmp_path / "other.nii", files["t1c"])
    for path, owner, message in (
        (other, "t1n", "is on another grid than t1n"),
        (mask, "t2f", "--mask-of t2f is not among"),
    ):
        with pytest.raises(CaseError, match=message):
            complete_exam(same, model, mask=path, mask_of=owner)


def test_a_mask_of_another_grid_is_refused(exam, weights_dir, tmp_path):
    files, _ = exam
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40), np.uint8), np.eye(4)), tmp_path / "m.nii.gz")
    with pytest.raises(CaseError, match="on the grid of no sequence"):
        complete_exam(
            {m: read_sequence(f) for m, f in files.items()},
            Synthesizer("regression", weights=weights_dir).model,
            mask=tmp_path / "m.nii.gz",
        )
