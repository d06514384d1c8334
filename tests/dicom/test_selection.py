from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.errors import CaseError, UsageError
from app.dicom.naming import SeriesHeader
from app.dicom.selection import SeriesRules, choose, names_of, of_study
from app.dicom.series import SEVERAL_ECHOES, Series, find_series
from app.dicom.site_names import SiteNames
from app.dicom.timing import Timing
from tests.dicom.helpers import T1 as T1_TAGS
from tests.dicom.helpers import T2 as T2_TAGS
from tests.dicom.helpers import head, write_series

T1 = SeriesHeader(timing=Timing(("SE",), 10, 450))
T1C = replace(T1, agent=True)
T2 = SeriesHeader(timing=Timing(("SE",), 100, 4400))
UNCLEAR = SeriesHeader("BRAIN")
ROI = SeriesHeader("ROI", Timing(("SE",), 100, 4400))


def _series(number, header, *, study="1", patient="P"):
    return Series(f"{study}.{number}", study, patient, number, (), header)


def test_each_sequence_has_its_series():
    found = choose([_series(1, T1), _series(2, T2), _series(3, T1C), _series(4, ROI)], {})
    assert {m: s.number for m, s in found.series.items()} == {"t1n": 1, "t1c": 3, "t2w": 2}
    assert not found.warnings


def test_what_is_passed_over_and_may_be_what_lacks_is_said():
    found = choose([_series(1, T1), _series(3, T1C), _series(4, ROI)], {})
    assert "series 4" in found.warnings[0]
    assert "passed over, since its name says 'roi'" in found.warnings[0]


def test_a_t1_without_word_of_contrast_is_said():
    (warning,) = choose([_series(1, T1), _series(2, T2)], {}).warnings
    assert "no contrast is named" in warning
    assert not choose([_series(1, T1), _series(2, T2)], {"t1n": "1"}).warnings


@pytest.mark.parametrize("asked", [{"t1c": "1"}, {"t1c": "1.1"}])
def test_what_the_user_names_wins(asked):
    found = choose([_series(1, T1), _series(2, T2)], asked)
    assert found.series["t1c"].number == 1
    assert "t1n" not in found.series


def test_one_series_is_not_two_sequences():
    with pytest.raises(UsageError, match="--t1n and --t2w name the same series"):
        choose([_series(1, T1), _series(2, T2)], {"t1n": "1", "t2w": "1.1"})


def test_a_localizer_is_no_second_candidate(tmp_path):
    write_series(tmp_path / "a", head(), number=1, **T1_TAGS)
    write_series(tmp_path / "b", head(slices=2), number=2, **T1_TAGS)
    write_series(tmp_path / "c", head(), number=3, **T2_TAGS)
    assert choose(find_series(tmp_path), {}).series["t1n"].number == 1


def test_two_candidates_are_asked_about():
    both = [_series(1, T2), _series(2, T2), _series(3, T1)]
    with pytest.raises(CaseError, match="may each be the t2w; name one of them by --t2w"):
        choose(both, {})
    assert choose(both, {"t2w": "2"}).series["t2w"].number == 2


class TestSeveralOfOneWeighting:
    @pytest.fixture
    def folder(self, tmp_path):
        """Two T2 of the head, and a slab with thinner slices than either."""
        write_series(tmp_path / "thick", head(slices=24), number=5, spacing=(1.0, 1.0, 6.0), **T2_TAGS)
        write_series(tmp_path / "thin", head(slices=40), number=6, spacing=(1.0, 1.0, 3.0), **T2_TAGS)
        write_series(tmp_path / "slab", head(slices=30), number=7, spacing=(0.5, 0.5, 1.0), **T2_TAGS)
        write_series(tmp_path / "t1", head(slices=24), number=8, spacing=(1.0, 1.0, 6.0), **T1_TAGS)
        return tmp_path

    def test_the_thinnest_slices_of_the_whole_head_are_taken_and_it_is_said(self, folder):
        found = choose(find_series(folder), {})
        assert found.series["t2w"].number == 6
        (said,) = [w for w in found.warnings if "t2w" in w]
        assert "series 6" in said
        assert "series 5 (T2 TSE, 24 slices), series 7" in said
        assert choose(find_series(folder), {"t2w": "5"}).series["t2w"].number == 5

    def test_two_t1_without_a_word_of_contrast_are_asked_about(self, folder):
        write_series(folder / "other", head(slices=40), number=9, spacing=(1.0, 1.0, 3.0), **T1_TAGS)
        with pytest.raises(CaseError, match="may each be the t1n"):
            choose(find_series(folder), {})


