from __future__ import annotations

import pytest
import torch

from app.networks.discriminator import Discriminator


@pytest.mark.parametrize("form", ["pix2pix", "published"])
@pytest.mark.parametrize("size", [(32, 32), (144, 176), (240, 240)])
def test_the_discriminator_judges_patches_and_names_sequences(size, form):
    patches, classes = Discriminator(8, form)(torch.randn(2, 1, *size))
    assert patches.shape[:2] == (2, 1)
    assert patches.shape[2] > 1
    assert classes.shape == (2, 4)


class TestPublished:
    """Section 4.3.2 and figure 1b of the BraSyn 2025 entry."""

    def test_its_layers(self):
        network = Discriminator(32, "published")
        convolutions = [m for m in network.features if isinstance(m, torch.nn.Conv2d)]
        assert [m.out_channels for m in convolutions] == [32, 64, 128, 256]
        assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1]
        assert {m.kernel_size for m in convolutions} == {(4, 4)}
        kinds = [type(m).__name__ for m in network.features]
        assert kinds == ["Conv2d", "LeakyReLU", *["Conv2d", "GroupNorm", "LeakyReLU"] * 3]
        assert isinstance(network.classes, torch.nn.Conv2d)

    def test_its_classifier_sees_the_whole_slice(self):
        torch.manual_seed(0)
        network = Discriminator(8, "published")
        image = torch.randn(1, 1, 240, 240, requires_grad=True)
        assert network.features(image).shape[2:] == network.classes.kernel_size == (29, 29)
        network(image)[1][0, 2].backward()
        assert (image.grad[0, 0, :8].abs().sum(dim=1) > 0).all()
        assert (image.grad[0, 0, -8:].abs().sum(dim=1) > 0).all()

    def test_where_something_is_counts(self):
        """A mean over the map could not tell a slice from its mirror image; a convolution over it can."""
        torch.manual_seed(0)
        network, features = Discriminator(8, "published"), torch.randn(1, 64, 29, 29)
        assert not torch.allclose(network.classes(features), network.classes(features.flip(3)), atol=1e-3)


def test_a_patch_is_seventy_pixels():
    network = Discriminator(8)
    image = torch.zeros(1, 1, 160, 160, requires_grad=True)
    # InstanceNorm sees the whole image; without it the reach is that of the convolutions.
    for layer in [m for m in network.features if isinstance(m, torch.nn.InstanceNorm2d)]:
        layer.forward = lambda x: x
    network(image)[0][0, 0, 9, 9].backward()
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1)).flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70
