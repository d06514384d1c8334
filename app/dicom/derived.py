"""Write a made sequence as a DICOM series of the exam's own study.

Classic MR images, one per slice of the reference: every viewer shows them. What is copied from the reference is named
in an allow-list; nothing is copied and then deleted.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from app.core.constants import Modality
from app.core.types import Affine
from app.dicom.geometry import SliceHeader
from app.dicom.series import Series, geometry_of
from app.dicom.stamp import stamped

#: What a slice takes from the reference's: the patient, the study, and how the patient lay.
COPIED: Final = (
    # Patient, patient study
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate", "PatientBirthTime", "PatientBirthName", "PatientMotherBirthName", "PatientSex",
    "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup", "PatientComments",
    "QualityControlSubject", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientAge",
    "PatientSize", "PatientWeight", "Occupation", "AdditionalPatientHistory", "MedicalAlerts", "Allergies",
    "SmokingStatus", "PregnancyStatus", "PatientState", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription", "ReasonForVisit", "ServiceEpisodeID", "ServiceEpisodeDescription",
    # Study
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyDescription",
    "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "ReferencedStudySequence", "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    # How the patient lay, and the letters of all this
    "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined", "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
)  # fmt: skip
#: Attributes that must be there, empty where nothing is known.
_PRESENT: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber", "PositionReferenceIndicator", "ScanOptions", "RepetitionTime", "EchoTime",
    "EchoTrainLength", "PatientPosition",
)  # fmt: skip
_NAMES: Final[dict[Modality, str]] = {"t1n": "T1", "t1c": "T1+C", "t2w": "T2", "t2f": "T2 FLAIR"}
#: Added to the number of the made sequence, so that it stands behind the scans.
_FIRST_NUMBER: Final = 9000
#: Fewer grey levels than this are spread, with a slope to undo it.
_FEW_LEVELS: Final = 256
_PEAK: Final = 4095


@dataclass(frozen=True)
class Made:
    """Hold what a derived series shows.

    Attributes:
        values: axes column, row, slice, as the reference was read; 0 outside the brain, not negative.
        affine: of the reference, from column, row and slice to NIfTI's millimetres.
        model: its name and fingerprint.
        version: of Tetrad.
        moment: when it was made; the same moment gives the same files.
        is_stamped: whether `SYNTHETIC` stands in the pixels.
    """

    target: Modality
    values: NDArray[np.float32]
    affine: Affine
    model: str
    version: str
    moment: datetime
    is_stamped: bool = False


def derived_series(made: Made, reference: Series, sources: Sequence[Series]) -> list[bytes]:
    """Encode a made sequence as DICOM files.

    Args:
        reference: whose slices it has; one that was interpolated there gets no file.
        sources: all series that it was made from, the reference among them.

    Returns:
        A file per slice, from one end to the other. The same exam, model and moment give the same bytes.
    """
    headers = {file: pydicom.dcmread(file, stop_before_pixels=True) for series in sources for file in series.files}
    series_uid = _uid(made, reference, "series")
    lossy = any(str(header.get("LossyImageCompression", "")) == "01" for header in headers.values())
    window = _window(made.values)
    pixels, slope = _stored(stamped(made.values, window[1]) if made.is_stamped else made.values)
    files: list[bytes] = []
    for index, own in enumerate(geometry_of(reference).order):
        if own < 0:
            continue
        slice_ = _common(made, headers[reference.file_of(own)], series_uid)
        slice_.DerivationDescription = (
            f"Synthesised by {made.model} from {', '.join(s.title for s in sources)}; no scan."[:1024]
        )
        if lossy:
            slice_.LossyImageCompression = "01"
        slice_.SOPInstanceUID = _uid(made, reference, f"slice {index}")
        slice_.InstanceNumber = len(files) + 1
        _place(slice_, made, reference.slices[own], slope, window)
        here = _middle_of(made, index)
        slice_.SourceImageSequence = DicomSequence([_source(s, headers, here) for s in sources])
        slice_.ReferencedSeriesSequence = DicomSequence(
            [_whole(s, headers) for s in sources if s.study == reference.study]
        )
        if others := [s for s in sources if s.study != reference.study]:
            slice_.StudiesContainingOtherReferencedInstancesSequence = DicomSequence(_elsewhere(others, headers))
        slice_.PixelData = np.ascontiguousarray(pixels[:, :, index].T).tobytes()
        files.append(_encoded(slice_))
    return files


# ------------------------------------------------------------ what is the same in every slice


def _common(made: Made, reference: Any, series_uid: str) -> Dataset:
    slice_ = Dataset()
    for name in COPIED:
        if name in reference:
            slice_[name] = reference[name]
    for name in _PRESENT:
        if name not in slice_:
            setattr(slice_, name, None)
    if "BodyPartExamined" not in slice_:
        slice_.BodyPartExamined = "BRAIN"
    slice_.SOPClassUID, slice_.Modality = MRImageStorage, "MR"
    slice_.SeriesInstanceUID = series_uid
    slice_.SeriesNumber = _FIRST_NUMBER + list(_NAMES).index(made.target)
    # The word first: lists cut the end.
    slice_.SeriesDescription = f"SYNTHETIC {_NAMES[made.target]} (not for diagnosis)"
    slice_.ImageComments = f"SYNTHETIC, not for diagnosis: made by Tetrad {made.version}, {made.model}"[:10000]
    slice_.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    slice_.add_new(0x0008001C, "CS", "YES")
    date, time = made.moment.strftime("%Y%m%d"), made.moment.strftime("%H%M%S")
    for name in ("InstanceCreationDate", "SeriesDate", "ContentDate"):
        setattr(slice_, name, date)
    for name in ("InstanceCreationTime", "SeriesTime", "ContentTime"):
        setattr(slice_, name, time)
    slice_.Manufacturer, slice_.ManufacturerModelName = "Tetrad", "Tetrad"
    slice_.SoftwareVersions = made.version
    slice_.DerivationCodeSequence = DicomSequence([_code("113085", "Spatial resampling")])
    slice_.ContributingEquipmentSequence = DicomSequence(_equipment(reference, made))
    # Mandatory, and a lie otherwise: research mode. Nothing of the scanner's timing holds.
    slice_.ScanningSequence, slice_.SequenceVariant, slice_.MRAcquisitionType = "RM", "NONE", "2D"
    slice_.BurnedInAnnotation = "NO"
    return slice_


def _equipment(reference: Any, made: Made) -> list[Dataset]:
    """Name the scanner and Tetrad."""
    scanner, own = Dataset(), Dataset()
    scanner.PurposeOfReferenceCodeSequence = DicomSequence([_code("109101", "Acquisition Equipment")])
    for name in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"):
        if reference.get(name):
            scanner[name] = reference[name]
    if "Manufacturer" not in scanner:
        scanner.Manufacturer = "unknown"
    own.PurposeOfReferenceCodeSequence = DicomSequence([_code("109100", "Synthesizing Equipment")])
    own.Manufacturer, own.ManufacturerModelName, own.SoftwareVersions = "Tetrad", "Tetrad", made.version
    own.ContributionDescription = f"Synthesised the images by {made.model}"[:1024]
    return [scanner, own]


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


# ------------------------------------------------------------ place and pixels


def _place(slice_: Dataset, made: Made, own: SliceHeader, slope: float, window: tuple[float, float]) -> None:
    """Put a slice where the reference's own lies, as thick as that, and say how its pixels are to be shown."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ made.affine
    columns, rows, across = (matrix[:3, axis] for axis in range(3))
    edges = [float(np.linalg.norm(v)) for v in (columns, rows, across)]
    slice_.ImageOrientationPatient = [_text(v) for v in own.orientation]
    slice_.ImagePositionPatient = [_text(v) for v in own.position]
    slice_.PixelSpacing = [_text(edges[1]), _text(edges[0])]
    # Slices may be thinner than their distance, or overlap.
    slice_.SliceThickness = _text(own.thickness or edges[2])
    slice_.SpacingBetweenSlices = _text(edges[2])
    slice_.Columns, slice_.Rows = made.values.shape[:2]
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    low, high = window
    slice_.WindowCenter, slice_.WindowWidth = _text((low + high) / 2), _text(max(high - low, 1.0))
    if slope != 1:
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.RescaleType = _text(slope), "0", "US"


