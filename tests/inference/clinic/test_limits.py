from __future__ import annotations

from app.inference.clinic import limits


def test_limits_agree_with_one_another():
    assert limits.WEAKEST_INFORMATION < -limits.WORSE_INFORMATION < 0
    assert 0 < limits.LEAST_GAIN < 1
    assert 0 < limits.BRAIN_ML[0] < limits.BRAIN_ML[1]
    assert all(0.5 < share < 1 for share in (limits.LEAST_COVERAGE, limits.LEAST_DICE, limits.STRIPPED))
