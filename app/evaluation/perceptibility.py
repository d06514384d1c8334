"""Measure what of a tumour a network finds in a made sequence alone.

Source: the TISS-Net paper, equation 5: a network S_p that learned to segment the real sequence judges the made one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.core.constants import MODALITIES
from app.core.errors import CaseError, VolumeError
from app.data.labels import REGIONS
from app.data.nifti_reader import load_volume
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import Pair, VolumeScores
from app.inference.tumour.tissnet import CompletingSegmenter


def score_perceptibility(pairs: Sequence[Pair], segmenter: CompletingSegmenter) -> list[VolumeScores]:
    """Score what a TISS-Net's S_p finds in each made sequence, and in the real one.

    Args:
        pairs: of `app.evaluation.scoring.find_pairs`; one without a mask becomes a problem.

    Returns:
        A row per pair: the metrics of `segmentation_scores` of the made sequence, and those of the real one, whose
        names begin with `real_`.
    """
    return [_score_pair(pair, segmenter) for pair in pairs]


def perceptibility_rows(scores: Sequence[VolumeScores]) -> list[list[str]]:
    """Return header and cells of a table of mean Dice: the made sequence's, and the real one's in brackets."""
    names = [name for name in (f"dice_{region}" for region in REGIONS) if any(name in s.values for s in scores)]
    table = [["seen by S_p alone", "n", *(f"{n.replace('_', ' ')} (real)" for n in names)]]
    for modality in MODALITIES:
        rows = [s.values for s in scores if s.modality == modality and s.values]
        if rows:
            means = [[float(np.mean([r[f"{kind}{n}"] for r in rows])) for kind in ("", "real_")] for n in names]
            table.append([modality, str(len(rows)), *(f"{made:.3f} ({real:.3f})" for made, real in means)])
    return table


def _score_pair(pair: Pair, segmenter: CompletingSegmenter) -> VolumeScores:
    scores = VolumeScores(pair.subject, pair.modality)
    try:
        if pair.segmentation is None:
            raise VolumeError(f"{pair.subject} has no segmentation to compare with.")
        truth = load_volume(pair.segmentation, strict=True)
        for kind, path in (("", pair.prediction), ("real_", pair.reference)):
            volume = load_volume(path)
            if not volume.grid.same_as(truth.grid):
                raise VolumeError(f"{path} is not on the grid of {pair.segmentation}.")
            found = segmenter.perceive(volume.data, pair.modality)
            values = segmentation_scores(found, truth.data, truth.grid.lps_spacing)
            scores.values |= {f"{kind}{name}": value for name, value in values.items()}
    except (CaseError, VolumeError) as error:
        scores.problems.append(str(error))
    return scores
