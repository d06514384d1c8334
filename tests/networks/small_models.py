"""Networks that tests put beside those of the fixture `weights_dir`."""

from __future__ import annotations

import torch

from app.networks.hf_gan import HfGan
from app.preprocessing.normalization import Normalization
from app.registry.checkpoints import architecture_of, save_generator
from app.registry.manifest import read_manifest

VOLUME = Normalization("volume", background=-1.0)


def add_expert(folder, name="expert", makes=("t2f",), normalization=VOLUME):
    """Another untrained network beside `tiny`, which makes some sequences only."""
    tiny = read_manifest(folder).entry("tiny")
    torch.manual_seed(5)
    config = architecture_of(tiny)
    state = HfGan(config).state_dict()
    intensity = tiny.path_of("intensity").read_bytes()
    return save_generator(folder, name, config, state, normalization, tiny.canvas, tiny.views, intensity=intensity,
                          details={"makes": list(makes)})  # fmt: skip
