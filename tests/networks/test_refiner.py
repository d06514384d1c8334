from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from app.inference.device import Runtime
from app.networks.architectures import RefinerConfig
from app.networks.refiner import CrossAttention, Refiner, attention_weights
from app.preprocessing.normalization import Normalization

VOLUME = Normalization("volume", background=-1.0)
RUNTIME = Runtime("torch", "cpu", "fp32", 1, "test")
SHAPE = (40, 36, 44)
TARGET = torch.tensor([2])


def network(seed: int = 0, *, trained: bool = True, **config) -> Refiner:
    torch.manual_seed(seed)
    made = Refiner(RefinerConfig((8, 8, 8), **config)).eval()
    if trained:
        torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


def patch(seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(1, 1, 16, 12, 8, generator=random), torch.randn(1, 4, 16, 12, 8, generator=random))


class TestAttention:
    @given(st.integers(0, 99))
    def test_its_weights_are_above_zero_and_at_most_one(self, seed):
        random = torch.Generator().manual_seed(seed)
        query, key = (5 * torch.randn(3, 4, generator=random) for _ in range(2))
        weights = attention_weights(query, key)
        assert (weights > 0).all()
        assert (weights <= 1).all()
        assert torch.allclose(weights, torch.exp(-(query - key).abs()))
        assert torch.equal(attention_weights(query, query), torch.ones(3, 4))

    def test_no_voxel_looks_at_another(self):
        torch.manual_seed(0)
        block = CrossAttention(8)
        x, sequence = torch.randn(1, 4, 4, 4, 8), torch.randn(1, 4, 4, 4, 8)
        before = block(x, sequence)
        x[0, 1, 2, 3] += 1
        sequence[0, 3, 0, 0] += 1
        moved = (block(x, sequence) - before).abs().amax(dim=-1)[0] > 1e-6
        assert moved.nonzero().tolist() == [[1, 2, 3], [3, 0, 0]]


class TestNetwork:
    @pytest.mark.parametrize("shared", [False, True])
    def test_untrained_it_changes_nothing(self, shared):
        volume, images = patch()
        made = network(trained=False, shared_encoder=shared)(volume, images, TARGET, (0, 1, 3))
        assert torch.equal(made, volume)

    def test_untrained_it_changes_nothing_in_bfloat16_either(self):
        volume, images = patch()
        made = network(trained=False).bfloat16()(volume, images, TARGET, (0, 1, 3))
        assert made.dtype == torch.float32
        assert torch.equal(made, volume)

    @pytest.mark.parametrize("shared", [False, True])
    def test_an_absent_sequence_changes_nothing_and_a_present_one_does(self, shared):
        volume, images = patch()
        refiner, other = network(shared_encoder=shared), images.clone()
        other[:, 1] += torch.randn(16, 12, 8)
        assert torch.equal(refiner(volume, images, TARGET, (0, 3)), refiner(volume, other, TARGET, (0, 3)))
        assert not torch.allclose(refiner(volume, images, TARGET, (0, 1, 3)), refiner(volume, other, TARGET, (0, 1, 3)))

    def test_the_order_is_the_challenges_however_they_are_listed(self, monkeypatch):
        volume, images = patch()
        refiner, asked = network(), []
        for index, block in enumerate(refiner.attention):
            block.register_forward_hook(lambda *_, index=index: asked.append(index))
        assert torch.equal(refiner(volume, images, TARGET, (3, 0, 1)), refiner(volume, images, TARGET, (0, 1, 3)))
        assert asked == [0, 1, 3, 0, 1, 3]

    def test_the_order_matters(self):
        # The attention is no mean over sequences: what the first has answered is what the next is asked.
        volume, images = patch()
        refiner = network(shared_encoder=True)
        before = refiner(volume, images, TARGET, (0, 1))
        refiner.attention[0], refiner.attention[1] = refiner.attention[1], refiner.attention[0]
        assert not torch.allclose(refiner(volume, images, TARGET, (0, 1)), before)

    def test_it_knows_the_target(self):
        volume, images = patch()
        refiner = network()
        assert not torch.allclose(
            refiner(volume, images, torch.tensor([2]), (0, 1)), refiner(volume, images, torch.tensor([3]), (0, 1))
        )

    def test_a_shared_encoder_is_smaller_and_is_told_what_it_sees(self):
        own, shared = (sum(p.numel() for p in network(shared_encoder=s).answering.parameters()) for s in (False, True))
        assert 3.5 < own / shared < 4
        volume, images = patch()
        images[:, 1] = images[:, 0]
        refiner = network(shared_encoder=True)
        refiner.attention[1] = refiner.attention[0]
        assert not torch.allclose(refiner(volume, images, TARGET, (0,)), refiner(volume, images, TARGET, (1,)))

    def test_its_shape_survives_the_manifest(self):
        config = RefinerConfig((8, 16), shared_encoder=True)
        adapter = TypeAdapter(RefinerConfig)
        assert adapter.validate_json(adapter.dump_json(config)) == config
        assert Refiner(config).factor == 2
