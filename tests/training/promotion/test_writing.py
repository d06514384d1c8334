from __future__ import annotations

import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import VolumeScores
from app.registry.manifest import read_manifest
from app.training.checkpoint import LAST, load_state
from app.training.promotion.request import ExportRequest
from app.training.promotion.writing import promote_scored, trained_subjects
from app.training.tasks.synthesis_recipe import SynthesisRecipe, generator_config, generator_spec
from tests.networks.small_models import scores_of


def _request(trained, weights, **changes):
    run = trained / "run"
    return ExportRequest(run, load_state(run / LAST), weights, "mine", trained / "data", run / "cache", **changes)


def test_the_subjects_are_those_of_the_run(trained, tmp_path):
    assert [s.name for s in trained_subjects(_request(trained, tmp_path))] == ["phantom-0", "phantom-1"]
    for seed in (0, 2):
        write_phantom(make_phantom((40, 44, 36), seed), tmp_path / "less", f"phantom-{seed}")
    request = _request(trained, tmp_path)
    less = ExportRequest(request.run, request.state, tmp_path, "mine", tmp_path / "less", tmp_path / "cache")
    with pytest.raises(UsageError, match=r"less lacks phantom-1, which .* was trained on"):
        trained_subjects(less)


def test_a_score_keeps_out_what_is_worse(trained, tmp_path):
    weights = tmp_path / "w"

    def promote(score: float, subject: str = "phantom-7", **changes: bool) -> None:
        request = _request(trained, weights, **changes)
        rows = [VolumeScores(subject, m, {"ssim_brain": score}) for m in MODALITIES]
        recipe = request.recipe_of(SynthesisRecipe)
        promote_scored(request, generator_spec(recipe, generator_config(recipe), None), rows, ("ssim_brain",))

    promote(0.6)
    assert scores_of(weights, "mine").mean == {"ssim_brain": 0.6}
    with pytest.raises(UsageError, match="is worse than 'mine'"):
        promote(0.5)
    with pytest.raises(UsageError, match="no scores on these subjects"):
        promote(0.7, "phantom-8")
    assert scores_of(weights, "mine").mean == {"ssim_brain": 0.6}
    promote(0.5, force=True)
    promote(0.7)
    assert scores_of(weights, "mine").mean == {"ssim_brain": 0.7}
    assert list(read_manifest(weights).entries) == ["mine"]
