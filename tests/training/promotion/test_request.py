from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.training.checkpoint import LAST, load_state
from app.training.promotion.request import (
    ExportRequest,
    check_kind,
    check_no_host,
    check_no_images,
    check_no_specialist,
    check_slot,
)
from app.training.tasks.segmentation2d import Segmentation2dRecipe
from app.training.tasks.synthesis_recipe import SynthesisRecipe


@pytest.fixture
def request_of(trained, weights_dir):
    """What is asked for of the run of the fixture `trained`, changed."""
    run = trained / "run"
    wanted = ExportRequest(run, load_state(run / LAST), weights_dir, "mine", trained / "data", run / "cache")
    return lambda **changes: replace(wanted, **changes)


def test_the_output_that_is_asked_for_is_in_the_recipe(request_of):
    assert request_of().recipe_of(SynthesisRecipe).output.contrast != 0.125
    assert request_of(output={"contrast": 0.125}).recipe_of(SynthesisRecipe).output.contrast == 0.125
    with pytest.raises(UsageError, match="contrast"):
        request_of(output={"contrast": 2.0}).recipe_of(SynthesisRecipe)
    with pytest.raises(AssertionError):
        request_of().recipe_of(Segmentation2dRecipe)


def test_a_name_stays_with_its_kind(weights_dir, tmp_path):
    check_kind(tmp_path / "none", "tiny", "segmenter3d")
    check_kind(weights_dir, "new", "segmenter3d")
    with pytest.raises(UsageError, match=r"'tiny' of .* give the segmenter3d another name"):
        check_kind(weights_dir, "tiny", "segmenter3d")


def test_a_part_leaves_no_sequence_to_nobody(request_of, tmp_path):
    check_slot(request_of(), MODALITIES)
    check_slot(request_of(), ("t1c",))
    with pytest.raises(UsageError, match="makes t1c only and cannot be the default"):
        check_slot(request_of(make_default=True), ("t1c",))
    with pytest.raises(UsageError, match="cannot be the default"):
        check_slot(request_of(weights=tmp_path / "none"), ("t1c",))
    with pytest.raises(UsageError, match="a specialist makes some of the four"):
        check_slot(request_of(specialist_of="tiny"), MODALITIES)


@pytest.mark.parametrize(
    ("check", "changes", "reason"),
    [
        (check_no_specialist, {"specialist_of": "tiny"}, "leave out --specialist-of"),
        (check_no_host, {"refines": "tiny"}, "leave out --refines"),
        (check_no_images, {"make_default": True}, "a segmenter makes no images; leave out"),
        (check_no_images, {"output": {"contrast": 0.5}}, "leave out --contrast"),
    ],
)
def test_options_that_are_for_others(request_of, check, changes, reason):
    check(request_of())
    with pytest.raises(UsageError, match=reason):
        check(request_of(**changes))
