"""The second stage over volumes: windows, memory, precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.core.errors import CaseError
from app.inference.device import Runtime
from app.inference.refinement import VolumeRefiner
from app.networks.refiner import Refiner
from app.registry.identity import Identity
from app.registry.spec import RefinerSpec
from tests.networks.small_models import VOLUME, new_refiner

RUNTIME = Runtime("torch", "cpu", "fp32", 1, "test")
SHAPE = (40, 36, 44)
TARGET = torch.tensor([2])


def stub(made: Refiner, window=(16, 16, 16), runtime: Runtime = RUNTIME) -> VolumeRefiner:
    spec = RefinerSpec(architecture=made.config, normalization=VOLUME, window=window, overlap=0.25)
    return VolumeRefiner(Identity("r", "0" * 64), spec, made, runtime)


@pytest.fixture
def volumes():
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.7
    made, *scores = (np.where(brain, random.normal(size=SHAPE), -1).astype(np.float32) for _ in range(4))
    return made, dict(zip(("t1c", "t1n", "t2w"), scores, strict=True)), brain


class TestVolumeRefiner:
    @settings(max_examples=5, deadline=None)
    @given(st.tuples(*[st.sampled_from([12, 16, 24, 48])] * 3))
    def test_untrained_it_is_the_identity_in_the_brain(self, window):
        random = np.random.default_rng(1)
        brain = np.zeros(SHAPE, bool)
        brain[5:35, 4:30, 6:40] = True
        volume = random.normal(size=SHAPE).astype(np.float32)
        scores = {"t1n": random.normal(size=SHAPE).astype(np.float32)}
        made = stub(new_refiner(trained=False), window).refine(volume, scores, "t2f", brain, -1.0)
        np.testing.assert_allclose(made[brain], volume[brain], atol=1e-5)
        assert (made[~brain] == -1).all()
        assert made.dtype == np.float32

    def test_one_window_over_all_is_the_network_itself(self, volumes):
        made, scores, brain = volumes
        refiner = new_refiner()
        box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(brain))
        sides = tuple(-(-(s.stop - s.start) // 4) * 4 for s in box)
        result = stub(refiner, sides).refine(made, scores, "t2f", brain, -1.0)
        pads = [((n - (s.stop - s.start)) - (n - (s.stop - s.start)) // 2, (n - (s.stop - s.start)) // 2)
                for n, s in zip(sides, box, strict=True)]  # fmt: skip
        seen = {
            m: torch.from_numpy(np.pad(v[box], pads, constant_values=-1)) for m, v in {"made": made, **scores}.items()
        }
        images = torch.stack([seen.get(m, torch.full(sides, -1.0)) for m in MODALITIES])[None]
        with torch.inference_mode():
            own = refiner(seen["made"][None, None], images, TARGET, (0, 1, 3))[0, 0].numpy()
        crop = tuple(slice(a, n - b) for (a, b), n in zip(pads, sides, strict=True))
        np.testing.assert_allclose(result[box][brain[box]], own[crop][brain[box]], atol=1e-4)
        assert np.abs(result - made)[brain].mean() > 0.01

    def test_what_lies_outside_the_brain_is_not_looked_at(self, volumes):
        made, scores, brain = volumes
        other = np.where(brain, made, 50).astype(np.float32)
        refiner = stub(new_refiner())
        assert np.array_equal(
            refiner.refine(made, scores, "t2f", brain, -1.0), refiner.refine(other, scores, "t2f", brain, -1.0)
        )

    def test_a_voxel_that_is_not_finite_stays_alone(self, volumes):
        made, scores, brain = volumes
        made[20, 18, 22] = np.nan
        assert np.isfinite(stub(new_refiner()).refine(made, scores, "t2f", brain, -1.0)).all()

    def test_memory_that_runs_out_halves_the_window_for_good(self, volumes, monkeypatch, caplog):
        made, scores, brain = volumes
        refiner = stub(new_refiner(), (64, 48, 64))
        run, asked = refiner._network.forward, []

        def greedy(volume, *rest):
            asked.append(tuple(volume.shape[2:]))
            if volume.shape[2] > 32:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(volume, *rest)

        monkeypatch.setattr(refiner._network, "forward", greedy)
        result = refiner.refine(made, scores, "t2f", brain, -1.0)
        assert asked[0] == (64, 48, 64)
        assert refiner.window == (32, 32, 32)
        assert "the refiner's windows are now of 32 x 32 x 32" in caplog.text
        assert np.array_equal(result, stub(new_refiner(), (32, 32, 32)).refine(made, scores, "t2f", brain, -1.0))

    def test_memory_for_not_even_the_smallest_window(self, volumes, monkeypatch):
        made, scores, brain = volumes
        refiner = stub(new_refiner(), (64, 64, 64))

        def never(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(refiner._network, "forward", never)
        with pytest.raises(CaseError, match="--no-refine"):
            refiner.refine(made, scores, "t2f", brain, -1.0)

    def test_another_error_is_not_taken_for_memory(self, volumes, monkeypatch):
        made, scores, brain = volumes
        refiner = stub(new_refiner())

        def broken(*_):
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(refiner._network, "forward", broken)
        with pytest.raises(RuntimeError, match="shapes"):
            refiner.refine(made, scores, "t2f", brain, -1.0)

    def test_bfloat16_is_near(self, volumes):
        made, scores, brain = volumes
        exact = stub(new_refiner()).refine(made, scores, "t2f", brain, -1.0)
        rough = stub(new_refiner(), runtime=replace(RUNTIME, precision="bf16")).refine(made, scores, "t2f", brain, -1.0)
        assert 0 < np.abs(exact - rough)[brain].mean() < 0.1 * np.abs(exact - made)[brain].mean()