class TestContrast:
    """Nobody takes a T1 after contrast for one without."""

    def test_an_agent_that_was_typed_once_says_nothing(self):
        study = [_series(1, T1C), _series(2, replace(T2, agent=True)), _series(3, T1C)]
        assert names_of(study)["1.1"].ask
        with pytest.raises(CaseError, match=r"an agent is named in every series.*--ignore 1"):
            choose(study, {})
        named = [
            *study[:2],
            _series(3, replace(T1C, description="T1 KM")),
            _series(4, replace(T1C, description="T1 nativ")),
        ]
        found = choose(named, {}, SeriesRules(("1",)))
        assert {m: s.number for m, s in found.series.items()} == {"t1c": 3, "t1n": 4, "t2w": 2}

    def test_a_t2_after_contrast_leaves_the_agent_its_meaning(self):
        found = choose([_series(1, T1), _series(2, replace(T2, agent=True)), _series(3, T1C)], {})
        assert {m: s.number for m, s in found.series.items()} == {"t1c": 3, "t1n": 1, "t2w": 2}

    def test_what_was_scanned_after_it_is_not_native(self):
        native, given, later = (
            replace(h, moment=m) for h, m in ((T1, "20260101100000"), (T1C, "20260101103000"), (T1, "20260101104000"))
        )
        found = choose([_series(1, later), _series(2, given), _series(3, native), _series(4, T2)], {})
        assert found.series["t1n"].number == 3
        assert any("series 1" in w and "scanned after the contrast" in w for w in found.warnings)
        assert "t1n" not in choose([_series(1, later), _series(2, given), _series(4, T2)], {}).series

    def test_without_times_several_are_asked_about_and_one_is_taken(self):
        assert choose([_series(1, T1), _series(2, T1C), _series(4, T2)], {}).series["t1n"].number == 1
        with pytest.raises(CaseError, match="may each be the t1n"):
            choose([_series(1, T1), _series(3, T1), _series(2, T1C), _series(4, T2)], {})
        native = replace(T1, description="T1 nativ")
        assert choose([_series(1, T1), _series(3, native), _series(2, T1C)], {}).series["t1n"].number == 3


class TestIgnored:
    def test_what_is_none_is_said_to_be_none(self):
        study = [_series(1, T1), _series(2, T2), _series(3, UNCLEAR)]
        assert set(choose(study, {}, SeriesRules(("3",))).series) == {"t1n", "t2w"}
        with pytest.raises(UsageError, match=r"no series has the number or UID '9' \(--ignore\)"):
            choose(study, {}, SeriesRules(("9",)))

    def test_two_echoes_may_hold_the_t2w_that_lacks(self):
        both = replace(_series(3, T1), problem=SEVERAL_ECHOES)
        with pytest.raises(CaseError, match=r"one of them may be the T2w.*--ignore 3"):
            choose([_series(1, T1), both], {})
        assert set(choose([_series(1, T1), _series(2, T2), both], {}).series) == {"t1n", "t2w"}

    def test_what_is_there_already_is_not_asked_about(self):
        doubtful = replace(T2, description="AX T1", timing=Timing(("SE",), 90, 1500))
        study = [_series(1, T1), _series(2, T1C), _series(3, T2), _series(4, doubtful)]
        assert "t2f" not in choose(study, {}).series


