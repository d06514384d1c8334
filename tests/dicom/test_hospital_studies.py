"""Studies as scanners and their users name them: headers alone, and what a neuroradiologist would choose."""

from __future__ import annotations

import re

import pytest

from app.core.errors import CaseError
from app.dicom.geometry import SliceHeader
from app.dicom.naming import SeriesHeader
from app.dicom.selection import choose
from app.dicom.series import Series
from app.dicom.timing import Timing

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _series(number, text, technique, echo, repetition, inversion=None, *, thick=5.5, count=24, kind="", **header):
    slices = tuple(SliceHeader(AXIAL, (0.0, 0.0, thick * n), (0.5, 0.5), (256, 256), thick) for n in range(count))
    timing = Timing(tuple(technique.split("/")) if technique else (), echo, repetition, inversion)
    kinds = ("ORIGINAL", "PRIMARY", *filter(None, kind.split("/")))
    return Series(f"1.{number}", "1", "P", number, (), SeriesHeader(text, timing, image_type=kinds, **header), slices)


FINE = {"thick": 1.2, "count": 140}
GD = {"agent": True}


def _mprage(number, text="t1_mprage_sag_p2_iso", **more):
    return _series(number, text, "GR/IR", 2.32, 2300, 900, **FINE, **more)


def _se(number, text="t1_se_tra", **more):
    return _series(number, text, "SE", 9.4, 550, **more)


def _t2(number, text="t2_tse_tra_p2", **more):
    return _series(number, text, "SE", 96, 5400, **more)


def _flair(number, text="t2_tirm_tra_dark-fluid_p2", **more):
    return _series(number, text, "SE/IR", 84, 9000, 2500, **more)


def _tfe(number, text="WIP sT1W_3D_TFE SENSE", **more):
    return _series(number, text, "GR", 3.7, 8.1, **FINE, **more)


def _bravo(number, text="Ax 3D BRAVO +C", **more):
    return _series(number, text, "GR", 3.2, 8.2, 450, **FINE, **more)


