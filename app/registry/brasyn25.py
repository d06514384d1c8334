"""Import of the released BraSyn 2025 generator: its tensors' names in terms of ours, and its file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from app.core.constants import VIEWS, View
from app.core.errors import WeightsError
from app.networks.architectures import HfGanConfig
from app.networks.hf_gan import HfGan
from app.preprocessing.normalization import BRASYN25_INTENSITIES, Normalization
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import save_network
from app.registry.lineage import TrainingRecord
from app.registry.manifest import Entry, sha256_of
from app.registry.spec import GeneratorSpec

#: BraSyn 2025 (AImageLab) to ours, in order; the first pattern that matches renames. The fifth gate is the early one.
_BRASYN25 = [
    (r"encoder\.encoder_early\.(.+)", r"early.\1"),
    (r"encoder\.encoder_middles\.(?:\d\.)?(.+)", r"encoders.\1"),
    (r"encoder\.attn_blocks\.(\d)\.(.+)", r"fusion.gates.\1.\2"),
    (r"encoder\.conv1\.(.+)", r"fusion.mix.\1"),
    (r"decoder\.ups\.(\d)\.0\.(.+)", r"decoder.blocks.\1.\2"),
    (r"decoder\.ups\.(\d)\.1\.(.+)", r"decoder.ups.\1.\2"),
    (r"decoder\.conv_final\.0\.(.+)", r"decoder.last.\1"),
    (r"decoder\.conv_final\.1\.(.+)", r"decoder.norm.\1"),
    (r"decoder\.conv_final\.3\.(.+)", r"decoder.head.\1"),
    (r"middle\.(modality|view)_embedding\.1\.(.+)", r"infuser.\1_code.layers.0.\2"),
    (r"middle\.(modality|view)_embedding\.3\.(.+)", r"infuser.\1_code.layers.2.\2"),
    (r"middle\.embedding\.position_embeddings", r"infuser.position_table"),
    (r"middle\.embedding\.patch_embeddings\.(.+)", r"infuser.patch.\1"),
    (r"middle\.encoder_norm\.(.+)", r"infuser.norm.\1"),
    (r"middle\.transformer\.(\d)\.(norm[12])\.(.+)", r"infuser.blocks.\1.\2.\3"),
    (r"middle\.transformer\.(\d)\.mha\.in_proj_(.+)", r"infuser.blocks.\1.attention.in_proj.\2"),
    (r"middle\.transformer\.(\d)\.mha\.out_proj\.(.+)", r"infuser.blocks.\1.attention.out_proj.\2"),
    (r"middle\.transformer\.(\d)\.ffn\.0\.(.+)", r"infuser.blocks.\1.mlp.0.\2"),
    (r"middle\.transformer\.(\d)\.ffn\.2\.(.+)", r"infuser.blocks.\1.mlp.3.\2"),
    (r"middle\.layers\.(\d)\.attention_norm\.(.+)", r"infuser.blocks.\1.norm1.\2"),
    (r"middle\.layers\.(\d)\.ffn_norm\.(.+)", r"infuser.blocks.\1.norm2.\2"),
    (r"middle\.layers\.(\d)\.attn\.(query|key|value)\.(.+)", r"infuser.blocks.\1.attention.in_proj.\3"),
    (r"middle\.layers\.(\d)\.attn\.out\.(.+)", r"infuser.blocks.\1.attention.out_proj.\2"),
    (r"middle\.layers\.(\d)\.ffn\.fc1\.(.+)", r"infuser.blocks.\1.mlp.0.\2"),
    (r"middle\.layers\.(\d)\.ffn\.fc2\.(.+)", r"infuser.blocks.\1.mlp.3.\2"),
]
#: What a file of several processes puts before every name.
_PREFIX = "module."
#: Tensors that ours has as one, along the first axis: projections of the attention, and separate encoders.
_PIECE = re.compile(r"middle\.layers\.\d\.attn\.(query|key|value)\.|encoder\.encoder_middles\.(\d)\.")
_PACKED = ("query", "key", "value")


def from_brasyn25(released: Mapping[str, Tensor]) -> tuple[HfGanConfig, dict[str, Tensor]]:
    """The configuration and state of our generator that computes what a BraSyn 2025 checkpoint computes.

    Args:
        released: with grouped or separate encoders, with or without a view code, with or without `module.` before
            every name.

    Raises:
        WeightsError: a tensor is unknown, missing or of another shape.
    """
    config = HfGanConfig.released(view_code=any("view_embedding" in name for name in released))
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for full, tensor in released.items():
        name = full.removeprefix(_PREFIX)
        parts.setdefault(_rename(name), []).append((_piece(name), tensor))
    state = {
        ours: torch.cat([t for _, t in sorted(pieces, key=lambda piece: piece[0])]) if len(pieces) > 1 else pieces[0][1]
        for ours, pieces in parts.items()
    }
    with torch.device("meta"):
        expected = HfGan(config).state_dict()
    if missing := sorted(set(expected) - set(state)):
        raise WeightsError(f"{len(missing)} tensors of the BraSyn 2025 generator are missing, the first: {missing[0]}.")
    for ours, tensor in state.items():
        if ours not in expected or tensor.shape != expected[ours].shape:
            wanted = tuple(expected[ours].shape) if ours in expected else "nothing"
            raise WeightsError(f"tensor {ours} has shape {tuple(tensor.shape)} where {wanted} is expected.")
    return config, state


def _rename(name: str) -> str:
    for pattern, replacement in _BRASYN25:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise WeightsError(f"tensor {name!r} is not one of the BraSyn 2025 generator.")


def _piece(name: str) -> int:
    """Place of a tensor among those that are one of ours; 0 for one that is whole."""
    found = _PIECE.match(name)
    if found is None:
        return 0
    return _PACKED.index(found[1]) if found[1] else int(found[2])


def import_checkpoint(file: Path, kind: Literal["brasyn25"], folder: Path, name: str, views: tuple[View, ...]) -> Entry:
    """Brings a public checkpoint into our format.

    Args:
        file: the released safetensors file.
        views: which views to run it on; without a view code, the one that it was trained on.

    Raises:
        WeightsError: the file is no safetensors file or not of this kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        released = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors ({error}); give the released .safetensors file, not a pickle."
        ) from None
    try:
        config, state = from_brasyn25(released)
    except WeightsError as error:
        raise WeightsError(f"{file} is not a BraSyn 2025 generator: {error}") from None
    normalization = Normalization("dataset", background=-1.0, intensities=BRASYN25_INTENSITIES)
    canvas = Canvas(dict.fromkeys(VIEWS, (240, 240)), centre="volume")
    spec = GeneratorSpec(
        architecture=config, normalization=normalization, canvas=canvas, views=tuple(v for v in VIEWS if v in views)
    )
    record = TrainingRecord(model=name, source={"kind": kind, "file": file.name, "sha256": sha256_of(file)})
    return save_network(folder, name, spec, state, training=record)
