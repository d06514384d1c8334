from __future__ import annotations

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES
from app.core.errors import CaseError
from app.inference.tumour.tissnet import CompletingSegmenter, to_labels, to_range
from app.networks.architectures import TissNetConfig
from app.networks.tissnet.model import TissNet
from app.registry.spec import TissNetSpec
from app.training.data.cache import NORMALIZATION

CONFIG = TissNetConfig(widths=(4, 4, 6, 6, 8), sources=3, regions=3)
SPEC = TissNetSpec(
    architecture=CONFIG,
    normalization=NORMALIZATION,
    targets=("t2f",),
    sources=("t1c", "t1n", "t2w"),
    window=(32, 32, 16),
)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return CompletingSegmenter(TissNet(CONFIG).eval(), SPEC, torch.device("cpu"))


def test_a_whole_exam(segmenter, phantom):
    result = segmenter.run(phantom.volumes, "t2f")
    brain = phantom.volumes["t1n"] > 0
    assert result.labels.shape == result.synthesis.shape == brain.shape
    assert result.labels.dtype == np.uint8
    assert set(np.unique(result.labels)) <= {0, 1, 2, 3}
    assert (result.synthesis[~brain] == -1).all()
    again = segmenter.run(phantom.volumes, "t2f")
    assert np.array_equal(result.labels, again.labels)


def test_the_target_is_not_looked_at(segmenter, phantom):
    others = {**phantom.volumes, "t2f": np.zeros_like(phantom.volumes["t2f"])}
    first, second = (segmenter.run(exam, "t2f").synthesis for exam in (others, phantom.volumes))
    assert np.array_equal(first, second)


def test_one_network_for_every_case(phantom):
    torch.manual_seed(0)
    config = TissNetConfig(widths=(4, 4, 6, 6, 8), sources=4, regions=3, cases=5)
    spec = TissNetSpec(
        architecture=config, normalization=NORMALIZATION, targets=MODALITIES, complete=True, sources=MODALITIES,
        window=(32, 32, 16),
    )  # fmt: skip
    segmenter = CompletingSegmenter(TissNet(config).eval(), spec, torch.device("cpu"))
    answers = [segmenter.run(phantom.volumes, target) for target in (*MODALITIES, None)]
    assert [a.synthesis is None for a in answers] == [False] * 4 + [True]
    assert not np.array_equal(answers[0].coarse, answers[1].coarse)


def test_a_case_that_the_network_does_not_know(segmenter, phantom):
    with pytest.raises(CaseError, match="does not make t1c"):
        segmenter.run(phantom.volumes, "t1c")
    with pytest.raises(CaseError, match="needs an exam that lacks a sequence"):
        segmenter.run(phantom.volumes, None)


def test_a_source_that_lacks(segmenter, phantom):
    volumes = {m: v for m, v in phantom.volumes.items() if m != "t1n"}
    with pytest.raises(CaseError, match="t1n lacks"):
        segmenter.run(volumes, "t2f")


def test_range():
    assert to_range(np.array([0, 50, 100, 200], np.float32), 100).tolist() == [-1, 0, 1, 1]


def test_regions_become_labels():
    brain = np.array([[[True, True, True, True, False]]])
    regions = np.array([[0.9, 0.1, 0.1, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1, 0.9], [0.9, 0.9, 0.9, 0.1, 0.9]], np.float32)
    # The fourth: no smaller region without the larger one; the fifth: outside the brain.
    assert to_labels(regions[:, None, None], brain).ravel().tolist() == [3, 1, 2, 0, 0]
    assert to_labels(regions[2:, None, None], brain).ravel().tolist() == [2, 2, 2, 0, 0]
