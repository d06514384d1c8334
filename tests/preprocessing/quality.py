"""A model of expected quality, for tests."""

from __future__ import annotations

import json
from typing import Any

from app.core.constants import MODALITIES
from app.preprocessing.expected_quality import FEATURES, LinearEstimate, QualityModel

#: `step` of any sequence that is not constant is above this.
STRANGE = {"t1n step": (-2.0, -1.0)}


def quality_model(expected: float = 0.7, **changes: Any) -> QualityModel:
    """One that expects the same of each exam."""
    slopes = dict.fromkeys(FEATURES, 0.0)
    parts: dict[str, Any] = {
        "exams": 32,
        "ranges": {},
        "centres": dict.fromkeys(FEATURES, 0.0),
        "deviations": dict.fromkeys(FEATURES, 1.0),
        "ssim": LinearEstimate(dict.fromkeys(MODALITIES, expected), slopes, 0.1, 0.05),
        "psnr": LinearEstimate(dict.fromkeys(MODALITIES, 20.0), slopes, 2.0, 3.0),
    }
    return QualityModel(**{**parts, **changes})


def quality_file(expected: float = 0.7, **changes: Any) -> bytes:
    """The same as the content of its file."""
    return json.dumps(quality_model(expected, **changes).to_json()).encode()
