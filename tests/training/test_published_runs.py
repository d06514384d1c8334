"""The recipes r1 to r8 against the tables and the text of the BraSyn 2025 thesis (Carpentiero 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from app.networks.architectures import HfGanConfig
from app.preprocessing.normalization import BRASYN25_INTENSITIES
from app.training.config import load_recipe
from app.training.tasks.synthesis_recipe import generator_config

#: Table 5.2: losses cycle, feat, SSIM_whole, SSIM_dual, Tversky; training sets GLI, MET; views axial, sagittal.
#: R8A, R8S and R10 are one model, R8; R9 is R6 and R7.
TABLE_5_2 = """
r1  + + - - -  + -  + -
r2  + + - + -  + -  + -
r3  + + - + -  + -  + -
r4  + + + - -  + -  + -
r5  - - - - -  + -  + -
r6  + + - + +  + -  + -
r7  + + - + +  + -  - +
r8  + + - + -  + +  + +
"""
#: Section 4.4, for the losses that a run has.
WEIGHTS = {"l1": 10, "adversarial": 0.25, "classification": 0.25, "feature": 1, "cycle": 1, "ssim": 5, "tversky": 5}
#: Table 4.3, training gliomas.
SLICES = {"axial": 158_867, "sagittal": 158_976}


@dataclass(frozen=True)
class Described:
    """What section 5.1 says of a run beside the table.

    Attributes:
        missing: most sequences that a sample lacks.
        precision: of training.
        epochs: of gliomas in the first of its views.
        start: the run that it goes on from.
    """

    missing: int
    precision: str
    epochs: int = 10
    start: str | None = None


SECTION_5_1 = {
    "r1": Described(3, "fp16"),
    "r2": Described(3, "fp32"),
    "r3": Described(1, "fp32"),
    "r4": Described(3, "fp32"),
    "r5": Described(3, "fp32"),
    "r6": Described(1, "fp32", epochs=3, start="r3"),
    "r7": Described(1, "fp32", epochs=3, start="r3"),
    "r8": Described(1, "fp32"),
}
ROWS = [line.split() for line in TABLE_5_2.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
class TestRuns:
    def test_table(self, row):
        recipe, marks = load_recipe(row[0]), [mark == "+" for mark in row[1:]]
        losses = recipe.losses
        found = [losses.cycle > 0, losses.feature > 0, losses.ssim > 0 and losses.ssim_tissue == "whole",
                 losses.ssim > 0 and losses.ssim_tissue == "sum", losses.tversky > 0,
                 *(kind in recipe.data.tumour_types for kind in ("GLI", "MET")),
                 *(view in recipe.data.views for view in ("axial", "sagittal"))]  # fmt: skip
        assert found == marks
        assert len(recipe.data.views) == marks[7] + marks[8]
        assert len(recipe.data.tumour_types) == marks[5] + marks[6]

    def test_losses(self, row):
        losses = load_recipe(row[0]).losses
        for name, weight in WEIGHTS.items():
            assert getattr(losses, name) in (weight, 0), name
        # "Unmentioned losses are always present."
        assert min(losses.l1, losses.adversarial, losses.classification) > 0
        assert losses.enhancing == 0
        assert (losses.tversky_form, losses.pixels) == ("published", "all")

    def test_text(self, row):
        recipe, described = load_recipe(row[0]), SECTION_5_1[row[0]]
        assert (recipe.data.single_missing == 1) == (described.missing == 1)
        assert recipe.data.availability == "sample"
        assert recipe.schedule.precision == described.precision
        slices = recipe.schedule.steps * recipe.schedule.batch_size
        assert slices == pytest.approx(described.epochs * SLICES[recipe.data.views[0]], abs=64)
        assert recipe.network.pretrained == (described.start is not None)
        tenth = 0.1 if described.start else 1.0
        assert recipe.optimizer.learning_rate == pytest.approx(5e-4 * tenth)

    def test_training(self, row):
        """Section 4.2 to 4.5, the same for all runs."""
        recipe = load_recipe(row[0])
        assert recipe.normalization.build().intensities == BRASYN25_INTENSITIES
        assert all(value == 0 for _, value in recipe.augmentation)
        assert (recipe.output.contrast, recipe.output.flip_average) == (0, False)
        assert set(recipe.data.canvas.sizes.values()) == {(240, 240)}
        assert recipe.data.centre == "volume"
        assert (recipe.data.min_brain_pixels, recipe.data.tumour_share) == (2000, 0)
        assert not recipe.data.balance_types
        optimizer, schedule = recipe.optimizer, recipe.schedule
        assert (optimizer.name, optimizer.clip_norm, optimizer.reference_batch) == ("adam", 0.1, 64)
        assert (optimizer.weight_decay, optimizer.ema) == (0, 0)
        assert (schedule.update, schedule.targets_per_batch, schedule.batch_size) == ("sequence", 4, 64)
        assert (recipe.network.discriminator, recipe.network.discriminator_width) == ("published", 32)

    def test_network(self, row):
        """The released shape, with gates as described: public weights fit after `--set network.gate=released`."""
        several = row[0] == "r8"
        recipe = load_recipe(row[0], ["network.gate=released"])
        assert generator_config(recipe) == HfGanConfig.released(view_code=several)
        assert generator_config(load_recipe(row[0])).gate == "channel"


def test_each_run_is_told():
    assert [row[0] for row in ROWS] == list(SECTION_5_1)
    assert all(load_recipe(name).note.startswith(f"published run {name.upper()}") for name in SECTION_5_1)


def test_the_segmenter_has_focal_tversky_alone():
    """Section 4.3.3; the own recipe adds cross-entropy."""
    published, own = load_recipe("published_segmenter"), load_recipe("segmenter")
    assert (published.losses.entropy, published.losses.tversky_form) == (0, "published")
    assert (own.losses.entropy, own.losses.tversky_form) == (1, "tumour")
    for recipe in (published, own):
        assert (recipe.data.tumour_share, recipe.data.min_tumour_share) == (1, 0.001)
        assert recipe.data.views == ("axial", "sagittal", "coronal")
    # What teaches R6 and R7 sees the intensities that they see.
    assert published.normalization == load_recipe("r6").normalization
