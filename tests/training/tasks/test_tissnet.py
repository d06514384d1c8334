from __future__ import annotations

import pytest
import torch

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.training.config import load_recipe
from app.training.data.cache import build_cache
from app.training.data.patches import PatchSampler, PatchSource
from app.training.tasks.tissnet import TissNetTask
from tests.training.helpers import gradient_of

SMALL = [
    "data.patch=[32,32,16]",
    "schedule.batch_size=1",
    "schedule.epoch_steps=1000",
    "tissnet.perceptibility_steps=1",
    "tissnet.discriminator_width=2",
    "augmentation.rotate=0",
    "data.targets=['t2f']",
    "data.complete=false",
    "data.sources=['t1c','t1n','t2w']",
]
ANY = ["data.targets=['t1c','t1n','t2f','t2w']", "data.complete=true", "data.sources=[]"]


@pytest.fixture(scope="module")
def subjects(training_data, training_cache):
    return build_cache(training_data, training_cache)


def _task(*changes: str) -> TissNetTask:
    torch.manual_seed(0)
    return TissNetTask(load_recipe("tissnet_compact", [*SMALL, *changes]), torch.device("cpu"))


def _source(task: TissNetTask, subjects) -> PatchSource:
    return PatchSource(PatchSampler(subjects, task.recipe.data, -1.0), task.recipe.schedule.batch_size)


class TestStep:
    def test_the_perceptibility_network_learns_first_and_alone(self, subjects):
        task, moved = _task(), []
        losses = task.step(_source(task, subjects), 0, 1, lambda name: moved.append(name) is None)
        assert set(losses) == {"perceptibility_dice"}
        assert moved == ["tissnet"]
        assert gradient_of(task.network.perceptibility).abs().sum() > 0
        assert gradient_of(task.network.generator).abs().sum() == 0

    def test_then_it_is_frozen_and_all_others_learn(self, subjects):
        task, moved = _task(), []
        losses = task.step(_source(task, subjects), 1, 1, lambda name: moved.append(name) is None)
        assert {"l1_global", "l1_tumour", "perceptibility", "coarse", "fine", "error", "consistency"} <= set(losses)
        assert moved == ["tissnet", "discriminators"]
        assert gradient_of(task.network.perceptibility).abs().sum() == 0
        for network in (task.network.generator, task.network.segmentor, *task.discriminators.values()):
            assert gradient_of(network).abs().sum() > 0

    def test_a_loss_of_weight_0_is_left_out(self, subjects):
        task, moved = _task("losses.adversarial=0", "losses.perceptibility=0"), []
        losses = task.step(_source(task, subjects), 1, 1, lambda name: moved.append(name) is None)
        assert not {"perceptibility", "adversarial_whole"} & set(losses)
        assert moved == ["tissnet"]

    def test_a_segmentor_without_a_loss_is_not_computed(self, subjects):
        task = _task("losses.fine=0", "losses.error=0", "losses.consistency=0")
        losses = task.step(_source(task, subjects), 1, 1, lambda _: False)
        assert "coarse" in losses
        assert not {"fine", "error", "consistency"} & set(losses)
        assert all(p.grad is None for p in task.network.segmentor.parameters())

    def test_a_complete_exam_teaches_the_segmentation_alone(self, subjects):
        task, moved = (
            _task("data.targets=[]", "data.complete=true", "data.sources=[]"),
            [],
        )
        losses = task.step(_source(task, subjects), 0, 1, lambda name: moved.append(name) is None)
        assert set(losses) == {"coarse", "fine", "error", "consistency"}
        assert moved == ["tissnet"]
        assert [len(row) for row in task.pictures(_source(task, subjects).sampler)] == [3]

    @pytest.mark.parametrize("apart", [False, True])
    def test_the_segmentor_moves_the_coarse_answer_as_published_or_not(self, subjects, apart):
        task = _task(f"tissnet.coarse_apart={apart}".lower(), "losses.coarse=0", "schedule.precision=fp32")
        task.step(_source(task, subjects), 1, 1, lambda _: False)
        head = task.network.generator.second.head
        assert bool(gradient_of(head).abs().sum() > 0) is not apart

    def test_cross_entropy_joins_every_dice_loss_of_a_segmentation(self, subjects):
        for step, names in ((0, {"perceptibility_dice"}), (1, {"coarse", "fine"})):
            with_, without = (
                _task(f"losses.entropy={weight}").step(_source(_task(), subjects), step, 1, lambda _: False)
                for weight in (0.5, 0)
            )
            assert {name for name in without if with_[name] > without[name] + 0.05} == names

    def test_pieces_add_up(self, subjects):
        gradients = []
        for pieces in (1, 2):
            task = _task("schedule.batch_size=2", "schedule.precision=fp32", "losses.adversarial=0")
            task.step(_source(task, subjects), 1, pieces, lambda _: False)
            gradients.append(gradient_of(task.network.generator))
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99

    def test_small_patches_are_not_learnt_from_in_bfloat16_on_a_processor(self):
        assert _task("schedule.precision=bf16", "data.patch=[32,48,16]").precision == torch.float32
        assert _task("schedule.precision=bf16", "data.patch=[48,32,16]").precision == torch.bfloat16

    def test_it_learns_one_batch_by_heart(self, subjects):
        task = _task("losses.adversarial=0", "tissnet.perceptibility_steps=0", "losses.perceptibility=0")
        optimizer = torch.optim.Adam(task.network.parameters(), lr=3e-3)
        source = _source(task, subjects)
        losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None) for _ in range(12)]
        assert losses[-1]["l1_global"] < 0.7 * losses[0]["l1_global"]
        assert losses[-1]["fine"] < losses[0]["fine"]