EPI = ("EP/SE", 85, 8000)
STUDIES = {
    "Siemens with an agent": (
        [_mprage(2), _t2(3), _flair(4), _mprage(10, **GD)],
        {"t1n": 2, "t2w": 3, "t2f": 4, "t1c": 10},
    ),
    "German": (
        [_mprage(2, "t1_mprage nativ"), _flair(4), _mprage(10, "t1_mprage_sag_KM")],
        {"t1n": 2, "t2f": 4, "t1c": 10},
    ),
    "French": ([_se(2, "T1 sans injection"), _t2(3), _se(9, "T1 avec gado")], {"t1n": 2, "t2w": 3, "t1c": 9}),
    "before and after KM": (
        [_mprage(2, "t1_mprage vor KM"), _t2(3), _mprage(9, "t1_mprage nach KM")],
        {"t1n": 2, "t2w": 3, "t1c": 9},
    ),
    "two T1 of which one may be after contrast": ([_mprage(2), _flair(4), _se(9, "t1_se_tra_KM"), _mprage(10)], None),
    "an agent typed once": ([_mprage(2, **GD), _t2(3, **GD), _flair(4, **GD), _se(9, **GD)], None),
    "SWI": (
        [_se(3), _flair(5), _series(6, "SWIp", "GR", 7.2, 31, **FINE), _tfe(9, **GD)],
        {"t1n": 3, "t2f": 5, "t1c": 9},
    ),
    "vessels": (
        [_series(2, "s3DI_MC_HR", "GR", 3.5, 23, **FINE), _t2(4), _flair(5), _tfe(9, **GD)],
        {"t2w": 4, "t2f": 5, "t1c": 9},
    ),
    "phase contrast": ([_se(3), _series(7, "Ven_3D_PCA", "GR", 5.5, 16, **FINE), _tfe(9, **GD)], {"t1n": 3, "t1c": 9}),
    "balanced": ([_se(2), _t2(3), _series(5, "TrueFISP 3D", "GR", 2.2, 4.5, **FINE)], {"t1n": 2, "t2w": 3}),
    "a map": ([_se(2), _t2(3), _series(5, "T1 MAP", "GR", 1.9, 5.5, **FINE)], {"t1n": 2, "t2w": 3}),
    "diffusion's averages": (
        [_se(3), _t2(4), _series(6, "Average DC", *EPI), _bravo(9, **GD)],
        {"t1n": 3, "t2w": 4, "t1c": 9},
    ),
    "diffusion in Spanish": (
        [_se(3), _flair(5), _series(6, "DIFUSION AX", *EPI), _bravo(9)],
        {"t1n": 3, "t2f": 5, "t1c": 9},
    ),
    "STIR is no FLAIR": (
        [_mprage(2), _t2(3), _series(5, "t2_tirm_cor_p2", "SE/IR", 70, 4200, 220), _mprage(10, **GD)],
        {"t1n": 2, "t2w": 3, "t1c": 10},
    ),
    "double inversion": (
        [_tfe(3), _flair(4), _series(6, "3D_Brain_VIEW_DIR", "IR", 265, 5500, 2550, **FINE), _tfe(9, **GD)],
        {"t1n": 3, "t2f": 4, "t1c": 9},
    ),
    "3D FLAIR named T2": (
        [_mprage(2), _t2(3), _series(4, "t2_spc_ir_sag_p2_iso", "SE/IR", 388, 5000, 1800, **FINE)],
        {"t1n": 2, "t2w": 3, "t2f": 4},
    ),
    "subtraction": (
        [_mprage(2), _mprage(10, "t1_mprage_KM", **GD), _mprage(11, "Subtraktion t1_mprage", kind="SUB", **GD), _t2(3)],
        {"t1n": 2, "t2w": 3, "t1c": 10},
    ),
    "Dixon": (
        [_se(3), _t2(4), _bravo(9, "WATER: Ax T1 +C", **GD), _bravo(10, "OutPhase: Ax T1 +C", kind="OUT_PHASE", **GD)],
        {"t1n": 3, "t2w": 4, "t1c": 9},
    ),
    "a FLAIR after contrast": (
        [_mprage(2), _flair(4), _mprage(9, **GD), _flair(12, "t2_tirm_dark-fluid post KM", **GD)],
        {"t1n": 2, "t2f": 4, "t1c": 9},
    ),
    "T2*": ([_se(2), _t2(3), _flair(4), _series(6, "AX T2* GRE", "GR", 15, 650)], {"t1n": 2, "t2w": 3, "t2f": 4}),
    "fat saturation": ([_se(3), _t2(4), _bravo(9, "AX T1 +C NO FS", **GD)], {"t1n": 3, "t2w": 4, "t1c": 9}),
    "after an operation": ([_mprage(2, "t1_mprage_post-op Tag1"), _t2(3), _flair(4)], {"t1n": 2, "t2w": 3, "t2f": 4}),
    "the spine": (
        [_t2(3), _flair(4), _mprage(9, **GD), _series(12, "t1_tse_sag HWS", "SE", 11, 650, body_part="SPINE")],
        {"t2w": 3, "t2f": 4, "t1c": 9},
    ),
    "a localizer": (
        [_series(1, "Übersicht", "GR", 1.6, 6.1, count=3), _t2(4), _flair(5), _bravo(9)],
        {"t2w": 4, "t2f": 5, "t1c": 9},
    ),
    "scrubbed": (
        [
            _series(1, "", "GR", 3.7, 8.1, **FINE),
            _series(2, "", "SE", 80, 3000),
            _series(5, "", "EP/SE", 85, 7000),
            _series(3, "", "GR", 3.7, 8.1, **FINE, **GD),
        ],
        {"t1n": 1, "t2w": 2, "t1c": 3},
    ),
    "scrubbed, an inversion that is not told": (
        [_tfe(1, ""), _series(2, "", "IR", 125, 11000), _tfe(3, "", **GD)],
        None,
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(name):
    series, expected = STUDIES[name]
    if expected is None:
        with pytest.raises(CaseError, match=re.compile("by --t1n|--ignore")):
            choose(series, {})
        return
    assert {m: s.number for m, s in choose(series, {}).series.items()} == expected
