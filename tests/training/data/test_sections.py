from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.preprocessing.normalization import BRASYN25_INTENSITIES
from app.training.data.sections import (
    AugmentationRecipe,
    MissingData,
    NormalizationRecipe,
    PatchData,
    RecolouringRecipe,
    SliceData,
    check_rules,
)


def test_the_first_rule_that_does_not_hold_is_told():
    check_rules({"one": True})
    with pytest.raises(ValueError, match="two"):
        check_rules({"one": True, "two": False, "three": False})


@pytest.mark.parametrize(
    "kind,values,message",
    [
        (SliceData, {"axial": (100, 112)}, "must be multiples of 16"),
        (SliceData, {"views": ()}, "must name one view or more"),
        (SliceData, {"tumour_share": 1.5}, "is a probability"),
        (PatchData, {"patch": (96, 96, 90)}, "three multiples of 16"),
        (MissingData, {"single_missing": -0.1}, "is a probability"),
        (AugmentationRecipe, {"zoom": 1.0}, "must be below 1"),
        (RecolouringRecipe, {"recolour_t1n": 2.0}, "are probabilities"),
        (NormalizationRecipe, {"percentile": 0.0}, "must be above 0"),
        (NormalizationRecipe, {"scheme": "dataset", "intensities": {"t1n": {"mean": 1.0, "std": 1.0, "clip": 9.0}}},
         "must name all four"),
        (SliceData, {"width": 3}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)


def test_lists_of_a_file_are_taken_for_tuples():
    data = SliceData.model_validate({"views": ["axial"], "axial": [48, 64]})
    assert data.canvas.sizes["axial"] == (48, 64)
    assert data.canvas.centre == "brain"


def test_constants_of_a_training_set_are_the_published_ones_unless_told():
    assert NormalizationRecipe(scheme="dataset").build().intensities == BRASYN25_INTENSITIES
    assert NormalizationRecipe().build().scheme == "volume"
