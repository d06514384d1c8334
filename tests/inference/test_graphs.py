"""CUDA graphs without a GPU: a stand-in records what torch runs and repeats it in the same memory, as a graph does."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.core.errors import UsageError
from app.inference.backends import TorchBackend
from app.inference.device import Machine, Runtime, choose_runtime
from app.inference.graphs import MOST, CudaRecorder, Graphs, Recording
from app.networks.architectures import HfGanConfig, UNetConfig
from app.networks.hf_gan import HfGan
from app.networks.unet import UNetGenerator

GPU = Machine(gpus=("H200",), gpu_bf16=True)


class _Tape(TorchDispatchMode):
    """Runs what it sees, and can run it again into the very tensors that came of it."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.steps:
            own = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            made = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(made), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in own:
                    old.copy_(new)


@pytest.fixture
def cuda(monkeypatch):
    """`torch.cuda` as far as recording needs it, on the processor."""

    class Graph:
        def __init__(self):
            self.tape = _Tape()

        def replay(self):
            self.tape.replay()

    @contextlib.contextmanager
    def record(graph, pool, on, capture_error_mode):
        assert (pool, on, capture_error_mode) == ("pool", stream, "thread_local")
        with graph.tape:
            yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    stand_in = {"device": lambda _: contextlib.nullcontext(), "graph_pool_handle": lambda: "pool",
                "Stream": lambda _: stream, "current_stream": lambda *_: stream,
                "stream": lambda _: contextlib.nullcontext(), "CUDAGraph": Graph, "graph": record}  # fmt: skip
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self, x, y=None):
        self.calls += 1
        doubled = x * 2
        return (doubled if y is None else doubled + y, doubled.sum(dim=0))


@pytest.fixture
def replayed(cuda):
    return Graphs(CudaRecorder(torch.device("cpu")))


class TestGraphs:
    def test_recorded_at_the_second_time_and_replayed_from_then_on(self, replayed):
        call = Counted()
        inputs = [torch.full((3, 2), float(k)) for k in range(5)]
        made = [replayed("f", call, (x,)) for x in inputs]
        # Once as it is; once before the recording and once in it.
        assert call.calls == 3
        for x, (doubled, total) in zip(inputs, made, strict=True):
            torch.testing.assert_close(doubled, 2 * x)
            torch.testing.assert_close(total, 2 * x.sum(dim=0))

    def test_shapes_types_and_names_have_their_own(self, replayed):
        call = Counted()
        for x in (torch.ones(3, 2), torch.ones(4, 2), torch.ones(3, 2, dtype=torch.float64)):
            for name in "fg":
                for k in range(3):
                    torch.testing.assert_close(replayed(name, call, (x * k,))[0], 2 * k * x)
        assert call.calls == 2 * 3 * 3

    def test_an_input_that_is_not_there(self, replayed):
        call = Counted()
        x, y = torch.ones(3, 2), torch.full((3, 2), 5.0)
        for k in range(3):
            torch.testing.assert_close(replayed("f", call, (x * k, None))[0], 2 * k * x)
            torch.testing.assert_close(replayed("f", call, (x, y * k))[0], 2 * x + y * k)

    def test_the_layout_of_the_inputs_is_kept(self, cuda):
        x = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        recording = CudaRecorder(torch.device("cpu"))(lambda x: (x + 1,), (x,))
        assert recording.inputs[0].is_contiguous(memory_format=torch.channels_last)
        assert recording.inputs[0].data_ptr() != x.data_ptr()

    def test_only_so_many_are_kept(self):
        recorded = []

        def record(call, inputs):
            recorded.append(inputs)
            outputs = call(*inputs)
            return Recording(inputs, outputs, lambda: None)

        some, call = Graphs(record), Counted()
        for rows in range(1, MOST + 5):
            for _ in range(2):
                assert some("f", call, (torch.ones(rows, 2),))[0].shape == (rows, 2)
        assert len(recorded) == MOST

    def test_shapes_that_come_once_take_nobodys_place(self, replayed):
        call = Counted()
        for rows in range(1, MOST + 5):
            replayed("f", call, (torch.ones(rows, 2),))
        for _ in range(5):
            replayed("f", call, (torch.ones(MOST + 9, 2),))
        assert len(replayed._known) == 1

    def test_what_broke_a_recording_is_said_and_what_was_recorded_is_let_go(self, caplog):
        def record(call, inputs):
            if len(inputs[0]) == 2:
                return Recording(inputs, call(*inputs), lambda: None)
            try:
                raise RuntimeError("the cause")
            except RuntimeError:
                raise RuntimeError("the recording is broken")  # noqa: B904

        some, call = Graphs(record), Counted()
        for rows in (2, 2, 3, 3, 2):
            assert some("f", call, (torch.ones(rows, 2),))[0].shape == (rows, 2)
        assert "(the cause)" in caplog.text
        assert not some._known

    def test_what_cannot_be_recorded_is_run_as_it_is(self, caplog):
        def record(*_):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        some, call = Graphs(record), Counted()
        for k in range(5):
            torch.testing.assert_close(some("f", call, (torch.ones(2, 2) * k,))[0], torch.full((2, 2), 2.0 * k))
        assert call.calls == 5
        assert caplog.text.count("No CUDA graph could be recorded") == 1
        assert "\nmore" not in caplog.text


