"""Find the MR series below a folder, and read one as a volume."""

from __future__ import annotations

import filecmp
import hashlib
import logging
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from app.core.errors import VolumeError
from app.data.nifti_reader import Grid, Volume, clear_negatives_in_place
from app.dicom.geometry import GeometryError, SliceHeader, Stack, stack
from app.dicom.naming import SeriesHeader, SeriesName, name_series
from app.dicom.timing import Timing, weighting_by_timing
from app.dicom.words import is_agent, weighting_by_words

log = logging.getLogger(__name__)

#: Problem of a series of two echoes, of which one may be a sequence.
SEVERAL_ECHOES: Final = "holds several echoes; export each by itself"
#: Suffixes by which a file without a preamble is taken for DICOM.
_SUFFIXES: Final = frozenset({".dcm", ".dicom", ".ima"})
_KINDS: Final = frozenset({"M", "P", "R", "I", "PHASE", "REAL", "IMAGINARY"})
#: What files of many frames say in place of ScanningSequence.
_ECHOES: Final = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}

# Headers break the standard in many small ways. What is passed on stays as it was, and nobody can mend it here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Series:
    """Describe one series by its headers.

    Attributes:
        uid, study, patient: SeriesInstanceUID, StudyInstanceUID, PatientID.
        number: SeriesNumber.
        files: one per slice, or one of many frames.
        header: what it says of itself.
        slices: the place of each file's slice, or of each frame.
        problem: why it is no volume of an MR sequence; None where it may be one.
    """

    uid: str
    study: str
    patient: str
    number: int
    files: tuple[Path, ...]
    header: SeriesHeader
    slices: tuple[SliceHeader, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> SeriesName:
        """Say which sequence it is, by itself alone."""
        return self.name_among_others()

    def name_among_others(self, agent_counts: bool = True) -> SeriesName:
        """Say which sequence it is.

        Args:
            agent_counts: as `app.dicom.naming.name_series`.
        """
        return SeriesName(None, self.problem) if self.problem is not None else name_series(self.header, agent_counts)

    @property
    def may_be(self) -> set[str]:
        """List the weightings that timing or name speak for."""
        found = (weighting_by_timing(self.header.timing), weighting_by_words([self.header.description]))
        return {weighting for weighting in found if weighting is not None}

    @property
    def has_several_directions(self) -> bool:
        """Whether its slices lie in more than one plane, as a localizer's."""
        return len({tuple(round(v, 2) for v in s.orientation) for s in self.slices}) > 1

    @property
    def has_frames(self) -> bool:
        """Whether one file holds all slices."""
        return len(self.files) == 1

    def file_of(self, index: int) -> Path:
        """Give the file of a slice."""
        return self.files[0 if self.has_frames else index]

    @property
    def title(self) -> str:
        """Name it for a person."""
        count = f"{len(self.slices) or len(self.files)} slices"
        return f"series {self.number} ({self.header.description or 'without description'}, {count})"


@dataclass
class _Found:
    headers: list[Any] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def find_series(folder: Path, exclude: Sequence[Path] = ()) -> list[Series]:
    """Find the series below a folder, of whatever nesting, by their headers alone.

    Args:
        exclude: folders to leave out.

    Returns:
        In the order of their numbers. Files that are no DICOM are passed over, and so is a second copy of an image.

    Raises:
        VolumeError: a file is damaged DICOM; without it a slice might seem to lack, or a whole sequence.
    """
    found: dict[str, _Found] = defaultdict(_Found)
    images: dict[tuple[str, str], Path] = {}
    apart = [place.resolve() for place in exclude]
    # Files that begin with a point are of file systems, not of studies.
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if any(path.resolve().is_relative_to(place) for place in apart):
            continue
        header = _header_of(path)
        if header is None or not (uid := str(header.get("SeriesInstanceUID", ""))):
            continue
        image = uid, str(header.get("SOPInstanceUID", "")) or str(path)
        if image in images and filecmp.cmp(path, images[image], shallow=False):
            log.warning("%s is a second copy of an image and is passed over.", path)
            continue
        images[image] = path
        found[uid].headers.append(header)
        found[uid].files.append(path)
    series = [_series_of(uid, one.headers, one.files) for uid, one in found.items()]
    return sorted(series, key=lambda s: (s.study, s.number, s.uid))


def geometry_of(series: Series) -> Stack:
    """Order a series' slices, from headers alone.

    Raises:
        VolumeError: they are no volume.
    """
    if series.problem is not None:
        raise VolumeError(f"{series.title} {series.problem}.")
    try:
        return stack(series.slices)
    except GeometryError as error:
        raise VolumeError(f"{series.title} {error}.") from None


def read_series(series: Series) -> Volume:
    """Read a series as a volume: float32, axes L, P, S, with its rescaling applied.

    Raises:
        VolumeError: its slices are no volume, or its pixels cannot be decoded.
    """
    order = geometry_of(series)
    try:
        array, notes = _read_planes(series, order)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:160]
        raise VolumeError(f"{series.title} cannot be decoded ({reason}); export it again.") from None
    affine = order.affine
    if float(array.min()) == float(array.max()):
        raise VolumeError(f"{series.title} has the same value everywhere; leave it out, or export it again.")
    notes += clear_negatives_in_place(array, series.title)
    x, y, z = array.shape
    header = nib.Nifti1Header()
    header.set_data_shape((x, y, z))
    header.set_data_dtype(np.int16)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_xyzt_units("mm")
    grid = Grid(series.files[0], (x, y, z), affine, header, tuple(notes))
    data = np.ascontiguousarray(apply_orientation(array, grid.to_lps), dtype=np.float32)
    digest = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in series.files)).hexdigest()
    return Volume(data, grid, tuple(notes), digest)


