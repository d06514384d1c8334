from __future__ import annotations

import io
import lzma

import nibabel as nib
import numpy as np
import pytest

from app.core.errors import UsageError
from app.inference.simulation.atlas import plain_frame
from app.inference.simulation.lesions import checked_labels, open_lesions, resampled

SHAPE = (40, 44, 36)
FRAME = plain_frame(SHAPE, (0, 0, 0))
SHIFTED = FRAME.matrix + np.array([[0, 0, 0, 5.0], [0] * 4, [0] * 4, [0] * 4])


def _mask(path, labels, affine=None):
    nib.save(nib.Nifti1Image(labels, FRAME.matrix if affine is None else affine), path)
    return path


def _labels(*values):
    labels = np.zeros(SHAPE, np.uint8)
    for number, value in enumerate(values):
        labels[10 + 3 * number : 13 + 3 * number, 10:14, 10:14] = value
    return labels


def _maps(path, **arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue()) if path.suffix == ".xz" else buffer.getvalue())
    return path


class TestMasks:
    def test_a_folder_of_them(self, tmp_path):
        for name in ("b", "a"):
            (tmp_path / name).mkdir()
            _mask(tmp_path / name / f"{name}-seg.nii.gz", _labels(1, 2, 3))
        lesions = open_lesions(tmp_path)
        assert [lesion.name for lesion in lesions] == ["a", "b"]
        assert np.array_equal(lesions[0].load(FRAME), _labels(1, 2, 3))

    def test_one_mask_of_an_older_year(self, tmp_path):
        lesion = open_lesions(_mask(tmp_path / "x-seg.nii.gz", _labels(1, 2, 4)))[0]
        assert lesion.name == "x-seg"
        assert np.array_equal(lesion.load(FRAME), _labels(1, 2, 3))

    def test_another_orientation_of_the_same_grid(self, tmp_path):
        turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ FRAME.matrix
        flipped = _labels(1, 2, 3)[::-1, ::-1]
        lesion = open_lesions(_mask(tmp_path / "x.nii.gz", np.ascontiguousarray(flipped), turned))[0]
        assert np.array_equal(lesion.load(FRAME), _labels(1, 2, 3))

    @pytest.mark.parametrize(
        "labels,affine,message",
        [
            (_labels(), None, "is empty"),
            (_labels(1, 7), None, r"unknown labels \(7\)"),
            (_labels(3, 4), None, "resection cavity"),
            (_labels(1).astype(np.float32) * 0.5, None, r"unknown labels \(0?.*fractions"),
            (_labels(1)[:-2], None, "is on another grid"),
            (_labels(1), np.diag([-2.0, -1.0, 1.0, 1.0]), "is on another grid"),
            (_labels(1), SHIFTED, "is on another grid"),
        ],
    )
    def test_what_cannot_be_used(self, tmp_path, labels, affine, message):
        lesion = open_lesions(_mask(tmp_path / "x-seg.nii.gz", labels, affine))[0]
        with pytest.raises(UsageError, match=message) as caught:
            lesion.load(FRAME)
        assert "x-seg.nii.gz" in str(caught.value)

    def test_none(self, tmp_path):
        with pytest.raises(UsageError, match="holds no mask"):
            open_lesions(tmp_path)
        with pytest.raises(UsageError, match="does not exist"):
            open_lesions(tmp_path / "nowhere")

    def test_no_image(self, tmp_path):
        (tmp_path / "x-seg.nii.gz").write_bytes(b"no image")
        with pytest.raises(UsageError, match=r"x-seg\.nii\.gz"):
            open_lesions(tmp_path)[0].load(FRAME)


class TestLabelMaps:
    @pytest.mark.parametrize("name", ["maps.npz", "maps.npz.xz"])
    def test_they_are_brought_to_the_grid(self, tmp_path, name):
        maps = np.zeros((2, 16, 16, 16), np.uint8)
        maps[0, 4:8, 4:8, 4:8], maps[1, 8:10, 8:10, 8:10] = 2, 4
        lesions = open_lesions(_maps(tmp_path / name, seg=maps, patient=np.array(["p1", "p2"])))
        assert [lesion.name for lesion in lesions] == ["p1", "p2"]
        labels = lesions[0].load(FRAME)
        assert labels.shape == SHAPE
        middle = np.argwhere(labels == 2).mean(axis=0)
        assert middle == pytest.approx([5.5 * (n - 1) / 15 for n in SHAPE], abs=0.6)
        assert set(np.unique(lesions[1].load(FRAME))) == {0, 3}

    def test_an_empty_map_is_named(self, tmp_path):
        lesions = open_lesions(_maps(tmp_path / "m.npz", seg=np.zeros((1, 8, 8, 8), np.uint8)))
        with pytest.raises(UsageError, match=r"lesion-0\) is empty"):
            lesions[0].load(FRAME)

    @pytest.mark.parametrize("arrays", [{}, {"seg": np.zeros((4, 4))}, {"seg": np.zeros((1, 4, 4, 4))}])
    def test_other_files_are_refused(self, tmp_path, arrays):
        with pytest.raises(UsageError, match="no file of label maps"):
            open_lesions(_maps(tmp_path / "m.npz", **arrays))

    def test_damaged_files_are_refused(self, tmp_path):
        (tmp_path / "m.npz.xz").write_bytes(b"nothing")
        with pytest.raises(UsageError, match="no file of label maps"):
            open_lesions(tmp_path / "m.npz.xz")


def test_the_same_number_of_voxels_changes_nothing():
    labels = _labels(1, 2, 3)
    small = labels[10:20, 10:15, 9:15]
    assert np.array_equal(resampled(small, [10, 10, 9], SHAPE, SHAPE), labels)


def test_labels_are_those_since_2023():
    assert checked_labels(_labels(1, 4), "here").max() == 3
