"""What the tests of simulated exams share: an atlas of phantoms, and an untrained network."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from app.core.constants import MODALITIES
from app.data.phantom import make_phantom
from app.inference.simulation.atlas import Atlas, AtlasBuilder, frame_of
from app.inference.simulation.build import RANGE
from app.inference.simulation.simulator import ExamSimulator
from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr import new_simulator
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.preprocessing.normalization import measure, normalize
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import save_network
from app.registry.manifest import Entry
from app.registry.spec import CgSamrSpec

SHAPE = (40, 44, 36)
CANVAS = Canvas({"axial": (48, 48), "sagittal": (48, 48), "coronal": (48, 48)})


@lru_cache
def small_atlas() -> Atlas:
    """An atlas of one phantom."""
    phantom, builder = make_phantom(SHAPE, 0), AtlasBuilder()
    brain = vote_foreground(phantom.volumes)
    box = bounding_box(brain)
    scales = {m: measure(phantom.volumes[m], m, RANGE) for m in MODALITIES}
    images = np.stack([normalize(phantom.volumes[m][box], scales[m], -1.0) for m in MODALITIES])
    frame = frame_of(SHAPE, phantom.affine, [side.start for side in box])
    builder.add(images, brain[box], phantom.labels[box], [scales[m].clip for m in MODALITIES], frame)
    return builder.build()


def small_simulator(config: CgSamrConfig | None = None) -> ExamSimulator:
    """An untrained network on that atlas."""
    config = config or CgSamrConfig(width=4)
    torch.manual_seed(0)
    return ExamSimulator(new_simulator(config).eval(), config, CANVAS, small_atlas(), torch.device("cpu"))


def save_small(folder, name: str, config: CgSamrConfig | None = None) -> Entry:
    """Put an untrained network with that atlas into a folder of weights."""
    config = config or CgSamrConfig(width=4)
    torch.manual_seed(0)
    spec = CgSamrSpec(architecture=config, normalization=RANGE, canvas=CANVAS)
    state = new_simulator(config).state_dict()
    return save_network(folder, name, spec, state, atlas=small_atlas().to_bytes())
