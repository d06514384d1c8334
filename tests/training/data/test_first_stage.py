from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.loading import load_complete
from app.inference.pipeline import predict, prepare
from app.inference.synthesizer import Synthesizer
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.registry.manifest import read_manifest
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.first_stage import StageOne
from tests.training.helpers import replaced_weights


class TestStageOne:
    def test_it_is_the_pipelines_prediction_on_the_cache_s_box(self, training_data, stage_one_cache, first):
        subjects = {s.name: s for s in build_cache(training_data, stage_one_cache)}
        stage_one = StageOne(first, "cpu")
        name, volumes = next(load_complete(scan(training_data).cases))
        kept = stage_one(subjects[name])
        assert kept.dtype == np.float16
        assert kept.shape == subjects[name].normalized.shape
        model = Synthesizer("tiny", weights=first.folder, device="cpu").model
        inputs = {m: v for m, v in volumes.items() if m != "t2f"}
        made = predict(prepare(inputs, model), "t2f", model)
        made = made.volume[bounding_box(vote_foreground({m: v.data for m, v in volumes.items()}))]
        brain = subjects[name].brain
        np.testing.assert_allclose(kept[MODALITIES.index("t2f")][brain], made[brain], atol=5e-3)
        assert (kept[:, ~brain] == -1).all()
        assert kept[:, brain].std() > 0

    def test_what_is_there_is_not_made_again(
        self, training_data, stage_one_cache, first, monkeypatch, caplog, tmp_path
    ):
        shutil.copytree(stage_one_cache, tmp_path / "cache")
        subjects = build_cache(training_data, tmp_path / "cache")
        stage_one, made = StageOne(first, "cpu"), []
        stage_one.path_of(subjects[1]).unlink()
        original = StageOne._volumes
        monkeypatch.setattr(
            StageOne, "_volumes", lambda self, v, subject: made.append(subject.name) or original(self, v, subject)
        )
        with caplog.at_level("INFO"):
            stage_one.make(training_data, subjects)
        assert made == [subjects[1].name]
        assert f"{subjects[1].name}: first stage made, 1 of 1" in caplog.text
        made.clear()
        stage_one.make(training_data, subjects)
        assert made == []

    def test_another_model_has_files_of_its_own(self, training_data, stage_one_cache, first):
        (subject, *_) = build_cache(training_data, stage_one_cache)
        other = replaced_weights(first)
        turned = replace(first, spec=first.spec.model_copy(update={"flip_average": True}))
        joined = replace(first, spec=first.spec.model_copy(update={"fusion": "median"}))
        assert len({StageOne(entry, "cpu").path_of(subject) for entry in (first, other, turned, joined)}) == 4

    def test_only_a_generator_of_the_same_scores_will_do(self, first):
        manifest, other = read_manifest(first.folder), replace(NORMALIZATION, background=-3.0)
        with pytest.raises(UsageError, match="'regression' is no generator"):
            StageOne(manifest.entry("regression"), "cpu")
        with pytest.raises(UsageError, match="--stage-one"):
            StageOne(replace(first, spec=first.spec.model_copy(update={"normalization": other})), "cpu")
