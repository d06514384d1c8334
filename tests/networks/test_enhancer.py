"""The 3D enhancer: what it makes of a first stage's T1c."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import CaseError
from app.inference.device import Runtime
from app.inference.refinement import VolumeRefiner
from app.networks.architectures import EnhancerConfig
from app.networks.enhancer import ENHANCING, TARGET, Blinded, Enhancer, nearby
from app.registry.checkpoints import load_refiner
from app.training.data.cache import NORMALIZATION
from tests.networks.small_models import save_refiner

OTHERS = tuple(i for i in range(4) if i != TARGET)


def network(seed: int = 0, widths: tuple[int, ...] = (4, 8)) -> Enhancer:
    torch.manual_seed(seed)
    made = Enhancer(EnhancerConfig(widths)).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def volumes(seed: int = 0, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A first stage's T1c, and four sequences."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 12, 16, generator=random), torch.randn(count, 4, 8, 12, 16, generator=random)


class TestNetwork:
    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 50), st.sets(st.sampled_from(OTHERS), min_size=1))
    def test_it_brightens_towards_what_would_enhance_and_darkens_nothing(self, seed, members):
        enhancer, (stage, images) = network(seed), volumes(seed)
        members = tuple(sorted(members))
        target = torch.tensor([TARGET])
        with torch.no_grad():
            made = enhancer(stage, images, target, members)
            logits, level = enhancer.parts(F.avg_pool3d(enhancer.shown(images, members), 2))
        missed = (level - nearby(F.avg_pool3d(stage, 2))).clamp(min=0)
        answers = torch.cat([logits[0].softmax(dim=1)[:, ENHANCING : ENHANCING + 1], missed], dim=1)
        p, missed = F.interpolate(answers, scale_factor=2, mode="trilinear").split(1, dim=1)
        torch.testing.assert_close(made, stage + p * missed)
        assert (made >= stage).all()

    def test_what_the_first_stage_enhances_stays_as_it_is_with_what_lies_beside_it(self):
        enhancer = network()
        for layer in (enhancer.head, enhancer.segmenter.heads[0]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        enhancer.head.bias.data.fill_(3.0)
        enhancer.segmenter.heads[0].bias.data[ENHANCING] = 20.0
        stage, images = torch.zeros(1, 1, 64, 16, 16), torch.zeros(1, 4, 64, 16, 16)
        stage[:, :, 8:12, 6:10, 6:10] = 4.0
        with torch.no_grad():
            made = enhancer(stage, images, torch.tensor([TARGET]), OTHERS)
        torch.testing.assert_close(made[:, :, 7:14], stage[:, :, 7:14])
        torch.testing.assert_close(made[:, :, 32:], torch.full_like(stage[:, :, 32:], 3.0), atol=1e-3, rtol=0)

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 50))
    def test_neither_a_t1c_nor_what_lacks_is_seen(self, seed):
        enhancer, (stage, images) = network(seed), volumes(seed)
        other = images.clone()
        other[:, [TARGET, OTHERS[0]]] = 7.0
        asked = torch.tensor([TARGET]), OTHERS[1:]
        with torch.no_grad():
            assert torch.equal(enhancer(stage, images, *asked), enhancer(stage, other, *asked))
            assert not torch.equal(enhancer(stage, images, asked[0], OTHERS), enhancer(stage, other, asked[0], OTHERS))

    def test_memory_that_runs_out_leaves_windows_that_it_can_look_at(self, tmp_path, monkeypatch):
        config = EnhancerConfig((8, 8, 8, 8, 8))
        entry = save_refiner(tmp_path, "e", config, Enhancer(config).state_dict(), NORMALIZATION, (128, 128, 128), 0.25)
        refiner = VolumeRefiner(entry.identity, entry.spec, load_refiner(entry), Runtime("torch", "cpu", "fp32", 1, ""))
        run = refiner._network.forward

        def greedy(volume, *rest):
            if volume.shape[2] > 64:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(volume, *rest)

        monkeypatch.setattr(refiner._network, "forward", greedy)
        brain, scores = np.ones((40, 40, 40), bool), np.zeros((40, 40, 40), np.float32)
        assert np.isfinite(refiner.refine(scores, {"t2w": scores}, "t1c", brain, -1.0)).all()
        monkeypatch.setattr(refiner._network, "forward", lambda volume, *_: greedy(volume.new_zeros(1, 1, 65, 1, 1)))
        with pytest.raises(CaseError, match="--no-refine"):
            refiner.refine(scores, {"t2w": scores}, "t1c", brain, -1.0)

    def test_as_a_segmenter_it_is_blind_to_the_t1c(self):
        _, images = volumes()
        other = images.clone()
        other[:, TARGET] = 7.0
        with torch.no_grad():
            assert torch.equal(*(Blinded(network())(v) for v in (images, other)))

    def test_its_shape_travels_in_the_manifests_form(self, tmp_path):
        made = network(widths=(8, 16, 16))
        entry = save_refiner(tmp_path, "e", made.config, made.state_dict(), NORMALIZATION, (16, 16, 16), 0.25)
        loaded = load_refiner(entry)
        assert isinstance(loaded, Enhancer)
        assert loaded.config == made.config
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.parameters(), strict=True))