def _stored(values: NDArray[np.float32]) -> tuple[NDArray[np.int16], float]:
    """Turn values into whole numbers, and give the slope that brings them back."""
    peak = float(values.max())
    slope = 1.0
    if 0 < peak < _FEW_LEVELS or peak > np.iinfo(np.int16).max:
        slope = peak / _PEAK
    return np.asarray(np.rint(values / np.float32(slope)), dtype=np.int16), slope


def _window(values: NDArray[np.float32]) -> tuple[float, float]:
    """Give the 1st and 99th percentile of the brain; the window counts after the slope."""
    content = values[values > 0]
    if not content.size:
        return 0.0, 1.0
    low, high = (float(p) for p in np.percentile(content, [1, 99]))
    return low, high


def _text(value: float) -> str:
    """Write a number in the 16 characters that DICOM allows."""
    return pydicom.valuerep.format_number_as_ds(float(value))


def _middle_of(made: Made, index: int) -> NDArray[np.float64]:
    """Give the middle of a slice in millimetres L, P, S."""
    x, y, _ = made.values.shape
    point = made.affine @ np.array([(x - 1) / 2, (y - 1) / 2, index, 1.0])
    return np.asarray(point[:3] * np.array([-1.0, -1.0, 1.0]), dtype=np.float64)


