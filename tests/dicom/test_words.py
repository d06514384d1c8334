from __future__ import annotations

import pytest

from app.dicom.words import is_agent, is_unsure, no_sequence, says_contrast, says_native, weighting_by_words


@pytest.mark.parametrize(
    "text,weighting",
    [
        ("AX T1 FLAIR", "t1"),
        ("sT2W/FLAIR", "t2f"),
        ("T2 darkfluid", "t2f"),
        ("t2_spc_da-fl_sag_p2_iso", "t2f"),
        ("WIP 3D BrainVIEW FLAIR", "t2f"),
        ("MPRAGE", "t1"),
        ("Sag 3D BRAVO", "t1"),
        ("sT1W_3D_TFE", "t1"),
        ("Ax T1 +C", "t1"),
        ("sT2/TSE/T", "t2w"),
        ("AX T2 PROPELLER", "t2w"),
        ("ax t2*", None),
        ("t2_tirm_cor_p2", "t2w"),
        ("AX BRAIN", None),
        ("t1_t2", None),
    ],
)
def test_weighting(text, weighting):
    assert weighting_by_words([text]) == weighting


def test_names_that_contradict_each_other_say_nothing():
    assert weighting_by_words(["T1", "T2"]) is None


@pytest.mark.parametrize(
    "text",
    ["Ax T1 +C", "T1W C+", "3D T1 GADO", "T1 avec gado", "with Gadolinium", "GADOVIST", "T1 POSTCONTRAST", "contraste",
     "con mdc", "T1 inj", "IV+", "POS GADOLINIO", "cT1", "t1_mprage_sag_KM", "AX T1 POST", "T1 SE POST W/O FS",
     "AX T1 +C NO FS", "T1 MPRAGE KM ohne FS", "T1 POST NO MT", "PRE-OP NAVI T1 +C", "t1_mprage_sag KM nach Perfusion",
     "T1W_3D_TFE_C", "T1CE", "MPRAGEpost", "T1wPost", "T1FSGd", "SE T1 cmdc", "T1 AX +K", "AX T1 FS +", "ceT1w",
     "AX T1 POST OPTIMARK", "T1 po kontraście", "T1 с контрастом", "T1 CE(+)", "T1 m.d.c."],
)  # fmt: skip
def test_contrast(text):
    assert says_contrast(text)
    assert not says_native(text)


@pytest.mark.parametrize(
    "text",
    ["T1 pre", "T1 pre contrast", "T1 without contrast", "T1 w/o Gd", "T1 nativ", "T1 NATIVE", "T1 sans injection",
     "t1_mprage_sag vor KM", "T1 o. KM", "T1 ohne KM", "T1 sin contraste", "T1 non-contrast", "T1 unenhanced",
     "T1 prima del mdc", "AX T1 SEM CONTRASTE", "AX T1 PRÉ CONTRASTE", "T1 pré-injection", "T1 antes do contraste",
     "T1 voor contrast", "T1 przed kontrastem", "T1 kontrast öncesi", "T1 utan kontrast", "T1 GD(-)",
     "T1 bez kontrastu", "T1 MPRAGE -GAD", "T1 zonder contrast", "T1 AX KONTRASTSIZ", "AX T1 WITHOUT"],
)  # fmt: skip
def test_native(text):
    assert says_native(text)
    assert not says_contrast(text)


@pytest.mark.parametrize(
    "text",
    ["AX T1", "t1_mprage_post-op Tag1", "T1 POST FOSSA", "T1 posterior", "t1_se_tra", "BRAIN W/WO", "T1 MPRAGE PostPro",
     "T1 MPRAGE POST PROCESSED", "T1 SPACE postcentral gyrus", "T1 MPRAGE post-resection", "T1 tra supine pos",
     "T1 (Gray/White Contrast) AXI", "T1 MPRAGE DL-Enhanced", "T1 mprage Dr. Post"],
)  # fmt: skip
def test_nothing_of_contrast(text):
    assert not says_contrast(text)
    assert not says_native(text)


def test_protocols_of_navigation_may_be_either():
    assert is_unsure("AX T1 STEALTH")
    assert not is_unsure("AX T1")


@pytest.mark.parametrize(
    "text",
    ["FLAIR_ROI", "DWI b1000", "3-plane localizer", "ep2d_diff_mddw", "DIFUSION AX", "SWIp", "SWAN", "s3DI_MC_HR",
     "Ven_3D_PCA", "T1 MAP", "T1MAP", "t1_mprage INV2", "Subtraktion t1_mprage", "T1 SUBTRACTED", "3D_Brain_VIEW_DIR",
     "COR T2 STIR ORBITS", "T2*_FFE", "t2_star", "AX T2 HEMO", "T2 CISS", "3D_bTFE", "TrueFISP 3D", "MPGR", "FSBB",
     "rCBV", "Transit delay map", "APTw", "Motor finger tapping", "Head_MRAC_PET_HiRes_W", "Cal Head 24", "Scano",
     "LOCALIZADOR", "Repérage", "Übersicht", "3-Pl T2* FGRE S", "t1_tse_sag HWS/BWS", "t1_vibe_tra_FA15",
     "OutPhase: T1", "FAT: Ax T1", "MAGiC T1", "Average DC", "eADC", "Fractional Aniso."],
)  # fmt: skip
def test_what_is_none_of_the_four(text):
    assert no_sequence(text)


@pytest.mark.parametrize(
    "text",
    ["AX T1 FAT SAT", "T1 FS", "T1 SE FLOW COMP +C", "T1 sub-mm KM", "T1 3D post PERF", "T1 in-phase",
     "sub-01_ses-1_T1w", "t1_mpr_ns_sag_iso", "T1_3DISO", "3DIR_FLAIR", "AX T2 FSE ASSET", "T1 FFE 3D FA15",
     "T1 MPRAGE dopo perfusione", "AX T1 FAT/SAT GAD", "AX T1 PHASE R/L", "T1 ax orbitomeatal", "t1_tra head/neck coil",
     "SAG T1 ISOTROPIC",     "t2_tse_tra_p2", "pd+t2_tse_tra", "T1 post-op"],
)  # fmt: skip
def test_what_only_looks_like_it(text):
    assert no_sequence(text) is None


@pytest.mark.parametrize(
    "text", ["Dotarem", "GADAVIST 7.5 ML", "Gd", "Multihance, no reaction", "0.1 mmol/kg", "7.5", "0,1ml/kg",
             "pre-filled Gadavist", "non-ionic Gd 8 ml"]
)  # fmt: skip
def test_an_agent(text):
    assert is_agent(text)


@pytest.mark.parametrize(
    "text",
    ["", "NONE", "no contrast", "n/a", "SIN CONTRASTE", "NO CONTRAST GIVEN", "NON CONTRAST", "ohne KM", "KEIN KM",
     "sans", "NIL", "NONE GIVEN", "PRE CONTRAST", "no IV", "0 ml", "0", "Unknown", "no gadolinium",
     "NO Dotarem", "kein Gadovist", "Gadovist not given", "Dotarem 0 ml", "geen", "brak", "yok", "nessuno",
     "sem contraste", "saline", "NULL"],
)  # fmt: skip
def test_no_agent(text):
    assert not is_agent(text)
