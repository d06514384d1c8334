from __future__ import annotations

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.config import RuntimeOptions
from app.core.errors import CaseError, WeightsError
from app.data.phantom import make_phantom, write_phantom
from app.inference.device import Machine, choose_runtime
from app.inference.tumour.outlines import OutlineModel
from app.networks.architectures import CgSamrConfig
from app.registry.manifest import read_manifest
from tests.inference.simulation.helpers import SHAPE, save_small

PHANTOM = make_phantom(SHAPE, 2)
CONFIG = CgSamrConfig("ucgsamr", width=2, prior="tissue", norm="instance")


@pytest.fixture
def weights(tmp_path):
    save_small(tmp_path / "w", "unpaired", CONFIG)
    save_small(tmp_path / "w", "paired")
    return tmp_path / "w"


def _open(weights, name):
    entry = read_manifest(weights).entry(name)
    return OutlineModel.on(entry, choose_runtime(entry.files, Machine.probe(), RuntimeOptions("cpu", "torch", "fp32")))


def test_each_voxel_gets_the_label_of_its_own_slice(weights, monkeypatch):
    model = _open(weights, "unpaired")
    # A network that finds enhancement where T1c is bright.
    monkeypatch.setattr(model.network, "segment", lambda images: 3 * (images[:, 0] > 0.2).long())
    labels = model.labels(PHANTOM.volumes)
    bright = PHANTOM.volumes["t1c"] > 0.6 * np.percentile(PHANTOM.volumes["t1c"][PHANTOM.volumes["t1c"] > 0], 99.5)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels == 3, bright)


def test_an_untrained_one_answers_in_the_brain(weights):
    torch.manual_seed(0)
    labels = _open(weights, "unpaired").labels(PHANTOM.volumes)
    assert labels.shape == SHAPE
    assert (labels[PHANTOM.volumes["t1n"] == 0] == 0).all()


def test_an_exam_that_lacks_a_sequence_is_refused(weights):
    arrays = {m: v for m, v in PHANTOM.volumes.items() if m != "t2f"}
    with pytest.raises(CaseError, match="lacks t2f"):
        _open(weights, "unpaired").labels(arrays)


def test_a_paired_one_segments_nothing(weights):
    with pytest.raises(WeightsError, match="segments none"):
        _open(weights, "paired")


def test_the_command_segments_by_it(weights, tmp_path):
    write_phantom(PHANTOM, tmp_path / "in", "a")
    arguments = ["segment", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                 str(weights), "--model", "unpaired", "--device", "cpu"]  # fmt: skip
    assert main(arguments) == 0
    assert (tmp_path / "out" / "a-seg.nii.gz").is_file()
