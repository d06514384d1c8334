from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.labels import REGIONS, has_cavity, load_labels, region_mask, tumour_labels
from app.data.nifti_reader import read_grid


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0], [0, 1, 2, 4, 0], [0, 1, 2, 3, 4]])
def test_regions_of_every_year(labels):
    """The enhancing tumour is 3, or 4 where there is no 3; a 4 beside a 3 is a resection cavity."""
    labels = np.array(labels)
    assert region_mask(labels, "ET").tolist() == [False, False, False, True, False]
    assert region_mask(labels, "TC").tolist() == [False, True, False, True, False]
    assert region_mask(labels, "WT").tolist() == [False, True, True, True, False]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_labels_of_any_year_become_those_since_2023(values):
    labels = np.array(values)
    converted = tumour_labels(labels)
    assert converted.dtype == np.uint8
    assert converted.max() <= 3
    np.testing.assert_array_equal(tumour_labels(converted), converted)
    np.testing.assert_array_equal(converted[labels != 4], labels[labels != 4])
    assert has_cavity(labels) == ({3, 4} <= set(values))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_each_region_holds_the_next_smaller(values):
    enhancing, core, whole = (region_mask(np.array(values), region) for region in REGIONS)
    assert not (enhancing & ~core).any()
    assert not (core & ~whole).any()


class TestLoadLabels:
    def _write(self, folder: Path, labels: np.ndarray, affine=None, name: str = "s-seg.nii.gz") -> Path:
        nib.save(nib.Nifti1Image(labels, np.diag([-1.0, -1, 1, 1]) if affine is None else affine), folder / name)
        return folder / name

    @pytest.fixture
    def grid(self, tmp_path):
        return read_grid(self._write(tmp_path, np.ones((32, 33, 34), np.int16), name="s-t1n.nii.gz"))

    def test_they_come_in_the_order_of_the_volumes(self, tmp_path, grid):
        labels = np.zeros((32, 33, 34), np.uint8)
        labels[3, 4, 5], labels[6, 7, 8] = 2, 4
        path = self._write(tmp_path, labels[:, :, ::-1], affine=np.array(
            [[-1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 33], [0, 0, 0, 1]]))  # fmt: skip
        loaded = load_labels(path, grid, "s")
        assert loaded.dtype == np.uint8
        assert (loaded[3, 4, 5], loaded[6, 7, 8], loaded.sum()) == (2, 3, 5)

    @pytest.mark.parametrize(
        "change,message",
        [
            (lambda labels: labels + 7, "labels that BraTS has not"),
            (lambda labels: labels + np.float32(0.5), "fractions"),
            (lambda labels: labels[:, :-1], "another grid"),
        ],
    )
    def test_what_cannot_be_used_is_named_and_left_out(self, tmp_path, grid, caplog, change, message):
        path = self._write(tmp_path, change(np.ones((32, 33, 34), np.float32)))
        assert load_labels(path, grid, "s") is None
        assert f"s is used without its segmentation: {path}" in caplog.text or message == "another grid"
        assert message in caplog.text

    def test_none_and_an_unreadable_one(self, tmp_path, grid, caplog):
        assert load_labels(None, grid, "s") is None
        assert "no s-seg.nii.gz" in caplog.text
        (tmp_path / "s-seg.nii.gz").write_text("labels")
        assert load_labels(tmp_path / "s-seg.nii.gz", grid, "s") is None
        assert "is text, not an image" in caplog.text

    def test_an_empty_one_counts_as_healthy(self, tmp_path, grid, caplog):
        loaded = load_labels(self._write(tmp_path, np.zeros((32, 33, 34), np.uint8)), grid, "s")
        assert not loaded.any()
        assert "counts as healthy" in caplog.text

    def test_a_cavity_is_noted(self, tmp_path, grid, caplog):
        labels = np.zeros((32, 33, 34), np.uint8)
        labels[1], labels[2] = 3, 4
        with caplog.at_level(logging.WARNING):
            loaded = load_labels(self._write(tmp_path, labels), grid, "s")
        assert set(np.unique(loaded)) == {0, 3}
        assert "resection cavity" in caplog.text
