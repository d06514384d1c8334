from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.preprocessing.normalization import (
    BRASYN25_INTENSITIES,
    Intensity,
    Normalization,
    denormalize,
    measure,
    normalize,
)

VOLUME = Normalization("volume", background=-1.0)
RANGE = Normalization("range", background=-1.0)
DATASET = Normalization("dataset", background=-1.0, intensities=BRASYN25_INTENSITIES)


def _volume(seed: int, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    volume = random.gamma(4, 100 * scale, (20, 20, 20)).astype(np.float32)
    volume[random.random(volume.shape) < 0.6] = 0
    return volume


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 1000), scheme=st.sampled_from([VOLUME, DATASET, RANGE]))
def test_denormalize_is_the_inverse_up_to_the_clip(seed, scale, scheme):
    volume = _volume(seed, scale)
    intensity = measure(volume, "t1c", scheme)
    normalized = normalize(volume, intensity, scheme.background)
    back = denormalize(normalized, intensity, volume > 0)
    np.testing.assert_allclose(back, np.minimum(volume, intensity.clip), rtol=1e-4, atol=1e-4 * intensity.std)
    assert (back[volume == 0] == 0).all()


def test_volume_scheme_gives_brain_mean_0_deviation_1():
    volume = _volume(1)
    normalized = normalize(volume, measure(volume, "t2w", VOLUME), VOLUME.background)
    brain = normalized[volume > 0]
    assert abs(brain.mean()) < 1e-4
    assert abs(brain.std() - 1) < 1e-4
    assert (normalized[volume == 0] == -1).all()


def test_range_scheme_brings_zero_to_minus_one_and_the_clip_to_one():
    # Section 2.1 of the BraSyn 2024 winner, by hand: of 0, 10 and 40, with a clip at the maximum.
    volume = np.array([0.0, 10.0, 40.0], dtype=np.float32).reshape(1, 1, 3)
    scheme = Normalization("range", background=-1.0, percentile=100.0)
    normalized = normalize(volume, measure(volume, "t1c", scheme), -1.0)
    np.testing.assert_allclose(normalized.flatten(), [-1.0, -0.5, 1.0], atol=1e-6)
    assert measure(_volume(2), "t2w", RANGE).clip == measure(_volume(2), "t2w", VOLUME).clip


def test_clip_is_at_the_percentile_of_non_zero_voxels():
    volume = _volume(2)
    assert measure(volume, "t2w", VOLUME).clip == pytest.approx(np.percentile(volume[volume > 0], 99.5))


def test_dataset_scheme_is_the_released_one():
    volume = np.array([0.0, 100.0, 9000.0], dtype=np.float32).reshape(1, 1, 3)
    normalized = normalize(volume, measure(volume, "t1c", DATASET), -1.0)
    expected = [-1.0, (100 - 1066.3375) / 1301.7006, (8664 - 1066.3375) / 1301.7006]
    np.testing.assert_allclose(normalized.ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("scheme", [VOLUME, DATASET])
def test_the_manifest_form_is_a_round_trip(scheme):
    form = TypeAdapter(Normalization)
    assert form.validate_json(form.dump_json(scheme)) == scheme
    assert json.loads(json.dumps(scheme.to_json()))["scheme"] == scheme.scheme


def test_unknown_scheme_is_refused():
    with pytest.raises(ValidationError, match="scheme"):
        TypeAdapter(Normalization).validate_python({"scheme": "histogram"})
    with pytest.raises(ValueError, match="all four"):
        Normalization("dataset", intensities={"t1c": Intensity(1.0, 1.0)})


def test_two_valued_volume_has_a_deviation():
    volume = np.zeros((10, 10, 10), dtype=np.float32)
    volume[2:8] = 100
    assert math.isfinite(float(normalize(volume, measure(volume, "t1n", VOLUME), -1.0).max()))
