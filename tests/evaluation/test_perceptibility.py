from __future__ import annotations

import numpy as np
import pytest
import torch

from app.core.errors import CaseError
from app.evaluation.perceptibility import perceptibility_rows, score_perceptibility
from app.evaluation.scoring import find_pairs
from app.inference.tumour.tissnet import CompletingSegmenter
from app.networks.tissnet.model import TissNet
from app.registry.manifest import read_manifest
from app.registry.spec import TissNetSpec


@pytest.fixture
def segmenter(segmenting_weights):
    """S_p finds every voxel brighter than the middle of the range."""
    spec = read_manifest(segmenting_weights).entry("one").spec
    assert isinstance(spec, TissNetSpec)
    network = TissNet(spec.architecture).eval()
    network.perceptibility.forward = lambda images, case: (images > 0).float().repeat(1, 3, 1, 1, 1)
    return CompletingSegmenter(network, spec, torch.device("cpu"))


def test_what_is_seen_in_one_sequence(segmenter):
    volume = np.zeros((40, 40, 20), np.float32)
    volume[8:32, 8:32, 4:16] = 10
    volume[10:14, 10:14, 8:12] = 100
    found = segmenter.perceive(volume, "t2f")
    assert (found[10:14, 10:14, 8:12] == 3).all()
    assert np.count_nonzero(found) == 64
    with pytest.raises(CaseError, match="empty"):
        segmenter.perceive(np.zeros_like(volume), "t2f")


def test_made_and_real_are_scored_side_by_side(run_folder, complete, segmenter):
    pairs, _ = find_pairs(run_folder / "out", complete)
    rows = score_perceptibility(pairs[:2], segmenter)
    assert all({"dice_WT", "real_dice_WT", "hd95_ET"} <= set(row.values) for row in rows)
    header, *body = perceptibility_rows(rows)
    assert header[2:] == ["dice ET (real)", "dice TC (real)", "dice WT (real)"]
    assert {row[0] for row in body} == {pair.modality for pair in pairs[:2]}
