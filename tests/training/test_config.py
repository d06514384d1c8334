from __future__ import annotations

import json

import pytest

from app.core.errors import UsageError
from app.networks.architectures import UNetConfig
from app.training.config import BUILT_IN, Recipe, built_in, load_recipe
from app.training.tasks.synthesis import generator_config


@pytest.mark.parametrize("name", sorted(p.stem for p in BUILT_IN.glob("*.toml")))
def test_built_in_recipes_load_and_come_back_from_json(name: str):
    recipe = load_recipe(name)
    assert recipe.note
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert name in built_in()


def test_published_runs_differ_as_their_names_say():
    r1, r2, r5, r6, r8 = (load_recipe(n) for n in ("r1", "r2", "r5", "r6", "r8"))
    assert (r1.losses.ssim_tissue, r2.losses.ssim_tissue) == ("whole", "dual")
    assert (r1.losses.tversky, r6.losses.tversky) == (0, 5)
    assert (r2.losses.cycle, r5.losses.cycle) == (1, 0)
    assert (r6.data.views, r8.data.views) == (("sagittal",), ("axial", "sagittal", "coronal"))
    for recipe in (r1, r2, r5, r6, r8):
        assert (recipe.network.kind, recipe.network.preset) == ("hybrid", "full")
        assert (recipe.data.min_brain_pixels, recipe.schedule.targets) == (2000, 4)
        losses, optimizer = recipe.losses, recipe.optimizer
        assert (losses.l1, losses.ssim, losses.feature) == (10, 5, 1)
        assert (losses.adversarial, losses.classification, losses.dice, losses.enhancing) == (0.25, 0.25, 0, 0)
        assert (optimizer.name, optimizer.learning_rate, optimizer.clip_norm) == ("adam", 5e-4, 0.1)
        assert (recipe.schedule.batch_size, optimizer.ema) == (64, 0.999)
    segmenter = load_recipe("segmenter").data
    assert (segmenter.tumour_share, segmenter.min_tumour_share) == (1, 0.001)


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
        ("[data]\nmakes = 't2w'", "data.makes = 't2w' is no list; write it as ['t2w']"),
        ("[data]\nviews = ['oblique']", "data.views = 'oblique'"),
        ("[losses]\nl1 = -1.0", "no loss may be negative"),
        ("[network]\nkind = 'unet'", "losses.feature needs"),
        ("losses = 3", "'losses' is a section"),
        ("seed = -1", "must not be negative"),
        (f"seed = {2**63 - 1}0", "seed must be below 2**63"),
        ("[augmentation]\nshift = -3", "must not be negative"),
        ("[augmentation]\nzoom = 1.0", "zoom and bias must be below 1"),
        ("[augmentation]\ntransplant = 1.5", "transplant is a probability"),
        ("[augmentation]\nhidden = 0.5", "set augmentation.transplant"),
        ("extends = 'judge'\n[augmentation]\ntransplant = 0.5", "not for the tasks that see volumes"),
        ("[augmentation]\nfade = 1.5", "fade is a probability"),
        ("extends = 'segmenter'\n[augmentation]\nfade = 0.5", "slices of the task synthesis"),
        ("[augmentation]\npoor = 1.5", "poor is a probability"),
        ("extends = 'segmenter'\n[augmentation]\npoor = 0.5", "slices of the task synthesis"),
        ("[augmentation]\nrecolour_t1n = 1.5", "recolour_t2f are probabilities"),
        ("extends = 'segmenter'\n[augmentation]\nrecolour_t2f = 0.5", "for the tasks synthesis and enhancement"),
        ("extends = 'enhancer'\n[data]\npatch = [96, 96, 80]", "must be three multiples of 32"),
        ("[data]\nmakes = ['t1']", "data.makes = 't1'; use one of t1c, t1n, t2f, t2w"),
        ("extends = 'segmenter'\n[data]\nmakes = ['t1c']", "data.makes is for the task synthesis"),
        ("[data]\nmakes = []", "makes must name one sequence or more"),
        ("[data]\nmakes = ['t1c', 't1c']", "each once"),
        ("[data]\nmakes = ['t1c', 't2w']", "targets must be 1 to 4, and no more than data.makes names"),
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


def test_a_recipe_changes_the_one_that_it_extends(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "r2"\n[schedule]\nsteps = 7\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[losses]\nl1 = 3\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert (recipe.schedule.steps, recipe.losses.l1, recipe.losses.ssim_tissue) == (7, 3.0, "dual")
    (tmp_path / "base.toml").write_text('extends = "mine.toml"\n')
    with pytest.raises(UsageError, match="extends itself"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_a_folder_of_a_recipes_name_is_not_in_its_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r8").mkdir()
    assert load_recipe("r8") == load_recipe(str(BUILT_IN / "r8.toml"))


def test_changes_on_the_command_line():
    recipe = load_recipe("r1", ["network.preset=half", "data.views=['axial']", "losses.l1=1", "schedule.steps=9"])
    assert recipe.network.preset == "half"
    assert recipe.data.views == ("axial",)
    assert (recipe.losses.l1, recipe.schedule.steps) == (1.0, 9)
    with pytest.raises(UsageError, match="'tversky' is a value"):
        load_recipe("r1", ["losses.tversky=1", "losses.tversky.x=1"])
    with pytest.raises(UsageError, match="not of the form"):
        load_recipe("r1", ["losses.l1"])
    with pytest.raises(UsageError, match=r"did you mean 'losses\.ssim'"):
        load_recipe("r1", ["losses.sim=1"])


def test_a_u_net_has_its_usual_widths_unless_others_are_asked_for():
    assert generator_config(load_recipe("unet")) == UNetConfig()
    assert generator_config(load_recipe("unet", ["network.widths=[64,128]"])) == UNetConfig(widths=(64, 128))
