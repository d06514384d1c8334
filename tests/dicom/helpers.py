"""DICOM series that tests write: heads of noise with a mark, in any geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

#: Headers of plain sequences.
T1 = {"ScanningSequence": "SE", "EchoTime": "10", "RepetitionTime": "450", "SeriesDescription": "T1 SE"}
T2 = {"ScanningSequence": "SE", "EchoTime": "100", "RepetitionTime": "4400", "SeriesDescription": "T2 TSE"}
FLAIR = {"ScanningSequence": "IR", "EchoTime": "100", "RepetitionTime": "9000", "InversionTime": "2500",
         "SeriesDescription": "T2W FLAIR"}  # fmt: skip
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    number: int = 1,
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, float, float] = (-20.0, -24.0, 10.0),
    spacing: tuple[float, float, float] = (1.5, 1.0, 5.0),
    positions: list[tuple[float, float, float]] | None = None,
    study: str = "1.2.3",
    patient: str = "P1",
    **tags: Any,
) -> list[Path]:
    """Write a slice per file.

    Args:
        volume: int16, axes row, column, slice.
        spacing: between rows, between columns, between slices.
        positions: of each slice; on a straight stack if not given.
        tags: of every file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for index in range(volume.shape[2]):
        place = positions[index] if positions else np.array(origin) + normal * spacing[2] * index
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"{study}.{number}.{index + 1}"
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.Modality, dataset.PatientID, dataset.PatientName = "MR", patient, "Doe^Jane"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.{number}"
        dataset.SeriesNumber, dataset.InstanceNumber = number, index + 1
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = list(orientation), [float(v) for v in place]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[0], spacing[1]], 4.0
        dataset.Rows, dataset.Columns = volume.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.PixelData = np.ascontiguousarray(volume[:, :, index], dtype=np.int16).tobytes()
        # Names tell nothing of the order.
        paths.append(folder / f"{(index * 7) % 97:03d}-{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def change(path: Path, **tags: Any) -> None:
    """Give one file other tags."""
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def head(rows: int = 40, columns: int = 48, slices: int = 8) -> np.ndarray:
    """Noise with a bright mark in one corner."""
    volume = np.random.default_rng(0).integers(100, 300, (rows, columns, slices)).astype(np.int16)
    volume[4:8, 6:12, 1] = 2000
    return volume


def write_frames(path: Path, volume: np.ndarray, heights: list[float]) -> None:
    """One file of many frames, as enhanced MR has them."""
    (single,) = write_series(path.parent, volume[:, :, :1], **T1)
    dataset = pydicom.dcmread(single)
    dataset.NumberOfFrames = len(heights)
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [Dataset()], [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [1.5, 1.0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for height in heights:
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [-20, -24, height]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.PixelData = np.ascontiguousarray(volume.transpose(2, 0, 1)).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    single.unlink()
