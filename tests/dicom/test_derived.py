from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from app.data.nifti_writer import to_image
from app.dicom.derived import COPIED, Made, derived_series
from app.dicom.series import find_series, read_series
from tests.dicom.helpers import FLAIR, T1, change, head, write_frames, write_series

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
    image = to_image(volume.data, volume.grid)
    values = {"target": "t1c", "values": np.asarray(image.dataobj, np.float32), "affine": image.affine,
              "model": "unet 12345678", "version": "0.2", "moment": MOMENT}  # fmt: skip
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


def test_slices_are_as_thick_as_the_references_and_lie_as_far_apart(study):
    """`write_series`: 4 mm thick, 5 mm apart."""
    new = _files(study)[0]
    assert (float(new.SliceThickness), float(new.SpacingBetweenSlices)) == (4, 5)


def test_each_slice_lies_where_the_references_own_does(tmp_path):
    heights = [0.0, 5.0, 10.05, 15.0, 20.0, 25.0, 30.0, 35.0]
    write_series(tmp_path, head(), positions=[(-20.0, -24.0, h) for h in heights], **T1)
    assert [float(d.ImagePositionPatient[2]) for d in _files(find_series(tmp_path))] == heights


def test_a_loss_in_any_source_is_said(study):
    assert all("LossyImageCompression" not in new for new in _files(study))
    change(study[1].files[3], LossyImageCompression="01")
    assert {new.LossyImageCompression for new in _files(study)} == {"01"}


def test_sources_and_model_are_named(study):
    new = _files(study)[0]
    assert new.DerivationDescription == (
        "Synthesised by unet 12345678 from series 1 (T1 SE, 8 slices), series 2 (T2W FLAIR, 8 slices); no scan."
    )
    assert new.ContributingEquipmentSequence[1].ContributionDescription == "Synthesised the images by unet 12345678"


def test_all_uids_are_new_but_those_of_study_and_frame_of_reference(study):
    originals = [pydicom.dcmread(f) for s in study for f in s.files]
    known = {e.value for d in originals for e in d if e.VR == "UI"}
    for new in _files(study):
        kept = {e.keyword for e in new if e.VR == "UI" and e.value in known}
        assert kept == {"StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID"}


def test_an_empty_accession_number_stays_empty(study):
    assert all("AccessionNumber" in new and not new.AccessionNumber for new in _files(study))


def test_who_the_patient_is_survives_whole(tmp_path):
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = "X7", "TEXT"
    write_series(tmp_path, head(), OtherPatientIDsSequence=[other], PatientBirthName="Roe^Jane", **T1)
    new = _files(find_series(tmp_path))[0]
    assert new.OtherPatientIDsSequence[0].PatientID == "X7"
    assert new.PatientBirthName == "Roe^Jane"


def test_nothing_is_passed_on_that_is_not_on_the_list(study):
    for file in study[0].files:
        private = pydicom.dcmread(file)
        private.private_block(0x0019, "SCANNER", create=True).add_new(0x01, "LO", "secret")
        private.MagneticFieldStrength, private.ReceiveCoilName, private.SAR = 1.5, "HEAD", 0.1
        private.AcquisitionTime, private.InversionTime = "120000", 900
        private.save_as(file)
    new = _files(study)[0]
    assert not any(e.tag.is_private for e in new)
    assert not any(name in new for name in ("MagneticFieldStrength", "ReceiveCoilName", "SAR", "AcquisitionTime",
                                            "InversionTime"))  # fmt: skip
    original = pydicom.dcmread(study[0].files[0])
    assert not any(name in new for name in (*CONTRAST, "InstitutionName", "FlipAngle", "ProtocolName"))
    kept = {e.keyword for e in new if e.keyword in original and e.value == original[e.keyword].value and e.value}
    own = {"SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
           "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ImagePositionPatient", "InstanceNumber",
           "ImageOrientationPatient", "PixelSpacing", "PixelData", "SliceThickness"}  # fmt: skip
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


@pytest.mark.parametrize(
    "characters,name",
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "王^小東"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_in_any_script_survive(tmp_path, characters, name):
    write_series(tmp_path / "t1", head(slices=4), **T1, SpecificCharacterSet=characters, PatientName=name)
    for new in _files(find_series(tmp_path)):
        assert str(new.PatientName) == name
        assert new.SpecificCharacterSet == characters
    # In a viewer it is the same patient: the same bytes, not just the same letters.
    original = pydicom.dcmread(next((tmp_path / "t1").iterdir()))
    assert new.PatientName.original_string == original.PatientName.original_string


def test_a_file_of_many_frames_gives_a_file_per_frame(tmp_path):
    write_frames(tmp_path / "many.dcm", head(), [10.0 + 5 * i for i in range(8)])
    made = _files(find_series(tmp_path))
    assert [float(d.ImagePositionPatient[2]) for d in made] == [10.0 + 5 * i for i in range(8)]
    assert {d.SOPClassUID for d in made} == {MRImageStorage}
    assert not any("NumberOfFrames" in d for d in made)


@pytest.mark.parametrize(
    "position,orientation",
    [
        ("HFS", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
        ("HFP", (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
        ("HFS", (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
        ("HFP", (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)),
    ],
    ids=["axial supine", "axial prone", "sagittal supine", "coronal prone"],
)
def test_a_mark_comes_back_to_its_place(tmp_path, position, orientation):
    write_series(tmp_path / "in", head(), orientation=orientation, PatientPosition=position, **T1)
    (reference,) = find_series(tmp_path / "in")
    for number, made in enumerate(_files([reference])):
        assert made.PatientPosition == position
        original = next(d for d in map(pydicom.dcmread, reference.files)
                        if np.allclose(d.ImagePositionPatient, made.ImagePositionPatient, atol=1e-4))  # fmt: skip
        assert made.ImageOrientationPatient == original.ImageOrientationPatient
        np.testing.assert_array_equal(made.pixel_array, original.pixel_array, err_msg=str(number))


def test_a_stamp_changes_pixels_and_uids_alone(study):
    plain, marked = _files(study), _files(study, is_stamped=True)
    for before, after in zip(plain, marked, strict=True):
        assert (before.pixel_array != after.pixel_array).any()
        assert after.BurnedInAnnotation == "NO"
        assert before.WindowCenter == after.WindowCenter
    assert not {d.SOPInstanceUID for d in plain} & {d.SOPInstanceUID for d in marked}


def test_sources_of_another_study_are_named_with_it(study):
    t1, flair = study
    volume = read_series(t1)
    files = derived_series(_made(volume), t1, [t1, replace(flair, study="1.2.77")])
    for new in (pydicom.dcmread(io.BytesIO(f)) for f in files):
        assert [s.SeriesInstanceUID for s in new.ReferencedSeriesSequence] == [t1.uid]
        (other,) = new.StudiesContainingOtherReferencedInstancesSequence
        assert other.StudyInstanceUID == "1.2.77"
        assert [s.SeriesInstanceUID for s in other.ReferencedSeriesSequence] == [flair.uid]
