from __future__ import annotations

import io
import lzma

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.phantom import make_phantom, write_phantom
from app.inference.simulation.atlas import plain_frame
from app.inference.simulation.lesion_patches import MARGIN, open_patches
from app.preprocessing.foreground import vote_foreground
from tests.inference.simulation.helpers import SHAPE

FRAME = plain_frame(SHAPE, (0, 0, 0))
SIDE = 8


def arrays(**changed):
    """Two patches of 2 mm voxels whose scores rise along the left; their channels are not in challenge order."""
    image = np.ones((2, 4, SIDE, SIDE, SIDE), np.int8)
    image += np.arange(4, dtype=np.int8)[:, None, None, None]
    image[:, 0] = 10 * np.arange(1, SIDE + 1, dtype=np.int8)[:, None, None]
    seg = np.zeros((2, SIDE, SIDE, SIDE), np.uint8)
    seg[:, 2:5, 3:5, 3:5] = 2
    seg[0, 3, 3, 3] = 3
    plain = {
        "image": image,
        "step": np.float32(0.1),
        "seg": seg,
        "patient": np.array(["a", "b"]),
        "start": np.array([[5, 6, 4], [5, 6, 4]], np.int16),
        "spacing": np.array([2.0, 2.0, 2.0]),
        "channels": np.array(["t2f", "t1n", "t1c", "t2w"]),
    }
    return {name: value for name, value in {**plain, **changed}.items() if value is not None}


def write(path, **changed):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays(**changed))
    path.write_bytes(lzma.compress(buffer.getvalue()) if path.suffix == ".xz" else buffer.getvalue())
    return path


class TestFile:
    @pytest.mark.parametrize("name", ["p.npz", "p.npz.xz"])
    def test_it_is_brought_to_the_grid(self, tmp_path, name):
        patches = open_patches(write(tmp_path / name))
        assert [p.name for p in patches] == ["a", "b"]
        placed = patches[0].load(FRAME)
        assert placed.start == (10, 12, 8)
        assert placed.images.shape == (4, 15, 15, 15)
        along = placed.images[MODALITIES.index("t2f"), :, 7, 7]
        assert along == pytest.approx(np.linspace(1, 8, 15), abs=1e-5)
        others = {m: float(placed.images[MODALITIES.index(m), 7, 7, 7]) for m in ("t1n", "t1c", "t2w")}
        assert others == pytest.approx({"t1n": 0.2, "t1c": 0.3, "t2w": 0.4})
        assert placed.labels[6, 6, 6] == 3
        assert set(np.unique(placed.labels)) == {0, 2, 3}
        assert placed.brain.all()

    def test_voxels_that_are_0_in_every_sequence_are_no_brain(self, tmp_path):
        image = arrays()["image"].copy()
        image[:, :, :2] = 0
        placed = open_patches(write(tmp_path / "p.npz", image=image))[0].load(FRAME)
        assert not placed.brain[:3].any()
        assert placed.brain[4:].all()

    def test_what_leaves_the_grid_is_cut(self, tmp_path):
        placed = open_patches(write(tmp_path / "p.npz", start=np.array([[14, 6, 4]] * 2)))[0].load(FRAME)
        assert placed.start[0] + placed.labels.shape[0] == SHAPE[0]

    @pytest.mark.parametrize(
        "changed,message",
        [
            ({"step": None}, "no file of lesion patches"),
            ({"seg": np.zeros((2, 4, 4, 4), np.uint8)}, "do not fit together"),
            ({"spacing": np.array([2.0, 0.0, 2.0])}, "not above 0"),
            ({"channels": np.array(["t2f", "t1n", "t1c", "adc"])}, "no file of lesion patches"),
        ],
    )
    def test_what_is_no_file_of_patches(self, tmp_path, changed, message):
        with pytest.raises(UsageError, match=message):
            open_patches(write(tmp_path / "p.npz", **changed))

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "p.npz").write_bytes(b"PK damaged")
        with pytest.raises(UsageError, match="no file of lesion patches"):
            open_patches(tmp_path / "p.npz")

    @pytest.mark.parametrize(
        "changed,message",
        [
            ({"start": np.array([[90, 6, 4]] * 2)}, "outside the grid"),
            ({"seg": np.zeros((2, SIDE, SIDE, SIDE), np.uint8)}, "is empty"),
            ({"seg": np.full((2, SIDE, SIDE, SIDE), 9, np.uint8)}, "unknown labels"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, tmp_path, changed, message):
        patch = open_patches(write(tmp_path / "p.npz", **changed))[0]
        with pytest.raises(UsageError, match=message) as caught:
            patch.load(FRAME)
        assert "(a)" in str(caught.value)


class TestExams:
    def test_the_lesion_with_what_lies_around_it(self, tmp_path):
        phantom = make_phantom(SHAPE, 1)
        write_phantom(phantom, tmp_path, "p1")
        patches = open_patches(tmp_path)
        assert [p.name for p in patches] == ["p1"]
        placed = patches[0].load(FRAME)
        lesion = np.argwhere(phantom.labels > 0)
        assert placed.start == tuple(max(int(v) - MARGIN, 0) for v in lesion.min(axis=0))
        assert np.array_equal(placed.labels, phantom.labels[placed.box])
        brain = vote_foreground(phantom.volumes)
        assert np.array_equal(placed.brain, brain[placed.box])
        volume = phantom.volumes["t1n"]
        clipped = np.minimum(volume[brain], np.percentile(volume[brain], 99.5))
        wanted = (volume[placed.box] - clipped.mean()) / clipped.std()
        assert placed.images[MODALITIES.index("t1n")] == pytest.approx(wanted, abs=2e-2)

    def test_another_grid_is_refused(self, tmp_path):
        write_phantom(make_phantom(SHAPE, 1), tmp_path, "p1")
        patch = open_patches(tmp_path)[0]
        with pytest.raises(UsageError, match="is on another grid"):
            patch.load(plain_frame((50, 44, 36), (0, 0, 0)))

    def test_no_exam(self, tmp_path):
        write_phantom(make_phantom(SHAPE, 1), tmp_path, "p1", leave_out=("t1c",))
        with pytest.raises(UsageError, match="holds no complete exam with a segmentation"):
            open_patches(tmp_path)
