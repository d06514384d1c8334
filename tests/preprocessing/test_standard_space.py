from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from app.preprocessing.standard_space import (
    affine_of,
    coverage,
    mask_to_working,
    masked,
    to_itk,
    to_numpy,
    to_reference,
    to_working,
    working_grid,
)

IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


def _rotation(degrees) -> np.ndarray:
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.radians(degrees))
    return np.array(transform.GetMatrix()).reshape(3, 3)


def _affine(degrees=(0, 0, 0), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ _rotation(degrees) * np.array(spacing)
    affine[:3, 3] = origin
    return affine


angles = st.tuples(*[st.floats(-40, 40)] * 3)
edges = st.tuples(*[st.floats(0.4, 7)] * 3)


@given(angles, edges, st.tuples(*[st.floats(-200, 200)] * 3))
def test_an_affine_goes_to_itk_and_back(degrees, spacing, origin):
    affine = _affine(degrees, spacing, origin)
    image = to_itk(np.zeros((3, 4, 5), np.float32), affine)
    np.testing.assert_allclose(affine_of(image), affine, atol=1e-6)
    assert image.GetSize() == (3, 4, 5)


def test_sheared_axes_are_refused():
    affine = _affine()
    affine[0, 1] = 0.3
    with pytest.raises(ValueError, match="right angles"):
        to_itk(np.zeros((3, 3, 3), np.float32), affine)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -8, 5)])
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 5.0), (1.0, 1.0, 1.0), (4.0, 0.9, 0.9)])
def test_there_and_back_nothing_moves(degrees, spacing):
    """A smooth volume with a bright side: values and sides survive two interpolations."""
    size = [round(n / s) for n, s in zip((70, 80, 60), spacing, strict=True)]
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    head = x**2 + y**2 + z**2 < 0.6
    data = np.where(head, 100 + 40 * np.sin(2 * x) + 25 * y + 60 * np.exp(-30 * ((x - 0.4) ** 2 + y**2 + z**2)), 0)
    image = to_itk(data.astype(np.float32), _affine(degrees, spacing))
    grid = working_grid(image)
    assert grid.GetSpacing() == (1.0, 1.0, 1.0)
    volume, seen = to_working(image, IDENTITY, grid)
    brain = mask_to_working(to_itk(head.astype(np.float32), _affine(degrees, spacing)), IDENTITY, grid)
    back = to_reference(masked(volume, brain, seen), brain, grid, image, IDENTITY)
    inside = head & (back > 0)
    assert back.shape == data.shape
    assert np.corrcoef(back[inside], data[inside])[0, 1] > 0.97
    assert inside.sum() > 0.85 * head.sum()
    assert not back[x**2 + y**2 + z**2 > 1.2].any()
    bright, dark = (np.abs(x - sign * 0.4) + np.abs(y) + np.abs(z) < 0.3 for sign in (1, -1))
    assert back[bright & inside].max() > back[dark & inside].max()


def test_a_motion_is_undone_and_done_again():
    data = np.zeros((40, 40, 40), np.float32)
    data[10:30, 10:30, 10:30] = 50
    data[25:29, 14:18, 20:24] = 200
    image = to_itk(data, _affine())
    motion = sitk.Euler3DTransform()
    motion.SetTranslation([3.0, -2.0, 1.0])
    volume, seen = to_working(image, motion, working_grid(image))
    np.testing.assert_array_equal(np.argwhere(volume == 200).min(axis=0), [22, 16, 19])
    back = to_reference(volume, volume > 0, working_grid(image), image, motion)
    np.testing.assert_allclose(back[5:35, 5:35, 5:35], data[5:35, 5:35, 5:35], atol=1e-3)
    assert not seen[-2:].any()


def test_dark_brain_is_no_background_and_what_was_not_scanned_is():
    volume = np.array([[[0.0, 50.0, 100.0, 100.0, 80.0]]], np.float32)
    brain = np.array([[[True, True, True, False, True]]])
    seen = np.array([[[True, True, True, True, False]]])
    left = masked(volume, brain, seen)
    assert left[0, 0, 0] > 0
    assert (left > 0).ravel().tolist() == [True, True, True, False, False]
    assert not masked(volume, brain & ~seen, seen).any()
    assert coverage(brain, seen) == pytest.approx(0.75)
    assert coverage(~brain & brain, seen) == 0


def test_arrays_keep_their_axes():
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(to_numpy(to_itk(data, _affine())), data)
