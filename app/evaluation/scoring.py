"""Score synthesised sequences and label maps against the real ones.

Nothing is dropped in silence. Volumes without a counterpart, other grids, empty masks and values that are not finite
all end up among the problems. Problems make the command fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError, VolumeError
from app.core.types import MaskArray
from app.data.cases import tumour_type
from app.data.discovery import scan
from app.data.file_tree import images_below
from app.data.naming.names import parse_name
from app.data.nifti_reader import Volume, load_volume
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.image import image_scores
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.metrics.ssim import Border


@dataclass(frozen=True)
class Pair:
    """Join one synthesised volume with its real one and the subject's other real sequences."""

    subject: str
    modality: Modality
    prediction: Path
    reference: Path
    segmentation: Path | None
    others: dict[Modality, Path] = field(default_factory=dict)


@dataclass
class VolumeScores:
    """Hold the scores of one volume by metric name, and its problems."""

    subject: str
    modality: str
    values: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def tumour_type(self) -> str:
        """Return the subject's type, see `app.data.cases.tumour_type`."""
        return tumour_type(self.subject)


def find_pairs(prediction: Path, reference: Path, segmentations: Path | None = None) -> tuple[list[Pair], list[str]]:
    """Match predictions with real sequences (and masks) by name.

    Args:
        segmentations: where `<subject>-seg.nii.gz` lie; the reference folder if not given.

    Returns:
        The pairs, sorted, and a sentence for everything that has no counterpart.

    Raises:
        UsageError: a folder does not exist, or no pair is found.
    """
    cases = scan(reference).cases
    truths = {(c.subject, m): f for c in cases for m, f in c.files.items()}
    masks = find_segmentations(segmentations) if segmentations else find_segmentations(reference, cases)
    if not prediction.is_dir():
        raise UsageError(f"the prediction folder {prediction} does not exist.")
    pairs, problems = [], []
    predictions: dict[tuple[str, Modality], Path] = {}
    for path in images_below(prediction):
        name = parse_name(path)
        if name is None:
            continue
        subject, modality = name
        if name in predictions:
            problems.append(f"{path} is left out: {predictions[name]} is scored as {modality} of {subject}; keep one.")
            continue
        predictions[name] = path
        if name not in truths:
            problems.append(f"{path} has no counterpart in {reference}.")
            continue
        if subject not in masks:
            problems.append(f"{subject} has no segmentation: its official score is over the whole volume.")
        others = {m: f for (s, m), f in truths.items() if s == subject and m != modality}
        pairs.append(Pair(subject, modality, path, truths[name], masks.get(subject), others))
    if not pairs:
        raise UsageError(f"no file of {prediction} has a counterpart in {reference}; both name <subject>-<sequence>.")
    predicted = {p.subject for p in pairs}
    problems += [f"{s} of {reference} has no prediction." for s in sorted({s for s, _ in truths} - predicted)]
    problems += [
        f"{prediction} has no {m} of {s}, and all four of others." for s, m in _gaps(pairs, predictions, truths)
    ]
    return pairs, list(dict.fromkeys(problems))


def _gaps(
    pairs: Sequence[Pair],
    predictions: Collection[tuple[str, Modality]],
    truths: Mapping[tuple[str, Modality], Path],
) -> list[tuple[str, Modality]]:
    """List predictions that lack although another subject has all four, each sequence dropped in turn."""
    counts = Counter(p.subject for p in pairs)
    if len(counts) == 1 or max(counts.values()) < len(MODALITIES):
        return []
    names = [(s, m) for s in sorted(counts) for m in MODALITIES]
    return [name for name in names if name in truths and name not in predictions]


def score_all(pairs: Sequence[Pair], border: Border = "keep", jobs: int = 2) -> list[VolumeScores]:
    """Score many pairs in `jobs` processes, see `score_pair`."""
    if jobs == 1 or len(pairs) == 1:
        return [score_pair(p, border) for p in pairs]
    with ProcessPoolExecutor(min(jobs, len(pairs))) as pool:
        return list(pool.map(score_pair, pairs, [border] * len(pairs)))


def score_pair(pair: Pair, border: Border = "keep") -> VolumeScores:
    """Score one pair; an error becomes a problem that names the file."""
    scores = VolumeScores(pair.subject, pair.modality)
    try:
        synthesis, truth = load_volume(pair.prediction, strict=True), load_volume(pair.reference, strict=True)
        if not synthesis.grid.same_as(truth.grid):
            difference = synthesis.grid.difference(truth.grid)
            raise VolumeError(f"{pair.prediction} is not on the grid of {pair.reference} ({difference}).")
        if synthesis.data.max() == synthesis.data.min():
            scores.problems.append(f"{pair.prediction} has the same value ({synthesis.data.max():g}) everywhere.")
        tumour = _load_tumour(pair, truth)
        if tumour is not None and not tumour.any():
            scores.problems.append(f"{pair.segmentation} is empty: tumour scores of {pair.subject} mean nothing.")
        scores.values = image_scores(synthesis.data, truth.data, tumour, truth.grid.lps_spacing, border)
    except VolumeError as error:
        scores.problems.append(str(error))
    return scores


def _load_tumour(pair: Pair, truth: Volume) -> MaskArray | None:
    """Load the tumour mask of a pair; None where there is no segmentation.

    Raises:
        VolumeError: it cannot be read, or lies on another grid than `truth`.
    """
    if pair.segmentation is None:
        return None
    mask = load_volume(pair.segmentation, strict=True)
    if not mask.grid.same_as(truth.grid):
        raise VolumeError(f"{pair.segmentation} is not on the grid of {pair.reference}.")
    return mask.data > 0


def score_segmentations(prediction: Path, reference: Path) -> list[VolumeScores]:
    """Score predicted label maps by Dice and surface distances, matched by `<subject>-seg` names.

    Raises:
        UsageError: no pair is found.
    """
    predictions, truths = find_segmentations(prediction), find_segmentations(reference)
    if not predictions:
        raise UsageError(f"{prediction} holds no <subject>-seg.nii.gz.")
    return [_score_segmentation(s, predictions[s], truths.get(s), reference) for s in sorted(predictions)]


def _score_segmentation(subject: str, prediction: Path, truth: Path | None, reference: Path) -> VolumeScores:
    scores = VolumeScores(subject, "seg")
    try:
        if truth is None:
            raise VolumeError(f"{prediction} has no counterpart in {reference}.")
        labels, real = load_volume(prediction, strict=True), load_volume(truth, strict=True)
        if not labels.grid.same_as(real.grid):
            raise VolumeError(f"{prediction} is not on the grid of {truth}.")
        scores.values = segmentation_scores(labels.data, real.data, real.grid.lps_spacing)
    except VolumeError as error:
        scores.problems.append(str(error))
    return scores
