from __future__ import annotations

import json
import shutil

import pytest

from app.registry.identity import Identity, identity_record
from app.registry.manifest import add_file, change_spec, read_manifest


@pytest.fixture
def copy(weights_dir, tmp_path):
    return shutil.copytree(weights_dir, tmp_path / "w")


def _fingerprint(folder, name="tiny"):
    return read_manifest(folder).entry(name).identity.fingerprint


@pytest.mark.parametrize("role", ["torch", "intensity"])
def test_every_file_of_a_model_is_covered(copy, role):
    before = read_manifest(copy).entry("tiny").identity
    form = json.loads((copy / "manifest.json").read_text())
    form["models"]["tiny"]["files"][role]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(form))
    after = read_manifest(copy).entry("tiny").identity
    assert after.fingerprint != before.fingerprint
    assert (after.sha256 == before.sha256) is (role == "intensity")


def test_a_file_that_is_added_makes_another_model(copy):
    before = _fingerprint(copy)
    add_file(read_manifest(copy).entry("tiny"), "onnx", b"a graph")
    assert _fingerprint(copy) != before


@pytest.mark.parametrize("change", [{"contrast": 0.5}, {"views": ("axial",)}])
def test_the_entry_is_covered(copy, change):
    before = _fingerprint(copy)
    change_spec(read_manifest(copy).entry("tiny"), **change)
    assert _fingerprint(copy) != before


def test_other_models_and_what_a_user_may_overrule_are_stated_beside_it(copy):
    before = _fingerprint(copy)
    change_spec(read_manifest(copy).entry("tiny"), specialists={"t2f": "tiny"}, refiner="sharp", refine=True,
                flip_average=True, fusion="median")  # fmt: skip
    assert _fingerprint(copy) == before


def test_the_refiner_counts_for_what_both_make():
    one, two = Identity("a", "1" * 64, "2" * 64), Identity("b", "3" * 64, "4" * 64)
    assert one.refined_by(None) == "2" * 64
    assert len({one.refined_by(None), one.refined_by(two), two.refined_by(one)}) == 3
    assert Identity("candidate", "0" * 64).refined_by(None) == "0" * 64


def test_the_record_names_both_checksums():
    one = Identity("a", "1" * 64, "2" * 64)
    told = {"name": "a", "sha256": "2" * 64, "weights_sha256": "1" * 64}
    assert identity_record(one, {"t1c": one}) == {**told, "specialists": {"t1c": told}}


def test_a_training_is_known_by_its_weights():
    assert Identity("a", "1", "2") == Identity("a", "1", "3")
