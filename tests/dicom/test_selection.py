from __future__ import annotations

import pytest

from app.core.errors import CaseError, UsageError
from app.dicom.naming import SeriesHeader
from app.dicom.selection import choose, of_study
from app.dicom.series import Series, find_series
from tests.dicom.helpers import T1 as T1_TAGS
from tests.dicom.helpers import T2 as T2_TAGS
from tests.dicom.helpers import head, write_series

T1 = SeriesHeader(technique=("SE",), echo=10, repetition=450)
T1C = SeriesHeader(technique=("SE",), echo=10, repetition=450, agent=True)
T2 = SeriesHeader(technique=("SE",), echo=100, repetition=4400)
UNCLEAR = SeriesHeader(description=("BRAIN",))
ROI = SeriesHeader(description=("ROI",), technique=("SE",), echo=100, repetition=4400)


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
    with pytest.raises(CaseError, match=r"may both be the t2w; name one of them \(--t2w 1\)"):
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
        assert "series 5 (T2 TSE, 24 files), series 7" in said
        assert choose(find_series(folder), {"t2w": "5"}).series["t2w"].number == 5

    def test_two_t1_without_a_word_of_contrast_are_asked_about(self, folder):
        write_series(folder / "other", head(slices=40), number=9, spacing=(1.0, 1.0, 3.0), **T1_TAGS)
        with pytest.raises(CaseError, match="may both be the t1n"):
            choose(find_series(folder), {})
        write_series(folder / "t1c", head(slices=24), number=10, spacing=(1.0, 1.0, 6.0), ContrastBolusAgent="Gd",
                     **T1_TAGS)  # fmt: skip
        assert choose(find_series(folder), {}).series["t1n"].number == 9


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
