from __future__ import annotations

from pathlib import Path

import pytest

from app.core import weights_dir
from app.core.config import WEIGHTS_DIR
from app.core.weights_dir import BUILTIN_WEIGHTS, advise_on, builtin_weights, choose_weights

ROOT = Path(__file__).parents[2]


def test_weights_lie_beside_the_package_in_the_repository_and_inside_it_once_installed(tmp_path):
    assert BUILTIN_WEIGHTS == ROOT / "weights"
    # A folder `weights` beside an installed package is somebody else's.
    (tmp_path / "app" / "weights").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    assert builtin_weights(tmp_path / "app") == tmp_path / "app" / "weights"


@pytest.mark.parametrize(
    "environment,expected",
    [({}, Path("ours")), ({"TETRAD_WEIGHTS": ""}, Path("ours")), ({"TETRAD_WEIGHTS": "/w"}, Path("/w")),
     ({"TETRAD_WEIGHTS": "~/w"}, Path.home() / "w")],
)  # fmt: skip
def test_the_environment_comes_first_unless_it_is_empty(environment, expected):
    assert choose_weights(environment, Path("ours")) == expected


def test_advice_names_the_variable_where_it_named_the_folder(monkeypatch, tmp_path):
    assert "TETRAD_WEIGHTS" not in advise_on(WEIGHTS_DIR)
    monkeypatch.setenv("TETRAD_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights_dir, "WEIGHTS_DIR", tmp_path)
    assert "TETRAD_WEIGHTS" in advise_on(tmp_path)
    assert "TETRAD_WEIGHTS" not in advise_on(tmp_path / "another")
