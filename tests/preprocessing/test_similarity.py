from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.preprocessing.similarity import dynamic_range, ssim_map


def _image(seed=0, shape=(20, 24)):
    return np.random.default_rng(seed).uniform(0, 1, shape)


@pytest.mark.parametrize("shape", [(20, 24), (14, 16, 12)])
def test_equal_to_torchmetrics(shape):
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, two = _image(0, shape), _image(1, shape)
    expected = structural_similarity_index_measure(
        torch.from_numpy(one)[None, None], torch.from_numpy(two)[None, None], data_range=1.0
    )
    # torchmetrics leaves out no border since 1.4.2.
    assert ssim_map(one, two, 1.0).mean() == pytest.approx(float(expected), abs=1e-6)


def test_alike_is_one_and_opposite_is_below_zero():
    image = _image()
    np.testing.assert_allclose(ssim_map(image, image), 1.0)
    assert ssim_map(image, 1 - image, 1.0).mean() < -0.5


@given(st.floats(0.01, 100))
def test_the_unit_does_not_matter(factor):
    one, two = _image(0), _image(1)
    np.testing.assert_allclose(ssim_map(one * factor, two * factor), ssim_map(one, two), atol=1e-6)


def test_two_constants_are_alike():
    assert (ssim_map(np.full((6, 6), 3.0), np.full((6, 6), 3.0)) == 1).all()


def test_the_range_is_the_larger():
    assert dynamic_range(np.array([0.0, 2.0]), np.array([5.0, 9.0])) == 4.0
