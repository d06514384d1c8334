from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from app.core.errors import UsageError, WeightsError
from app.networks.architectures import Ds3NetConfig
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.networks.hf_gan import Fusion
from app.preprocessing.slices import Canvas
from app.registry import onnx_export
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from app.registry.onnx_export import OPSET, check_onnx_packages, export_onnx, halve_exact, to_onnx


def session_of(entry):
    import onnxruntime

    return onnxruntime.InferenceSession(entry.path_of("onnx"), providers=["CPUExecutionProvider"])


def test_the_graph_computes_what_the_network_does(confident_weights):
    """Any batch, any subset of sequences, any canvas; image and expected error."""
    entry = read_manifest(confident_weights).entry("unet")
    session, network = session_of(entry), load_generator(entry)
    assert [output.name for output in session.get_outputs()] == ["scores", "error"]
    images = torch.randn(3, 4, 40, 72, generator=torch.Generator().manual_seed(0))
    inputs = {"images": images, "present": torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0]]),
              "target": torch.tensor([1, 2, 3]), "view": torch.tensor([0, 1, 2])}  # fmt: skip
    image, error = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.inference_mode():
        features = network.features(*inputs.values())
        np.testing.assert_allclose(image, network.image(features).numpy(), atol=1e-4)
        np.testing.assert_allclose(error, network.error(features).numpy(), rtol=1e-3)


def test_a_ds3net_as_a_graph():
    """Any batch, and any target and canvas, though one of each was learnt."""
    import onnxruntime

    torch.manual_seed(0)
    network = Ds3NetSliceGenerator(Ds3NetConfig(width=4, blocks=1)).requires_grad_(False).eval()
    graph = to_onnx(network, Canvas({"axial": (32, 48)}))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    present = torch.tensor([[0.0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1]])
    inputs = {"images": torch.rand(3, 4, 48, 32) * 2 - 1, "present": present, "target": torch.tensor([0, 0, 2])}
    known = {i.name for i in session.get_inputs()}
    (made,) = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in known})
    np.testing.assert_allclose(made, network(*inputs.values()).numpy(), atol=1e-4)


def test_released_gates_as_a_graph():
    """One, two and three sequences in one batch: the released gates differ by their number."""
    import onnxruntime

    torch.manual_seed(0)
    fusion = Fusion(16, 4, "released").eval()
    present = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0]])
    inputs = {"features": torch.randn(3, 4, 16, 2, 3), "early": torch.randn(3, 16, 2, 3), "present": present}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.onnx.export(_AllMembers(fusion).eval(), kwargs=inputs, input_names=list(inputs),
                                  opset_version=OPSET, dynamo=True, verbose=False)  # fmt: skip
    session = onnxruntime.InferenceSession(graph.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.inference_mode():
        np.testing.assert_allclose(made, fusion(*inputs.values(), (0, 1, 2, 3)).numpy(), atol=1e-5)


def test_a_graph_tells_nothing_of_the_machine_that_made_it(confident_weights):
    graph = read_manifest(confident_weights).entry("unet").path_of("onnx").read_bytes()
    for told in (b"stack_trace", str(Path.home()).encode(), str(Path.cwd()).encode()):
        assert told not in graph


class _AllMembers(torch.nn.Module):
    """A fusion as a graph runs it: all four sequences, masked."""

    def __init__(self, fusion):
        super().__init__()
        self.fusion = fusion

    def forward(self, features, early, present):
        return self.fusion(features, early, present, (0, 1, 2, 3))


def test_another_kind_needs_no_graph(weights_dir):
    with pytest.raises(WeightsError, match="is a regression, which runs without onnxruntime"):
        export_onnx(read_manifest(weights_dir).entry("regression"))


def test_packages_that_lack_are_named(monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="onnxscript"):
        check_onnx_packages()


class TestHalfStorage:
    @staticmethod
    def _graph(weights):
        """y = x W, as ONNX."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 64]) for n in "xy")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weights, "w")]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    @staticmethod
    def _run(model, x):
        import onnxruntime

        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

    def test_what_half_holds_is_stored_so_and_computes_the_same(self):
        random = np.random.default_rng(0)
        weights = random.normal(size=(64, 64)).astype(np.float16).astype(np.float32)
        before = self._graph(weights)
        after = halve_exact(before)
        assert len(after) < 0.6 * len(before)
        assert weights.astype(np.float16).tobytes() in after
        x = random.normal(size=(2, 64)).astype(np.float32)
        np.testing.assert_array_equal(self._run(after, x), self._run(before, x))

    @pytest.mark.parametrize("number", [1 / 3, 1e6])
    def test_what_half_does_not_hold_stays_as_it_is(self, number):
        weights = np.ones((64, 64), np.float32)
        weights[5, 5] = number
        assert weights.tobytes() in halve_exact(self._graph(weights))
