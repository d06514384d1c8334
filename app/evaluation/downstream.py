"""Measure the worth of a synthesised sequence to a frozen 3D tumour segmenter.

The segmenter was trained on real sequences alone. It teaches no generator: a teacher would approve of its own lessons.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, VolumeError
from app.core.types import VolumeArray
from app.data.labels import REGIONS
from app.data.nifti_reader import Grid, load_volume
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import Pair, VolumeScores
from app.inference.tumour.segmentation import TumourSegmenter

log = logging.getLogger(__name__)

#: Group of the rows from four real sequences.
REAL: Final = "four real"
#: Metrics reported per region, with decimals.
COLUMNS: Final[dict[str, int]] = {"dice": 3, "nsd1": 3, "hd95": 1}


@dataclass(frozen=True)
class _Exam:
    """Hold the four real sequences of one subject, their grid, and the true label map."""

    volumes: dict[Modality, VolumeArray]
    grid: Grid
    truth: NDArray[np.float32]


def score_downstream(pairs: Sequence[Pair], segmenter: TumourSegmenter) -> list[VolumeScores]:
    """Segment every exam as it is, and with each synthesised sequence in turn.

    Args:
        pairs: from `app.evaluation.scoring.find_pairs`; one without a mask or the other three sequences becomes a
            problem.

    Returns:
        Per subject one row with modality `REAL`, and one per pair. Metrics against the true mask, named by
        `segmentation_scores`. Those of a pair also against the segmenter's own result on the four real sequences; their
        names begin with `own_`.
    """
    subjects: dict[str, list[Pair]] = {}
    for pair in pairs:
        subjects.setdefault(pair.subject, []).append(pair)
    return [row for subject, group in subjects.items() for row in _score_subject(subject, group, segmenter)]


def downstream_rows(scores: Sequence[VolumeScores], own: bool = False) -> list[list[str]]:
    """Return header and cells of a table of means, one row per group of `downstream_summary`.

    Args:
        own: against the segmenter's own result on the four real sequences; else against the true masks. The latter also
            has `kept`, the Dice as a share of that with the four real sequences of the same subjects.
    """
    names = [f"{metric}_{region}" for region in REGIONS for metric in COLUMNS]
    header = ["against own result" if own else "replaced", "n", *(n.replace("_", " ") for n in names)]
    table = [header if own else [*header, *(f"kept {region}" for region in REGIONS)]]
    for group, values in downstream_summary(scores).items():
        if own and group == REAL:
            continue
        cells = [f"{values['own_' * own + n]:.{COLUMNS[n.partition('_')[0]]}f}" for n in names]
        kept = [f"{100 * values[f'kept_{r}']:.0f} %" if f"kept_{r}" in values else "-" for r in REGIONS]
        table.append([group, f"{values['n']:.0f}", *cells, *([] if own else kept)])
    return table


def downstream_summary(scores: Sequence[VolumeScores]) -> dict[str, dict[str, float]]:
    """Average the scores per group: `REAL`, each replaced sequence, and `mean` over all replaced ones.

    Returns:
        Per group `n` and means by metric name; but for `REAL` also `kept_*`, see `downstream_rows`.
    """
    usable = [s for s in scores if s.values]
    real = {s.subject: s.values for s in usable if s.modality == REAL}
    groups: dict[str, list[VolumeScores]] = {REAL: [s for s in usable if s.modality == REAL]}
    groups |= {m: [s for s in usable if s.modality == m] for m in MODALITIES}
    groups["mean"] = [s for s in usable if s.modality != REAL]
    summary: dict[str, dict[str, float]] = {}
    for group, rows in groups.items():
        if not rows:
            continue
        means = {name: float(np.mean([r.values[name] for r in rows])) for name in rows[0].values}
        if group != REAL:
            # Of the same subjects, as often as each is there: some are harder than others.
            whole = {r: float(np.mean([real[row.subject][f"dice_{r}"] for row in rows])) for r in REGIONS}
            means |= {f"kept_{r}": means[f"dice_{r}"] / max(whole[r], 1e-6) for r in REGIONS}
        summary[group] = {"n": float(len(rows)), **means}
    return summary


def _score_subject(subject: str, group: Sequence[Pair], segmenter: TumourSegmenter) -> list[VolumeScores]:
    try:
        exam = _load_exam(group[0])
        own = segmenter.segment(exam.volumes)
    except CaseError as error:
        return [VolumeScores(subject, REAL, problems=[str(error)])]
    rows = [VolumeScores(subject, REAL, segmentation_scores(own, exam.truth, exam.grid.lps_spacing))]
    rows += [_score_replaced(pair, exam, own, segmenter) for pair in group]
    log.info("%s segmented", subject)
    return rows


def _score_replaced(pair: Pair, exam: _Exam, own: NDArray[np.uint8], segmenter: TumourSegmenter) -> VolumeScores:
    """Segment the exam with one synthesised sequence; an error becomes a problem."""
    scores = VolumeScores(pair.subject, pair.modality)
    try:
        synthesis = load_volume(pair.prediction, strict=True)
        if not synthesis.grid.same_as(exam.grid):
            raise VolumeError(f"{pair.prediction} is not on the grid of {pair.reference}.")
        labels = segmenter.segment({**exam.volumes, pair.modality: synthesis.data})
        spacing = exam.grid.lps_spacing
        against_own = segmentation_scores(labels, own, spacing)
        scores.values = segmentation_scores(labels, exam.truth, spacing)
        scores.values |= {f"own_{name}": value for name, value in against_own.items()}
    except CaseError as error:
        scores.problems.append(str(error))
    return scores


def _load_exam(pair: Pair) -> _Exam:
    """Load the four real sequences and the label map of a pair's subject.

    Raises:
        CaseError: one of them lacks, cannot be read, or lies on another grid.
    """
    files = {**pair.others, pair.modality: pair.reference}
    if absent := [m for m in MODALITIES if m not in files]:
        raise CaseError(
            f"{pair.subject} has no real {', '.join(absent)}; the tumour segmenter needs all four sequences."
        )
    volumes = {m: load_volume(files[m], strict=True) for m in MODALITIES}
    grid = volumes[MODALITIES[0]].grid
    for modality, volume in volumes.items():
        if not volume.grid.same_as(grid):
            raise VolumeError(f"{files[modality]} is on another grid than {files[MODALITIES[0]]}.")
    if pair.segmentation is None:
        raise CaseError(f"{pair.subject} has no segmentation to compare with; name its folder with --segmentations.")
    mask = load_volume(pair.segmentation, strict=True)
    if not mask.grid.same_as(grid):
        raise VolumeError(f"{pair.segmentation} is on another grid than the sequences of {pair.subject}.")
    return _Exam({m: v.data for m, v in volumes.items()}, grid, mask.data)
