"""The 3D segmenter over whole exams: where it looks, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES
from app.core.errors import CaseError, WeightsError
from app.inference.tumour.segmentation import TumourSegmenter, segment_slices
from app.networks.unet import Segmenter2d
from app.networks.unet3d import Segmenter3d
from app.preprocessing.normalization import Normalization, measure, normalize
from app.preprocessing.slices import Canvas
from app.registry.manifest import read_manifest
from tests.networks.small_models import VOLUME, save_segmenter3d

WIDTHS, WINDOW = (4, 8), (32, 32, 32)


def _segmenter(seed: int = 1) -> TumourSegmenter:
    torch.manual_seed(seed)
    return TumourSegmenter(Segmenter3d(WIDTHS).eval(), Normalization("volume"), WINDOW, torch.device("cpu"))


@pytest.fixture
def volumes(phantom):
    return {m: phantom.volumes[m].astype(np.float32) for m in MODALITIES}


def test_nothing_is_found_outside_the_brain(volumes):
    labels = _segmenter().segment(volumes)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    assert labels.any()
    assert not labels[sum((v > 0).astype(int) for v in volumes.values()) < 2].any()


def test_intensities_and_z_scores_give_the_same(volumes):
    segmenter, scheme = _segmenter(), Normalization("volume")
    normalized = np.stack([normalize(volumes[m], measure(volumes[m], m, scheme), -1.0) for m in MODALITIES])
    brain = sum((v > 0).astype(int) for v in volumes.values()) >= 2
    np.testing.assert_array_equal(segmenter.segment_normalized(normalized, brain, -1.0), segmenter.segment(volumes))


def test_an_empty_sequence_is_background_all_over(volumes):
    labels = _segmenter().segment({**volumes, "t1c": np.zeros_like(volumes["t1c"])})
    assert labels.shape == volumes["t1c"].shape


def test_no_common_brain(volumes):
    with pytest.raises(CaseError, match="no common brain"):
        _segmenter().segment({m: np.zeros_like(v) for m, v in volumes.items()})


def test_memory_that_runs_out_is_said(volumes, monkeypatch):
    segmenter = _segmenter()

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter.network, "forward", exhausted)
    with pytest.raises(CaseError, match=r"tumour segmenter does not fit .*--device cpu"):
        segmenter.segment(volumes)


def test_another_error_is_not_taken_for_memory(volumes, monkeypatch):
    segmenter = _segmenter()

    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(segmenter.network, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        segmenter.segment(volumes)


def test_it_is_opened_from_a_manifest_and_nothing_else_is(tmp_path, weights_dir, volumes):
    torch.manual_seed(1)
    entry = save_segmenter3d(tmp_path, "s", WIDTHS, Segmenter3d(WIDTHS).state_dict(), VOLUME, WINDOW)
    segmenter = TumourSegmenter.open(entry, "cpu")
    assert segmenter.window == WINDOW
    np.testing.assert_array_equal(
        TumourSegmenter(segmenter.network, VOLUME, WINDOW, segmenter.device).segment(volumes),
        _segmenter().segment(volumes),
    )
    with pytest.raises(WeightsError, match="is a generator"):
        TumourSegmenter.open(read_manifest(weights_dir).entry("tiny"), "cpu")


def test_labels_of_slices_are_in_the_brain_alone():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    brain = np.zeros((20, 24, 16), bool)
    brain[4:16, 4:20, 3:12] = True
    canvas = Canvas({"axial": (32, 32), "coronal": (32, 32)})
    volumes = [random.normal(size=brain.shape).astype(np.float32) for _ in range(4)]
    labels = segment_slices(
        Segmenter2d((8, 8)), volumes, brain, ("axial", "coronal"), canvas, "BraTS-GLI-1", torch.device("cpu"), -1.0
    )
    assert labels.shape == brain.shape
    assert labels.dtype == np.uint8
    assert labels[brain].any()
    assert not labels[~brain].any()
