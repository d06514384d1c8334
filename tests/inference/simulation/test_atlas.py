from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.core.errors import UsageError
from app.inference.simulation.atlas import AtlasBuilder, frame_of, plain_frame, read_atlas

SHAPE = (8, 10, 6)


def _built(*subjects, sequences=2):
    """An atlas of (value, labels, shape)."""
    builder = AtlasBuilder(sequences)
    for value, labels, shape in subjects:
        marks = np.zeros(shape, np.uint8)
        if labels is not None:
            marks[labels] = 2
        images = np.full((sequences, *shape), value, np.float32)
        builder.add(
            images, np.ones(shape, bool), marks, [100.0 + value] * sequences, plain_frame((20, 20, 20), (2, 3, 4))
        )
    return builder.build(0, 1)


def test_it_is_the_mean_over_subjects():
    atlas = _built((0.0, None, SHAPE), (0.5, None, SHAPE))
    assert torch.allclose(atlas.images.float(), torch.tensor(0.25), atol=1e-3)
    assert (atlas.brain == 1).all()
    assert atlas.brightness == pytest.approx((100.25, 100.25))
    assert atlas.subjects == 2


def test_lesions_are_left_out():
    lesion = (slice(2, 5), slice(2, 5), slice(2, 4))
    atlas = _built((0.0, None, SHAPE), (0.8, lesion, SHAPE))
    assert torch.allclose(atlas.images[0][lesion].float(), torch.tensor(0.0), atol=1e-3)
    assert atlas.images[0, 0, 0, 0].item() == pytest.approx(0.4, abs=1e-3)


def test_where_all_have_a_lesion_the_brain_around_stands():
    lesion = (slice(2, 5), slice(2, 5), slice(2, 4))
    atlas = _built((0.6, lesion, SHAPE), (0.2, lesion, SHAPE))
    assert torch.allclose(atlas.images.float(), torch.tensor(0.4), atol=1e-2)


def test_brains_are_stretched_to_the_first():
    atlas = _built((0.2, None, SHAPE), (0.2, None, (12, 7, 9)))
    assert atlas.images.shape == (2, *SHAPE)
    assert torch.allclose(atlas.images.float(), torch.tensor(0.2), atol=1e-3)


def test_the_brain_lies_on_the_frame():
    mask = _built((0.0, None, SHAPE)).brain_mask
    assert mask.shape == (20, 20, 20)
    assert mask.sum() == np.prod(SHAPE)
    assert mask[2:10, 3:13, 4:10].all()


class TestPrior:
    def test_three_slices_of_every_sequence(self):
        builder = AtlasBuilder(2)
        ramp = np.broadcast_to(np.linspace(-1, 1, 6, dtype=np.float32), SHAPE)
        images = np.stack([ramp, ramp * 0])
        builder.add(images, np.ones(SHAPE, bool), np.zeros(SHAPE, np.uint8), [1, 1], plain_frame(SHAPE, (0, 0, 0)))
        atlas = builder.build(0, 1)
        prior = atlas.prior("atlas", SHAPE, 2)
        assert prior.shape == (6, 8, 10)
        assert prior[:3, 0, 0] == pytest.approx(ramp[0, 0, 1:4], abs=1e-3)
        assert (prior[3:] == 0).all()
        assert atlas.prior("atlas", SHAPE, 0)[:2, 0, 0] == pytest.approx([-1, -1])

    def test_it_is_stretched_to_the_subject(self):
        atlas = _built((0.2, None, SHAPE))
        assert atlas.prior("atlas", (13, 5, 9), 8).shape == (6, 13, 5)
        assert atlas.prior("tissue", (13, 5, 9), 0).shape == (3, 13, 5)
        assert atlas.prior("subject", (13, 5, 9), 0).shape == (6 + 9, 13, 5)
        assert atlas.prior("none", (13, 5, 9), 0).shape == (0, 13, 5)

    def test_tissue_of_a_whole_brain(self):
        atlas = _built((0.2, None, SHAPE))
        own = np.zeros((3, 9, 9, 5), np.uint8)
        own[1, :4] = 255
        average, told = atlas.tissue_on((9, 9, 5)), atlas.tissue_on((9, 9, 5), own)
        assert average.shape == (3, 9, 9, 5)
        assert np.abs(average.sum(axis=0, dtype=int) - 255).max() <= 2
        assert np.array_equal(told[:, 4:], average[:, 4:])
        assert np.array_equal(told[:, :4], own[:, :4])

    def test_a_subjects_own_tissue_stands_where_it_is_known(self):
        atlas = _built((0.2, None, SHAPE))
        own = np.zeros((3, 9, 9, 5), np.uint8)
        own[1, :4] = 255
        own[2, :4, :, 0] = 255
        own[1, :4, :, 0] = 0
        at_rest = atlas.prior("tissue", (9, 9, 5), 2)
        told = atlas.prior("tissue", (9, 9, 5), 2, own)
        assert np.array_equal(told[:, 4:], at_rest[:, 4:])
        assert (told[:, :4] == np.array([0, 1, 0]).reshape(3, 1, 1)).all()
        three = atlas.prior("subject", (9, 9, 5), 1, own)
        assert np.array_equal(three[:6], atlas.prior("atlas", (9, 9, 5), 1))
        # White matter, grey matter and fluid, each at the slices 0, 1 and 2.
        assert three[6:, 0, 0].tolist() == [-1, -1, -1, -1, 1, 1, 1, -1, -1]
        # Below the first slice it is that one again.
        assert atlas.prior("subject", (9, 9, 5), 0, own)[6:, 0, 0].tolist() == [-1, -1, -1, -1, -1, 1, 1, 1, -1]


