from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.cli import main
from app.core.errors import ExitCode, UsageError
from app.data.nifti_reader import load_volume
from app.data.origin import made_by_tetrad
from app.evaluation.averaging import average_folders

SHAPE = (32, 34, 36)
OURS = "synthetic t1c from 3, tetrad 0.2.0, unet 01234567 mean"


def write(folder, value, name="sub01-t1c", *, origin=OURS, shape=SHAPE, flip=False):
    """One image of a constant value above background, as some run wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = np.zeros(shape, np.int16)
    data[4:-4, 4:-4, 4:-4] = value
    data[10, 11, 12] = 2 * value
    affine = np.diag([-1.0, -1, 1, 1])
    if flip:
        data, affine = data[::-1], np.diag([1.0, -1, 1, 1])
        affine[0, 3] = -(shape[0] - 1)
    image = nib.Nifti1Image(data, affine)
    image.header["descrip"] = origin.encode()
    nib.save(image, folder / f"{name}.nii.gz")


def test_it_is_the_mean_of_each_voxel(tmp_path):
    for folder, value in (("a", 100), ("b", 201), ("c", 400)):
        write(tmp_path / folder, value)
    (made,) = average_folders([tmp_path / n for n in "abc"], tmp_path / "mean")
    assert made == tmp_path / "mean" / "sub01-t1c.nii.gz"
    volume = load_volume(made)
    assert made_by_tetrad(volume.grid)
    assert volume.data[10, 11, 12] == np.rint(2 * 701 / 3)
    assert volume.data[5, 5, 5] == np.rint(701 / 3)
    assert volume.data[0, 0, 0] == 0


def test_another_axis_order_is_no_matter(tmp_path):
    write(tmp_path / "a", 100)
    write(tmp_path / "b", 100, flip=True)
    (made,) = average_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    before, after = load_volume(tmp_path / "a" / "sub01-t1c.nii.gz"), load_volume(made)
    assert np.array_equal(before.data, after.data)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"name": "sub02-t1c"}, r"has no t1c of sub0[12], which another folder has"),
        ({"origin": "a scanner"}, "was not made by Tetrad"),
        ({"shape": (32, 34, 40)}, "is not on the grid of"),
    ],
)
def test_what_does_not_match_is_refused_before_anything_is_written(tmp_path, change, message):
    write(tmp_path / "a", 100, "sub00-t1c")
    write(tmp_path / "b", 100, "sub00-t1c")
    write(tmp_path / "a", 100)
    write(tmp_path / "b", 100, **change)
    with pytest.raises(UsageError, match=message):
        average_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_folders_that_cannot_be(tmp_path):
    write(tmp_path / "a", 100)
    (tmp_path / "empty").mkdir()
    for folders, output, message in (
        (["a"], "mean", "two or more folders"),
        (["a", "a"], "mean", "two or more folders"),
        (["a", "gone"], "mean", "gone does not exist"),
        (["a", "empty"], "a", "is one of the folders"),
        (["empty", "empty/../b"], "mean", "b does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            average_folders([tmp_path / f for f in folders], tmp_path / output)


def test_the_command(tmp_path):
    for folder in "ab":
        write(tmp_path / folder, 100)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "mean")]
    assert main(["average", *arguments]) == ExitCode.OK
    assert (tmp_path / "mean" / "sub01-t1c.nii.gz").is_file()
