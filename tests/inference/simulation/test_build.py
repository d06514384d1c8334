from __future__ import annotations

import logging

import pytest
import torch

from app.core.errors import UsageError
from app.data.phantom import make_phantom, write_phantom
from app.inference.simulation.build import build_atlas


def test_an_atlas_of_phantoms(training_data):
    atlas = build_atlas(training_data)
    assert atlas.subjects == 3
    assert atlas.frame.shape == (40, 44, 36)
    assert atlas.images.shape[0] == 4
    assert atlas.images.abs().max() <= 1
    assert (atlas.tissue.float().sum(0) <= 1.01).all()
    assert min(atlas.brightness) > 100
    assert torch.equal(atlas.images, build_atlas(training_data).images)


def test_who_has_no_segmentation_is_left_out(tmp_path, caplog):
    for seed in range(2):
        write_phantom(make_phantom((32, 36, 32), seed), tmp_path, f"p{seed}")
    (tmp_path / "p1" / "p1-seg.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        assert build_atlas(tmp_path).subjects == 1
    assert "p1 is left out of the atlas" in caplog.text


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UsageError):
        build_atlas(tmp_path)
