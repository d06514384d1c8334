"""Scores synthesised sequences against the real ones: tidy rows, a summary, paired comparison of two folders.

Nothing is dropped in silence: a prediction without a truth, a truth without a prediction, another grid, an empty mask
and values that are not finite all end up among the problems, and problems make the command fail.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError, VolumeError
from app.data.cases import tumour_type
from app.data.discovery import find_segmentations, images_below, parse_name, scan
from app.data.nifti_reader import load_volume
from app.evaluation.metrics.image import image_scores
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.metrics.ssim import Border

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One synthesised volume, what it is compared with, and the subject's other real sequences."""

    subject: str
    modality: Modality
    prediction: Path
    reference: Path
    segmentation: Path | None
    others: dict[Modality, Path] = field(default_factory=dict)


@dataclass
class Scores:
    """Scores of one volume by metric name, and what was wrong."""

    subject: str
    modality: str
    values: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def tumour_type(self) -> str:
        """See `app.data.cases.tumour_type`."""
        return tumour_type(self.subject)


def find_pairs(prediction: Path, reference: Path, segmentations: Path | None = None) -> tuple[list[Pair], list[str]]:
    """Matches predictions with real sequences (and masks) by name.

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
    pairs, problems = [], []
    if not prediction.is_dir():
        raise UsageError(f"the prediction folder {prediction} does not exist.")
    found: dict[tuple[str, Modality], Path] = {}
    for path in images_below(prediction):
        named = parse_name(path)
        if named is None:
            continue
        if named in found:
            problems.append(f"{path} is left out: {found[named]} is scored as {named[1]} of {named[0]}; keep one.")
            continue
        found[named] = path
        if named not in truths:
            problems.append(f"{path} has no counterpart in {reference}.")
            continue
        mask = masks.get(named[0])
        if mask is None:
            problems.append(f"{named[0]} has no segmentation: its official score is over the whole volume.")
        others = {m: f for (s, m), f in truths.items() if s == named[0] and m != named[1]}
        pairs.append(Pair(named[0], named[1], path, truths[named], mask, others))
    if not pairs:
        raise UsageError(f"no file of {prediction} has a counterpart in {reference}; both name <subject>-<sequence>.")
    predicted = {p.subject for p in pairs}
    problems += [f"{s} of {reference} has no prediction." for s in sorted({s for s, _ in truths} - predicted)]
    counts = Counter(p.subject for p in pairs)
    if len(counts) > 1 and max(counts.values()) == len(MODALITIES):
        # Each sequence was dropped in turn.
        problems += [
            f"{prediction} has no {m} of {s}, and all four of others."
            for s in sorted(predicted) for m in MODALITIES if (s, m) in truths and (s, m) not in found
        ]  # fmt: skip
    return pairs, list(dict.fromkeys(problems))


def score_pair(pair: Pair, border: Border = "keep") -> Scores:
    """Scores one pair; what cannot be scored becomes a problem that names the file."""
    scores = Scores(pair.subject, pair.modality)
    try:
        made, truth = load_volume(pair.prediction, strict=True), load_volume(pair.reference, strict=True)
        if not made.grid.same_as(truth.grid):
            difference = made.grid.difference(truth.grid)
            raise VolumeError(f"{pair.prediction} is not on the grid of {pair.reference} ({difference}).")
        if made.data.max() == made.data.min():
            scores.problems.append(f"{pair.prediction} has the same value ({made.data.max():g}) everywhere.")
        tumour = None
        if pair.segmentation is not None:
            mask = load_volume(pair.segmentation, strict=True)
            if not mask.grid.same_as(truth.grid):
                raise VolumeError(f"{pair.segmentation} is not on the grid of {pair.reference}.")
            tumour = mask.data > 0
            if not tumour.any():
                scores.problems.append(f"{pair.segmentation} is empty: tumour scores of {pair.subject} mean nothing.")
        scores.values = image_scores(made.data, truth.data, tumour, truth.grid.lps_spacing, border)
    except VolumeError as error:
        scores.problems.append(str(error))
    return scores


def score_all(pairs: Sequence[Pair], border: Border = "keep", jobs: int = 2) -> list[Scores]:
    """`score_pair` over many, in `jobs` processes."""
    if jobs == 1 or len(pairs) == 1:
        return [score_pair(p, border) for p in pairs]
    with ProcessPoolExecutor(min(jobs, len(pairs))) as pool:
        return list(pool.map(score_pair, pairs, [border] * len(pairs)))


def score_segmentations(prediction: Path, reference: Path) -> list[Scores]:
    """Dice and surface distances of predicted label maps, matched by `<subject>-seg` names.

    Raises:
        UsageError: no pair is found.
    """
    made, real = find_segmentations(prediction), find_segmentations(reference)
    results = []
    for subject in sorted(made):
        scores = Scores(subject, "seg")
        try:
            if subject not in real:
                raise VolumeError(f"{made[subject]} has no counterpart in {reference}.")
            a, b = load_volume(made[subject], strict=True), load_volume(real[subject], strict=True)
            if not a.grid.same_as(b.grid):
                raise VolumeError(f"{made[subject]} is not on the grid of {real[subject]}.")
            scores.values = segmentation_scores(a.data, b.data, b.grid.lps_spacing)
        except VolumeError as error:
            scores.problems.append(str(error))
        results.append(scores)
    if not results:
        raise UsageError(f"{prediction} holds no <subject>-seg.nii.gz.")
    return results


# ---------------------------------------------------------------- summaries
