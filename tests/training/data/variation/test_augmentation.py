from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import MODALITIES, VIEWS
from app.training.data.patches import Patches
from app.training.data.sections import AugmentationRecipe, RecolouringRecipe, SliceAugmentation, SliceData
from app.training.data.slices import Sampler
from app.training.data.variation.augmentation import (
    fade_tumours,
    recolour_patches,
    recolour_slices,
    recolour_tumours,
    vary_geometry,
    vary_intensities,
    vary_patches,
)
from tests.training.helpers import changed, patches_of

DATA = SliceData(axial=(48, 48), sagittal=(48, 48), coronal=(48, 48), min_brain_pixels=200)
NOTHING = SliceAugmentation(flip=0, contrast=0, brightness=0)


class TestSlices:
    @pytest.fixture
    def batch(self, subjects):
        sampler = Sampler(subjects, changed(DATA, views=("axial",), tumour_share=1.0), -1.0)
        return sampler.draw(sampler.plan(0), sampler.own(0), 6)

    def test_nothing_changes_nothing(self, batch):
        random = np.random.default_rng(0)
        assert torch.equal(vary_geometry(batch, NOTHING, random, -1.0).images, batch.images)
        assert torch.equal(vary_intensities(batch, NOTHING, random, -1.0), batch.images)

    def test_a_flip_mirrors_left_and_right_of_everything(self, batch):
        flipped = vary_geometry(batch, changed(NOTHING, flip=1), np.random.default_rng(0), -1.0)
        assert torch.equal(flipped.images, batch.images.flip(2))
        assert torch.equal(flipped.labels, batch.labels.flip(1))
        assert torch.equal(flipped.brain, batch.brain.flip(2))

    def test_sagittal_slices_have_no_left(self, batch):
        sagittal = replace(batch, view=VIEWS.index("sagittal"))
        kept = vary_geometry(sagittal, changed(NOTHING, flip=1), np.random.default_rng(0), -1.0)
        assert torch.equal(kept.images, batch.images)

    @pytest.mark.parametrize("moved", [{"rotate": 20, "zoom": 0.1}, {"stretch": 0.3}, {"bend": 4.0}])
    def test_geometry_moves_all_together(self, batch, moved):
        turned = vary_geometry(batch, changed(NOTHING, **moved), np.random.default_rng(0), -1.0)
        assert not torch.equal(turned.images, batch.images)
        outside = turned.brain[:, 0] == 0
        assert (turned.images.movedim(1, -1)[outside] == -1).all()
        assert set(torch.unique(turned.labels).tolist()) <= set(torch.unique(batch.labels).tolist())
        # The tumour's enhancing rim is the brightest of T1c before and after.
        for b in (batch, turned):
            rim, rest = b.images[:, 0][b.labels == 3], b.images[:, 0][(b.labels == 0) & (b.brain[:, 0] > 0)]
            assert rim.median() > rest.quantile(0.9)

    @pytest.mark.parametrize("reach", [0.5, 2.0, 8.0])
    def test_no_voxel_is_bent_further_than_asked(self, batch, reach):
        # The images tell where each pixel came from.
        rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
        places = torch.stack([rows, columns]).expand(len(batch), 2, 48, 48).repeat(1, 2, 1, 1)
        where = replace(batch, images=places, brain=torch.ones_like(batch.brain))
        bent = vary_geometry(where, changed(NOTHING, bend=reach), np.random.default_rng(0), 0.0)
        inner = (slice(None), slice(0, 2), slice(12, 36), slice(12, 36))
        moved = (bent.images - places)[inner].abs()
        # Cubic interpolation between nodes exceeds them a little.
        assert 0.5 * reach < moved.max() <= 1.4 * reach

    def test_a_stretch_keeps_the_area(self, batch):
        rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
        places = torch.stack([rows, columns]).expand(len(batch), 2, 48, 48).repeat(1, 2, 1, 1)
        where = replace(batch, images=places, brain=torch.ones_like(batch.brain))
        stretched = vary_geometry(where, changed(NOTHING, stretch=0.3), np.random.default_rng(0), 0.0).images
        down = stretched[:, 0, 30, 24] - stretched[:, 0, 20, 24]
        across = stretched[:, 1, 24, 30] - stretched[:, 1, 24, 20]
        torch.testing.assert_close(down * across, torch.full_like(down, 100.0), rtol=1e-2, atol=0)
        assert (down / across).log().abs().max() > 0.05
        assert (down / across).log().abs().max() <= 0.31

    @staticmethod
    def _contrast(batch, images):
        """(slices, sequences) means of the tumour over those of the healthy brain of the slice."""
        tumour = (batch.labels[:, None] > 0).float()
        healthy = batch.brain * (1 - tumour)
        inside, around = ((images * m).sum((2, 3)) / m.sum((2, 3)).clamp(min=1) for m in (tumour, healthy))
        return inside - around

    def test_a_faded_tumour_stands_out_less_sequence_by_sequence(self, batch):
        before = self._contrast(batch, batch.images)
        strong = before.abs() > 0.3
        assert strong.sum() > 10
        left = []
        for seed in range(5):
            after = self._contrast(batch, fade_tumours(batch, 1.0, np.random.default_rng(seed)))
            left.append((after / before)[strong])
        left = torch.cat(left)
        # Between turned round and untouched, and every way in between.
        assert left.max() < 1.05
        assert left.min() < -0.1
        assert 0.2 < float((left < 0.25).float().mean()) < 0.8

    def test_fading_leaves_all_but_tumours_and_keeps_within_the_scans_range(self, batch):
        faded = fade_tumours(batch, 1.0, np.random.default_rng(0))
        ill = torch.nn.functional.max_pool2d((batch.labels[:, None] > 0).float(), 3, 1, 1) * batch.brain > 0
        assert torch.equal(faded[(~ill).expand_as(faded)], batch.images[(~ill).expand_as(faded)])
        low, high = batch.scale[:, :, 0, None, None], batch.scale[:, :, 1, None, None]
        inside = ill.expand_as(faded)
        assert (faded >= low)[inside].all()
        assert (faded <= high)[inside].all()
        healthy = replace(batch, labels=torch.zeros_like(batch.labels))
        assert torch.equal(fade_tumours(healthy, 1.0, np.random.default_rng(0)), batch.images)

    def test_a_share_of_inputs_is_faded(self, batch):
        changed = [
            (fade_tumours(batch, 0.4, np.random.default_rng(s)) != batch.images).flatten(2).any(dim=2).float().mean()
            for s in range(30)
        ]
        assert 0.3 < np.mean(changed) < 0.5

    def test_a_recoloured_tumour_has_any_shade_and_only_the_tumour_changes(self, batch):
        ill = torch.nn.functional.max_pool2d((batch.labels[:, None] > 0).float(), 3, 1, 1) * batch.brain > 0
        deep = (batch.labels == 2)[:, None] & ill
        shades = []
        for seed in range(10):
            random = np.random.default_rng(seed)
            recoloured = recolour_tumours(batch, random)
            assert torch.equal(recoloured[(~ill).expand_as(recoloured)], batch.images[(~ill).expand_as(recoloured)])
            faded = fade_tumours(batch, 1.0, np.random.default_rng(seed))
            moved = ((recoloured - faded) * deep).sum((2, 3)) / deep.sum((2, 3)).clamp(min=1)
            shades.append(moved[deep.any(-1).any(-1)[:, 0]].flatten())
        shades = torch.cat(shades)
        assert shades.max() > 0.3
        assert shades.min() < -0.3
        assert abs(float(shades.mean())) < 0.15

    @pytest.mark.parametrize("modality", ["t1n", "t2f"])
    def test_one_sequence_is_recoloured_alone_and_nothing_in_a_healthy_slice(self, batch, modality):
        recipe = RecolouringRecipe(**{f"recolour_{modality}": 1.0})
        which = (recolour_slices(batch, recipe, np.random.default_rng(0), -1.0) != batch.images).flatten(2).any(dim=2)
        assert which[:, MODALITIES.index(modality)].all()
        assert which.sum() == len(batch)
        healthy = replace(batch, labels=torch.zeros_like(batch.labels))
        assert torch.equal(recolour_slices(healthy, recipe, np.random.default_rng(0), -1.0), batch.images)

    def test_a_quarter_turn_is_exact(self, batch):
        from app.training.data.variation.augmentation import _grid

        square = batch.images[:1, :1]
        grid = _grid(np.array([np.pi / 2]), np.array([1.0]), square)
        turned = torch.nn.functional.grid_sample(square, grid, align_corners=False)
        ways = [torch.rot90(square, k, (2, 3)) for k in (1, 3)]
        assert min(float((turned - w).abs().max()) for w in ways) < 1e-3

    def test_thick_slices_blur_some_inputs_along_one_axis(self, batch):
        batch = replace(batch, brain=torch.ones_like(batch.brain), images=torch.randn(batch.images.shape))
        thick = vary_intensities(batch, changed(NOTHING, thick=6.0), np.random.default_rng(0), -1.0)
        # Differences between neighbours, as a share of those before, along rows and columns.
        shares = torch.stack([thick.diff(dim=d).abs().mean((2, 3)) / batch.images.diff(dim=d).abs().mean((2, 3))
                              for d in (2, 3)])  # fmt: skip
        rough, blurred = (shares > 0.999).all(dim=0), (shares < 0.5).any(dim=0)
        # Half are left alone, and a third of the rest: their slices lie in the plane.
        assert 0.4 < float(rough.float().mean()) < 0.9
        assert blurred.any()
        assert not torch.equal(blurred[:, :1].expand(-1, 4), blurred)

    @pytest.mark.parametrize("what", ["contrast", "brightness", "gamma", "bias", "noise", "thick"])
    def test_brightness_varies_in_the_brain_only_and_by_the_seed(self, batch, what):
        recipe = changed(NOTHING, **{what: 4.0 if what == "thick" else 0.2})
        one, two, other = (vary_intensities(batch, recipe, np.random.default_rng(s), -1.0) for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        outside = (batch.brain == 0).expand_as(one)
        assert torch.equal(one[outside], batch.images[outside])
        assert torch.isfinite(one).all()
        assert 0 < float((one - batch.images).abs().mean()) < 0.5


class TestPatches:
    def test_without_variation_nothing_changes(self):
        patches = patches_of()
        same = vary_patches(patches, NOTHING, np.random.default_rng(0), -1.0)
        assert all(torch.equal(v, getattr(same, k)) for k, v in vars(patches).items())
        assert torch.equal(vary_intensities(patches, NOTHING, np.random.default_rng(0), -1.0), patches.images)

    @given(st.integers(0, 50), st.sampled_from(["flip", "rotate", "zoom"]))
    @settings(max_examples=20, deadline=None)
    def test_images_and_labels_move_together(self, seed, which):
        ramp = torch.zeros(12, 12, 12, dtype=torch.int64)
        ramp[2:7, 3:9, 4:10] = 3
        patches = patches_of((12, 12, 12), 1)
        images = (ramp.float() * 2 - 1).expand(1, 4, -1, -1, -1)
        patches = Patches(images, patches.brain, ramp[None], patches.labelled, patches.scale, images[:, :1])
        recipe = SliceAugmentation(**{**dict(NOTHING), which: {"flip": 1.0, "rotate": 30.0, "zoom": 0.3}[which]})
        moved = vary_patches(patches, recipe, np.random.default_rng(seed), -1.0)
        inside = moved.labels == 3
        assert inside.any()
        # Linear and nearest sampling agree on which side of an edge a voxel lies, but for voxels on the edge.
        agree = ((moved.images[:, 0] > 2) == inside).float().mean()
        assert agree > 0.97
        assert torch.equal(moved.extra_channels[:, 0], moved.images[:, 0])
        if which == "flip":
            assert torch.equal(moved.labels, ramp[None].flip(1))

    def test_variation_of_brightness_leaves_background_alone(self):
        patches = patches_of()
        patches.brain[:, :, :4] = 0
        recipe = AugmentationRecipe(contrast=0.3, brightness=0.3, gamma=0.3, bias=0.3, noise=0.1)
        varied = vary_intensities(patches, recipe, np.random.default_rng(0), -1.0)
        assert torch.equal(varied[:, :, :4], patches.images[:, :, :4])
        assert not torch.isclose(varied[:, :, 4:], patches.images[:, :, 4:]).any(dim=-1).all()


def tumour_patches(labels: torch.Tensor) -> Patches:
    count, sides = len(labels), labels.shape[1:]
    images = 0.3 * torch.randn(count, 4, *sides, generator=torch.Generator().manual_seed(1))
    brain = torch.ones(count, 1, *sides)
    brain[..., :3] = 0
    images = torch.where(brain > 0, images, torch.full_like(images, -1.0))
    scale = torch.tensor([-1.5, 1.5]).expand(count, 4, 2)
    return Patches(images, brain, labels, torch.ones(count, dtype=torch.bool), scale, images[:, :0])


class TestRecolouredPatches:
    def setup_method(self):
        labels = torch.zeros(2, 16, 16, 16, dtype=torch.long)
        labels[0, 4:12, 4:12, 4:12] = 2
        labels[0, 6:10, 6:10, 6:10] = 3
        self.patches = tumour_patches(labels)
        self.near = F.max_pool3d((labels[:, None] > 0).float(), 3, 1, 1)[:, 0] > 0

    def _made(self, seed=0, **shares):
        return recolour_patches(self.patches, RecolouringRecipe(**shares), np.random.default_rng(seed))

    def test_nothing_asked_changes_nothing(self):
        assert torch.equal(self._made(), self.patches.images)

    @pytest.mark.parametrize("modality", ["t1n", "t2f"])
    def test_it_changes_that_sequences_tumour_alone(self, modality):
        made = self._made(**{f"recolour_{modality}": 1.0})
        changed = made != self.patches.images
        which = MODALITIES.index(modality)
        assert changed[0, which][self.near[0]].float().mean() > 0.9
        changed[0, which][self.near[0]] = False
        assert not changed.any()
        assert made.abs().max() <= 1.5

    def test_its_parts_get_shades_of_their_own_by_the_seed(self):
        def contrast(images):
            image, labels = images[0, MODALITIES.index("t1n")], self.patches.labels[0]
            return float(image[labels == 3].mean() - image[labels == 2].mean())

        found = [contrast(self._made(seed, recolour_t1n=1.0)) for seed in range(8)]
        assert np.ptp(found) > 0.3
        assert contrast(self._made(3, recolour_t1n=1.0)) == found[3]