# ------------------------------------------------------------ headers


def _header_of(path: Path) -> Any:
    """Read a file's header; None where it is no DICOM, or a list of others.

    Raises:
        VolumeError: it is damaged DICOM.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=path.suffix.lower() in _SUFFIXES)
    except InvalidDicomError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise VolumeError(
            f"{path} is damaged DICOM ({type(error).__name__}); export the study again, or take the file out."
        ) from None
    if path.suffix.lower() in _SUFFIXES and "SOPClassUID" not in header and "DirectoryRecordSequence" not in header:
        raise VolumeError(f"{path} is named like DICOM and cannot be read as such; export it again, or take it out.")
    return None if "DirectoryRecordSequence" in header else header


def _series_of(uid: str, headers: Sequence[Any], files: Sequence[Path]) -> Series:
    first = headers[0]
    problem = _problem_of(headers)
    slices: tuple[SliceHeader, ...] = ()
    if problem is None:
        try:
            slices = tuple(_frames_of(first) if _is_multi_frame(first) else (_slice_of(h, h, h, h) for h in headers))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            problem = "has slices whose place is not told"
    return Series(
        uid=uid,
        study=str(first.get("StudyInstanceUID", "")),
        patient=str(first.get("PatientID", "")),
        number=int(first.get("SeriesNumber") or 0),
        files=tuple(files),
        header=_describe(first),
        slices=slices,
        problem=problem,
    )


def _problem_of(headers: Sequence[Any]) -> str | None:
    """Say why a series is no MR volume; None where it may be one."""
    first = headers[0]
    owners = {(str(h.get("PatientID", "")), str(h.get("StudyInstanceUID", ""))) for h in headers}
    checks = {
        f"is {first.get('Modality') or 'of no modality'}, not MR": str(first.get("Modality", "")) != "MR",
        "is in colour": int(first.get("SamplesPerPixel") or 1) != 1,
        "has no pixels": "Rows" not in first,
        "is stored inverted (MONOCHROME1)": any(h.get("PhotometricInterpretation") == "MONOCHROME1" for h in headers),
        "was synthesised, and is no scan": any(str(h.get("SyntheticData", "")) == "YES" for h in headers),
        "has files of several patients or studies": len(owners) > 1,
        "has several files of many frames": _is_multi_frame(first) and len(headers) > 1,
        SEVERAL_ECHOES: len({_rounded_echo(h) for h in headers}) > 1,
        "holds several kinds of images (magnitude, phase); export each by itself": len(set(map(_kind_of, headers))) > 1,
    }
    return next((text for text, wrong in checks.items() if wrong), None)


def _rounded_echo(header: Any) -> float | None:
    echo = _number(header, "EchoTime")
    return None if echo is None else round(echo)


def _kind_of(header: Any) -> frozenset[str]:
    """Tell magnitude, phase, real and imaginary images apart."""
    return _KINDS & {value.upper() for value in _texts_of(header.get("ImageType"))}


def _texts_of(value: Any) -> tuple[str, ...]:
    return () if not value else (value,) if isinstance(value, str) else tuple(map(str, value))


def _is_multi_frame(header: Any) -> bool:
    return int(header.get("NumberOfFrames") or 1) > 1


def _frames_of(header: Any) -> Iterator[SliceHeader]:
    """Give the place of each frame, from the functional groups.

    Raises:
        AttributeError, IndexError, TypeError: a group lacks.
    """
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    for frame in header.PerFrameFunctionalGroupsSequence:
        groups = [
            (frame if name in frame else shared)[name][0]
            for name in ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence")
        ]
        yield _slice_of(header, *groups)


def _slice_of(header: Any, measures: Any, orientation: Any, position: Any) -> SliceHeader:
    rows, columns = (float(v) for v in measures.PixelSpacing)
    return SliceHeader(
        orientation=tuple(float(v) for v in orientation.ImageOrientationPatient),
        position=tuple(float(v) for v in position.ImagePositionPatient),
        spacing=(rows, columns),
        size=(int(header.Rows), int(header.Columns)),
        thickness=_number(measures, "SliceThickness"),
    )


def _describe(header: Any) -> SeriesHeader:
    technique = _texts_of(header.get("ScanningSequence")) or _ECHOES.get(str(header.get("EchoPulseSequence")), ())
    timing = Timing(
        technique=technique,
        echo=_number(header, "EchoTime") or _of_frames(header, "MREchoSequence", "EffectiveEchoTime"),
        repetition=_number(header, "RepetitionTime")
        or _of_frames(header, "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
        inversion=_number(header, "InversionTime") or _of_frames(header, "MRModifierSequence", "InversionTimes"),
        planar=str(header.get("EchoPlanarPulseSequence", "")).upper() == "YES",
    )
    return SeriesHeader(
        description=str(header.get("SeriesDescription") or header.get("ProtocolName") or ""),
        timing=timing,
        agent=_names_agent(header),
        image_type=_texts_of(header.get("ImageType")),
        b_value=_number(header, "DiffusionBValue") or _of_frames(header, "MRDiffusionSequence", "DiffusionBValue"),
        body_part=str(header.get("BodyPartExamined") or ""),
        moment=_moment_of(header),
    )


def _moment_of(header: Any) -> str | None:
    """Give the date and time of an acquisition as text that sorts by time."""
    if whole := str(header.get("AcquisitionDateTime") or ""):
        return whole
    for kind in ("Acquisition", "Series", "Content"):
        date, time = (str(header.get(f"{kind}{what}") or "") for what in ("Date", "Time"))
        # A time without its day cannot be compared.
        if time and (day := date or str(header.get("StudyDate") or "")):
            return day + time
    return None


def _names_agent(header: Any) -> bool:
    """Tell whether a contrast agent is named; many sites write that there was none."""
    text = str(header.get("ContrastBolusAgent") or "")
    if text.strip():
        return is_agent(text)
    numbers = (_number(header, name) or 0.0 for name in ("ContrastBolusVolume", "ContrastBolusTotalDose"))
    named = header.get("ContrastBolusAgentSequence") or header.get("ContrastBolusIngredient")
    return bool(named) or any(value > 0 for value in numbers)


def _of_frames(header: Any, group: str, name: str) -> float | None:
    """Read a number of a file of many frames, which stands in its functional groups."""
    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in (header.get(place) or [])[:1]:
            for part in (item.get(group) or [])[:1]:
                return _number(part, name)
    return None


def _number(header: Any, name: str) -> float | None:
    value = header.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    try:
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------ pixels


def _read_planes(series: Series, order: Stack) -> tuple[NDArray[np.float32], list[str]]:
    """Read the slices in their order; axes column, row, slice.

    Raises:
        VolumeError: two slices at one place differ.
    """
    # A file of many frames is decoded once.
    frames = _pixels(series.files[0]) if series.has_frames else None

    def plane(index: int) -> NDArray[np.float32]:
        decoded: NDArray[np.float32] = frames[index] if frames is not None else _pixels(series.files[index])[0]
        return decoded

    notes = []
    if order.copies:
        if not all(np.array_equal(plane(copy), plane(kept)) for copy, kept in order.copies.items()):
            raise VolumeError(
                f"{series.title} has different slices at one place; export each stack as a series of its own."
            )
        notes.append(f"{series.title} has {len(order.copies)} slices twice; one of each is used.")
    planes = [None if index < 0 else plane(index) for index in order.order]
    filled = [p if p is not None else _between(planes, i) for i, p in enumerate(planes)]
    if order.lacking:
        notes.append(f"{series.title} lacks {order.lacking} of {len(planes)} slices; they were interpolated.")
    return np.stack([p.T for p in filled], axis=2), notes


def _between(planes: Sequence[NDArray[np.float32] | None], index: int) -> NDArray[np.float32]:
    before, after = planes[index - 1], planes[index + 1]
    assert before is not None
    assert after is not None
    return np.asarray((before + after) / 2, dtype=np.float32)


def _pixels(path: Path) -> NDArray[np.float32]:
    """Decode a file: frame, row, column; its rescaling applied."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32)), dtype=np.float32)
