from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.data.discovery import scan
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom

SHAPE = (36, 40, 32)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_it_has_a_brain_with_a_tumour_of_three_parts_inside(seed):
    phantom = make_phantom(SHAPE, seed)
    brain = phantom.volumes["t1n"] > 0
    assert 0.1 < brain.mean() < 0.6
    assert set(np.unique(phantom.labels)) == {0, 1, 2, 3}
    assert brain[phantom.labels > 0].all()
    for modality in MODALITIES:
        assert phantom.volumes[modality].shape == SHAPE
        np.testing.assert_array_equal(phantom.volumes[modality] > 0, brain)


def test_the_seed_decides():
    one, same, other = (make_phantom(SHAPE, seed) for seed in (1, 1, 2))
    for modality in MODALITIES:
        np.testing.assert_array_equal(one.volumes[modality], same.volumes[modality])
        assert not np.array_equal(one.volumes[modality], other.volumes[modality])


def test_sequences_have_their_contrast():
    phantom = make_phantom(SHAPE, 3)
    rim, oedema = phantom.labels == 3, phantom.labels == 2
    assert phantom.volumes["t1c"][rim].mean() > 1.5 * phantom.volumes["t1n"][rim].mean()
    healthy = (phantom.volumes["t1n"] > 0) & (phantom.labels == 0)
    assert phantom.volumes["t2f"][oedema].mean() > phantom.volumes["t2f"][healthy].mean()


@pytest.mark.parametrize("absent", [(), ("t2f",), ("t1c", "t2w")])
def test_what_is_written_is_a_subject(tmp_path, absent):
    phantom = make_phantom(SHAPE, 0)
    write_phantom(phantom, tmp_path, "p", leave_out=absent)
    (case,) = scan(tmp_path).cases
    assert case.absent == absent
    for modality, path in case.files.items():
        volume = load_volume(path)
        np.testing.assert_array_equal(volume.data, np.rint(phantom.volumes[modality]))
        np.testing.assert_array_equal(volume.grid.affine, phantom.affine)
    np.testing.assert_array_equal(load_volume(tmp_path / "p" / "p-seg.nii.gz", strict=True).data, phantom.labels)
