from __future__ import annotations

import pytest

from app.dicom.timing import Timing, none_of_four, weighting_by_timing


@pytest.mark.parametrize(
    "timing,weighting",
    [
        (Timing(("SE",), 10, 450), "t1"),
        (Timing(("GR",), 3.2, 8.9, 900), "t1"),
        (Timing(("GR", "IR"), 2.32, 2300, 900), "t1"),
        (Timing(("GR",), 3.7, 8.1), "t1"),
        (Timing(("SE", "IR"), 10, 2000, 860), "t1"),
        (Timing((), 12, 500), "t1"),
        (Timing((), 30, 600), None),
        (Timing(("SE", "IR"), 394, 6000, 2200), "t2f"),
        (Timing(("IR",), 100, 9000, 2500), "t2f"),
        (Timing(("IR",), 125, 11000), None),
        (Timing(("SE",), 100, 4400), "t2w"),
        (Timing(("SE",), 45, 2500), None),
        (Timing(), None),
    ],
)
def test_weighting(timing, weighting):
    assert weighting_by_timing(timing) == weighting
    assert none_of_four(timing) is None


@pytest.mark.parametrize(
    "timing,why",
    [
        (Timing(("EP", "SE"), 85, 8000), "echo-planar"),
        (Timing(("SE",), 85, 8000, planar=True), "echo-planar"),
        (Timing(("SE", "IR"), 70, 4200, 220), "STIR"),
        (Timing(("GR",), 15, 650), "long echo"),
        (Timing(("GR",), 3.5, 23), "vessels"),
        (Timing(("GR",), 2.2, 4.5), "balanced"),
    ],
)
def test_none_of_the_four(timing, why):
    assert why in none_of_four(timing)
    assert weighting_by_timing(timing) in (None, "t1")


def test_a_short_gradient_echo_that_is_called_t1_is_one():
    assert none_of_four(Timing(("GR",), 4.6, 25), is_called_t1=True) is None
    assert "long echo" in none_of_four(Timing(("GR",), 15, 650), is_called_t1=True)
