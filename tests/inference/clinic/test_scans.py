from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from app.core.errors import CaseError, VolumeError
from app.data.phantom import make_phantom
from app.inference.clinic.scans import choose_anchor, choose_reference, choose_target, read_sequence, scan_of
from app.preprocessing.standard_space import affine_of, to_reference, to_working, working_grid

FILES = {m: Path(f"{m}.nii.gz") for m in ("t1c", "t1n", "t2f", "t2w")}


def scan_of_file(path):
    return scan_of(read_sequence(path))


def _files(*names):
    return {m: FILES[m] for m in names}


def _scan(*spacing):
    return SimpleNamespace(image=SimpleNamespace(GetSpacing=lambda: spacing))


def test_the_target_is_what_lacks_unless_it_is_named():
    assert choose_target(_files("t1n", "t2w", "t2f"), None) == "t1c"
    assert choose_target(FILES, "t2f") == "t2f"
    assert choose_target(_files("t1n", "t2w"), "t1c") == "t1c"


@pytest.mark.parametrize(
    "files,target,message",
    [
        (FILES, None, "has all four sequences; name"),
        (_files("t1n", "t2w"), None, "lacks t1c, t2f; name"),
        (_files("t1n"), "t1c", "fewer than two"),
        (_files("t1n", "t1c"), "t1c", "fewer than two"),
    ],
)
def test_what_cannot_be_made(files, target, message):
    with pytest.raises(CaseError, match=message):
        choose_target(files, target)


def test_the_anchor_has_the_thinnest_slices_and_then_the_first_of_an_order():
    assert choose_anchor({"t2f": _scan(0.5, 0.5, 4), "t1n": _scan(0.7, 0.7, 5), "t2w": _scan(0.5, 0.5, 6)}) == "t2f"
    assert choose_anchor({"t2f": _scan(0.5, 0.5, 5), "t1n": _scan(0.7, 0.7, 5.01)}) == "t1n"


def test_the_reference_is_of_the_same_weighting_unless_it_is_named():
    scans = {"t1n": _scan(1, 1, 4), "t2w": _scan(1, 1, 3)}
    assert choose_reference(scans, "t1c", None) == "t1n"
    assert choose_reference(scans, "t2f", None) == "t2w"
    assert choose_reference(scans, "t1c", "t2w") == "t2w"
    assert choose_reference({"t2w": _scan(1, 1, 3), "t2f": _scan(1, 1, 5)}, "t1c", None) == "t2w"
    with pytest.raises(CaseError, match="reference t2f is not among"):
        choose_reference(scans, "t1c", "t2f")


def _image(path, *, sform=1, qform=1, turn=0.0, slices=12):
    data = np.random.default_rng(0).uniform(1, 100, (40, 44, slices)).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, sform)
    other = affine.copy()
    other[0, 3] += turn
    image.set_qform(other, qform)
    nib.save(image, path)
    return path


def test_thick_slices_are_read(tmp_path):
    scan = scan_of_file(_image(tmp_path / "a.nii.gz"))
    assert scan.image.GetSize() == (40, 44, 12)
    assert not scan.is_stripped


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"sform": 0, "qform": 0}, "right and left cannot be told"),
        ({"turn": 80.0}, r"sform and a qform that lie 80\.0 mm apart"),
        ({"slices": 2}, "each axis must have 3 to"),
    ],
)
def test_headers_that_cannot_be_trusted(tmp_path, changes, message):
    with pytest.raises(VolumeError, match=message):
        scan_of_file(_image(tmp_path / "a.nii.gz", **changes))


def test_sheared_slices_are_refused(tmp_path):
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    affine[1, 2] = 1.5
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(1, 9, (40, 40, 12)).astype(np.float32), affine)
    image.set_sform(affine, 1)
    image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError, match="sheared slices"):
        scan_of_file(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("axes", ["LPS", "LAS", "RAS", "PIR", "LSA", "oblique"])
def test_there_and_back_each_mark_stays_on_its_side(tmp_path, axes):
    """A copy of the T1n, through 1 mm and back; the mark is bright, on the left, behind and low."""
    whole = make_phantom((60, 72, 56), seed=3).volumes["t1n"]
    whole = whole + np.float32(1)
    whole[40:46, 50:56, 10:16] = 2 * whole.max()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    if axes == "oblique":
        turn, lean = (np.radians(a) for a in (14.0, 9.0))
        about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])
        affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    image = nib.Nifti1Image(whole.astype(np.float32), affine)
    if axes != "oblique":
        wanted = nib.orientations.axcodes2ornt(tuple(axes))
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    # Slices of 2 mm along the last axis of the file.
    kept = np.asarray(image.dataobj)[:, :, : image.shape[2] // 2 * 2]
    thick = kept.reshape(*kept.shape[:2], -1, 2).mean(axis=-1)
    scaled = image.affine @ np.diag([1, 1, 2, 1])
    scaled[:3, 3] += image.affine[:3, 2] / 2
    thick_image = nib.Nifti1Image(thick, scaled)
    thick_image.set_sform(scaled, 1)
    thick_image.set_qform(scaled, 1)
    nib.save(thick_image, tmp_path / "x-t1n.nii.gz")
    scan = scan_of(read_sequence(tmp_path / "x-t1n.nii.gz"))
    grid, still = working_grid(scan.image), sitk.Transform(3, sitk.sitkIdentity)
    volume, seen = to_working(scan.image, still, grid)
    back = to_reference(volume, seen, grid, scan.image, still)
    inner = (slice(2, -2),) * 3
    assert np.corrcoef(back[inner].ravel(), scan.volume.data[inner].ravel())[0, 1] > 0.97
    middle = np.argwhere(volume > 0.75 * volume.max()).mean(axis=0)
    place = affine_of(grid) @ [*middle, 1]
    expected = affine @ [42.5, 52.5, 12.5, 1]
    np.testing.assert_allclose(place[:3], expected[:3], atol=0.8)
