from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.core.constants import VIEWS
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.loading import load_complete
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.slices import SLICE_AXIS, crop, neighbour_offsets, place_window
from app.training.data.sections import SliceData
from app.training.data.slices import Sampler, Source, together
from tests.training.helpers import changed

DATA = SliceData(axial=(48, 48), sagittal=(48, 48), coronal=(48, 48), min_brain_pixels=200)


class TestSampler:
    def _draw(self, subjects, step=0, size=6, shift=0, seed=0, rank=0, **changes):
        sampler = Sampler(subjects, changed(DATA, **changes), -1.0, seed=seed, rank=rank)
        return sampler.draw(sampler.plan(step), sampler.own(step), size, shift)

    def test_seed_step_and_process_decide(self, subjects):
        one, two = self._draw(subjects), self._draw(subjects)
        assert torch.equal(one.images, two.images)
        assert one.images.shape == (6, 4, 48, 48)
        for other in ({"seed": 1}, {"step": 1}, {"rank": 1}):
            drawn = self._draw(subjects, **other)
            assert drawn.images.shape == one.images.shape
            assert not torch.equal(one.images, drawn.images)
        assert self._draw(subjects, rank=1).view == one.view

    def test_images_brain_labels_and_scale_belong_together(self, subjects):
        batch = self._draw(subjects, size=8, shift=4, tumour_share=1.0)
        outside = batch.brain[:, 0] == 0
        assert (batch.images.movedim(1, -1)[outside] == -1).float().mean() > 0.97
        assert not batch.labels[outside].any()
        assert (batch.labels > 0).any()
        low, high = batch.scale[..., 0], batch.scale[..., 1]
        assert (low < -1).all()
        assert (batch.images.amax(dim=(2, 3)) <= high + 0.01).all()

    def test_alike_the_slices_of_a_batch_lie_at_one_height(self, subjects):
        spreads = []
        for alike in (False, True):
            sampler = Sampler(subjects, changed(DATA, views=("axial",)), -1.0, alike=alike)
            drawn, draw = [], sampler._choose

            def choose(view, own, height, drawn=drawn, draw=draw):
                subject, index = draw(view, own, height)
                few = subject.slices(view, DATA.min_brain_pixels)
                drawn.append(np.searchsorted(few, index) / len(few))
                return subject, index

            sampler._choose = choose
            for step in range(12):
                sampler.at(step, 6, 0)
            heights = np.reshape(drawn, (12, 6))
            spreads.append(np.ptp(heights, axis=1).max())
            # All heights come.
            assert np.ptp(heights) > 0.6
        assert spreads[1] <= 1 / 6 + 1e-6 < spreads[0]

    def test_alike_tumours_come_where_there_are_any(self, subjects):
        data = changed(DATA, tumour_share=1.0, views=("axial",))
        plain, alike = (Sampler(subjects, data, -1.0, alike=a) for a in (False, True))
        shares = [
            np.mean([float((s.at(i, 4, 0).batch.labels > 0).flatten(1).any(1).float().mean()) for i in range(12)])
            for s in (plain, alike)
        ]
        assert shares[0] == 1
        assert 0 < shares[1] < 1

    @pytest.mark.parametrize("view", VIEWS)
    def test_neighbours_follow_their_slice(self, subjects, view, monkeypatch):
        data, subject = changed(DATA, views=(view,)), subjects[0]
        sampler, last = Sampler([subject], data, -1.0, neighbours=2), subject.brain.shape[SLICE_AXIS[view]] - 1
        monkeypatch.setattr(sampler, "choose", lambda view, own: (subject, last - 1))
        batch = sampler.draw(np.random.default_rng(0), np.random.default_rng(1), 1, max_shift=4)
        plain = Sampler([subject], data, -1.0)
        for place, offset in enumerate(neighbour_offsets(2)):
            if offset == 2:
                # Beyond the box.
                assert (batch.images[place] == -1).all()
                assert not batch.brain[place].any()
                continue
            monkeypatch.setattr(plain, "choose", lambda view, own, index=last - 1 + offset: (subject, index))
            alone = plain.draw(np.random.default_rng(0), np.random.default_rng(1), 1, max_shift=4)
            for name in ("images", "brain", "labels", "scale"):
                assert torch.equal(getattr(batch, name)[place], getattr(alone, name)[0])
        one = batch.every(5)
        assert len(one) == 1
        seen = together(batch.images, 5)
        assert torch.equal(seen[0, :4], one.images[0])
        assert torch.equal(seen[0, 8:12], batch.images[2])

    def test_every_view_comes(self, subjects):
        views = {self._draw(subjects, step=step, size=1).view for step in range(30)}
        assert views == set(range(len(VIEWS)))

    @pytest.mark.parametrize("view", VIEWS)
    def test_on_a_canvas_of_the_volume_slices_lie_where_a_run_places_them(self, subjects, training_data, view):
        sides = {"axial": (48, 64), "sagittal": (48, 48), "coronal": (64, 48)}
        data, subject = changed(DATA, views=(view,), centre="volume", **sides), subjects[0]
        ((_, volumes),) = load_complete([c for c in scan(training_data).cases if c.subject == subject.name])
        brain = vote_foreground({m: v.data for m, v in volumes.items()})
        window = place_window(brain, view, data.canvas)
        assert window.size == sides[view]
        placed = torch.from_numpy(crop(brain.astype(np.float32), window, 0.0))
        drawn = Sampler([subject], data, -1.0).draw(*(np.random.default_rng(i) for i in (0, 1)), 3).brain[:, 0]
        assert all((placed == one).all(dim=(1, 2)).any() for one in drawn)

    def test_a_cache_that_does_not_say_where_brains_lie(self, subjects):
        older = [replace(s, start=None) for s in subjects]
        with pytest.raises(UsageError, match=r"does not say where brains lie, .*; delete it"):
            self._draw(older, centre="volume")

    def test_tumour_types_come_equally_often(self, subjects):
        many = [replace(subjects[0], tumour_type="GLI") for _ in range(9)]
        rare = replace(subjects[1], tumour_type="MET")
        for balance, low, high in ((True, 0.35, 0.65), (False, 0.0, 0.25)):
            batch = self._draw([*many, rare], size=200, balance_types=balance)
            share = float((batch.types == 1).float().mean())
            assert low <= share <= high

    @pytest.mark.parametrize(("share", "pixels"), [(0.001, 9), (0.01, 92)])
    def test_a_slice_of_the_tumour_shows_enough_of_it(self, subjects, share, pixels):
        choice = {"views": ("sagittal",), "sagittal": (96, 96), "tumour_share": 1.0, "min_tumour_share": share}
        batch = self._draw(subjects, size=150, **choice)
        assert (batch.labels > 0).sum(dim=(1, 2)).min() >= pixels
        # There are slices with less, which are drawn as any other.
        counts = subjects[1].tumour_pixels["sagittal"][subjects[1].slices("sagittal", 200)]
        assert ((counts > 0) & (counts < pixels)).any()

    def test_reading_ahead_gives_the_same(self, subjects):
        sampler = Sampler(subjects, DATA, -1.0)
        plain, ahead = Source(sampler, 2, 3), Source(sampler, 2, 3, prefetch=True)
        for step in (0, 1, 2, 2, 7, 8):
            one, two = plain.at(step), ahead.at(step)
            assert torch.equal(one.batch.images, two.batch.images)
            assert one.own.random() == two.own.random()
            assert one.plan.random() == two.plan.random()

    def test_no_slice_with_enough_brain(self, subjects):
        with pytest.raises(UsageError, match="no subject has a"):
            Sampler(subjects, changed(DATA, min_brain_pixels=10**6), -1.0)

    def test_pieces_are_the_whole(self, subjects):
        batch = self._draw(subjects, size=5)
        parts = batch.pieces(2)
        assert [len(p) for p in parts] == [3, 2]
        assert torch.equal(torch.cat([p.images for p in parts]), batch.images)
