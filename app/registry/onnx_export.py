"""Writes a generator as ONNX, for onnxruntime."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.core.errors import UsageError, WeightsError
from app.networks.architectures import Ds3NetConfig, GeneratorConfig
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.networks.hf_gan import HfGan
from app.networks.unet import UNetGenerator
from app.preprocessing.slices import Canvas, neighbour_offsets
from app.registry.checkpoints import load_generator
from app.registry.manifest import Entry, add_file
from app.registry.spec import GeneratorSpec

log = logging.getLogger(__name__)

OPSET = 18
#: Numbers in a tensor from which on it pays to store it in half.
_LARGE = 1024


def export_onnx(entry: Entry) -> Entry:
    """Adds `{name}.onnx` to a generator's folder and manifest entry.

    Raises:
        WeightsError: the model is no generator.
        OutputError: the folder cannot be written to.
        UsageError: the packages that export needs are not installed.
    """
    if not isinstance(entry.spec, GeneratorSpec):
        raise WeightsError(
            f"model {entry.name!r} is a {entry.spec.kind}, which runs without onnxruntime; name a generator."
        )
    check_onnx_packages()
    return add_file(entry, "onnx", to_onnx(load_generator(entry), entry.spec.canvas))


def to_onnx(network: HfGan | UNetGenerator | Ds3NetSliceGenerator, canvas: Canvas) -> bytes:
    """A generator as ONNX.

    The graph takes any subset of sequences (all four encoders run, the missing ones are masked) and any batch. With a
    confidence head it has a second output, `error`: the expected absolute error, as large as `scores`. Its canvas may
    vary when the positions are sinusoidal; a learned table fixes it to `canvas`.

    Args:
        network: float32, on the CPU, in eval mode.
    """
    outputs = ["scores"] if network.confidence is None else ["scores", "error"]
    names, inputs = _example(canvas, network.config)
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes: dict[str, dict[int, object]] = {name: {0: batch} for name in names}
    if network.config.position == "sinusoidal":
        # The network halves the sides some times; torch reads that off the factor.
        multiple = network.config.multiple
        rows, columns = (
            torch.export.Dim(f"{name}{multiple}", min=32 // multiple, max=1024 // multiple)
            for name in ("rows", "columns")
        )
        shapes["images"] |= {2: multiple * rows, 3: multiple * columns}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        program = torch.onnx.export(
            network if network.confidence is None else _Both(network),
            kwargs=inputs,
            input_names=names,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(os.fspath(path), external_data=False)
        return halve_exact(path.read_bytes())


def halve_exact(model: bytes) -> bytes:
    """Stores float32 weights that float16 holds exactly as such, with a cast before their use.

    What the exporter notes of each node, the place in the source among it, is left out.

    Shipped weights were rounded to float16 when they were exported. The runtime casts them once, when it opens the
    file, and computes the same.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    form = onnx.load_from_string(model)
    casts = []
    for tensor in form.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < _LARGE:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name, stored = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    others = list(form.graph.node)
    for noted in (*others, *form.graph.value_info):
        del noted.metadata_props[:]
    del form.graph.node[:]
    form.graph.node.extend([*casts, *others])
    return bytes(form.SerializeToString())


class _Both(nn.Module):
    """A network with a confidence head, called for both that it gives."""

    def __init__(self, network: HfGan | UNetGenerator | Ds3NetSliceGenerator) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores and expected error, each B x 1 x H x W; arguments as the network's."""
        features = self.network.features(images, present, target, view, intensity)
        return self.network.image(features), self.network.error(features)


def check_onnx_packages() -> None:
    """Whether ONNX can be written here.

    Raises:
        UsageError: the packages that export needs are not installed.
    """
    if find_spec("onnxscript") is None:
        raise UsageError("export needs the packages onnx and onnxscript; run `pip install onnx onnxscript`.")


def _example(canvas: Canvas, config: GeneratorConfig | Ds3NetConfig) -> tuple[list[str], dict[str, torch.Tensor]]:
    height, width = next(iter(canvas.sizes.values()))
    channels = len(MODALITIES) * len(neighbour_offsets(config.neighbours))
    inputs = {
        "images": torch.zeros(2, channels, height, width),
        "present": torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]]),
        "target": torch.tensor([3, 0]),
    }
    if config.view_code:
        inputs["view"] = torch.tensor([0, 1])
    if config.intensity_code:
        inputs["intensity"] = torch.tensor([0.3, 0.4])
    return list(inputs), inputs
