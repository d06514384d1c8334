from __future__ import annotations

import pytest
import torch

from app.networks.architectures import Ds3NetConfig
from app.networks.ds3net.generator import (
    CONTRASTED,
    DISTILLED,
    Ds3NetGenerator,
    Encoder,
    PatchDiscriminator,
    ProjectionHeads,
    ResidualBlock,
    SequenceFusion,
    reflected,
)

CONFIG = Ds3NetConfig(width=4, sources=3)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Ds3NetGenerator(CONFIG)


def test_shapes_and_range(generator):
    output = generator(torch.randn(2, 3, 32, 48))
    assert output.image.shape == (2, 1, 32, 48)
    assert output.image.abs().max() <= 1
    assert set(output.features) == {*CONTRASTED, *DISTILLED}
    sizes = {layer: tuple(f.shape[1:]) for layer, f in output.features.items()}
    assert sizes == {
        0: (3, 38, 54), 4: (24, 32, 48), 8: (48, 16, 24), 12: (48, 8, 12), 16: (48, 8, 12), 21: (16, 16, 24),
    }  # fmt: skip


def test_an_encoder_has_nine_residual_blocks_at_the_numbers_of_the_paper():
    layers = Encoder(4, CONFIG.blocks).layers
    assert [i for i, layer in enumerate(layers) if isinstance(layer, ResidualBlock)] == list(range(12, 21))


def test_gates_of_the_sequences_add_up_to_one():
    torch.manual_seed(0)
    fusion, features = SequenceFusion(8, 3), [torch.randn(2, 8, 4, 4)] * 3
    # What is the same in all sequences stays as it is.
    assert torch.allclose(fusion(features), features[0], atol=1e-6)


def test_a_made_image_goes_through_every_encoder(generator):
    features = generator.encode_image(torch.randn(1, 1, 32, 32))
    assert features[12].shape == (1, 48, 8, 8)


def test_heads_give_unit_vectors(generator):
    heads = ProjectionHeads(CONFIG, size=16)
    features = generator.encode(torch.randn(2, 3, 32, 32))
    for layer in CONTRASTED:
        vectors = heads(features[layer], layer, torch.tensor([0, 3, 5]))
        assert vectors.shape == (2, 3, 16)
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(2, 3), atol=1e-5)


def test_a_score_sees_70_by_70_pixels():
    network = PatchDiscriminator(width=2).double()
    for module in network.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    image = torch.randn(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = network(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = image.grad[0, 0] != 0
    assert [int(seen.any(dim=axis).sum()) for axis in (0, 1)] == [70, 70]


@pytest.mark.parametrize("width", [1, 3])
def test_padding_is_the_same_where_a_graph_is_written(width, monkeypatch):
    image = torch.randn(2, 3, 8, 9)
    padded = reflected(image, width)
    assert torch.equal(padded, torch.nn.functional.pad(image, [width] * 4, mode="reflect"))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(reflected(image, width), padded)