# ------------------------------------------------------------ sources


def _source(series: Series, headers: Mapping[Path, Any], point: NDArray[np.float64]) -> Dataset:
    """Name the slice of a series whose plane is nearest to a point."""

    def distance(index: int) -> float:
        plane = series.slices[index]
        normal = np.cross(plane.orientation[:3], plane.orientation[3:])
        return abs(float((point - np.array(plane.position)) @ normal))

    nearest = min(range(len(series.slices)), key=distance)
    item = _reference(headers[series.file_of(nearest)])
    if series.has_frames:
        item.ReferencedFrameNumber = nearest + 1
    item.PurposeOfReferenceCodeSequence = DicomSequence(
        [_code("121322", "Source image for image processing operation")]
    )
    return item


def _reference(header: Any) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _whole(series: Series, headers: Mapping[Path, Any]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = series.uid
    item.ReferencedInstanceSequence = DicomSequence([_reference(headers[file]) for file in series.files])
    return item


def _elsewhere(series: Sequence[Series], headers: Mapping[Path, Any]) -> list[Dataset]:
    """Name series of other studies, study by study."""
    items = []
    for study in {s.study: None for s in series}:
        item = Dataset()
        item.StudyInstanceUID = study
        item.ReferencedSeriesSequence = DicomSequence([_whole(s, headers) for s in series if s.study == study])
        items.append(item)
    return items


# ------------------------------------------------------------ identity and encoding


def _uid(made: Made, reference: Series, what: str) -> str:
    """Derive a UID from the exam, the model and the moment: one UID means one content."""
    text = " ".join(
        [reference.uid, made.target, made.model, made.version, made.moment.isoformat(), what,
         *(["stamped"] if made.is_stamped else []), hashlib.sha256(made.values.tobytes()).hexdigest()]
    )  # fmt: skip
    digest = hashlib.sha256(text.encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def _encoded(slice_: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = slice_.SOPClassUID, slice_.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.file_meta = meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, slice_, enforce_file_format=True)
    return buffer.getvalue()
