from __future__ import annotations

import numpy as np
import pytest
import torch

from app.data.phantom import make_phantom
from app.inference.simulation import simulator as module
from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.generator import SimulatedSlices
from app.preprocessing.foreground import bounding_box
from tests.inference.simulation.helpers import SHAPE, small_atlas, small_simulator

PHANTOM = make_phantom(SHAPE, 3)
BRAIN = PHANTOM.volumes["t1n"] > 0


def test_volumes_of_an_outline():
    made = small_simulator().run(BRAIN, PHANTOM.labels)
    assert made.images.shape == made.confidence.shape == (4, *SHAPE)
    assert made.images.dtype == np.float32
    assert (made.images[:, ~BRAIN] == -1).all()
    assert np.abs(made.images).max() <= 1
    assert (made.confidence[:, ~BRAIN] == 0).all()
    assert (made.confidence[:, BRAIN] > 0).all()
    assert len(made.stripes) == 4


@pytest.mark.parametrize(
    "config",
    [
        CgSamrConfig(width=2, prior="none", confidence=False),
        CgSamrConfig(width=2, prior="subject"),
        CgSamrConfig("ucgsamr", width=2, prior="tissue", norm="instance"),
        CgSamrConfig("pix2pix", width=4),
    ],
    ids=str,
)
def test_every_form(config):
    made = small_simulator(config).run(BRAIN, PHANTOM.labels)
    assert made.images.shape == (4, *SHAPE)
    assert (made.confidence is None) == (config.form == "pix2pix" or not config.confidence)


def test_lesions_change_where_they_are():
    simulator = small_simulator()
    ill, well = (simulator.run(BRAIN, labels, even=False).images for labels in (PHANTOM.labels, 0 * PHANTOM.labels))
    assert not np.array_equal(ill, well)


@pytest.mark.parametrize("prior,sees", [("subject", True), ("tissue", True), ("atlas", False), ("none", False)])
def test_own_tissue_counts_where_the_network_sees_it(prior, sees):
    simulator = small_simulator(CgSamrConfig(width=2, prior=prior))
    own = np.zeros((3, *BRAIN[bounding_box(BRAIN)].shape), np.uint8)
    own[0] = 255
    plain, told = (simulator.run(BRAIN, PHANTOM.labels, tissue).images for tissue in (None, own))
    assert simulator.sees_own_tissue == sees
    assert np.array_equal(plain, told) == (not sees)


def test_brightness_is_evened_where_tissue_is_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "even_brightness", lambda volume, *rest: (seen.append(rest), volume)[1])
    small_simulator(CgSamrConfig(width=2, prior="atlas")).run(BRAIN, PHANTOM.labels)
    assert not seen
    simulator = small_simulator(CgSamrConfig(width=2, prior="subject"))
    simulator.run(BRAIN, PHANTOM.labels)
    assert len(seen) == 4
    tissue, brain, lesion = seen[0]
    box = bounding_box(BRAIN)
    assert np.array_equal(tissue, small_atlas().tissue_on(brain.shape))
    assert np.array_equal(brain, BRAIN[box])
    assert np.array_equal(lesion, PHANTOM.labels[box] > 0)


class _Echo(torch.nn.Module):
    """Give back what was given of the brain, the labels and the middle of the first atlas."""

    def forward(self, inputs):
        return SimulatedSlices(torch.stack([inputs[:, 0], inputs[:, 2], inputs[:, 3], inputs[:, 5]], dim=1))


def test_each_voxel_gets_its_own_input():
    simulator = small_simulator()
    simulator._network = _Echo()
    normal, oedema, enhancing, atlas = simulator.run(BRAIN, PHANTOM.labels, even=False).images
    assert np.array_equal(normal == 1, BRAIN & (PHANTOM.labels == 0))
    assert np.array_equal(oedema == 1, PHANTOM.labels == 2)
    assert np.array_equal(enhancing == 1, PHANTOM.labels == 3)
    box = bounding_box(BRAIN)
    extent = [side.stop - side.start for side in box]
    index = extent[2] // 2
    expected = small_atlas().prior("atlas", extent, index)[1]
    shown = atlas[box][..., index]
    inside = BRAIN[box][..., index]
    assert np.allclose(shown[inside], expected[inside])
