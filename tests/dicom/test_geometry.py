from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dicom.geometry import GeometryError, SliceHeader, stack

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _slices(heights, orientation=AXIAL, lateral=0.0, size=(40, 48)):
    normal = np.cross(orientation[:3], orientation[3:])
    side = np.array(orientation[:3])
    return [
        SliceHeader(orientation, tuple(normal * h + side * lateral * i + 7), (1.5, 1.0), size)
        for i, h in enumerate(heights)
    ]


@given(st.permutations(range(6)), st.floats(0.5, 8))
def test_slices_are_ordered_by_place_and_not_by_number(order, spacing):
    found = stack(_slices([spacing * i for i in order]))
    assert [order[i] for i in found.order] == list(range(6))
    assert found.lacking == 0
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), [1.0, 1.5, spacing], rtol=1e-6)


def test_the_affine_is_of_nifti():
    affine = stack(_slices([0, 5, 10])).affine
    # Columns go left, rows go back: in NIfTI's right and front both are negative.
    np.testing.assert_allclose(affine, [[-1, 0, 0, -7], [0, -1.5, 0, -7], [0, 0, 5, 7], [0, 0, 0, 1]], atol=1e-12)


def test_an_oblique_stack():
    angle = np.radians(20)
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    found = stack(_slices([0, 6, 12, 18], orientation))
    assert np.linalg.det(found.affine[:3, :3]) == pytest.approx(1.5 * 6)


@pytest.mark.parametrize("lacking", [(3,), (2, 9)])
def test_single_slices_that_lack_are_interpolated(lacking):
    heights = [5.0 * i for i in range(60) if i not in lacking]
    found = stack(_slices(heights))
    assert found.lacking == len(lacking)
    assert len(found.order) == 60
    assert [i for i, index in enumerate(found.order) if index < 0] == list(lacking)


@pytest.mark.parametrize(
    "slices,message",
    [
        (_slices([0, 5]), "at least 3"),
        ([*_slices([0, 5]), *_slices([10], size=(30, 30))], "several sizes"),
        ([*_slices([0, 5]), *_slices([10], orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))], "several directions"),
        (_slices([0, 5, 10, 0, 5, 10]), "more than one stack"),
        (_slices([0, 5, 10, 15], lateral=0.8), "sheared"),
        (_slices([0, 5, 10, 25, 30]), "gap of 15"),
        (_slices([5.0 * i for i in range(12) if i not in (2, 5, 8)]), "lacks 3 of its 12"),
        (_slices([0, 5, 10, 17, 22]), "gap of 7"),
        # One of five is more than a twentieth.
        (_slices([0, 5, 15, 20]), "lacks 1 of its 5"),
        (_slices([0, *(5.09 * i for i in range(1, 8)), *(35.63 + 5.0 * i for i in range(1, 9))]), "uneven slices"),
    ],
)
def test_what_is_no_volume_is_refused(slices, message):
    with pytest.raises(GeometryError, match=message):
        stack(slices)


def test_slices_that_are_there_twice_are_dropped():
    found = stack(_slices([0, 5, 10, 15, 20, 5]))
    assert found.copies == {5: 1}
    assert len(found.order) == 5


def test_rounded_headers_are_forgiven():
    heights = [0, 4.999, 10.001, 15.0005, 20]
    assert stack(_slices(heights)).lacking == 0
