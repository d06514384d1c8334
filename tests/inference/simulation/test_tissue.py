from __future__ import annotations

import numpy as np

from app.data.phantom import make_phantom
from app.inference.simulation.tissue import tissue_probabilities
from app.preprocessing.normalization import BACKGROUND, Normalization, measure, normalize

RANGE = Normalization("range", background=BACKGROUND)


def test_the_tissues_of_a_phantom():
    phantom = make_phantom((48, 56, 40), 1)
    images = np.stack(
        [normalize(phantom.volumes[m], measure(phantom.volumes[m], m, RANGE), -1) for m in ("t1n", "t2w")]
    )
    healthy = (phantom.volumes["t1n"] > 0) & (phantom.labels == 0)
    tissue = tissue_probabilities(images, healthy)
    assert tissue.shape == (3, 48, 56, 40)
    assert np.allclose(tissue.sum(axis=0)[healthy], 1, atol=1e-5)
    assert (tissue[:, ~healthy] == 0).all()
    white, grey, fluid = ((tissue.argmax(axis=0) == number) & healthy for number in range(3))
    means = {m: [phantom.volumes[m][where].mean() for where in (white, grey, fluid)] for m in ("t1n", "t2w")}
    assert means["t1n"][0] > means["t1n"][1] > means["t1n"][2]
    assert means["t2w"][2] > max(means["t2w"][:2])


def test_the_fit_has_no_random_number():
    random = np.random.default_rng(0)
    images, brain = random.normal(size=(2, 500)).astype(np.float32), np.ones(500, bool)
    assert np.array_equal(tissue_probabilities(images, brain), tissue_probabilities(images, brain))


def test_a_constant_image_is_no_fault():
    tissue = tissue_probabilities(np.zeros((2, 50), np.float32), np.ones(50, bool))
    assert np.isfinite(tissue).all()
