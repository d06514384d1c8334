from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from app.inference.device import Runtime
from app.networks.architectures import REFINER_PRESETS, RefinerConfig
from app.networks.refiner import CrossAttention, FeatureNet3d, Refiner, attention_weights
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
        sequence[0, 3, 0, 0, 5] += 1
        moved = (block(x, sequence) - before).abs().amax(dim=-1)[0] > 1e-6
        assert moved.nonzero().tolist() == [[1, 2, 3], [3, 0, 0]]

    def test_equations_3_to_5_on_one_voxel_by_hand(self):
        # Two channels: layer norm brings (1, 3) to (-1, 1) and (5, 1) to (1, -1).
        block = CrossAttention(2)
        with torch.no_grad():
            for linear, factor in ((block.query, 1.0), (block.key, 0.5), (block.value, 2.0)):
                linear.weight.copy_(factor * torch.eye(2))
                linear.bias.zero_()
            block.feed[0].weight.copy_(torch.cat([torch.eye(2), -torch.eye(2)]))
            block.feed[0].bias.zero_()
            block.feed[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
            block.feed[2].bias.copy_(torch.tensor([0.0, 10.0]))
        volume, sequence = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 1.0])
        query, key, value = torch.tensor([-1.0, 1.0]), torch.tensor([0.5, -0.5]), torch.tensor([2.0, -2.0])
        attention = torch.exp(-(query - key).abs()) * value  # Equation 3: exp(-1.5) * (2, -2).
        assert torch.allclose(attention, torch.tensor([0.446260, -0.446260]), atol=1e-5)
        attended = volume + attention  # Equation 4: of the volume itself, not of what was normalised.
        expected = attended + attended + torch.tensor([0.0, 10.0])  # Equation 5, both above 0 here.
        out = block(volume.reshape(1, 1, 1, 1, 2), sequence.reshape(1, 1, 1, 1, 2)).flatten()
        assert torch.allclose(out, expected, atol=1e-4)
        assert torch.allclose(out, torch.tensor([2.892521, 15.107479]), atol=1e-4)

    def test_only_what_is_projected_is_normalised(self):
        # A sequence twice as bright answers the same; a volume with more in it keeps what it has.
        torch.manual_seed(0)
        block = CrossAttention(8)
        x, sequence = torch.randn(1, 2, 2, 2, 8), torch.randn(1, 2, 2, 2, 8)
        assert torch.allclose(block(x, sequence), block(x, 2 * sequence), atol=1e-4)
        torch.nn.init.zeros_(block.value.weight)
        torch.nn.init.zeros_(block.value.bias)
        assert torch.allclose(block(x, sequence), x + block.feed(x), atol=1e-6)


class TestNetwork:
    def test_untrained_it_changes_nothing(self):
        volume, images = patch()
        made = network(trained=False)(volume, images, TARGET, (0, 1, 3))
        assert torch.equal(made, volume)

    def test_untrained_it_changes_nothing_in_bfloat16_either(self):
        volume, images = patch()
        made = network(trained=False).bfloat16()(volume, images, TARGET, (0, 1, 3))
        assert made.dtype == torch.float32
        assert torch.equal(made, volume)

    def test_an_absent_sequence_changes_nothing_and_a_present_one_does(self):
        volume, images = patch()
        refiner, other = network(), images.clone()
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

    def test_each_attention_asks_with_what_the_one_before_answered(self):
        # Equations 3 to 5 follow one another: no mean over sequences.
        volume, images = patch()
        refiner = network()
        asked, answers = [], []
        for block in refiner.attention:
            block.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
            block.register_forward_hook(lambda _, __, out: answers.append(out))
        refiner(volume, images, TARGET, (0, 1, 3))
        assert torch.equal(asked[1], answers[0])
        assert torch.equal(asked[2], answers[1])

    def test_the_volume_goes_through_its_own_sequence_s_encoder(self):
        # Equations 1 and 2: four encoders, of which the target's sees the synthesised volume.
        volume, images = patch()
        refiner, seen = network(), {}
        for index, encoder in enumerate(refiner.encoders):
            encoder.register_forward_hook(lambda _, inputs, out, index=index: seen.update({index: inputs[0]}))
        refiner(volume, images, TARGET, (0, 1, 3))
        assert sorted(seen) == [0, 1, 2, 3]
        assert torch.equal(seen[2], volume)
        for member in (0, 1, 3):
            assert torch.equal(seen[member], images[:, member : member + 1])

    def test_it_knows_the_target(self):
        volume, images = patch()
        refiner = network()
        assert not torch.allclose(
            refiner(volume, images, torch.tensor([2]), (0, 1)), refiner(volume, images, torch.tensor([3]), (0, 1))
        )

    def test_a_batch_shows_one_sequence(self):
        volume, images = (torch.cat([part, part]) for part in patch())
        refiner = network()
        assert refiner(volume, images, torch.tensor([2, 2]), (0, 1)).shape == volume.shape
        with pytest.raises(ValueError, match="the same sequence"):
            refiner(volume, images, torch.tensor([2, 3]), (0, 1))

    def test_its_result_is_the_volume_and_a_residual_of_its_decoder(self):
        volume, images = patch()
        refiner, decoded = network(), []
        refiner.decoder.register_forward_hook(lambda _, __, out: decoded.append(out))
        out = refiner(volume, images, TARGET, (0, 1))
        assert torch.allclose(out, volume + refiner.head(decoded[0]))
        kernels = [m.kernel_size for m in refiner.decoder.modules() if isinstance(m, torch.nn.Conv3d)]
        assert kernels == [(3, 3, 3)] * 3
        assert refiner.head.kernel_size == (1, 1, 1)

    def test_the_paper_s_width_is_the_same_on_every_level(self):
        encoder = FeatureNet3d(1, REFINER_PRESETS[64])
        features = [
            m.out_channels for m in encoder.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)
        ]
        assert set(features) == {64}

    def test_its_shape_survives_the_manifest(self):
        config = RefinerConfig((8, 16), decoder_layers=2)
        adapter = TypeAdapter(RefinerConfig)
        assert adapter.validate_json(adapter.dump_json(config)) == config
        assert Refiner(config).factor == 2