def test_written_and_read(tmp_path):
    atlas = _built((0.2, None, SHAPE))
    path = tmp_path / "atlas.safetensors"
    path.write_bytes(atlas.to_bytes())
    again = read_atlas(path)
    for name in ("images", "brain", "tissue"):
        assert torch.allclose(getattr(again, name).float(), getattr(atlas, name).float(), atol=1 / 255)
    assert (again.frame, again.brightness, again.subjects) == (atlas.frame, atlas.brightness, 1)
    # Rounded once, it stays as it is.
    assert again.to_bytes() == atlas.to_bytes()


class TestLargerVoxels:
    def test_they_hold_the_mean_of_the_smaller(self):
        atlas = replace(_built((0.2, None, SHAPE)), images=torch.arange(480.0).reshape(1, *SHAPE) / 480)
        small = atlas.on_voxels(2.0)
        assert small.images.shape == (1, 4, 5, 3)
        assert small.images[0, 1, 2, 0].item() == pytest.approx(atlas.images[0, 2:4, 4:6, :2].mean().item(), abs=1e-3)
        assert small.tissue.shape == (3, 4, 5, 3)

    def test_the_brain_keeps_its_place(self, tmp_path):
        atlas = _built((0.0, None, SHAPE))
        path = tmp_path / "atlas.safetensors"
        path.write_bytes(atlas.on_voxels(2.0).to_bytes())
        assert np.array_equal(read_atlas(path).brain_mask, atlas.brain_mask)

    def test_a_prior_of_them_is_that_of_the_smaller_where_nothing_changes(self):
        atlas = _built((0.4, None, SHAPE))
        small = atlas.on_voxels(3.0)
        for kind in ("subject", "atlas", "tissue"):
            assert np.allclose(small.prior(kind, (9, 9, 5), 2), atlas.prior(kind, (9, 9, 5), 2), atol=1e-2)

    @pytest.mark.parametrize("edge", [0.0, 0.5, 1.0])
    def test_no_larger_ones_change_nothing(self, edge):
        atlas = _built((0.2, None, SHAPE), (0.4, None, SHAPE))
        assert torch.equal(atlas.on_voxels(edge).images, atlas.images)


def test_an_older_file_covers_its_own_voxels(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "atlas.safetensors"
    path.write_bytes(_built((0.2, None, SHAPE)).to_bytes())
    with safe_open(path, "pt") as stream:
        form = json.loads(stream.metadata()["tetrad_atlas"])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}
    del form["extent"]
    save_file(tensors, path, metadata={"tetrad_atlas": json.dumps(form)})
    assert read_atlas(path).extent == SHAPE


@pytest.mark.parametrize("content", [None, b"no atlas"])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "atlas.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="is no atlas"):
        read_atlas(path)


def test_no_subject_is_refused():
    with pytest.raises(UsageError, match="no subject"):
        AtlasBuilder().build()


def test_the_frame_knows_its_spacing():
    assert frame_of((4, 5, 6), np.diag([-2.0, -1.0, 3.0, 1.0]), (0, 0, 0)).spacing == (2, 1, 3)
