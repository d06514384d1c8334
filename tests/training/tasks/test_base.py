"""A task is one class, one recipe and one network: this file adds one, and nothing else knows of it."""

from __future__ import annotations

import copy
import sys
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.cli import main
from app.core.errors import ExitCode, UsageError
from app.data.loading import load_complete
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import VolumeScores
from app.networks.architectures import Segmenter2dConfig
from app.networks.unet import Segmenter2d
from app.preprocessing.normalization import BACKGROUND
from app.registry.checkpoints import load_segmenter2d
from app.registry.manifest import read_manifest
from app.registry.spec import Segmenter2dSpec
from app.training.checkpoint import BEST, load_state
from app.training.config import LossRecipe, Recipe, load_recipe
from app.training.data.cache import NORMALIZATION
from app.training.data.sections import SliceAugmentation, SliceData
from app.training.data.slices import Sampler, Source
from app.training.promotion.writing import write_model
from app.training.tasks.base import Task, find_task, task_names
from app.training.validation import scores_of

RECIPE = """
task = "toy"
note = "finds the brain"
[data]
axial = [48, 48]
sagittal = [48, 48]
coronal = [48, 48]
min_brain_pixels = 200
held_out = 1
[losses]
brain = 2.0
[optimizer]
reference_batch = 0
learning_rate = 1e-2
clip_norm = 1.0
ema = 0.5
[schedule]
batch_size = 4
steps = 12
epoch_steps = 6
"""


class ToyLosses(LossRecipe):
    """Weights of the losses.

    Attributes:
        brain: cross-entropy of what is brain.
    """

    brain: float = 1.0


class ToyRecipe(Recipe):
    """One training of the toy."""

    task: Literal["toy"] = "toy"
    data: SliceData = SliceData()
    augmentation: SliceAugmentation = SliceAugmentation()
    losses: ToyLosses = ToyLosses()


class ToyTask(Task[ToyRecipe]):
    """A tiny network that learns where the brain is."""

    recipe_type = ToyRecipe
    kind = "segmenter2d"

    def __init__(self, recipe, device):
        super().__init__(recipe, device)
        self.network = Segmenter2d((8, 8)).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()

    @property
    def networks(self):
        return {"toy": self.network}

    def new_source(self, context):
        sampler = Sampler(context.subjects, self.recipe.data, BACKGROUND, seed=self.recipe.seed)
        return Source(sampler, self.recipe.schedule.batch_size, 0)

    def step(self, source, step, pieces, update):
        batch = source.at(step).batch.to(self.device)
        self.network.zero_grad(set_to_none=True)
        logits = self.network(batch.images, batch.views, batch.types)
        loss = F.cross_entropy(logits, batch.brain[:, 0].long())
        (self.recipe.losses.brain * loss).backward()
        update("toy")
        return {"brain": loss.detach()}

    def pictures(self, sampler):
        batch = sampler.draw(np.random.default_rng(0), np.random.default_rng(0), 1)
        return [[batch.brain[0, 0].numpy(), self._brain(self.average, batch.images)[0].float().numpy()]]

    def validate(self, cases, masks):
        return {"found": float(np.mean([s.values["found"] for s in self._scores(self.average, cases)]))}

    def selection_score(self, scores):
        return scores["found"]

    @classmethod
    def export(cls, request):
        network, data = Segmenter2d((8, 8)), request.recipe_of(ToyRecipe).data
        request.state.load_into(network)
        spec = Segmenter2dSpec(architecture=Segmenter2dConfig((8, 8)), normalization=NORMALIZATION, canvas=data.canvas)
        return write_model(request, spec, scores_of(cls._scores(network, request.cases)))

    @staticmethod
    def _brain(network, images):
        nothing = torch.zeros(len(images), dtype=torch.long)
        with torch.no_grad():
            return network.eval()(images, nothing, nothing - 1).argmax(dim=1) == 1

    @classmethod
    def _scores(cls, network, cases):
        """The share of pixels of one slice of each subject that are rightly called."""
        rows = []
        for subject, volumes in load_complete(cases):
            arrays = np.stack([v.data[:32, :32, 16] for v in volumes.values()]).astype(np.float32)
            brain = torch.from_numpy((arrays > 0).all(axis=0))
            images = torch.from_numpy(arrays / max(arrays.max(), 1) + BACKGROUND)[None]
            share = (cls._brain(network, images)[0] == brain).float().mean()
            rows.append(VolumeScores(subject, "seg", {"found": float(share)}))
        return rows


TASK = ToyTask


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The toy's recipe; this very file is its module among the tasks."""
    monkeypatch.setitem(sys.modules, "app.training.tasks.toy", sys.modules[__name__])
    (tmp_path / "toy.toml").write_text(RECIPE)
    return tmp_path / "toy.toml"


def test_a_new_task_is_trained_validated_and_exported(recipe, training_data, training_cache, tmp_path, capsys):
    paths = ["--data", str(training_data), "--cache", str(training_cache)]
    assert main(["train", str(recipe), *paths, "--run", str(tmp_path / "run"), "--device", "cpu"]) == ExitCode.OK
    assert main(["train", str(recipe), *paths, "--run", str(tmp_path / "run"), "--device", "cpu", "--resume",
                 "--set", "schedule.steps=13"]) == ExitCode.OK  # fmt: skip
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    losses = [float(r.split(",")[3]) for r in rows if ",brain," in r]
    assert losses[-1] < 0.8 * losses[0]
    assert any(",val_found," in r for r in rows)
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    best = load_state(tmp_path / "run" / BEST)
    write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "u9")
    export = ["export", str(tmp_path / "run"), *paths, "--weights", str(tmp_path / "w"), "--model", "brainy",
              "--score-on", str(tmp_path / "unseen"), "--device", "cpu"]  # fmt: skip
    assert main([*export, "--refines", "tiny"]) == ExitCode.USAGE
    assert "leave out --refines" in capsys.readouterr().err
    assert main([*export, "--specialist-of", "tiny"]) == ExitCode.USAGE
    assert "leave out --specialist-of" in capsys.readouterr().err
    assert main(export) == ExitCode.OK
    manifest = read_manifest(tmp_path / "w")
    entry = manifest.entry("brainy")
    record = manifest.lineage.trainings[entry.sha256]
    assert (record.task, record.recipe["losses"], record.steps) == ("toy", {"brain": 2.0}, best.step)
    assert record.scores.subjects == ("u9",)
    for loaded, trained in zip(load_segmenter2d(entry).state_dict().values(), best.average.values(), strict=True):
        assert torch.equal(loaded, trained.half().float())


def test_its_recipe_is_checked_as_any(recipe):
    assert find_task("toy") is ToyTask
    assert load_recipe(str(recipe)).losses.brain == 2.0
    for change, message in (
        ("losses.brian=1", "did you mean 'losses.brain'"),
        ("losses.brain=-1", "no loss may be negative"),
        ("network.preset=full", "'network'; it is for the tasks segmentation3d and synthesis"),
    ):
        with pytest.raises(UsageError, match=message):
            load_recipe(str(recipe), [change])


def test_the_tasks_are_the_modules_that_offer_one():
    assert task_names() == [
        "cgsamr", "ds3net", "enhancement", "refinement", "segmentation2d", "segmentation3d", "synthesis", "tissnet",
        "ucgsamr",
    ]  # fmt: skip
    assert find_task("base") is None
    assert find_task("toys") is None
