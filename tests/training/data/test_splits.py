from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from app.core.errors import UsageError
from app.data.phantom import make_phantom, write_phantom
from app.registry.manifest import read_manifest
from app.training.data.cache import build_cache
from app.training.data.splits import split
from app.training.export import export_run
from app.training.trainer import TrainingPaths, train
from tests.training.helpers import quick


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


class TestSplit:
    def test_a_patient_is_on_one_side_only(self):
        exams = [SimpleNamespace(name=f"BraTS-GLI-{p:05d}-{t:03d}") for p in range(6) for t in range(2)]
        training, kept = split(exams, 2, seed=0)
        assert not {s.name[:15] for s in training} & {n[:15] for n in kept}
        assert len(training) + len(kept) == 12
        assert len(kept) % 2 == 0

    def test_held_out_subjects_are_the_seeds_and_never_trained_on(self, training_data, training_cache):
        subjects = build_cache(training_data, training_cache)
        training, kept = split(subjects, 1, seed=3)
        assert {s.name for s in training} | set(kept) == {"s0", "s1", "s2"}
        assert not {s.name for s in training} & set(kept)
        assert split(subjects, 1, seed=3)[1] == kept
        with pytest.raises(UsageError, match="fewer than two"):
            split(subjects, 2, seed=3)


class TestValidation:
    """Subjects that a run validates on."""

    def test_subjects_trained_on_do_not_validate(self, paths):
        recipe = quick("schedule.steps=1", "schedule.validate_every=1")
        with pytest.raises(UsageError, match="is trained on"):
            train(recipe, replace(paths, validation=paths.data))

    def test_a_folder_to_validate_on_is_looked_at_before_the_first_step(self, paths, tmp_path, caplog):
        recipe = quick("schedule.steps=1", "schedule.validate_every=1")
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "lacking", "x", leave_out=("t1c",))
        for folder, message in ((tmp_path / "nope", "does not exist"), (tmp_path / "lacking", "no complete subject")):
            with pytest.raises(UsageError, match=message):
                train(recipe, replace(paths, validation=folder))
            assert not paths.run.exists()
        train(recipe, paths)
        assert "the run is not validated" in caplog.text

    def test_who_asks_for_validation_gets_it_at_the_end(self, paths, tmp_path):
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "b")
        recipe = quick("schedule.steps=1", "schedule.validate_every=0")
        with pytest.raises(UsageError, match="nope does not exist"):
            train(recipe, replace(paths, validation=tmp_path / "nope"))
        state = train(recipe, replace(paths, validation=tmp_path / "unseen")).state
        assert state.validated == ["b"]
        assert (paths.run / "best.pt").exists()

    def test_what_the_start_has_seen_is_not_validated_on(self, paths, tmp_path, monkeypatch):
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        recipe = quick("schedule.steps=1", "data.held_out=1")
        held_out = train(recipe, paths).state.held_out[0]
        weights = tmp_path / "w"
        export_run(paths.run, weights, "m", data=paths.data, cache=paths.cache, force=True)
        entry = read_manifest(weights).entry("m")
        again = replace(paths, run=tmp_path / "again")
        assert train(recipe, again, start=entry).state.validated == [held_out]
        other = next(s for s in range(1, 20) if split(build_cache(paths.data, paths.cache), 1, s)[1] != [held_out])
        with pytest.raises(UsageError, match="taught the model that the run starts from"):
            train(quick("schedule.steps=1", "data.held_out=1", f"seed={other}"), replace(paths, run=tmp_path / "c"),
                  start=entry)  # fmt: skip

    def test_incomplete_subjects_do_not_take_the_places_of_others(self, paths, tmp_path):
        write_phantom(make_phantom((40, 44, 36), 8), tmp_path / "unseen", "a", leave_out=("t1c",))
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "b")
        recipe = quick("schedule.steps=1", "schedule.validate_every=1", "schedule.validation_subjects=1")
        validated = replace(paths, validation=tmp_path / "unseen")
        assert train(recipe, validated).state.validated == ["b"]
        with pytest.raises(UsageError, match=r"was validated on other subjects \(b\)"):
            train(recipe, paths, resume=True)
        longer = quick("schedule.steps=2", "schedule.validate_every=1", "schedule.validation_subjects=1")
        assert train(longer, validated, resume=True).state.step == 2
