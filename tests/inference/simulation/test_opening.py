from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.errors import UsageError, WeightsError
from app.inference.simulation.atlas import read_atlas
from app.inference.simulation.opening import open_simulator
from app.networks.architectures import CgSamrConfig
from app.registry.manifest import write_entry
from tests.inference.simulation.helpers import save_small, small_atlas


def test_the_only_one_is_opened(tmp_path):
    save_small(tmp_path, "one")
    opened = open_simulator(tmp_path, None, "cpu")
    assert opened.identity.name == "one"
    assert opened.taught_by == set()
    assert opened.simulator.has_confidence
    assert opened.simulator.atlas.frame == small_atlas().frame


def test_models_share_an_atlas(tmp_path):
    one, two = (save_small(tmp_path, name) for name in ("one", "two"))
    assert one.path_of("atlas") == two.path_of("atlas")
    assert one.files["torch"] != two.files["torch"]
    # The file stays as long as anybody has it.
    changed = replace(small_atlas(), subjects=2).to_bytes()
    write_entry(tmp_path, "one", one.spec, {"torch": one.path_of("torch"), "atlas": changed})
    assert read_atlas(two.path_of("atlas")).subjects == 1
    assert open_simulator(tmp_path, "one", "cpu").simulator.atlas.subjects == 2
    write_entry(tmp_path, "two", two.spec, {"torch": two.path_of("torch"), "atlas": changed})
    assert len(list(tmp_path.glob("atlas-*"))) == 1


def test_among_several_one_is_named(tmp_path):
    for name in ("one", "two"):
        save_small(tmp_path, name)
    with pytest.raises(WeightsError, match="one, two; name one with --model"):
        open_simulator(tmp_path, None, "cpu")
    assert open_simulator(tmp_path, "two", "cpu").identity.name == "two"


def test_the_only_paired_one_is_opened(tmp_path):
    unpaired = CgSamrConfig("ucgsamr", width=4, prior="tissue")
    save_small(tmp_path, "first", unpaired)
    assert open_simulator(tmp_path, None, "cpu").identity.name == "first"
    save_small(tmp_path, "second")
    assert open_simulator(tmp_path, None, "cpu").identity.name == "second"
    save_small(tmp_path, "third", unpaired)
    assert open_simulator(tmp_path, None, "cpu").identity.name == "second"


def test_another_kind_is_refused(weights_dir):
    with pytest.raises(WeightsError, match="none; name one"):
        open_simulator(weights_dir, None, "cpu")
    with pytest.raises(WeightsError, match="not a cgsamr"):
        open_simulator(weights_dir, "tiny", "cpu")


def test_a_changed_atlas_is_refused(tmp_path):
    save_small(tmp_path, "one").path_of("atlas").write_bytes(b"else")
    with pytest.raises((WeightsError, UsageError)):
        open_simulator(tmp_path, None, "cpu")
