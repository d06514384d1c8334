from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from app.core.errors import CaseError
from app.inference.clinic import brain as brain_module
from app.inference.clinic.brain import brain_ml, brain_of, check_brain, is_cut, partial_views

SHAPE = (120, 130, 100)


def _ball(radius, centre=(60, 65, 50)):
    axes = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2


def _exam(*names, seen=None):
    return SimpleNamespace(
        volumes={m: np.ones(SHAPE, np.float32) for m in names},
        seen={m: np.ones(SHAPE, bool) if seen is None else seen for m in names},
    )


def _scans(*names, stripped=False):
    return {m: SimpleNamespace(path=f"{m}.nii.gz", is_stripped=stripped) for m in names}


def test_sizes():
    brain = _ball(60) & _ball(60)
    assert brain_ml(brain) == pytest.approx(brain.sum() / 1000)
    check_brain(_exam("t1n"), _ball(62))
    with pytest.raises(CaseError, match=r"brain found has 1\d\d ml"):
        check_brain(_exam("t1n"), _ball(30))


def test_a_slab_shows_too_little_of_the_brain():
    seen = np.ones(SHAPE, bool)
    seen[..., 60:] = False
    with pytest.raises(CaseError, match=r"t2w shows \d\d % of the brain, 90 %"):
        check_brain(_exam("t2w", seen=seen), _ball(62))


def test_the_brain_is_looked_for_in_t1_first_and_checked_in_the_others(monkeypatch):
    found = iter([_ball(60), _ball(58), _ball(61)])
    monkeypatch.setattr(brain_module, "find_brain", lambda volume: next(found))
    brain = brain_of(_exam("t1c", "t2w", "t1n"), _scans("t1c", "t2w", "t1n"), None)
    np.testing.assert_array_equal(brain.mask, _ball(60))
    assert brain.how == "deepbet on t1n"
    assert brain.agreement == pytest.approx({"t1c": 0.95, "t2w": 0.975}, abs=0.02)


def test_masks_that_disagree_are_refused(monkeypatch):
    found = iter([_ball(60), _ball(60, (60, 50, 40))])
    monkeypatch.setattr(brain_module, "find_brain", lambda volume: next(found))
    with pytest.raises(CaseError, match=r"agree to 0\.\d\d only"):
        brain_of(_exam("t1n", "t2w"), _scans("t1n", "t2w"), None)


def test_a_head_without_a_brain_is_said(monkeypatch):
    def nothing(volume):
        raise ValueError("no brain is found in it")

    monkeypatch.setattr(brain_module, "find_brain", nothing)
    with pytest.raises(CaseError, match=r"t1n\.nii\.gz: no brain is found in it; give a mask"):
        brain_of(_exam("t1n", "t2w"), _scans("t1n", "t2w"), None)


def test_stripped_inputs_are_left_as_they_are():
    exam = _exam("t1n", "t2w", "t2f")
    for number, volume in enumerate(exam.volumes.values()):
        volume[~_ball(60 - number)] = 0
    brain = brain_of(exam, _scans("t1n", "t2w", "t2f", stripped=True), None)
    np.testing.assert_array_equal(brain.mask, _ball(59))
    assert brain.how == "stripped inputs"


def test_the_brain_is_found_in_the_sequence_that_shows_most(monkeypatch):
    slab = np.ones(SHAPE, bool)
    slab[..., 70:] = False
    exam = _exam("t1n", "t2w")
    exam.seen["t1n"] = slab
    found = iter([_ball(60) & slab, _ball(60)])
    monkeypatch.setattr(brain_module, "find_brain", lambda volume: next(found))
    brain = brain_of(exam, _scans("t1n", "t2w"), None)
    assert brain.how == "deepbet on t2w"
    assert brain.agreement["t1n"] == 1
    with pytest.raises(CaseError, match=r"t1n shows \d\d % of the brain"):
        check_brain(exam, brain.mask)


def test_a_brain_that_ends_with_its_grid_is_cut():
    assert not is_cut(_ball(48, (60, 65, 50)))
    assert is_cut(_ball(48, (60, 65, 70)))
    assert is_cut(_ball(60, (50, 65, 50)))
    stem = _ball(45, (60, 65, 50))
    stem[55:65, 60:70, :50] = True
    assert not is_cut(stem)


def test_what_a_sequence_does_not_show_is_said():
    seen = np.ones(SHAPE, bool)
    seen[..., 85:] = False
    exam = _exam("t1n", "t2w")
    exam.seen["t2w"] = seen
    (note,) = partial_views(exam, _ball(48))
    assert note.startswith("t2w shows 9")
    assert not partial_views(_exam("t1n", "t2w"), _ball(48))
