"""Name, check and write the files of one subject's outputs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib

from app.batch.outcomes import OutputRecord
from app.core.atomic_io import save_bytes
from app.core.config import Resume, RunConfig
from app.core.constants import SEGMENTATION, Content, Modality
from app.core.errors import VolumeError
from app.data.cases import Case, Plan
from app.data.nifti_reader import Grid, load_volume, read_grid
from app.data.nifti_writer import encode_image
from app.data.origin import SYNTHETIC, origin_of
from app.inference.provenance import expected_of, inputs_digest, inputs_of
from app.preprocessing.expected_quality import reaches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptOutput:
    """Hold an output that is there and good.

    Attributes:
        warnings: what cannot be known of it, one sentence each.
        same_inputs: whether its header says that it was made from the files that are there now.
    """

    record: OutputRecord
    warnings: tuple[str, ...]
    same_inputs: bool


@dataclass(frozen=True)
class OutputFiles:
    """Know where a run's outputs lie, and which of an earlier run are still good.

    Attributes:
        folder: of the images.
        confidence_folder: of the confidence maps; None where none are wanted.
        resume: `any` keeps outputs of other inputs too.
        min_expected_ssim: outputs of which less was expected, or of which nobody knows, are not kept.
    """

    folder: Path
    confidence_folder: Path | None
    resume: Resume = "same"
    min_expected_ssim: float | None = None

    @classmethod
    def of(cls, config: RunConfig) -> OutputFiles:
        """Take the folders of a run."""
        return cls(config.output_dir, config.confidence_dir, config.resume, config.model.min_expected_ssim)

    def image_path(self, subject: str, target: Content) -> Path:
        """Name the file of a sequence or of a segmentation."""
        return self.folder / f"{subject}-{target}.nii.gz"

    def confidence_path(self, subject: str, target: Modality) -> Path | None:
        """Name the file of a confidence map; None where none are wanted."""
        folder = self.confidence_folder
        return None if folder is None else folder / f"{subject}-{target}-confidence.nii.gz"

    def find_good(
        self, case: Case, plan: Plan, fallback: str | None, sha256s: Mapping[Modality, str]
    ) -> list[KeptOutput]:
        """Find the outputs that are there already and need not be made again.

        Args:
            fallback: the model whose outputs the chosen one tries again; None where they are the same.
            sha256s: checksums of the plan's inputs.
        """
        found = []
        for target in plan.targets:
            reference = case.files[plan.reference_of(target)]
            confidence = self.confidence_path(case.subject, target)
            if confidence is None or confidence.exists():
                found.append(self.check(case.subject, target, reference, sha256s, fallback))
        return [output for output in found if output is not None]

    def check(
        self, subject: str, target: Content, reference: Path, sha256s: Mapping[Modality, str], fallback: str | None
    ) -> KeptOutput | None:
        """Describe the output that is there; None where there is none, or it must be made again.

        Args:
            reference: the input whose grid it must have.
            fallback, sha256s: as `find_good`.
        """
        path, digest = self.image_path(subject, target), inputs_digest(sha256s)
        if not os.path.lexists(path):
            return None
        try:
            # Decoded whole: a damaged file may have a good header.
            volume = load_volume(path, strict=target == SEGMENTATION)
            if not volume.grid.same_as(read_grid(reference)):
                return None
        except VolumeError as error:
            log.warning("%s It is made again.", error)
            return None
        origin, stated = origin_of(volume.grid), inputs_of(volume.grid)
        if _is_outdated(origin, len(sha256s), fallback) or self._is_doubtful(path, volume.grid):
            return None
        if stated not in {None, digest} and self.resume == "same":
            log.warning("%s was made from other inputs than are there now; it is made again.", path)
            return None
        record = OutputRecord(target, str(path), volume.sha256, origin=origin)
        return KeptOutput(record, _doubts(path, origin, stated, digest), stated == digest)

    def _is_doubtful(self, path: Path, grid: Grid) -> bool:
        """Tell whether less was expected of an output than is asked for, or nobody knows."""
        if reaches(expected_of(grid), self.min_expected_ssim):
            return False
        log.warning("%s is not known to reach what --min-expected-ssim asks for; it is made again.", path)
        return True


def _doubts(path: Path, origin: str, stated: str | None, digest: str) -> tuple[str, ...]:
    """Say what is not right, or not known, of an output that is kept."""
    if stated == digest:
        return ()
    if not origin.startswith(SYNTHETIC):
        reason = "nothing in it says that Tetrad made it"
    elif stated is None:
        reason = "its header does not tell from which inputs it was made (version 0.1.0 did not write that)"
    else:
        reason = "it was made from other inputs than are there now (--resume any)"
    return (f"{path} is kept, but {reason}; --overwrite makes it again.",)


def write_image(image: nib.Nifti1Image, path: Path) -> str:
    """Write an image whole or not at all; give its SHA-256.

    Raises:
        OutputError: it cannot be written.
    """
    content = encode_image(image)
    save_bytes(content, path, alone=True)
    return hashlib.sha256(content).hexdigest()


def _is_outdated(origin: str, inputs: int, fallback: str | None) -> bool:
    if origin.startswith(SYNTHETIC) and f"from {inputs}," not in origin:
        # It was made when fewer inputs could be read (or more, which have gone since).
        return True
    # The network broke on it; perhaps it does not now.
    return f", {fallback} " in origin
