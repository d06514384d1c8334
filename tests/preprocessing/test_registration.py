from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from app.data.phantom import make_phantom
from app.preprocessing.registration import register
from app.preprocessing.standard_space import to_itk

SHAPE = (80, 96, 72)
AFFINE = np.diag([-1.5, -1.5, 1.5, 1.0])


@pytest.fixture(scope="module")
def head():
    """Two sequences of one head, with something on one side alone."""
    volumes = make_phantom(SHAPE, seed=1).volumes
    images = {}
    for name in ("t1n", "t2w"):
        data = volumes[name].astype(np.float32)
        data[18:34, 50:66, 40:52] *= 1.8
        images[name] = to_itk(data, AFFINE)
    return images


def _moved(image: sitk.Image, degrees: float, millimetres: float) -> tuple[sitk.Image, sitk.Euler3DTransform]:
    """An image whose header says that the head lies elsewhere, and the motion."""
    motion = sitk.Euler3DTransform()
    motion.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    motion.SetRotation(*np.radians([degrees, -degrees / 2, degrees / 3]))
    motion.SetTranslation([millimetres, -millimetres / 2, millimetres / 4])
    other = sitk.Image(image)
    turned = np.array(motion.GetMatrix()).reshape(3, 3) @ np.array(image.GetDirection()).reshape(3, 3)
    other.SetOrigin(motion.TransformPoint(image.GetOrigin()))
    other.SetDirection(turned.ravel().tolist())
    return other, motion


@pytest.mark.parametrize("degrees,millimetres", [(0.0, 0.0), (8.0, 10.0), (12.0, 20.0)])
def test_a_known_motion_is_found(head, degrees, millimetres):
    moving, motion = _moved(head["t2w"], degrees, millimetres)
    found = register(head["t1n"], moving)
    for point in [(60.0, 72.0, 54.0), (20.0, 72.0, 30.0), (95.0, 110.0, 70.0)]:
        apart = np.subtract(found.transform.TransformPoint(point), motion.TransformPoint(point))
        assert np.linalg.norm(apart) < 0.5
    assert found.after <= found.before + 1e-3
    assert found.spread < 1.5
    assert found.after < found.mirrored
    if degrees:
        assert degrees < found.degrees < 1.25 * degrees
        assert found.moved > millimetres / 2


def test_a_mirrored_image_fits_better_when_it_is_mirrored_again(head):
    data = sitk.GetArrayFromImage(head["t2w"])[:, :, ::-1]
    mirrored = sitk.GetImageFromArray(data)
    mirrored.CopyInformation(head["t2w"])
    found = register(head["t1n"], mirrored)
    assert found.mirrored < found.after


def test_it_is_deterministic(head):
    one, two = (register(head["t1n"], head["t2w"]) for _ in range(2))
    assert (one.after, one.transform.GetParameters()) == (two.after, two.transform.GetParameters())
