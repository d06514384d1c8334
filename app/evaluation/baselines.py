"""Score the baselines of any network: nothing, the best copied sequence, the voxel-wise regression."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.core.types import VolumeArray
from app.data.cases import Case
from app.data.discovery import scan
from app.data.nifti_reader import Volume, load_volume
from app.data.nifti_writer import to_array
from app.evaluation.metrics.image import image_scores
from app.evaluation.scoring import VolumeScores
from app.inference.loading import open_fallback
from app.inference.models import Model
from app.inference.pipeline import synthesize_case
from app.registry.manifest import read_manifest

log = logging.getLogger(__name__)


def score_baselines(data: Path, jobs: int = 2, weights: Path = WEIGHTS_DIR) -> dict[str, list[VolumeScores]]:
    """Drop each sequence of each complete subject in turn and score every baseline.

    Args:
        data: complete subjects with `<subject>-seg.nii.gz` beside them.

    Returns:
        Per baseline, one `VolumeScores` per subject and sequence. `best copy` takes one input per target: that whose
        plain copy has the highest mean `ssim_brain` on this very data. A baseline deserves a generous choice.

    Raises:
        UsageError: no complete subject.
    """
    cases = [c for c in scan(data).cases if c.problem is None and len(c.usable) == len(MODALITIES)]
    if not cases:
        raise UsageError(f"{data} holds no complete subject; give a folder of subjects with four sequences.")
    tasks = [(c, m, weights) for c in cases for m in MODALITIES]
    with ProcessPoolExecutor(min(jobs, len(tasks))) as pool:
        results = list(pool.map(_score_target, tasks))
    zero, regression = ([r[name] for r in results] for name in ("all zero", "regression"))
    return {"all zero": zero, "best copy": _best_copies(results), "regression": regression}


def _best_copies(results: Sequence[dict[str, VolumeScores]]) -> list[VolumeScores]:
    copies = []
    for target in MODALITIES:
        of_target = [r for r in results if r["all zero"].modality == target]
        sources = [f"copy of {m}" for m in MODALITIES if m != target]
        best = max(sources, key=lambda s: np.mean([r[s].values["ssim_brain"] for r in of_target]))
        log.info("The best copy for %s is a %s.", target, best)
        copies += [r[best] for r in of_target]
    return copies


def _score_target(task: tuple[Case, Modality, Path]) -> dict[str, VolumeScores]:
    case, target, weights = task
    volumes = {m: load_volume(f) for m, f in case.files.items()}
    truth = volumes.pop(target)
    mask = next((p for p in case.files[target].parent.glob(f"{case.subject}*seg.nii*")), None)
    tumour = None if mask is None else load_volume(mask, strict=True).data > 0
    baselines: dict[str, Callable[[], VolumeArray]] = {
        "all zero": lambda: np.zeros_like(truth.data),
        "regression": lambda: _regress(open_fallback(read_manifest(weights)), volumes, target),
    }
    for modality, volume in volumes.items():
        baselines[f"copy of {modality}"] = lambda v=volume: v.data  # type: ignore[misc]
    return {
        name: VolumeScores(case.subject, target, image_scores(predict(), truth.data, tumour, truth.grid.lps_spacing))
        for name, predict in baselines.items()
    }


def _regress(model: Model, volumes: dict[Modality, Volume], target: Modality) -> VolumeArray:
    reference = next(iter(volumes))
    return to_array(synthesize_case(volumes, target, reference, model).image, volumes[reference].grid)
