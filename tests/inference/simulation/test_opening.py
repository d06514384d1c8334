from __future__ import annotations

import pytest

from app.core.errors import UsageError, WeightsError
from app.inference.simulation.opening import open_simulator
from tests.inference.simulation.helpers import save_small, small_atlas


def test_the_only_one_is_opened(tmp_path):
    save_small(tmp_path, "one")
    opened = open_simulator(tmp_path, None, "cpu")
    assert opened.identity.name == "one"
    assert opened.taught_by == set()
    assert opened.simulator.has_confidence
    assert opened.simulator.atlas.frame == small_atlas().frame
    assert (tmp_path / "one-atlas.safetensors").is_file()


def test_among_several_one_is_named(tmp_path):
    for name in ("one", "two"):
        save_small(tmp_path, name)
    with pytest.raises(WeightsError, match="one, two; name one with --model"):
        open_simulator(tmp_path, None, "cpu")
    assert open_simulator(tmp_path, "two", "cpu").identity.name == "two"


def test_another_kind_is_refused(weights_dir):
    with pytest.raises(WeightsError, match="none; name one"):
        open_simulator(weights_dir, None, "cpu")
    with pytest.raises(WeightsError, match="not a cgsamr"):
        open_simulator(weights_dir, "tiny", "cpu")


def test_a_changed_atlas_is_refused(tmp_path):
    save_small(tmp_path, "one")
    (tmp_path / "one-atlas.safetensors").write_bytes(b"else")
    with pytest.raises((WeightsError, UsageError)):
        open_simulator(tmp_path, None, "cpu")
