"""Build an atlas from a folder of complete subjects, one after another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.core.constants import MODALITIES, Modality
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_reader import Volume
from app.data.segmentations import find_segmentations
from app.inference.simulation.atlas import Atlas, AtlasBuilder, frame_of
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.preprocessing.normalization import BACKGROUND, Normalization, measure, normalize

log = logging.getLogger(__name__)

#: How CG-SAMR sees intensities: 0 to the volume's 99.5th percentile becomes -1 to 1.
RANGE = Normalization("range", background=BACKGROUND)


def build_atlas(data: Path) -> Atlas:
    """Average the complete subjects of a folder that have a segmentation; the others are left out by name.

    Raises:
        UsageError: the folder does not exist, or holds none.
    """
    cases = scan(data).cases
    masks, builder = find_segmentations(data, cases), AtlasBuilder()
    for subject, volumes in load_complete(cases):
        labels = load_labels(masks.get(subject), volumes[MODALITIES[0]].grid, subject)
        if labels is None:
            log.warning("%s is left out of the atlas: nobody knows where its lesion is.", subject)
            continue
        _add(builder, volumes, labels)
        log.info("%s is in the atlas.", subject)
    return builder.build()


def _add(builder: AtlasBuilder, volumes: Mapping[Modality, Volume], labels: np.ndarray) -> None:
    arrays = {m: v.data for m, v in volumes.items()}
    brain = vote_foreground(arrays)
    box = bounding_box(brain)
    scales = {m: measure(a, m, RANGE) for m, a in arrays.items()}
    images = np.stack([normalize(arrays[m][box], scales[m], BACKGROUND) for m in MODALITIES])
    grid = volumes[MODALITIES[0]].grid
    frame = frame_of(brain.shape, grid.lps_affine, [side.start for side in box])
    builder.add(images, brain[box], labels[box], [scales[m].clip for m in MODALITIES], frame)
