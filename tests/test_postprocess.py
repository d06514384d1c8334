from __future__ import annotations

import numpy as np

from app.intensity import Intensity
from app.postprocess import clean
from app.preprocess import restore


def test_background_vote_and_clean_values():
    scores = np.array([1.0, np.nan, np.inf, -50.0, 2.0], dtype=np.float32).reshape(1, 1, 5)
    foreground = np.array([True, True, True, True, False]).reshape(1, 1, 5)
    intensity = Intensity(mean=300.0, std=100.0)
    cleaned = clean(scores, foreground, intensity, background=-1.0)
    np.testing.assert_array_equal(cleaned.ravel(), [1, -3, -3, -3, -1])
    np.testing.assert_array_equal(restore(cleaned, intensity, foreground).ravel(), [400, 0, 0, 0, 0])
