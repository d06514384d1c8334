from __future__ import annotations

import subprocess
import sys

import pytest

from app.core.errors import UsageError
from app.training.config import load_recipe
from app.training.recipe_files import BUILT_IN, OLD_NAMES


def test_a_recipe_changes_the_one_that_it_extends(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "r2"\n[schedule]\nsteps = 7\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[losses]\nl1 = 3\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert (recipe.schedule.steps, recipe.losses.l1, recipe.losses.ssim_tissue) == (7, 3.0, "sum")
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


class TestOldNames:
    """Of version 0.1."""

    @pytest.mark.parametrize("key,value", [("data.makes", ["t1c"]),
                                           ("losses.judge", 2.0), ("losses.judge_class", 3.0)])  # fmt: skip
    def test_keys_are_taken_in_files_and_in_changes(self, key, value, tmp_path):
        section, new = OLD_NAMES[key].split(".")
        (tmp_path / "mine.toml").write_text(
            f"extends = 'r1'\n[{section}]\n{key.split('.')[1]} = {value!r}\n[schedule]\ntargets = 1\n"
        )
        for recipe in (
            load_recipe(str(tmp_path / "mine.toml")),
            load_recipe("r1", [f"{key}={value!r}", "schedule.targets=1"]),
        ):
            found = getattr(getattr(recipe, section), new)
            assert found == (tuple(value) if isinstance(value, list) else value)
            assert recipe.schedule.targets_per_batch == 1

    def test_recipes_and_tasks_are_taken(self, tmp_path):
        assert load_recipe("judge") == load_recipe("tumour_segmenter")
        (tmp_path / "mine.toml").write_text("extends = 'judge'\n")
        assert load_recipe(str(tmp_path / "mine.toml")).task == "segmentation3d"
        for old, new in (("segmentation", "segmentation2d"), ("judging", "segmentation3d")):
            (tmp_path / "mine.toml").write_text(f"task = '{old}'\n[schedule]\nsteps = 1\n")
            assert load_recipe(str(tmp_path / "mine.toml")).task == new
            assert load_recipe("segmenter" if "2" in new else "judge", [f"task={old}"]).task == new

    def test_the_new_name_counts_over_an_old_one_that_is_extended(self, tmp_path):
        (tmp_path / "base.toml").write_text("extends = 'r1'\n[data]\nmakes = ['t1c']\n[schedule]\ntargets = 1\n")
        (tmp_path / "mine.toml").write_text("extends = 'base.toml'\n[data]\ntargets = ['t2w']\n")
        assert load_recipe(str(tmp_path / "mine.toml")).data.targets == ("t2w",)


def test_the_list_of_recipes_needs_no_third_party_package():
    code = (
        "import sys; import app.training.recipe_files as r; r.built_in(); "
        "print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
