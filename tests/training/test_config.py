from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from app.core.errors import UsageError
from app.training.config import load_recipe, recipe_from_json
from app.training.recipe_files import BUILT_IN, built_in


@pytest.mark.parametrize("name", sorted(p.stem for p in BUILT_IN.glob("*.toml")))
def test_built_in_recipes_load_and_come_back_from_json(name: str):
    recipe = load_recipe(name)
    assert recipe.note
    assert recipe_from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert name in built_in()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[losses]\nl3 = 1.0", "unknown key 'losses.l3'; did you mean 'losses.l1'"),
        ("[optimiser]\nname = 'adam'", "did you mean 'optimizer'"),
        ("[data]\nlearning_rate = 1.0", "did you mean 'optimizer.learning_rate'"),
        ("xyzzy = 1", "unknown key 'xyzzy'; the nearest is '"),
        ("extends = 'r1'\n[note]\nx = 1", "note = {'x': 1} is not a text"),
        ("[optimizer]\nlearning_rate = inf", "is not a finite number"),
        ("[network]\npreset = 'huge'", "network.preset = 'huge'; use one of compact, half, full"),
        ("[schedule]\nsteps = 1.5", "schedule.steps = 1.5 is not a whole number"),
        ("[schedule]\nsteps = true", "not a whole number"),
        ("[schedule]\nsteps = 0", "steps or schedule.budget_minutes must be above 0"),
        ("[data]\naxial = [100, 96]", "multiples of 16"),
        ("[data]\naxial = [96]", "is not a list of 2"),
        ("[data]\ntargets = 't2w'", "data.targets = 't2w' is no list; write it as ['t2w']"),
        ("[data]\nviews = ['oblique']", "data.views = 'oblique'"),
        ("[losses]\nl1 = -1.0", "no loss may be negative"),
        ("[network]\nkind = 'unet'", "losses.feature needs"),
        ("losses = 3", "'losses' is a section"),
        ("seed = -1", "must not be negative"),
        (f"seed = {2**63 - 1}0", "seed must be below 2**63"),
        ("[augmentation]\nshift = -3", "no augmentation must be negative"),
        ("[augmentation]\nzoom = 1.0", "zoom and bias must be below 1"),
        ("[augmentation]\ntransplant = 0.5", "unknown key 'augmentation.transplant'"),
        ("[augmentation]\nfade = 1.5", "fade is a probability"),
        (
            "extends = 'segmenter'\n[augmentation]\nfade = 0.5",
            "unknown key 'augmentation.fade'; it is for the task synthesis",
        ),
        ("[augmentation]\nrecolour_t1n = 1.5", "recolour_t2f are probabilities"),
        ("extends = 'segmenter'\n[augmentation]\nrecolour_t2f = 0.5", "it is for the tasks enhancement and synthesis"),
        ("extends = 'enhancer'\n[data]\npatch = [96, 96, 80]", "must be three multiples of 32"),
        ("[data]\ntargets = ['t1']", "data.targets = 't1'; use one of t1c, t1n, t2f, t2w"),
        (
            "extends = 'segmenter'\n[data]\ntargets = ['t1c']",
            "'data.targets'; it is for the tasks ds3net and synthesis and tissnet",
        ),
        (
            "extends = 'segmenter'\n[losses]\nadversarial = 0.0",
            "'losses.adversarial'; it is for the tasks cgsamr and ds3net and synthesis and tissnet and ucgsamr",
        ),
        (
            "extends = 'enhancer'\n[network]\npreset = 'full'",
            "'network'; it is for the tasks segmentation3d and synthesis",
        ),
        (
            "task = 'sorting'",
            "task = 'sorting'; use one of cgsamr, ds3net, enhancement, refinement, segmentation2d, segmentation3d",
        ),
        ("task = 3", "task = 3; use one of"),
        ("[data]\ntargets = []", "targets must name one sequence or more"),
        ("[data]\ntargets = ['t1c', 't1c']", "each once"),
        ("[data]\ntargets = ['t1c', 't2w']", "targets_per_batch must be 1 to 4, and no more than data.targets names"),
        ("[network]\nkind = 'unet'\nwidths = [32]", "widths must be 2 to 5 multiples of 8"),
        ("[network]\nkind = 'unet'\nwidths = [32, 60]", "widths must be 2 to 5 multiples of 8"),
        ("[network]\nwidths = [32, 64]", "the hybrid generator has network.preset"),
        ("[optimizer]\nbeta1 = 1.5", "beta1 and beta2"),
        ("[data]\naxial = [16, 16]", "discriminator needs a canvas"),
        ("task =", "no TOML"),
        ("extends = 'nothing'", "recipe nothing cannot be read; give a .toml file or one of"),
        ("extends = 'segmentr'", "recipe segmentr cannot be read; did you mean 'segmenter'? Give"),
    ],
)
def test_what_cannot_be_is_named(text: str, message: str, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text if "steps" in text else f"{text}\n" + ("" if "=" not in text else "[schedule]\nsteps = 1\n"))
    with pytest.raises(UsageError) as error:
        load_recipe(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_has_only_the_keys_that_it_uses():
    segmenter, generator = load_recipe("segmenter").to_json(), load_recipe("r1").to_json()
    assert set(segmenter["losses"]) == {"segmentation", "tversky_form", "entropy"}
    assert "network" not in segmenter
    assert "targets_per_batch" not in segmenter["schedule"]
    assert not {"segmentation", "entropy", "dice"} & set(generator["losses"])
    assert "patch" not in generator["data"]


def test_records_hold_what_differs_from_the_defaults():
    recipe = load_recipe("plain")
    changes = recipe.changes()
    assert changes["network"] == {"kind": "unet"}
    assert changes["data"] == {"views": ["axial"], "axial": [160, 176]}
    assert recipe_from_json({"task": recipe.task, **changes}) == recipe


def test_a_recipe_cannot_be_changed():
    recipe = load_recipe("r1")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.losses.l1 = 3.0
