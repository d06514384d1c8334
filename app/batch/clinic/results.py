"""Write the results of an exam as scanned, and know whether those of just this request are there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from app import __version__
from app.core.atomic_io import save_bytes
from app.core.constants import Modality
from app.data.nifti_reader import Volume, file_sha256
from app.data.nifti_writer import encode_image
from app.dicom.derived import Made, derived_series
from app.dicom.destination import Destination, SendError
from app.dicom.sending import send_files
from app.inference.clinic.pipeline import CompletedExam
from app.inference.clinic.study import Study
from app.inference.models import Model
from app.inference.pipeline import fingerprint_of
from app.preprocessing.expected_quality import in_brief, reaches
from app.report.figures import clinic_picture
from app.report.viewer import write_clinic_view


@dataclass(frozen=True)
class Places:
    """Name the files of a result.

    Attributes:
        stem: begins their names.
    """

    folder: Path
    stem: str

    @property
    def image(self) -> Path:
        """Give the place of the made sequence."""
        return self.folder / f"{self.stem}.nii.gz"

    @property
    def record(self) -> Path:
        """Give the place of the record."""
        return self.folder / f"{self.stem}.json"

    @property
    def picture(self) -> Path:
        """Give the place of the picture."""
        return self.folder / f"{self.stem}.png"

    @property
    def view(self) -> Path:
        """Give the place of the page to scroll through."""
        return self.folder / f"{self.stem}-view.html"

    @property
    def series(self) -> Path:
        """Give the folder of the derived series."""
        return self.folder / f"{self.stem}-dicom"


@dataclass(frozen=True)
class Forms:
    """Say in which forms a result is written beside image, record and picture.

    Attributes:
        dicom: as a derived series.
        view: as a page to scroll through.
        stamp: whether `SYNTHETIC` stands in the pixels of the derived series.
    """

    dicom: bool = False
    view: bool = False
    stamp: bool = False


def request_of(
    sequences: Mapping[Modality, Volume],
    model: Model,
    reference: Modality | None = None,
    mask: Path | None = None,
    mask_of: Modality | None = None,
) -> dict[str, Any]:
    """Tell all that a result depends on, so that a later run knows whether it is the same.

    Args:
        model: the one that makes it, specialists chosen.
    """
    return {
        "inputs": {m: volume.sha256 for m, volume in sequences.items()},
        "reference": reference,
        "mask": None if mask is None else file_sha256(mask),
        **({} if mask_of is None else {"mask_of": mask_of}),
        "model": fingerprint_of(model),
        "fusion": None if model.fusion is None else model.fusion.name,
    }


def read_record(path: Path) -> dict[str, Any]:
    """Read an earlier record; empty where there is none."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def save_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record.

    Raises:
        OutputError: it cannot be written.
    """
    save_bytes((json.dumps(record, indent=2) + "\n").encode(), path)


def is_whole(places: Places, forms: Forms) -> bool:
    """Tell whether a result is there, undamaged, in all forms that are wanted."""
    wanted = [places.image, places.picture]
    wanted += [places.view] if forms.view else []
    if not all(p.is_file() for p in wanted):
        return False
    record = read_record(places.record)
    if forms.dicom:
        series = record.get("dicom", {})
        if len(list(places.series.glob("*.dcm"))) != series.get("files") or series.get("stamp", False) != forms.stamp:
            return False
    return bool(file_sha256(places.image) == record.get("image_sha256"))


def is_good_enough(record: Mapping[str, Any], least: float | None) -> bool:
    """Tell whether a result's record says that it is expected to reach an SSIM; yes where none is asked for."""
    return reaches(record.get("expected", {}).get("ssim_brain", {}).get("expected"), least)


def write_result(
    study: Study, done: CompletedExam, request: Mapping[str, Any], places: Places, forms: Forms = Forms()
) -> str:
    """Write series, picture, record and image; the image last, since the next run looks for it.

    Returns:
        The image's SHA-256.

    Raises:
        OutputError: one of them cannot be written.
    """
    places.folder.mkdir(parents=True, exist_ok=True)
    record = {**done.record, "request": request, "warnings": [*study.warnings, *done.warnings]}
    if study.series:
        record["study"] = next(iter(study.series.values())).study
        for modality, form in record["sequences"].items():
            form["series"] = study.series[modality].uid
    before = read_record(places.record)
    # The same request has the moment of its first result, so that UIDs stay.
    same = before.get("request") == request and "made" in before
    record["made"] = before["made"] if same else datetime.now().astimezone().isoformat(timespec="seconds")
    if "sent" in before:
        record["sent"] = before["sent"]
    if forms.dicom:
        record["dicom"] = _write_series(study, done, record, places.series, forms.stamp)
    title = f"{study.name}: {record['model']}, on the grid of {done.reference}"
    title += f", {brief}" if (brief := in_brief(record.get("expected", {}))) else ""
    save_bytes(clinic_picture(done.aligned, done.brain, done.target, done.synthesis, title), places.picture)
    if forms.view:
        write_clinic_view(done.aligned, done.brain, done.target, done.synthesis, title, places.view)
    content = encode_image(done.image)
    record["image_sha256"] = hashlib.sha256(content).hexdigest()
    save_record(record, places.record)
    save_bytes(content, places.image)
    return str(record["image_sha256"])


def _write_series(
    study: Study, done: CompletedExam, record: Mapping[str, Any], folder: Path, stamp: bool
) -> dict[str, Any]:
    """Write the derived series into a folder of its own, whole or not at all; tell its files."""
    reference = study.series[done.reference]
    made = Made(
        target=done.target,
        values=np.asarray(done.image.dataobj, dtype=np.float32),
        affine=np.asarray(done.image.affine, dtype=np.float64),
        model=f"{record['model']} {record['model_sha256'][:8]}",
        version=__version__,
        moment=datetime.fromisoformat(record["made"]),
        is_stamped=stamp,
    )
    files = derived_series(made, reference, [study.series[m] for m in done.aligned])
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        for number, content in enumerate(files, start=1):
            save_bytes(content, part / f"{number:04d}.dcm")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    own = pydicom.dcmread(folder / "0001.dcm", specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
    form = {"folder": folder.name, "files": len(files), "series": str(own), "reference_series": reference.uid}
    return form | ({"stamp": True} if stamp else {})


def send_result(places: Places, to: Destination, attempts: int = 3) -> bool:
    """Send a derived series, unless just that one was sent there before.

    Args:
        attempts: how often a node that does not answer is asked.

    Returns:
        Whether it was sent now.

    Raises:
        SendError: the series is not whole, or the other node did not take it all.
        UsageError: pynetdicom is not installed.
    """
    record = read_record(places.record)
    series = record.get("dicom", {}).get("series")
    if record.get("sent", {}).get(str(to)) == series:
        return False
    files = sorted(places.series.glob("*.dcm"))
    if not files or len(files) != record.get("dicom", {}).get("files"):
        raise SendError(f"{places.series} is not whole and was not sent; make it again (--overwrite).")
    send_files(files, to, attempts=attempts)
    record["sent"] = {**record.get("sent", {}), str(to): series}
    save_record(record, places.record)
    return True