def test_a_localizer_alone_is_no_t1(tmp_path):
    write_series(tmp_path / "loc", head(slices=2), number=1, **T1_TAGS)
    write_series(tmp_path / "t2", head(), number=2, **T2_TAGS)
    found = choose(find_series(tmp_path), {})
    assert set(found.series) == {"t2w"}
    assert "is passed over: it is a localizer" in found.warnings[0]


def test_what_is_not_understood_is_asked_about():
    with pytest.raises(CaseError, match="neither timing nor name"):
        choose([_series(1, T1), _series(2, T2), _series(3, UNCLEAR)], {})
    assert "t2f" in choose([_series(1, T1), _series(2, T2), _series(3, UNCLEAR)], {"t2f": "3"}).series


def test_one_of_several_studies_is_named():
    both = [_series(1, T1, study="1.2.34"), _series(2, T2, study="1.2.56")]
    assert [s.number for s in of_study(both, "56")] == [2]
    assert of_study(both, None) == both
    with pytest.raises(UsageError, match=r"no study has the UID '9' .*there are 1\.2\.34, 1\.2\.56"):
        of_study(both, "9")
    with pytest.raises(UsageError, match=r"2 studies have the UID '1\.2\.56'"):
        of_study([*both, _series(3, T1, study="9.1.2.56")], "1.2.56")


@pytest.mark.parametrize(
    "series,asked,message",
    [
        ([_series(1, T1), _series(2, T2, patient="Q")], {}, "2 patients"),
        ([_series(1, T1), _series(2, T2, study="2")], {}, "holds 2 studies"),
        ([_series(1, T1)], {"t2w": "9"}, "no series has the number or UID '9'"),
    ],
)
def test_what_cannot_be_one_exam(series, asked, message):
    with pytest.raises(UsageError, match=message):
        choose(series, asked)


def test_a_t1_beside_the_native_one_may_be_the_t1c(tmp_path):
    write_series(tmp_path / "a", head(), number=1, **{**T1_TAGS, "SeriesDescription": "T1 basale"})
    write_series(tmp_path / "b", head(), number=2, **{**T1_TAGS, "SeriesDescription": "T1 WITH"})
    write_series(tmp_path / "c", head(), number=3, **T2_TAGS)
    with pytest.raises(CaseError, match=r"series 2 .* may be the t1c: series 1 .* --t1c 2"):
        choose(find_series(tmp_path), {})
    assert choose(find_series(tmp_path), {"t1c": "2"}).series["t1n"].number == 1


def test_the_only_t1_beside_contrast_without_times_is_asked_about():
    flair = SeriesHeader("FLAIR +C", Timing(("IR",), 100, 9000, 2500))
    with pytest.raises(CaseError, match=r"may be with contrast.*--t1c 1 or --t1n 1"):
        choose([_series(1, T1), _series(2, T2), _series(3, flair)], {})
    assert choose([_series(1, T1), _series(2, T2), _series(3, flair)], {"t1c": "1"}).series["t1c"].number == 1


def test_a_time_without_its_day_is_none(tmp_path):
    write_series(tmp_path / "a", head(), AcquisitionTime="103000", **T1_TAGS)
    write_series(tmp_path / "b", head(), number=2, AcquisitionTime="103000", AcquisitionDate="20260101", **T1_TAGS)
    (tmp_path / "a" / "._000-1.dcm").write_bytes(b"of a file system")
    assert [s.header.moment for s in find_series(tmp_path)] == [None, "20260101103000"]


def test_a_t1_after_a_perfusion_is_asked_about():
    perfusion = SeriesHeader("ep2d_perf", Timing(("EP",), 30, 1500), agent=True, moment="20260101101500")
    later = replace(T1, moment="20260101102000")
    with pytest.raises(CaseError, match="was scanned after contrast was given"):
        choose([_series(1, later), _series(2, T2), _series(3, perfusion)], {})
    native = replace(T1, moment="20260101100000")
    assert choose([_series(1, native), _series(2, T2), _series(3, perfusion)], {}).series["t1n"].number == 1


