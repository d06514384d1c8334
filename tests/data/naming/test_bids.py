from __future__ import annotations

import pytest

from app.data.naming.bids import read_bids


@pytest.mark.parametrize("entity", "ce-gd acq-gad acq-post acq-gd acq-ce acq-3dpost acq-T1ce acq-postcontrast".split())
def test_contrast(entity):
    assert read_bids(f"sub-1_{entity}_T1w").sequence == "t1c"


@pytest.mark.parametrize(
    "entity", "acq-space acq-mprage acq-pre acq-precontrast acq-postop ce-none acq-nogad run-1".split()
)
def test_no_contrast(entity):
    assert read_bids(f"sub-1_{entity}_T1w").sequence == "t1n"


def test_subject_session_and_run():
    reading = read_bids("sub-7_ses-2_acq-3d_run-03_FLAIR")
    assert (reading.subject, reading.session, reading.run, reading.sequence) == ("sub-7", "ses-2", "03", "t2f")


@pytest.mark.parametrize("suffix", ["bold", "dwi", "T2starw", "T1map", "dseg", "inplaneT2", "PDw"])
def test_other_suffixes(suffix):
    assert read_bids(f"sub-1_{suffix}").kind == "other"


def test_a_phase_image_is_no_scan():
    assert read_bids("sub-1_part-phase_T1w").kind == "other"


def test_other_names_are_not_bids():
    assert read_bids("P1_T1w") is None
    assert read_bids("sub-1-t1c") is None
