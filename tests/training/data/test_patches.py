from __future__ import annotations

import numpy as np
import torch

from app.training.data.patches import PatchSampler, PatchSource
from app.training.data.sections import PatchData


class TestPatches:
    def test_they_are_cut_from_the_volumes_and_filled_beyond(self, subjects):
        sampler = PatchSampler(
            subjects[:1], PatchData(patch=(48, 16, 16)), -1.0, extra_channels=lambda s: s.normalized[:1]
        )
        patches = sampler.draw(np.random.default_rng(0), 1)
        scores = np.asarray(subjects[0].normalized, np.float32)
        # Broader than the box: all of it is there, in the middle, and nothing else.
        first = (48 - scores.shape[1]) // 2 + (48 - scores.shape[1]) % 2
        inner = patches.images[0, :, first : first + scores.shape[1]].numpy()
        assert (patches.images[0, :, :first] == -1).all()
        found = [
            (y, z)
            for y in range(scores.shape[2] - 15)
            for z in range(scores.shape[3] - 15)
            if np.array_equal(scores[:, :, y : y + 16, z : z + 16], inner)
        ]
        assert len(found) == 1
        assert torch.equal(patches.extra_channels[0, 0], patches.images[0, 0])

    def test_a_step_always_draws_the_same_and_another_step_another(self, subjects):
        sources = [PatchSource(PatchSampler(subjects, PatchData(patch=(16, 16, 16)), -1.0, seed=4), 2, a)
                   for a in (False, True)]  # fmt: skip
        for step in (0, 1, 5):
            (a, random_a), (b, random_b) = (s.at(step) for s in sources)
            assert torch.equal(a.images, b.images)
            assert random_a.random() == random_b.random()
        assert not torch.equal(sources[0].at(0)[0].images, sources[0].at(1)[0].images)

    def test_tumours_are_sought_where_asked(self, subjects):
        shares = []
        for share in (0.0, 1.0):
            sampler = PatchSampler(subjects, PatchData(patch=(16, 16, 16), tumour_share=share), -1.0)
            shares.append(float((sampler.draw(np.random.default_rng(0), 24).labels > 0).float().mean()))
            if share == 1:
                assert (sampler.draw(np.random.default_rng(1), 8).labels > 0).flatten(1).any(1).all()
        assert shares[1] > 2 * shares[0]
