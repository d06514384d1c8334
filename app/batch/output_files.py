"""Name, check and write the files of one subject's outputs."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib

from app.batch.outcomes import OutputRecord
from app.core.atomic_io import save_bytes
from app.core.config import RunConfig
from app.core.constants import Modality
from app.core.errors import VolumeError
from app.data.cases import Case, Plan
from app.data.nifti_reader import load_volume, read_grid
from app.data.nifti_writer import encode_image
from app.data.origin import SYNTHETIC, origin_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputFiles:
    """Know where a run's outputs lie, and which of an earlier run are still good.

    Attributes:
        folder: of the images.
        confidence_folder: of the confidence maps; None where none are wanted.
    """

    folder: Path
    confidence_folder: Path | None

    @classmethod
    def of(cls, config: RunConfig) -> OutputFiles:
        """Take the folders of a run."""
        return cls(config.output_dir, config.confidence_dir)

    def image_path(self, subject: str, target: Modality) -> Path:
        """Name the file of a synthesised sequence."""
        return self.folder / f"{subject}-{target}.nii.gz"

    def confidence_path(self, subject: str, target: Modality) -> Path | None:
        """Name the file of a confidence map; None where none are wanted."""
        folder = self.confidence_folder
        return None if folder is None else folder / f"{subject}-{target}-confidence.nii.gz"

    def find_good(self, case: Case, plan: Plan, fallback: str | None) -> list[OutputRecord]:
        """Find the outputs that are there already and need not be made again.

        Args:
            fallback: the model whose outputs the chosen one tries again; None where they are the same.
        """
        records = (self._check(case, plan, target, fallback) for target in plan.targets)
        return [record for record in records if record is not None]

    def _check(self, case: Case, plan: Plan, target: Modality, fallback: str | None) -> OutputRecord | None:
        """Describe the output that is there; None where there is none, or it must be made again."""
        path = self.image_path(case.subject, target)
        if not path.exists():
            return None
        try:
            # Decoded whole: a damaged file may have a good header.
            grid = load_volume(path).grid
            if not grid.same_as(read_grid(case.files[plan.reference_of(target)])):
                return None
        except VolumeError as error:
            log.warning("%s It is made again.", error)
            return None
        origin = origin_of(grid)
        confidence = self.confidence_path(case.subject, target)
        if _is_outdated(origin, len(plan.inputs), fallback) or (confidence is not None and not confidence.exists()):
            return None
        return OutputRecord(target, str(path), hashlib.sha256(path.read_bytes()).hexdigest(), origin=origin)


def write_image(image: nib.Nifti1Image, path: Path) -> str:
    """Write an image whole or not at all; give its SHA-256.

    Raises:
        OutputError: it cannot be written.
    """
    content = encode_image(image)
    save_bytes(content, path)
    return hashlib.sha256(content).hexdigest()


def _is_outdated(origin: str, inputs: int, fallback: str | None) -> bool:
    if origin.startswith(SYNTHETIC) and f"from {inputs}," not in origin:
        # It was made when fewer inputs could be read (or more, which have gone since).
        return True
    # The network broke on it; perhaps it does not now.
    return f", {fallback} " in origin