def networks():
    torch.manual_seed(0)
    return {
        "unet": UNetGenerator(UNetConfig(widths=(8, 16), confidence="likelihood")),
        "unet told the median": UNetGenerator(UNetConfig(widths=(8, 16), intensity_code=True, confidence="bounded")),
        "hybrid": HfGan(HfGanConfig(width=8, intensity_code=True, confidence="likelihood")),
        "released": HfGan(HfGanConfig(width=8, position="learned", confidence="likelihood")),
    }


@pytest.mark.parametrize("name", networks())
def test_a_network_replayed_gives_the_same(cuda, name):
    network = networks()[name]
    plain = TorchBackend(network, Runtime("torch", "cpu", "fp32", 4, ""))
    replayed = TorchBackend(network, Runtime("torch", "cpu", "fp32", 4, "", cuda_graphs=True))
    random = np.random.default_rng(1)
    for k, members in enumerate([(0, 1, 2)] * 4 + [(1, 3)] * 3):
        images = random.normal(size=(4, 4, 32, 48)).astype(np.float32)
        target = 3 if members == (0, 1, 2) else 2 * (k % 2)
        asked = (images, members, target, random.integers(0, 3, 4), 0.1 * k)
        np.testing.assert_allclose(replayed.predict(*asked), plain.predict(*asked), atol=1e-5)
        for made, expected in zip(replayed.predict_with_error(*asked), plain.predict_with_error(*asked), strict=True):
            np.testing.assert_allclose(made, expected, atol=1e-5)
    assert len(replayed._graphs._known) == 4


class _NoLists(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {torch.Tensor.__getitem__, torch.Tensor.__setitem__}:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list) for part in index)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("members", [(0, 1, 2), (3,)])
def test_a_network_stays_on_its_device_and_never_asks_it_for_a_number(name, members):
    """What a graph cannot hold, and what breaks on a real GPU: torch's device without memory refuses both.

    It does not refuse an index that is a Python list, which a GPU copies from the processor: that is looked for.
    """
    network = networks()[name].eval().to("meta")
    number = torch.empty(4, dtype=torch.int64, device="meta")
    images, present = (torch.empty(4, 4, *size, device="meta") for size in ((32, 48), ()))
    asked = (images, present, number, number, torch.empty(4, device="meta"))
    with torch.inference_mode(), _NoLists():
        features = network.features(*asked, members=members)
        assert {network.image(features).device, network.error(features).device} == {torch.device("meta")}
        assert network(*asked, members=members).shape == (4, 1, 32, 48)


class TestAsking:
    def test_for_graphs(self):
        runtime = choose_runtime({"torch": {}}, GPU, cuda_graphs=True)
        assert runtime.cuda_graphs
        assert "CUDA graphs" in str(runtime)
        assert not choose_runtime({"torch": {}}, GPU).cuda_graphs

    @pytest.mark.parametrize("machine,backend", [(Machine(), "torch"), (GPU, "onnx")])
    def test_where_there_are_none(self, machine, backend):
        with pytest.raises(UsageError, match="leave out --cuda-graphs"):
            choose_runtime({"torch": {}, "onnx": {}}, machine, backend=backend, cuda_graphs=True)

    def test_nothing_is_recorded_unless_asked(self):
        assert TorchBackend(networks()["unet"], Runtime("torch", "cpu", "fp32", 4, ""))._graphs is None
