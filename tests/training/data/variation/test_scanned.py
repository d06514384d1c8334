from __future__ import annotations

import numpy as np
import pytest
import torch

from app.training.data.sections import SliceData
from app.training.data.slices import Sampler
from app.training.data.variation.scanned import misjudge_brain, thicken_exams
from tests.training.helpers import changed

DATA = SliceData(axial=(48, 48), sagittal=(48, 48), coronal=(48, 48), min_brain_pixels=200, views=("axial",))
BACKGROUND = -1.0


@pytest.fixture
def batch(subjects):
    sampler = Sampler(subjects, changed(DATA, tumour_share=1.0), BACKGROUND)
    return sampler.draw(sampler.plan(0), sampler.own(0), 12)


def rng():
    return np.random.default_rng(0)


class TestThickExams:
    def test_all_sequences_of_an_exam_share_the_axis(self, batch):
        thick = thicken_exams(batch, 6.0, rng(), BACKGROUND)
        changed_images = (thick != batch.images).flatten(2).any(2)
        assert ((changed_images.sum(1) == 0) | (changed_images.sum(1) == 4)).all()
        assert 0 < changed_images[:, 0].sum() < len(batch)
        sharpness = torch.stack(
            [thick.diff(dim=d).abs().mean((2, 3)) / batch.images.diff(dim=d).abs().mean((2, 3)) for d in (2, 3)]
        )
        for exam in torch.nonzero(changed_images[:, 0])[:, 0]:
            assert len(set(sharpness[:, exam].argmin(0).tolist())) == 1

    def test_nothing_comes_or_goes(self, batch):
        thick = thicken_exams(batch, 6.0, rng(), BACKGROUND)
        outside = (batch.brain == 0).expand_as(thick)
        assert torch.equal(thick[outside], batch.images[outside])
        assert torch.equal(thicken_exams(batch, 6.0, rng(), BACKGROUND), thick)


class TestMisjudgedBrains:
    def test_what_is_cut_is_lost_to_all(self, batch):
        kept, shown = misjudge_brain(batch, 3.0, rng(), BACKGROUND)
        cut = (batch.brain > 0) & (kept.brain == 0)
        assert cut.any()
        assert not ((kept.brain > 0) & (batch.brain == 0)).any()
        for images in (kept.images, shown.images):
            assert (images[cut.expand_as(images)] == BACKGROUND).all()
        assert (kept.labels[cut[:, 0]] == 0).all()

    def test_what_is_taken_in_is_shown_only(self, batch):
        kept, shown = misjudge_brain(batch, 3.0, rng(), BACKGROUND)
        more = (shown.images != kept.images).any(1, keepdim=True)
        assert more.any()
        assert (batch.brain[more] == 0).all()
        assert torch.equal(shown.brain, kept.brain)
        low = batch.scale[:, :, 0, None, None]
        assert (shown.images >= torch.minimum(low, kept.images)).all()

    def test_the_rim_moves_no_further_than_told(self, batch):
        kept, shown = misjudge_brain(batch, 2.0, rng(), BACKGROUND)
        near_rim = torch.nn.functional.max_pool2d(1 - batch.brain, 5, 1, 2) > 0
        assert near_rim[(batch.brain > 0) & (kept.brain == 0)].all()
        near_brain = torch.nn.functional.max_pool2d(batch.brain, 5, 1, 2) > 0
        assert near_brain[(shown.images != kept.images).any(1, keepdim=True)].all()

    def test_half_of_the_exams_stay(self, batch):
        kept, shown = misjudge_brain(batch, 3.0, rng(), BACKGROUND)
        same = (shown.images == batch.images).flatten(1).all(1) & (kept.brain == batch.brain).flatten(1).all(1)
        assert 0 < same.sum() < len(batch)
