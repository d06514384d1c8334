"""The head for confidence: what it gives, and what it leaves as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from app.networks import new_generator
from app.networks.architectures import GeneratorConfig
from app.networks.confidence import ConfidenceHead
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from tests.networks.small_models import CONFIDENT

FORM: TypeAdapter[GeneratorConfig] = TypeAdapter(GeneratorConfig)


class TestHead:
    @pytest.mark.parametrize("kind,scale,least", [("bounded", 0.03, 0.03), ("likelihood", 1.0, 1e-4)])
    def test_it_expects_a_positive_error_in_float32(self, kind, scale, least):
        head = ConfidenceHead(8, kind, scale).bfloat16()
        error = head(1e3 * torch.randn(2, 8, 16, 16).bfloat16())
        assert error.dtype == torch.float32
        assert error.shape == (2, 1, 16, 16)
        assert torch.isfinite(error).all()
        assert error.min() >= least

    @pytest.mark.parametrize("config", CONFIDENT.values(), ids=CONFIDENT)
    def test_it_changes_nothing_of_the_image(self, config):
        torch.manual_seed(0)
        network = new_generator(config).eval()
        bare = new_generator(replace(config, confidence="none")).eval()
        assert set(network.state_dict()) - set(bare.state_dict()) == {
            f"confidence.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
        }
        bare.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("confidence")})
        inputs = torch.randn(2, 4, 32, 48), torch.ones(2, 4), torch.tensor([0, 3]), torch.tensor([0, 2])
        with torch.inference_mode():
            features = network.features(*inputs)
            assert torch.equal(network.image(features), bare(*inputs))
            assert torch.equal(network(*inputs), bare(*inputs))
            assert network.error(features).std() > 0
            with pytest.raises(ValueError, match="no head"):
                bare.error(features)

    @pytest.mark.parametrize("config", CONFIDENT.values(), ids=CONFIDENT)
    def test_its_kind_travels_in_the_manifests_form(self, config):
        assert FORM.validate_json(FORM.dump_json(config)) == config

    def test_a_form_written_before_there_were_heads_still_reads(self):
        assert FORM.validate_python({"network": "unet", "widths": [8, 8], "background": -1.0}).confidence == "none"


def test_a_head_is_loaded_with_its_lambda(confident_weights):
    network = load_generator(read_manifest(confident_weights).entry("bounded"))
    assert network.confidence.scale == 0.1