class TestNamesOfTheSite:
    PLAIN = replace(T1, description="T1 CE AX")

    def _choose(self, *series, **patterns):
        site = SiteNames({name: None if key == "none" else key for key, names in patterns.items() for name in names})
        return choose(series, {}, SeriesRules(site=site))

    def test_they_go_before_the_header(self):
        series = _series(1, self.PLAIN), _series(2, T2), _series(3, replace(T2, description="odd"))
        found = self._choose(*series, t1n=["T1 CE*"], t2f=["odd"]).series
        assert {m: s.number for m, s in found.items()} == {"t1n": 1, "t2w": 2, "t2f": 3}

    def test_what_is_none_is_asked_about_no_more(self):
        series = _series(1, T1), _series(2, T2), _series(3, UNCLEAR)
        with pytest.raises(CaseError, match="series 3"):
            self._choose(*series)
        assert set(self._choose(*series, none=["BRAIN"]).series) == {"t1n", "t2w"}

    def test_two_names_for_one_series_are_asked_about(self):
        with pytest.raises(CaseError, match=r"series 3.*'BRAIN' as t2f and 'BR\*' as t1c"):
            self._choose(_series(1, T1), _series(2, T2), _series(3, UNCLEAR), t2f=["BRAIN"], t1c=["BR*"])

    def test_a_t1_that_it_names_is_no_sign_of_contrast(self):
        named = replace(self.PLAIN, moment="20260101100000")
        later = replace(T1, moment="20260101110000")
        found = self._choose(_series(1, named), _series(2, later), _series(3, T2), t1n=["T1 CE AX"])
        assert found.series["t1n"].number == 1

    def test_the_users_word_goes_before_it(self):
        site = SiteNames({"T1 CE AX": "t1n"})
        assert set(choose([_series(1, self.PLAIN)], {"t1c": "1"}, SeriesRules(site=site)).series) == {"t1c"}


class TestSeveralStudies:
    def test_they_may_be_one_exam(self):
        both = [_series(1, T1), _series(2, T2), _series(1, T1C, study="2")]
        with pytest.raises(UsageError, match="--allow-other-study"):
            choose(both, {})
        found = choose(both, {}, SeriesRules(across_studies=True)).series
        assert {m: s.study for m, s in found.items()} == {"t1n": "1", "t2w": "1", "t1c": "2"}

    def test_patients_are_never_mixed(self):
        with pytest.raises(UsageError, match="2 patients"):
            choose([_series(1, T1), _series(2, T2, study="2", patient="Q")], {}, SeriesRules(across_studies=True))

    def test_contrast_of_another_day_is_gone(self):
        early = [_series(1, replace(T1C, moment="20260101100000")), _series(2, T2)]
        later = _series(1, replace(T1, moment="20260105100000"), study="2")
        assert choose([*early, later], {}, SeriesRules(across_studies=True)).series["t1n"].study == "2"

    @pytest.mark.parametrize("moment", ["20260101104000", "20260102090000.5"])
    def test_contrast_of_the_same_day_shows_in_the_other_study(self, moment):
        early = [_series(1, replace(T1C, moment="20260101100000")), _series(2, T2)]
        later = _series(3, replace(T1, moment=moment), study="2")
        found = choose([*early, later], {}, SeriesRules(across_studies=True))
        assert "t1n" not in found.series
        assert any("series 3" in w and "after the contrast" in w for w in found.warnings)

    def test_without_times_contrast_of_the_other_study_counts(self):
        flair = SeriesHeader("FLAIR +C", Timing(("IR",), 100, 9000, 2500))
        both = [_series(1, flair), _series(2, T2), _series(3, T1, study="2")]
        with pytest.raises(CaseError, match="may be with contrast"):
            choose(both, {}, SeriesRules(across_studies=True))

    def test_an_agent_in_all_series_of_one_tells_nothing_of_it(self):
        first = [_series(1, T1C), _series(2, replace(T2, agent=True)), _series(3, T1C)]
        with pytest.raises(CaseError, match="in every series"):
            choose([*first, _series(1, T1, study="2")], {}, SeriesRules(across_studies=True))
