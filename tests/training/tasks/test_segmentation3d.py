from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from app.core.errors import WeightsError
from app.networks.unet import Segmenter2d
from app.training.config import load_recipe
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.patches import PatchSampler, PatchSource
from app.training.data.sections import SliceData
from app.training.tasks.segmentation3d import Segmentation3dTask, deep_losses
from tests.networks.small_models import save_segmenter2d, save_segmenter3d
from tests.training.helpers import patches_of

SMALL = ["data.patch=[32,32,32]", "schedule.epoch_steps=1000"]


@pytest.fixture(scope="module")
def subjects(training_data, training_cache):
    return build_cache(training_data, training_cache)


class TestTask:
    def test_every_level_counts_half_of_the_finer_one(self):
        patches = patches_of()
        torch.manual_seed(0)
        fine, coarse = torch.randn(2, 4, 8, 8, 8), torch.randn(2, 4, 4, 4, 4)
        both = deep_losses([fine, coarse], patches)["entropy"]
        alone = F.cross_entropy(fine, patches.labels), F.cross_entropy(coarse, patches.labels[:, ::2, ::2, ::2])
        assert both == pytest.approx(float(alone[0]) * 2 / 3 + float(alone[1]) / 3, rel=1e-5)

    def test_the_segmenter_learns_one_batch_by_heart(self, subjects):
        recipe = load_recipe("tumour_segmenter", [*SMALL, "augmentation.rotate=0", "augmentation.zoom=0"])
        torch.manual_seed(0)
        task = Segmentation3dTask(recipe, torch.device("cpu"))
        source = PatchSource(PatchSampler(subjects, recipe.data, -1.0), 1)
        optimizer = torch.optim.AdamW(task.segmenter.parameters(), lr=4e-3)
        losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None) for _ in range(12)]
        assert losses[-1]["dice"] < 0.9 * losses[0]["dice"]
        assert losses[-1]["entropy"] < 0.7 * losses[0]["entropy"]

    @pytest.mark.parametrize("precision", ["auto", "bf16"])
    def test_gradients_of_small_patches_are_those_of_float32(self, subjects, precision):
        def gradients(precision: str) -> list[torch.Tensor]:
            recipe = load_recipe("tumour_segmenter", [*SMALL, f"schedule.precision={precision}"])
            torch.manual_seed(0)
            task = Segmentation3dTask(recipe, torch.device("cpu"))
            task.step(PatchSource(PatchSampler(subjects, recipe.data, -1.0), 1), 0, 1, lambda _: False)
            return [p.grad for p in task.segmenter.parameters() if p.grad is not None]

        pairs = list(zip(gradients(precision), gradients("fp32"), strict=True))
        assert pairs
        assert all(F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99 for a, b in pairs if b.norm() > 1e-6)

    def test_it_starts_from_another_one_and_from_nothing_else(self, tmp_path):
        recipe = load_recipe("tumour_segmenter", SMALL)
        task, other = (Segmentation3dTask(recipe, torch.device("cpu")) for _ in range(2))
        entry = save_segmenter3d(
            tmp_path, "j", other.segmenter.widths, other.segmenter.state_dict(), NORMALIZATION, (32, 32, 32)
        )
        task.load_initial_weights(entry)
        for network in (task.segmenter, task.average):
            pairs = zip(network.parameters(), other.segmenter.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        flat = Segmenter2d((8, 8))
        entry = save_segmenter2d(tmp_path, "s", (8, 8), flat.state_dict(), NORMALIZATION, SliceData().canvas)
        with pytest.raises(WeightsError, match="not a segmenter3d"):
            task.load_initial_weights(entry)