def test_images_are_in_the_papers_range_and_regions_are_nested(subjects):
    task = _task(*ANY)
    patches = _source(task, subjects).at(0)[0]
    batch = task._batch(patches, patches.images, "t2f")
    assert batch.sources.abs().max() <= 1
    assert batch.sources.shape[1] == 4
    assert (batch.sources[:, MODALITIES.index("t2f")] == -1).all()
    assert batch.case.tolist() == [2]
    outside = patches.brain[:, 0] == 0
    assert (batch.target[:, 0][outside] == -1).all()
    enhancing, core, whole = batch.truth.unbind(1)
    assert (enhancing <= core).all()
    assert (core <= whole).all()


@pytest.mark.parametrize("recipe", ["tissnet", "tissnet_compact", "tissnet_vs"])
def test_recipes_are_valid(recipe):
    loaded = load_recipe(recipe)
    assert loaded.task == "tissnet"
    assert loaded.spec.cases == loaded.architecture.cases


@pytest.mark.parametrize("recipe", ["tissnet", "tissnet_vs"])
def test_published_forms_make_one_sequence_of_the_others(recipe):
    spec = load_recipe(recipe).spec
    assert len(spec.targets) == 1
    assert spec.targets[0] not in spec.sources


def test_every_case_is_drawn():
    task = _task(*ANY)
    assert {task._draw_target(step, False) for step in range(60)} == {*MODALITIES, None}
    assert None not in {task._draw_target(step, True) for step in range(60)}


def test_the_published_run():
    recipe = load_recipe("tissnet")
    assert (recipe.data.patch, recipe.schedule.batch_size, recipe.optimizer.learning_rate) == ((128, 128, 16), 2, 1e-4)
    weights = recipe.losses
    assert (weights.l1_global, weights.l1_tumour, weights.perceptibility, weights.coarse) == (50, 200, 25, 1)
    assert weights.fine == weights.error == weights.consistency == 25
    assert weights.by_term["adversarial_whole"] == weights.by_term["adversarial_tumour"] == 1
    assert (recipe.optimizer.decay, recipe.optimizer.constant_share) == ("linear", 100 / 250)


def test_a_target_is_no_source():
    with pytest.raises(UsageError, match="must not name the one target"):
        load_recipe("tissnet_vs", ['data.sources=["t1c"]'])
