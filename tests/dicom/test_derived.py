from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest

from app.dicom.derived import COPIED, Made, derived_series
from app.dicom.series import find_series, read_series
from tests.dicom.helpers import FLAIR, T1, change, head, write_series

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CONTRAST = ("ContrastBolusAgent", "ContrastBolusVolume", "ContrastBolusRoute")


@pytest.fixture
def study(tmp_path):
    """A T1 whose headers hold more than may be passed on, and a FLAIR on other planes."""
    extra = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg", "AccessionNumber": "",
             "FrameOfReferenceUID": "1.2.9", "ContrastBolusAgent": "Gd", "Manufacturer": "Scanner",
             "InstitutionName": "Hospital", "FlipAngle": "90", "PatientPosition": "HFS"}  # fmt: skip
    write_series(tmp_path / "t1", head(), number=1, **T1, **extra)
    write_series(tmp_path / "t2f", head()[:30, :30], number=2, origin=(-10.0, -10.0, 8.0), **FLAIR)
    return find_series(tmp_path)


def _made(volume, **changes):
    values = {"target": "t1c", "values": volume.data, "affine": volume.grid.affine, "model": "unet 12345678",
              "version": "0.2", "moment": MOMENT}  # fmt: skip
    return Made(**values | changes)


def _files(study, **changes):
    volume = read_series(study[0])
    return [pydicom.dcmread(io.BytesIO(f)) for f in derived_series(_made(volume, **changes), study[0], study)]


def test_each_slice_of_the_reference_has_its_own(study):
    made = _files(study)
    originals = [pydicom.dcmread(f) for f in study[0].files]
    originals.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    assert len(made) == len(originals) == 8
    for new, old in zip(made, originals, strict=True):
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            np.testing.assert_allclose(new[name].value, old[name].value, atol=1e-4)
        np.testing.assert_array_equal(new.pixel_array, old.pixel_array)


def test_it_says_what_it_is(study):
    for new in _files(study):
        assert new[0x0008001C].value == "YES"
        assert new.SeriesDescription.startswith("SYNTHETIC T1+C")
        assert new.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
        assert new.ScanningSequence == "RM"
        assert new.Manufacturer == "Tetrad"
        assert [e.Manufacturer for e in new.ContributingEquipmentSequence] == ["Scanner", "Tetrad"]
        assert not new.RepetitionTime


def test_nothing_is_passed_on_that_is_not_on_the_list(study):
    new = _files(study)[0]
    original = pydicom.dcmread(study[0].files[0])
    assert not any(name in new for name in (*CONTRAST, "InstitutionName", "FlipAngle", "ProtocolName"))
    kept = {e.keyword for e in new if e.keyword in original and e.value == original[e.keyword].value and e.value}
    own = {"SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
           "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ImagePositionPatient", "InstanceNumber",
           "ImageOrientationPatient", "PixelSpacing", "PixelData"}  # fmt: skip
    assert kept <= {*COPIED, *own}
    assert str(new.PatientName) == "Müller^Jörg"
    assert new.StudyInstanceUID == original.StudyInstanceUID
    assert new.FrameOfReferenceUID == "1.2.9"


def test_every_slice_names_its_sources(study):
    new = _files(study)[3]
    references = [item.ReferencedSOPInstanceUID for item in new.SourceImageSequence]
    assert len(references) == 2
    heights = []
    for uid in references:
        source = next(d for s in study for f in s.files if (d := pydicom.dcmread(f)).SOPInstanceUID == uid)
        heights.append(float(source.ImagePositionPatient[2]))
    assert heights == [25, 23]
    assert [len(item.ReferencedInstanceSequence) for item in new.ReferencedSeriesSequence] == [8, 8]


def test_the_same_run_gives_the_same_files_and_another_one_other_uids(study):
    volume = read_series(study[0])
    one, two = (derived_series(_made(volume), study[0], study) for _ in range(2))
    assert one == two
    uids = {d.SOPInstanceUID for d in _files(study)}
    assert len(uids) == 8
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)
    later = _files(study, moment=datetime(2026, 1, 3, tzinfo=UTC))
    assert not uids & {d.SOPInstanceUID for d in later}
    assert {d.SeriesInstanceUID for d in later} != {d.SeriesInstanceUID for d in _files(study)}


@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_few_or_too_many_levels_get_a_slope(study, factor):
    volume = read_series(study[0])
    new = _files(study, values=volume.data * np.float32(factor))[1]
    restored = new.pixel_array.T * float(new.RescaleSlope)
    np.testing.assert_allclose(restored, volume.data[:, :, 1] * factor, atol=volume.data.max() * factor / 4000)


def test_a_slice_that_the_reference_lacks_is_not_made_up(tmp_path):
    volume = np.repeat(head()[:, :, :1], 30, axis=2)
    paths = write_series(tmp_path, volume, **T1)
    paths[12].unlink()
    change(paths[0], PatientComments="none")
    (series,) = find_series(tmp_path)
    read = read_series(series)
    assert read.data.shape[2] == 30
    assert len(derived_series(_made(read), series, [series])) == 29
