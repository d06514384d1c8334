"""Networks, which read no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.networks.hf_gan import HfGan, HfGanConfig
    from app.networks.unet import UNetConfig, UNetGenerator


def config_from_json(form: Mapping[str, Any]) -> HfGanConfig | UNetConfig:
    """A generator's shape from the manifest's form, which names the network unless it is the hybrid-fusion one."""
    from app.networks.hf_gan import HfGanConfig
    from app.networks.unet import UNetConfig

    if form.get("network", "hybrid") == "unet":
        return UNetConfig.from_json(form)
    return HfGanConfig(**form)


def new_generator(config: HfGanConfig | UNetConfig) -> HfGan | UNetGenerator:
    """An untrained generator of that shape."""
    from app.networks.hf_gan import HfGan
    from app.networks.unet import UNetConfig, UNetGenerator

    return UNetGenerator(config) if isinstance(config, UNetConfig) else HfGan(config)
