from __future__ import annotations

import pytest
import torch

from app.core.constants import CLASSES
from app.networks.architectures import UNetConfig
from app.networks.unet import Segmenter2d, UNetGenerator, code_planes


def _inputs(batch: int = 2, height: int = 32, width: int = 48) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    images = torch.randn(batch, 4, height, width)
    present = torch.tensor([[1.0, 0, 1, 1]]).repeat(batch, 1)
    return images, present, torch.full((batch,), 1), torch.arange(batch) % 3


class TestLightNetworks:
    """The segmenter, the plain generator and the discriminator."""

    def test_sizes_are_the_published_ones(self):
        for network in (Segmenter2d(), UNetGenerator(UNetConfig())):
            assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.8e6, rel=0.01)

    @pytest.mark.parametrize("size", [(32, 48), (144, 176)])
    def test_the_segmenter_gives_classes_of_every_pixel(self, size):
        images = torch.randn(2, 4, *size)
        logits = Segmenter2d((8, 8, 16, 16))(images, torch.tensor([0, 2]), torch.tensor([0, -1]))
        assert logits.shape == (2, CLASSES, *size)

    def test_view_and_tumour_type_matter(self):
        torch.manual_seed(0)
        network, images = Segmenter2d((8, 8, 8, 8)), torch.randn(1, 4, 32, 32)

        def run(view: int, kind: int) -> torch.Tensor:
            return network(images, torch.tensor([view]), torch.tensor([kind]))

        assert not torch.equal(run(0, 0), run(1, 0))
        assert not torch.equal(run(0, 0), run(0, 1))
        assert not torch.equal(run(0, 0), run(0, -1))

    def test_code_planes(self):
        planes = code_planes(torch.tensor([1, -1]), 3, torch.zeros(2, 1, 4, 5))
        assert planes.shape == (2, 3, 4, 5)
        assert planes[0].amax(dim=(1, 2)).tolist() == [0, 1, 0]
        assert not planes[1].any()

    def test_the_plain_generator_is_called_like_the_other(self):
        torch.manual_seed(0)
        network = UNetGenerator(UNetConfig((8, 8, 8, 8))).eval()
        images, present, target, view = _inputs()
        made = network(images, present, target, view)
        assert made.shape == (2, 1, 32, 48)
        hidden = images.clone()
        hidden[(present == 0)] = 99.0
        assert torch.equal(made, network(hidden, present, target, view))

    def test_neighbours_of_what_is_missing_are_hidden_too(self):
        torch.manual_seed(0)
        network = UNetGenerator(UNetConfig((8, 8, 8, 8), neighbours=1)).eval()
        images, present, target, view = _inputs()
        seen = torch.cat([images, images + 1, images - 1], dim=1)
        made = network(seen, present, target, view)
        assert made.shape == (2, 1, 32, 48)
        hidden, another = seen.clone(), seen.clone()
        hidden[:, [1, 5, 9]] = 99.0
        another[:, 6] = 99.0
        assert torch.equal(made, network(hidden, present, target, view))
        assert not torch.equal(made, network(another, present, target, view))

    def test_it_needs_the_view(self):
        network = UNetGenerator(UNetConfig((8, 8, 8, 8))).eval()
        images, present, target, _ = _inputs()
        with pytest.raises(ValueError, match="view code"):
            network(images, present, target)
